//! The upper bound of the rate of products.

use crate::isa::Isa;
use crate::simd::{Kernel, Simd};
use crate::strided::Strided;
use crate::tile::{Brain, Float, Format, Integer, by_rows};
use crate::weights::Precision;

/// Steps of the tile: its operands stay in the first-level cache.
const STEPS: usize = 64;

/// Computes one full tile `rounds` times from operands that stay in the first-level cache, and returns the number of operations; a
/// multiplication and an addition are two. Their rate is the upper bound of any product on this processor.
pub fn peak_operations(isa: Isa, precision: Precision, rounds: usize) -> u64 {
    isa.run(Peak { precision, rounds })
}

struct Peak {
    precision: Precision,
    rounds: usize,
}

impl Kernel for Peak {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> u64 {
        match self.precision {
            Precision::F32 => repeat::<S, Float>(simd, self.rounds, 1.0, 0.5, 1),
            Precision::Bf16 => repeat::<S, Brain>(simd, self.rounds, 0x3f80_3f80, 0x3f00_3f00, 2),
            Precision::Int8 => repeat::<S, Integer>(simd, self.rounds, 0x0102_0304, 3, S::INT8_GROUP),
        }
    }
}

/// `group` is the elements of the inner dimension in one step.
#[inline(always)]
fn repeat<S: Simd, F: Format<S>>(
    simd: S,
    rounds: usize,
    activation: F::Activation,
    weight: F::Weight,
    group: usize,
) -> u64 {
    let elements = vec![activation; S::ROWS * STEPS];
    let panel = vec![weight; 2 * F::WEIGHTS * STEPS];
    for _ in 0..rounds {
        let rows = Strided { elements: std::hint::black_box(&elements[..]), stride: STEPS };
        by_rows!(S::ROWS, compute::<S, F>(simd, rows, &panel));
    }
    (2 * S::ROWS * 2 * S::LANES * STEPS * group * rounds) as u64
}

#[inline(always)]
fn compute<S: Simd, F: Format<S>, const R: usize>(simd: S, rows: Strided<'_, F::Activation>, panel: &[F::Weight]) {
    std::hint::black_box(F::tile::<R>(simd, rows, panel));
}
