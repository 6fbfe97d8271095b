//! `X-Request-Id`: the client's id if it is valid, so that it can be logged and returned, else a new one.

/// The header.
pub const HEADER: &str = "x-request-id";
/// Maximum number of characters of a client's id.
pub const CHARACTERS_MAX: usize = 128;

/// True for 1 to 128 visible ASCII characters.
pub fn is_valid(id: &str) -> bool {
    (1..=CHARACTERS_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A UUID of version 4 (RFC 9562, section 5.4) from random bits.
pub fn uuid(random: u128) -> String {
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_ascii_of_bounded_length_is_valid() {
        for id in ["a", "0b1c-..~!\"", &"x".repeat(128)] {
            assert!(is_valid(id), "{id}");
        }
        for id in ["", " ", "a b", "a\n", "é", &"x".repeat(129)] {
            assert!(!is_valid(id), "{id}");
        }
    }

    #[test]
    fn uuid_has_version_4() {
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert!(is_valid(&uuid(7)));
    }
}
