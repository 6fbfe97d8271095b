//! Tokens that pass all layers together, and how their work is split.

use std::ops::Range;

use super::Job;
use crate::model::Model;
use crate::team::share;

/// Tokens of a chunk: their activations fit the second-level cache.
const CHUNK_TOKENS: usize = 128;
/// Rows that a share begins at a multiple of: rows of a tile of a product.
const UNIT_ROWS: usize = 8;
/// Queries of an item of attention: two tiles.
const ITEM_QUERIES: usize = 24;

/// Tokens of one or more jobs.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) places: Vec<Place>,
    /// By thread: the rows that it keeps the states of.
    pub(super) rows: Vec<Range<usize>>,
    /// Attention, by run of tokens and head: `run * kv_heads + head`.
    pub(super) items: Vec<Item>,
    /// By row: its run, and its place in the run.
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
pub(super) struct Place {
    pub(super) job: usize,
    pub(super) token: u32,
    pub(super) position: usize,
}

/// Attention of consecutive tokens of one job, for one head of keys and values.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) job: usize,
    pub(super) rows: Range<usize>,
    pub(super) head: usize,
    /// The thread that computes it.
    pub(super) thread: usize,
    /// Where its result lies in the part of that thread.
    pub(super) offset: usize,
}

impl Chunk {
    /// Splits the tokens of all jobs.
    pub(super) fn split(model: &Model, jobs: &[Job], threads: usize) -> Vec<Self> {
        let places = jobs.iter().enumerate().flat_map(|(job, Job { first, tokens, .. })| {
            let places = tokens.iter().enumerate().skip(*first);
            places.map(move |(position, token)| Place { job, token: *token, position })
        });
        let places: Vec<Place> = places.collect();
        places.chunks(CHUNK_TOKENS).map(|places| Self::new(model, jobs, places, threads)).collect()
    }

    fn new(model: &Model, jobs: &[Job], places: &[Place], threads: usize) -> Self {
        let count = places.len();
        let is_last = |place: &Place| place.position + 1 == jobs[place.job].tokens.len();
        let is_sampled = |place: &Place| jobs[place.job].sample.is_some() && is_last(place);
        let pairs = model.rotary.pairs();
        let (mut cosines, mut sines) = (vec![0.0; count * pairs], vec![0.0; count * pairs]);
        let angles = cosines.chunks_exact_mut(pairs).zip(sines.chunks_exact_mut(pairs));
        places.iter().zip(angles).for_each(|(place, (c, s))| model.rotary.angles(place.position, c, s));
        let (items, runs) = attention(model, places, threads);
        Self {
            rows: shares(count, threads),
            items,
            runs,
            samples: (0..count).filter(|row| is_sampled(&places[*row])).collect(),
            places: places.to_vec(),
            cosines,
            sines,
        }
    }
}

/// Consecutive rows for each thread, whole units where there are several.
fn shares(rows: usize, threads: usize) -> Vec<Range<usize>> {
    let units = rows.div_ceil(UNIT_ROWS);
    (0..threads)
        .map(|thread| {
            let share = share(units, thread, threads);
            (share.start * UNIT_ROWS).min(rows)..(share.end * UNIT_ROWS).min(rows)
        })
        .collect()
}

/// The items of attention, each given to the thread with the least work so far, and the run of each row.
fn attention(model: &Model, places: &[Place], threads: usize) -> (Vec<Item>, Vec<(usize, usize)>) {
    let parameters = model.parameters();
    let tokens_max = (ITEM_QUERIES / parameters.group()).max(1);
    let (mut items, mut runs) = (Vec::new(), Vec::with_capacity(places.len()));
    let (mut work, mut offsets) = (vec![0; threads], vec![0; threads]);
    let mut first = 0;
    while first < places.len() {
        let same = places[first..].iter().take(tokens_max).take_while(|place| place.job == places[first].job);
        let rows = first..first + same.count();
        let run = items.len() / parameters.kv_heads;
        runs.extend((0..rows.len()).map(|place| (run, place)));
        for head in 0..parameters.kv_heads {
            let thread = (0..threads).min_by_key(|thread| work[*thread]).unwrap_or(0);
            items.push(Item { job: places[first].job, rows: rows.clone(), head, thread, offset: offsets[thread] });
            // The rows of a tile share the keys; a token costs something by itself.
            work[thread] += rows.len() * (places[rows.end - 1].position + 16);
            offsets[thread] += rows.len() * parameters.group() * parameters.head_size;
        }
        first = rows.end;
    }
    (items, runs)
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
