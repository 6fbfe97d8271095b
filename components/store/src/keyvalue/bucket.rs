//! The host of a component: a bucket of one version of `wasi:keyvalue`, and the clocks of WASI.

use std::cell::RefCell;
use std::rc::Rc;

use super::host::{Host, HostError};
use crate::{clock_ms, now_ms, wait_ms};

/// The variable with the name of the bucket.
const VARIABLE: &str = "WEIR_KEYVALUE_BUCKET";
/// Its default. A host that has only an unnamed bucket, as wasmtime, has no bucket of this name.
const DEFAULT: &str = "default";
/// Most keys that are listed.
const KEYS_MAX: usize = 100_000;

/// A bucket of one version of `wasi:keyvalue`.
pub trait Bucket: Sized + 'static {
    /// A position in the list of keys.
    type Position;

    /// Opens the bucket of a name.
    fn open(name: &str) -> Result<Self, HostError>;
    /// The value of a key.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, HostError>;
    /// Sets the value of a key.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), HostError>;
    /// Deletes a key, if it exists.
    fn delete(&self, key: &str) -> Result<(), HostError>;
    /// Some keys after a position, and the next position if there may be more.
    fn keys(&self, from: Option<Self::Position>) -> Result<(Vec<String>, Option<Self::Position>), HostError>;
    /// Adds to the number under a key, atomically, and returns the sum.
    fn increment(&self, key: &str, delta: u64) -> Result<u64, HostError>;
}

/// A [`Host`] with a bucket, which is opened at its first use, and again after a failure.
pub struct BucketHost<B> {
    open: RefCell<Option<Rc<B>>>,
}

impl<B> Default for BucketHost<B> {
    fn default() -> Self {
        Self { open: RefCell::default() }
    }
}

impl<B: Bucket> BucketHost<B> {
    fn with<T>(&self, act: impl FnOnce(&B) -> Result<T, HostError>) -> Result<T, HostError> {
        let open = self.open.borrow().clone();
        let bucket = match open {
            Some(bucket) => bucket,
            None => Rc::new(open_configured()?),
        };
        let result = act(&bucket);
        // After a failure its connection may be unusable.
        let open = result.is_ok().then_some(bucket);
        self.open.replace(open);
        result
    }
}

fn open_configured<B: Bucket>() -> Result<B, HostError> {
    match std::env::var(VARIABLE) {
        Ok(name) => B::open(&name),
        Err(_) => B::open(DEFAULT).or_else(|error| match error {
            HostError::NoSuchStore => B::open(""),
            error => Err(error),
        }),
    }
}

impl<B: Bucket> Host for BucketHost<B> {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, HostError> {
        self.with(|bucket| bucket.get(key))
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<(), HostError> {
        self.with(|bucket| bucket.set(key, value))
    }

    fn delete(&self, key: &str) -> Result<(), HostError> {
        self.with(|bucket| bucket.delete(key))
    }

    fn keys(&self) -> Result<Vec<String>, HostError> {
        self.with(|bucket| {
            let (mut keys, mut position) = bucket.keys(None)?;
            while let Some(from) = position {
                if keys.len() > KEYS_MAX {
                    return Err(HostError::Other(format!("the bucket has more than {KEYS_MAX} keys")));
                }
                let (more, next) = bucket.keys(Some(from))?;
                keys.extend(more);
                position = next;
            }
            Ok(keys)
        })
    }

    fn increment(&self, key: &str, delta: u64) -> Result<u64, HostError> {
        self.with(|bucket| bucket.increment(key, delta))
    }

    fn now_ms(&self) -> u64 {
        now_ms()
    }

    fn clock_ms(&self) -> u64 {
        clock_ms()
    }

    async fn wait_ms(&self, ms: u64) {
        wait_ms(ms).await;
    }

    fn report(&self, message: &str) {
        eprintln!("warn: {message}");
    }
}
