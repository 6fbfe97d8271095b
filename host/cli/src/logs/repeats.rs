//! Bounds the rate of warnings and errors of one call site, so that repeated faults of a client do not fill a disk or
//! hide other lines. Omitted lines are counted, and the counts are logged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Filter};

/// The burst of lines of one call site.
const BURST: u32 = 20;
/// Time after which one more line is allowed.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// How often the counts of omitted lines are logged.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// The target of the reports, which are never omitted.
const TARGET: &str = "weir::log";

/// The call sites that have logged, with their rates.
#[derive(Clone, Default)]
pub(super) struct Repeats(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    sites: BTreeMap<CallSite, Bucket>,
    /// True once the thread that logs the counts was started, which the first omitted line does.
    reports: bool,
}

/// A file and a line, or a target if these are unknown.
type CallSite = (&'static str, u32);

struct Bucket {
    /// The number of allowed lines, and when it was last updated.
    lines: f64,
    counted: Instant,
    omitted: u64,
}

impl Repeats {
    /// Whether a line of a call site may be written now.
    fn allows(&self, site: CallSite, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = Bucket { lines: f64::from(BURST), counted: now, omitted: 0 };
        let bucket = state.sites.entry(site).or_insert(full);
        let refilled = now.saturating_duration_since(bucket.counted).as_secs_f64() / LINE_EVERY.as_secs_f64();
        bucket.lines = (bucket.lines + refilled).min(f64::from(BURST));
        bucket.counted = now;
        if bucket.lines >= 1.0 {
            bucket.lines -= 1.0;
            return true;
        }
        bucket.omitted += 1;
        if !state.reports {
            let repeats = self.clone();
            // If the thread cannot be started, lines are omitted nevertheless.
            state.reports = std::thread::Builder::new().name("log".to_owned()).spawn(move || repeats.report()).is_ok();
        }
        false
    }

    /// The counts of omitted lines since the last call.
    fn take(&self) -> Vec<(CallSite, u64)> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = state.sites.iter_mut().map(|(site, bucket)| (*site, std::mem::take(&mut bucket.omitted)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    fn report(&self) {
        loop {
            std::thread::sleep(REPORT_EVERY);
            for ((file, line), count) in self.take() {
                let place = format!("{file}:{line}");
                tracing::warn!(target: TARGET, count, place, "lines like the last one of this place were omitted");
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

    /// Without this hint the filter that this one is combined with could not disable levels globally, and every trace
    /// point of every crate would be evaluated.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let is_bounded = *metadata.level() <= Level::WARN && !matches!(metadata.target(), TARGET | GUEST);
        let site = (metadata.file().unwrap_or(metadata.name()), metadata.line().unwrap_or(0));
        !is_bounded || self.allows(site, Instant::now())
    }
}

/// The lines of components are bounded separately, for each component.
const GUEST: &str = weir_runtime::GUEST_LOG_TARGET;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_that_are_not_logged_are_excluded_as_a_whole() {
        use tracing_subscriber::filter::FilterExt;
        let filter = tracing_subscriber::EnvFilter::new("info").and(Repeats::default());
        assert_eq!(Filter::<tracing_subscriber::Registry>::max_level_hint(&filter), Some(LevelFilter::INFO));
    }

    #[test]
    fn lines_of_one_call_site_are_bounded_and_omitted_ones_counted() {
        let repeats = Repeats::default();
        // The thread is not started, since this test reads the counts.
        repeats.0.lock().unwrap().reports = true;
        let start = Instant::now();
        let allowed = |site, now| (0..1000).filter(|_| repeats.allows(site, now)).count();
        assert_eq!(allowed(("a.rs", 1), start), 20);
        assert_eq!(allowed(("a.rs", 2), start), 20);
        assert_eq!(repeats.take(), [(("a.rs", 1), 980), (("a.rs", 2), 980)]);
        assert_eq!(repeats.take(), []);
        assert_eq!(allowed(("a.rs", 1), start + Duration::from_secs(3)), 3);
        assert_eq!(allowed(("a.rs", 1), start + Duration::from_secs(3600)), 20);
    }
}
