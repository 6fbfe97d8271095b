//! The sessions of the task `transcript`: a record is a chunk, and the records of one origin with the same key are a session.

use std::{collections::BTreeMap, sync::Arc};

use weir_codec::{
    adapter::{config::TranscriptConfig, decode::Refusal, encode::Output},
    http::framing::Framing,
    inference::output::ItemError,
    transcripts::{
        config::SessionRequest,
        event::EventLine,
        input::{Body, Input},
        outbox::{Batch, EventOutbox, Query, QueryResult},
        stored::Annotate,
    },
};
use weir_core::{
    failure::Failure,
    inference::{rewrite::SummaryText, text_step::TextStep},
    transcripts::{Receipt, Session, SessionRules},
};

/// Most sessions of a call. Beyond it, the least recently used one is ended.
pub const SESSIONS_MAX: usize = 1024;

/// The name of a session: the origin and the key of its records.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionName {
    /// The origin.
    pub origin: String,
    /// The key.
    pub key: Option<Vec<u8>>,
}

/// The sessions of one call.
#[derive(Debug)]
pub struct Sessions {
    request: SessionRequest,
    rules: Arc<SessionRules>,
    sessions: BTreeMap<SessionName, OpenSession>,
    /// The number of inputs so far.
    inputs: u64,
}

#[derive(Debug)]
struct OpenSession {
    session: Session,
    /// The number of its last input.
    used: u64,
    /// The partition of its last record.
    partition: u32,
}

/// The events of one input.
#[derive(Debug)]
pub struct InputEvents {
    outbox: EventOutbox,
    batch: Batch,
    /// The items that models compute for them.
    pub queries: Vec<Query>,
    /// The reply to a repeated chunk.
    reply: Option<Vec<u8>>,
}

/// A session that has ended.
#[derive(Debug)]
pub struct EndedSession {
    /// Its name.
    pub name: SessionName,
    /// The partition of its last record.
    pub partition: u32,
    /// Its last events.
    pub events: InputEvents,
}

impl Sessions {
    /// No sessions yet.
    ///
    /// # Errors
    ///
    /// The text names the parameter and the valid values.
    pub fn new(config: &TranscriptConfig) -> Result<Self, String> {
        let request = config.session()?;
        let rules = SessionRules::new(request.config.clone()).map_err(|error| format!("transcript: {error}"))?;
        Ok(Self { request, rules, sessions: BTreeMap::new(), inputs: 0 })
    }

    /// Handles a chunk or an end.
    ///
    /// # Errors
    ///
    /// The session refuses the chunk, and is unchanged.
    pub fn handle_input(&mut self, name: &SessionName, partition: u32, input: Input) -> Result<InputEvents, Refusal> {
        self.inputs += 1;
        let rules = &self.rules;
        let open = self.sessions.entry(name.clone()).or_insert_with(|| OpenSession {
            session: Session::new(rules.clone(), 0),
            used: 0,
            partition,
        });
        (open.used, open.partition) = (self.inputs, partition);
        // Sessions without an expiry do not depend on the time.
        let receipt = match input.body {
            Body::Chunk(chunk) => open.session.handle_chunk(0, input.seq, chunk),
            Body::End => open.session.handle_end(0, input.seq),
        };
        let receipt = receipt.map_err(|error| Refusal { code: error.rule(), reason: error.to_string() })?;
        let mut events = events(&self.request, &mut open.session);
        if let Receipt::Repeated { seq_last } = receipt {
            let mut line = Vec::new();
            EventLine::Repeated { seq: input.seq.unwrap_or(seq_last), seq_last }.write(&mut line);
            events.reply = Some(line);
        }
        Ok(events)
    }

    /// Ends the least recently used session if there are too many.
    pub fn poll_excess(&mut self) -> Option<EndedSession> {
        if self.sessions.len() <= SESSIONS_MAX {
            return None;
        }
        let (name, _) = self.sessions.iter().min_by_key(|(_, open)| open.used)?;
        let name = name.clone();
        self.end(name)
    }

    /// Ends a session after the last record of a call.
    pub fn poll_end(&mut self) -> Option<EndedSession> {
        let name = self.sessions.first_key_value()?.0.clone();
        self.end(name)
    }

    fn end(&mut self, name: SessionName) -> Option<EndedSession> {
        let OpenSession { mut session, partition, .. } = self.sessions.remove(&name)?;
        // All its events are polled and it does not expire, so it accepts an end.
        let _ = session.handle_end(0, None);
        Some(EndedSession { name, partition, events: events(&self.request, &mut session) })
    }
}

