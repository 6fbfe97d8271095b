//! Content negotiation by `Accept` (RFC 9110, section 12.5.1).

use crate::http::framing::Framing;

/// Maximum number of media ranges that are read from one `Accept`; further ranges are ignored.
const RANGES_MAX: usize = 128;

/// One media range with its weight.
#[derive(Debug, Clone, PartialEq)]
struct Range {
    kind: String,
    subtype: String,
    /// Weight in thousandths, 0 to 1000.
    weight: u16,
}

/// The weight of a range without `q`, in thousandths.
const WEIGHT_MAX: u16 = 1000;

/// The specificity of a range that names the media type exactly; 2 is any subtype, 1 any type.
const EXACT: u8 = 3;

/// The framing of a stream of events: the one with the highest weight; at equal weight the one that is named more specifically; else
/// NDJSON. `None` when the client accepts neither.
///
/// `application/json` and other names of NDJSON select NDJSON, since existing clients that read the stream line by line send them.
pub fn framing(accept: Option<&str>) -> Option<Framing> {
    let ndjson =
        [("application", "x-ndjson"), ("application", "ndjson"), ("application", "jsonl"), ("application", "json")];
    choose(accept, &[(Framing::Ndjson, &ndjson), (Framing::Sse, &[("text", "event-stream")])])
}

/// The framing of a subscription: as [`framing`], but with server-sent events as the default.
pub fn subscription(accept: Option<&str>) -> Option<Framing> {
    let ndjson = [("application", "x-ndjson"), ("application", "ndjson"), ("application", "jsonl")];
    choose(accept, &[(Framing::Sse, &[("text", "event-stream")]), (Framing::Ndjson, &ndjson)])
}

/// The form in which the results of a JSON request are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseMode {
    /// One JSON document with all results.
    Json,
    /// A stream of results.
    Stream(Framing),
}

/// The form of the response to a JSON request: one document, unless the client gives a stream a higher weight or names it more
/// specifically. `None` when it accepts neither.
pub fn response_mode(accept: Option<&str>) -> Option<ResponseMode> {
    let ndjson = [("application", "x-ndjson"), ("application", "ndjson"), ("application", "jsonl")];
    let offers: [(ResponseMode, &[(&str, &str)]); 3] = [
        (ResponseMode::Json, &[("application", "json")]),
        (ResponseMode::Stream(Framing::Ndjson), &ndjson),
        (ResponseMode::Stream(Framing::Sse), &[("text", "event-stream")]),
    ];
    choose(accept, &offers)
}

/// True when the client accepts JSON.
pub fn json(accept: Option<&str>) -> bool {
    choose(accept, &[((), &[("application", "json")])]).is_some()
}

/// True when a client prefers HTML to JSON, as a browser does that opens a page. A client that accepts everything receives JSON.
pub fn html(accept: Option<&str>) -> bool {
    choose(accept, &[(false, &[("application", "json")]), (true, &[("text", "html")])]) == Some(true)
}

/// True when a client prefers plain text to JSON; `None` when it accepts neither.
pub fn plain_text(accept: Option<&str>) -> Option<bool> {
    choose(accept, &[(false, &[("application", "json")]), (true, &[("text", "plain")])])
}

/// Chooses one of several offers, each with the media types that select it, the registered one first.
pub(crate) fn choose<T: Copy>(accept: Option<&str>, offers: &[(T, &[(&str, &str)])]) -> Option<T> {
    let ranges = parse(accept.unwrap_or("*/*"));
    // An `Accept` without a valid range is treated as absent.
    if ranges.is_empty() {
        return offers.first().map(|(offer, _)| *offer);
    }
    let mut best: Option<(u16, u8, T)> = None;
    for (offer, names) in offers {
        let Some((weight, fit)) = weigh(&ranges, names) else { continue };
        if weight > 0 && best.is_none_or(|(w, f, _)| (weight, fit) > (w, f)) {
            best = Some((weight, fit, *offer));
        }
    }
    best.map(|(_, _, offer)| offer)
}

/// Weight and specificity of an offer. Its first media type decides if it is named exactly, then any other, then wildcards.
fn weigh(ranges: &[Range], names: &[(&str, &str)]) -> Option<(u16, u8)> {
    let fits = |name: &(&str, &str)| {
        ranges.iter().filter_map(|range| fit(range, *name).map(|fit| (fit, range.weight))).max_by_key(|(fit, _)| *fit)
    };
    let exact = |name: &(&str, &str)| fits(name).filter(|(fit, _)| *fit == EXACT);
    let proper = names.first()?;
    let best = match exact(proper) {
        Some(best) => Some(best),
        None => names.iter().filter_map(exact).max_by_key(|(_, weight)| *weight).or_else(|| fits(proper)),
    };
    best.map(|(fit, weight)| (weight, fit))
}

fn fit(range: &Range, (kind, subtype): (&str, &str)) -> Option<u8> {
    match (range.kind.as_str(), range.subtype.as_str()) {
        ("*", "*") => Some(1),
        (k, "*") if k == kind => Some(2),
        (k, s) if k == kind && s == subtype => Some(EXACT),
        _ => None,
    }
}

