//! What a client sends: `Content-Type`, RFC 9110 section 8.3.

/// True when a body with this `Content-Type` is read as JSON: `application/json`, or `application/*+json`, in UTF-8.
/// A body without one is read as JSON too: there is nothing else that it could be.
pub fn is_json(content_type: Option<&str>) -> bool {
    let Some(value) = content_type else { return true };
    let (essence, utf8) = read(value);
    let structured = essence.strip_prefix("application/").and_then(|subtype| subtype.strip_suffix("+json"));
    utf8 && (essence == "application/json" || structured.is_some_and(|name| !name.is_empty()))
}

/// True when a body with this `Content-Type` is read line by line: `application/x-ndjson`, or another name of it, in
/// UTF-8.
pub fn is_ndjson(content_type: Option<&str>) -> bool {
    let Some(value) = content_type else { return false };
    let (essence, utf8) = read(value);
    let names = ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"];
    utf8 && names.contains(&essence.as_str())
}

/// True when a body with this `Content-Type` is plain text in UTF-8.
pub fn is_plain(content_type: Option<&str>) -> bool {
    content_type.map(read).is_some_and(|(essence, utf8)| utf8 && essence == "text/plain")
}

/// True when a body with this `Content-Type` is captions, WebVTT or SubRip; which of them, and whether they are in UTF-8 or UTF-16, the
/// body says.
pub fn is_captions(content_type: Option<&str>) -> bool {
    let Some(value) = content_type else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let names = [
        "text/vtt",
        "application/x-subrip",
        "application/x-srt",
        "application/srt",
        "text/srt",
        "text/x-srt",
        "text/x-subrip",
    ];
    names.contains(&essence.as_str()) && (read(value).1 || has_charset(value, "utf-16"))
}

/// Whether the `charset` begins with a name: `utf-16` is `utf-16le` and `utf-16be` too.
fn has_charset(value: &str, name: &str) -> bool {
    value.split(';').skip(1).any(|parameter| {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.trim().trim_matches('"').to_ascii_lowercase();
        key.trim().eq_ignore_ascii_case("charset") && value.starts_with(name)
    })
}

/// The media type without its parameters, in small letters, and whether its text is in UTF-8.
fn read(value: &str) -> (String, bool) {
    let mut parts = value.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    let utf8 = |parameter: &str| match parameter.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            let value = value.trim().trim_matches('"');
            value.eq_ignore_ascii_case("utf-8") || value.eq_ignore_ascii_case("utf8")
        }
        _ => true,
    };
    (essence, parts.all(utf8))
}

#[cfg(test)]
mod tests {
    use super::{is_captions, is_json, is_ndjson, is_plain};

    #[test]
    fn json_and_its_kin() {
        for (value, want) in [
            (None, true),
            (Some("application/json"), true),
            (Some("Application/JSON; charset=UTF-8"), true),
            (Some("application/json;charset=\"utf8\""), true),
            (Some("application/vnd.acme+json"), true),
            (Some("application/json; charset=latin1"), false),
            (Some("application/+json"), false),
            (Some("application/x-www-form-urlencoded"), false),
            (Some("text/plain"), false),
            (Some("text/json"), false),
            (Some(""), false),
        ] {
            assert_eq!(is_json(value), want, "{value:?}");
        }
    }

    #[test]
    fn captions() {
        for (value, want) in [
            (None, false),
            (Some("text/vtt"), true),
            (Some("Text/VTT; charset=UTF-8"), true),
            (Some("application/x-subrip"), true),
            (Some("text/srt;charset=\"utf-16le\""), true),
            (Some("text/vtt; charset=latin1"), false),
            (Some("text/plain"), false),
        ] {
            assert_eq!(is_captions(value), want, "{value:?}");
        }
    }

    #[test]
    fn plain_text() {
        assert!(is_plain(Some("Text/Plain; charset=UTF-8")));
        assert!(!is_plain(Some("text/plain; charset=latin1")));
        assert!(!is_plain(Some("text/html")));
        assert!(!is_plain(None));
    }

    #[test]
    fn lines_of_json() {
        for (value, want) in [
            (None, false),
            (Some("application/x-ndjson"), true),
            (Some("Application/NDJSON; charset=utf-8"), true),
            (Some("application/jsonl"), true),
            (Some("application/x-ndjson; charset=latin1"), false),
            (Some("application/json"), false),
        ] {
            assert_eq!(is_ndjson(value), want, "{value:?}");
        }
    }
}
