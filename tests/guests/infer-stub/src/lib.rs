//! A stand-in for the infer component with canned outputs, for composing with the gateway.
//!
//! It has no model: its outputs are functions of the text, so that tests can check what the gateway does with them.
//!
//! - `classify`: `positive` when the text contains `good`, `negative` when it contains `bad`, else `neutral`; the score is
//!   0.75.
//! - `tokens`: every word that begins with a capital is an entity; the labels cycle through PER, ORG, LOC, MISC, XYZ.
//! - `summarize`: `stub summary of N code points`.
//! - `embed`: the vector `[0.5, -0.5, 0.5, -0.5]`.
//!
//! A text injects a fault: `!fail` fails in the engine, `!overloaded` is refused for 2500 ms, `!down` finds the model
//! unavailable, `!unknown` finds no such model, `!slow` has its outcome after 300 ms, `!never` after ten minutes, `!end` ends
//! the stream of outcomes early, `!outside` adds an entity outside of the text, `!trap` traps the instance, `!hang` loops for
//! ever. Items that arrive together have their outcomes in the reverse order.
//!
//! The labels of the listed model `stub` are counters: the items that this instance has answered, and the calls whose caller
//! left before all outcomes were written.

mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        inline: "
            package weir:infer-stub;
            world infer-stub {
                import wasi:clocks/monotonic-clock@0.3.0;
                export weir:%stream/infer@0.1.0;
            }
        ",
        path: "../../../wit",
        world: "weir:infer-stub/infer-stub",
        generate_all,
    });
}

use bindings::{
    exports::weir::stream::infer::{Guest, Item, ModelInfo, Outcome},
    wasi::clocks::monotonic_clock,
    weir::stream::types::{Entity, Failure, LabelScore, ModelKind, Output, Task},
    wit_stream,
};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use wit_bindgen::rt::async_support::{StreamReader, StreamResult, spawn};

/// Most items read at once.
const ITEMS_MAX: usize = 128;
const SLOW_NS: u64 = 300_000_000;
const NEVER_NS: u64 = 600_000_000_000;

static ANSWERED: AtomicU64 = AtomicU64::new(0);
static ABANDONED: AtomicU64 = AtomicU64::new(0);

struct Stub;
bindings::export!(Stub with_types_in bindings);

impl Guest for Stub {
    async fn run(mut items: StreamReader<Item>) -> StreamReader<Outcome> {
        let (mut writer, reader) = wit_stream::new::<Outcome>();
        spawn(async move {
            loop {
                let (result, batch) = items.read(Vec::with_capacity(ITEMS_MAX)).await;
                for item in batch.into_iter().rev() {
                    if item.text.contains("!end") {
                        return;
                    }
                    if item.text.contains("!slow") {
                        monotonic_clock::wait_for(SLOW_NS).await;
                    }
                    if item.text.contains("!never") {
                        monotonic_clock::wait_for(NEVER_NS).await;
                    }
                    assert!(!item.text.contains("!trap"), "stub: asked to trap");
                    while item.text.contains("!hang") {
                        std::hint::spin_loop();
                    }
                    let outcome = Outcome { id: item.id, tokens: 0, result: run_item(&item) };
                    if writer.write_one(outcome).await.is_some() {
                        ABANDONED.fetch_add(1, Relaxed);
                        return;
                    }
                    ANSWERED.fetch_add(1, Relaxed);
                }
                if !matches!(result, StreamResult::Complete(_)) {
                    return;
                }
            }
        });
        reader
    }

    async fn models() -> Vec<ModelInfo> {
        let model = |name: &str, kind, labels: &[&str]| ModelInfo {
            name: name.to_owned(),
            kind,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            tokens_max: 512,
            ready: true,
            reason: None,
        };
        vec![
            model("embeddings", ModelKind::FeatureExtraction, &[]),
            model("entities", ModelKind::TokenClassification, &LABELS),
            model("sentiment", ModelKind::TextClassification, &["negative", "neutral", "positive"]),
            model(
                "stub",
                ModelKind::FeatureExtraction,
                &[&count("answered", &ANSWERED), &count("abandoned", &ABANDONED)],
            ),
        ]
    }
}

fn count(name: &str, counter: &AtomicU64) -> String {
    format!("{name} {}", counter.load(Relaxed))
}

const LABELS: [&str; 5] = ["PER", "ORG", "LOC", "MISC", "XYZ"];

fn run_item(item: &Item) -> Result<Output, Failure> {
    let contains = |word: &str| item.text.contains(word);
    if contains("!fail") {
        return Err(Failure::Engine("stub: asked to fail".to_owned()));
    }
    if contains("!overloaded") {
        return Err(Failure::Overloaded(2500));
    }
    if contains("!down") {
        return Err(Failure::Unavailable("stub: asked to be down".to_owned()));
    }
    if contains("!unknown") {
        return Err(Failure::UnknownModel(item.model.clone()));
    }
    Ok(match &item.task {
        Task::Classify(_) => {
            let label = if contains("good") {
                "positive"
            } else if contains("bad") {
                "negative"
            } else {
                "neutral"
            };
            Output::Labels(vec![LabelScore { label: label.to_owned(), score: 0.75 }])
        }
        Task::Tokens(_) => {
            let mut entities = capitals(&item.text);
            if contains("!outside") {
                entities.push(entity("PER", String::new(), 100_000, 100_001));
            }
            Output::Entities(entities)
        }
        Task::Embed(_) => Output::Embedding(vec![0.5, -0.5, 0.5, -0.5]),
        Task::Summarize(_) => Output::Summary(format!("stub summary of {} code points", item.text.chars().count())),
    })
}

/// Words that begin with a capital, with offsets in code points.
fn capitals(text: &str) -> Vec<Entity> {
    let mut entities = Vec::new();
    let mut word = String::new();
    for (at, c) in text.chars().chain([' ']).enumerate() {
        if c.is_alphanumeric() {
            word.push(c);
            continue;
        }
        let word = std::mem::take(&mut word);
        if word.starts_with(char::is_uppercase) {
            let label = LABELS[entities.len() % LABELS.len()];
            let length = word.chars().count();
            entities.push(entity(label, word, at - length, at));
        }
    }
    entities
}

fn entity(label: &str, word: String, start: usize, end: usize) -> Entity {
    let text = word.clone();
    Entity { label: label.to_owned(), score: 0.75, index: None, word, text, start: start as u32, end: end as u32 }
}
