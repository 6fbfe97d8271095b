//! Authentication and authorization. No clock, no randomness and no IO: times, random bytes and the contents of files
//! are arguments, so the gateway component uses it under every host, and it is tested natively.
//!
//! The checks of a request, in this order:
//!
//! 1. [`limits`]: its head and body are within bounds.
//! 2. [`cors`]: pages of the request's origin may send requests; a preflight is answered.
//! 3. [`credential`]: extracts its credentials: a bearer token in a header or a cookie, or a ticket. A token in a URL
//!    is refused.
//! 4. [`guard`]: authenticates the user by [`jwt`] (with [`key_file`], [`key`] and [`jws`]), [`api_key`] or [`ticket`];
//!    without authentication, on loopback only.
//! 5. [`identity`]: authorizes the action, by ownership or by a [`scope`].
//!
//! Rates and connections are bounded by `weir_core::quota`. [`refusal`] converts every error to a problem of RFC 9457.
//!
//! # Decisions
//!
//! - Tokens are parsed by a small strict layer over RustCrypto: the algorithm is that of the key and never chosen by
//!   the token; JSON with a repeated member, base64url with padding or stray bits, and `crit` are refused; a signature
//!   is verified before a claim is read.
//! - API keys are random and long, so SHA-256 at rest is enough. A slow hash protects texts that can be guessed, and
//!   computing one for each request would let clients exhaust the server.
//!
//! # Invariants
//!
//! - A public key is never a shared secret: HS256 verifies only with texts that are declared as secrets, by the file
//!   `token_secrets` or by a JWK with `kty` `oct`, and neither may resemble a key ([`key_file`]).
//! - A key has one algorithm, and a token that names another is refused before its signature is checked; no claim is
//!   read before the signature is verified.
//! - A forbidden and a missing channel are the same error, [`identity::NotFound`], and the same response on the wire.
//! - A valid ticket is a [`ticket::UnclaimedTicket`], which only a store's claim turns into an identity. It carries the
//!   label of the store's claims, which changes when the store loses them: a ticket from before the loss is refused.

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
mod key_form;
mod key_list;
pub mod limits;
mod pem;
pub mod refusal;
pub mod scope;
pub mod ticket;

pub use weir_codec::http::cors;
