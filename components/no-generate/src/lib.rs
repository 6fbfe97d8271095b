//! `weir:stream/generate` for a host without language models: the list of models is empty, and every request fails with `unknown-model`.
//! The gateway imports the interface, so a component that is composed for such a host needs an implementation.

mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        inline: "
            package weir:no-generate;
            world no-generate {
                export weir:%stream/generate@0.1.0;
            }
        ",
        path: "../../wit",
        world: "weir:no-generate/no-generate",
        generate_all,
    });
}

use bindings::{
    exports::weir::stream::generate::{Command, Event, GenerateModel, Guest},
    weir::stream::{generate_types::EventKind, types::Failure},
    wit_stream,
};
use wit_bindgen::rt::async_support::{StreamReader, StreamResult, spawn};

/// The most commands in one read.
const COMMANDS_MAX: usize = 32;

struct NoGenerate;
bindings::export!(NoGenerate with_types_in bindings);

impl Guest for NoGenerate {
    async fn run(mut commands: StreamReader<Command>) -> StreamReader<Event> {
        let (mut writer, reader) = wit_stream::new::<Event>();
        spawn(async move {
            loop {
                let (result, batch) = commands.read(Vec::with_capacity(COMMANDS_MAX)).await;
                let refused = batch.into_iter().filter_map(|command| match command {
                    Command::Start(request) => {
                        let kind = EventKind::Failed(Failure::UnknownModel(request.model));
                        Some(Event { id: request.id, kind })
                    }
                    Command::Cancel(_) => None,
                });
                let refused: Vec<Event> = refused.collect();
                let is_open = refused.is_empty() || writer.write_all(refused).await.is_empty();
                if !is_open || !matches!(result, StreamResult::Complete(_)) {
                    return;
                }
            }
        });
        reader
    }

    async fn models() -> Vec<GenerateModel> {
        Vec::new()
    }
}
