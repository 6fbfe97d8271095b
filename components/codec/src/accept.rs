//! What a client accepts: `Accept`, RFC 9110 section 12.5.1.

use crate::frame::Framing;

/// Most media ranges that are read from one `Accept`; the rest is ignored.
const RANGES_MAX: usize = 32;

/// One media range with its weight.
#[derive(Debug, Clone, PartialEq)]
struct Range {
    kind: String,
    subtype: String,
    /// Weight in thousandths, 0 to 1000.
    weight: u16,
}

/// How well a range fits a media type: exact, all subtypes, everything.
const EXACT: u8 = 3;

/// The framing of a stream of events: the one the client weighs highest; of those that weigh the same the one that
/// it names more exactly; NDJSON when that says nothing either. None when it accepts neither.
///
/// `application/json` and other names of line-wise JSON select NDJSON: clients that have always read the stream line
/// by line send it.
pub fn framing(accept: Option<&str>) -> Option<Framing> {
    let ndjson =
        [("application", "x-ndjson"), ("application", "ndjson"), ("application", "jsonl"), ("application", "json")];
    choose(accept, &[(Framing::Ndjson, &ndjson), (Framing::Sse, &[("text", "event-stream")])])
}

/// The framing of a subscription: as [`framing`], but server-sent events where the client does not care.
pub fn subscription(accept: Option<&str>) -> Option<Framing> {
    let ndjson = [("application", "x-ndjson"), ("application", "ndjson"), ("application", "jsonl")];
    choose(accept, &[(Framing::Sse, &[("text", "event-stream")]), (Framing::Ndjson, &ndjson)])
}

/// How the results of a JSON request are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// All at once.
    Json,
    /// One by one.
    Stream(Framing),
}

/// How the results of a JSON request are sent: all at once, unless the client weighs a stream higher or names one
/// more exactly. None when it accepts neither.
pub fn answer(accept: Option<&str>) -> Option<Answer> {
    let ndjson = [("application", "x-ndjson"), ("application", "ndjson"), ("application", "jsonl")];
    let offers: [(Answer, &[(&str, &str)]); 3] = [
        (Answer::Json, &[("application", "json")]),
        (Answer::Stream(Framing::Ndjson), &ndjson),
        (Answer::Stream(Framing::Sse), &[("text", "event-stream")]),
    ];
    choose(accept, &offers)
}

/// True when the client takes JSON.
pub fn json(accept: Option<&str>) -> bool {
    choose(accept, &[((), &[("application", "json")])]).is_some()
}

/// Whether an answer that is JSON or plain text is to be text.
pub fn plain_text(accept: Option<&str>) -> Option<bool> {
    choose(accept, &[(false, &[("application", "json")]), (true, &[("text", "plain")])])
}

/// Chooses among offers, each with the media types that name it, the proper one first.
fn choose<T: Copy>(accept: Option<&str>, offers: &[(T, &[(&str, &str)])]) -> Option<T> {
    let ranges = parse(accept.unwrap_or("*/*"));
    // An `Accept` that says nothing readable is treated as absent.
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

/// Weight and fit of an offer. Its proper name decides if it is named exactly, then any other name, then wildcards.
fn weigh(ranges: &[Range], names: &[(&str, &str)]) -> Option<(u16, u8)> {
    let fits = |name: &(&str, &str)| {
        ranges.iter().filter_map(|range| fit(range, *name).map(|fit| (fit, range.weight))).max_by_key(|(fit, _)| *fit)
    };
    let exact = |name: &(&str, &str)| fits(name).filter(|(fit, _)| *fit == EXACT);
    let proper = names.first()?;
    let found = match exact(proper) {
        Some(found) => Some(found),
        None => names.iter().filter_map(exact).max_by_key(|(_, weight)| *weight).or_else(|| fits(proper)),
    };
    found.map(|(fit, weight)| (weight, fit))
}

fn fit(range: &Range, (kind, subtype): (&str, &str)) -> Option<u8> {
    match (range.kind.as_str(), range.subtype.as_str()) {
        ("*", "*") => Some(1),
        (k, "*") if k == kind => Some(2),
        (k, s) if k == kind && s == subtype => Some(EXACT),
        _ => None,
    }
}

/// The ranges that can be read; what cannot is skipped. Parameters other than `q` do not matter to us.
fn parse(accept: &str) -> Vec<Range> {
    accept.split(',').take(RANGES_MAX).filter_map(parse_range).collect()
}

fn parse_range(text: &str) -> Option<Range> {
    let mut parts = text.split(';').map(str::trim);
    let (kind, subtype) = parts.next()?.split_once('/')?;
    let mut weight = 1000;
    for parameter in parts {
        if let Some((name, value)) = parameter.split_once('=')
            && name.trim().eq_ignore_ascii_case("q")
        {
            weight = parse_weight(value.trim())?;
        }
    }
    let (kind, subtype) = (kind.trim().to_ascii_lowercase(), subtype.trim().to_ascii_lowercase());
    (!kind.is_empty() && !subtype.is_empty()).then_some(Range { kind, subtype, weight })
}

/// `0`, `1`, or with at most three decimals, at most 1.
fn parse_weight(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !matches!(whole, "0" | "1") || decimals.len() > 3 || !digits(decimals) {
        return None;
    }
    let thousandths = format!("{whole}{decimals:0<3}").parse::<u16>().ok()?;
    (thousandths <= 1000).then_some(thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framings() {
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
    fn answers_of_a_json_request() {
        use Framing::{Ndjson, Sse};
        for (accept, want) in [
            (None, Some(Answer::Json)),
            (Some("*/*"), Some(Answer::Json)),
            (Some("application/*"), Some(Answer::Json)),
            (Some("application/json, application/x-ndjson"), Some(Answer::Json)),
            (Some("application/x-ndjson"), Some(Answer::Stream(Ndjson))),
            (Some("application/jsonl, */*"), Some(Answer::Stream(Ndjson))),
            (Some("text/event-stream"), Some(Answer::Stream(Sse))),
            (Some("application/json;q=0.5, text/event-stream"), Some(Answer::Stream(Sse))),
            (Some("image/png"), None),
        ] {
            assert_eq!(answer(accept), want, "{accept:?}");
        }
    }

    #[test]
    fn json_or_nothing() {
        assert!(json(None));
        assert!(json(Some("application/*")));
        assert!(json(Some("text/html, */*;q=0.001")));
        assert!(!json(Some("text/event-stream")));
        assert!(!json(Some("application/json;q=0, */*")));
    }

    #[test]
    fn weights() {
        for (text, want) in [
            ("1", Some(1000)),
            ("1.000", Some(1000)),
            ("0.5", Some(500)),
            ("0.05", Some(50)),
            ("0.", Some(0)),
            ("1.001", None),
            ("0.1234", None),
            ("-1", None),
            (".5", None),
            ("", None),
            ("0.+1", None),
        ] {
            assert_eq!(parse_weight(text), want, "{text}");
        }
    }
}
