//! Items from text to outcome, with an artificial graph: refusals, truncation, and the positions of entities and
//! summaries.

// A failing test panics.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use std::path::Path;
use std::rc::Rc;
use weir_infer::config::ModelConfig;
use weir_infer::job::{ModelFiles, Prepared, RowOutput, TEXT_BYTES_MAX, prepare};
use weir_infer::tokenize::{ModelTokenizer, Sequence, TruncationSide};
use weir_infer::types::{
    Aggregation, ClassifyOptions, EmbedOptions, Entity, Failure, Item, Output, Overflow, SummaryOptions, Task,
    TokenOptions, TooLong, WhenFull,
};

const CONFIG_TOKENS: &str = r#"{"architectures":["BertForTokenClassification"],"id2label":{"0":"O","1":"B-PER"}}"#;
const CONFIG_LABELS: &str = r#"{"architectures":["BertForSequenceClassification"],"id2label":{"0":"bad","1":"good"}}"#;
const CONFIG_VECTORS: &str = r#"{"architectures":["BertModel"]}"#;

/// A model of at most `tokens_max` tokens with the WordPiece vocabulary of the models that ship.
fn model(config: &str, tokens_max: usize) -> Rc<ModelFiles> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../host/nn/models/embeddings");
    let limits = format!(r#"{{"model_max_length":{tokens_max},"unk_token":"[UNK]"}}"#);
    let config = ModelConfig::parse(config.as_bytes(), Some(limits.as_bytes()), None, None).unwrap();
    let tokenizer = ModelTokenizer::parse(&std::fs::read(folder.join("tokenizer.json")).unwrap(), &config).unwrap();
    Rc::new(ModelFiles { config, tokenizer })
}

fn item(text: &str, task: Task) -> Item {
    Item {
        id: 7,
        model: "m".to_owned(),
        text: text.to_owned(),
        text_pair: None,
        overflow: Overflow::Truncate,
        deadline_ms: None,
        when_full: WhenFull::Wait,
        traceparent: None,
        task,
    }
}

fn classify() -> Task {
    Task::Classify(ClassifyOptions { top_k: None, activation: None })
}

fn tokens() -> Task {
    Task::Tokens(TokenOptions { aggregation: Aggregation::First, ignore_labels: vec!["O".to_owned()], stride: None })
}

fn embed() -> Task {
    Task::Embed(EmbedOptions { normalize: true })
}

fn summarize(tokens_min: u32, tokens_max: u32) -> Task {
    Task::Summarize(SummaryOptions { tokens_min, tokens_max })
}

/// The outcome of an item. `graph` computes the values of each sequence and their shape.
fn run(
    item: Item,
    files: &Rc<ModelFiles>,
    graph: impl Fn(usize, &Sequence) -> (Vec<f32>, Vec<usize>),
) -> Result<Output, Failure> {
    let (mut job, sequences) = match prepare(item, files) {
        Prepared::Compute(job, sequences) => (job, sequences),
        Prepared::Done(result) => return result,
    };
    let mut result = None;
    for (part, sequence) in sequences.iter().enumerate() {
        assert!(result.is_none(), "answered before the last part");
        assert!(sequence.ids.len() <= files.tokenizer.tokens_max());
        let (values, shape) = graph(part, sequence);
        result = job.accept(part, sequence, RowOutput { values: &values, shape: &shape });
    }
    result.expect("an outcome after the last part")
}

/// A graph that must not be called.
fn unused(_: usize, _: &Sequence) -> (Vec<f32>, Vec<usize>) {
    panic!("nothing had to be computed")
}

/// Marks every token of `ids` as the beginning of a person, in a batch that is padded by two.
fn persons(ids: Vec<u32>) -> impl Fn(usize, &Sequence) -> (Vec<f32>, Vec<usize>) {
    move |_, sequence| {
        let marks = sequence.ids.iter().map(|id| if ids.contains(id) { [0.0, 9.0] } else { [9.0, 0.0] });
        let values: Vec<f32> = marks.chain([[0.0, 9.0]; 2]).flatten().collect();
        (values, vec![sequence.ids.len() + 2, 2])
    }
}

