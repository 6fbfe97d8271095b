//! The records of a bucket. A failure of the host, and a value that is damaged, are failures of the caller and lines of the log.

use std::cell::RefCell;

use weir_core::channels::{ChannelName, Log, Retention};

use super::{
    format::{self, Damaged},
    host::{Host, HostError},
    names,
};
use crate::{Failure, RETRY_MS};

/// Most events of a channel.
pub(super) const EVENTS_MAX: usize = 1000;
/// The retention of a log that is read: more than the largest append, so that all of it is kept.
pub(super) const WHOLE: Retention = Retention { events_max: EVENTS_MAX, bytes_max: 2 << 20, age_ms_max: u64::MAX };
/// For how long an equal report is not repeated, in milliseconds.
const REPORT_MS: u64 = 10_000;

/// The records of a bucket.
pub(super) struct Records<H> {
    pub(super) host: H,
    /// The last report, and its time.
    reported: RefCell<(String, u64)>,
}

impl<H: Host> Records<H> {
    pub(super) fn new(host: H) -> Self {
        Self { host, reported: RefCell::default() }
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        self.host.get(key).map_err(|error| self.failed("read", key, error))
    }

    pub(super) fn set(&self, key: &str, value: &[u8]) -> Result<(), Failure> {
        self.host.set(key, value).map_err(|error| self.failed("write", key, error))
    }

    pub(super) fn delete(&self, key: &str) -> Result<(), Failure> {
        self.host.delete(key).map_err(|error| self.failed("delete", key, error))
    }

    pub(super) fn increment(&self, key: &str, delta: u64) -> Result<u64, Failure> {
        self.host.increment(key, delta).map_err(|error| self.failed("increment", key, error))
    }

    /// All keys, in any order.
    pub(super) fn keys(&self) -> Result<Vec<String>, Failure> {
        self.host.keys().map_err(|error| self.failed("list", names::PREFIX, error))
    }

    /// The record of a key.
    pub(super) fn record<T>(
        &self,
        key: &str,
        decode: impl FnOnce(&[u8]) -> Result<T, Damaged>,
    ) -> Result<Option<T>, Failure> {
        self.decoded(key, self.get(key)?, decode)
    }

    /// The record of a key whose value has been read.
    pub(super) fn decoded<T>(
        &self,
        key: &str,
        bytes: Option<Vec<u8>>,
        decode: impl FnOnce(&[u8]) -> Result<T, Damaged>,
    ) -> Result<Option<T>, Failure> {
        bytes.map(|bytes| decode(&bytes)).transpose().map_err(|damaged| {
            let message = format!("the value of the key {key} cannot be used: {damaged}");
            self.report(&message);
            Failure::Other(message)
        })
    }

    /// The events of a channel, if it exists.
    pub(super) fn log(&self, channel: &ChannelName) -> Result<Option<Log>, Failure> {
        self.record(&names::channel(channel), |bytes| format::decode_log(bytes, WHOLE))
    }

    pub(super) fn report(&self, message: &str) {
        let now_ms = self.host.clock_ms();
        let mut reported = self.reported.borrow_mut();
        if reported.0 != message || now_ms >= reported.1.saturating_add(REPORT_MS) {
            *reported = (message.to_owned(), now_ms);
            drop(reported);
            self.host.report(message);
        }
    }

    /// A failure of the host. Callers retry those that may be temporary.
    fn failed(&self, action: &str, key: &str, error: HostError) -> Failure {
        let message = format!("the key-value store cannot {action} {key}: {error}");
        self.report(&message);
        match error {
            HostError::NoSuchStore | HostError::AccessDenied => Failure::Other(message),
            HostError::Other(_) => Failure::Unavailable(RETRY_MS),
        }
    }
}
