//! Stop strings: a text ends before its first stop string, of which no part is output.

/// Cuts a text at stop strings, piece by piece. Only a suffix that is a proper prefix of a stop string is held back.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    /// None is empty.
    stops: Vec<String>,
    held: String,
}

/// The result of adding a piece to a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The text that can be output now.
    pub text: String,
    /// The stop string that ended the text.
    pub stop: Option<String>,
}

impl StopStrings {
    /// Stops at any of the given strings; empty ones are ignored.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Adds a piece. The text ends at the stop string that is complete first; if several end there, at the longest.
    pub fn push(&mut self, piece: &str) -> Cut {
        if self.stops.is_empty() {
            return Cut { text: piece.to_owned(), stop: None };
        }
        let mut pending = std::mem::take(&mut self.held);
        pending.push_str(piece);
        let matches =
            self.stops.iter().filter_map(|stop| pending.find(stop.as_str()).map(|at| (at + stop.len(), at, stop)));
        if let Some((_, at, stop)) = matches.min() {
            let stop = Some(stop.clone());
            pending.truncate(at);
            return Cut { text: pending, stop };
        }
        let is_prefix = |tail: &str| self.stops.iter().any(|stop| stop.starts_with(tail));
        let held_from = pending.char_indices().map(|(at, _)| at).find(|at| is_prefix(&pending[*at..]));
        self.held = held_from.map(|at| pending.split_off(at)).unwrap_or_default();
        Cut { text: pending, stop: None }
    }

    /// Ends the text, and returns the text that was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn push_all(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let mut stop_strings = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()));
        let mut texts = Vec::new();
        for piece in pieces {
            let cut = stop_strings.push(piece);
            texts.push(cut.text);
            if cut.stop.is_some() {
                return (texts, cut.stop);
            }
        }
        texts.push(stop_strings.finish());
        (texts, None)
    }

    #[test]
    fn stop_string_over_several_tokens_is_not_output() {
        let (texts, stop) = push_all(&["</end>"], &["a <", "/en", "d", "> b"]);
        assert_eq!((texts, stop.as_deref()), (vec!["a ".into(), "".into(), "".into(), "".into()], Some("</end>")));
    }

    #[test]
    fn text_is_cut_inside_a_token() {
        assert_eq!(push_all(&["\n\n"], &["one\n\ntwo"]), (vec!["one".into()], Some("\n\n".into())));
    }

    #[test]
    fn only_a_proper_prefix_is_held_back() {
        let (texts, stop) = push_all(&["abc"], &["xab", "d", "ab"]);
        assert_eq!((texts, stop), (vec!["x".into(), "abd".into(), "".into(), "ab".into()], None));
    }

    proptest! {
        #[test]
        fn cut_does_not_depend_on_the_pieces(
            stops in prop::collection::vec("[abä]{1,4}", 0..4),
            pieces in prop::collection::vec("[abäc]{0,4}", 0..12),
        ) {
            let borrowed: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let text = pieces.concat();
            let (texts, stop) = push_all(&borrowed, &pieces);
            // The reference: the first end of a stop string, and the longest that ends there.
            let ends = (0..=text.len()).filter(|end| text.is_char_boundary(*end));
            let expected = ends
                .filter_map(|end| {
                    let ending = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
                    ending.max_by_key(|stop| stop.len()).map(|stop| (end - stop.len(), stop.clone()))
                })
                .next();
            let output = expected.as_ref().map_or(text.as_str(), |(at, _)| &text[..*at]);
            prop_assert_eq!(texts.concat(), output);
            prop_assert_eq!(stop, expected.map(|(_, stop)| stop));
        }

        #[test]
        fn held_text_is_always_a_proper_prefix(
            stops in prop::collection::vec("[ab]{1,4}", 1..4),
            pieces in prop::collection::vec("[abc]{0,3}", 0..12),
        ) {
            let mut stop_strings = StopStrings::new(stops.clone());
            for piece in pieces {
                if stop_strings.push(&piece).stop.is_some() {
                    break;
                }
                let held = stop_strings.held.as_str();
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held) && stop != held));
            }
        }
    }
}
