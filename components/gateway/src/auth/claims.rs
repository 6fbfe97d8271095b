//! The label of the set of claims in the store.
//!
//! A ticket carries the label of the store's claims. The label is stored in `weir:stream/state` and is lost together
//! with the claims: a memory store has a new label after a restart, so a ticket that was used before the restart is
//! refused. A Redis server may keep the label and lose its newest claims when it restarts, so the label for such a
//! store also names the run of the server.

use weir_codec::http::{problem::Problem, request_id::uuid};

use crate::{
    http::request_id,
    platform::{
        bindings::weir::stream::{
            events::{self, Failure},
            state,
        },
        store,
    },
};

/// The key of the label, and of the claim of the instance that creates it. It is not a channel name, so no client can
/// follow it.
const KEY: &str = "tickets:label";
/// The time that one instance has to create the label, in milliseconds.
const CLAIM_MS: u64 = 5000;
const RETRY_AFTER_MS: u32 = 1000;

/// The label; none if no ticket was issued since the store was created.
pub(crate) async fn find_label() -> Result<Option<String>, Problem> {
    match find_stored().await? {
        Some(stored) => with_server_run(stored).await.map(Some),
        None => Ok(None),
    }
}

/// The label, created if there is none.
pub(crate) async fn label() -> Result<String, Problem> {
    with_server_run(load_or_create().await?).await
}

async fn with_server_run(stored: String) -> Result<String, Problem> {
    let condition = events::health().await;
    if !condition.ok || condition.fallback {
        return Err(store::problem(Failure::Unavailable(RETRY_AFTER_MS)));
    }
    Ok(match condition.life {
        Some(life) => format!("{stored}.{life}"),
        None => stored,
    })
}

async fn find_stored() -> Result<Option<String>, Problem> {
    let value = state::get(KEY.to_owned()).await.map_err(store::problem)?;
    // A label that was created here is always text.
    value
        .map(|bytes| {
            String::from_utf8(bytes).map_err(|_| Problem::internal("the stored label of the claims is not UTF-8"))
        })
        .transpose()
}

async fn load_or_create() -> Result<String, Problem> {
    if let Some(label) = find_stored().await? {
        return Ok(label);
    }
    let first = events::claim(KEY.to_owned(), CLAIM_MS).await.map_err(store::problem)?;
    // Another instance may have created it meanwhile, even one whose claim has expired.
    match find_stored().await? {
        Some(label) => Ok(label),
        None if first => {
            let label = uuid(u128::from_be_bytes(request_id::random()));
            state::put(KEY.to_owned(), label.clone().into_bytes(), None, None, None).await.map_err(store::problem)?;
            Ok(label)
        }
        None => Err(store::problem(Failure::Unavailable(RETRY_AFTER_MS))),
    }
}
