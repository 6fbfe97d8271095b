//! The streams: items in, outcomes out.
//!
//! Every call of `run` is a loop of its own: take what waits, tokenize it, compute it in batches, write the outcomes of
//! each batch before computing the next. Nothing is borrowed across an await, so that any number of calls can share
//! the instance and its models.

use crate::bindings::exports::weir::stream::infer::Guest;
use crate::bindings::wit_stream;
use crate::graph::BatchOutput;
use crate::job::{Job, Prepared, check_sizes, prepare};
use crate::models::{Model, Models};
use crate::tokenize::Sequence;
use crate::types::{Failure, Item, ModelInfo, Outcome};
use std::collections::BTreeMap;
use std::rc::Rc;
use weir_core::batch::{BatchLimits, plan_batches};
use wit_bindgen::{StreamReader, StreamResult, StreamWriter};

/// The most items taken at once.
const ITEMS_MAX: usize = 32;
/// Items taken at once are tokenized together up to so many bytes of text, so that short texts do not wait for the
/// tokenizing of long ones behind them. A batch of [`LIMITS`] needs about 4 bytes for each of its tokens.
const TOGETHER_BYTES_MAX: usize = 64 << 10;
/// 128 padded tokens keep one run of a small encoder near 15 ms on a CPU core, so that results leave soon after one
/// another; on tract a larger run costs as much for each token. Starting a run was measured to cost as much as 9 tokens.
const LIMITS: BatchLimits = BatchLimits { rows_max: 32, padded_tokens_max: 128, run_overhead_tokens: 9 };

thread_local! {
    static MODELS: Rc<Models> = Rc::default();
}

struct Service;

crate::bindings::export!(Service with_types_in crate::bindings);

impl Guest for Service {
    async fn run(items: StreamReader<Item>) -> StreamReader<Outcome> {
        let (writer, reader) = wit_stream::new();
        wit_bindgen::spawn(answer_stream(items, writer));
        reader
    }

    async fn models() -> Vec<ModelInfo> {
        MODELS.with(Rc::clone).list()
    }
}

/// Nobody reads the outcomes any more.
struct ReaderGone;

async fn answer_stream(mut items: StreamReader<Item>, mut outcomes: StreamWriter<Outcome>) {
    let models = MODELS.with(Rc::clone);
    let mut buffer = Vec::with_capacity(ITEMS_MAX);
    loop {
        let (status, mut taken) = items.read(buffer).await;
        let mut together = Vec::new();
        let mut bytes = 0;
        for item in taken.drain(..) {
            let length = item.text.len() + item.text_pair.as_ref().map_or(0, String::len);
            if bytes + length > TOGETHER_BYTES_MAX && !together.is_empty() {
                if answer_items(&models, std::mem::take(&mut together), &mut outcomes).await.is_err() {
                    return;
                }
                bytes = 0;
            }
            bytes += length;
            together.push(item);
        }
        if answer_items(&models, together, &mut outcomes).await.is_err() || !matches!(status, StreamResult::Complete(_))
        {
            return;
        }
        buffer = taken;
    }
}

/// One sequence that waits for its batch.
struct Row {
    job: usize,
    part: usize,
    sequence: Sequence,
}

/// An item that is being computed; `job` is gone once it is answered.
struct Open {
    id: u64,
    job: Option<Job>,
}

