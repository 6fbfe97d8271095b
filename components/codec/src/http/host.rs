//! The host that a request is for: `Host` and `:authority` (RFC 9112, section 3.2; RFC 9113, section 8.3.1), and the names that a
//! server without authentication answers to.
//!
//! A server on a loopback address is reached by every page that a browser of this machine shows: a page of `evil.example` makes
//! its own name resolve to 127.0.0.1 (DNS rebinding), and is of the same origin then. Only the name in `Host` gives it away.

use std::net::{Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use crate::http::problem::Problem;

/// Maximum number of names in the list.
pub const NAMES_MAX: usize = 64;
/// Maximum number of bytes in a name (RFC 1035, section 2.3.4).
pub const NAME_BYTES_MAX: usize = 255;

/// Why the host of a request cannot be known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostError {
    /// HTTP/1.1 without `Host`, HTTP/2 without `:authority`.
    #[error("the request has no `Host`; HTTP/1.1 and HTTP/2 require one")]
    Missing,
    /// Two `Host` headers, even of the same value.
    #[error("the request has {0} `Host` headers; it may have one")]
    Several(usize),
    /// It is no host with an optional port.
    #[error("`Host` is `{0}`, which is not a host name or address with an optional port")]
    Invalid(Box<str>),
    /// The target names one host, the header another.
    #[error(
        "the target of the request names the host `{target}` and its `Host` header names `{header}`; they must be the same"
    )]
    Differ {
        /// `:authority`, or the authority of an absolute target.
        target: Box<str>,
        /// `Host`
        header: Box<str>,
    },
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        Self::refused(400, "invalid_host", "The host of the request is not valid", error.to_string(), None)
    }
}

/// The host of a request, with its port if it has one. `authority` is that of the target (`:authority`), `headers` are all values of
/// `Host`. `required` is false for HTTP/1.0, where a request may have none.
///
/// # Errors
///
/// See [`HostError`]: nothing is guessed when a request could be read in two ways.
pub fn of_request<'h>(
    authority: Option<&'h str>,
    headers: impl IntoIterator<Item = &'h [u8]>,
    required: bool,
) -> Result<Option<&'h str>, HostError> {
    let mut headers = headers.into_iter();
    let header = headers.next();
    let more = headers.count();
    if more > 0 {
        return Err(HostError::Several(more + 1));
    }
    let header = match header {
        None => None,
        Some(value) => match std::str::from_utf8(value).map(|text| text.trim_matches([' ', '\t'])) {
            Ok(text) if is_host(text) => Some(text),
            _ => return Err(HostError::Invalid(quote(&String::from_utf8_lossy(value)))),
        },
    };
    if let Some(authority) = authority
        && !is_host(authority)
    {
        return Err(HostError::Invalid(quote(authority)));
    }
    match (authority, header) {
        (Some(target), Some(header)) if !is_same(target, header) => {
            Err(HostError::Differ { target: quote(target), header: quote(header) })
        }
        (None, None) if required => Err(HostError::Missing),
        (authority, header) => Ok(authority.or(header)),
    }
}

/// The names that requests may be for on a server that requires no token: `localhost`, loopback addresses, and these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNames {
    names: Vec<String>,
    any: bool,
}

/// A list of names that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostNamesError {
    /// It is no name.
    #[error(
        "`{0}` is not a host name or address; write it without scheme, port and path, such as `weir.internal`, or `*`"
    )]
    Name(Box<str>),
    /// There are too many.
    #[error("there are {0} names; at most {NAMES_MAX} are allowed")]
    TooMany(usize),
}

/// A request for a host that is not this server's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{host}` is not a name of this server; without authentication it answers to `localhost`, to loopback addresses and to the names in http.hosts (WEIR_HTTP_HOSTS)"
)]
pub struct HostRefused {
    /// The host that the request is for.
    pub host: Box<str>,
}

impl From<HostRefused> for Problem {
    fn from(error: HostRefused) -> Self {
        Self::refused(403, "host_not_allowed", "Not allowed", error.to_string(), None)
    }
}

impl HostNames {
    /// A list of names and addresses without ports; `*` allows every name.
    ///
    /// # Errors
    ///
    /// See [`HostNamesError`].
    pub fn new(names: &[&str]) -> Result<Self, HostNamesError> {
        if names.len() > NAMES_MAX {
            return Err(HostNamesError::TooMany(names.len()));
        }
        let named = names.iter().filter(|name| **name != "*");
        let list = named.map(|name| match is_host(name) && without_port(name) == *name && !name.contains('*') {
            true => Ok(comparable(name)),
            false => Err(HostNamesError::Name(quote(name))),
        });
        Ok(Self { names: list.collect::<Result<_, _>>()?, any: names.contains(&"*") })
    }

    /// True without a name besides those of loopback.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.any
    }

    /// Checks the host of a request, with or without a port. A request without one (HTTP/1.0) is from no browser.
    ///
    /// # Errors
    ///
    /// The host is neither a loopback name nor in the list.
    pub fn check(&self, host: Option<&str>) -> Result<(), HostRefused> {
        match host {
            Some(host) if !self.any && !is_loopback(host) && !self.names.contains(&comparable(without_port(host))) => {
                Err(HostRefused { host: quote(host) })
            }
            _ => Ok(()),
        }
    }
}

/// Whether a host, with or without a port, is one of this machine's own names or addresses.
pub fn is_loopback(host: &str) -> bool {
    if !is_host(host) {
        return false;
    }
    let name = comparable(without_port(host));
    if let Some(address) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok_and(|address| address.to_canonical().is_loopback());
    }
    let address = name.parse::<Ipv4Addr>();
    name == "localhost" || name.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// A name as names are compared: in small letters, without the dot of the root.
