//! The server side of SCRAM (RFC 5802, RFC 7677), without channel binding.

use std::num::NonZeroU32;

use base64ct::{Base64, Encoding as _};
use ring::{digest, hmac, pbkdf2};

/// The fewest iterations that clients of Kafka accept.
const ITERATIONS: u32 = 4096;
const SALT: &[u8] = b"salt of the tests";
/// The end of the nonce, which the server appends to that of the client.
const SERVER_NONCE: &str = "nonce-of-the-server";
/// `n,,` in base64: the client supports no channel binding.
const NO_BINDING: &str = "biws";

/// A hash function of SCRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scram {
    /// SCRAM-SHA-256.
    Sha256,
    /// SCRAM-SHA-512.
    Sha512,
}

impl Scram {
    /// The name of the mechanism.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }

    fn hmac(self, key: &[u8], message: &[u8]) -> hmac::Tag {
        let algorithm = match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
        };
        hmac::sign(&hmac::Key::new(algorithm, key), message)
    }

    fn hash(self, content: &[u8]) -> digest::Digest {
        let algorithm = match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha512 => &digest::SHA512,
        };
        digest::digest(algorithm, content)
    }

    /// The salted password.
    fn salt(self, password: &str, salt: &[u8], iterations: NonZeroU32) -> Vec<u8> {
        let (algorithm, length) = match self {
            Self::Sha256 => (pbkdf2::PBKDF2_HMAC_SHA256, digest::SHA256_OUTPUT_LEN),
            Self::Sha512 => (pbkdf2::PBKDF2_HMAC_SHA512, digest::SHA512_OUTPUT_LEN),
        };
        let mut salted = vec![0; length];
        pbkdf2::derive(algorithm, iterations, salt, password.as_bytes(), &mut salted);
        salted
    }

    /// The proof of the client and the signature of the server.
    fn sign(self, salted: &[u8], messages: &str) -> (Vec<u8>, hmac::Tag) {
        let client_key = self.hmac(salted, b"Client Key");
        let signature = self.hmac(self.hash(client_key.as_ref()).as_ref(), messages.as_bytes());
        let proof = client_key.as_ref().iter().zip(signature.as_ref()).map(|(key, signature)| key ^ signature);
        let server_key = self.hmac(salted, b"Server Key");
        (proof.collect(), self.hmac(server_key.as_ref(), messages.as_bytes()))
    }
}

/// The authentication of one client.
pub(crate) struct Exchange {
    scram: Scram,
    user: String,
    password: String,
    /// The first messages of the client and the server, after the first one.
    first: Option<(String, String)>,
    is_authenticated: bool,
}

impl Exchange {
    pub(crate) fn new(scram: Scram, user: &str, password: &str) -> Self {
        Self { scram, user: user.to_owned(), password: password.to_owned(), first: None, is_authenticated: false }
    }

    /// True after the answer to a right proof.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.is_authenticated
    }

    /// The answer to a message of the client; `None` if it is refused.
    pub(crate) fn answer(&mut self, message: &[u8]) -> Option<String> {
        let message = std::str::from_utf8(message).ok()?;
        match self.first.take() {
            None => {
                let bare = message.strip_prefix("n,,")?;
                if attribute(bare, "n=")? != self.user {
                    return None;
                }
                let nonce = format!("{}{SERVER_NONCE}", attribute(bare, "r=")?);
                let answer = format!("r={nonce},s={},i={ITERATIONS}", Base64::encode_string(SALT));
                self.first = Some((bare.to_owned(), answer.clone()));
                Some(answer)
            }
            Some((client, server)) => {
                let (content, proof) = message.rsplit_once(",p=")?;
                let is_same_nonce = attribute(content, "r=")? == attribute(&server, "r=")?;
                if attribute(content, "c=")? != NO_BINDING || !is_same_nonce {
                    return None;
                }
                let salted = self.scram.salt(&self.password, SALT, NonZeroU32::new(ITERATIONS)?);
                let (expected, signature) = self.scram.sign(&salted, &format!("{client},{server},{content}"));
                self.is_authenticated = Base64::decode_vec(proof).ok()? == expected;
                self.is_authenticated.then(|| format!("v={}", Base64::encode_string(signature.as_ref())))
            }
        }
    }
}

/// The value of an attribute such as `r=`.
fn attribute<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    message.split(',').find_map(|part| part.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677.
    #[test]
    fn example_of_the_specification_has_its_proof_and_signature() {
        let salt = Base64::decode_vec("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let salted = Scram::Sha256.salt("pencil", &salt, NonZeroU32::new(4096).unwrap());
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let messages =
            format!("n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}");
        let (proof, signature) = Scram::Sha256.sign(&salted, &messages);
        assert_eq!(Base64::encode_string(&proof), "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        assert_eq!(Base64::encode_string(signature.as_ref()), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    /// The last message of a client with a password.
    fn last_message(scram: Scram, password: &str, first: &str, answer: &str) -> String {
        let content = format!("c={NO_BINDING},r={}", attribute(answer, "r=").unwrap());
        let salted = scram.salt(password, SALT, NonZeroU32::new(ITERATIONS).unwrap());
        let (proof, _) = scram.sign(&salted, &format!("{first},{answer},{content}"));
        format!("{content},p={}", Base64::encode_string(&proof))
    }

    #[test]
    fn only_the_right_user_and_proof_are_accepted() {
        for scram in [Scram::Sha256, Scram::Sha512] {
            let begin = || {
                let mut exchange = Exchange::new(scram, "ada", "secret");
                let answer = exchange.answer(b"n,,n=ada,r=nonce").unwrap();
                (exchange, answer)
            };
            let (mut exchange, answer) = begin();
            let last = last_message(scram, "secret", "n=ada,r=nonce", &answer);
            assert!(!exchange.is_authenticated());
            assert!(exchange.answer(last.as_bytes()).unwrap().starts_with("v=") && exchange.is_authenticated());
            let (mut exchange, answer) = begin();
            let last = last_message(scram, "guess", "n=ada,r=nonce", &answer);
            assert!(exchange.answer(last.as_bytes()).is_none() && !exchange.is_authenticated());
            let (mut exchange, answer) = begin();
            let last = last_message(scram, "secret", "n=ada,r=nonce", &answer).replace(SERVER_NONCE, "other");
            assert!(exchange.answer(last.as_bytes()).is_none());
            assert!(Exchange::new(scram, "ada", "secret").answer(b"n,,n=eve,r=nonce").is_none());
        }
    }
}
