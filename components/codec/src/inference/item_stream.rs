//! A stream of texts in and results out: it numbers the texts, keeps the ids of open ones and renders the output.
//!
//! It does no IO. A driver passes in lines and outcomes as they arrive and polls [`ItemStream::poll_output`].

use std::collections::BTreeMap;

use weir_core::failure::Failure;

use crate::{
    http::{framing::Framing, lines::Line},
    inference::{
        output::{DoneLine, Id, ItemError, ItemLine, Output},
        request::{Input, LineRules},
        task::Task,
    },
    json::to_vec,
};

/// The state of a stream.
#[derive(Debug)]
pub struct ItemStream {
    task: Task,
    framing: Framing,
    /// Lines of results have the number of tokens.
    token_counts: bool,
    out: Vec<u8>,
    /// Events written, for server-sent events.
    events: u64,
    /// Number of texts and of invalid lines so far.
    indexes: u64,
    /// Texts without an outcome, with their ids.
    open: BTreeMap<u64, Option<Id>>,
    ok: u64,
    failed: u64,
    /// The input has ended.
    ended: bool,
    /// The last line was written.
    done: bool,
}

impl ItemStream {
    /// A stream of results of one task.
    pub fn new(task: Task, framing: Framing) -> Self {
        Self {
            task,
            framing,
            token_counts: false,
            out: Vec::new(),
            events: 0,
            indexes: 0,
            open: BTreeMap::new(),
            ok: 0,
            failed: 0,
            ended: false,
            done: false,
        }
    }

    /// Adds the number of tokens to the lines of results if `token_counts`.
    pub fn with_token_counts(self, token_counts: bool) -> Self {
        Self { token_counts, ..self }
    }

    /// Reads a line. Returns its index and its text, or `None` for an invalid line, which is reported in the output.
    pub fn handle_line(&mut self, line: &Line<'_>) -> Option<(u64, Input)> {
        match LineRules::stream(self.task).read(line) {
            Ok(input) => Some(self.handle_input(input)),
            Err((id, error)) => {
                let index = self.next_index();
                self.failed += 1;
                self.write(&ItemLine::new(Some(index), id.as_ref(), Err(&error)));
                None
            }
        }
    }

    /// Assigns the next index to a text. Its id is removed and stored until its outcome.
    pub fn handle_input(&mut self, mut input: Input) -> (u64, Input) {
        let index = self.next_index();
        self.open.insert(index, input.id.take());
        (index, input)
    }

    /// Records the outcome of a text, with the tokens that were computed for it; an outcome of a text that is not open is ignored.
    pub fn handle_outcome(&mut self, index: u64, tokens: u32, result: Result<Output, Failure>) {
        let Some(id) = self.open.remove(&index) else { return };
        let tokens = self.token_counts.then_some(tokens);
        let result = result.map_err(|failure| ItemError::from(&failure));
        *(if result.is_ok() { &mut self.ok } else { &mut self.failed }) += 1;
        self.write(&ItemLine { tokens, ..ItemLine::new(Some(index), id.as_ref(), result.as_ref()) });
    }

    /// The input has ended, with an error if it is incomplete.
    pub fn handle_end(&mut self, error: Option<&ItemError>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(error) = error {
            self.write(&ItemLine::new(None, None, Err(error)));
        }
    }

    /// No more outcomes follow: all open texts fail with `failure`.
    pub fn handle_lost(&mut self, failure: &Failure) {
        while let Some((index, _)) = self.open.first_key_value() {
            self.handle_outcome(*index, 0, Err(failure.clone()));
        }
    }