/// The valid ranges; invalid ones are skipped. Parameters other than `q` are ignored.
fn parse(accept: &str) -> Vec<Range> {
    split_unquoted(accept, b',').take(RANGES_MAX).filter_map(parse_range).collect()
}

fn parse_range(text: &str) -> Option<Range> {
    let mut parts = split_unquoted(text, b';').map(str::trim);
    let essence = parts.next()?;
    // `*` alone is not a media range of RFC 9110; `java.net.HttpURLConnection` sends it for `*/*`.
    let (kind, subtype) = if essence == "*" { ("*", "*") } else { essence.split_once('/')? };
    let (kind, subtype) = (kind.trim().to_ascii_lowercase(), subtype.trim().to_ascii_lowercase());
    if kind.is_empty() || subtype.is_empty() {
        return None;
    }
    let weight = parts.filter_map(|parameter| parameter.split_once('=')).find(|(name, _)| is_weight(name));
    let weight = weight.and_then(|(_, value)| parse_weight(value)).unwrap_or(WEIGHT_MAX);
    Some(Range { kind, subtype, weight })
}

fn is_weight(name: &str) -> bool {
    name.trim().eq_ignore_ascii_case("q")
}

/// Parses a weight, in thousandths. RFC 9110 allows 0 to 1 with up to three decimals; clients also send `.2`, quotes, more decimals and
/// values above 1. `None` for text that is not a number: such a weight is ignored.
fn parse_weight(text: &str) -> Option<u16> {
    let text = text.trim().trim_matches('"').trim();
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && decimals.is_empty()) || !is_number(whole) || !is_number(decimals) {
        return None;
    }
    if whole.bytes().any(|digit| digit != b'0') {
        return Some(WEIGHT_MAX);
    }
    let digits = decimals.bytes().chain(std::iter::repeat(b'0')).take(3);
    let thousandths = digits.fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    // Every weight above 0 accepts the range.
    let positive = decimals.bytes().any(|digit| digit != b'0');
    Some(if positive { thousandths.max(1) } else { 0 })
}

