//! One session between its inputs and its outputs.

use weir_codec::transcripts::{
    checkpoint,
    config::SessionRequest,
    event::{context_json, state_json},
    stored::stored_event,
};
use weir_core::transcripts::{self as core, Receipt, Session};

use crate::{
    convert::output,
    rules::RulesCache,
    types::{Input, InputBody, Output, OutputBody, Refusal, Rested, Start, StartFailure},
};

const NS_PER_MS: u64 = 1_000_000;

/// A session in progress: the state machine with the configuration that its checkpoints carry.
#[derive(Debug)]
pub struct ActiveSession {
    request: SessionRequest,
    session: Session,
}

impl ActiveSession {
    /// Starts a session, or continues one from a checkpoint.
    ///
    /// # Errors
    ///
    /// The configuration or the checkpoint is invalid: see [`StartFailure`].
    pub fn start(start: Start, rules: &RulesCache, now_ns: u64) -> Result<Self, StartFailure> {
        match start {
            Start::Config(config) => {
                let (request, session_rules) =
                    rules.get(&config).map_err(|error| StartFailure::InvalidConfig(error.to_string()))?;
                Ok(Self { request, session: Session::new(session_rules, now_ns) })
            }
            Start::Checkpoint(Rested { bytes, rested_ms }) => {
                let (request, mut session) = checkpoint::decode(&bytes, |config| rules.get(config), now_ns)
                    .map_err(|error| StartFailure::InvalidCheckpoint(error.to_string()))?;
                session.handle_rest(rested_ms.saturating_mul(NS_PER_MS));
                Ok(Self { request, session })
            }
        }
    }

    /// Handles an input and appends its outputs to `outputs`.
    pub fn handle_input(&mut self, input: Input, now_ns: u64, outputs: &mut Vec<Output>) {
        let Input { line, seq, body } = input;
        let receipt = match body {
            InputBody::Chunk(chunk) => self.session.handle_chunk(now_ns, seq, chunk),
            InputBody::End => self.session.handle_end(now_ns, seq),
            InputBody::Stored(line) => {
                if let Some(event) = stored_event(line.as_bytes()) {
                    self.session.handle_stored(now_ns, event);
                }
                Ok(Receipt::New)
            }
            InputBody::Time => {
                self.session.handle_time(now_ns);
                Ok(Receipt::New)
            }
            InputBody::LlmCall => {
                self.session.record_llm_call();
                Ok(Receipt::New)
            }
            InputBody::Refused(refusal) => return outputs.push(reply(OutputBody::Refused((line, refusal)))),
            InputBody::Checkpoint => return outputs.push(reply(OutputBody::Checkpoint(self.checkpoint(now_ns)))),
            InputBody::State => {
                let state = String::from_utf8(state_json(&self.session, now_ns)).expect("JSON is UTF-8");
                return outputs.push(reply(OutputBody::State(state)));
            }
            InputBody::Context => {
                let context = self.session.context();
                let json = String::from_utf8(context_json(context)).expect("JSON is UTF-8");
                return outputs.push(reply(OutputBody::Context((context.render_for_llm(), json))));
            }
        };
        let first = outputs.len();
        while let Some(core::Output { number, event }) = self.session.poll_event(now_ns) {
            outputs.push(Output { event_id: number, seq, more: true, body: output(event) });
        }
        if let Some(last) = outputs.get_mut(first..).and_then(<[Output]>::last_mut) {
            last.more = false;
        }
        match receipt {
            Ok(Receipt::New) => {}
            Ok(Receipt::Repeated { seq_last }) => {
                outputs.push(reply(OutputBody::Repeated((seq.unwrap_or(seq_last), seq_last))));
            }
            Err(error) => {
                let refusal = Refusal {
                    code: error.rule().to_owned(),
                    field: error.field().map(str::to_owned),
                    message: error.to_string(),
                };
                outputs.push(reply(OutputBody::Refused((line, refusal))));
            }
        }
    }

    fn checkpoint(&self, now_ns: u64) -> Vec<u8> {
        let checkpoint =
            self.session.checkpoint(now_ns).expect("the events of every input are polled before the next input");
        checkpoint::encode(&self.request, &checkpoint)
    }
}

