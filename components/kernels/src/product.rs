//! The product of activations and packed weights.

use crate::math::Activation;
use crate::matrix::Matrix;
use crate::rows::{Activations, Block, Lowered, Rows, blocks};
use crate::simd::{Kernel, Simd, load_up_to, store_up_to};
use crate::strided::Strided;
use crate::tile::{Brain, Float, Format, Integer, by_rows};
use crate::weights::Weights;

/// How an element of a product, with its bias added, is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// It replaces the old value.
    Store,
    /// It is added to the old value: a residual connection.
    Add,
    /// Its activation replaces the old value.
    Activate(Activation),
}

impl Matrix {
    /// `out = epilogue(source · self + bias)`: `source` is `[rows, inner]`, `out` is `[rows, columns]`. A row of the result depends on
    /// its row of `source` alone.
    ///
    /// # Panics
    /// When `source` is not whole rows, or `out` does not have as many rows.
    pub fn multiply(&self, source: &[f32], epilogue: Epilogue, out: &mut [f32], rows: &mut Rows) {
        let activations = rows.lower(source, self);
        Product { rows: source.len() / self.inner(), activations, matrix: self, epilogue, out }.compute();
    }
}

/// `out[row][column] = epilogue(rows · matrix + bias)`, `out` being `[rows, matrix.columns()]`.
pub(crate) struct Product<'a> {
    pub(crate) rows: usize,
    pub(crate) activations: Activations<'a>,
    pub(crate) matrix: &'a Matrix,
    pub(crate) epilogue: Epilogue,
    pub(crate) out: &'a mut [f32],
}

impl Product<'_> {
    /// Computes the product with the instruction set that the matrix is packed for.
    pub(crate) fn compute(self) {
        assert_eq!(self.out.len(), self.rows * self.matrix.columns(), "the size of a product");
        self.matrix.isa().run(self);
    }
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, activations, matrix, epilogue, out } = self;
        match (&matrix.weights, activations) {
            (Weights::F32(weights), Activations::F32(activations)) => {
                let panels = Panels { matrix, epilogue, weights: &weights[..], sums: FloatSums };
                panels.multiply::<S, Float>(simd, rows, activations, out);
            }
            (Weights::Bf16(weights), Activations::Lowered(lowered)) => {
                let panels = Panels { matrix, epilogue, weights: &weights[..], sums: FloatSums };
                panels.multiply::<S, Brain>(simd, rows, lowered.words, out);
            }
            (Weights::Int8 { values, scales, sums }, Activations::Lowered(lowered)) => {
                let sums = IntegerSums { lowered, scales, sums };
                let panels = Panels { matrix, epilogue, weights: &values[..], sums };
                panels.multiply::<S, Integer>(simd, rows, lowered.words, out);
            }
            _ => unreachable!("activations are lowered for the matrix that they are multiplied by"),
        }
    }
}

/// Converts the sums of a tile to f32.
trait Sums<S: Simd, T>: Copy {
    /// Converts the sums of the tile whose first row and column are `row` and `column`.
    fn to_f32<const R: usize>(self, simd: S, sums: [[T; 2]; R], row: usize, column: usize) -> [[S::F32; 2]; R];
}

#[derive(Clone, Copy)]
struct FloatSums;

impl<S: Simd> Sums<S, S::F32> for FloatSums {
    #[inline(always)]
    fn to_f32<const R: usize>(self, _: S, sums: [[S::F32; 2]; R], _: usize, _: usize) -> [[S::F32; 2]; R] {
        sums
    }
}

#[derive(Clone, Copy)]
struct IntegerSums<'a> {
    lowered: Lowered<'a>,
    /// By column.
    scales: &'a [f32],
    /// By column.
    sums: &'a [i32],
}

impl<S: Simd> Sums<S, S::I32> for IntegerSums<'_> {
    // Several short loops: the compiler unrolls them, and the sums then stay in registers.
    #[inline(always)]
    fn to_f32<const R: usize>(self, simd: S, sums: [[S::I32; 2]; R], row: usize, column: usize) -> [[S::F32; 2]; R] {
        let (scales, weight_sums) = (&self.scales[column..][..2 * S::LANES], &self.sums[column..][..2 * S::LANES]);
        let weight_sums = [simd.load_i32(weight_sums), simd.load_i32(&weight_sums[S::LANES..])];
        let zeros = &self.lowered.zeros[row..][..R];
        let mut values = [[simd.splat(0.0); 2]; R];
        for row in 0..R {
            // sum((a - zero) w) = sum(a w) - zero sum(w), exactly.
            let zero = simd.splat_i32(zeros[row]);
            values[row][0] = simd.to_f32(simd.sub_i32(sums[row][0], simd.mul_i32(zero, weight_sums[0])));
            values[row][1] = simd.to_f32(simd.sub_i32(sums[row][1], simd.mul_i32(zero, weight_sums[1])));
        }
        let scales = [simd.load(scales), simd.load(&scales[S::LANES..])];
        let row_scales = &self.lowered.scales[row..][..R];
        for row in 0..R {
            let scale = simd.splat(row_scales[row]);
            values[row][0] = simd.mul(values[row][0], simd.mul(scales[0], scale));
            values[row][1] = simd.mul(values[row][1], simd.mul(scales[1], scale));
        }
        values
    }
}

