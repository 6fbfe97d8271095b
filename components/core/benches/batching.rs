//! Benchmarks of the queue and the batcher, for each item: `cargo bench -p weir-core --bench batching`.
#![allow(missing_docs, reason = "criterion writes the functions")]
#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_core::inference::batch::{BatchLimits, Batcher, Form, Shapes};
use weir_core::inference::queue::{DropPolicy, Queue, QueueConfig, Ticket};

const QUEUED: u64 = 100_000;

fn queue() -> Queue<u64> {
    Queue::new(QueueConfig {
        items_max: usize::MAX,
        tokens_max: u64::MAX,
        owner_items_max: usize::MAX,
        quantum_tokens: 64,
        age_ns_max: 10_000_000_000,
        drop_policy: DropPolicy::None,
        window: None,
    })
}

/// A queue with a constant length of [`QUEUED`]: each iteration pushes and takes one item.
fn push_and_take(c: &mut Criterion) {
    let mut group = c.benchmark_group("queue of 100,000: push and take an item");
    group.throughput(Throughput::Elements(1));
    for (name, calls, dated) in [
        ("one call", 1, false),
        ("64 calls", 64, false),
        ("64 calls, dated", 64, true),
        ("a call each", u64::MAX, false),
        ("a call each, dated", u64::MAX, true),
    ] {
        group.bench_function(name, |b| {
            let mut queue = queue();
            let mut now = 0u64;
            let mut push = |queue: &mut Queue<u64>| {
                now += 1000;
                // The deadlines of clients differ.
                let deadline_ns = dated.then_some(now + 60_000_000_000 + now % 7 * 1_000_000);
                let ticket = Ticket { call: now / 1000 % calls, owner: 0, tokens: 20, deadline_ns };
                drop(queue.push(now, ticket, now));
                now
            };
            for _ in 0..QUEUED {
                push(&mut queue);
            }
            b.iter(|| {
                let now = push(&mut queue);
                black_box(queue.take(now, 1, 1000));
            });
            assert_eq!(queue.len() as u64, QUEUED);
        });
    }
    group.finish();
}

/// Forms batches from texts of mixed length; measured for each text.
fn form_batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("batcher: push a text and form its batch");
    group.throughput(Throughput::Elements(64));
    for (name, form, shapes) in [("packed", Form::Packed, Shapes::Bounded), ("padded", Form::Padded, Shapes::Any)] {
        group.bench_function(name, |b| {
            let limits = BatchLimits { rows_max: 128, tokens_max: 128, time_ns_max: 0 };
            let mut batcher = Batcher::new(form, shapes, limits);
            let mut length = 0;
            b.iter(|| {
                for _ in 0..64 {
                    length = (length * 31 + 7) % 53;
                    batcher.push(1, [(4 + length, length)]);
                }
                while let Some(batch) = batcher.next_batch() {
                    batcher.record(batch.shape, 90_000 * batch.shape.tokens as u64);
                    black_box(batch);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, push_and_take, form_batches);
criterion_main!(benches);
