//! The negotiation of permessage-deflate (RFC 7692, section 7.1).

use std::fmt::Write as _;

/// The name of the extension.
const NAME: &str = "permessage-deflate";
/// Most offers of a client that are read.
const OFFERS_MAX: usize = 16;

/// Whether messages refer to earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextTakeover {
    /// Each message is compressed alone: a connection without a message holds no memory for the extension.
    Never,
    /// Where the peer agrees, messages refer to earlier ones: a connection keeps a window for each direction.
    Allowed,
}

/// What this side prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeflateConfig {
    /// Whether messages refer to earlier ones.
    pub takeover: ContextTakeover,
    /// The window of each direction is at most `1 << window_bits` bytes, 9 to 15, if the peer agrees.
    pub window_bits: u8,
}

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Direction {
    /// The window has at most `1 << window_bits` bytes.
    pub(crate) window_bits: u8,
    /// Messages may refer to earlier ones.
    pub(crate) takes_over: bool,
}

/// The parameters that both sides use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    pub(crate) server: Direction,
    pub(crate) client: Direction,
}

/// A server's response is not an answer to the offer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server's `Sec-WebSocket-Extensions` is invalid: `{response}`")]
pub struct NegotiationError {
    /// The value of the header.
    pub response: String,
}

/// The parameters of an offer or a response.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Parameters {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    /// `Some(None)` without a value, which only an offer may have.
    client_max_window_bits: Option<Option<u8>>,
}

impl Parameters {
    /// Reads one element of the header; none for another extension, and for parameters that are unknown, occur twice or are invalid.
    fn parse(element: &str) -> Option<Self> {
        let mut parts = element.split(';').map(str::trim);
        if !parts.next()?.eq_ignore_ascii_case(NAME) {
            return None;
        }
        let mut parameters = Self::default();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim())),
                None => (part, None),
            };
            match (name.to_ascii_lowercase().as_str(), value) {
                ("server_no_context_takeover", None) if !parameters.server_no_context_takeover => {
                    parameters.server_no_context_takeover = true;
                }
                ("client_no_context_takeover", None) if !parameters.client_no_context_takeover => {
                    parameters.client_no_context_takeover = true;
                }
                ("server_max_window_bits", Some(value)) if parameters.server_max_window_bits.is_none() => {
                    parameters.server_max_window_bits = Some(window_bits(value)?);
                }
                ("client_max_window_bits", value) if parameters.client_max_window_bits.is_none() => {
                    let bits = match value {
                        Some(value) => Some(window_bits(value)?),
                        None => None,
                    };
                    parameters.client_max_window_bits = Some(bits);
                }
                _ => return None,
            }
        }
        Some(parameters)
    }
}

/// A number from 8 to 15 without leading zeros, which may be quoted.
fn window_bits(value: &str) -> Option<u8> {
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    ["8", "9", "10", "11", "12", "13", "14", "15"].iter().position(|bits| *bits == value).map(|at| at as u8 + 8)
}

