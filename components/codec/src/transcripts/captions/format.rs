//! The formats of captions.

/// The formats of captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Captions {
    /// SubRip.
    Srt,
    /// WebVTT.
    WebVtt,
}

impl Captions {
    /// The format of a text: WebVTT if it begins with `WEBVTT`, else SubRip.
    pub fn of_text(text: &str) -> Self {
        match without_bom(text).trim_start().starts_with(SIGNATURE) {
            true => Self::WebVtt,
            false => Self::Srt,
        }
    }
}

/// The beginning of a WebVTT file.
pub(super) const SIGNATURE: &str = "WEBVTT";
/// Separates the times of a cue.
pub(super) const ARROW: &str = "-->";

/// A text without its byte order mark.
pub(super) fn without_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}
