//! Bounds how often one place in the program writes warnings and errors: what a client can cause over and over must not fill a disk
//! or hide everything else. What is left out is counted, and the count is logged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// Lines of one place that may come at once.
const BURST: u32 = 20;
/// Time that pays for one more line.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// How often what was left out is logged.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// The target of the reports, which are never left out.
const TARGET: &str = "weir::log";

/// The places that have written, and how often.
#[derive(Clone, Default)]
pub(super) struct Repeats(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    places: BTreeMap<Place, Bucket>,
    /// A thread logs what is left out; it begins with the first line that is.
    reports: bool,
}

/// A file and a line, or a target where these are not known.
type Place = (&'static str, u32);

struct Bucket {
    /// Lines that may still come, and when they were last counted.
    lines: f64,
    counted: Instant,
    left_out: u64,
}

impl Repeats {
    /// Whether a line of a place is written now.
    fn allows(&self, place: Place, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = Bucket { lines: f64::from(BURST), counted: now, left_out: 0 };
        let bucket = state.places.entry(place).or_insert(full);
        let earned = now.saturating_duration_since(bucket.counted).as_secs_f64() / LINE_EVERY.as_secs_f64();
        bucket.lines = (bucket.lines + earned).min(f64::from(BURST));
        bucket.counted = now;
        if bucket.lines >= 1.0 {
            bucket.lines -= 1.0;
            return true;
        }
        bucket.left_out += 1;
        if !state.reports {
            let repeats = self.clone();
            // Without the thread lines are left out all the same.
            state.reports = std::thread::Builder::new().name("log".to_owned()).spawn(move || repeats.report()).is_ok();
        }
        false
    }

    /// What was left out since this was last asked.
    fn take(&self) -> Vec<(Place, u64)> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = state.places.iter_mut().map(|(place, bucket)| (*place, std::mem::take(&mut bucket.left_out)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    fn report(&self) {
        loop {
            std::thread::sleep(REPORT_EVERY);
            for ((file, line), count) in self.take() {
                let place = format!("{file}:{line}");
                tracing::warn!(target: TARGET, count, place, "lines like the last of this place were left out");
            }
        }
    }
}

impl<S: Subscriber> Filter<S> for Repeats {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn callsite_enabled(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let is_bounded = *metadata.level() <= Level::WARN && !matches!(metadata.target(), TARGET | GUEST);
        let place = (metadata.file().unwrap_or(metadata.name()), metadata.line().unwrap_or(0));
        !is_bounded || self.allows(place, Instant::now())
    }
}

/// What components write is bounded for each component where it comes in.
const GUEST: &str = weir_runtime::GUEST_LOG_TARGET;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_place_are_bounded_and_those_left_out_are_counted() {
        let repeats = Repeats::default();
        // The thread is not started: what it would report is asked for here.
        repeats.0.lock().unwrap().reports = true;
        let began = Instant::now();
        let allowed = |place, now| (0..1000).filter(|_| repeats.allows(place, now)).count();
        assert_eq!(allowed(("a.rs", 1), began), 20);
        assert_eq!(allowed(("a.rs", 2), began), 20);
        assert_eq!(repeats.take(), [(("a.rs", 1), 980), (("a.rs", 2), 980)]);
        assert_eq!(repeats.take(), []);
        assert_eq!(allowed(("a.rs", 1), began + Duration::from_secs(3)), 3);
        assert_eq!(allowed(("a.rs", 1), began + Duration::from_secs(3600)), 20);
    }
}
