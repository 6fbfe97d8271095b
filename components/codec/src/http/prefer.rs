//! `Prefer`, RFC 7240: whether a client waits for the end of an execution, and what a stream of results has.

/// The known preferences of a client; others are ignored, as the RFC requires.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prefer {
    /// `wait`
    pub wait: Option<Wait>,
    /// `respond-async`
    pub respond_async: bool,
    /// `token-counts`, an extension: lines of results have the tokens that were computed for their texts.
    pub token_counts: bool,
    /// `when-full=fail`, an extension: texts of a stream fail when the queue of their model is full, and do not wait.
    pub fails_when_full: bool,
}

/// How long a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// `wait=10`: the number of seconds.
    Seconds(u32),
    /// `wait` without a number, an extension of the RFC: as long as the server allows.
    Longest,
}

impl Prefer {
    /// Reads the values of all `Prefer` headers, in order. The first of several equal preferences counts.
    pub fn read<'h>(values: impl IntoIterator<Item = &'h str>) -> Self {
        let mut prefer = Self::default();
        for preference in values.into_iter().flat_map(|value| split(value, ',')) {
            // The known preferences have no parameters after a semicolon.
            let Some(preference) = split(preference, ';').next() else { continue };
            let (name, value) = match preference.split_once('=') {
                Some((name, value)) => (name.trim(), Some(unquote(value.trim()))),
                None => (preference.trim(), None),
            };
            if name.eq_ignore_ascii_case("respond-async") {
                prefer.respond_async = true;
            } else if name.eq_ignore_ascii_case("token-counts") {
                prefer.token_counts = true;
            } else if name.eq_ignore_ascii_case("when-full") {
                prefer.fails_when_full |= value == Some("fail");
            } else if name.eq_ignore_ascii_case("wait") {
                prefer.wait = prefer.wait.or_else(|| wait(value.unwrap_or("")));
            }
        }
        prefer
    }

    /// The time to wait for the end, in milliseconds; `None` to respond immediately. `wait` applies with or without `respond-async`
    /// (section 4.3).
    pub fn wait_ms(self, wait_ms_max: u64) -> Option<u64> {
        self.wait.map(|wait| match wait {
            Wait::Seconds(seconds) => (u64::from(seconds) * 1000).min(wait_ms_max),
            Wait::Longest => wait_ms_max,
        })
    }

    /// The value of `Preference-Applied`; `None` without a known preference.
    pub fn applied(self) -> Option<String> {
        match self.wait {
            Some(Wait::Seconds(seconds)) => Some(format!("wait={seconds}")),
            Some(Wait::Longest) => Some("wait".to_owned()),
            None => self.respond_async.then(|| "respond-async".to_owned()),
        }
    }
}

/// Parses delta-seconds (RFC 9110): a number that is too large saturates.
fn wait(value: &str) -> Option<Wait> {
    match value {
        "" => Some(Wait::Longest),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(Wait::Seconds(digits.parse().unwrap_or(u32::MAX)))
        }
        _ => None,
    }
}

/// The parts of a list; separators in quoted strings do not split.
fn split(text: &str, by: char) -> impl Iterator<Item = &str> {
    let (mut in_quotes, mut escaped) = (false, false);
    text.split(move |character| {
        let ends = character == by && !in_quotes;
        in_quotes ^= character == '"' && !escaped;
        escaped = in_quotes && character == '\\' && !escaped;
        ends
    })
}

fn unquote(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_preferences_are_read() {
        let check = |values: &[&str], wait, respond_async| {
            let want = Prefer { wait, respond_async, ..Prefer::default() };
            assert_eq!(Prefer::read(values.iter().copied()), want, "{values:?}");
        };
        check(&[], None, false);
        check(&["wait=10"], Some(Wait::Seconds(10)), false);
        check(&["respond-async, wait=100"], Some(Wait::Seconds(100)), true);
        check(&["Respond-Async", " WAIT = \"5\" ; x=y"], Some(Wait::Seconds(5)), true);
        check(&["wait"], Some(Wait::Longest), false);
        check(&["wait="], Some(Wait::Longest), false);
        check(&["wait=1, wait=2"], Some(Wait::Seconds(1)), false);
        check(&["wait=x, wait=2"], Some(Wait::Seconds(2)), false);
        check(&["wait=-1"], None, false);
        check(&["wait=99999999999999999999"], Some(Wait::Seconds(u32::MAX)), false);
        check(&["foo=\"a, wait=3\", bar; wait=4, return=minimal"], None, false);
        check(&["foo=\"a\\\", wait=3\""], None, false);
        check(&[",,;,=,"], None, false);
    }

    #[test]
    fn preferences_of_a_stream_are_read() {
        let read = |value| {
            let prefer = Prefer::read([value]);
            (prefer.token_counts, prefer.fails_when_full)
        };
        assert_eq!(read("token-counts, when-full=fail"), (true, true));
        assert_eq!(read("Token-Counts; x=y"), (true, false));
        assert_eq!(read("when-full=\"fail\""), (false, true));
        assert_eq!(read("when-full=wait, when-full"), (false, false));
        assert_eq!(read("token_counts, whenfull=fail"), (false, false));
    }

    #[test]
    fn waiting_is_bounded() {
        let prefer = Prefer::read(["wait=10"]);
        assert_eq!((prefer.wait_ms(60_000), prefer.wait_ms(5000)), (Some(10_000), Some(5000)));
        assert_eq!(prefer.applied().as_deref(), Some("wait=10"));
        assert_eq!(Prefer::read(["wait"]).wait_ms(7), Some(7));
        assert_eq!(Prefer::read(["respond-async"]).wait_ms(7), None);
        assert_eq!(Prefer::read(["respond-async"]).applied().as_deref(), Some("respond-async"));
        assert_eq!(Prefer::default().applied(), None);
    }

    proptest! {
        #[test]
        fn arbitrary_header_does_not_panic(value in any::<String>()) {
            let _ = Prefer::read([value.as_str()]);
        }
    }
}
