use proptest::prelude::*;

use super::*;

fn check(text: &str, format: Captions, want: &[&str]) {
    let got: Vec<String> = read(text, format)
        .into_iter()
        .map(|cue| match cue {
            Ok(Cue { chunk: Chunk { start, end, text, speaker_id }, .. }) => {
                let speaker = speaker_id.map_or(String::new(), |name| format!(" {name}:"));
                format!("{start}-{end}{speaker} {text}")
            }
            Err(error) => error.to_string(),
        })
        .collect();
    assert_eq!(got, want, "{text:?}");
}

const TIMES: &str = "the times of a cue are as in 00:01:02.345 --> 00:01:04.000";

#[test]
fn subrip_cues_are_read() {
    check(
        "\u{feff}1\r\n00:00:01,000 --> 00:00:02,500 X1:1 X2:2\r\n<i>Hello</i> &amp; 1 < 2\r\n{\\an8}there\r\n\r\n2\r\n01:00:00,001 --> 01:00:01,000\r\n\r\n",
        Captions::Srt,
        &["1-2.5 Hello &amp; 1 < 2 there", "3600.001-3601 "],
    );
    check(
        "1\n00:00:01 --> 00:00:02,000\nlost\n\nno times\nat all\n\n3\n00:00:03,000 --> 00:00:04,000\nkept",
        Captions::Srt,
        &[&format!("line 2: {TIMES}"), "line 5: a cue begins with its times", "3-4 kept"],
    );
    check("", Captions::Srt, &[]);
}

#[test]
fn subrip_without_blank_lines_keeps_numbers_out_of_the_text() {
    check(
        "1\n00:00:01,000 --> 00:00:02,000\na\n2\n00:00:03,000 --> 00:00:04,000\nb\n3\n00:00:05,000 --> 00:00:06,000\n3\n4\n00:00:07,000 --> 00:00:08,000\n",
        Captions::Srt,
        &["1-2 a", "3-4 b", "5-6 3", "7-8 "],
    );
    // Cues without numbers: a number is speech.
    check("00:00:01,000 --> 00:00:02,000\n42\n00:00:03,000 --> 00:00:04,000\nb", Captions::Srt, &["1-2 42", "3-4 b"]);
}

#[test]
fn subrip_text_after_an_empty_line_belongs_to_its_cue() {
    check(
        "1\n00:00:01,000 --> 00:00:02,000\n\nafter\n\n1999\n\nmore --> text\n \n2\n00:00:03,000 --> 00:00:04,000\nb\n\n",
        Captions::Srt,
        &["1-2 after 1999 more --> text", "3-4 b"],
    );
    check(
        "1\n00:00:01,000 --> 00:00:02,000\na\n\n2\n00:00:03,00 --> 00:00:04,000\nlost\n\n3\n00:00:05,000 --> 00:00:06,000\nc",
        Captions::Srt,
        &["1-2 a", &format!("line 6: {TIMES}"), "5-6 c"],
    );
}

#[test]
fn web_vtt_cues_are_read() {
    check(
        "WEBVTT - a title\nKind: captions\n\nNOTE a note\n00 --> is not a cue\n\nSTYLE\n::cue {}\n\nintro\n00:01.000 --> 00:02.000 align:start\n<v.loud Ann &amp; Bo>Hi <00:01.500><b>you</b>\n<v Cy>&lt;there&gt; a&b\n\n00:02.000 --> 100:00:00.000\n- x",
        Captions::WebVtt,
        &["1-2 Ann & Bo: Hi you <there> a&b", "2-360000 - x"],
    );
    check("WEBVTT\n00:01.000 --> 00:02.000\na\n00:02.000 --> 00:03.000\nb", Captions::WebVtt, &["1-2 a", "2-3 b"]);
    check("WEBVTTX\n\n00:01.000 --> 00:02.000\na", Captions::WebVtt, &["line 1: a WebVTT file begins with WEBVTT"]);
    check("WEBVTT\n\n00:60.000 --> 00:61.000\na", Captions::WebVtt, &[&format!("line 3: {TIMES}")]);
}

#[test]
fn web_vtt_line_of_white_space_does_not_end_a_cue() {
    check(
        "WEBVTT\n\n00:01.000 --> 00:02.000\n \nkept\n\t\nalso\n\n \n\n \nid\n\n \n00:02.000 --> 00:03.000\nb",
        Captions::WebVtt,
        &["1-2 kept also", "line 12: a cue begins with its times", "2-3 b"],
    );
}

