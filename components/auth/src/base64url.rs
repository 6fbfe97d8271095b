//! base64url without padding (RFC 4648, section 5; RFC 7515, appendix C). Each byte string has exactly one text:
//! padding, white space, the other alphabet and stray bits at the end are refused. The duration does not depend on the
//! bytes.

use base64ct::{Base64UrlUnpadded, Encoding as _};

pub(crate) fn encode(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(bytes)
}

pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    Base64UrlUnpadded::decode_vec(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_that_is_not_canonical_is_refused() {
        for text in ["A", "AA==", "AA=", "AB", "+/8", "A A", "AA\n", "\nAA", "AAA\0", "é", "AAAAA", "AAB"] {
            assert_eq!(decode(text), None, "{text:?}");
        }
        for (text, bytes) in [("", &b""[..]), ("AA", b"\0"), ("-_8", b"\xfb\xff"), ("AAAA", b"\0\0\0")] {
            assert_eq!(decode(text).as_deref(), Some(bytes), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn byte_string_has_exactly_one_text(bytes in prop::collection::vec(any::<u8>(), 0..40), text in "[A-Za-z0-9_=+/-]{0,12}") {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
            if let Some(bytes) = decode(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
