//! The host of a request: `Host` and `:authority` (RFC 9112, section 3.2; RFC 9113, section 8.3.1), and the names that a server without
//! authentication accepts.
//!
//! Every page in a browser of this machine can reach a server on a loopback address: a page of `evil.example` lets its own name resolve
//! to 127.0.0.1 (DNS rebinding), and is of the same origin then. Only the name in `Host` reveals it.

use std::net::{Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use crate::http::problem::Problem;

/// Maximum number of names in the list.
pub const NAMES_MAX: usize = 64;
/// Maximum number of bytes in a name (RFC 1035, section 2.3.4).
pub const NAME_BYTES_MAX: usize = 255;

/// Why the host of a request is missing, ambiguous or invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostError {
    /// HTTP/1.1 without `Host`, HTTP/2 without `:authority`.
    #[error("the request has no `Host`; HTTP/1.1 and HTTP/2 require one")]
    Missing,
    /// Two `Host` headers, even of the same value.
    #[error("the request has {0} `Host` headers; it may have one")]
    Several(usize),
    /// The value is not a host with an optional port.
    #[error("`Host` is `{0}`, which is not a host name or address with an optional port")]
    Invalid(Box<str>),
    /// The target and the header name different hosts.
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

/// The host of a request, with its port if it has one. `authority` is the authority of the target (`:authority`), `headers` are all
/// values of `Host`. `required` is false for HTTP/1.0, in which the host is optional.
///
/// # Errors
///
/// See [`HostError`]: an ambiguous request is refused.
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

/// The host names that a server without authentication accepts: `localhost`, loopback addresses, and the names of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNames {
    names: Vec<String>,
    any: bool,
}

/// Why a list of names is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostNamesError {
    /// An entry is not a name.
    #[error(
        "`{0}` is not a host name or address; write it without scheme, port and path, such as `weir.internal`, or `*`"
    )]
    Name(Box<str>),
    /// There are too many names.
    #[error("there are {0} names; at most {NAMES_MAX} are allowed")]
    TooMany(usize),
}

/// The host of a request is not a name of this server.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{host}` is not a name of this server; without authentication it answers to `localhost`, to loopback addresses and to the names in http.hosts (WEIR_HTTP_HOSTS)"
)]
pub struct HostRefused {
    /// The host of the request.
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
        let hosts = names.iter().filter(|name| **name != "*");
        let list = hosts.map(|name| match is_host(name) && without_port(name) == *name && !name.contains('*') {
            true => Ok(comparable(name)),
            false => Err(HostNamesError::Name(quote(name))),
        });
        Ok(Self { names: list.collect::<Result<_, _>>()?, any: names.contains(&"*") })
    }

    /// True when only loopback names are accepted.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.any
    }

    /// Checks the host of a request, with or without a port. A request without a host (HTTP/1.0) is accepted: it is not from a browser.
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

/// True when a host, with or without a port, is a loopback name or address.
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

/// A name in the form in which names are compared: in lower case, without a trailing dot.
fn comparable(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// True when two hosts are the same; the default ports of HTTP count as absent.
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

/// True for a host with an optional port (RFC 3986, section 3.2.2), without user information.
fn is_host(text: &str) -> bool {
    let name = without_port(text);
    let is_port = text.len() - name.len() <= ":65535".len();
    let is_name = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte);
            !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_allowed)
        }
    };
    is_name && is_port
}

fn quote(text: &str) -> Box<str> {
    text.chars().filter(|c| !c.is_control()).take(NAME_BYTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(authority: Option<&str>, headers: &[&str], required: bool) -> Result<Option<String>, HostError> {
        let host = of_request(authority, headers.iter().map(|value| value.as_bytes()), required);
        host.map(|host| host.map(str::to_owned))
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
        fn name_with_another_suffix_is_not_loopback(prefix in "(localhost|127\\.0\\.0\\.1|\\[::1\\])", rest in "[.@:a-z]{1,10}\\.example") {
            let host = format!("{prefix}{rest}");
            prop_assert!(!is_loopback(&host), "{}", host);
        }
    }
}
