//! The use of a bounded resource by each user and in total, such as bytes of state or channels.

use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use thiserror::Error;

/// Why an amount does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ShareExceeded {
    /// The amount exceeds the share of the user.
    #[error("{more} more do not fit: the user has {used}, and one user may have {max}")]
    User {
        /// The amount that does not fit.
        more: usize,
        /// The amount that the user uses otherwise.
        used: usize,
        /// The share of one user.
        max: usize,
    },
    /// The amount exceeds the bound of all users together.
    #[error("{more} more do not fit: {used} of {max} are in use")]
    Total {
        /// The amount that does not fit.
        more: usize,
        /// The amount that is in use otherwise.
        used: usize,
        /// The bound.
        max: usize,
    },
}

/// Amounts in use, by user and in total. Amounts without a user (`None`) count towards the total only: those of the
/// server, and all of them if users are not identified. Memory is proportional to the number of users with an amount.
#[derive(Debug, Clone)]
pub struct Shares {
    total_max: usize,
    user_max: usize,
    total: usize,
    users: HashMap<Arc<str>, usize>,
}

impl Shares {
    /// Empty shares. One user may use `user_percent_max` percent of `total_max`, and at least 1.
    pub fn new(total_max: usize, user_percent_max: u8) -> Self {
        let percent = u128::from(user_percent_max.min(100));
        let user_max = usize::try_from(total_max as u128 * percent / 100).unwrap_or(usize::MAX).max(1);
        Self { total_max, user_max, total: 0, users: HashMap::new() }
    }

    /// Raises the share of one user to at least `user_min`, but not above the total.
    #[must_use]
    pub fn with_user_min(mut self, user_min: usize) -> Self {
        self.user_max = self.user_max.max(user_min.min(self.total_max));
        self
    }

    /// The share of one user.
    pub fn user_max(&self) -> usize {
        self.user_max
    }

    /// The bound of all users together.
    pub fn total_max(&self) -> usize {
        self.total_max
    }

    /// The total amount in use.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The amount that a user uses; 0 without a user.
    pub fn of(&self, user: Option<&str>) -> usize {
        user.and_then(|user| self.users.get(user)).copied().unwrap_or(0)
    }

    /// Checks that `more` fits for a user that releases `less` for it.
    ///
    /// # Errors
    ///
    /// It exceeds the share of the user or the total. A write that does not grow always fits, so a user over a reduced
    /// share can shrink its use.
    pub fn check(&self, user: Option<&str>, more: usize, less: usize) -> Result<(), ShareExceeded> {
        if more <= less {
            return Ok(());
        }
        let used = self.of(user).saturating_sub(less);
        if user.is_some() && used.saturating_add(more) > self.user_max {
            return Err(ShareExceeded::User { more, used, max: self.user_max });
        }
        let used = self.total.saturating_sub(less);
        if used.saturating_add(more) > self.total_max {
            return Err(ShareExceeded::Total { more, used, max: self.total_max });
        }
        Ok(())
    }

    /// Adds an amount without a check. Returns the shared name of the user.
    pub fn add(&mut self, user: Option<&str>, amount: usize) -> Option<Arc<str>> {
        self.total = self.total.saturating_add(amount);
        let user: Arc<str> = match self.users.get_key_value(user?) {
            Some((user, _)) => Arc::clone(user),
            None => user?.into(),
        };
        if amount > 0 {
            let used = self.users.entry(Arc::clone(&user)).or_default();
            *used = used.saturating_add(amount);
        }
        Some(user)
    }

    /// Subtracts an amount that was added.
    pub fn remove(&mut self, user: Option<&str>, amount: usize) {
        self.total = self.total.saturating_sub(amount);
        let Some(user) = user else { return };
        let Some(used) = self.users.get_mut(user) else { return };
        *used = used.saturating_sub(amount);
        if *used == 0 {
            self.users.remove(user);
        }
    }
}

