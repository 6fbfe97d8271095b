//! `/v1/transcript` and `/v1/annotate`: lines in, the outputs of `weir:stream/session` out.

use std::pin::pin;

use futures::future::{Either, select};
use weir_codec::{
    http::{framing::Framing, problem::Problem},
    inference::output::ItemError,
    transcripts::{
        annotate_stream::{AnnotateStream, NumberedText, blocks_json},
        captions::{self, CaptionError, Captions, Cue},
        config::SessionRequest,
        input::Refusal,
        outbox::EventOutbox,
        semantic::TextInput,
        stored::Annotate,
    },
};
use weir_core::{time::Now, transcripts as core};
use wit_bindgen::rt::async_support::{StreamReader, StreamResult, StreamWriter};

use super::{
    convert::{annotation, hand_over, input},
    enrich,
};
use crate::{
    http::{
        body::BodyReader,
        duplex::{Duplex, OUT_BYTES_MAX, OutputSource},
        response::Client,
    },
    platform::{
        bindings::{
            weir::stream::session::{self, Input, InputBody, Output, Start},
            wit_stream,
        },
        settings::Settings,
        wording,
    },
};

/// The most inputs in one write.
const INPUTS_MAX: usize = 128;
/// The most outputs in one read.
const OUTPUTS_MAX: usize = 256;
/// The most lines that are annotated in one call.
const TEXTS_MAX: usize = 128;

impl OutputSource for EventOutbox {
    fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.poll_output()
    }

    fn output_bytes(&self) -> usize {
        self.output_bytes()
    }

    fn has_pending(&self) -> bool {
        self.has_pending()
    }

    fn is_done(&self) -> bool {
        self.is_done()
    }
}

impl OutputSource for AnnotateStream {
    fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.poll_output()
    }

    fn output_bytes(&self) -> usize {
        self.output_bytes()
    }

    fn has_pending(&self) -> bool {
        false
    }

    fn is_done(&self) -> bool {
        self.is_done()
    }
}

/// The two streams of a running session.
pub(crate) struct SessionStreams {
    inputs: StreamWriter<Input>,
    outputs: StreamReader<Output>,
}

/// Starts a session.
pub(crate) async fn open(session_request: &SessionRequest) -> Result<SessionStreams, Problem> {
    let (inputs, reader) = wit_stream::new::<Input>();
    match session::run(Start::Config(config(session_request)), reader).await {
        Ok(outputs) => Ok(SessionStreams { inputs, outputs }),
        Err(failure) => Err(Problem::internal(&format!("the session did not begin: {}", wording::in_words(&failure)))),
    }
}

pub(crate) fn config(session_request: &SessionRequest) -> String {
    String::from_utf8(session_request.to_json()).expect("JSON is UTF-8")
}

/// The source of a session's inputs.
pub(crate) enum InputSource {
    /// Lines of a body that arrives.
    Lines(BodyReader),
    /// Captions that were read.
    Captions(Vec<Input>),
}

impl InputSource {
    /// The cues of captions, each with its line, and those that cannot be read as refusals.
    pub(crate) fn captions(body: &[u8]) -> Result<Self, Problem> {
        let text = captions::decode(body).map_err(|error| Problem::not_text(&error))?;
        let cues = captions::read(&text, Captions::of_text(&text));
        let input = |cue| match cue {
            Ok(Cue { line, chunk }) => Input { line, seq: None, body: InputBody::Chunk(chunk) },
            Err(CaptionError { line, reason }) => {
                let refusal = session::Refusal { code: "invalid_cue".into(), field: None, message: reason.to_string() };
                Input { line, seq: None, body: InputBody::Refused(refusal) }
            }
        };
        Ok(Self::Captions(cues.into_iter().map(input).collect()))
    }
}