/// An output that is not an event.
fn reply(body: OutputBody) -> Output {
    Output { event_id: None, seq: None, more: false, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(line: u64, seq: Option<u64>, body: InputBody) -> Input {
        Input { line, seq, body }
    }

    fn chunk(start: f64, end: f64, text: &str) -> InputBody {
        InputBody::Chunk(core::Chunk { start, end, text: text.to_owned(), speaker_id: None })
    }

    fn rested(bytes: Vec<u8>, rested_ms: u64) -> Start {
        Start::Checkpoint(Rested { bytes, rested_ms })
    }

    fn handle(active: &mut ActiveSession, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        active.handle_input(input, 0, &mut outputs);
        outputs
    }

    #[test]
    fn inputs_are_answered_in_order() {
        let rules = RulesCache::default();
        let mut active = ActiveSession::start(Start::Config("{}".to_owned()), &rules, 0).unwrap();
        let outputs = handle(&mut active, input(1, Some(1), chunk(0.0, 1.0, "I'll send the price")));
        assert!(
            matches!(&outputs[..], [Output { event_id: Some(1), seq: Some(1), more: false, body: OutputBody::Partial(partial) }] if partial.text == "I'll send the price")
        );
        let outputs = handle(&mut active, input(2, Some(2), chunk(2.0, 1.0, "x")));
        let refusal = Refusal {
            code: "end_before_start".to_owned(),
            field: Some("end".to_owned()),
            message: "Chunk end must be >= start".to_owned(),
        };
        assert_eq!(outputs, [reply(OutputBody::Refused((2, refusal.clone())))]);
        let outputs = handle(&mut active, input(3, None, InputBody::Refused(refusal.clone())));
        assert_eq!(outputs, [reply(OutputBody::Refused((3, refusal)))]);
        assert_eq!(handle(&mut active, input(4, Some(1), InputBody::End)), [reply(OutputBody::Repeated((1, 1)))]);
        let outputs = handle(&mut active, input(5, Some(2), InputBody::End));
        let [
            Output { body: OutputBody::Final(segment), more: true, .. },
            Output { body: OutputBody::Summary(due), more: false, .. },
        ] = &outputs[..]
        else {
            panic!("{outputs:?}");
        };
        assert_eq!(
            (segment.workflow.as_str(), segment.annotation.intent.as_deref()),
            ("action_item", Some("commitment"))
        );
        assert_eq!((segment.annotation.keywords.as_slice(), due.is_final), (["price".to_owned()].as_slice(), true));
    }

    #[test]
    fn session_continues_from_a_checkpoint() {
        let rules = RulesCache::default();
        let mut active = ActiveSession::start(Start::Config("{\"max_gap_sec\":0.5}".to_owned()), &rules, 0).unwrap();
        handle(&mut active, input(1, Some(1), chunk(0.0, 1.0, "one")));
        let outputs = handle(&mut active, input(0, None, InputBody::Checkpoint));
        let [Output { event_id: None, body: OutputBody::Checkpoint(bytes), .. }] = &outputs[..] else {
            panic!("{outputs:?}")
        };
        let mut other = ActiveSession::start(rested(bytes.clone(), 0), &rules, 0).unwrap();
        for body in
            [chunk(1.5, 2.0, "two"), chunk(2.6, 3.0, "three"), InputBody::End, InputBody::Context, InputBody::State]
        {
            let next = input(9, Some(7), body);
            let (mut one, mut two) = (Vec::new(), Vec::new());
            active.handle_input(next.clone(), 5, &mut one);
            other.handle_input(next, 5, &mut two);
            // The state contains the latency of each process.
            if !matches!(one[0].body, OutputBody::State(_)) {
                assert_eq!(one, two);
            }
        }
        let wrong = ActiveSession::start(rested(b"{}".to_vec(), 0), &rules, 0).unwrap_err();
        assert!(matches!(wrong, StartFailure::InvalidCheckpoint(_)), "{wrong:?}");
        let wrong = ActiveSession::start(Start::Config("[]".to_owned()), &rules, 0).unwrap_err();
        assert!(matches!(wrong, StartFailure::InvalidConfig(_)), "{wrong:?}");
    }

    #[test]
    fn restored_session_counts_elapsed_time_and_stored_events() {
        let rules = RulesCache::default();
        let mut active = ActiveSession::start(Start::Config("{}".to_owned()), &rules, 0).unwrap();
        let outputs = handle(&mut active, input(0, None, InputBody::Checkpoint));
        let [Output { body: OutputBody::Checkpoint(bytes), .. }] = &outputs[..] else { panic!("{outputs:?}") };
        let mut active = ActiveSession::start(rested(bytes.clone(), 590_000), &rules, 0).unwrap();
        let outputs = handle(&mut active, input(0, None, InputBody::Time));
        assert_eq!(outputs, [reply(OutputBody::Expiring(10_000))]);
        let line = r#"{"type":"partial_segment","segment":{"start":0,"end":1,"text":"a","speaker_id":null},"seq":4,"event_id":1}"#;
        assert_eq!(handle(&mut active, input(0, None, InputBody::Stored(line.to_owned()))), []);
        assert_eq!(handle(&mut active, input(0, None, InputBody::Stored("nothing".to_owned()))), []);
        let outputs = handle(&mut active, input(1, Some(4), chunk(0.0, 1.0, "a")));
        assert_eq!(outputs, [reply(OutputBody::Repeated((4, 4)))]);
        let outputs = handle(&mut active, input(2, Some(5), chunk(1.0, 2.0, "b")));
        assert!(
            matches!(&outputs[..], [Output { event_id: Some(2), seq: Some(5), body: OutputBody::Partial(partial), .. }] if partial.text == "a b")
        );
    }
}
