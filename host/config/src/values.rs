//! Checks of values that their type does not cover: the address to listen on, and the log level.

use std::net::{IpAddr, SocketAddr};

use crate::suggest::suggest;

/// The port of [`crate::Http::default`], for examples.
const EXAMPLE: &str = "127.0.0.1:8080";

/// Completes an address to listen on: a port alone, `8081` or `:8081`, is a port of the loopback address.
///
/// # Errors
///
/// A message about an invalid address.
pub(crate) fn listen(text: &str) -> Result<String, String> {
    let error = |what: String| Err(format!("cannot listen on {text}: {what}"));
    let port = text.strip_prefix(':').unwrap_or(text);
    if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
        return match port.parse::<u16>() {
            Ok(port) => Ok(format!("127.0.0.1:{port}")),
            Err(_) => error(format!("http.listen (--listen) has the port {port}, and ports are 0 to {}", u16::MAX)),
        };
    }
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    if let Some((_, rest)) = text.split_once("://") {
        let rest = rest.trim_end_matches('/');
        return error(format!("http.listen (--listen) takes no scheme; did you mean `{rest}`?"));
    }
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let example = SocketAddr::new(address, 8080);
        return error(format!("http.listen (--listen) needs a port; did you mean `{example}`?"));
    }
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|char| char.is_alphanumeric() || matches!(char, '.' | '-' | '_'))
    };
    match text.rsplit_once(':') {
        Some((host, port)) if is_name(host) && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => error(format!(
            "http.listen (--listen) must be ADDRESS:PORT, such as {EXAMPLE}, or a port alone, such as 8080"
        )),
    }
}

/// The levels, the least verbose first.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks `log.level`: a level, or directives separated by commas. Without this check a mistyped level would be the
/// name of a target, and nothing would be logged.
///
/// # Errors
///
/// A message about the first invalid directive.
pub(crate) fn check_log_level(text: &str) -> Result<(), String> {
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    // Filters by span, `target[span{field=value}]=level`, may contain commas and other separators.
    if text.contains('[') {
        return Ok(());
    }
    for directive in text.split(',').map(str::trim) {
        let (target, level) = directive.rsplit_once('=').unwrap_or(("weir", directive));
        let is_target = !target.is_empty() && target.chars().all(|c| c.is_ascii_alphanumeric() || "_:-.".contains(c));
        if is_target && is_level(level) {
            continue;
        }
        let word = if is_target { level } else { directive };
        let suggestion = suggest(word, LEVELS.into_iter()).map(|level| format!(" did you mean `{level}`?"));
        let suggestion = suggestion.unwrap_or_default();
        return Err(format!(
            "log.level `{word}` is not a level: use error, warn, info, debug, trace or off, or TARGET=LEVEL, such as \
             `info,weir_edge=debug`{suggestion}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[test]
    fn port_without_address_is_completed_with_loopback() {
        for (text, want) in [
            ("8081", "127.0.0.1:8081"),
            (":8081", "127.0.0.1:8081"),
            ("0", "127.0.0.1:0"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:80", "[::1]:80"),
            ("localhost:80", "localhost:80"),
            ("my-host.example:80", "my-host.example:80"),
        ] {
            assert_eq!(listen(text).as_deref(), Ok(want));
        }
    }

    #[test]
    fn invalid_address_is_refused_with_the_remedy() {
        let check = |text: &str, expect: Expect| expect.assert_eq(&listen(text).unwrap_err());
        check(
            "nonsense",
            expect![
                "cannot listen on nonsense: http.listen (--listen) must be ADDRESS:PORT, such as 127.0.0.1:8080, or a port alone, such as 8080"
            ],
        );
        check(
            "70000",
            expect!["cannot listen on 70000: http.listen (--listen) has the port 70000, and ports are 0 to 65535"],
        );
        check(
            "0.0.0.0",
            expect!["cannot listen on 0.0.0.0: http.listen (--listen) needs a port; did you mean `0.0.0.0:8080`?"],
        );
        check("::1", expect!["cannot listen on ::1: http.listen (--listen) needs a port; did you mean `[::1]:8080`?"]);
        check(
            "http://localhost:80/",
            expect![
                "cannot listen on http://localhost:80/: http.listen (--listen) takes no scheme; did you mean `localhost:80`?"
            ],
        );
        for text in ["", ":", "host", "host:", "host:x", "a b:1", "host:70000", "*:80", "-1"] {
            assert!(listen(text).unwrap_err().starts_with("cannot listen on "), "{text}");
        }
    }

    #[test]
    fn levels_and_directives_are_accepted_and_other_words_refused() {
        for text in
            ["info", "INFO", "off", "weir_edge=debug", "info, weir_edge=debug", "warn,h2::codec=trace", "[span]=info"]
        {
            assert_eq!(check_log_level(text), Ok(()), "{text}");
        }
        for text in ["loud", "", "info,", "info,loud", "weir_edge=loud", "weir_edge", "=info", "!!", "verbose", "2"] {
            assert!(check_log_level(text).unwrap_err().starts_with("log.level `"), "{text}");
        }
        expect!["log.level `warning` is not a level: use error, warn, info, debug, trace or off, or TARGET=LEVEL, such as `info,weir_edge=debug`"]
            .assert_eq(&check_log_level("info,warning").unwrap_err());
        assert!(check_log_level("infos").unwrap_err().ends_with("did you mean `info`?"));
    }
}