#[test]
fn web_vtt_note_style_and_region_above_times_are_the_name_of_the_cue() {
    for name in ["NOTE", "NOTE a comment", "STYLE", "REGION", "REGION\t"] {
        let text = format!("WEBVTT\n\n{name}\n00:01.000 --> 00:02.000\nkept\n");
        check(&text, Captions::WebVtt, &["1-2 kept"]);
        // Times further below begin a block of their own.
        let text = format!("WEBVTT\n\n{name}\nmore\n00:01.000 --> 00:02.000\nkept\n");
        check(&text, Captions::WebVtt, &["1-2 kept"]);
        let text = format!("WEBVTT\n\n{name}\n00:01.000 --> soon\nlost\n");
        check(&text, Captions::WebVtt, &[&format!("line 4: {TIMES}")]);
    }
    check("WEBVTT\n\nNOTED\n\nSTYLE\n::cue {}", Captions::WebVtt, &["line 3: a cue begins with its times"]);
}

#[test]
fn cues_are_sorted_by_start_and_errors_stay_in_place() {
    check(
        "WEBVTT\n\n00:05.000 --> 00:09.000\n<v A>a\n\n00:06.000 --> 00:07.000\n<v B>b\n\nbad\n\n00:01.000 --> 00:02.000\nc\n\n00:05.000 --> 00:06.000\nd",
        Captions::WebVtt,
        &["1-2 c", "5-9 A: a", "5-6 d", "6-7 B: b", "line 9: a cue begins with its times"],
    );
}

#[test]
fn cues_have_the_line_of_their_times() {
    let text = "1\r\n00:00:03,000 --> 00:00:04,000\r\nb\r\r\n2\r00:00:01,000 --> 00:00:02,000\ra";
    let lines: Vec<u64> = read(text, Captions::Srt).into_iter().map(|cue| cue.unwrap().line).collect();
    assert_eq!(lines, [6, 2]);
}

#[test]
fn web_vtt_is_recognized_by_its_signature() {
    for (text, want) in [
        ("\u{feff}WEBVTT\n", Captions::WebVtt),
        ("\n\nWEBVTT - x\n", Captions::WebVtt),
        ("1\n00:00:01,000 --> 00:00:02,000\nWEBVTT\n", Captions::Srt),
        ("", Captions::Srt),
    ] {
        assert_eq!(Captions::of_text(text), want, "{text:?}");
    }
    check("\n\nWEBVTT\n\n00:01.000 --> 00:02.000\na", Captions::WebVtt, &["1-2 a"]);
}

/// A generated cue.
#[derive(Debug, Clone)]
struct GeneratedCue {
    start_ms: u32,
    length_ms: u32,
    text: Vec<String>,
}

fn generated_cue() -> impl Strategy<Value = GeneratedCue> {
    let line = "[a-z]{1,6}( [a-z]{1,6}){0,3}";
    (0u32..50_000_000, 0u32..100_000, proptest::collection::vec(line, 1..4))
        .prop_map(|(start_ms, length_ms, text)| GeneratedCue { start_ms, length_ms, text })
}

fn time(ms: u32, point: char) -> String {
    format!("{:02}:{:02}:{:02}{point}{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

proptest! {
    #[test]
    fn arbitrary_text_does_not_panic(text in "(WEBVTT)?[0-9:.,> <v/&{}a\r\n\u{2028}é-]{0,120}(\n00:01.000 --> 00:02.000\n)?.{0,20}") {
        for format in [Captions::Srt, Captions::WebVtt] {
            let cues = read(&text, format).len();
            prop_assert!(cues <= text.len() + 1);
        }
    }

    /// Written captions read back, with overlapping cues, with every line end, and in SubRip with or without empty lines between cues.
    #[test]
    fn cues_read_back(
        cues in proptest::collection::vec(generated_cue(), 0..12),
        end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
        vtt: bool,
        spaced: bool,
    ) {
        let mut text = String::new();
        if vtt {
            text += &format!("WEBVTT{end}{end}");
        }
        for (at, GeneratedCue { start_ms, length_ms, text: lines }) in cues.iter().enumerate() {
            let point = if vtt { '.' } else { ',' };
            text += &format!("{}{end}", at + 1);
            text += &format!("{} --> {}{end}", time(*start_ms, point), time(start_ms + length_ms, point));
            text += &lines.iter().map(|line| format!("{line}{end}")).collect::<String>();
            if spaced || vtt {
                text += end;
            }
        }
        let format = Captions::of_text(&text);
        prop_assert_eq!(format == Captions::WebVtt, vtt);
        let mut want: Vec<&GeneratedCue> = cues.iter().collect();
        want.sort_by_key(|cue| cue.start_ms);
        let got: Vec<Chunk> = read(&text, format).into_iter().map(|cue| cue.unwrap().chunk).collect();
        let want: Vec<Chunk> = want
            .into_iter()
            .map(|cue| Chunk {
                start: f64::from(cue.start_ms) / 1000.0,
                end: f64::from(cue.start_ms + cue.length_ms) / 1000.0,
                text: cue.text.join(" "),
                speaker_id: None,
            })
            .collect();
        prop_assert_eq!(got, want);
    }
}
