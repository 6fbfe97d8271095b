//! Claims that expire by both clocks of a store.

use std::collections::HashMap;
use std::sync::Arc;

use weir_core::channels::ClaimsFull;

use crate::clock::Clock;

/// The end of a claim: it is reached when both clocks have passed their time.
///
/// The store clock prevents a wall clock that is set ahead from ending claims early. The wall clock is needed because
/// the ticket that is claimed expires by it: when it is set back, the ticket is valid for longer, and its claim must be
/// held for as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClaimEnd {
    pub(crate) store_ms: u64,
    pub(crate) wall_ms: u64,
}

impl ClaimEnd {
    pub(crate) fn after(clock: &Clock, ttl_ms: u64) -> Self {
        let end = |now_ms: u64| now_ms.saturating_add(ttl_ms);
        Self { store_ms: end(clock.now_ms()), wall_ms: end(clock.wall_ms()) }
    }

    pub(crate) fn passed(self, clock: &Clock) -> bool {
        self.store_ms <= clock.now_ms() && self.wall_ms <= clock.wall_ms()
    }
}

/// The claimed keys, each held by exactly one caller.
#[derive(Debug)]
pub(crate) struct Claims {
    claims: weir_core::channels::Claims,
    wall_ends_ms: HashMap<Arc<str>, u64>,
}

impl Claims {
    pub(crate) fn new(claims_max: usize, user_percent_max: u8) -> Self {
        let claims = weir_core::channels::Claims::new(claims_max, user_percent_max);
        Self { claims, wall_ends_ms: HashMap::new() }
    }

    /// Claims a key until `end`. Returns false if it is already held.
    pub(crate) fn claim(&mut self, key: &str, end: ClaimEnd, clock: &Clock) -> Result<bool, ClaimsFull> {
        self.expire(clock);
        let now_ms = clock.now_ms();
        let claimed = self.claims.claim(key, now_ms, end.store_ms.saturating_sub(now_ms).max(1))?;
        if claimed {
            self.wall_ends_ms.insert(key.into(), end.wall_ms);
        }
        Ok(claimed)
    }

    /// The number of claims held.
    pub(crate) fn len(&self) -> usize {
        self.claims.len()
    }

    /// Restores a claim that is stored in a file.
    pub(crate) fn restore(&mut self, key: &str, end: ClaimEnd) {
        self.claims.restore(key, end.store_ms);
        self.wall_ends_ms.insert(key.into(), end.wall_ms);
    }

    /// Releases a claim, so that the next caller gets it.
    pub(crate) fn release(&mut self, key: &str) {
        self.claims.release(key);
        self.wall_ends_ms.remove(key);
    }

    /// Removes claims that have ended, and returns their keys.
    pub(crate) fn expire(&mut self, clock: &Clock) -> Vec<Arc<str>> {
        let (now_ms, wall_ms) = (clock.now_ms(), clock.wall_ms());
        let mut expired = self.claims.expire(now_ms);
        expired.retain(|key| {
            let left_ms = self.wall_ends_ms.get(key).map_or(0, |end_ms| end_ms.saturating_sub(wall_ms));
            if left_ms > 0 {
                self.claims.restore(key, now_ms.saturating_add(left_ms));
            } else {
                self.wall_ends_ms.remove(key);
            }
            left_ms == 0
        });
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::tests::TestClock;

    #[test]
    fn claim_is_held_until_both_clocks_have_passed() {
        for (jump_ms, held_ms) in [(0_i64, 1_000), (1_000_000, 1_000), (-5_000, 6_000)] {
            let source = TestClock::at(10_000_000);
            let clock = Clock::new(source.clone());
            let mut claims = Claims::new(10, 100);
            let claim = |claims: &mut Claims| claims.claim("t", ClaimEnd::after(&clock, 1_000), &clock);
            assert_eq!(claim(&mut claims), Ok(true));
            source.set(10_000_000_u64.saturating_add_signed(jump_ms));
            source.advance(held_ms - 1);
            assert_eq!(claim(&mut claims), Ok(false), "{jump_ms}");
            source.advance(1);
            assert_eq!(claim(&mut claims), Ok(true), "{jump_ms}");
            claims.release("t");
            assert_eq!(claim(&mut claims), Ok(true), "{jump_ms}");
        }
    }
}
