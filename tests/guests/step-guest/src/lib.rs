//! A step component whose behaviour its input selects, for tests of the host.
//!
//! The input is JSON text. One that contains `!trap` traps the instance, `!spin` loops for ever, `!sleep` waits for ten minutes, `!eat`
//! allocates memory until none is left, `!fail` returns a retryable failure, `!last` a failure that is not retryable, `!text` an output that
//! is not JSON, and `!look` an object with the files, variables, arguments and sockets that the component can access. The output for any
//! other input is an object with the input, the configuration, and the number of calls of this instance.

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
        let contains = |word: &str| input.contains(word);
        if contains("!trap") {
            std::process::abort();
        }
        if contains("!spin") {
            let mut turns = 0u64;
            loop {
                turns = black_box(turns + 1);
            }
        }
        if contains("!sleep") {
            monotonic_clock::wait_for(600_000_000_000).await;
        }
        if contains("!eat") {
            let mut blocks: Vec<Vec<u8>> = Vec::new();
            loop {
                blocks.push(black_box(vec![1; 1 << 20]));
            }
        }
        if contains("!fail") {
            return Err(failure("not_today", true));
        }
        if contains("!last") {
            return Err(failure("never", false));
        }
        if contains("!text") {
            return Ok("{".to_owned());
        }
        if contains("!look") {
            return Ok(inspect());
        }
        let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(format!("{{\"input\":{input},\"config\":{config},\"calls\":{calls}}}"))
    }
}

fn failure(code: &str, retryable: bool) -> Failure {
    Failure { code: code.to_owned(), message: "the input requested a failure".to_owned(), retryable }
}

/// The numbers of accessible files, variables and arguments, and whether sockets are denied.
fn inspect() -> String {
    let files = std::fs::read_dir("/").map_or(0, Iterator::count) + std::fs::read_dir(".").map_or(0, Iterator::count);
    let socket = TcpStream::connect_timeout(&([127, 0, 0, 1], 80).into(), Duration::from_secs(1));
    let denied = socket.is_err_and(|error| error.kind() != std::io::ErrorKind::ConnectionRefused);
    let (variables, arguments) = (std::env::vars().count(), std::env::args().count());
    format!("{{\"files\":{files},\"variables\":{variables},\"arguments\":{arguments},\"denied\":{denied}}}")
}
