//! Packs weights into panels.

use crate::aligned::Aligned;
use crate::isa::Isa;
use crate::simd::{Kernel, LANES_MAX, Simd, bf16};
use crate::weights::{Precision, Values, Weights};

/// The widest panel of any instruction set.
const WIDTH_MAX: usize = 2 * LANES_MAX;
/// Rows that are transposed at a time: they and their columns stay in the first-level cache.
const TRANSPOSE_ROWS: usize = 16;

/// Packs matrices with the same inner dimension side by side.
pub(crate) fn pack(isa: Isa, precision: Precision, inner: usize, parts: &[(Values<'_>, &[f32])]) -> Weights {
    isa.run(Pack { precision, inner, parts })
}

struct Pack<'a> {
    precision: Precision,
    inner: usize,
    /// The values of each part, and a bias with one element for each column.
    parts: &'a [(Values<'a>, &'a [f32])],
}

impl Kernel for Pack<'_> {
    type Output = Weights;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Weights {
        let Self { precision, inner, parts } = self;
        let width = 2 * S::LANES;
        let columns: usize = parts.iter().map(|(_, bias)| bias.len()).sum();
        let padded = columns.next_multiple_of(width);
        let segments = |panel: usize| segments(parts, panel * width, width);
        match precision {
            Precision::F32 => {
                let mut packed = Aligned::zeroed(padded * inner);
                for (panel, to) in packed.chunks_exact_mut(width * inner).enumerate() {
                    segments(panel).for_each(|segment| segment.floats(inner, width, to));
                }
                Weights::F32(packed)
            }
            Precision::Bf16 => {
                let pairs = inner.div_ceil(2);
                let mut packed = Aligned::zeroed(padded * pairs);
                let mut floats = vec![0.0; width * inner];
                for (panel, to) in packed.chunks_exact_mut(width * pairs).enumerate() {
                    floats.fill(0.0);
                    segments(panel).for_each(|segment| segment.floats(inner, width, &mut floats));
                    for (to, rows) in to.chunks_exact_mut(width).zip(floats.chunks(2 * width)) {
                        // With an odd inner dimension the last row has no partner.
                        let (low, high) = rows.split_at(width);
                        for (column, to) in to.iter_mut().enumerate() {
                            let high = high.get(column).copied().unwrap_or_default();
                            *to = u32::from(bf16(low[column])) | u32::from(bf16(high)) << 16;
                        }
                    }
                }
                Weights::Bf16(packed)
            }
            Precision::Int8 => {
                let groups = inner.div_ceil(S::PANEL_GROUP);
                let mut values = Aligned::zeroed(padded * groups * S::PANEL_GROUP);
                let (mut scales, mut sums) = (Aligned::zeroed(padded), Aligned::zeroed(padded));
                // The rows past the last one stay zero.
                let mut integers = vec![0; width * groups * S::PANEL_GROUP];
                let mut floats = vec![0.0; width * inner];
                let panels = values.chunks_exact_mut(width * groups * S::PANEL_GROUP);
                let factors = scales.chunks_exact_mut(width).zip(sums.chunks_exact_mut(width));
                for (panel, (to, (scales, sums))) in panels.zip(factors).enumerate() {
                    integers.fill(0);
                    for segment in segments(panel) {
                        segment.integers(inner, width, &mut floats, &mut integers, scales);
                    }
                    add_columns(&integers, width, sums);
                    interleave::<S>(&integers, to);
                }
                Weights::Int8 { values, scales, sums }
            }
        }
    }
}

/// The columns of one part that lie in one panel.
struct Segment<'a> {
    values: Values<'a>,
    /// The number of columns of the part.
    columns: usize,
    /// The first column of the part that lies in the panel.
    first: usize,
    /// The column of the panel that it becomes.
    offset: usize,
    /// The number of columns of the segment.
    count: usize,
}

/// The segments of the panel that begins at column `start`.
#[inline(always)]
fn segments<'a>(parts: &'a [(Values<'a>, &'a [f32])], start: usize, width: usize) -> impl Iterator<Item = Segment<'a>> {
    let mut before = 0;
    parts.iter().filter_map(move |(values, bias)| {
        let columns = bias.len();
        let (from, to) = (start.max(before), (start + width).min(before + columns));
        let segment = Segment {
            values: *values,
            columns,
            first: from.saturating_sub(before),
            offset: from.saturating_sub(start),
            count: to.saturating_sub(from),
        };
        before += columns;
        (segment.count > 0).then_some(segment)
    })
}

