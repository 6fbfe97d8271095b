//! Who may see what. No clock, no randomness and no IO: times, random bytes and the contents of files are arguments, so the
//! gateway component uses it under every host, and all of it is tested natively.
//!
//! A request passes, in this order:
//!
//! 1. [`limits`]: its head and body are within bounds.
//! 2. [`cors`]: a page of another origin may ask; a preflight is answered.
//! 3. [`credential`]: what it shows: a bearer token in a header or a cookie, or a ticket. A token in a URL is refused.
//! 4. [`guard`]: whose that is, by [`jwt`] (with [`key_file`], [`key`] and [`jws`]), [`api_key`] or [`ticket`]; or nobody's, on
//!    loopback only.
//! 5. [`identity`]: whether that user may do this, by being the owner or by a [`scope`].
//!
//! Rates and connections are `weir_core::quota`'s. [`refusal`] says all that goes wrong as a problem of RFC 9457.
//!
//! # What is chosen, and why
//!
//! - Tokens are read by a small strict layer over RustCrypto: the algorithm is the key's, never the token's choice; JSON with
//!   a member twice, base64url with padding or stray bits, and `crit` are refused; a signature is verified before a claim
//!   is read.
//! - API keys are random and long, so SHA-256 at rest is enough: there is nothing to guess that a slow hash would protect,
//!   and a slow hash on each request would be a way to exhaust the server.
//! - What belongs to another and what does not exist are one error, [`identity::NotFound`].

pub mod api_key;
mod base64url;
pub mod credential;
pub mod digest;
pub mod guard;
pub mod identity;
pub mod jwks;
pub mod jws;
pub mod jwt;
pub mod key;
pub mod key_file;
pub mod limits;
mod pem;
pub mod refusal;
pub mod scope;
pub mod ticket;

pub use weir_codec::http::cors;
