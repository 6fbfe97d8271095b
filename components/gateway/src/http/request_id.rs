//! The id of a request.

use spin_sdk::{http::HeaderMap, wasip3::random::random};
pub(crate) use weir_codec::http::request_id::HEADER;
use weir_codec::http::request_id::{is_valid, uuid};

/// The id that the client sent, if it is valid, else a new one.
pub(crate) fn of(headers: &HeaderMap) -> String {
    let sent = headers.get(HEADER).and_then(|value| value.to_str().ok()).filter(|id| is_valid(id));
    let new = || uuid((u128::from(random::get_random_u64()) << 64) | u128::from(random::get_random_u64()));
    sent.map_or_else(new, str::to_owned)
}

/// Random bytes.
pub(crate) fn random() -> [u8; 16] {
    let (high, low) = (random::get_random_u64(), random::get_random_u64());
    ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
}

/// A seed for jitter.
pub(crate) fn seed() -> u64 {
    random::get_random_u64()
}
