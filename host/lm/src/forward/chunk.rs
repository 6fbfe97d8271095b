//! Tokens that are computed together through all layers, and their distribution over threads.

use std::ops::Range;

use super::job::Job;
use crate::model::Model;
use crate::team::share;

/// The most tokens of a chunk: their activations fit the second-level cache.
const CHUNK_TOKENS: usize = 128;
/// A thread's share of rows begins at a multiple of this: the rows of a tile of a product.
const UNIT_ROWS: usize = 8;
/// Queries of a block of attention: two tiles.
const BLOCK_QUERIES: usize = 24;

/// Tokens of one or more jobs.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) inputs: Vec<Input>,
    /// By thread: the rows whose states it holds.
    pub(super) rows: Vec<Range<usize>>,
    /// Attention, by run of tokens and head: `run * kv_heads + head`.
    pub(super) blocks: Vec<AttentionBlock>,
    /// By row: its run, and its index in the run.
    pub(super) runs: Vec<(usize, usize)>,
    /// Rows after which a token is sampled.
    pub(super) samples: Vec<usize>,
    /// `[row][pair]`
    pub(super) cosines: Vec<f32>,
    /// `[row][pair]`
    pub(super) sines: Vec<f32>,
}

/// A token of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input {
    pub(super) job: usize,
    pub(super) token: u32,
    pub(super) position: usize,
}

/// Attention of consecutive tokens of one job, for one head of keys and values.
#[derive(Clone, Debug)]
pub(super) struct AttentionBlock {
    pub(super) job: usize,
    pub(super) rows: Range<usize>,
    pub(super) head: usize,
    /// The thread that computes it.
    pub(super) thread: usize,
    /// The offset of its result in the part of that thread.
    pub(super) offset: usize,
}

impl Chunk {
    /// Splits the tokens of all jobs.
    pub(super) fn split(model: &Model, jobs: &[Job], threads: usize) -> Vec<Self> {
        let inputs = jobs.iter().enumerate().flat_map(|(job, Job { first, tokens, .. })| {
            let inputs = tokens.iter().enumerate().skip(*first);
            inputs.map(move |(position, token)| Input { job, token: *token, position })
        });
        let inputs: Vec<Input> = inputs.collect();
        inputs.chunks(CHUNK_TOKENS).map(|inputs| Self::new(model, jobs, inputs, threads)).collect()
    }

    fn new(model: &Model, jobs: &[Job], inputs: &[Input], threads: usize) -> Self {
        let count = inputs.len();
        let is_last = |input: &Input| input.position + 1 == jobs[input.job].tokens.len();
        let is_sampled = |input: &Input| jobs[input.job].sample.is_some() && is_last(input);
        let pairs = model.rotary.pairs();
        let (mut cosines, mut sines) = (vec![0.0; count * pairs], vec![0.0; count * pairs]);
        let angles = cosines.chunks_exact_mut(pairs).zip(sines.chunks_exact_mut(pairs));
        inputs.iter().zip(angles).for_each(|(input, (c, s))| model.rotary.angles(input.position, c, s));
        let (blocks, runs) = attention(model, inputs, threads);
        Self {
            rows: shares(count, threads),
            blocks,
            runs,
            samples: (0..count).filter(|row| is_sampled(&inputs[*row])).collect(),
            inputs: inputs.to_vec(),
            cosines,
            sines,
        }
    }
}

/// Splits rows into consecutive ranges, one for each thread, at multiples of [`UNIT_ROWS`].
fn shares(rows: usize, threads: usize) -> Vec<Range<usize>> {
    let units = rows.div_ceil(UNIT_ROWS);
    (0..threads)
        .map(|thread| {
            let share = share(units, thread, threads);
            (share.start * UNIT_ROWS).min(rows)..(share.end * UNIT_ROWS).min(rows)
        })
        .collect()
}

/// The blocks of attention, each given to the thread with the least work so far, and the run of each row.
fn attention(model: &Model, inputs: &[Input], threads: usize) -> (Vec<AttentionBlock>, Vec<(usize, usize)>) {
    let parameters = model.parameters();
    let tokens_max = (BLOCK_QUERIES / parameters.group()).max(1);
    let (mut blocks, mut runs) = (Vec::new(), Vec::with_capacity(inputs.len()));
    let (mut costs, mut offsets) = (vec![0; threads], vec![0; threads]);
    let mut first = 0;
    while first < inputs.len() {
        let same = inputs[first..].iter().take(tokens_max).take_while(|input| input.job == inputs[first].job);
        let rows = first..first + same.count();
        let run = blocks.len() / parameters.kv_heads;
        runs.extend((0..rows.len()).map(|index| (run, index)));
        for head in 0..parameters.kv_heads {
            let thread = (0..threads).min_by_key(|thread| costs[*thread]).unwrap_or(0);
            blocks.push(AttentionBlock {
                job: inputs[first].job,
                rows: rows.clone(),
                head,
                thread,
                offset: offsets[thread],
            });
            // The cost of a row is the number of its keys, and a constant.
            costs[thread] += rows.len() * (inputs[rows.end - 1].position + 16);
            offsets[thread] += rows.len() * parameters.group() * parameters.head_size;
        }
        first = rows.end;
    }
    (blocks, runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_rows_are_consecutive_and_whole_units_but_the_last() {
        for rows in 0..200 {
            for threads in 1..=5 {
                let shares = shares(rows, threads);
                assert_eq!(shares.iter().cloned().flatten().collect::<Vec<_>>(), (0..rows).collect::<Vec<_>>());
                let begins = shares.iter().filter(|share| !share.is_empty());
                assert!(begins.clone().all(|share| share.start.is_multiple_of(UNIT_ROWS)));
            }
        }
    }
}
