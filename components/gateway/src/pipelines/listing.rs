//! The index of a user's executions in the store, so that every instance lists all of them.
//!
//! The key is `listed:USER.ORDER.ID`: a digest of the user; 2^64 - 1 minus the start time of the execution in
//! nanoseconds since 1970, in 20 digits; and the id of the execution. In key order the executions of a user are
//! therefore listed newest first. The value is `STATE PIPELINE ERRORS`. It is written with a checkpoint of the
//! execution if the state has changed, and has the lifetime of the checkpoints.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use weir_auth::digest;
use weir_codec::pipelines::execution::ExecutionSummary;
use weir_core::pipelines::State;

use super::running::RunningExecution;
use crate::platform::{
    bindings::weir::stream::{events::Failure, state},
    clock,
};

const KIND: &str = "listed";
const ORDER_DIGITS: usize = 20;
/// Values that are read at once.
const READ_AT_ONCE: usize = 8;

/// Writes the entry of an execution if its state has changed since this instance last wrote it, or if it is to expire.
pub(super) async fn put(running: &RunningExecution, ttl_ms: Option<u64>) -> Result<(), Failure> {
    let status = running.execution.borrow().status(clock::monotonic_ns());
    if running.listed.get() == Some(status.state) && ttl_ms.is_none() {
        return Ok(());
    }
    let status = ExecutionSummary::from(status);
    let key = key(&running.owner, status.began_unix_ns, &status.execution_id);
    let value = format!("{} {} {}", status.state.name(), status.pipeline, status.errors);
    state::put(key, value.into_bytes(), ttl_ms, running.fence(), running.share()).await?;
    running.listed.set(Some(status.state));
    Ok(())
}

/// The executions of a user, the newest first.
pub(super) async fn of_user(user: &str, listed_max: usize) -> Result<Vec<ExecutionSummary>, Failure> {
    let prefix = prefix(user);
    let limit = u32::try_from(listed_max).unwrap_or(u32::MAX);
    let keys = state::keys(KIND.to_owned(), prefix.clone(), limit).await?;
    let own = keys.into_iter().take_while(|key| key.starts_with(&prefix));
    let read = stream::iter(own).map(|key| async move {
        let value = state::get(key.clone()).await?;
        // An entry may expire between the two reads.
        Ok(value.and_then(|value| read(&key, &value)))
    });
    read.buffered(READ_AT_ONCE).try_filter_map(|listed| async { Ok(listed) }).try_collect().await
}

fn prefix(user: &str) -> String {
    format!("{KIND}:{}.", digest::of(&[user.as_bytes()]))
}

fn key(user: &str, began_unix_ns: u64, id: &str) -> String {
    format!("{}{:0ORDER_DIGITS$}.{id}", prefix(user), u64::MAX - began_unix_ns)
}

fn read(key: &str, value: &[u8]) -> Option<ExecutionSummary> {
    let (_, rest) = key.split_once('.')?;
    let (order, id) = rest.split_once('.')?;
    let (state, rest) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    // Earlier versions did not write the number of errors.
    let (pipeline, errors) = rest.split_once(' ').unwrap_or((rest, "0"));
    Some(ExecutionSummary {
        execution_id: id.into(),
        pipeline: pipeline.into(),
        state: State::from_name(state)?,
        began_unix_ns: u64::MAX - order.parse::<u64>().ok()?,
        errors: errors.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_by_start_time_newest_first() {
        let keys = [2_000_000_000_000_000_000, 1_999_999_999_999_999_999, 5].map(|ns| key("ann", ns, "exec_a"));
        assert!(keys.is_sorted());
        assert!(keys.iter().all(|key| key.starts_with(&prefix("ann")) && !key.starts_with(&prefix("bob"))));
    }

    #[test]
    fn key_and_value_read_back() {
        let key = key("auth0|ann@example.org", 1_700_000_000_000_000_001, "exec_a-b_c");
        let listed = read(&key, b"compensating review 2").unwrap();
        assert_eq!(listed.errors, 2);
        assert_eq!(read(&key, b"compensating review").map(|listed| listed.errors), Some(0));
        assert_eq!((&*listed.execution_id, &*listed.pipeline), ("exec_a-b_c", "review"));
        assert_eq!((listed.state, listed.began_unix_ns), (State::Compensating, 1_700_000_000_000_000_001));
        for damaged in ["", "running", "asleep review", "running review x"] {
            assert_eq!(read(&key, damaged.as_bytes()), None, "{damaged:?}");
        }
    }
}
