//! The text of a cue without its markup.

use super::{format::Captions, references};

/// The text of a cue and its speaker.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CueText {
    /// Its lines, joined by a space.
    pub(super) joined: String,
    /// The name in the first `<v Name>` of a WebVTT cue.
    pub(super) speaker: Option<String>,
}

impl CueText {
    /// Reads the lines of a cue. A tag may extend over several lines.
    pub(super) fn read(lines: &[&str], format: Captions) -> Self {
        let lines: Vec<&str> = lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
        let source = lines.join("\n");
        let vtt = format == Captions::WebVtt;
        let (mut text, mut rest) = (Self::default(), source.as_str());
        while let Some(at) = rest.find(['<', '{', '&']) {
            text.joined.push_str(&rest[..at]);
            rest = &rest[at..];
            let width = match rest.as_bytes()[0] {
                b'<' => text.tag(rest, vtt),
                b'{' if !vtt && rest.starts_with("{\\") => rest.find('}').map(|end| end + 1),
                b'&' if vtt => references::decode(rest, &mut text.joined),
                _ => None,
            };
            // A character that begins no markup is text.
            let width = width.unwrap_or_else(|| {
                text.joined.push_str(&rest[..1]);
                1
            });
            rest = &rest[width..];
        }
        text.joined.push_str(rest);
        // A line with tags only is empty without them.
        let lines = text.joined.split('\n').map(str::trim).filter(|line| !line.is_empty());
        text.joined = lines.collect::<Vec<_>>().join(" ");
        text
    }

    /// Skips a tag. Returns its length in bytes, or `None` if the text does not begin with a tag.
    fn tag(&mut self, rest: &str, vtt: bool) -> Option<usize> {
        let end = rest.find('>')?;
        let tag = &rest[1..end];
        if !vtt && tag.contains('\n') {
            return None;
        }
        let is_timestamp = || tag.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b':' | b'.'));
        let is_tag = match tag.as_bytes().first() {
            None => vtt,
            Some(b'/') => true,
            Some(b'.') => vtt,
            Some(b'0'..=b'9') => vtt && is_timestamp(),
            Some(first) => first.is_ascii_alphabetic(),
        };
        if !is_tag {
            return None;
        }
        if vtt && self.speaker.is_none() {
            self.speaker = voice(tag);
        }
        Some(end + 1)
    }
}

/// The speaker of a voice tag, `v Ann` or `v.loud.first Ann`; white space in the name is one space.
fn voice(tag: &str) -> Option<String> {
    let (name, annotation) = tag.split_once([' ', '\t', '\n', '\u{c}'])?;
    if name != "v" && !name.starts_with("v.") {
        return None;
    }
    let decoded = references::decode_all(annotation);
    let words: Vec<&str> = decoded.split([' ', '\t', '\n', '\u{c}']).filter(|word| !word.is_empty()).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], format: Captions, want: (&str, Option<&str>)) {
        let CueText { joined, speaker } = CueText::read(lines, format);
        assert_eq!((joined.as_str(), speaker.as_deref()), want, "{lines:?}");
    }

    #[test]
    fn tags_are_skipped_and_references_decoded() {
        let vtt = Captions::WebVtt;
        check(&["<v.loud O&#39;Brien &amp; Bo>Hi <00:01.500><b>you</b>"], vtt, ("Hi you", Some("O'Brien & Bo")));
        check(&["<v Fred", "  Astaire>a", "b</v>"], vtt, ("a b", Some("Fred Astaire")));
        check(&["<v Ren&eacute;e&nbsp;Z>x &quot;y&quot;"], vtt, ("x \"y\"", Some("Renée\u{a0}Z")));
        check(&["I <3 you > me, 1 < 2 & 3 &lt; 4"], vtt, ("I <3 you > me, 1 < 2 & 3 < 4", None));
        check(&["<v>no name", "<video x>still none"], vtt, ("no name still none", None));
        check(&["<v &gt;>a", "<v Bo>b"], vtt, ("a b", Some(">")));
        check(&["<c.yellow>a</c><.x>b", "<i>", "c"], vtt, ("ab c", None));
    }

    #[test]
    fn subrip_keeps_references_and_skips_styles() {
        let srt = Captions::Srt;
        check(&["<font color=\"red\">a</font> &amp; {\\an8}b {c}"], srt, ("a &amp; b {c}", None));
        check(&["<v Ann>a", " ", "b <1> <>"], srt, ("a b <1> <>", None));
    }
}
