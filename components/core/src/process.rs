//! One text on its way through chunking, sentiment, summary and entities.
//!
//! A [`Process`] decides which work to hand to inference and which event comes next; it holds no socket, no clock and
//! no stream. A driver polls work, brings answers in whatever order they come, and polls events until there are none:
//! the events come in the order of the contract, however the answers came.

use std::{collections::VecDeque, num::NonZeroUsize};

use crate::{
    failure::Failure,
    inference::{
        chunk::{self, Offsets},
        tally::{Tally, sentiment_label},
    },
};

/// A text must be longer than this many code points to be summarized.
pub const SUMMARY_CODE_POINTS_OVER: usize = 100;

/// What is asked of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The text.
    pub text: String,
    /// Label each chunk and the whole.
    pub include_sentiment: bool,
    /// Summarize, if the text is longer than [`SUMMARY_CODE_POINTS_OVER`].
    pub include_summary: bool,
    /// Find entities.
    pub include_entities: bool,
    /// Code points per chunk; none for the whole text as one chunk.
    pub chunk_size: Option<NonZeroUsize>,
}

/// The clocks, read by the driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds since an arbitrary moment; never goes back.
    pub monotonic_ns: u64,
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
}

/// A step that asks a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Labels of the chunks.
    Sentiment,
    /// The summary of the whole text.
    Summarization,
    /// Named entities of the whole text.
    Entities,
}

/// A piece of work for inference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work<'a> {
    /// Unique within the process; the answer carries it.
    pub id: u64,
    /// What to ask.
    pub step: Step,
    /// Of which text.
    pub text: &'a str,
}

/// What inference said about a piece of work.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The best label and its score.
    Label {
        /// As the model calls it.
        label: String,
        /// Its score.
        score: f32,
    },
    /// A summary.
    Summary(String),
    /// Entities in the order of the text.
    Entities(Vec<Span>),
}

/// A labelled span, in code points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its label.
    pub label: String,
    /// First code point.
    pub start: u32,
    /// Code point after the last.
    pub end: u32,
}

/// The sentiment of a chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkSentiment {
    /// The chunk's number, from 1.
    pub chunk: usize,
    /// `POSITIVE`, `NEGATIVE`, `NEUTRAL`, or a label of the model in capitals.
    pub sentiment: String,
    /// The score of the label.
    pub confidence: f32,
}

/// An entity with its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    /// The slice of the text.
    pub text: String,
    /// Its label.
    pub label: String,
    /// First code point.
    pub start: u32,
    /// Code point after the last.
    pub end: u32,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The text was accepted.
    Started {
        /// Nanoseconds since 1970.
        unix_ns: u64,
        /// Code points.
        text_length: usize,
    },
    /// The text is being cut.
    Chunking,
    /// The text was cut.
    Chunked {
        /// How many chunks.
        chunks: usize,
    },
    /// A step began.
    Processing(Step),
    /// A chunk was labelled.
    SentimentProgress {
        /// The chunk.
        result: ChunkSentiment,
        /// Of how many.
        chunks: usize,
    },
    /// Every chunk was labelled.
    SentimentComplete {
        /// The verdict.
        overall: &'static str,
        /// All chunks, in order.
        chunks: Vec<ChunkSentiment>,
        /// How many of each kind.
        tally: Tally,
    },
    /// The text was summarized.
    SummarizationComplete {
        /// The summary.
        summary: String,
        /// Code points of the summary by code points of the text.
        compression_ratio: f64,
    },
    /// Entities were found.
    EntitiesComplete {
        /// In the order of the text.
        entities: Vec<Entity>,
    },
    /// A step failed; the others go on.
    StepError {
        /// The step.
        step: Step,
        /// Why.
        failure: Failure,
    },
    /// Nothing more will come.
    Completed {
        /// The steps that failed, in the order of their errors.
        failed: Vec<Step>,
        /// Since the beginning.
        elapsed_ns: u64,
        /// Nanoseconds since 1970.
        unix_ns: u64,
    },
    /// The process was given up; nothing more will come.
    Error(Failure),
}

/// Where the events have got to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Start,
    Chunking,
    Chunked,
    Begin(Step),
    Await(Step),
    Complete,
    Done,
}

