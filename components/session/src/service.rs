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

/// The most inputs in one read.
const INPUTS_MAX: usize = 128;
/// Outputs that are written before more inputs are read.
const OUTPUTS_FEW: usize = 256;
/// Most texts that are annotated at once.
const TEXTS_MAX: usize = 1024;

thread_local! {
    static RULES: Rc<RulesCache> = Rc::default();
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Nanoseconds since the first call of this instance.
fn now_ns() -> u64 {
    let now = Instant::now();
    let began = BEGAN.with(|began| {
        began.get().unwrap_or_else(|| {
            began.set(Some(now));
            now
        })
    });
    u64::try_from(now.duration_since(began).as_nanos()).unwrap_or(u64::MAX)
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
            let reason = format!("at most {TEXTS_MAX} texts are annotated at once, and not {}", texts.len());
            return Err(StartFailure::InvalidConfig(reason));
        }
        let (_, rules) =
            RULES.with(Rc::clone).get(&config).map_err(|error| StartFailure::InvalidConfig(error.to_string()))?;
        let mut room = Default::default();
        Ok(texts.iter().map(|text| annotation(&rules.annotator().annotate(text, &mut room))).collect())
    }
}

async fn serve(mut active: ActiveSession, mut inputs: StreamReader<Input>, mut outputs: StreamWriter<Output>) {
    let mut room = Vec::with_capacity(INPUTS_MAX);
    loop {
        let (status, mut taken) = inputs.read(room).await;
        let mut batch = Vec::new();
        // One reading of the clock for inputs that came together.
        let now_ns = now_ns();
        for input in taken.drain(..) {
            active.handle_input(input, now_ns, &mut batch);
            // A chunk of a few bytes may lead to a partial segment of many.
            if batch.len() >= OUTPUTS_FEW && !outputs.write_all(std::mem::take(&mut batch)).await.is_empty() {
                return;
            }
        }
        if !batch.is_empty() && !outputs.write_all(batch).await.is_empty() {
            return;
        }
        if !matches!(status, StreamResult::Complete(_)) {
            return;
        }
        room = taken;
    }
}