async fn answer_items(
    models: &Models,
    items: Vec<Item>,
    outcomes: &mut StreamWriter<Outcome>,
) -> Result<(), ReaderGone> {
    let mut open: Vec<Open> = Vec::new();
    let mut queues: BTreeMap<String, (Rc<Model>, Vec<Row>)> = BTreeMap::new();
    let mut done = Vec::new();
    for item in items {
        let id = item.id;
        let name = item.model.clone();
        let prepared =
            check_sizes(&item).and_then(|()| models.open(&name)).map(|model| (prepare(item, &model.files), model));
        match prepared {
            Err(failure) => done.push(Outcome { id, tokens: 0, result: Err(failure) }),
            Ok((Prepared::Done(result), _)) => done.push(Outcome { id, tokens: 0, result }),
            Ok((Prepared::Compute(job, sequences), model)) => {
                let rows = &mut queues.entry(name).or_insert_with(|| (model, Vec::new())).1;
                let parts = sequences.into_iter().enumerate();
                rows.extend(parts.map(|(part, sequence)| Row { job: open.len(), part, sequence }));
                open.push(Open { id, job: Some(job) });
            }
        }
    }
    write(outcomes, done).await?;
    for (model, batch) in plan(queues) {
        let done = compute_batch(&model, &batch, &mut open);
        if done.is_empty() {
            // A batch of parts of longer texts: let the other calls of this instance have their turn.
            wit_bindgen::yield_async().await;
        }
        write(outcomes, done).await?;
    }
    Ok(())
}

/// The batches of all models. Those with the first parts of their items come first, so that one item of many parts
/// holds nobody up; among them goes first what came first.
fn plan(queues: BTreeMap<String, (Rc<Model>, Vec<Row>)>) -> Vec<(Rc<Model>, Vec<Row>)> {
    let mut batches = Vec::new();
    for (model, rows) in queues.into_values() {
        let lengths: Vec<usize> = rows.iter().map(|row| row.sequence.ids.len()).collect();
        let mut rows: Vec<Option<Row>> = rows.into_iter().map(Some).collect();
        for batch in plan_batches(&lengths, LIMITS) {
            let batch: Vec<Row> = batch.into_iter().filter_map(|index| rows[index].take()).collect();
            batches.push((model.clone(), batch));
        }
    }
    batches.sort_by_key(|(_, batch)| {
        (batch.iter().map(|row| row.part / LIMITS.rows_max).min(), batch.iter().map(|row| row.job).min())
    });
    batches
}

/// Computes the rows whose items are not answered yet, and returns the outcomes that are complete.
fn compute_batch(model: &Model, batch: &[Row], open: &mut [Open]) -> Vec<Outcome> {
    let live: Vec<&Row> = batch.iter().filter(|row| open[row.job].job.is_some()).collect();
    let mut done = Vec::new();
    if live.is_empty() {
        return done;
    }
    let sequences: Vec<&Sequence> = live.iter().map(|row| &row.sequence).collect();
    match model.graph.compute(&sequences) {
        Ok(output) => live.iter().enumerate().for_each(|(index, row)| take(row, Ok((&output, index)), open, &mut done)),
        Err(error) if live.len() == 1 => take(live[0], Err(error.to_string()), open, &mut done),
        // One of them spoils the batch: alone, only that one fails.
        Err(_) => {
            for row in live {
                let output = model.graph.compute(&[&row.sequence]);
                let output = output.as_ref().map(|output| (output, 0)).map_err(ToString::to_string);
                take(row, output, open, &mut done);
            }
        }
    }
    done
}

/// Gives a row's output to its item, and the item's outcome to `done` when that completes it.
fn take(row: &Row, output: Result<(&BatchOutput, usize), String>, open: &mut [Open], done: &mut Vec<Outcome>) {
    let Open { id, job: slot } = &mut open[row.job];
    let Some(job) = slot else { return };
    let result = match output {
        Ok((output, index)) => job.accept(row.part, &row.sequence, output.row(index)),
        Err(text) => Some(Err(Failure::Engine(text))),
    };
    if let Some(result) = result {
        *slot = None;
        done.push(Outcome { id: *id, tokens: 0, result });
    }
}

async fn write(outcomes: &mut StreamWriter<Outcome>, done: Vec<Outcome>) -> Result<(), ReaderGone> {
    if done.is_empty() || outcomes.write_all(done).await.is_empty() { Ok(()) } else { Err(ReaderGone) }
}
