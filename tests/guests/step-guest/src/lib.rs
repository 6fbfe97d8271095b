//! A step of a pipeline that does what its input says, for testing how the host bears it.
//!
//! The input is JSON text; what it contains decides: `!trap` ends the instance, `!spin` never ends, `!sleep` is idle for ten
//! minutes, `!eat` takes memory until there is none, `!fail` fails and may be tried again, `!last` fails and may not, `!text` puts
//! out what is no JSON, `!look` says what it sees of the world. Anything else is put out in an object with the configuration,
//! and with how many calls this instance has had.

mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        inline: "
            package weir:step-guest;
            world step-guest {
                import wasi:clocks/monotonic-clock@0.3.0;
                export weir:%stream/step@0.1.0;
            }
        ",
        path: "../../../wit",
        world: "weir:step-guest/step-guest",
        generate_all,
    });
}

use std::{
    hint::black_box,
    net::TcpStream,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use bindings::{
    exports::weir::stream::step::{Failure, Guest},
    wasi::clocks::monotonic_clock,
};

static CALLS: AtomicU32 = AtomicU32::new(0);

struct Step;
bindings::export!(Step with_types_in bindings);

impl Guest for Step {
    async fn run(input: String, config: String) -> Result<String, Failure> {
        let has = |word: &str| input.contains(word);
        if has("!trap") {
            std::process::abort();
        }
        if has("!spin") {
            let mut turns = 0u64;
            loop {
                turns = black_box(turns + 1);
            }
        }
        if has("!sleep") {
            monotonic_clock::wait_for(600_000_000_000).await;
        }
        if has("!eat") {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            loop {
                eaten.push(black_box(vec![1; 1 << 20]));
            }
        }
        if has("!fail") {
            return Err(failure("not_today", true));
        }
        if has("!last") {
            return Err(failure("never", false));
        }
        if has("!text") {
            return Ok("{".to_owned());
        }
        if has("!look") {
            return Ok(look());
        }
        let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(format!("{{\"input\":{input},\"config\":{config},\"calls\":{calls}}}"))
    }
}

fn failure(code: &str, retryable: bool) -> Failure {
    Failure { code: code.to_owned(), message: "as it was asked".to_owned(), retryable }
}

/// What there is of files, variables, arguments and sockets.
fn look() -> String {
    let files = std::fs::read_dir("/").map_or(0, Iterator::count) + std::fs::read_dir(".").map_or(0, Iterator::count);
    let socket = TcpStream::connect_timeout(&([127, 0, 0, 1], 80).into(), Duration::from_secs(1));
    let denied = socket.is_err_and(|error| error.kind() != std::io::ErrorKind::ConnectionRefused);
    let (variables, arguments) = (std::env::vars().count(), std::env::args().count());
    format!("{{\"files\":{files},\"variables\":{variables},\"arguments\":{arguments},\"denied\":{denied}}}")
}
