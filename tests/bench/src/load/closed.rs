//! A closed loop: connections that each send the next request after the previous response.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::{Load, Measured, Tally, sample_server, send_request};
use crate::rng::Rng;

/// The pause after a rejection or a broken connection, so that a refused closed loop does not spin.
const PAUSE: Duration = Duration::from_millis(10);

/// The state of all connections.
struct Shared {
    load: Rc<Load>,
    order: Vec<u32>,
    next: Cell<usize>,
    tally: RefCell<Tally>,
    counts: RefCell<ResponseCounts>,
    started: Instant,
    begin: Instant,
    end: Instant,
    connections: usize,
}

/// The work that was done at the time of a response. Batches end together, so a rate is measured between responses: from the last one
/// before the window to the last one inside it, and never counts a part of a batch.
#[derive(Debug, Default)]
struct ResponseCounts {
    texts: u64,
    tokens: u64,
    before: Option<(Instant, u64, u64)>,
    last: Option<(Instant, u64, u64)>,
}

pub(crate) async fn run(load: Rc<Load>, connections: usize) -> Measured {
    let order = if connections == 1 {
        // In the order of the corpus: the bare engine is timed with the same texts.
        (0..load.texts.len() as u32).collect()
    } else {
        Rng::new(load.seed).order(load.texts.len())
    };
    let started = Instant::now();
    let begin = started + load.times.warm;
    let end = begin + load.times.window;
    let shared = Rc::new(Shared {
        order,
        next: Cell::new(0),
        tally: RefCell::default(),
        counts: RefCell::default(),
        started,
        begin,
        end,
        connections,
        load,
    });
    let pid = shared.load.pid;
    sample_server(pid, begin, run_connections(shared)).await
}

async fn run_connections(shared: Rc<Shared>) -> Measured {
    let local = tokio::task::LocalSet::new();
    for _ in 0..shared.connections {
        local.spawn_local(run_connection(shared.clone()));
    }
    let give_up = shared.end + shared.load.times.drain;
    let _ = tokio::time::timeout_at(give_up.into(), local).await;
    let mut tally = shared.tally.take();
    let measured = &mut tally.measured;
    measured.unanswered = measured.requests - measured.answered - measured.rejected - measured.failed;
    let counts = shared.counts.borrow();
    // Without a response before the window, the time runs from the first request.
    let from = counts.before.unwrap_or((shared.started, 0, 0));
    if let Some(to) = counts.last {
        let seconds = to.0.saturating_duration_since(from.0).as_secs_f64().max(1e-9);
        measured.texts_per_s = (to.1 - from.1) as f64 / seconds;
        measured.tokens_per_s = (to.2 - from.2) as f64 / seconds;
    }
    tally.finish(shared.connections as f64, shared.load.times.window)
}

async fn run_connection(shared: Rc<Shared>) {
    let load = &shared.load;
    let (mut connection, mut body) = (None, Vec::new());
    loop {
        let sent = Instant::now();
        if sent >= shared.end {
            return;
        }
        let text = shared.order[shared.next.get() % shared.order.len()];
        shared.next.set(shared.next.get() + 1);
        let counts = sent >= shared.begin;
        if counts {
            shared.tally.borrow_mut().measured.requests += 1;
        }
        let response = send_request(&mut connection, &load.target, &load.requests[text as usize], &mut body, || ());
        let outcome = response.await.and_then(|status| {
            if status == 200 && body.is_empty() { Err(anyhow!("an empty response")) } else { Ok(status) }
        });
        let now = Instant::now();
        let answered = matches!(outcome, Ok(200));
        if answered {
            shared.counts.borrow_mut().add(load.texts[text as usize].tokens, now, shared.begin, shared.end);
        }
        if counts {
            let mut tally = shared.tally.borrow_mut();
            if tally.outcome(outcome, now - sent, load.slo) && shared.connections == 1 {
                tally.measured.samples.push((text, (now - sent).as_secs_f64() * 1e6));
            }
        }
        if !answered {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl ResponseCounts {
    fn add(&mut self, tokens: u32, now: Instant, begin: Instant, end: Instant) {
        self.texts += 1;
        self.tokens += u64::from(tokens);
        let point = Some((now, self.texts, self.tokens));
        if now < begin {
            self.before = point;
        } else if now <= end {
            self.last = point;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_counts_whole_batches() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut counts = ResponseCounts::default();
        // 8 texts of 10 tokens every 300 ms; the window is from 1 s to 2 s and holds 3 ends of batches, not 3.33.
        for batch in 1..10 {
            (0..8).for_each(|_| counts.add(10, at(batch * 300), at(1_000), at(2_000)));
        }
        let (from, to) = (counts.before.unwrap(), counts.last.unwrap());
        assert_eq!((to.0 - from.0, to.1 - from.1, to.2 - from.2), (Duration::from_millis(900), 24, 240));
    }
}