/// The panels of a matrix, each as wide as a tile.
struct Panels<'a, W, T> {
    matrix: &'a Matrix,
    epilogue: Epilogue,
    weights: &'a [W],
    sums: T,
}

impl<W: Copy, T: Copy> Panels<'_, W, T> {
    #[inline(always)]
    fn multiply<S: Simd, F: Format<S, Weight = W>>(
        &self,
        simd: S,
        rows: usize,
        activations: Strided<'_, F::Activation>,
        out: &mut [f32],
    ) where
        T: Sums<S, F::Sums>,
    {
        let width = 2 * S::LANES;
        let columns = self.matrix.columns();
        let panels = columns.div_ceil(width);
        // A panel stays in the cache while all blocks of rows pass it.
        for (panel, weights) in self.weights.chunks_exact(self.weights.len() / panels).enumerate() {
            let first = panel * width;
            let count = width.min(columns - first);
            for block in blocks(rows, S::ROWS) {
                let activations = activations.skip(block.first);
                let cells = Cells { block, first, count, columns };
                by_rows!(block.count, product_tile::<S, F, W, T>(simd, self, activations, weights, cells, out));
                if let Epilogue::Activate(activation) = self.epilogue {
                    activate(simd, activation, cells, out);
                }
            }
        }
    }
}

/// The elements of a product that a tile computes.
#[derive(Clone, Copy)]
struct Cells {
    block: Block,
    /// The first column.
    first: usize,
    /// The number of columns; fewer than a panel's width at the right edge.
    count: usize,
    /// The number of columns of a whole row.
    columns: usize,
}

impl Cells {
    #[inline(always)]
    fn row<'a>(&self, row: usize, out: &'a mut [f32]) -> &'a mut [f32] {
        &mut out[(self.block.first + row) * self.columns + self.first..][..self.count]
    }
}

#[inline(always)]
fn product_tile<S: Simd, F: Format<S>, W, T: Sums<S, F::Sums>, const R: usize>(
    simd: S,
    panels: &Panels<'_, W, T>,
    activations: Strided<'_, F::Activation>,
    weights: &[F::Weight],
    cells: Cells,
    out: &mut [f32],
) {
    let sums = F::tile::<R>(simd, activations, weights);
    let sums = panels.sums.to_f32(simd, sums, cells.block.first, cells.first);
    let bias = &panels.matrix.bias[cells.first..][..2 * S::LANES];
    let bias = [simd.load(bias), simd.load(&bias[S::LANES..])];
    for (row, sums) in sums.into_iter().enumerate() {
        let row = cells.row(row, out);
        let mut values = [simd.add(sums[0], bias[0]), simd.add(sums[1], bias[1])];
        if row.len() == 2 * S::LANES {
            let (left, right) = row.split_at_mut(S::LANES);
            if panels.epilogue == Epilogue::Add {
                values = [simd.add(values[0], simd.load(left)), simd.add(values[1], simd.load(right))];
            }
            simd.store(values[0], left);
            simd.store(values[1], right);
        } else {
            for (cells, value) in row.chunks_mut(S::LANES).zip(values) {
                let before =
                    if panels.epilogue == Epilogue::Add { load_up_to(simd, cells, 0.0) } else { simd.splat(-0.0) };
                store_up_to(simd, simd.add(value, before), cells);
            }
        }
    }
}

/// Applies the activation to the cells that a tile has stored. A separate loop, because its code is long and the tile is
/// instantiated for every number of rows.
#[inline(always)]
fn activate<S: Simd>(simd: S, activation: Activation, cells: Cells, out: &mut [f32]) {
    for row in 0..cells.block.count {
        let row = cells.row(row, out);
        for cells in row.chunks_mut(S::LANES) {
            let value = load_up_to(simd, cells, 0.0);
            store_up_to(simd, activation.apply(simd, value), cells);
        }
    }
}
