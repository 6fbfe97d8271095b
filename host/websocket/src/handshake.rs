//! Values of the headers of the opening handshake (RFC 6455, section 4).

use base64ct::{Base64, Encoding as _};
use sha1::{Digest as _, Sha1};

/// The value of `Sec-WebSocket-Accept` for a value of `Sec-WebSocket-Key`.
pub fn accept_key(key: &[u8]) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    Base64::encode_string(&digest)
}

/// A new value of `Sec-WebSocket-Key`.
pub fn new_key() -> String {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).expect("the system has random numbers");
    Base64::encode_string(&nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_of_the_rfc_has_its_accept_value() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(new_key().len(), 24);
        assert_ne!(new_key(), new_key());
    }
}
