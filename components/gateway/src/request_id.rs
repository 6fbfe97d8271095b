//! `X-Request-Id`: the client's when it is fit to be logged and returned, else a new one.

use spin_sdk::{http::HeaderMap, wasip3::random::random};

/// The header.
const NAME: &str = "x-request-id";
/// Most bytes of a client's id.
const BYTES_MAX: usize = 128;

/// The id of a request.
pub(crate) fn of(headers: &HeaderMap) -> String {
    let sent = headers.get(NAME).and_then(|value| value.to_str().ok()).filter(|id| fit(id));
    sent.map_or_else(new, str::to_owned)
}

/// 1 to 128 visible ASCII characters.
fn fit(id: &str) -> bool {
    (1..=BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A random UUID, RFC 9562 version 4.
fn new() -> String {
    let mut bits = (u128::from(random::get_random_u64()) << 64) | u128::from(random::get_random_u64());
    bits = (bits & !(0xf << 76)) | (0x4 << 76);
    bits = (bits & !(0x3 << 62)) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
