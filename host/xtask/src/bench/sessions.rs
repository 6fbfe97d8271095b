//! `cargo xtask bench sessions`: transcripts through one stream and 10,000 stored sessions at once, by `weir-bench transcript` and
//! `weir-bench sessions` (tests/bench).

use anyhow::Result;

use super::programs;
use crate::args::Args;
use crate::house::House;
use crate::server::Server;

/// Sessions at once; each has a channel, and a second one for its owner.
const SESSIONS: u32 = 10_000;
const SECONDS: u32 = 60;
const SECONDS_QUICK: u32 = 5;

/// Builds `weir` and the load generator, and runs the measurements.
pub(super) fn task(house: &House, mut args: Args) -> Result<()> {
    let (quick, as_built) = (args.flag("--quick"), args.flag("--as-built"));
    args.finish()?;
    let program = programs::build_programs(house, as_built)?;
    let channels = format!("events.channels_max={}", 4 * SESSIONS);
    let server = Server::start(house, &["--set", &channels])?;
    let address = server.address.to_string();
    let (pid, seconds) = (server.id().to_string(), if quick { SECONDS_QUICK } else { SECONDS }.to_string());
    let (chunks, sessions) = (if quick { "100000" } else { "500000" }, SESSIONS.to_string());
    for words in [
        vec!["sessions", "--address", &address, "--sessions", &sessions, "--seconds", &seconds, "--pid", &pid],
        vec!["transcript", "--address", &address, "--chunks", chunks],
        vec!["transcript", "--address", &address, "--chunks", chunks, "--stored"],
    ] {
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        super::compare::start(house, &program, &words)?;
    }
    server.stop()
}
