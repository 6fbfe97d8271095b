//! One text on its way through chunking, sentiment, summary and entities.
//!
//! A [`Process`] decides which work to hand to inference and which event comes next; it holds no socket, no clock and
//! no stream. A driver polls work, brings answers in whatever order they come, and polls events until there are none:
//! the events come in the order of the contract, however the answers came.

use std::{collections::VecDeque, num::NonZeroUsize};

use crate::{
    chunk::{self, Offsets},
    failure::Failure,
    tally::{Tally, sentiment_label},
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
                    return Some(Event::Completed { elapsed_ns, unix_ns: now.unix_ns });
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
        Some(event.unwrap_or_else(|failure| Event::StepError { step, failure }))
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
                Some(Event::StepError { step: Step::Sentiment, failure: unexpected(other) })
            }
        }
    }

    fn summarized(&self, summary: String) -> Event {
        let compression_ratio = chunk::code_points(&summary) as f64 / self.text_length as f64;
        Event::SummarizationComplete { summary, compression_ratio }
    }

    fn located(&self, spans: Vec<Span>) -> Result<Event, Failure> {
        let offsets = Offsets::new(&self.request.text);
        let entities = spans
            .into_iter()
            .map(|Span { label, start, end }| {
                let text = offsets
                    .slice(&self.request.text, start as usize, end as usize)
                    .ok_or_else(|| {
                        Failure::Other(format!("the model put an entity at {start}..{end}, outside the text"))
                    })?
                    .to_owned();
                Ok(Entity { text, label, start, end })
            })
            .collect::<Result<_, _>>()?;
        Ok(Event::EntitiesComplete { entities })
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

fn unexpected(answer: Result<Answer, Failure>) -> Failure {
    match answer {
        Err(failure) => failure,
        Ok(_) => Failure::Other("the model answered something that was not asked".to_owned()),
    }
}