impl Segment<'_> {
    /// Writes the weights to their columns of `[inner][width]`.
    #[inline(always)]
    fn floats(&self, inner: usize, width: usize, to: &mut [f32]) {
        let Self { columns, first, offset, count, .. } = *self;
        let cells = to.chunks_exact_mut(width).map(|row| &mut row[offset..offset + count]);
        match self.values {
            Values::F32(values) => {
                for (cells, row) in cells.zip(values.chunks_exact(columns)) {
                    cells.copy_from_slice(&row[first..first + count]);
                }
            }
            Values::F32Transposed(values) => {
                let values = &values[first * inner..][..count * inner];
                for (block, to) in to[..inner * width].chunks_mut(TRANSPOSE_ROWS * width).enumerate() {
                    for (column, values) in values.chunks_exact(inner).enumerate() {
                        let values = &values[block * TRANSPOSE_ROWS..];
                        for (to, value) in to[offset + column..].iter_mut().step_by(width).zip(values) {
                            *to = *value;
                        }
                    }
                }
            }
            Values::I8 { values, scales } => {
                for (cells, row) in cells.zip(values.chunks_exact(columns)) {
                    let factors = &scales[first..first + count];
                    for ((cell, value), scale) in cells.iter_mut().zip(&row[first..first + count]).zip(factors) {
                        *cell = f32::from(*value) * scale;
                    }
                }
            }
        }
    }

    /// Writes the weights in i8 to their columns of `[inner][width]`, and the factor of each column to `scales`. The factor of f32
    /// weights is `greatest magnitude / 127`.
    #[inline(always)]
    fn integers(&self, inner: usize, width: usize, floats: &mut [f32], to: &mut [i8], scales: &mut [f32]) {
        let Self { columns, first, offset, count, .. } = *self;
        let range = offset..offset + count;
        if let Values::I8 { values, scales: factors } = self.values {
            for (to, row) in to.chunks_exact_mut(width).zip(values.chunks_exact(columns)) {
                to[range.clone()].copy_from_slice(&row[first..first + count]);
            }
            scales[range].copy_from_slice(&factors[first..first + count]);
            return;
        }
        self.floats(inner, width, floats);
        let mut greatest = [0.0_f32; WIDTH_MAX];
        for row in floats.chunks_exact(width) {
            for (greatest, value) in greatest.iter_mut().zip(&row[range.clone()]) {
                *greatest = if value.abs() > *greatest { value.abs() } else { *greatest };
            }
        }
        let factors = greatest.map(|greatest| if greatest > 0.0 { greatest / 127.0 } else { 1.0 });
        for (to, row) in to.chunks_exact_mut(width).zip(floats.chunks_exact(width)) {
            for ((to, value), factor) in to[range.clone()].iter_mut().zip(&row[range.clone()]).zip(factors) {
                // Rounds to the nearest integer, ties to even: the sum has no fraction bits.
                const SHIFT: f32 = 12_582_912.0;
                *to = ((value / factor + SHIFT) - SHIFT) as i8;
            }
        }
        scales[range].copy_from_slice(&factors[..count]);
    }
}

/// Adds the sum of each column of `[rows][width]` to `sums`.
#[inline(always)]
fn add_columns(rows: &[i8], width: usize, sums: &mut [i32]) {
    for row in rows.chunks_exact(width) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += i32::from(*value);
        }
    }
}

/// Reorders `[inner][column]` to `[group][column][element of the group]`.
#[inline(always)]
fn interleave<S: Simd>(integers: &[i8], to: &mut [i8]) {
    let width = 2 * S::LANES;
    for (to, rows) in to.chunks_exact_mut(width * S::PANEL_GROUP).zip(integers.chunks_exact(width * S::PANEL_GROUP)) {
        for column in 0..width {
            for element in 0..S::PANEL_GROUP {
                to[column * S::PANEL_GROUP + element] = rows[element * width + column];
            }
        }
    }
}