    /// The bytes to write now, if any. The last line is written when the input has ended and no text is open.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        if self.ended && self.open.is_empty() && !self.done {
            self.done = true;
            let line = DoneLine { done: true, ok: self.ok, failed: self.failed };
            self.events += 1;
            self.framing.push(&mut self.out, self.events, "done", &to_vec(&line));
        }
        (!self.out.is_empty()).then(|| std::mem::take(&mut self.out))
    }

    /// Number of texts without an outcome.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Number of bytes that were not polled.
    pub fn output_bytes(&self) -> usize {
        self.out.len()
    }

    /// True when the input has ended.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// True when all output was polled, the last line included.
    pub fn is_done(&self) -> bool {
        self.done && self.out.is_empty()
    }

    fn next_index(&mut self) -> u64 {
        self.indexes += 1;
        self.indexes - 1
    }

    fn write(&mut self, line: &ItemLine<'_>) {
        self.events += 1;
        let name = if line.error.is_some() { "error" } else { "result" };
        self.framing.begin(&mut self.out, self.events, name);
        serde_json::to_writer(&mut self.out, line).expect("a line serializes, and writing to a vector cannot fail");
        self.framing.end(&mut self.out);
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::inference::output::{Entity, LabelScore};

    fn take(stream: &mut ItemStream) -> String {
        String::from_utf8(stream.poll_output().unwrap_or_default()).expect("UTF-8")
    }

    fn line(stream: &mut ItemStream, number: u64, content: &str) -> Option<(u64, Input)> {
        stream.handle_line(&Line { number, content: Some(content.as_bytes()) })
    }

    fn check(stream: &mut ItemStream, want: Expect) {
        want.assert_eq(&take(stream));
    }

    fn scores() -> Result<Output, Failure> {
        Ok(Output::Labels(vec![LabelScore { label: "good".to_owned(), score: 0.75 }]))
    }

    #[test]
    fn results_are_written_in_completion_order() {
        let mut stream = ItemStream::new(Task::Classify, Framing::Ndjson);
        assert_eq!(stream.poll_output(), None);
        let (first, input) = line(&mut stream, 1, r#"{"text":"a","id":"x"}"#).expect("a text");
        assert_eq!((first, input.text.as_str()), (0, "a"));
        assert!(line(&mut stream, 3, "nonsense").is_none());
        let (third, _) = line(&mut stream, 4, r#""b""#).expect("a text");
        assert_eq!((third, stream.open()), (2, 2));
        stream.handle_outcome(third, 0, scores());
        check(
            &mut stream,
            expect![[r#"
            {"index":1,"error":{"code":"malformed_json","message":"line 3: it is not JSON: expected `true`, `false` or `null` at column 2","retryable":false,"line":3}}
            {"index":2,"scores":[{"label":"good","score":0.75}]}
        "#]],
        );
        stream.handle_end(None);
        assert_eq!(stream.poll_output(), None);
        stream.handle_outcome(first, 0, Err(Failure::Overloaded { retry_after_ms: 5 }));
        stream.handle_outcome(first, 0, scores());
        check(
            &mut stream,
            expect![[r#"
            {"index":0,"id":"x","error":{"code":"overloaded","message":"the model's queue is full; retry in 5 ms","retryable":true,"retry_after_ms":5}}
            {"done":true,"ok":1,"failed":2}
        "#]],
        );
        assert!(stream.is_done());
        assert_eq!(stream.poll_output(), None);
    }

    #[test]
    fn results_have_token_counts_when_preferred() {
        let mut stream = ItemStream::new(Task::Classify, Framing::Ndjson).with_token_counts(true);
        let (first, _) = line(&mut stream, 1, r#""a""#).expect("a text");
        let (second, _) = line(&mut stream, 2, r#""b""#).expect("a text");
        stream.handle_outcome(first, 3, scores());
        stream.handle_outcome(second, 0, Err(Failure::DeadlineExceeded));
        let lines = take(&mut stream);
        assert!(lines.starts_with(r#"{"index":0,"scores":[{"label":"good","score":0.75}],"tokens":3}"#), "{lines}");
        assert!(lines.ends_with("\"tokens\":0}\n"), "{lines}");
    }

    #[test]
    fn broken_stream_ends_with_the_error_and_the_counts() {
        let mut stream = ItemStream::new(Task::Embed, Framing::Sse);
        let (index, _) = line(&mut stream, 1, r#"{"text":"a","id":-1}"#).expect("a text");
        stream.handle_end(Some(&ItemError::body_incomplete()));
        stream.handle_end(Some(&ItemError::idle(5)));
        stream.handle_outcome(index, 0, Ok(Output::Embedding(vec![0.5, -0.25])));
        check(
            &mut stream,
            expect![[r#"
            id: 1
            event: error
            data: {"error":{"code":"body_incomplete","message":"the body ended before all of it had arrived","retryable":false}}

            id: 2
            event: result
            data: {"index":0,"id":-1,"embedding":[0.5,-0.25]}

            id: 3
            event: done
            data: {"done":true,"ok":1,"failed":0}

        "#]],
        );
    }

    #[test]
    fn open_items_fail_when_inference_ends() {
        let mut stream = ItemStream::new(Task::Tokens, Framing::Ndjson);
        let (first, _) = line(&mut stream, 1, r#""a""#).expect("a text");
        let (second, _) = line(&mut stream, 2, r#""b""#).expect("a text");
        let entity = Entity::new("B-PER".to_owned(), 0.5, Some(3), ("ann".to_owned(), "Ann".to_owned()), (0, 3));
        let group = Entity::new("PER".to_owned(), 0.5, None, ("ann".to_owned(), "Ann".to_owned()), (0, 3));
        stream.handle_outcome(second, 0, Ok(Output::Entities(vec![entity, group])));
        stream.handle_lost(&Failure::Unavailable("gone".to_owned()));
        stream.handle_end(None);
        assert_eq!(first, 0);
        check(
            &mut stream,
            expect![[r#"
            {"index":1,"entities":[{"entity":"B-PER","score":0.5,"index":3,"word":"ann","text":"Ann","start":0,"end":3},{"entity_group":"PER","score":0.5,"word":"ann","text":"Ann","start":0,"end":3}]}
            {"index":0,"error":{"code":"model_unavailable","message":"the model cannot answer now: gone","retryable":true,"retry_after_ms":1000}}
            {"done":true,"ok":1,"failed":1}
        "#]],
        );
    }
}