/// The events of a session that were not polled yet.
fn events(request: &SessionRequest, session: &mut Session) -> InputEvents {
    let mut outbox = EventOutbox::one_shot(Annotate::from(request), Framing::Ndjson);
    let mut next = session.poll_event(0);
    while let Some(output) = next {
        next = session.poll_event(0);
        outbox.handle_event(output.event, None, None, next.is_some());
    }
    outbox.handle_pause();
    // The events of one input are in one batch.
    let batch = outbox.poll_batch().unwrap_or_default();
    let queries = outbox.queries(&batch);
    InputEvents { outbox, batch, queries, reply: None }
}

impl InputEvents {
    /// The lines of the events, with the results of the queries in their order.
    pub fn lines(mut self, results: impl IntoIterator<Item = Result<Output, Failure>>) -> Vec<Vec<u8>> {
        let queries = std::mem::take(&mut self.queries);
        let results = queries.into_iter().zip(results).map(|(query, result)| {
            let result = query_result(query.step, result);
            (query, result)
        });
        self.outbox.handle_query_results(&mut self.batch, results);
        let records = self.batch.records().into_iter().map(|record| record.data.into_bytes());
        records.chain(self.reply).collect()
    }
}

fn query_result(step: TextStep, result: Result<Output, Failure>) -> QueryResult {
    let unexpected = || ItemError::from(&Failure::Other("the model returned another kind of output".to_owned()));
    match step {
        TextStep::Sentiment => QueryResult::Sentiment(match result {
            Ok(Output::Labels(labels)) => labels.into_iter().next().ok_or_else(unexpected),
            Ok(_) => Err(unexpected()),
            Err(failure) => Err(ItemError::from(&failure)),
        }),
        TextStep::Entities => QueryResult::Entities(match result {
            Ok(Output::Entities(entities)) => Ok(entities),
            Ok(_) => Err(unexpected()),
            Err(failure) => Err(ItemError::from(&failure)),
        }),
        TextStep::Summarization => QueryResult::Summary(match result {
            Ok(Output::Summary(summary)) => Ok(SummaryText::new(summary)),
            Ok(_) => Err(unexpected()),
            Err(failure) => Err(ItemError::from(&failure)),
        }),
    }
}

#[cfg(test)]
mod tests {
    use weir_codec::transcripts::input::read;

    use super::*;

    fn name(key: u32) -> SessionName {
        SessionName { origin: "calls".to_owned(), key: Some(key.to_string().into_bytes()) }
    }

    fn sessions(parameters: &str) -> Sessions {
        Sessions::new(&TranscriptConfig { parameters: parameters.to_owned(), ..TranscriptConfig::default() }).unwrap()
    }

    fn texts(events: InputEvents) -> Vec<String> {
        events.lines([]).into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn least_recently_used_session_is_ended_beyond_the_bound() {
        let mut sessions = sessions("annotate=none");
        let chunk = || read(br#"{"start":0,"end":1,"text":"a"}"#).unwrap();
        for key in 0..SESSIONS_MAX as u32 {
            sessions.handle_input(&name(key), 7, chunk()).unwrap();
        }
        let later = read(br#"{"start":1,"end":2,"text":"b"}"#).unwrap();
        sessions.handle_input(&name(0), 7, later).unwrap();
        assert!(sessions.poll_excess().is_none());
        sessions.handle_input(&name(9999), 7, chunk()).unwrap();
        let ended = sessions.poll_excess().unwrap();
        assert_eq!((&ended.name, ended.partition), (&name(1), 7));
        let lines = texts(ended.events);
        assert!(lines.len() == 1 && lines[0].contains(r#""type":"final_segment""#), "{lines:?}");
        assert!(sessions.poll_excess().is_none());
    }

    #[test]
    fn repeated_chunk_has_a_reply_and_an_earlier_one_is_refused() {
        let mut sessions = sessions("");
        let chunk = |seq: u32, start: u32| {
            read(format!(r#"{{"seq":{seq},"start":{start},"end":9,"text":"a"}}"#).as_bytes()).unwrap()
        };
        sessions.handle_input(&name(1), 0, chunk(4, 0)).unwrap();
        let repeated = texts(sessions.handle_input(&name(1), 0, chunk(4, 0)).unwrap());
        assert_eq!(repeated, [r#"{"type":"repeated","seq":4,"seq_last":4}"#]);
        let refusal = sessions.handle_input(&name(1), 0, chunk(5, 1)).unwrap_err();
        assert_eq!(refusal.code, "out_of_order");
    }
}
