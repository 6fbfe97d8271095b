//! The counts of held connections in the process, and of the connections of each user.

use std::sync::{Arc, Mutex, PoisonError};

use metrics::gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weir_core::quota::{ConnectionRefused, Connections};

use crate::share::{Permit, PermitRefusal, SharedPool};

/// Counts the held connections, and the connections of each user.
pub(crate) struct Subscribers {
    held_max: u32,
    permits: Arc<Semaphore>,
    /// The shares of clients that are identified by their address only.
    anonymous: Arc<SharedPool>,
    users: Arc<Mutex<Connections>>,
}

impl Subscribers {
    /// Allows `held_max` held connections in total, `user_max` connections of each user, and for each client without a
    /// user a share of `held_max` in percent.
    pub(crate) fn new(held_max: u32, client_share_percent: u32, user_max: u32) -> Self {
        Self {
            anonymous: SharedPool::new(held_max, client_share_percent),
            held_max,
            permits: Arc::new(Semaphore::new(held_max as usize)),
            users: Arc::new(Mutex::new(Connections::new(user_max as usize, usize::MAX))),
        }
    }

    /// The number of held connections.
    pub(crate) fn held(&self) -> usize {
        (self.held_max as usize).saturating_sub(self.permits.available_permits())
    }

    /// Resolves when no connection is held.
    pub(crate) async fn wait_idle(&self) {
        drop(self.permits.acquire_many(self.held_max).await);
    }

    /// Counts a connection of a user that is not held, a WebSocket. All kinds of connections share one bound.
    pub(crate) fn connect(&self, user: &str) -> Result<UserPermit, ConnectionRefused> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).open(user)?;
        Ok(UserPermit { user: user.into(), users: self.users.clone() })
    }

    /// Counts a held connection for its user, or for the client's address without a user.
    pub(crate) fn hold(&self, user: Option<&str>, client: u64) -> Result<SubscriberPermit, ConnectionRefused> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| ConnectionRefused::Total)?;
        let owner = match user {
            Some(user) => Owner::User(self.connect(user)?),
            None => Owner::Address(self.anonymous.try_take(client).map_err(|refused| match refused {
                PermitRefusal::Total => ConnectionRefused::Total,
                PermitRefusal::Client => ConnectionRefused::User { connections_max: self.anonymous.client_max() },
            })?),
        };
        gauge!("weir_http_connections_held").increment(1);
        Ok(SubscriberPermit { _permit: permit, _owner: owner })
    }
}

/// Counts a held connection until it is dropped.
pub(crate) struct SubscriberPermit {
    _permit: OwnedSemaphorePermit,
    _owner: Owner,
}

/// The user or address whose share a held connection counts towards.
enum Owner {
    User(#[expect(dead_code, reason = "it is held until it is dropped")] UserPermit),
    Address(#[expect(dead_code, reason = "it is held until it is dropped")] Permit),
}

impl Drop for SubscriberPermit {
    fn drop(&mut self) {
        gauge!("weir_http_connections_held").decrement(1);
    }
}

/// Counts a connection of a user, of any kind, until it is dropped.
pub(crate) struct UserPermit {
    user: Box<str>,
    users: Arc<Mutex<Connections>>,
}

impl Drop for UserPermit {
    fn drop(&mut self) {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).close(&self.user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_a_user_are_counted_together_across_kinds() {
        let subscribers = Subscribers::new(10, 100, 2);
        let (held, socket) = (subscribers.hold(Some("ann"), 1).unwrap(), subscribers.connect("ann").unwrap());
        let full = Some(ConnectionRefused::User { connections_max: 2 });
        assert_eq!((subscribers.connect("ann").err(), subscribers.hold(Some("ann"), 1).err()), (full, full));
        // A WebSocket is not a held connection.
        assert_eq!(subscribers.held(), 1);
        drop(socket);
        let held = (held, subscribers.hold(Some("ann"), 1).unwrap());
        assert_eq!(subscribers.connect("ann").err(), full);
        drop(held);
        assert!(subscribers.connect("ann").is_ok() && subscribers.held() == 0);
    }

    #[tokio::test]
    async fn permits_are_counted_and_released() {
        let subscribers = Subscribers::new(3, 100, 2);
        let ann = [subscribers.hold(Some("ann"), 1).unwrap(), subscribers.hold(Some("ann"), 1).unwrap()];
        let full = Some(ConnectionRefused::User { connections_max: 2 });
        assert_eq!(subscribers.hold(Some("ann"), 1).err(), full);
        // A refusal takes no permit.
        assert_eq!(subscribers.held(), 2);
        let anonymous = subscribers.hold(None, 1).unwrap();
        assert_eq!(subscribers.hold(Some("bob"), 1).err(), Some(ConnectionRefused::Total));
        drop((ann, anonymous));
        assert_eq!(subscribers.held(), 0);
        subscribers.wait_idle().await;
        assert!(subscribers.hold(Some("ann"), 1).is_ok());
    }
}