/// The whole of it.
#[derive(Debug)]
pub struct Process {
    request: Request,
    text_length: usize,
    /// Byte ranges of the chunks.
    chunks: Vec<std::ops::Range<usize>>,
    began_ns: u64,
    /// Work not yet handed out.
    work: VecDeque<(u64, Step)>,
    /// Answers by id: chunks first, then the summary, then the entities.
    answers: Vec<Option<Result<Answer, Failure>>>,
    stage: Stage,
    /// Sentiments already told.
    told: Vec<ChunkSentiment>,
    tally: Tally,
    /// The steps that failed so far.
    failed: Vec<Step>,
}

impl Process {
    /// Takes a request at a time.
    pub fn new(request: Request, now: Now) -> Self {
        let text_length = chunk::code_points(&request.text);
        let size = request.chunk_size.or(NonZeroUsize::new(text_length)).unwrap_or(NonZeroUsize::MIN);
        let mut at = 0;
        let chunks: Vec<_> = chunk::split(&request.text, size)
            .map(|chunk| {
                let range = at..at + chunk.len();
                at = range.end;
                range
            })
            .collect();
        let mut process = Self {
            text_length,
            began_ns: now.monotonic_ns,
            work: VecDeque::new(),
            answers: std::iter::repeat_with(|| None).take(chunks.len() + 2).collect(),
            stage: Stage::Start,
            told: Vec::new(),
            tally: Tally::default(),
            failed: Vec::new(),
            chunks,
            request,
        };
        if process.includes(Step::Sentiment) {
            process.work.extend((0..process.chunks.len()).map(|chunk| (chunk as u64, Step::Sentiment)));
        }
        for step in [Step::Summarization, Step::Entities] {
            if process.includes(step) {
                process.work.push_back((process.id(step), step));
            }
        }
        process
    }

    /// The next work for inference. All of it can be handed out at once: later steps then run beside earlier ones.
    pub fn poll_work(&mut self) -> Option<Work<'_>> {
        let (id, step) = self.work.pop_front()?;
        let text = match step {
            Step::Sentiment => self.chunks.get(id as usize).and_then(|range| self.request.text.get(range.clone()))?,
            Step::Summarization | Step::Entities => &self.request.text,
        };
        Some(Work { id, step, text })
    }

    /// Takes an answer. Answers to what was not asked, and second answers, are ignored.
    pub fn handle_answer(&mut self, id: u64, answer: Result<Answer, Failure>) {
        if let Some(slot) = usize::try_from(id).ok().and_then(|at| self.answers.get_mut(at)) {
            slot.get_or_insert(answer);
        }
    }

    /// Inference will answer no more: what it left open has failed.
    pub fn handle_end(&mut self, failure: &Failure) {
        self.work.clear();
        for slot in &mut self.answers {
            slot.get_or_insert_with(|| Err(failure.clone()));
        }
    }

    /// Gives up: the next event is the last and says why.
    pub fn handle_abort(&mut self, failure: Failure) -> Option<Event> {
        self.work.clear();
        (std::mem::replace(&mut self.stage, Stage::Done) != Stage::Done).then_some(Event::Error(failure))
    }

    /// True when the last event has been polled.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// The next event, or none until another answer comes.
    pub fn poll_event(&mut self, now: Now) -> Option<Event> {
        loop {
            match self.stage {
                Stage::Start => {
                    self.stage = Stage::Chunking;
                    return Some(Event::Started { unix_ns: now.unix_ns, text_length: self.text_length });
                }
                Stage::Chunking => {
                    self.stage = Stage::Chunked;
                    return Some(Event::Chunking);
                }
                Stage::Chunked => {
                    self.stage = Stage::Begin(Step::Sentiment);
                    return Some(Event::Chunked { chunks: self.chunks.len() });
                }
                Stage::Begin(step) if self.includes(step) => {
                    self.stage = Stage::Await(step);
                    return Some(Event::Processing(step));
                }
                Stage::Begin(step) => self.stage = after(step),
                Stage::Await(step) => return self.poll_step(step),
                Stage::Complete => {
                    self.stage = Stage::Done;
                    let elapsed_ns = now.monotonic_ns.saturating_sub(self.began_ns);
                    let failed = std::mem::take(&mut self.failed);
                    return Some(Event::Completed { failed, elapsed_ns, unix_ns: now.unix_ns });
                }
                Stage::Done => return None,
            }
        }
    }

    fn poll_step(&mut self, step: Step) -> Option<Event> {
        let event = match step {
            Step::Sentiment => return self.poll_sentiment(),
            Step::Summarization => match self.take_answer(self.id(step))? {
                Ok(Answer::Summary(summary)) => Ok(self.summarized(summary)),
                other => Err(unexpected(other)),
            },
            Step::Entities => match self.take_answer(self.id(step))? {
                Ok(Answer::Entities(spans)) => self.located(spans),
                other => Err(unexpected(other)),
            },
        };
        self.stage = after(step);
        Some(event.unwrap_or_else(|failure| self.step_failed(step, failure)))
    }

    fn step_failed(&mut self, step: Step, failure: Failure) -> Event {
        self.failed.push(step);
        Event::StepError { step, failure }
    }

    fn poll_sentiment(&mut self) -> Option<Event> {
        let next = self.told.len();
        if next == self.chunks.len() {
            self.stage = after(Step::Sentiment);
            let (chunks, tally) = (std::mem::take(&mut self.told), self.tally);
            return Some(Event::SentimentComplete { overall: tally.overall(), chunks, tally });
        }
        match self.take_answer(next as u64)? {
            Ok(Answer::Label { label, score }) => {
                let sentiment = sentiment_label(&label);
                self.tally.record(&sentiment);
                let result = ChunkSentiment { chunk: next + 1, sentiment, confidence: score };
                self.told.push(result.clone());
                Some(Event::SentimentProgress { result, chunks: self.chunks.len() })
            }
            other => {
                self.stage = after(Step::Sentiment);
                Some(self.step_failed(Step::Sentiment, unexpected(other)))
            }
        }
    }

    fn summarized(&self, summary: String) -> Event {
        let compression_ratio = compression(&summary, self.text_length);
        Event::SummarizationComplete { summary, compression_ratio }
    }

    fn located(&self, spans: Vec<Span>) -> Result<Event, Failure> {
        locate(&self.request.text, spans).map(|entities| Event::EntitiesComplete { entities })
    }

    fn includes(&self, step: Step) -> bool {
        match step {
            Step::Sentiment => self.request.include_sentiment,
            Step::Summarization => self.request.include_summary && self.text_length > SUMMARY_CODE_POINTS_OVER,
            Step::Entities => self.request.include_entities,
        }
    }

    /// The id of a step that asks once.
    fn id(&self, step: Step) -> u64 {
        self.chunks.len() as u64 + u64::from(step == Step::Entities)
    }

    fn take_answer(&mut self, id: u64) -> Option<Result<Answer, Failure>> {
        self.answers.get_mut(usize::try_from(id).ok()?)?.take()
    }
}