/// A vector that depends on the token ids only.
fn hashed(_: usize, sequence: &Sequence) -> (Vec<f32>, Vec<usize>) {
    let vector = (0..8).map(|k| sequence.ids.iter().map(|&id| ((id as f32) * (k as f32 + 0.7)).sin()).sum()).collect();
    (vector, vec![8])
}

fn ids(text: &str, files: &ModelFiles) -> Vec<u32> {
    let sequence = files.tokenizer.tokenize(text, None, TruncationSide::Beginning).unwrap().sequence;
    sequence.ids.iter().zip(&sequence.special).filter(|(_, special)| !**special).map(|(&id, _)| id).collect()
}

fn surface(text: &str, entity: &Entity) -> String {
    text.chars().skip(entity.start as usize).take((entity.end - entity.start) as usize).collect()
}

fn entities(result: Result<Output, Failure>) -> Vec<Entity> {
    match result {
        Ok(Output::Entities(entities)) => entities,
        other => panic!("{other:?}"),
    }
}

fn summary(result: Result<Output, Failure>) -> String {
    match result {
        Ok(Output::Summary(summary)) => summary,
        other => panic!("{other:?}"),
    }
}

#[test]
fn task_that_the_model_lacks_is_refused() {
    let labels = model(CONFIG_LABELS, 64);
    let vectors = model(CONFIG_VECTORS, 64);
    let split = |task| Item { overflow: Overflow::Split, ..item("text", task) };
    let pair = |task| Item { text_pair: Some("pair".to_owned()), ..item("text", task) };
    let cases = [
        (item("text", embed()), &labels),
        (item("text", classify()), &vectors),
        (item("text", tokens()), &vectors),
        (pair(embed()), &vectors),
        (split(classify()), &labels),
        (split(embed()), &vectors),
        (item("text", summarize(10, 5)), &vectors),
        (item("text", summarize(0, 0)), &vectors),
        (item(&"x".repeat(TEXT_BYTES_MAX + 1), classify()), &labels),
        (Item { text_pair: Some("x".repeat(TEXT_BYTES_MAX + 1)), ..item("text", classify()) }, &labels),
    ];
    for (item, files) in cases {
        let task = item.task.clone();
        assert!(matches!(run(item, files, unused), Err(Failure::InvalidInput(_))), "{task:?}");
    }
}

#[test]
fn long_text_is_cut_or_refused_with_its_length() {
    let files = model(CONFIG_LABELS, 8);
    let text = "one two three four five six seven eight nine ten";
    let Prepared::Compute(_, sequences) = prepare(item(text, classify()), &files) else { panic!("nothing to compute") };
    assert_eq!(sequences[0].ids.len(), 8);
    let fail = |text, pair: Option<&str>| Item {
        overflow: Overflow::Fail,
        text_pair: pair.map(str::to_owned),
        ..item(text, classify())
    };
    let too_long = |tokens| Err(Failure::TooLong(TooLong { tokens, tokens_max: 8 }));
    assert_eq!(run(fail(text, None), &files, unused), too_long(12));
    assert_eq!(run(fail("one two", Some("three four five six")), &files, unused), too_long(9));
    assert!(matches!(prepare(fail("one two", Some("three four")), &files), Prepared::Compute(..)));
}

