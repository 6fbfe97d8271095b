//! A bounded rate of progress events: of the events of a subscription that have a coalescing key, the newest of each
//! key is sent once per period.
//!
//! The order of events is preserved: an event without a key is sent after all pending events before it. So the id of
//! the last sent event is always a cursor from which a subscriber resumes without a hole.

/// Most keys with a pending event; beyond them all pending events are sent.
const KEYS_MAX: usize = 64;

/// Delays progress events until the end of their period. Times are nanoseconds of a monotonic clock.
#[derive(Debug)]
pub struct Throttle<T> {
    period_ns: u64,
    /// The newest event of each key, in the order of the channel.
    pending: Vec<(Box<str>, T)>,
    /// When pending events are sent.
    due_ns: u64,
}

impl<T> Throttle<T> {
    /// A throttle with a period; 0 delays nothing.
    pub fn new(period_ns: u64) -> Self {
        Self { period_ns, pending: Vec::new(), due_ns: 0 }
    }

    /// Handles the next event of the channel, with its coalescing key if it has one. Events to be sent now are appended
    /// to `out`, in order.
    pub fn handle_event(&mut self, now_ns: u64, key: Option<&str>, event: T, out: &mut Vec<T>) {
        match key {
            Some(key) if self.period_ns > 0 => {
                self.pending.retain(|(pending, _)| **pending != *key);
                if self.pending.is_empty() && now_ns >= self.due_ns {
                    self.due_ns = now_ns.saturating_add(self.period_ns);
                    return out.push(event);
                }
                self.pending.push((key.into(), event));
                if now_ns >= self.due_ns || self.pending.len() > KEYS_MAX {
                    self.flush(now_ns, out);
                }
            }
            _ => {
                self.drain(out);
                out.push(event);
            }
        }
    }

    /// Appends pending events to `out`, if they are due.
    pub fn handle_timer(&mut self, now_ns: u64, out: &mut Vec<T>) {
        if self.poll_timeout().is_some_and(|due_ns| due_ns <= now_ns) {
            self.flush(now_ns, out);
        }
    }

    /// Appends all pending events to `out`, when the channel has ended or something other than an event follows.
    pub fn drain(&mut self, out: &mut Vec<T>) {
        out.extend(self.pending.drain(..).map(|(_, event)| event));
    }

    /// When [`Self::handle_timer`] must be called; `None` without pending events.
    pub fn poll_timeout(&self) -> Option<u64> {
        (!self.pending.is_empty()).then_some(self.due_ns)
    }

    fn flush(&mut self, now_ns: u64, out: &mut Vec<T>) {
        self.due_ns = now_ns.saturating_add(self.period_ns);
        self.drain(out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn send(throttle: &mut Throttle<u32>, now_ns: u64, key: Option<&str>, event: u32) -> Vec<u32> {
        let mut out = Vec::new();
        throttle.handle_event(now_ns, key, event, &mut out);
        out
    }

    #[test]
    fn newest_event_of_a_key_is_sent_once_per_period() {
        let mut throttle = Throttle::new(100);
        assert_eq!(send(&mut throttle, 1000, Some("a"), 1), [1]);
        assert_eq!(send(&mut throttle, 1010, Some("a"), 2), [0; 0]);
        assert_eq!(send(&mut throttle, 1020, Some("b"), 3), [0; 0]);
        assert_eq!(send(&mut throttle, 1030, Some("a"), 4), [0; 0]);
        assert_eq!(throttle.poll_timeout(), Some(1100));
        let mut out = Vec::new();
        throttle.handle_timer(1099, &mut out);
        assert!(out.is_empty());
        throttle.handle_timer(1100, &mut out);
        assert_eq!(out, [3, 4]);
        assert_eq!(throttle.poll_timeout(), None);
        assert_eq!(send(&mut throttle, 1250, Some("a"), 5), [5]);
    }

    #[test]
    fn event_without_a_key_is_sent_after_pending_ones() {
        let mut throttle = Throttle::new(100);
        assert_eq!(send(&mut throttle, 0, Some("a"), 1), [1]);
        assert_eq!(send(&mut throttle, 1, Some("a"), 2), [0; 0]);
        assert_eq!(send(&mut throttle, 2, None, 3), [2, 3]);
        assert_eq!(throttle.poll_timeout(), None);
    }

    #[test]
    fn throttle_without_a_period_delays_nothing() {
        let mut throttle = Throttle::new(0);
        for event in 0..10 {
            assert_eq!(send(&mut throttle, 0, Some("a"), event), [event]);
        }
    }

    proptest! {
        #[test]
        fn order_is_preserved_and_events_without_a_key_are_all_sent(
            events in prop::collection::vec((0_u64..40, 0_u8..4), 0..200),
        ) {
            let mut throttle = Throttle::new(100);
            let (mut now_ns, mut out) = (0, Vec::new());
            for (index, (step_ns, key)) in events.iter().enumerate() {
                now_ns += step_ns;
                throttle.handle_timer(now_ns, &mut out);
                let key = ["a", "b", "c"].get(usize::from(*key)).copied();
                throttle.handle_event(now_ns, key, (index, key), &mut out);
                prop_assert!(throttle.pending.len() <= KEYS_MAX);
            }
            throttle.handle_timer(u64::MAX, &mut out);
            prop_assert!(out.is_sorted_by(|(a, _), (b, _)| a < b));
            let plain = events.iter().filter(|(_, key)| *key == 3).count();
            prop_assert_eq!(out.iter().filter(|(_, key)| key.is_none()).count(), plain);
            // The newest of each key is never lost.
            for key in ["a", "b", "c"] {
                let newest = events.iter().rposition(|(_, at)| ["a", "b", "c"].get(usize::from(*at)) == Some(&key));
                prop_assert_eq!(out.iter().rev().find(|(_, sent)| *sent == Some(key)).map(|(index, _)| *index), newest);
            }
        }
    }
}
