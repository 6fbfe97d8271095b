//! Precision and recall of each intent on `tests/data/intents.tsv`, with lower bounds.

use std::{collections::BTreeMap, path::PathBuf};

use weir_core::transcripts::{Annotator, Intent, annotate::AnnotateConfig};

/// Lower bounds of precision and recall, in percent. `tests/data/README.md` has the measured values.
const FLOORS: [(Intent, u32, u32); 7] = [
    (Intent::Question, 80, 90),
    (Intent::Clarification, 95, 78),
    (Intent::ActionItem, 95, 84),
    (Intent::Commitment, 93, 93),
    (Intent::Decision, 95, 84),
    (Intent::Agreement, 95, 95),
    (Intent::General, 72, 95),
];

fn labelled() -> Vec<(Intent, String)> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/intents.tsv");
    let text = std::fs::read_to_string(file).expect("the file is there");
    text.lines()
        .map(|line| {
            let (label, text) = line.split_once('\t').expect("a label, a tab, a text");
            (Intent::from_name(label).expect("one of the seven"), text.to_owned())
        })
        .collect()
}

#[test]
fn intent_accuracy_is_not_lower_than_recorded() {
    let annotator = Annotator::new(&AnnotateConfig::default()).expect("the defaults are good");
    let labelled = labelled();
    let mut counts: BTreeMap<(Intent, Intent), u32> = BTreeMap::new();
    for (want, text) in &labelled {
        let got = annotator.annotate(text, &mut Default::default()).intent.expect("it was asked for");
        *counts.entry((*want, got)).or_default() += 1;
        if got != *want {
            println!("{want} read as {got}: {text}");
        }
    }
    let sum = |is: &dyn Fn(Intent, Intent) -> bool| -> u32 {
        counts.iter().filter(|((want, got), _)| is(*want, *got)).map(|(_, count)| count).sum()
    };
    println!("| intent | utterances | precision | recall |\n|---|---|---|---|");
    let mut below_bound = Vec::new();
    for (intent, precision_min, recall_min) in FLOORS {
        let right = sum(&|want, got| want == intent && got == intent);
        let expected = sum(&|want, _| want == intent);
        let got = sum(&|_, got| got == intent);
        let percent = |of: u32| 100.0 * f64::from(right) / f64::from(of.max(1));
        let (precision, recall) = (percent(got), percent(expected));
        println!("| {intent} | {expected} | {precision:.1} % | {recall:.1} % |");
        assert!(expected >= 30, "{intent} has {expected} utterances");
        if precision < f64::from(precision_min) || recall < f64::from(recall_min) {
            below_bound.push(intent);
        }
    }
    let right = sum(&|want, got| want == got);
    println!("right: {right} of {}", labelled.len());
    assert!(labelled.len() >= 210);
    assert!(below_bound.is_empty(), "{below_bound:?}");
}
