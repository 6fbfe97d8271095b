//! Bounds of the parts of a request, each with its error. Servers and proxies have bounds too; these apply under every
//! host.

use thiserror::Error;

/// Bounds of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes in the target: path and query.
    pub target_bytes_max: usize,
    /// Most headers.
    pub headers_max: usize,
    /// Most bytes in the name of a header.
    pub header_name_bytes_max: usize,
    /// Most bytes in the value of a header.
    pub header_value_bytes_max: usize,
    /// Most bytes in all headers together, names and values.
    pub headers_bytes_max: usize,
    /// Most bytes in a body.
    pub body_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            target_bytes_max: 8192,
            headers_max: 100,
            header_name_bytes_max: 128,
            header_value_bytes_max: 16 * 1024,
            headers_bytes_max: 32 * 1024,
            body_bytes_max: 1024 * 1024,
        }
    }
}

/// A part of a request that exceeds its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LimitError {
    /// The target.
    #[error("path and query may have at most {bytes_max} bytes")]
    Target {
        /// The bound.
        bytes_max: usize,
    },
    /// The number of headers.
    #[error("a request may have at most {headers_max} headers")]
    Headers {
        /// The bound.
        headers_max: usize,
    },
    /// The name of a header.
    #[error("the name of a header may have at most {bytes_max} bytes")]
    HeaderName {
        /// The bound.
        bytes_max: usize,
    },
    /// The value of a header.
    #[error("the value of a header may have at most {bytes_max} bytes")]
    HeaderValue {
        /// The bound.
        bytes_max: usize,
    },
    /// All headers together.
    #[error("all headers together may have at most {bytes_max} bytes")]
    HeadersTotal {
        /// The bound.
        bytes_max: usize,
    },
    /// A header has a control character or an invalid name.
    #[error("a header has a control character or an invalid name")]
    HeaderCharacter,
    /// The body, as announced or as received.
    #[error("a body may have at most {bytes_max} bytes")]
    Body {
        /// The bound.
        bytes_max: u64,
    },
    /// The name of a pipeline.
    #[error("a name has 1 to {NAME_BYTES_MAX} lower-case letters, digits, - and _, and begins with a letter")]
    Name,
}

/// Most bytes in the name of a pipeline.
pub const NAME_BYTES_MAX: usize = 64;

impl Limits {
    /// Checks the head of a request.
    ///
    /// # Errors
    ///
    /// A part exceeds its bound, or a header has a character that would split it in two.
    pub fn check_head<'h>(
        &self,
        target: &str,
        headers: impl IntoIterator<Item = (&'h str, &'h [u8])>,
    ) -> Result<(), LimitError> {
        if target.len() > self.target_bytes_max {
            return Err(LimitError::Target { bytes_max: self.target_bytes_max });
        }
        let (mut count, mut bytes) = (0, 0);
        for (name, value) in headers {
            (count, bytes) = (count + 1, bytes + name.len() + value.len());
            if count > self.headers_max {
                return Err(LimitError::Headers { headers_max: self.headers_max });
            }
            if name.len() > self.header_name_bytes_max {
                return Err(LimitError::HeaderName { bytes_max: self.header_name_bytes_max });
            }
            if value.len() > self.header_value_bytes_max {
                return Err(LimitError::HeaderValue { bytes_max: self.header_value_bytes_max });
            }
            if bytes > self.headers_bytes_max {
                return Err(LimitError::HeadersTotal { bytes_max: self.headers_bytes_max });
            }
            if !is_header_name(name) || value.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)) {
                return Err(LimitError::HeaderCharacter);
            }
        }
        Ok(())
    }

    /// Checks the length of a body: the announced one before it is read, and the received one while it is read.
    ///
    /// # Errors
    ///
    /// It exceeds its bound.
    pub fn check_body(&self, bytes: u64) -> Result<(), LimitError> {
        match bytes > self.body_bytes_max {
            true => Err(LimitError::Body { bytes_max: self.body_bytes_max }),
            false => Ok(()),
        }
    }
}

/// Checks the name of a pipeline, which is part of paths, scopes and metrics.
///
/// # Errors
///
/// The name is invalid.
pub fn check_name(name: &str) -> Result<(), LimitError> {
    let fit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    if begins && name.len() <= NAME_BYTES_MAX && name.bytes().all(fit) { Ok(()) } else { Err(LimitError::Name) }
}

/// A token of RFC 9110, section 5.6.2.
fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits() -> Limits {
        Limits {
            target_bytes_max: 10,
            headers_max: 3,
            header_name_bytes_max: 5,
            header_value_bytes_max: 6,
            headers_bytes_max: 20,
            body_bytes_max: 100,
        }
    }

    fn head(target: &str, headers: &[(&str, &str)]) -> Result<(), LimitError> {
        limits().check_head(target, headers.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    #[test]
    fn each_bound_has_its_error() {
        assert_eq!(head(&"x".repeat(10), &[("abcde", "123456"), ("a", "12"), ("b", "12345")]), Ok(()));
        assert_eq!(head(&"x".repeat(11), &[]), Err(LimitError::Target { bytes_max: 10 }));
        assert_eq!(head("", &[("a", ""); 4]), Err(LimitError::Headers { headers_max: 3 }));
        assert_eq!(head("", &[("abcdef", "")]), Err(LimitError::HeaderName { bytes_max: 5 }));
        assert_eq!(head("", &[("a", "1234567")]), Err(LimitError::HeaderValue { bytes_max: 6 }));
        assert_eq!(head("", &[("abcd", "123456"); 3]), Err(LimitError::HeadersTotal { bytes_max: 20 }));
        for (name, value) in
            [("a", "b\r\nc"), ("a", "\n"), ("a", "\0"), ("a", "\x7f"), ("a b", ""), ("", "x"), ("a:", ""), ("é", "")]
        {
            assert_eq!(head("", &[(name, value)]), Err(LimitError::HeaderCharacter), "{name:?} {value:?}");
        }
        assert_eq!(head("", &[("a", "b\tc é")]), Ok(()));
        assert_eq!(limits().check_body(100), Ok(()));
        assert_eq!(limits().check_body(101), Err(LimitError::Body { bytes_max: 100 }));
    }

    #[test]
    fn names_are_lower_case_words() {
        for name in ["a", "summaries-2_b", &"a".repeat(64)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", "A", "1a", "-a", "a b", "a/b", "..", "é", "a\0", &"a".repeat(65)] {
            assert_eq!(check_name(name), Err(LimitError::Name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn accepted_head_has_no_line_end(name in "\\PC{0,6}", value in prop::collection::vec(any::<u8>(), 0..8)) {
            if limits().check_head("/", [(name.as_str(), value.as_slice())]).is_ok() {
                prop_assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
            }
        }
    }
}