/// Streams the events of a session until it ends or the client is gone.
pub(crate) async fn stream(
    source: InputSource,
    opened: SessionStreams,
    session_request: SessionRequest,
    framing: Framing,
    settings: &Settings,
    began: Now,
    client: Client,
) {
    let duplex = Duplex::new(EventOutbox::one_shot(Annotate::from(&session_request), framing), settings, began);
    let work = async {
        let SessionStreams { inputs, outputs } = opened;
        let feed = pin!(feed(&duplex, source, inputs, settings));
        let receive = pin!(receive(&duplex, &session_request, outputs, settings));
        // The outputs end after the inputs have ended, or when the session is lost.
        match select(feed, receive).await {
            Either::Left(((), receive)) => receive.await,
            Either::Right(_) => duplex.session.borrow_mut().handle_input_failure(lost()),
        }
        duplex.session.borrow_mut().handle_end();
        duplex.changed();
    };
    duplex.serve(work, client).await;
}

/// Feeds the inputs, and after them the end of the session.
async fn feed(
    duplex: &Duplex<'_, EventOutbox>,
    source: InputSource,
    mut inputs: StreamWriter<Input>,
    settings: &Settings,
) {
    let refusal = match source {
        InputSource::Lines(body) => {
            let idle = pin!(duplex.idle_unless(body.may_be_quiet));
            match select(pin!(feed_lines(duplex, body, &mut inputs)), idle).await {
                Either::Left((refusal, _)) => refusal,
                Either::Right(_) => Some(ItemError::idle(settings.body_timeout_ms).into()),
            }
        }
        InputSource::Captions(cues) => feed_cues(duplex, cues, &mut inputs).await,
    };
    if let Some(refusal) = refusal {
        duplex.session.borrow_mut().handle_input_failure(refusal);
    }
    // After any end of the input, the open segment becomes final.
    inputs.write_one(Input { line: 0, seq: None, body: InputBody::End }).await;
}

/// Feeds the lines of a body. Returns the refusal that ended the input early, if any.
async fn feed_lines(
    duplex: &Duplex<'_, EventOutbox>,
    body: BodyReader,
    inputs: &mut StreamWriter<Input>,
) -> Option<Refusal> {
    let read = duplex.read_lines(body, async |lines, rest| {
        if let Some(error) = duplex.response_too_large() {
            return Err(Refusal::from(error));
        }
        let mut batch = Vec::new();
        while batch.len() < INPUTS_MAX
            && let Some(line) = lines.next_line(rest)
        {
            batch.push(input(&line));
        }
        if !batch.is_empty() && !inputs.write_all(batch).await.is_empty() {
            return Err(lost());
        }
        duplex.wait_for_capacity().await;
        Ok(())
    });
    match read.await {
        Ok(mut lines) => inputs.write_one(input(&lines.last_line()?)).await.map(|_| lost()),
        Err(refusal) => Some(refusal),
    }
}

/// Feeds cues. Returns the refusal that ended the input early, if any.
async fn feed_cues(
    duplex: &Duplex<'_, EventOutbox>,
    cues: Vec<Input>,
    inputs: &mut StreamWriter<Input>,
) -> Option<Refusal> {
    let mut cues = cues.into_iter();
    loop {
        duplex.wait_for_capacity().await;
        let block: Vec<Input> = cues.by_ref().take(INPUTS_MAX).collect();
        if block.is_empty() {
            return None;
        }
        if !inputs.write_all(block).await.is_empty() {
            return Some(lost());
        }
    }
}

/// Reads the outputs of the session until it ends.
async fn receive(
    duplex: &Duplex<'_, EventOutbox>,
    session_request: &SessionRequest,
    mut outputs: StreamReader<Output>,
    settings: &Settings,
) {
    // Other futures of this task run while models compute, so no borrow is held across the await.
    let query_outbox = EventOutbox::one_shot(Annotate::from(session_request), Framing::Ndjson);
    let mut room = Vec::with_capacity(OUTPUTS_MAX);
    loop {
        let (read, mut batch) = outputs.read(room).await;
        for output in batch.drain(..) {
            hand_over(&mut duplex.session.borrow_mut(), output);
        }
        room = batch;
        duplex.session.borrow_mut().handle_pause();
        loop {
            let batch = duplex.session.borrow_mut().poll_batch();
            let Some(mut batch) = batch else { break };
            let queries = query_outbox.queries(&batch);
            if !queries.is_empty() {
                let results = enrich::run_queries(queries, settings).await;
                query_outbox.handle_query_results(&mut batch, results.into_iter());
                duplex.touch();
            }
            duplex.session.borrow_mut().handle_stored(batch, &[]);
        }
        duplex.changed();
        if !matches!(read, StreamResult::Complete(_)) {
            return;
        }
        duplex.wait_for_capacity().await;
    }
}

