//! A server without requests sleeps: no thread of it wakes up regularly.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weir_tests::client::classify;
use weir_tests::{PATIENCE, Server};

/// Wake-ups of all threads together.
const WAKE_UPS_PER_S_MAX: f64 = 5.0;
/// How long wake-ups are counted.
const WINDOW: Duration = Duration::from_secs(5);

/// How often each thread has waited so far, by thread id: it wakes up once for each wait.
fn waits(process: u32) -> Result<BTreeMap<String, (String, u64)>> {
    let mut waits = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?;
        // A thread may end meanwhile.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
        let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        let count = value("voluntary_ctxt_switches:").parse()?;
        waits.insert(task.file_name().to_string_lossy().into_owned(), (value("Name:").to_owned(), count));
    }
    Ok(waits)
}

#[tokio::test]
async fn idle_server_sleeps() -> Result<()> {
    let server = Server::start(&[]).await?;
    classify(&server, &["A fine day.", "What a mess."]).await?;
    // What the start and the requests have left to do, timers that end once among them, is done after a while.
    let began = Instant::now();
    loop {
        let (before, since) = (waits(server.id())?, Instant::now());
        tokio::time::sleep(WINDOW).await;
        let after = waits(server.id())?;
        let seconds = since.elapsed().as_secs_f64();
        let mut by_thread = BTreeMap::<String, u64>::new();
        for (thread, (name, count)) in &after {
            let earlier = before.get(thread).map_or(0, |(_, count)| *count);
            *by_thread.entry(name.clone()).or_default() += count - earlier;
        }
        by_thread.retain(|_, count| *count > 0);
        let per_s = by_thread.values().sum::<u64>() as f64 / seconds;
        println!("{per_s:.1} wake-ups a second, {by_thread:?} in {seconds:.1} s");
        if per_s < WAKE_UPS_PER_S_MAX {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "{per_s:.1} wake-ups a second: {by_thread:?}");
    }
    ensure!(classify(&server, &["A fine day."]).await?.len() == 1, "it wakes up");
    Ok(())
}
