//! How soon it is ready. Alone in its program, so that no other test of it runs beside.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weir_tests::Server;

/// From exec to `/readyz` saying yes: the best of several, because other programs run on the machine too.
async fn best(arguments: &[&str]) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..7 {
        let began = Instant::now();
        let _server = Server::start(arguments).await?;
        best = best.min(began.elapsed());
    }
    Ok(best)
}

#[tokio::test]
async fn server_is_ready_within_1_s_and_without_models_within_100_ms() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let empty = dir.path().display().to_string();
    let mut without = vec!["--models-dir", &empty];
    without.extend(["--set", "steps.sentiment=", "--set", "steps.entities=", "--set", "steps.summary="]);
    let (full, bare) = (best(&[]).await?, best(&without).await?);
    println!("ready after {full:?} with the models that ship, {bare:?} without");
    ensure!(full < Duration::from_secs(1), "ready after {full:?} with the models that ship");
    ensure!(bare < Duration::from_millis(100), "ready after {bare:?} without models");
    Ok(())
}
