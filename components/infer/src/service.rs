//! The service `weir:stream/infer`: streams of items in, streams of outcomes out.
//!
//! Every call of `run` is a loop: read the waiting items, tokenize each once, form the best batch, compute it, write
//! its outcomes, and read the items that have arrived since. It waits only when it has nothing to compute. No borrow is
//! held across an await, so that any number of calls can share the instance and its models.

use crate::bindings::exports::weir::stream::infer::Guest;
use crate::bindings::wit_stream;
use crate::graph::BatchOutput;
use crate::job::{Job, Prepared, check_sizes, prepare};
use crate::models::{Model, Models};
use crate::settings::Settings;
use crate::tokenize::Sequence;
use crate::types::{Failure, Item, ModelInfo, Outcome, Output};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use weir_core::inference::batch::{BatchLimits, Batcher, Form, Shape};
use weir_guest::read::read_up_to;
use wit_bindgen::{StreamReader, StreamResult, StreamWriter};

thread_local! {
    static MODELS: Rc<Models> = Rc::default();
}

struct Service;

crate::bindings::export!(Service with_types_in crate::bindings);

impl Guest for Service {
    async fn run(items: StreamReader<Item>) -> StreamReader<Outcome> {
        let (writer, reader) = wit_stream::new();
        wit_bindgen::spawn(serve(items, writer));
        reader
    }

    async fn models() -> Vec<ModelInfo> {
        MODELS.with(Rc::clone).list()
    }
}

impl crate::bindings::Guest for Service {
    fn wizer_initialize() {
        if let Err(reason) = MODELS.with(Rc::clone).read_all() {
            // The function has no result, and a trap is what ends the tool.
            panic!("the models cannot be read: {reason}");
        }
    }
}

async fn serve(mut items: StreamReader<Item>, mut outcomes: StreamWriter<Outcome>) {
    let mut call = RunCall { models: MODELS.with(Rc::clone), settings: Settings::read(), lanes: Vec::new(), turn: 0 };
    let mut unread: Vec<Item> = Vec::new();
    let mut ended = false;
    loop {
        if !ended && unread.is_empty() && call.wants_items() {
            let (status, mut batch) = read_up_to(&mut items, call.settings.read_items_max(), call.is_idle()).await;
            ended = matches!(status, StreamResult::Dropped);
            batch.reverse();
            unread = batch;
        }
        let mut done = Vec::new();
        let mut bytes = 0;
        while bytes < call.settings.tokenized_bytes_max()
            && let Some(item) = unread.pop()
        {
            bytes += item.text.len() + item.text_pair.as_ref().map_or(0, String::len);
            done.extend(call.accept(item));
        }
        if done.is_empty() {
            match call.compute() {
                Some(outcomes) => done = outcomes,
                None if ended && unread.is_empty() => return,
                None => continue,
            }
        }
        if done.is_empty() {
            // No outcome to write: yields, so that the other calls of this instance make progress.
            wit_bindgen::yield_async().await;
        } else if !outcomes.write_all(done).await.is_empty() {
            return;
        } else if call.settings.yields {
            // Where infer and its reader are one component, only a yield lets the host send what was written before the next batch.
            wit_bindgen::yield_async().await;
        }
    }
}

/// One call of `run`.
struct RunCall {
    models: Rc<Models>,
    settings: Settings,
    /// The models that its items name. They are computed in turn.
    lanes: Vec<Lane>,
    /// The index of the lane to compute next.
    turn: usize,
}

/// The sequences of one call that wait for one model.
struct Lane {
    name: String,
    model: Rc<Model>,
    batcher: Rc<RefCell<Batcher<Row>>>,
}

/// One sequence that waits for its batch.
struct Row {
    open: Rc<RefCell<OpenItem>>,
    part: usize,
    sequence: Sequence,
}

/// An item that is being computed; it has no `job` once it has its outcome.
struct OpenItem {
    id: u64,
    tokens: u32,
    deadline: Option<Instant>,
    job: Option<Job>,
}

impl RunCall {
    fn is_idle(&self) -> bool {
        self.lanes.iter().all(|lane| lane.batcher.borrow().is_empty())
    }

    fn wants_items(&self) -> bool {
        self.lanes.iter().all(|lane| lane.batcher.borrow().wants())
    }

    /// Accepts an item. Returns its outcome if nothing has to be computed.
    fn accept(&mut self, item: Item) -> Option<Outcome> {
        let id = item.id;
        let deadline = item.deadline_ms.map(|ms| Instant::now() + Duration::from_millis(u64::from(ms)));
        let outcome = |result: Result<Output, Failure>| Some(Outcome { id, tokens: 0, result });
        if let Err(failure) = check_sizes(&item) {
            return outcome(Err(failure));
        }
        let lane = match self.lane(&item.model) {
            Ok(lane) => lane,
            Err(failure) => return outcome(Err(failure)),
        };
        match prepare(item, &lane.model.files) {
            Prepared::Done(result) => outcome(result),
            Prepared::Compute(job, sequences) => {
                let tokens: usize = sequences.iter().map(|sequence| sequence.ids.len()).sum();
                let open = OpenItem { id, tokens: u32::try_from(tokens).unwrap_or(u32::MAX), deadline, job: Some(job) };
                let open = Rc::new(RefCell::new(open));
                let rows = sequences
                    .into_iter()
                    .enumerate()
                    .map(|(part, sequence)| (sequence.ids.len(), Row { open: open.clone(), part, sequence }));
                lane.batcher.borrow_mut().push((id >> 32) as u32, rows);
                None
            }
        }
    }

