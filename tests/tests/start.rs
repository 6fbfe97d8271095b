//! The time from the start to readiness. The test is alone in its program, so that no other test runs beside it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weir_tests::{PATIENCE, Server};

/// The time from exec to a 200 of `/readyz`: the best of several starts, and of more while none is within the bound, because of other programs
/// on the machine.
async fn best_start(arguments: &[&str], bound: Duration) -> Result<Duration> {
    let (mut best, first) = (Duration::MAX, Instant::now());
    for starts in 0.. {
        if starts >= 7 && (best < bound || first.elapsed() >= PATIENCE) {
            break;
        }
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
    let mut without_models = vec!["--models-dir", &empty];
    without_models.extend(["--set", "steps.sentiment=", "--set", "steps.entities=", "--set", "steps.summary="]);
    let (full_max, bare_max) = (Duration::from_secs(1), Duration::from_millis(100));
    let (full, bare) = (best_start(&[], full_max).await?, best_start(&without_models, bare_max).await?);
    println!("ready after {full:?} with the models that ship, {bare:?} without");
    ensure!(full < full_max, "ready after {full:?} with the models that ship");
    ensure!(bare < bare_max, "ready after {bare:?} without models");
    Ok(())
}