impl DeflateConfig {
    /// A server's answer to the offers of a client, the values of its headers `Sec-WebSocket-Extensions`: what both use, and the value of
    /// the response's header. None if no offer can be accepted: then messages are not compressed.
    pub fn accept<'h>(&self, headers: impl IntoIterator<Item = &'h str>) -> Option<(Agreement, String)> {
        let offers = headers.into_iter().flat_map(|header| header.split(',')).take(OFFERS_MAX);
        offers.filter_map(|offer| Parameters::parse(offer.trim())).find_map(|offer| self.accept_one(offer))
    }

    fn accept_one(&self, offer: Parameters) -> Option<(Agreement, String)> {
        let bits = self.window_bits.clamp(9, 15);
        // zlib compresses with windows of at least 512 bytes.
        if offer.server_max_window_bits == Some(8) {
            return None;
        }
        let may_take_over = self.takeover == ContextTakeover::Allowed;
        let server = Direction {
            window_bits: offer.server_max_window_bits.map_or(bits, |max| max.min(bits)),
            takes_over: may_take_over && !offer.server_no_context_takeover,
        };
        let client = Direction {
            // Only a client that names the parameter can be asked for a smaller window.
            window_bits: offer.client_max_window_bits.map_or(15, |max| max.map_or(bits, |max| max.min(bits))),
            takes_over: may_take_over && !offer.client_no_context_takeover,
        };
        let mut response = NAME.to_owned();
        if !server.takes_over {
            response.push_str("; server_no_context_takeover");
        }
        if !client.takes_over {
            response.push_str("; client_no_context_takeover");
        }
        if offer.server_max_window_bits.is_some() {
            let _ = write!(response, "; server_max_window_bits={}", server.window_bits);
        }
        if offer.client_max_window_bits.is_some() {
            let _ = write!(response, "; client_max_window_bits={}", client.window_bits);
        }
        Some((Agreement { server, client }, response))
    }

    /// A client's offers, as the value of `Sec-WebSocket-Extensions`.
    pub fn offer(&self) -> String {
        let bits = self.window_bits.clamp(9, 15);
        let offer = |takeover: &str| {
            let mut offer = format!("{NAME}{takeover}");
            if bits < 15 {
                let _ = write!(offer, "; server_max_window_bits={bits}");
            }
            let _ = write!(offer, "; client_max_window_bits={bits}");
            offer
        };
        match self.takeover {
            ContextTakeover::Never => offer("; server_no_context_takeover; client_no_context_takeover"),
            // A server without memory for a window of each client may accept only the second one.
            ContextTakeover::Allowed => format!("{}, {}", offer(""), offer("; client_no_context_takeover")),
        }
    }

    /// What a server's response, the value of its `Sec-WebSocket-Extensions`, means for a client that has sent [`Self::offer`].
    ///
    /// # Errors
    ///
    /// The response is no answer to the offer: the client must fail the connection.
    pub fn complete(&self, response: Option<&str>) -> Result<Option<Agreement>, NegotiationError> {
        let Some(response) = response else { return Ok(None) };
        let agreement = Parameters::parse(response.trim()).and_then(|parameters| self.complete_one(parameters));
        match agreement {
            Some(agreement) => Ok(Some(agreement)),
            None => Err(NegotiationError { response: response.to_owned() }),
        }
    }

    fn complete_one(&self, response: Parameters) -> Option<Agreement> {
        let bits = self.window_bits.clamp(9, 15);
        let never = self.takeover == ContextTakeover::Never;
        // A server that accepts an offer with these two parameters must repeat them (sections 7.1.1.1 and 7.1.2.1).
        let server_bits = match response.server_max_window_bits {
            Some(server_bits) if server_bits <= bits || bits == 15 => server_bits,
            None if bits == 15 => 15,
            _ => return None,
        };
        if never && !response.server_no_context_takeover {
            return None;
        }
        let client_bits = match response.client_max_window_bits {
            // zlib compresses with windows of at least 512 bytes.
            Some(Some(client_bits)) if client_bits > 8 => client_bits.min(bits),
            Some(_) => return None,
            None => bits,
        };
        Some(Agreement {
            server: Direction { window_bits: server_bits, takes_over: !response.server_no_context_takeover },
            client: Direction { window_bits: client_bits, takes_over: !never && !response.client_no_context_takeover },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: DeflateConfig = DeflateConfig { takeover: ContextTakeover::Never, window_bits: 12 };
    const SHARED: DeflateConfig = DeflateConfig { takeover: ContextTakeover::Allowed, window_bits: 15 };

    fn accepted(config: DeflateConfig, offers: &[&str]) -> Option<String> {
        config.accept(offers.iter().copied()).map(|(_, response)| response)
    }

    #[test]
    fn offers_are_answered_with_the_parameters_of_both_sides() {
        let check = |config, offer: &str, response: &str| {
            assert_eq!(accepted(config, &[offer]).as_deref(), Some(response), "{offer}");
        };
        const NO_TAKEOVER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        check(ALONE, "permessage-deflate", NO_TAKEOVER);
        // Browsers.
        check(
            ALONE,
            "permessage-deflate; client_max_window_bits",
            &format!("{NO_TAKEOVER}; client_max_window_bits=12"),
        );
        check(
            ALONE,
            "permessage-deflate; client_max_window_bits=9",
            &format!("{NO_TAKEOVER}; client_max_window_bits=9"),
        );
        check(
            ALONE,
            "permessage-deflate; server_max_window_bits=9",
            &format!("{NO_TAKEOVER}; server_max_window_bits=9"),
        );
        check(
            ALONE,
            "permessage-deflate; server_max_window_bits=15",
            &format!("{NO_TAKEOVER}; server_max_window_bits=12"),
        );
        check(SHARED, "permessage-deflate", "permessage-deflate");
        check(
            SHARED,
            "PerMessage-Deflate;Server_No_Context_Takeover",
            "permessage-deflate; server_no_context_takeover",
        );
        check(
            SHARED,
            "permessage-deflate; client_no_context_takeover",
            "permessage-deflate; client_no_context_takeover",
        );
        check(
            SHARED,
            "permessage-deflate; server_max_window_bits=\"10\"",
            "permessage-deflate; server_max_window_bits=10",
        );
        check(SHARED, "permessage-deflate; client_max_window_bits=8", "permessage-deflate; client_max_window_bits=8");
    }

    #[test]
    fn first_acceptable_offer_counts() {
        let offers = [
            "x-webkit-deflate-frame, permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
        ];
        assert_eq!(accepted(SHARED, &offers).as_deref(), Some("permessage-deflate; server_max_window_bits=10"));
    }

    #[test]
    fn invalid_offers_are_declined() {
        for offer in [
            "",
            "permessage-bzip2",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=010",
            "permessage-deflate; client_max_window_bits=",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; unknown",
            "permessage-deflate;",
        ] {
            assert_eq!(accepted(SHARED, &[offer]), None, "{offer}");
        }
    }

    #[test]
    fn number_of_offers_is_bounded() {
        let mut offers = vec!["permessage-deflate; unknown"; OFFERS_MAX];
        offers.push("permessage-deflate");
        assert_eq!(accepted(SHARED, &offers), None);
    }

    #[test]
    fn client_offers_to_compress_messages_alone() {
        assert_eq!(
            SHARED.offer(),
            "permessage-deflate; client_max_window_bits=15, permessage-deflate; client_no_context_takeover; client_max_window_bits=15"
        );
        let response = "permessage-deflate; client_no_context_takeover";
        let agreement = SHARED.complete(Some(response)).unwrap().expect("an agreement");
        assert!(agreement.server.takes_over && !agreement.client.takes_over);
    }

    #[test]
    fn client_accepts_the_answers_of_our_server_and_refuses_others() {
        for client in [ALONE, SHARED] {
            for server in [ALONE, SHARED] {
                let (accepted, response) = server.accept([client.offer().as_str()]).expect("an agreement");
                let agreement = client.complete(Some(&response)).unwrap().expect("an agreement");
                assert_eq!(agreement.client, accepted.client, "{response}");
                assert_eq!(agreement.server.takes_over, accepted.server.takes_over, "{response}");
                // A server may use a smaller window than it was allowed to.
                assert!(agreement.server.window_bits >= accepted.server.window_bits, "{response}");
            }
            assert_eq!(client.complete(None).unwrap(), None);
            for response in [
                "permessage-bzip2",
                "permessage-deflate; client_max_window_bits",
                "permessage-deflate; client_max_window_bits=8",
                "permessage-deflate; unknown",
                "permessage-deflate, permessage-deflate",
            ] {
                assert!(client.complete(Some(response)).is_err(), "{response}");
            }
        }
        assert!(
            ALONE.complete(Some("permessage-deflate; server_max_window_bits=12")).is_err(),
            "takeover was declined"
        );
        let larger = "permessage-deflate; server_no_context_takeover; server_max_window_bits=13";
        assert!(ALONE.complete(Some(larger)).is_err());
    }
}
