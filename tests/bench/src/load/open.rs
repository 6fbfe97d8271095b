//! An open loop: requests are due by the schedule, independent of the server, and latency is measured from then. A server
//! that stalls therefore delays every request that was due meanwhile (no coordinated omission).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use tokio::sync::Semaphore;

use super::{Load, Measured, Tally, sample_server, send_request};
use crate::http::Connection;
use crate::rng::Rng;
use crate::schedule::poisson;

/// The runtime's timer has a resolution of 1 ms: the rest of a wait polls the clock, on a core of its own.
const TIMER: Duration = Duration::from_millis(2);

struct Shared {
    load: Rc<Load>,
    idle: RefCell<Vec<Connection>>,
    /// Most connections; a request without one waits, and its latency includes the wait.
    permits: Semaphore,
    tally: RefCell<Tally>,
    tokens: Cell<u64>,
    /// Due times of the window's requests that have no outcome yet.
    pending: Cell<u64>,
}

pub(crate) async fn run(load: Rc<Load>, rate: f64, connections_max: usize) -> Measured {
    let due = poisson(rate, (load.times.warm + load.times.window).as_secs_f64(), load.seed);
    let start = Instant::now() + Duration::from_millis(20);
    let from = start + load.times.warm;
    let shared = Rc::new(Shared {
        idle: RefCell::default(),
        permits: Semaphore::new(connections_max),
        tally: RefCell::default(),
        tokens: Cell::new(0),
        pending: Cell::new(0),
        load,
    });
    let pid = shared.load.pid;
    sample_server(pid, from, run_requests(shared, rate, due, start)).await
}

async fn run_requests(shared: Rc<Shared>, rate: f64, due: Vec<u64>, start: Instant) -> Measured {
    let times = shared.load.times;
    let order = Rng::new(shared.load.seed).order(shared.load.texts.len());
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            for (number, due) in due.into_iter().enumerate() {
                let due = start + Duration::from_nanos(due);
                wait_until(due).await;
                let text = order[number % order.len()] as usize;
                tokio::task::spawn_local(run_request(shared.clone(), text, due, due >= start + times.warm));
            }
            let give_up = start + times.warm + times.window + times.drain;
            wait_until(start + times.warm + times.window).await;
            while shared.pending.get() > 0 && Instant::now() < give_up {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    drop(local);
    let mut tally = shared.tally.take();
    let measured = &mut tally.measured;
    measured.unanswered = measured.requests - measured.answered - measured.rejected - measured.failed;
    let seconds = times.window.as_secs_f64();
    measured.texts_per_s = measured.answered as f64 / seconds;
    measured.tokens_per_s = shared.tokens.get() as f64 / seconds;
    tally.finish(rate, times.window)
}

async fn run_request(shared: Rc<Shared>, text: usize, due: Instant, counts: bool) {
    let load = &shared.load;
    if counts {
        shared.tally.borrow_mut().measured.requests += 1;
        shared.pending.set(shared.pending.get() + 1);
    }
    let Ok(_permit) = shared.permits.acquire().await else { return };
    let mut connection = shared.idle.borrow_mut().pop();
    let mut body = Vec::new();
    let sent = Cell::new(due);
    let response =
        send_request(&mut connection, &load.target, &load.requests[text], &mut body, || sent.set(Instant::now()));
    let outcome = response.await.and_then(|status| {
        if status == 200 && body.is_empty() { Err(anyhow!("an empty response")) } else { Ok(status) }
    });
    let now = Instant::now();
    shared.idle.borrow_mut().extend(connection);
    if counts {
        shared.pending.set(shared.pending.get() - 1);
        let mut tally = shared.tally.borrow_mut();
        tally.lag.record(u64::try_from((sent.get() - due).as_nanos()).unwrap_or(u64::MAX));
        if tally.outcome(outcome, now - due, load.slo) {
            shared.tokens.set(shared.tokens.get() + u64::from(load.texts[text].tokens));
        }
    }
}

async fn wait_until(due: Instant) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        if left > TIMER {
            tokio::time::sleep(left - TIMER).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}
