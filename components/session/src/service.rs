//! The streams: inputs in, outputs out.

use std::{cell::Cell, rc::Rc, time::Instant};

use wit_bindgen::{StreamReader, StreamResult, StreamWriter};

use crate::{
    active::ActiveSession,
    bindings::wit_stream,
    convert::annotation,
    rules::RulesCache,
    types::{Annotation, Guest, Input, Output, Start, StartFailure},
};

/// Most inputs in one read.
const INPUTS_MAX: usize = 128;
/// Outputs in a batch from which on it is written before the next input is handled.
const OUTPUTS_BATCH: usize = 256;
/// Most texts in one call of `annotate`.
const TEXTS_MAX: usize = 1024;

thread_local! {
    static RULES: Rc<RulesCache> = Rc::default();
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Nanoseconds since the first call of this instance.
fn now_ns() -> u64 {
    let now = Instant::now();
    let start = START.with(|start| {
        start.get().unwrap_or_else(|| {
            start.set(Some(now));
            now
        })
    });
    u64::try_from(now.duration_since(start).as_nanos()).unwrap_or(u64::MAX)
}

struct Service;

crate::bindings::export!(Service with_types_in crate::bindings);

impl Guest for Service {
    async fn run(start: Start, inputs: StreamReader<Input>) -> Result<StreamReader<Output>, StartFailure> {
        let active = ActiveSession::start(start, &RULES.with(Rc::clone), now_ns())?;
        let (writer, reader) = wit_stream::new();
        wit_bindgen::spawn(serve(active, inputs, writer));
        Ok(reader)
    }

    async fn annotate(config: String, texts: Vec<String>) -> Result<Vec<Annotation>, StartFailure> {
        if texts.len() > TEXTS_MAX {
            let reason =
                format!("{} texts are too many for one call; at most {TEXTS_MAX} are annotated at once", texts.len());
            return Err(StartFailure::InvalidConfig(reason));
        }
        let (_, rules) =
            RULES.with(Rc::clone).get(&config).map_err(|error| StartFailure::InvalidConfig(error.to_string()))?;
        let mut buffers = Default::default();
        Ok(texts.iter().map(|text| annotation(&rules.annotator().annotate(text, &mut buffers))).collect())
    }
}

async fn serve(mut active: ActiveSession, mut inputs: StreamReader<Input>, mut outputs: StreamWriter<Output>) {
    let mut buffer = Vec::with_capacity(INPUTS_MAX);
    loop {
        let (status, mut received) = inputs.read(buffer).await;
        let mut batch = Vec::new();
        // The inputs of one read have the same time.
        let now_ns = now_ns();
        for input in received.drain(..) {
            active.handle_input(input, now_ns, &mut batch);
            // The partial segment after a short chunk can be long, so the batch is bounded by its outputs, not by its
            // inputs.
            if batch.len() >= OUTPUTS_BATCH && !outputs.write_all(std::mem::take(&mut batch)).await.is_empty() {
                return;
            }
        }
        if !batch.is_empty() && !outputs.write_all(batch).await.is_empty() {
            return;
        }
        if !matches!(status, StreamResult::Complete(_)) {
            return;
        }
        buffer = received;
    }
}
