//! Progress at a bounded rate: of the events of a subscription that a later one of the same key replaces, the newest of each key in a
//! period.
//!
//! Order is kept: an event that is not replaced takes what is held before it along. So the id of what was sent last is always a place
//! from which a subscriber resumes without a hole.

/// Most keys that are held; beyond them everything that is held is sent.
const KEYS_MAX: usize = 64;

/// Holds progress back until its period is over. Instants and the period are nanoseconds of a clock that never goes back.
#[derive(Debug)]
pub struct Throttle<T> {
    period_ns: u64,
    /// The newest event of each key, in the order of the channel.
    held: Vec<(Box<str>, T)>,
    /// When held events are sent.
    due_ns: u64,
}

impl<T> Throttle<T> {
    /// A throttle with a period; 0 holds nothing back.
    pub fn new(period_ns: u64) -> Self {
        Self { period_ns, held: Vec::new(), due_ns: 0 }
    }

    /// Takes the next event of the channel, with its key if a later one replaces it; what is to be sent now is appended to `out`, in
    /// order.
    pub fn handle_event(&mut self, now_ns: u64, key: Option<&str>, event: T, out: &mut Vec<T>) {
        match key {
            Some(key) if self.period_ns > 0 => {
                self.held.retain(|(held, _)| **held != *key);
                if self.held.is_empty() && now_ns >= self.due_ns {
                    self.due_ns = now_ns.saturating_add(self.period_ns);
                    return out.push(event);
                }
                self.held.push((key.into(), event));
                if now_ns >= self.due_ns || self.held.len() > KEYS_MAX {
                    self.flush(now_ns, out);
                }
            }
            _ => {
                self.drain(out);
                out.push(event);
            }
        }
    }

    /// Appends what is due to `out`.
    pub fn handle_timer(&mut self, now_ns: u64, out: &mut Vec<T>) {
        if self.poll_timeout().is_some_and(|due_ns| due_ns <= now_ns) {
            self.flush(now_ns, out);
        }
    }

    /// Appends everything that is held to `out`: the channel has ended, or what follows is no event.
    pub fn drain(&mut self, out: &mut Vec<T>) {
        out.extend(self.held.drain(..).map(|(_, event)| event));
    }

    /// When [`Self::handle_timer`] is to be called; none while nothing is held.
    pub fn poll_timeout(&self) -> Option<u64> {
        (!self.held.is_empty()).then_some(self.due_ns)
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

    fn sent(throttle: &mut Throttle<u32>, now_ns: u64, key: Option<&str>, event: u32) -> Vec<u32> {
        let mut out = Vec::new();
        throttle.handle_event(now_ns, key, event, &mut out);
        out
    }

    #[test]
    fn newest_of_a_key_is_sent_once_a_period() {
        let mut throttle = Throttle::new(100);
        assert_eq!(sent(&mut throttle, 1000, Some("a"), 1), [1]);
        assert_eq!(sent(&mut throttle, 1010, Some("a"), 2), [0; 0]);
        assert_eq!(sent(&mut throttle, 1020, Some("b"), 3), [0; 0]);
        assert_eq!(sent(&mut throttle, 1030, Some("a"), 4), [0; 0]);
        assert_eq!(throttle.poll_timeout(), Some(1100));
        let mut out = Vec::new();
        throttle.handle_timer(1099, &mut out);
        assert!(out.is_empty());
        throttle.handle_timer(1100, &mut out);
        assert_eq!(out, [3, 4]);
        assert_eq!(throttle.poll_timeout(), None);
        assert_eq!(sent(&mut throttle, 1250, Some("a"), 5), [5]);
    }

    #[test]
    fn event_without_a_key_takes_along_what_is_held() {
        let mut throttle = Throttle::new(100);
        assert_eq!(sent(&mut throttle, 0, Some("a"), 1), [1]);
        assert_eq!(sent(&mut throttle, 1, Some("a"), 2), [0; 0]);
        assert_eq!(sent(&mut throttle, 2, None, 3), [2, 3]);
        assert_eq!(throttle.poll_timeout(), None);
    }

    #[test]
    fn throttle_without_a_period_holds_nothing() {
        let mut throttle = Throttle::new(0);
        for event in 0..10 {
            assert_eq!(sent(&mut throttle, 0, Some("a"), event), [event]);
        }
    }

    proptest! {
        #[test]
        fn order_is_kept_every_plain_event_is_sent_and_progress_is_bounded(
            events in prop::collection::vec((0_u64..40, 0_u8..4), 0..200),
        ) {
            let mut throttle = Throttle::new(100);
            let (mut now_ns, mut out) = (0, Vec::new());
            for (index, (step_ns, key)) in events.iter().enumerate() {
                now_ns += step_ns;
                throttle.handle_timer(now_ns, &mut out);
                let key = ["a", "b", "c"].get(usize::from(*key)).copied();
                throttle.handle_event(now_ns, key, (index, key), &mut out);
                prop_assert!(throttle.held.len() <= KEYS_MAX);
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