/// The order in which candidates are evicted if there is no room: always one of the user with the largest remaining
/// use, and of that user's the one with the lowest rank. So no candidate of a user is evicted while another user has
/// more.
///
/// `used` returns the use of each user, including what cannot be evicted.
pub fn eviction_order<R: Ord, T>(
    candidates: impl IntoIterator<Item = (Option<Arc<str>>, R, T)>,
    used: impl Fn(Option<&str>) -> usize,
) -> Vec<T> {
    let mut users: BTreeMap<Option<Arc<str>>, Vec<(R, T)>> = BTreeMap::new();
    for (user, rank, candidate) in candidates {
        users.entry(user).or_default().push((rank, candidate));
    }
    let mut queues = Vec::with_capacity(users.len());
    let mut largest = BinaryHeap::with_capacity(users.len());
    for (user, mut candidates) in users {
        candidates.sort_by(|(one, _), (other, _)| one.cmp(other));
        largest.push((used(user.as_deref()).max(candidates.len()), queues.len()));
        queues.push(candidates.into_iter());
    }
    let mut order = Vec::new();
    while let Some((remaining, queue)) = largest.pop() {
        if let Some((_, candidate)) = queues[queue].next() {
            order.push(candidate);
            largest.push((remaining - 1, queue));
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_user_fills_its_share_and_others_still_have_theirs() {
        let mut shares = Shares::new(100, 25);
        shares.check(Some("a"), 25, 0).unwrap();
        shares.add(Some("a"), 25);
        assert_eq!(shares.check(Some("a"), 1, 0), Err(ShareExceeded::User { more: 1, used: 25, max: 25 }));
        for user in ["b", "c"] {
            shares.check(Some(user), 25, 0).unwrap();
            shares.add(Some(user), 25);
        }
        // An amount without a user counts towards the total only.
        shares.check(None, 20, 0).unwrap();
        shares.add(None, 20);
        assert_eq!(shares.check(Some("d"), 6, 0), Err(ShareExceeded::Total { more: 6, used: 95, max: 100 }));
        assert_eq!((shares.of(Some("a")), shares.of(None), shares.total()), (25, 0, 95));
    }

    #[test]
    fn share_has_a_minimum_up_to_the_total() {
        for (total, percent, user_min, want) in [(8, 25, 2, 2), (7, 25, 2, 2), (100, 25, 2, 25), (1, 100, 2, 1)] {
            assert_eq!(Shares::new(total, percent).with_user_min(user_min).user_max(), want, "{total}");
        }
    }

    #[test]
    fn write_that_does_not_grow_fits_a_reduced_share() {
        let mut shares = Shares::new(100, 10);
        shares.add(Some("a"), 50);
        shares.check(Some("a"), 20, 20).unwrap();
        shares.check(Some("a"), 5, 20).unwrap();
        assert!(shares.check(Some("a"), 21, 20).is_err());
    }

    #[test]
    fn largest_user_is_evicted_first_by_rank() {
        let user = |name: &str| Some(Arc::from(name));
        let candidates = [
            (user("a"), 9, "a9"),
            (user("b"), 1, "b1"),
            (user("a"), 3, "a3"),
            (user("a"), 5, "a5"),
            (user("b"), 2, "b2"),
            (None, 0, "0"),
        ];
        let order = eviction_order(candidates, |_| 0);
        assert_eq!(order[0], "a3");
        assert_eq!(order.len(), 6);
        assert!(order.iter().position(|name| *name == "0") > Some(2), "{order:?}");
        // Use that cannot be evicted counts too.
        let used = |user: Option<&str>| if user == Some("b") { 10 } else { 0 };
        let candidates = [(user("a"), 1, "a1"), (user("a"), 2, "a2"), (user("b"), 7, "b7")];
        assert_eq!(eviction_order(candidates, used), ["b7", "a1", "a2"]);
    }

    proptest! {
        #[test]
        fn amounts_equal_a_model_within_the_shares(
            percent in 1u8..=100,
            steps in prop::collection::vec((0usize..4, 0usize..40, any::<bool>()), 0..200),
        ) {
            let users = [Some("a"), Some("b"), Some("c"), None];
            let mut shares = Shares::new(200, percent);
            let mut model = [const { Vec::<usize>::new() }; 4];
            for (user, amount, adds) in steps {
                let used: usize = model[user].iter().sum();
                let total: usize = model.iter().flatten().sum();
                if !adds {
                    if let Some(amount) = model[user].pop() {
                        shares.remove(users[user], amount);
                    }
                } else {
                    let fits_user = users[user].is_none() || used + amount <= shares.user_max();
                    let fits = amount == 0 || fits_user && total + amount <= 200;
                    prop_assert_eq!(shares.check(users[user], amount, 0).is_ok(), fits);
                    if fits {
                        shares.add(users[user], amount);
                        model[user].push(amount);
                    }
                }
                prop_assert_eq!(shares.total(), model.iter().flatten().sum::<usize>());
                for (user, amounts) in users.iter().zip(&model).take(3) {
                    prop_assert_eq!(shares.of(*user), amounts.iter().sum::<usize>());
                    prop_assert!(shares.of(*user) <= shares.user_max());
                }
                prop_assert!(shares.users.values().all(|used| *used > 0));
            }
        }

        #[test]
        fn user_is_not_evicted_while_another_has_more(
            owners in prop::collection::vec(0usize..5, 0..60),
        ) {
            let name = |owner: usize| (owner > 0).then(|| Arc::<str>::from(format!("u{owner}")));
            let candidates = owners.iter().enumerate().map(|(rank, owner)| (name(*owner), rank, (*owner, rank)));
            let order = eviction_order(candidates, |_| 0);
            prop_assert_eq!(order.len(), owners.len());
            let mut remaining = [0usize; 5];
            owners.iter().for_each(|owner| remaining[*owner] += 1);
            let mut newest = [None; 5];
            for (owner, rank) in order {
                prop_assert_eq!(remaining[owner], *remaining.iter().max().unwrap());
                prop_assert!(newest[owner] < Some(rank));
                newest[owner] = Some(rank);
                remaining[owner] -= 1;
            }
        }
    }
}