    fn lane(&mut self, name: &str) -> Result<&Lane, Failure> {
        let position = self.lanes.iter().position(|lane| lane.name == name);
        let index = match position {
            Some(index) => index,
            None => {
                let model = self.models.open(name)?;
                let batcher = Rc::new(RefCell::new(self.settings.batcher(model.graph.form())));
                self.lanes.push(Lane { name: name.to_owned(), model, batcher });
                self.lanes.len() - 1
            }
        };
        Ok(&self.lanes[index])
    }

    /// Computes the next batch and returns the outcomes that it completes; none when no sequence waits.
    fn compute(&mut self) -> Option<Vec<Outcome>> {
        let lanes = self.lanes.len();
        let next = (0..lanes)
            .map(|step| (self.turn + step) % lanes)
            .find(|&lane| !self.lanes[lane].batcher.borrow().is_empty())?;
        self.turn = next + 1;
        let lane = &self.lanes[next];
        let mut done = Vec::new();
        let batch = {
            let mut batcher = lane.batcher.borrow_mut();
            drop_expired(&mut batcher, &mut done);
            batcher.next_batch()
        };
        if let Some(batch) = batch {
            lane.compute(&batch.rows, batch.shape, &mut done);
        }
        Some(done)
    }
}

/// Fails the items past their deadline, and drops their sequences and those of items that have their outcome.
fn drop_expired(batcher: &mut Batcher<Row>, done: &mut Vec<Outcome>) {
    let mut now = None;
    batcher.retain(|row| {
        let mut open = row.open.borrow_mut();
        if open.job.is_some()
            && let Some(deadline) = open.deadline
            && *now.get_or_insert_with(Instant::now) >= deadline
        {
            open.job = None;
            done.push(Outcome { id: open.id, tokens: 0, result: Err(Failure::DeadlineExceeded) });
        }
        open.job.is_some()
    });
}

impl Lane {
    /// Computes rows in one batch. After a failure, computes each half by itself, until the failing row is isolated.
    fn compute(&self, rows: &[Row], shape: Shape, done: &mut Vec<Outcome>) {
        let sequences: Vec<&Sequence> = rows.iter().map(|row| &row.sequence).collect();
        let began = Instant::now();
        let computed = self.model.graph.compute(&sequences, shape.length);
        match computed {
            Ok(output) => {
                let took_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.batcher.borrow_mut().record(shape, took_ns);
                rows.iter().enumerate().for_each(|(index, row)| row.accept(Ok((&output, index)), done));
            }
            Err(error) if rows.len() == 1 => rows[0].accept(Err(error.to_string()), done),
            Err(error) => {
                if error.is_too_large() {
                    self.batcher.borrow_mut().shrink(shape);
                }
                let (one, other) = rows.split_at(rows.len() / 2);
                for half in [one, other] {
                    self.compute(half, self.shape_of(half), done);
                }
            }
        }
    }

    /// The smallest shape for a part of a batch.
    fn shape_of(&self, rows: &[Row]) -> Shape {
        let lengths = rows.iter().map(|row| row.sequence.ids.len());
        let count = rows.len();
        match self.model.graph.form() {
            Form::Packed => {
                let tokens = lengths.sum();
                Shape { rows: count, tokens, length: tokens }
            }
            Form::Padded => {
                let length = lengths.max().unwrap_or(0);
                Shape { rows: count, tokens: count * length, length }
            }
        }
    }
}

impl Row {
    /// Passes the output of the row to its item, and adds the outcome of the item to `done` when it is complete.
    fn accept(&self, output: Result<(&BatchOutput, usize), String>, done: &mut Vec<Outcome>) {
        let OpenItem { id, tokens, job: slot, .. } = &mut *self.open.borrow_mut();
        let Some(job) = slot else { return };
        let result = match output {
            Ok((output, index)) => job.accept(self.part, &self.sequence, output.row(index)),
            Err(text) => Some(Err(Failure::Engine(text))),
        };
        if let Some(result) = result {
            *slot = None;
            done.push(Outcome { id: *id, tokens: *tokens, result });
        }
    }
}

impl Settings {
    fn batcher(self, form: Form) -> Batcher<Row> {
        let limits =
            BatchLimits { rows_max: self.rows_max, tokens_max: self.tokens_max, time_ns_max: self.time_ns_max };
        Batcher::new(form, self.shapes, limits)
    }
}
