//! The label of the claims that the store remembers.
//!
//! A ticket carries the label of the store's claims. The label is stored in `weir:stream/state`, and the store loses it together with the
//! claims: a memory store has another label after a restart, so a ticket that was used before the restart is refused. A Redis server may
//! keep the label and lose its newest claims when it restarts, so the label of such a store names the run of the server, too.

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

/// The key of the label, and of the claim of the instance that makes it. It is no channel, so no client can follow it.
const KEY: &str = "tickets:label";
/// How long one instance has to make the label, in milliseconds.
const CLAIM_MS: u64 = 5000;
const RETRY_AFTER_MS: u32 = 1000;

/// The label; none where no ticket was issued since the store began.
pub(crate) async fn find_label() -> Result<Option<String>, Problem> {
    match find_kept().await? {
        Some(kept) => of_life(kept).await.map(Some),
        None => Ok(None),
    }
}

/// The label, made where there is none.
pub(crate) async fn label() -> Result<String, Problem> {
    of_life(kept().await?).await
}

async fn of_life(kept: String) -> Result<String, Problem> {
    let condition = events::health().await;
    if !condition.ok || condition.fallback {
        return Err(store::problem(Failure::Unavailable(RETRY_AFTER_MS)));
    }
    Ok(match condition.life {
        Some(life) => format!("{kept}.{life}"),
        None => kept,
    })
}

async fn find_kept() -> Result<Option<String>, Problem> {
    let value = state::get(KEY.to_owned()).await.map_err(store::problem)?;
    // A value that is no text is not one that was made here.
    value
        .map(|bytes| String::from_utf8(bytes).map_err(|_| Problem::internal("the label of the claims is no text")))
        .transpose()
}

async fn kept() -> Result<String, Problem> {
    if let Some(label) = find_kept().await? {
        return Ok(label);
    }
    let first = events::claim(KEY.to_owned(), CLAIM_MS).await.map_err(store::problem)?;
    // Another instance may have created it, even one whose claim has ended.
    match find_kept().await? {
        Some(label) => Ok(label),
        None if first => {
            let label = uuid(u128::from_be_bytes(request_id::random()));
            state::put(KEY.to_owned(), label.clone().into_bytes(), None, None, None).await.map_err(store::problem)?;
            Ok(label)
        }
        None => Err(store::problem(Failure::Unavailable(RETRY_AFTER_MS))),
    }
}
