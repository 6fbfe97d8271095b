//! The threads of a server: they sleep without requests, and replica threads have a lower priority than socket threads.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weir_tests::client::{classify, ndjson_body, post_lines};
use weir_tests::{PATIENCE, Server, models, weir};

/// Bound of the wake-ups per second of all threads together.
const WAKE_UPS_PER_S_MAX: f64 = 5.0;
/// Duration of one count of wake-ups.
const WINDOW: Duration = Duration::from_secs(5);

/// The name of each thread and its number of voluntary waits so far, by thread id. A thread wakes up once for each wait.
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
    // Work after the start and the requests, such as timers that fire once, ends after a while.
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
    ensure!(classify(&server, &["A fine day."]).await?.len() == 1, "the server serves no request after sleeping");
    Ok(())
}

/// The lowest nice value among the threads of each name. Threads of a pool inherit that of the thread that starts them.
fn nice_values(process: u32) -> Result<BTreeMap<String, i64>> {
    let mut by_name = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
        let (name, rest) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).context("a name")?;
        // The state, which follows the name, is field 3 of proc(5), and the nice value field 19.
        let nice = rest.split_whitespace().nth(19 - 3).context("a nice value")?;
        let nice: i64 = nice.parse()?;
        by_name.entry(name.to_owned()).and_modify(|least: &mut i64| *least = nice.min(*least)).or_insert(nice);
    }
    Ok(by_name)
}

#[tokio::test]
async fn replica_threads_have_a_lower_priority_than_socket_threads() -> Result<()> {
    // Also of a server that was started with a low priority.
    for added in ["0", "5"] {
        let mut command = Command::new("nice");
        command.args(["-n", added]).arg(weir()?).args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--set",
            "models.replicas=2",
        ]);
        command.arg("--models-dir").arg(models());
        let server = Server::spawn(command, "listening on http://")?;
        server.ready().await?;
        let nice = nice_values(server.id())?;
        let of = |name: &str| nice.get(name).copied().with_context(|| format!("no thread {name} in {nice:?}"));
        let sockets = of("tokio-rt-worker")?;
        ensure!(sockets == of("weir")?, "{nice:?}");
        for name in ["sentiment-0", "entities-0", "embeddings-0"] {
            ensure!(of(name)? > sockets || sockets == 19, "{nice:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_while_all_replicas_compute() -> Result<()> {
    const PROBES: usize = 100;
    let server = Server::start(&[]).await?;
    let probe = async || -> Result<Duration> {
        let began = Instant::now();
        ensure!(reqwest::get(server.url("/livez")).await?.status() == 200);
        Ok(began.elapsed())
    };
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let mut idle = Vec::new();
    for _ in 0..PROBES {
        idle.push(probe().await?);
    }
    let text = "The train was late and nobody said a word about it but we loved the old town. ".repeat(6);
    let body = ndjson_body(&vec![serde_json::json!({ "text": text }); 1500]);
    let load = async || post_lines(&server, "/v1/classify", "application/x-ndjson", body.clone()).await;
    let probes = async {
        let mut busy = Vec::new();
        for _ in 0..PROBES {
            busy.push(probe().await?);
        }
        anyhow::Ok(busy)
    };
    let (busy, first, second) = tokio::join!(probes, load(), load());
    ensure!(first?.len() >= 1500 && second?.len() >= 1500);
    let (idle, busy) = (median(idle), median(busy?));
    println!("/livez: {idle:?} idle, {busy:?} while all replicas compute");
    // A batch takes several milliseconds on each core: a probe that waits for batches would exceed this bound.
    ensure!(busy <= 8 * idle + Duration::from_millis(5), "{idle:?} idle, {busy:?} while all replicas compute");
    Ok(())
}
