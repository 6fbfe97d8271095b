//! Benchmarks of a session, for each chunk, with annotation: `cargo bench -p weir-core --bench session`.

// The macro makes a public function.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_core::transcripts::{Chunk, Event, Session, SessionConfig, SessionRules};

/// Texts as from speech recognition: a few words each.
const TEXTS: [&str; 8] = [
    "so I wanted to ask about the invoice from last month",
    "because the price on it was not what we agreed",
    "and my manager said it's unacceptable",
    "okay let me check that for you right now",
    "can you tell me when the order was placed?",
    "it was on the third, I think, or maybe the fourth",
    "sounds good, we'll send a corrected one by Friday",
    "if that happens again we are switching to a competitor",
];

const CHUNKS: usize = 4096;

/// Chunks of a call in which the speaker changes every `turn` chunks.
fn chunks(turn: usize) -> Vec<Chunk> {
    (0..CHUNKS)
        .map(|at| Chunk {
            start: at as f64,
            end: at as f64 + 0.9,
            text: TEXTS[at % TEXTS.len()].to_owned(),
            speaker_id: Some(["agent", "customer"][at / turn % 2].to_owned()),
        })
        .collect()
}

fn ingest(c: &mut Criterion) {
    let mut group = c.benchmark_group("session: ingest a chunk with keywords and intent");
    group.throughput(Throughput::Elements(CHUNKS as u64));
    for (name, turn) in [("a segment of 4 chunks", 4), ("every chunk a segment", 1), ("a segment of 32 chunks", 32)] {
        let rules = SessionRules::new(SessionConfig::default()).expect("the defaults are a configuration");
        group.bench_function(name, |b| {
            b.iter_batched(
                || (Session::new(rules.clone(), 0), chunks(turn)),
                |(mut session, chunks)| {
                    let mut finals = 0u64;
                    for (now, chunk) in chunks.into_iter().enumerate() {
                        session.handle_chunk(now as u64, Some(now as u64 + 1), chunk).expect("it is in order");
                        while let Some(output) = session.poll_event(now as u64) {
                            finals += u64::from(matches!(black_box(&output.event), Event::Final(_)));
                        }
                    }
                    assert!(finals > 0);
                    session
                },
                criterion::BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn annotate(c: &mut Criterion) {
    let rules = SessionRules::new(SessionConfig::default()).expect("the defaults are a configuration");
    let mut group = c.benchmark_group("session: annotate a text of 8 to 11 words");
    group.throughput(Throughput::Elements(TEXTS.len() as u64));
    group.bench_function("keywords, actions and intent", |b| {
        let mut buffers = Default::default();
        b.iter(|| {
            for text in TEXTS {
                black_box(rules.annotator().annotate(black_box(text), &mut buffers));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, ingest, annotate);
criterion_main!(benches);
