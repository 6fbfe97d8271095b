//! The product of activations and packed weights.

use crate::math::Activation;
use crate::matrix::{Matrix, Weights};
use crate::rows::{Block, Rows};
use crate::simd::{Kernel, Simd, load_tail, store_tail};

/// What happens to an element of a product, its bias added, before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// It replaces what is there.
    Store,
    /// It is added to what is there: a residual connection.
    Add,
    /// Its activation replaces what is there.
    Activate(Activation),
}

/// `out[row][column] = epilogue(rows · matrix + bias)`, `out` being `[rows, matrix.columns()]`.
pub(crate) struct Product<'a> {
    pub(crate) rows: &'a Rows,
    pub(crate) matrix: &'a Matrix,
    pub(crate) epilogue: Epilogue,
    pub(crate) out: &'a mut [f32],
}

impl Product<'_> {
    /// Computes it with the instruction set that the matrix is packed for.
    pub(crate) fn compute(self) {
        assert_eq!(self.out.len(), self.rows.len() * self.matrix.columns(), "the size of a product");
        self.matrix.isa().run(self);
    }
}

/// Calls `$tile::<S, ROWS>($arguments)` with the number of rows that `$count` is, 1 to 12.
macro_rules! by_rows {
    ($count:expr, $tile:ident :: <$simd:ident>($($argument:expr),* $(,)?)) => {
        match $count {
            1 => $tile::<$simd, 1>($($argument),*),
            2 => $tile::<$simd, 2>($($argument),*),
            3 => $tile::<$simd, 3>($($argument),*),
            4 => $tile::<$simd, 4>($($argument),*),
            5 => $tile::<$simd, 5>($($argument),*),
            6 => $tile::<$simd, 6>($($argument),*),
            count => unreachable!("a block of {count} rows"),
        }
    };
}
pub(crate) use by_rows;

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, matrix, epilogue, out } = self;
        let (inner, columns) = (matrix.inner(), matrix.columns());
        let width = 2 * S::LANES;
        // A panel stays in the first-level cache while all blocks of rows pass it.
        for panel in 0..columns.div_ceil(width) {
            let first = panel * width;
            let target = Target {
                first,
                count: width.min(columns - first),
                columns,
                epilogue,
                bias: &matrix.bias[first..][..width],
            };
            match &matrix.weights {
                Weights::F32(weights) => {
                    let weights = &weights[panel * width * inner..][..width * inner];
                    for block in rows.blocks() {
                        let activations = rows.floats(block, inner);
                        by_rows!(block.count, float_tile::<S>(simd, activations, weights, block, &target, out));
                    }
                }
                Weights::Int8 { values, scales, sums } => {
                    let groups = inner.div_ceil(S::GROUP);
                    let len = width * groups * S::GROUP;
                    let weights = Int8Panel {
                        values: &values[panel * len..][..len],
                        scales: &scales[first..][..width],
                        sums: &sums[first..][..width],
                    };
                    for block in rows.blocks() {
                        by_rows!(block.count, int8_tile::<S>(simd, rows, groups, &weights, block, &target, out));
                    }
                }
            }
        }
    }
}

/// Where a panel's results go.
struct Target<'a> {
    /// The panel's first column.
    first: usize,
    /// The columns that it has; fewer than a panel's width at the right edge.
    count: usize,
    /// The columns of a whole row.
    columns: usize,
    epilogue: Epilogue,
    bias: &'a [f32],
}

struct Int8Panel<'a> {
    values: &'a [i8],
    scales: &'a [f32],
    sums: &'a [i32],
}

/// The sums of `R` interleaved rows and a panel: each element is one sum in the order of the inner dimension.
#[inline(always)]
pub(crate) fn sums<S: Simd, const R: usize>(simd: S, rows: &[f32], panel: &[f32]) -> [[S::F32; 2]; R] {
    let mut sums = [[simd.splat(0.0); 2]; R];
    for (activations, weights) in rows.chunks_exact(R).zip(panel.chunks_exact(2 * S::LANES)) {
        let weights = [simd.load(weights), simd.load(&weights[S::LANES..])];
        for (sums, activation) in sums.iter_mut().zip(activations) {
            let activation = simd.splat(*activation);
            sums[0] = simd.mul_add(activation, weights[0], sums[0]);
            sums[1] = simd.mul_add(activation, weights[1], sums[1]);
        }
    }
    sums
}

#[inline(always)]
fn float_tile<S: Simd, const R: usize>(
    simd: S,
    rows: &[f32],
    panel: &[f32],
    block: Block,
    target: &Target<'_>,
    out: &mut [f32],
) {
    write(simd, sums::<S, R>(simd, rows, panel), block, target, out);
}

#[inline(always)]
fn int8_tile<S: Simd, const R: usize>(
    simd: S,
    rows: &Rows,
    groups: usize,
    panel: &Int8Panel<'_>,
    block: Block,
    target: &Target<'_>,
    out: &mut [f32],
) {
    let mut sums = [[simd.splat_i32(0); 2]; R];
    let words = rows.words(block, groups).chunks_exact(R);
    for (words, weights) in words.zip(panel.values.chunks_exact(2 * S::LANES * S::GROUP)) {
        let weights = [simd.load_weights(weights), simd.load_weights(&weights[S::LANES * S::GROUP..])];
        for (sums, word) in sums.iter_mut().zip(words) {
            let activations = simd.splat_group(*word);
            sums[0] = simd.dot(sums[0], activations, weights[0]);
            sums[1] = simd.dot(sums[1], activations, weights[1]);
        }
    }
    let mut scaled = [[simd.splat(0.0); 2]; R];
    for (row, (scaled, sums)) in scaled.iter_mut().zip(sums).enumerate() {
        let row = block.first + row;
        let (scale, zero) = (simd.splat(rows.scale(row)), simd.splat_i32(rows.zero(row)));
        for half in 0..2 {
            let (weight_sums, scales) = (&panel.sums[half * S::LANES..], &panel.scales[half * S::LANES..]);
            // sum((a - zero) w) = sum(a w) - zero sum(w), exactly.
            let exact = simd.sub_i32(sums[half], simd.mul_i32(zero, simd.load_i32(weight_sums)));
            scaled[half] = simd.mul(simd.to_f32(exact), simd.mul(simd.load(scales), scale));
        }
    }
    write(simd, scaled, block, target, out);
}

#[inline(always)]
fn write<S: Simd, const R: usize>(simd: S, sums: [[S::F32; 2]; R], block: Block, target: &Target<'_>, out: &mut [f32]) {
    let bias = [simd.load(target.bias), simd.load(&target.bias[S::LANES..])];
    for (row, sums) in sums.into_iter().enumerate() {
        let row = &mut out[(block.first + row) * target.columns + target.first..][..target.count];
        for ((cells, sum), bias) in row.chunks_mut(S::LANES).zip(sums).zip(bias) {
            let value = simd.add(sum, bias);
            if cells.len() == S::LANES {
                let before = simd.load(cells);
                simd.store(finish(simd, target.epilogue, value, before), cells);
            } else {
                let before = load_tail(simd, cells, 0.0);
                store_tail(simd, finish(simd, target.epilogue, value, before), cells);
            }
        }
    }
}

#[inline(always)]
fn finish<S: Simd>(simd: S, epilogue: Epilogue, value: S::F32, before: S::F32) -> S::F32 {
    match epilogue {
        Epilogue::Store => value,
        Epilogue::Add => simd.add(value, before),
        Epilogue::Activate(activation) => activation.apply(simd, value),
    }
}
