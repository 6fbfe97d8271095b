//! The buffers of a forward pass: each thread has a part, which the others read between barriers.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use weir_kernels::{PANEL, QuantizedRows};

use crate::sampling::Scratch;
use crate::team::share;

/// The parts of all threads.
#[derive(Debug)]
pub(crate) struct Workspace {
    parts: Vec<Part>,
}

#[derive(Debug, Default)]
struct Part {
    local: Mutex<Local>,
    activations: RwLock<QuantizedRows>,
    products: RwLock<Vec<f32>>,
    queries: RwLock<Vec<f32>>,
    attention: RwLock<Vec<f32>>,
}

/// The private buffers of a thread.
#[derive(Debug, Default)]
pub(super) struct Local {
    /// The states of its rows, `[row][embedding]`.
    pub(super) states: Vec<f32>,
    /// A row of any width.
    pub(super) row: Vec<f32>,
    /// Another row of any width.
    pub(super) other: Vec<f32>,
    /// The queries of a block of attention.
    pub(super) queries: Vec<f32>,
    pub(super) lengths: Vec<usize>,
    pub(super) scores: Vec<f32>,
    /// Products with some panels of the gate, and with the same panels of the matrix `up`.
    pub(super) gates: [Vec<f32>; 2],
    pub(super) scratch: Scratch,
}

impl Workspace {
    pub(crate) fn new(threads: usize) -> Self {
        Self { parts: (0..threads.max(1)).map(|_| Part::default()).collect() }
    }

    pub(crate) fn threads(&self) -> usize {
        self.parts.len()
    }

    pub(super) fn local(&self, thread: usize) -> MutexGuard<'_, Local> {
        self.parts[thread].local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn activations(&self) -> Vec<RwLockReadGuard<'_, QuantizedRows>> {
        self.parts.iter().map(|part| read(&part.activations)).collect()
    }

    pub(super) fn own_activations(&self, thread: usize) -> RwLockWriteGuard<'_, QuantizedRows> {
        write(&self.parts[thread].activations)
    }

    pub(super) fn products(&self) -> Vec<RwLockReadGuard<'_, Vec<f32>>> {
        self.parts.iter().map(|part| read(&part.products)).collect()
    }

    pub(super) fn own_products(&self, thread: usize) -> RwLockWriteGuard<'_, Vec<f32>> {
        write(&self.parts[thread].products)
    }

    pub(super) fn queries(&self) -> Vec<RwLockReadGuard<'_, Vec<f32>>> {
        self.parts.iter().map(|part| read(&part.queries)).collect()
    }

    pub(super) fn own_queries(&self, thread: usize) -> RwLockWriteGuard<'_, Vec<f32>> {
        write(&self.parts[thread].queries)
    }

    pub(super) fn attention(&self) -> Vec<RwLockReadGuard<'_, Vec<f32>>> {
        self.parts.iter().map(|part| read(&part.attention)).collect()
    }

    pub(super) fn own_attention(&self, thread: usize) -> RwLockWriteGuard<'_, Vec<f32>> {
        write(&self.parts[thread].attention)
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// The layout of products: the part of a thread has, for each matrix and each thread's rows, `[panel][row][16]` of its share of the
/// panels.
#[derive(Clone, Debug)]
pub(super) struct Layout<'a> {
    /// By thread.
    pub(super) rows: &'a [Range<usize>],
    /// By matrix.
    pub(super) panels: &'a [usize],
}

impl Layout<'_> {
    fn threads(&self) -> usize {
        self.rows.len()
    }

    /// A thread's share of the panels of a matrix.
    pub(super) fn share(&self, matrix: usize, thread: usize) -> Range<usize> {
        share(self.panels[matrix], thread, self.threads())
    }

    /// Elements of a thread's part.
    pub(super) fn elements(&self, thread: usize) -> usize {
        let rows = self.rows.last().map_or(0, |rows| rows.end);
        (0..self.panels.len()).map(|matrix| self.share(matrix, thread).len() * rows * PANEL).sum()
    }

    /// The range, in a thread's part, of the products of a matrix and another thread's rows.
    pub(super) fn segment(&self, matrix: usize, thread: usize, others: usize) -> Range<usize> {
        let all = self.rows.last().map_or(0, |rows| rows.end);
        let before: usize = (0..matrix).map(|matrix| self.share(matrix, thread).len() * all * PANEL).sum();
        let panels = self.share(matrix, thread).len();
        let start = before + panels * self.rows[others].start * PANEL;
        start..start + panels * self.rows[others].len() * PANEL
    }

    /// Writes a row of a matrix's products to `out`, which has the length of all panels.
    pub(super) fn gather<P: std::ops::Deref<Target = Vec<f32>>>(
        &self,
        parts: &[P],
        matrix: usize,
        row: usize,
        out: &mut [f32],
    ) {
        let Some(others) = self.rows.iter().position(|rows| rows.contains(&row)) else { return };
        let (count, index) = (self.rows[others].len(), row - self.rows[others].start);
        for (thread, part) in parts.iter().enumerate() {
            let share = self.share(matrix, thread);
            let out = &mut out[share.start * PANEL..share.end * PANEL];
            let products = &part[self.segment(matrix, thread, others)];
            for (out, products) in out.chunks_exact_mut(PANEL).zip(products.chunks_exact(count * PANEL)) {
                out.copy_from_slice(&products[index * PANEL..][..PANEL]);
            }
        }
    }
}