fn after(step: Step) -> Stage {
    match step {
        Step::Sentiment => Stage::Begin(Step::Summarization),
        Step::Summarization => Stage::Begin(Step::Entities),
        Step::Entities => Stage::Complete,
    }
}

/// Code points of a summary by those of its text.
pub fn compression(summary: &str, text_length: usize) -> f64 {
    chunk::code_points(summary) as f64 / text_length as f64
}

/// Spans with their slices of the text; a span outside it is the model's failure.
pub fn locate(text: &str, spans: Vec<Span>) -> Result<Vec<Entity>, Failure> {
    let offsets = Offsets::new(text);
    let entity = |Span { label, start, end }| {
        let outside = || Failure::Other(format!("the model put an entity at {start}..{end}, outside the text"));
        let text = offsets.slice(text, start as usize, end as usize).ok_or_else(outside)?.to_owned();
        Ok(Entity { text, label, start, end })
    };
    spans.into_iter().map(entity).collect()
}

/// The failure of an answer that is not of the kind that was asked for.
pub fn unexpected(answer: Result<Answer, Failure>) -> Failure {
    match answer {
        Err(failure) => failure,
        Ok(_) => Failure::Other("the model answered something that was not asked".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(text: &str, flags: [bool; 3], chunk_size: usize) -> Request {
        Request {
            text: text.to_owned(),
            include_sentiment: flags[0],
            include_summary: flags[1],
            include_entities: flags[2],
            chunk_size: NonZeroUsize::new(chunk_size),
        }
    }

    fn at(ms: u64) -> Now {
        Now { monotonic_ns: ms * 1_000_000, unix_ns: 1_700_000_000_000_000_000 + ms * 1_000_000 }
    }

    /// The name of an event, as the contract has it.
    fn name(event: &Event) -> &'static str {
        match event {
            Event::Started { .. } => "started",
            Event::Chunking => "chunking",
            Event::Chunked { .. } => "chunked",
            Event::Processing(Step::Sentiment) => "sentiment_processing",
            Event::Processing(Step::Summarization) => "summarization_processing",
            Event::Processing(Step::Entities) => "entities_processing",
            Event::SentimentProgress { .. } => "sentiment_progress",
            Event::SentimentComplete { .. } => "sentiment_complete",
            Event::SummarizationComplete { .. } => "summarization_complete",
            Event::EntitiesComplete { .. } => "entities_complete",
            Event::StepError { step: Step::Sentiment, .. } => "sentiment_error",
            Event::StepError { step: Step::Summarization, .. } => "summarization_error",
            Event::StepError { step: Step::Entities, .. } => "entities_error",
            Event::Completed { .. } => "completed",
            Event::Error(_) => "error",
        }
    }

    fn names(events: &[Event]) -> Vec<&'static str> {
        events.iter().map(name).collect()
    }

    fn drain(process: &mut Process, now: Now) -> Vec<Event> {
        std::iter::from_fn(|| process.poll_event(now)).collect()
    }

    fn take_work(process: &mut Process) -> Vec<(u64, Step, String)> {
        let mut all = Vec::new();
        while let Some(work) = process.poll_work() {
            all.push((work.id, work.step, work.text.to_owned()));
        }
        all
    }

    fn good_answer(step: Step) -> Answer {
        match step {
            Step::Sentiment => Answer::Label { label: "positive".to_owned(), score: 0.5 },
            Step::Summarization => Answer::Summary("In short.".to_owned()),
            Step::Entities => Answer::Entities(vec![Span { label: "PER".to_owned(), start: 0, end: 4 }]),
        }
    }

    const LONG: &str = "Alice went to the market on a sunny day and bought apples, pears, plums, bread and \
                        some cheese for the road home.";

    #[test]
    fn every_combination_of_flags_has_its_events_in_order() {
        for bits in 0..8u8 {
            for text in [LONG, "Alice is short."] {
                let flags = [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0];
                let mut process = Process::new(request(text, flags, 50), at(0));
                let mut want = vec!["started", "chunking", "chunked"];
                if flags[0] {
                    want.push("sentiment_processing");
                    want.extend(std::iter::repeat_n("sentiment_progress", text.chars().count().div_ceil(50)));
                    want.push("sentiment_complete");
                }
                if flags[1] && text == LONG {
                    want.extend(["summarization_processing", "summarization_complete"]);
                }
                if flags[2] {
                    want.extend(["entities_processing", "entities_complete"]);
                }
                want.push("completed");
                // Answers come in reverse.
                for (id, step, _) in take_work(&mut process).into_iter().rev() {
                    process.handle_answer(id, Ok(good_answer(step)));
                }
                assert_eq!(names(&drain(&mut process, at(5))), want, "{flags:?} {text}");
                assert!(process.is_done());
            }
        }
    }

    #[test]
    fn all_work_is_handed_out_at_once_and_named_once() {
        let mut process = Process::new(request(LONG, [true; 3], 50), at(0));
        let work = take_work(&mut process);
        let steps: Vec<Step> = work.iter().map(|(_, step, _)| *step).collect();
        assert_eq!(steps, [Step::Sentiment, Step::Sentiment, Step::Sentiment, Step::Summarization, Step::Entities]);
        let ids: Vec<u64> = work.iter().map(|(id, ..)| *id).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4]);
        assert_eq!(work[..3].iter().map(|(.., text)| text.as_str()).collect::<String>(), LONG);
        assert!(work[3..].iter().all(|(.., text)| text == LONG));
    }

    #[test]
    fn a_summary_is_for_more_than_100_code_points() {
        for (length, want) in [(100, 0), (101, 1)] {
            let mut process = Process::new(request(&"😀".repeat(length), [false, true, false], 50), at(0));
            assert_eq!(take_work(&mut process).len(), want, "{length}");
        }
    }

    #[test]
    fn without_a_size_the_text_is_one_chunk() {
        let mut request = request(LONG, [true, false, false], 50);
        request.chunk_size = None;
        let mut process = Process::new(request, at(0));
        assert_eq!(take_work(&mut process), [(0, Step::Sentiment, LONG.to_owned())]);
    }

    #[test]
    fn progress_waits_for_the_chunks_before_it() {
        let mut process = Process::new(request(LONG, [true, false, false], 50), at(0));
        assert_eq!(names(&drain(&mut process, at(0))), ["started", "chunking", "chunked", "sentiment_processing"]);
        let label = |label: &str| Ok(Answer::Label { label: label.to_owned(), score: 0.25 });
        process.handle_answer(1, label("negative"));
        assert_eq!(process.poll_event(at(1)), None);
        process.handle_answer(0, label("positive"));
        let want = |chunk, sentiment: &str| Event::SentimentProgress {
            result: ChunkSentiment { chunk, sentiment: sentiment.to_owned(), confidence: 0.25 },
            chunks: 3,
        };
        assert_eq!(drain(&mut process, at(1)), [want(1, "POSITIVE"), want(2, "NEGATIVE")]);
        process.handle_answer(2, label("neutral"));
        let rest = drain(&mut process, at(1250));
        assert_eq!(names(&rest), ["sentiment_progress", "sentiment_complete", "completed"]);
        let Event::SentimentComplete { overall, chunks, tally } = &rest[1] else { panic!("{rest:?}") };
        assert_eq!((*overall, chunks.len()), ("NEUTRAL", 3));
        assert_eq!(*tally, Tally { positive: 1, negative: 1 });
        assert_eq!(rest[2], Event::Completed { failed: vec![], elapsed_ns: 1_250_000_000, unix_ns: at(1250).unix_ns });
    }

    #[test]
    fn a_failing_step_is_told_and_the_next_goes_on() {
        let mut process = Process::new(request(LONG, [true; 3], 50), at(0));
        take_work(&mut process);
        let failure = Failure::Engine("cracked".to_owned());
        process.handle_answer(0, Ok(good_answer(Step::Sentiment)));
        process.handle_answer(1, Err(failure.clone()));
        process.handle_answer(2, Ok(good_answer(Step::Sentiment)));
        process.handle_answer(3, Err(Failure::DeadlineExceeded));
        process.handle_answer(4, Ok(good_answer(Step::Entities)));
        let events = drain(&mut process, at(0));
        assert_eq!(
            names(&events)[3..],
            [
                "sentiment_processing",
                "sentiment_progress",
                "sentiment_error",
                "summarization_processing",
                "summarization_error",
                "entities_processing",
                "entities_complete",
                "completed"
            ]
        );
        assert_eq!(events[5], Event::StepError { step: Step::Sentiment, failure });
        let Some(Event::Completed { failed, .. }) = events.last() else { panic!("{events:?}") };
        assert_eq!(*failed, [Step::Sentiment, Step::Summarization]);
    }

    #[test]
    fn an_answer_of_another_kind_is_a_failure() {
        let mut process = Process::new(request(LONG, [true; 3], 200), at(0));
        for (id, step, _) in take_work(&mut process) {
            let other = if step == Step::Summarization { Step::Entities } else { Step::Summarization };
            process.handle_answer(id, Ok(good_answer(other)));
        }
        let names = names(&drain(&mut process, at(0)));
        for error in ["sentiment_error", "summarization_error", "entities_error", "completed"] {
            assert!(names.contains(&error), "{names:?}");
        }
    }

    #[test]
    fn entities_are_slices_by_code_point() {
        let text = "😀 Zoë\u{301} 👨\u{200d}👩 met";
        let mut process = Process::new(request(text, [false, false, true], 50), at(0));
        let span = |start, end| Span { label: "PER".to_owned(), start, end };
        let (id, ..) = take_work(&mut process).remove(0);
        process.handle_answer(id, Ok(Answer::Entities(vec![span(2, 6), span(7, 10), span(11, 14)])));
        let events = drain(&mut process, at(0));
        let Event::EntitiesComplete { entities } = &events[4] else { panic!("{events:?}") };
        let texts: Vec<&str> = entities.iter().map(|entity| entity.text.as_str()).collect();
        assert_eq!(texts, ["Zoë\u{301}", "👨\u{200d}👩", "met"]);
    }

    #[test]
    fn an_entity_outside_the_text_is_a_failure() {
        for (start, end) in [(0, 99), (5, 4), (u32::MAX, u32::MAX)] {
            let mut process = Process::new(request("ten points", [false, false, true], 50), at(0));
            let (id, ..) = take_work(&mut process).remove(0);
            process.handle_answer(id, Ok(Answer::Entities(vec![Span { label: "PER".to_owned(), start, end }])));
            assert_eq!(names(&drain(&mut process, at(0)))[4..], ["entities_error", "completed"]);
        }
    }

    #[test]
    fn compression_counts_code_points() {
        let mut process = Process::new(request(&"é".repeat(200), [false, true, false], 200), at(0));
        let (id, ..) = take_work(&mut process).remove(0);
        process.handle_answer(id, Ok(Answer::Summary("é".repeat(50))));
        let events = drain(&mut process, at(0));
        let Event::SummarizationComplete { compression_ratio, .. } = events[4] else { panic!("{events:?}") };
        assert_eq!(compression_ratio, 0.25);
    }

    #[test]
    fn what_inference_left_open_has_failed() {
        let mut process = Process::new(request(LONG, [true; 3], 200), at(0));
        process.handle_answer(0, Ok(good_answer(Step::Sentiment)));
        process.handle_end(&Failure::Unavailable("gone".to_owned()));
        let names = names(&drain(&mut process, at(0)));
        assert_eq!(
            names[4..],
            [
                "sentiment_progress",
                "sentiment_complete",
                "summarization_processing",
                "summarization_error",
                "entities_processing",
                "entities_error",
                "completed"
            ]
        );
        assert_eq!(process.poll_work(), None);
    }

    #[test]
    fn an_abort_is_the_last_event_and_comes_once() {
        let mut process = Process::new(request(LONG, [true; 3], 200), at(0));
        drain(&mut process, at(0));
        let failure = Failure::RequestTimeout { timeout_ms: 5 };
        assert_eq!(process.handle_abort(failure.clone()), Some(Event::Error(failure.clone())));
        process.handle_answer(0, Ok(good_answer(Step::Sentiment)));
        assert_eq!(process.poll_event(at(9)), None);
        assert!(process.is_done());
        assert_eq!(process.handle_abort(failure), None);
    }

    /// A text, flags, a size, and for each piece of work when it is answered and whether it fails.
    fn runs() -> impl Strategy<Value = (String, [bool; 3], usize, Vec<(u32, bool)>)> {
        ("\\PC{1,300}", any::<[bool; 3]>(), 1usize..80, proptest::collection::vec((any::<u32>(), any::<bool>()), 310))
    }

    proptest! {
        #[test]
        fn answers_in_any_order_give_the_events_of_the_contract((text, flags, size, answers) in runs()) {
            let mut process = Process::new(request(&text, flags, size), at(0));
            let mut work = take_work(&mut process);
            work.sort_by_key(|(id, ..)| answers[*id as usize % answers.len()].0);
            let mut events = drain(&mut process, at(0));
            for (id, step, _) in work {
                let answer = match answers[id as usize % answers.len()].1 {
                    true => Err(Failure::DeadlineExceeded),
                    // A span that fits every text.
                    false if step == Step::Entities => Ok(Answer::Entities(Vec::new())),
                    false => Ok(good_answer(step)),
                };
                process.handle_answer(id, answer);
                events.extend(drain(&mut process, at(1)));
            }
            prop_assert!(process.is_done());
            let order = [
                "started", "chunking", "chunked", "sentiment_processing", "sentiment_progress", "sentiment_complete",
                "sentiment_error", "summarization_processing", "summarization_complete", "summarization_error",
                "entities_processing", "entities_complete", "entities_error", "completed",
            ];
            let places: Vec<_> = events.iter().map(|e| order.iter().position(|n| *n == name(e))).collect();
            prop_assert!(places.is_sorted(), "{:?}", names(&events));
            let count = |wanted: &str| names(&events).into_iter().filter(|n| *n == wanted).count();
            for (step, flag) in [
                ("sentiment", flags[0]),
                ("summarization", flags[1] && text.chars().count() > SUMMARY_CODE_POINTS_OVER),
                ("entities", flags[2]),
            ] {
                prop_assert_eq!(count(&format!("{step}_processing")), usize::from(flag));
                let ends = count(&format!("{step}_complete")) + count(&format!("{step}_error"));
                prop_assert_eq!(ends, usize::from(flag));
            }
            // Chunks are told from the first on, without a hole.
            let told: Vec<usize> = events.iter().filter_map(|event| match event {
                Event::SentimentProgress { result, .. } => Some(result.chunk),
                _ => None,
            }).collect();
            prop_assert_eq!(&told, &(1..=told.len()).collect::<Vec<_>>());
            if count("sentiment_complete") == 1 {
                prop_assert_eq!(told.len(), text.chars().count().div_ceil(size));
            }
        }
    }
}
