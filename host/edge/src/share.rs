//! Pools of permits that clients share, with a share for each client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The holder of a permit: an address until the client is identified, then its user.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ClientKey {
    /// An IPv4 address, or the network of an IPv6 address.
    Address(u64),
    /// A user that the gateway has identified.
    User(Box<str>),
}

/// Why a client gets no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PermitRefusal {
    /// All permits are taken.
    Total,
    /// The client holds its share.
    Client,
}

/// A bounded number of permits for all clients.
pub(crate) struct SharedPool {
    total: u32,
    client_max: u32,
    permits: Arc<Semaphore>,
    clients: Mutex<HashMap<ClientKey, u32>>,
}

impl SharedPool {
    /// A pool of `total` permits, of which one client may hold `share_percent` percent, but at least one.
    pub(crate) fn new(total: u32, share_percent: u32) -> Arc<Self> {
        let share = u64::from(total) * u64::from(share_percent.min(100)) / 100;
        Arc::new(Self {
            total,
            client_max: u32::try_from(share).unwrap_or(total).max(1),
            permits: Arc::new(Semaphore::new(total as usize)),
            clients: Mutex::default(),
        })
    }

    /// Acquires a permit for a client that is identified by its address.
    pub(crate) fn try_take(self: &Arc<Self>, address: u64) -> Result<Permit, PermitRefusal> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| PermitRefusal::Total)?;
        let client = ClientKey::Address(address);
        self.count(client.clone())?;
        Ok(Permit { pool: self.clone(), client, _permit: permit })
    }

    /// The most permits of one client.
    pub(crate) fn client_max(&self) -> usize {
        self.client_max as usize
    }

    /// The number of permits in use.
    pub(crate) fn taken(&self) -> usize {
        (self.total as usize).saturating_sub(self.permits.available_permits())
    }

    /// Resolves when no permit is in use.
    pub(crate) async fn wait_idle(&self) {
        drop(self.permits.acquire_many(self.total).await);
    }

    fn count(&self, client: ClientKey) -> Result<(), PermitRefusal> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = clients.entry(client).or_default();
        if *taken >= self.client_max {
            return Err(PermitRefusal::Client);
        }
        *taken += 1;
        Ok(())
    }

    fn uncount(&self, client: &ClientKey) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = clients.get_mut(client) {
            *taken -= 1;
            if *taken == 0 {
                clients.remove(client);
            }
        }
    }
}

/// One permit, returned when it is dropped.
pub(crate) struct Permit {
    pool: Arc<SharedPool>,
    client: ClientKey,
    _permit: OwnedSemaphorePermit,
}

impl Permit {
    /// Counts the permit for another client from now on, if that client has room in its share.
    pub(crate) fn assign(&mut self, client: ClientKey) -> Result<(), PermitRefusal> {
        if client != self.client {
            self.pool.count(client.clone())?;
            self.pool.uncount(&self.client);
            self.client = client;
        }
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.pool.uncount(&self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_over_its_share_is_refused_and_others_are_not() {
        let pool = SharedPool::new(4, 50);
        let mut mine: Vec<_> = (0..2).map(|_| pool.try_take(1).ok().unwrap()).collect();
        assert_eq!(pool.try_take(1).err(), Some(PermitRefusal::Client));
        assert_eq!(pool.taken(), 2, "a refusal takes nothing");
        let theirs = [pool.try_take(2).ok().unwrap(), pool.try_take(3).ok().unwrap()];
        assert_eq!(pool.try_take(4).err(), Some(PermitRefusal::Total));
        mine.pop();
        assert!(pool.try_take(1).is_ok());
        drop((mine, theirs));
        assert_eq!(pool.taken(), 0);
        assert!(pool.clients.lock().unwrap().is_empty());
    }

    #[test]
    fn permit_assigned_to_a_user_counts_for_the_user() {
        let pool = SharedPool::new(10, 20);
        let user = || ClientKey::User("ann".into());
        let mut permit = pool.try_take(1).ok().unwrap();
        permit.assign(user()).unwrap();
        let others = [pool.try_take(1).ok().unwrap(), pool.try_take(1).ok().unwrap()];
        let mut second = pool.try_take(3).ok().unwrap();
        second.assign(user()).unwrap();
        let mut third = pool.try_take(2).ok().unwrap();
        assert_eq!(third.assign(user()), Err(PermitRefusal::Client));
        drop((permit, second, others, third));
        assert!(pool.clients.lock().unwrap().is_empty());
    }

    #[test]
    fn share_of_a_small_pool_is_at_least_one() {
        assert!(SharedPool::new(1, 1).try_take(1).is_ok());
    }
}
