//! The media type of a request body by `Content-Type` (RFC 9110, section 8.3).

/// True when a body with this `Content-Type` is read as JSON: `application/json`, or `application/*+json`, in UTF-8.
/// A body without a `Content-Type` is read as JSON too.
pub fn is_json(content_type: Option<&str>) -> bool {
    let Some(value) = content_type else { return true };
    let (essence, utf8) = read(value);
    let structured = essence.strip_prefix("application/").and_then(|subtype| subtype.strip_suffix("+json"));
    utf8 && (essence == "application/json" || structured.is_some_and(|name| !name.is_empty()))
}

/// True when a body with this `Content-Type` is read as NDJSON: `application/x-ndjson` or another name of it, in UTF-8.
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

/// True when a body with this `Content-Type` is captions, WebVTT or SubRip. The format, and whether it is UTF-8 or UTF-16, are detected
/// from the body.
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

/// True when the `charset` begins with a name: `utf-16` includes `utf-16le` and `utf-16be`.
fn has_charset(value: &str, name: &str) -> bool {
    value.split(';').skip(1).any(|parameter| {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.trim().trim_matches('"').to_ascii_lowercase();
        key.trim().eq_ignore_ascii_case("charset") && value.starts_with(name)
    })
}

/// The media type without parameters, in lower case, and whether its charset is UTF-8.
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
    fn json_media_types_in_utf8_are_json() {
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
    fn captions_media_types_are_captions() {
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
    fn plain_text_in_utf8_is_plain() {
        assert!(is_plain(Some("Text/Plain; charset=UTF-8")));
        assert!(!is_plain(Some("text/plain; charset=latin1")));
        assert!(!is_plain(Some("text/html")));
        assert!(!is_plain(None));
    }

    #[test]
    fn ndjson_media_types_in_utf8_are_ndjson() {
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