fn comparable(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Whether two hosts are the same, the default ports of HTTP left out.
fn is_same(one: &str, other: &str) -> bool {
    let port = |host: &str| match host.strip_prefix(without_port(host)) {
        Some("" | ":" | ":80" | ":443") | None => String::new(),
        Some(port) => port.to_owned(),
    };
    comparable(without_port(one)) == comparable(without_port(other)) && port(one) == port(other)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// Whether a text is a host with an optional port (RFC 3986, section 3.2.2), without the user that an authority may have.
fn is_host(text: &str) -> bool {
    let name = without_port(text);
    let port_fits = text.len() - name.len() <= ":65535".len();
    let name_fits = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte);
            !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(fits)
        }
    };
    name_fits && port_fits
}

fn quote(text: &str) -> Box<str> {
    text.chars().filter(|c| !c.is_control()).take(NAME_BYTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(authority: Option<&str>, headers: &[&str], required: bool) -> Result<Option<String>, HostError> {
        let found = of_request(authority, headers.iter().map(|value| value.as_bytes()), required);
        found.map(|host| host.map(str::to_owned))
    }

    #[test]
    fn request_with_one_host_has_it() {
        let some = |host: &str| Ok(Some(host.to_owned()));
        assert_eq!(of(None, &["localhost:8080"], true), some("localhost:8080"));
        assert_eq!(of(None, &["\t[::1]:8080 "], true), some("[::1]:8080"));
        assert_eq!(of(Some("a.example"), &[], true), some("a.example"));
        assert_eq!(of(Some("A.example:80"), &["a.example"], true), some("A.example:80"));
        assert_eq!(of(Some("a.example"), &["a.example."], true), some("a.example"));
        assert_eq!(of(None, &[], false), Ok(None));
    }

    #[test]
    fn request_with_no_host_or_several_is_refused() {
        assert_eq!(of(None, &[], true), Err(HostError::Missing));
        assert_eq!(of(None, &["localhost", "localhost"], true), Err(HostError::Several(2)));
        assert_eq!(of(Some("localhost"), &["localhost", "evil.example"], false), Err(HostError::Several(2)));
        for (target, header) in [
            ("localhost", "evil.example"),
            ("localhost:8080", "localhost:8081"),
            ("localhost:8080", "localhost"),
            ("[::1]", "localhost"),
        ] {
            let differ = HostError::Differ { target: target.into(), header: header.into() };
            assert_eq!(of(Some(target), &[header], true), Err(differ));
        }
        for bad in [
            "",
            " ",
            "a b",
            "a/b",
            "user@localhost",
            "localhost:8080:80",
            "localhost:http",
            "localhost:123456",
            "::1",
            "[::1",
            "[::1]x",
            "[localhost]",
            "a\\b",
            "localhost, evil.example,",
            "é",
            "http://localhost",
            "localhost#",
            "a?b",
        ] {
            // The list is no host because of its space, whatever else it is.
            assert!(matches!(of(None, &[bad], true), Err(HostError::Invalid(_))), "{bad}");
            if !bad.is_empty() {
                assert!(matches!(of(Some(bad), &[], true), Err(HostError::Invalid(_))), "{bad}");
            }
        }
    }

    #[test]
    fn loopback_names_and_addresses_are_this_machine() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "a.localhost",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]",
            "[::1]:80",
            "[0:0:0:0:0:0:0:1]:80",
            "[::ffff:127.0.0.1]",
            "localhost:",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "0.0.0.0",
            "10.0.0.1:80",
            "[::]",
            "[::1]x",
            "localhost:x",
            "localhost:80:80",
            "127.0.0.1@example.org",
            "xlocalhost",
            "localhost..",
            "[::ffff:10.0.0.1]",
            "2130706433",
            "0x7f.1",
            "[::1%25lo]",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn hosts_in_the_list_are_allowed_besides_loopback() {
        let names = HostNames::new(&["weir.internal", "10.0.0.7", "[fd00::1]"]).unwrap();
        for host in ["weir.internal", "WEIR.internal.:8080", "10.0.0.7:80", "[fd00::1]:80", "localhost", "127.0.0.1:80"]
        {
            assert_eq!(names.check(Some(host)), Ok(()), "{host}");
        }
        assert_eq!(names.check(None), Ok(()));
        for host in ["evil.example", "a.weir.internal", "weir.internal.evil.example", "10.0.0.70", "weir.internal:x"] {
            assert_eq!(names.check(Some(host)), Err(HostRefused { host: host.into() }));
        }
        assert_eq!(HostNames::new(&["*"]).unwrap().check(Some("evil.example")), Ok(()));
        assert!(HostNames::default().check(Some("evil.example")).is_err());
        for name in ["", "weir.internal:8080", "http://weir.internal", "weir.internal/", "a b", "*.example", "::1"] {
            assert_eq!(HostNames::new(&[name]), Err(HostNamesError::Name(name.into())), "{name}");
        }
        assert_eq!(HostNames::new(&["a"; 65]), Err(HostNamesError::TooMany(65)));
    }

    proptest! {
        #[test]
        fn arbitrary_host_does_not_panic(host in "\\PC{0,20}", other in "[a-z:.\\[\\]0-9@,]{0,20}") {
            let _ = of(Some(&host), &[&other], true);
            let _ = (is_loopback(&host), is_loopback(&other), HostNames::default().check(Some(&other)));
        }

        #[test]
        fn names_that_end_otherwise_are_no_loopback(prefix in "(localhost|127\\.0\\.0\\.1|\\[::1\\])", rest in "[.@:a-z]{1,10}\\.example") {
            let host = format!("{prefix}{rest}");
            prop_assert!(!is_loopback(&host), "{}", host);
        }
    }
}