#[test]
fn pair_is_cut_from_the_longer_text() {
    let files = model(CONFIG_LABELS, 10);
    let pair = Item { text_pair: Some("a b c d e f g h i".to_owned()), ..item("x y", classify()) };
    let Prepared::Compute(_, sequences) = prepare(pair, &files) else { panic!("nothing to compute") };
    let tokens: Vec<String> = sequences[0].ids.iter().map(|&id| files.tokenizer.token(id)).collect();
    assert_eq!(tokens.join(" "), "[CLS] x y [SEP] a b c d e [SEP]");
    assert_eq!(sequences[0].types, [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn spans_of_a_split_text_lie_in_the_whole_text() {
    let files = model(CONFIG_TOKENS, 64);
    let text = "  🙂 Nobody spoke. Then e\u{301}clairs and Merkel came!\n\nMerkel left.";
    let split = Item { overflow: Overflow::Split, ..item(text, tokens()) };
    let found_entities = entities(run(split, &files, persons(ids("Merkel", &files))));
    let surfaces: Vec<String> = found_entities.iter().map(|entity| surface(text, entity)).collect();
    assert_eq!(surfaces, ["Merkel", "Merkel"]);
    assert!(found_entities[0].end < found_entities[1].start);
    assert_eq!(found_entities[0].label, "PER");
}

#[test]
fn sentence_over_the_maximum_is_read_in_windows() {
    let files = model(CONFIG_TOKENS, 7);
    let text = "one two three four five six seven eight paris nine ten eleven paris";
    let split = Item { overflow: Overflow::Split, ..item(text, tokens()) };
    let found_entities = entities(run(split, &files, persons(ids("paris", &files))));
    assert_eq!(found_entities.iter().map(|entity| surface(text, entity)).collect::<Vec<_>>(), ["paris", "paris"]);
}

/// A graph that recognizes "angela berlin" by its neighbours: a name at the edge of its window gets another label, with a higher score.
fn names_in_context(ids: [u32; 2]) -> impl Fn(usize, &Sequence) -> (Vec<f32>, Vec<usize>) {
    move |_, sequence| {
        let at = |index: usize| sequence.ids.get(index).copied();
        let known = |index: usize| index > 1 && index + 2 < sequence.ids.len();
        let logits = (0..sequence.ids.len()).flat_map(|index| {
            let before = index.checked_sub(1).and_then(at);
            match at(index) {
                Some(id) if id == ids[0] && known(index) && at(index + 1) == Some(ids[1]) => [0.0, 5.0, 0.0],
                Some(id) if id == ids[1] && known(index) && before == Some(ids[0]) => [0.0, 0.0, 5.0],
                Some(id) if ids.contains(&id) => [0.0, 9.0, 0.0],
                _ => [5.0, 0.0, 0.0],
            }
        });
        (logits.collect(), vec![sequence.ids.len(), 3])
    }
}

const CONFIG_NAMES: &str =
    r#"{"architectures":["BertForTokenClassification"],"id2label":{"0":"O","1":"B-PER","2":"I-PER"}}"#;

/// A name in text without punctuation is found once and whole, at every position.
#[test]
fn name_in_a_long_text_is_found_whole_at_every_position() {
    let files = model(CONFIG_NAMES, 26);
    let ids = <[u32; 2]>::try_from(ids("angela berlin", &model(CONFIG_NAMES, 512))).unwrap();
    for before in 0..80 {
        let text = format!("{}Angela Berlin{}", "tea ".repeat(before), " and tokenization".repeat(80 - before));
        for aggregation in [Aggregation::Simple, Aggregation::First, Aggregation::Average, Aggregation::Max] {
            for stride in [None, Some(8), Some(12)] {
                let task = Task::Tokens(TokenOptions { aggregation, ignore_labels: vec!["O".to_owned()], stride });
                let split = Item { overflow: Overflow::Split, ..item(&text, task) };
                let found_entities = entities(run(split, &files, names_in_context(ids)));
                let texts: Vec<&str> = found_entities.iter().map(|entity| entity.text.as_str()).collect();
                // At the beginning and the end of the text the name has no neighbour on one side.
                if (1..80).contains(&before) {
                    assert_eq!(texts, ["Angela Berlin"], "{before} {aggregation:?} {stride:?}");
                    assert_eq!(surface(&text, &found_entities[0]), "Angela Berlin");
                }
            }
        }
    }
}

thread_local! {
    static NAME: [u32; 2] = ids("angela berlin", &model(CONFIG_NAMES, 512)).try_into().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Names at random positions in text without punctuation are found once and whole, at their positions.
    #[test]
    fn names_in_speech_are_found_whole_at_any_position(
        words in proptest::collection::vec(
            prop_oneof![4 => Just("tea"), 4 => Just("of"), 2 => Just("tokenization"), 1 => Just("kindheartedness"), 2 => Just("Angela Berlin")],
            1..200,
        ),
        aggregation in prop_oneof![Just(Aggregation::Simple), Just(Aggregation::First), Just(Aggregation::Average), Just(Aggregation::Max)],
        tokens_max in 20usize..60,
        stride in proptest::option::of(6u32..9),
    ) {
        let ids = NAME.with(|ids| *ids);
        // Every name has neighbours on both sides.
        let text = format!("tea {} tea", words.join(" tea "));
        let task = Task::Tokens(TokenOptions { aggregation, ignore_labels: vec!["O".to_owned()], stride });
        let split = Item { overflow: Overflow::Split, ..item(&text, task) };
        let found_entities = entities(run(split, &model(CONFIG_NAMES, tokens_max), names_in_context(ids)));
        let positions: Vec<u32> = found_entities.iter().map(|entity| entity.start).collect();
        let want: Vec<u32> = text.match_indices("Angela").map(|(at, _)| at as u32).collect();
        prop_assert_eq!(positions, want);
        prop_assert!(found_entities.iter().all(|entity| entity.text == "Angela Berlin" && surface(&text, entity) == entity.text));
    }
}

/// Without an aggregation each token is reported once, with its index in the whole text, and no window splits a word.
#[test]
fn tokens_of_a_long_text_are_reported_once_and_words_stay_whole() {
    let files = model(CONFIG_NAMES, 20);
    let text = "tea tokenization kindheartedness of a merkel ".repeat(12);
    let want = ids(&text, &model(CONFIG_NAMES, 512));
    let options = TokenOptions { aggregation: Aggregation::None, ignore_labels: Vec::new(), stride: Some(5) };
    let split = Item { overflow: Overflow::Split, ..item(&text, Task::Tokens(options)) };
    let found_entities = entities(run(split, &files, |_, sequence| {
        let first = sequence.special.iter().position(|special| !special).unwrap();
        assert!(!files.tokenizer.token(sequence.ids[first]).starts_with("##"), "a window begins within a word");
        (vec![0.0; sequence.ids.len() * 3], vec![sequence.ids.len(), 3])
    }));
    let indexes: Vec<u32> = found_entities.iter().filter_map(|entity| entity.index).collect();
    assert_eq!(indexes, (1..=want.len() as u32).collect::<Vec<_>>());
    let words: Vec<String> = want.iter().map(|&id| files.tokenizer.token(id)).collect();
    assert_eq!(found_entities.iter().map(|entity| entity.word.clone()).collect::<Vec<_>>(), words);
    assert!(found_entities.iter().all(|entity| surface(&text, entity) == entity.text));
}

#[test]
fn stride_over_half_of_the_model_is_refused() {
    let files = model(CONFIG_TOKENS, 22);
    let run_with = |stride, overflow| {
        let options = TokenOptions { aggregation: Aggregation::First, ignore_labels: Vec::new(), stride: Some(stride) };
        run(Item { overflow, ..item("a text", Task::Tokens(options)) }, &files, persons(Vec::new()))
    };
    assert!(run_with(10, Overflow::Split).is_ok());
    let Err(Failure::InvalidInput(reason)) = run_with(11, Overflow::Split) else {
        panic!("a stride of 11 was accepted")
    };
    assert!(reason.contains("stride is 11 and may be 10"), "{reason}");
    assert!(matches!(run_with(1, Overflow::Truncate), Err(Failure::InvalidInput(_))));
}

#[test]
fn text_that_is_cut_on_the_left_keeps_its_end() {
    let files = model(CONFIG_TOKENS, 7);
    let text = "paris two three four five six paris";
    let left = Item { overflow: Overflow::TruncateLeft, ..item(text, tokens()) };
    let found_entities = entities(run(left, &files, persons(ids("paris", &files))));
    assert_eq!(
        found_entities.iter().map(|entity| (entity.start, entity.text.as_str())).collect::<Vec<_>>(),
        [(30, "paris")]
    );
    let labels = model(CONFIG_LABELS, 8);
    let left = Item { overflow: Overflow::TruncateLeft, ..item("a b c d e f g h i", classify()) };
    let Prepared::Compute(_, sequences) = prepare(left, &labels) else { panic!("nothing to compute") };
    let kept: Vec<String> = sequences[0].ids.iter().map(|&id| labels.tokenizer.token(id)).collect();
    assert_eq!(kept.join(" "), "[CLS] d e f g h i [SEP]");
    let vectors = model(CONFIG_VECTORS, 16);
    let text = "The first sentence is here. The second one is here. The third lies beyond the end.";
    let left = Item { overflow: Overflow::TruncateLeft, ..item(text, summarize(1, 100)) };
    let kept = summary(run(left, &vectors, hashed));
    assert!(kept.contains("beyond") && !kept.contains("first"), "{kept}");
}

#[test]
fn text_without_sentences_has_no_entities() {
    let files = model(CONFIG_TOKENS, 64);
    let split = Item { overflow: Overflow::Split, ..item(" \n ", tokens()) };
    assert_eq!(run(split, &files, unused), Ok(Output::Entities(Vec::new())));
}

#[test]
fn invalid_graph_output_is_an_engine_failure() {
    let check = |item: Item, files: &Rc<ModelFiles>, values: Vec<f32>, shape: Vec<usize>| {
        let result = run(item, files, |_, _| (values.clone(), shape.clone()));
        assert!(matches!(result, Err(Failure::Engine(_))), "{shape:?}: {result:?}");
    };
    let labels = model(CONFIG_LABELS, 64);
    check(item("a", classify()), &labels, vec![0.0; 3], vec![3]);
    check(item("a", classify()), &labels, vec![0.0; 6], vec![3, 2]);
    check(item("a", classify()), &labels, vec![f32::NAN, 0.0], vec![2]);
    let spans = model(CONFIG_TOKENS, 64);
    check(item("a", tokens()), &spans, vec![0.0; 4], vec![2, 2]);
    check(item("a", tokens()), &spans, vec![0.0; 9], vec![3, 3]);
    check(item("a", tokens()), &spans, vec![f32::INFINITY; 6], vec![3, 2]);
    let vectors = model(CONFIG_VECTORS, 64);
    check(item("a", embed()), &vectors, vec![f32::NAN; 4], vec![4]);
    check(item("a", embed()), &vectors, vec![0.0; 4], vec![1, 4]);
}

#[test]
fn token_vectors_are_pooled_without_padding_and_scaled() {
    let files = model(CONFIG_VECTORS, 64);
    let rows = |_: usize, _: &Sequence| (vec![0.0, 0.0, 3.0, 8.0, 6.0, 4.0, 100.0, 0.0], vec![4, 2]);
    assert_eq!(run(item("hello", embed()), &files, rows), Ok(Output::Embedding(vec![0.6, 0.8])));
}

#[test]
fn short_text_is_its_own_summary() {
    let files = model(CONFIG_VECTORS, 64);
    assert_eq!(summary(run(item("", summarize(30, 130)), &files, unused)), "");
    assert_eq!(summary(run(item(" One sentence. ", summarize(30, 130)), &files, unused)), "One sentence.");
    let long = "one two three four tokenization of six";
    assert_eq!(summary(run(item(long, summarize(0, 5)), &files, unused)), "one two three four");
    // A word of several tokens is cut where no word ends before.
    assert_eq!(summary(run(item(&"x".repeat(90), summarize(0, 1)), &files, unused)), "xx");
}

#[test]
fn summary_stays_in_order_and_within_bounds() {
    let files = model(CONFIG_VECTORS, 64);
    let sentences: Vec<String> =
        (0..40).map(|n| format!("Sentence {n} says the thing of {}.", n * 7919 % 101)).collect();
    let text = sentences.join("\n\n");
    let has = files.tokenizer.count(&text).unwrap() as u32;
    for (tokens_min, tokens_max) in [(30, 130), (1, 12), (5, 5), (100, 100), (400, 2000)] {
        let split = Item { overflow: Overflow::Split, ..item(&text, summarize(tokens_min, tokens_max)) };
        let got = summary(run(split.clone(), &files, hashed));
        let tokens = files.tokenizer.count(&got).unwrap() as u32;
        assert!(
            (tokens_min.min(has)..=tokens_max).contains(&tokens),
            "{tokens} tokens of {tokens_min} to {tokens_max}: {got}"
        );
        let positions: Vec<usize> = sentences
            .iter()
            .filter(|sentence| got.contains(sentence.as_str()))
            .map(|sentence| got.find(sentence.as_str()).unwrap())
            .collect();
        assert!(positions.is_sorted(), "{got}");
        assert_eq!(got, summary(run(split, &files, hashed)));
    }
}

#[test]
fn summary_reads_the_part_that_overflow_allows() {
    let files = model(CONFIG_VECTORS, 16);
    let text = "The first sentence is here. The second one is here. The third lies beyond the end.";
    let run_with = |overflow| run(Item { overflow, ..item(text, summarize(1, 100)) }, &files, hashed);
    assert!(summary(run_with(Overflow::Split)).contains("third"));
    assert!(!summary(run_with(Overflow::Truncate)).contains("beyond"));
    assert_eq!(run_with(Overflow::Fail), Err(Failure::TooLong(TooLong { tokens: 21, tokens_max: 16 })));
}

#[test]
fn beginning_of_a_text_is_the_same_without_the_rest() {
    let files = model(CONFIG_VECTORS, 16);
    let words = "Don't panic: it's an unbelievably long afternoon, e\u{301}tude. ".repeat(50);
    let with = |more: &str| format!("{words}{more}");
    // The one-pass tokenizer leaves the last two texts to the other one.
    let texts =
        [String::new(), "short".into(), "x".repeat(5_000), with(""), with("日本語"), with("[MASK]"), "日".repeat(40)];
    for text in &texts {
        for pair in [None, Some(words.as_str())] {
            let whole = files.tokenizer.tokenize(text, pair, TruncationSide::Beginning).unwrap().sequence;
            assert_eq!(files.tokenizer.tokenize_beginning(text, pair).unwrap(), whole, "{text:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Also where only a beginning is given to the tokenizer: it is left to the crate, and longer than 112 bytes.
    #[test]
    fn beginning_of_any_text_is_the_same_without_the_rest(
        text in "([a-c]{1,3}|[ ,.\n]|é|e\u{301}|\u{301}|日本|語|[\u{4e00}-\u{4e20}]{1,20}|ไทย|\\[MASK\\]|한국| ){0,120}",
    ) {
        thread_local! {
            static FILES: Rc<ModelFiles> = model(CONFIG_VECTORS, 16);
        }
        FILES.with(|files| {
            let whole = files.tokenizer.tokenize(&text, None, TruncationSide::Beginning).unwrap().sequence;
            assert_eq!(files.tokenizer.tokenize_beginning(&text, None).unwrap(), whole, "{text:?}");
        });
    }
}
