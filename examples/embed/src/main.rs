//! Embeds Weir's engine: texts are pushed to a stream, and results are passed to a callback, without sockets.
//!
//! ```sh
//! cargo xtask build                                # the components and models that the program loads
//! cargo run --release -p embed-example             # from the root of the repository
//! cargo run --release -p embed-example INFER.wasm MODELS_DIR
//! ```
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use weir_runtime::stream::{StreamingConfig, Text, TextStream};
use weir_runtime::types::Output;
use weir_runtime::{Builtin, Runtime};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut config = weir_config::Config::default();
    config.infer.component = arguments.next().unwrap_or_else(|| "target/components/infer.wasm".to_owned()).into();
    config.models.dir = arguments.next().unwrap_or_else(|| "host/nn/models".to_owned()).into();
    config.models.names = vec!["sentiment".to_owned()];
    let runtime = Runtime::start(&config, Builtin::default())?;

    let stream = TextStream::initialize(&runtime, "sentiment", StreamingConfig::low_latency()).await?;
    let results = stream.subscribe_result_callback(|delivered| {
        if let Output::Labels(labels) = &delivered.result {
            println!("text {}: {} {:.2}", delivered.seq, labels[0].label, labels[0].score);
        }
    });
    let errors = stream.subscribe_error_callback(|error| eprintln!("text {}: {}", error.seq, error.cause));
    stream.start()?;
    stream.push(Text::from("What a wonderful evening!")).await?;
    stream.push_batch(["The tea was cold and nobody said sorry.", "The train leaves at nine."].map(Text::from)).await?;
    stream.stop().await?; // delivers the results of all pushed texts first
    println!("{} texts delivered", stream.get_stats().delivered);
    results.unsubscribe();
    errors.unsubscribe();
    Ok(())
}
