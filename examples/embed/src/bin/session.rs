//! Embeds the session component alone, without Weir's runtime: a transcript is passed to it, and its annotated segments are printed.
//!
//! ```sh
//! cargo xtask build                                      # the component that the program loads
//! cargo run --release -p embed-example --bin session     # from the root of the repository
//! cargo run --release -p embed-example --bin session SESSION.wasm
//! ```
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use wasmtime::component::{Component, Source, StreamConsumer, StreamReader, StreamResult};
use wasmtime::{Config, Engine, Store, StoreContextMut, StoreLimits};
use wasmtime_wasi::WasiCtx;
use weir_wasi::StoreData;

mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub, reason = "the WIT documents it")]
    wasmtime::component::bindgen!({ path: "../../wit", world: "session-service", exports: { default: async } });
}

use bindings::exports::weir::stream::session::{Chunk, Input, InputBody, Output, OutputBody, Start};

#[tokio::main]
async fn main() -> wasmtime::Result<()> {
    let file = std::env::args().nth(1).unwrap_or_else(|| "target/components/session.wasm".to_owned());
    let engine = Engine::new(Config::new().wasm_component_model_async(true))?;
    let component = Component::from_file(&engine, file)?;
    let linker = weir_wasi::linker(&engine)?; // the component imports the clock and the environment of WASI
    let mut store = Store::new(&engine, StoreData::new(WasiCtx::builder().build(), StoreLimits::default(), ()));
    let service = bindings::SessionService::instantiate_async(&mut store, &component, &linker).await?;

    let texts = ["I'll check", "the refund.", "Which order is it?"].map(str::to_owned);
    let chunk = |(at, text)| InputBody::Chunk(Chunk { start: at, end: at + 1.0, text, speaker_id: None });
    let bodies = [0.0, 1.0, 9.0].into_iter().zip(texts).map(chunk).chain([InputBody::End]);
    let inputs: Vec<Input> = bodies.map(|body| Input { line: 0, seq: None, body }).collect();
    let (sender, mut outputs) = mpsc::unbounded_channel();
    let run = store.run_concurrent(async |accessor| {
        let inputs = accessor.with(|access| StreamReader::new(access, inputs))?;
        let start = Start::Config("{}".to_owned());
        let stream = service.weir_stream_session().call_run(accessor, start, inputs).await??;
        accessor.with(|access| stream.pipe(access, Outputs(sender)))?;
        while let Some(output) = outputs.recv().await {
            if let OutputBody::Final(segment) = output.body {
                println!("{}: {}", segment.annotation.intent.unwrap_or_default(), segment.segment.text);
            }
        }
        wasmtime::Result::Ok(())
    });
    run.await?
}

/// Passes the outputs of the session on. It is dropped at their end.
struct Outputs(mpsc::UnboundedSender<Output>);

impl<D> StreamConsumer<D> for Outputs {
    type Item = Output;

    fn poll_consume(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut store: StoreContextMut<D>,
        mut source: Source<'_, Output>,
        _: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let mut read = Vec::with_capacity(source.remaining(&mut store));
        source.read(&mut store, &mut read)?;
        let is_read = read.into_iter().all(|output| self.0.send(output).is_ok());
        Poll::Ready(Ok(if is_read { StreamResult::Completed } else { StreamResult::Dropped }))
    }
}
