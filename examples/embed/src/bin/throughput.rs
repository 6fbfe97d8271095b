//! Texts per second of a [`TextStream`]: the measure for other interfaces of the engine. `cargo xtask python --measure` runs it.
//!
//! Arguments: the file of the precompiled infer component, the folder of models, and a number of texts.
#![allow(clippy::print_stdout, reason = "a program that prints its result")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use weir_runtime::stream::{StreamingConfig, Text, TextStream};
use weir_runtime::{Builtin, Runtime};

/// The same texts as clients/python/throughput.py.
fn text(number: usize) -> Text {
    let words = ["the", "evening", "was", "wonderful", "and", "the", "tea", "cold", "but", "nobody", "said", "sorry"];
    let count = 6 + number * 7 % 24;
    Text::from((0..count).map(|at| words[(number + at) % words.len()]).collect::<Vec<_>>().join(" "))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [component, models, count] = arguments.as_slice() else {
        anyhow::bail!("usage: throughput INFER.cwasm.zst MODELS_DIR TEXTS");
    };
    let count: usize = count.parse()?;
    let infer: &'static [u8] = Box::leak(std::fs::read(component)?.into_boxed_slice());
    let mut config = weir_config::Config::default();
    config.models.dir = models.into();
    config.models.names = vec!["sentiment".to_owned()];
    let runtime = Runtime::start(&config, Builtin { infer: Some(infer), ..Builtin::default() })?;
    let stream = TextStream::initialize(&runtime, "sentiment", StreamingConfig::high_throughput()).await?;
    let delivered = Arc::new(AtomicUsize::new(0));
    let counter = delivered.clone();
    let _ = stream.subscribe_result_callback(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    stream.start()?;
    let began = Instant::now();
    for number in 0..count {
        stream.push(text(number)).await?;
    }
    stream.stop().await?;
    let elapsed_s = began.elapsed().as_secs_f64();
    if delivered.load(Ordering::Relaxed) != count {
        anyhow::bail!("{} of {count} texts have a result", delivered.load(Ordering::Relaxed));
    }
    println!("{:.1}", count as f64 / elapsed_s);
    Ok(())
}
