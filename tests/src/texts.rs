//! Texts and items for tests that call the runtime without HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weir_config::Config;
use weir_runtime::types::{ClassifyOptions, Failure, Item, Outcome, Output, Overflow, Task, WhenFull};
use weir_runtime::{Builtin, Outcomes, Runtime};

use crate::{PATIENCE, component};

/// A seeded generator of numbers and texts: xorshift64*.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end.max(1)
    }

    /// A text of this number of words.
    pub fn text(&mut self, words: usize) -> String {
        const WORDS: &str = "the train was late and nobody said a word about it but we loved the old town its bread and \
            its music more than the rain which never stopped while our friends waited at the station with flowers";
        let all: Vec<&str> = WORDS.split_whitespace().collect();
        (0..words).map(|_| all[self.below(all.len())]).collect::<Vec<_>>().join(" ")
    }
}

/// A runtime with a built component as its infer component: `infer` or a guest.
pub fn runtime(config: &Config, infer: &str) -> Result<Runtime> {
    let mut config = config.clone();
    let compiled = component(&format!("{infer}.cwasm.zst"));
    let builtin = match compiled {
        Ok(file) => {
            let infer: &[u8] = Box::leak(std::fs::read(file)?.into_boxed_slice());
            Builtin { infer: Some(infer), ..Builtin::default() }
        }
        Err(_) => {
            config.infer.component = component(&format!("{infer}.wasm"))?;
            Builtin::default()
        }
    };
    Ok(Runtime::start(&config, builtin)?)
}

/// An item that classifies a text and returns all scores.
pub fn classify_item(id: u64, model: &str, text: impl Into<String>) -> Item {
    Item {
        id,
        model: model.to_owned(),
        text: text.into(),
        text_pair: None,
        overflow: Overflow::Truncate,
        deadline_ms: None,
        when_full: WhenFull::Wait,
        traceparent: None,
        task: Task::Classify(ClassifyOptions { top_k: None, activation: None }),
    }
}

/// The results of a call by item id, once it has ended.
pub async fn collect(mut outcomes: Outcomes) -> Result<BTreeMap<u64, Result<Output, Failure>>> {
    let mut results = BTreeMap::new();
    let reading = async {
        while let Some(Outcome { id, result, .. }) = outcomes.recv().await {
            ensure!(results.insert(id, result).is_none(), "item {id} has two outcomes");
        }
        Ok(results)
    };
    tokio::time::timeout(3 * PATIENCE, reading).await.context("no end in time")?
}

/// Sends items as one call; their results by id, of which each item must have one.
pub async fn run_items(runtime: &Runtime, items: Vec<Item>) -> Result<BTreeMap<u64, Result<Output, Failure>>> {
    let (sender, outcomes) = runtime.call().open();
    let count = items.len();
    let feeding = async {
        for item in items {
            sender.send(item).await?;
        }
        drop(sender);
        anyhow::Ok(())
    };
    let (sent, results) = tokio::join!(feeding, collect(outcomes));
    sent?;
    let results = results?;
    ensure!(results.len() == count, "{} outcomes for {count} items", results.len());
    Ok(results)
}

/// Waits until a condition is true; an error after [`PATIENCE`].
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.with_context(|| format!("not within {PATIENCE:?}: {what}"))
}