/// The refusal of a session that ended before its input.
pub(crate) fn lost() -> Refusal {
    let message = "the session ended before its stream";
    ItemError::new("session_lost", message).into()
}

/// Annotates texts and returns the whole response body.
pub(crate) async fn annotate_whole(
    session_request: &SessionRequest,
    texts: Vec<TextInput>,
) -> Result<Vec<u8>, Problem> {
    let annotations = annotate(&config(session_request), texts.iter()).await;
    let annotations = annotations.ok_or_else(|| Problem::internal("the session component does not annotate"))?;
    Ok(blocks_json(session_request.parts(), &texts, &annotations))
}

/// The annotations of texts, in their order; none when the session component fails.
pub(crate) async fn annotate(config: &str, texts: impl Iterator<Item = &TextInput>) -> Option<Vec<core::Annotation>> {
    let texts: Vec<String> = texts.map(|text| text.text.clone()).collect();
    let count = texts.len();
    let annotations = session::annotate(config.to_owned(), texts).await.ok()?;
    (annotations.len() == count).then(|| annotations.into_iter().map(annotation).collect())
}

/// Streams the semantic blocks of lines until the input ends or the client is gone.
pub(crate) async fn annotate_stream(
    body: BodyReader,
    plain: bool,
    session_request: SessionRequest,
    framing: Framing,
    settings: &Settings,
    began: Now,
    client: Client,
) {
    let duplex = Duplex::new(AnnotateStream::new(session_request.parts(), plain, framing), settings, began);
    let work = async {
        let lines = pin!(annotate_lines(&duplex, body, config(&session_request)));
        let refusal = match select(lines, pin!(duplex.idle())).await {
            Either::Left((refusal, _)) => refusal,
            Either::Right(_) => Some(ItemError::idle(settings.body_timeout_ms).into()),
        };
        duplex.session.borrow_mut().handle_end(refusal);
        duplex.changed();
    };
    duplex.serve(work, client).await;
}

/// Annotates the lines of a body. Returns the refusal that ended the input early, if any.
async fn annotate_lines(duplex: &Duplex<'_, AnnotateStream>, body: BodyReader, config: String) -> Option<Refusal> {
    let read = duplex.read_lines(body, async |lines, rest| {
        if let Some(error) = duplex.response_too_large() {
            return Err(Refusal::from(error));
        }
        let mut texts = Vec::new();
        while texts.len() < TEXTS_MAX
            && duplex.session.borrow().output_bytes() < OUT_BYTES_MAX
            && let Some(line) = lines.next_line(rest)
        {
            texts.push(duplex.session.borrow_mut().handle_line(&line));
        }
        if !annotate_texts(duplex, &texts, &config).await {
            return Err(lost());
        }
        duplex.wait_for_capacity().await;
        Ok(())
    });
    let mut lines = match read.await {
        Ok(lines) => lines,
        Err(refusal) => return Some(refusal),
    };
    let last: Vec<NumberedText> =
        lines.last_line().map(|line| duplex.session.borrow_mut().handle_line(&line)).into_iter().collect();
    (!annotate_texts(duplex, &last, &config).await).then(lost)
}

/// Annotates the texts of some lines. False when the session component has ended.
async fn annotate_texts(duplex: &Duplex<'_, AnnotateStream>, lines: &[NumberedText], config: &str) -> bool {
    if lines.is_empty() {
        return true;
    }
    let texts = lines.iter().filter_map(|line| line.text.as_ref().ok());
    let Some(annotations) = annotate(config, texts).await else { return false };
    duplex.session.borrow_mut().handle_annotations(lines, &annotations);
    duplex.touch();
    duplex.changed();
    true
}
