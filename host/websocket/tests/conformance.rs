//! The Autobahn TestSuite in both roles, without its long cases: `cargo xtask conformance` runs all 517.

#[path = "../examples/conformance/peer.rs"]
mod peer;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use weir_websocket::{ContextTakeover, DeflateConfig};

/// Cases of a few seconds: all kinds of frames, fragments, texts and close frames, and some of compression.
const CASES: [&str; 10] = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*", "12.1.1", "13.3.1"];
/// Cases that these are at least.
const CASES_MIN: u64 = 245;
const TIMEOUT: Duration = Duration::from_secs(240);

fn suite(arguments: &[&str]) -> Result<Child> {
    let python = std::env::var_os("WEIR_TEST_PYTHON").context("WEIR_TEST_PYTHON is not set: run `cargo xtask test`")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/websocket/conformance.py");
    let mut command = Command::new(python);
    command.arg(script).args(arguments).args(CASES);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?)
}

/// Checks the report, which is the last line.
fn check(output: &str) -> Result<()> {
    let report = output.lines().last().unwrap_or_default();
    let cases = report.strip_prefix("{\"cases\": ").and_then(|rest| rest.split(',').next()).map(str::parse::<u64>);
    let is_whole = matches!(cases, Some(Ok(cases)) if cases >= CASES_MIN);
    ensure!(is_whole && report.ends_with("\"failed\": []}"), "{output}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn server_passes_the_suite() -> Result<()> {
    let shared = DeflateConfig { takeover: ContextTakeover::Allowed, window_bits: 15 };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let server = tokio::spawn(peer::serve(listener, shared));
    let suite = suite(&["server", &address, "4"])?;
    let output = tokio::time::timeout(TIMEOUT, suite.wait_with_output()).await.context("the suite has not ended")??;
    server.abort();
    check(&String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn client_passes_the_suite() -> Result<()> {
    let alone = DeflateConfig { takeover: ContextTakeover::Never, window_bits: 12 };
    let running = async {
        let mut suite = suite(&["client"])?;
        let mut output = BufReader::new(suite.stdout.take().context("stdout")?);
        let mut line = String::new();
        output.read_line(&mut line).await?;
        let address = line.trim().strip_prefix("listening on ").with_context(|| line.clone())?;
        peer::run_cases(address, alone).await?;
        let mut report = String::new();
        output.read_to_string(&mut report).await?;
        check(&report)
    };
    tokio::time::timeout(TIMEOUT, running).await.context("the suite has not ended")?
}