/// The parts of a list between separators that are not in a quoted string (RFC 9110, section 5.6.4).
fn split_unquoted(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (mut quoted, mut escaped) = (false, false);
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                byte if byte == separator && !quoted => {
                    rest = Some(&text[at + 1..]);
                    return Some(&text[..at]);
                }
                _ => {}
            }
        }
        // An unterminated quoted string would extend to the end of the list, so its quote is treated as an ordinary character.
        if quoted && let Some((part, after)) = text.split_once(char::from(separator)) {
            rest = Some(after);
            return Some(part);
        }
        rest = None;
        Some(text)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn framing_follows_weight_then_specificity() {
        use Framing::{Ndjson, Sse};
        for (accept, want) in [
            (None, Some(Ndjson)),
            (Some(""), Some(Ndjson)),
            (Some("*/*"), Some(Ndjson)),
            (Some("application/json"), Some(Ndjson)),
            (Some("application/x-ndjson"), Some(Ndjson)),
            (Some("application/*"), Some(Ndjson)),
            (Some("text/event-stream"), Some(Sse)),
            (Some("Text/Event-Stream; charset=utf-8"), Some(Sse)),
            (Some("text/*"), Some(Sse)),
            (Some("text/event-stream, */*"), Some(Sse)),
            (Some("text/event-stream, */*;q=0.1"), Some(Sse)),
            (Some("application/json, text/plain, */*"), Some(Ndjson)),
            (Some("application/x-ndjson;q=0.5, text/event-stream;q=0.9"), Some(Sse)),
            (Some("application/x-ndjson;q=0.9, text/event-stream;q=0.5"), Some(Ndjson)),
            (Some("application/x-ndjson, text/event-stream"), Some(Ndjson)),
            (Some("application/x-ndjson;q=0, */*"), Some(Sse)),
            (Some("text/event-stream;q=0, */*;q=0.2"), Some(Ndjson)),
            (Some("application/json;q=0.3, text/event-stream;q=0.299"), Some(Ndjson)),
            (Some("text/html"), None),
            (Some("text/html, image/*"), None),
            (Some("*/*;q=0"), None),
            (Some("text/event-stream;q=0"), None),
            (Some("text/event-stream;q=2, application/json"), Some(Ndjson)),
            (Some("nonsense"), Some(Ndjson)),
        ] {
            assert_eq!(framing(accept), want, "{accept:?}");
        }
    }

    #[test]
    fn response_mode_of_a_json_request_follows_accept() {
        use Framing::{Ndjson, Sse};
        for (accept, want) in [
            (None, Some(ResponseMode::Json)),
            (Some("*/*"), Some(ResponseMode::Json)),
            (Some("application/*"), Some(ResponseMode::Json)),
            (Some("application/json, application/x-ndjson"), Some(ResponseMode::Json)),
            (Some("application/x-ndjson"), Some(ResponseMode::Stream(Ndjson))),
            (Some("application/jsonl, */*"), Some(ResponseMode::Stream(Ndjson))),
            (Some("text/event-stream"), Some(ResponseMode::Stream(Sse))),
            (Some("application/json;q=0.5, text/event-stream"), Some(ResponseMode::Stream(Sse))),
            (Some("image/png"), None),
        ] {
            assert_eq!(response_mode(accept), want, "{accept:?}");
        }
    }

    #[test]
    fn json_is_accepted_unless_its_weight_is_zero() {
        assert!(json(None));
        assert!(json(Some("application/*")));
        assert!(json(Some("text/html, */*;q=0.001")));
        assert!(!json(Some("text/event-stream")));
        assert!(!json(Some("application/json;q=0, */*")));
    }

    /// The default of `java.net.HttpURLConnection`, and what browsers and libraries send.
    #[test]
    fn accept_of_real_clients_is_accepted_by_every_reader() {
        const CLIENTS: [&str; 14] = [
            "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
            "*/*;q=.8",
            "*",
            "*;q=0.5",
            " */* ; q = 0.8 ",
            "*/*; q=\"0.8\"",
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
            "application/json, text/javascript, */*; q=0.01",
            "image/png,*/*;q=0.0001",
            "text/plain;title=\"a, b;q=0\", */*",
            "text/plain;title=\"no end, */*",
            ", ,*/*,",
            "*/*;q=abc",
            "application/json;q=x, application/x-ndjson;q=, text/event-stream;q=-1, text/plain;q=2",
        ];
        for accept in CLIENTS {
            assert!(framing(Some(accept)).is_some(), "{accept}");
            assert!(subscription(Some(accept)).is_some(), "{accept}");
            assert!(response_mode(Some(accept)).is_some(), "{accept}");
            assert!(json(Some(accept)), "{accept}");
            assert!(plain_text(Some(accept)).is_some(), "{accept}");
        }
    }

    #[test]
    fn wildcard_after_many_ranges_is_read() {
        let accept = format!("{}*/*;q=0.1", "image/x;q=0.9, ".repeat(100));
        assert_eq!(framing(Some(&accept)), Some(Framing::Ndjson));
    }

    #[test]
    fn quoted_separator_does_not_end_a_range() {
        assert_eq!(framing(Some(r#"text/event-stream;a="x,*/*;q=1", application/json;q=0.5"#)), Some(Framing::Sse));
        assert_eq!(framing(Some(r#"text/event-stream;a="\",";q=0.1, application/json;q=0.5"#)), Some(Framing::Ndjson));
        assert_eq!(framing(Some(r#"image/png;a="application/json""#)), None);
    }

    #[test]
    fn zero_weight_refuses_in_every_notation() {
        for accept in ["*;q=0", "*/*;q=.0", "*/*;Q=\"0\"", "*/*; q = 0.000", "*/*;q=00", "*/*;q=0;q=1"] {
            assert_eq!(framing(Some(accept)), None, "{accept}");
            assert!(!json(Some(accept)), "{accept}");
        }
    }

    #[test]
    fn weight_is_parsed_in_every_notation_of_real_clients() {
        for (text, want) in [
            ("1", Some(1000)),
            ("1.000", Some(1000)),
            ("0.5", Some(500)),
            ("0.05", Some(50)),
            ("0.", Some(0)),
            (".2", Some(200)),
            ("1.001", Some(1000)),
            ("7", Some(1000)),
            ("0.1234", Some(123)),
            ("0.0004", Some(1)),
            (" \"0.3\" ", Some(300)),
            ("00.5", Some(500)),
            ("-1", None),
            (".", None),
            ("", None),
            ("0.+1", None),
            ("1e3", None),
        ] {
            assert_eq!(parse_weight(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn trailing_wildcard_is_never_refused(ranges in prop::collection::vec("[ -~]{0,12}", 0..8)) {
            let ranges: Vec<String> = ranges.into_iter().filter(|range| !range.contains(['"', '0'])).collect();
            let accept = format!("{},*/*", ranges.join(","));
            prop_assert!(framing(Some(&accept)).is_some(), "{}", accept);
        }

        #[test]
        fn arbitrary_accept_does_not_panic(accept in "[a-z*/;,=q.0-9\" \\\\]{0,40}") {
            let _ = (framing(Some(&accept)), response_mode(Some(&accept)), plain_text(Some(&accept)));
        }
    }

    #[test]
    fn html_is_for_clients_that_weigh_it_above_json() {
        let chromium = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8";
        for accept in [chromium, "text/html", "text/*", "text/html, application/json;q=0.9"] {
            assert!(html(Some(accept)), "{accept}");
        }
        for accept in ["*/*", "application/json", "text/html;q=0.5, application/json", "text/html;q=0", "", "image/png"]
        {
            assert!(!html(Some(accept)), "{accept}");
        }
        assert!(!html(None));
    }
}
