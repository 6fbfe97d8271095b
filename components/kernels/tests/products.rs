//! Products of every instruction set against plain sums in f64, for random shapes around the sizes of tiles and panels.

mod numbers;

use numbers::numbers;
use proptest::prelude::*;
use weir_kernels::{Activation, Epilogue, Isa, Matrix, Precision, Rows, Values};

/// Miri takes a thousand times as long.
const CASES: u32 = if cfg!(miri) { 2 } else { 200 };
const ROWS: usize = if cfg!(miri) { 8 } else { 40 };
const SIDE: usize = if cfg!(miri) { 13 } else { 70 };

fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

/// The nearest bf16, ties to even, by arithmetic: eight bits of the significand remain.
fn bf16(value: f32) -> f32 {
    let step = 2_f64.powi(value.abs().log2().floor() as i32 - 7);
    if value == 0.0 { value } else { ((f64::from(value) / step).round_ties_even() * step) as f32 }
}

/// `source · weights + bias` in f64.
fn exact(source: &[f32], weights: &[f32], bias: &[f32], inner: usize) -> Vec<f64> {
    let columns = bias.len();
    let sum = |row: &[f32], column: usize| {
        let terms = row.iter().enumerate().map(|(k, a)| f64::from(*a) * f64::from(weights[k * columns + column]));
        terms.sum::<f64>() + f64::from(bias[column])
    };
    source.chunks(inner).flat_map(|row| (0..columns).map(move |column| sum(row, column))).collect()
}

fn multiply(matrix: &Matrix, source: &[f32], epilogue: Epilogue, before: &[f32]) -> Vec<f32> {
    let mut out = before.to_vec();
    matrix.multiply(source, epilogue, &mut out, &mut Rows::default());
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn float_product_of_any_shape_agrees_with_f64(rows in 0_usize..ROWS, inner in 1_usize..SIDE, columns in 1_usize..SIDE, seed: u64) {
        let (source, weights) = (numbers(rows * inner, seed), numbers(inner * columns, seed + 1));
        let (bias, before) = (numbers(columns, seed + 2), numbers(rows * columns, seed + 3));
        let exact = exact(&source, &weights, &bias, inner);
        for isa in Isa::available() {
            let matrix = Matrix::pack(isa, Precision::F32, inner, &[(Values::F32(&weights), &bias)]);
            let stored = multiply(&matrix, &source, Epilogue::Store, &before);
            let added = multiply(&matrix, &source, Epilogue::Add, &before);
            let activated = multiply(&matrix, &source, Epilogue::Activate(Activation::Relu), &before);
            for (index, exact) in exact.iter().enumerate() {
                prop_assert!((f64::from(stored[index]) - exact).abs() < 1e-5, "{isa}: {} is not {exact}", stored[index]);
                prop_assert_eq!(added[index], stored[index] + before[index]);
                prop_assert_eq!(activated[index], stored[index].max(0.0));
            }
            let transposed = transpose(&weights, inner, columns);
            let torch = Matrix::pack(isa, Precision::F32, inner, &[(Values::F32Transposed(&transposed), &bias)]);
            prop_assert_eq!(multiply(&torch, &source, Epilogue::Store, &before), stored);
        }
    }

    #[test]
    fn brain_product_of_any_shape_is_that_of_the_rounded_numbers(
        rows in 0_usize..ROWS, inner in 1_usize..SIDE, columns in 1_usize..SIDE, seed: u64,
    ) {
        let (source, weights) = (numbers(rows * inner, seed), numbers(inner * columns, seed + 1));
        let (bias, before) = (numbers(columns, seed + 2), numbers(rows * columns, seed + 3));
        let round = |values: &[f32]| values.iter().map(|value| bf16(*value)).collect::<Vec<f32>>();
        let exact = exact(&round(&source), &round(&weights), &bias, inner);
        for isa in Isa::available() {
            let matrix = Matrix::pack(isa, Precision::Bf16, inner, &[(Values::F32(&weights), &bias)]);
            let stored = multiply(&matrix, &source, Epilogue::Store, &before);
            for (index, exact) in exact.iter().enumerate() {
                prop_assert!((f64::from(stored[index]) - exact).abs() < 1e-5, "{isa}: {} is not {exact}", stored[index]);
            }
            let transposed = transpose(&weights, inner, columns);
            let torch = Matrix::pack(isa, Precision::Bf16, inner, &[(Values::F32Transposed(&transposed), &bias)]);
            prop_assert_eq!(multiply(&torch, &source, Epilogue::Store, &before), stored);
        }
    }

    #[test]
    fn integer_product_is_the_same_on_every_isa_and_near_f64(
        rows in 0_usize..ROWS, inner in 1_usize..SIDE, columns in 1_usize..SIDE, seed: u64,
    ) {
        let source = numbers(rows * inner, seed);
        let integers: Vec<i8> = numbers(inner * columns, seed + 1).iter().map(|value| (value * 127.0) as i8).collect();
        let scales: Vec<f32> = numbers(columns, seed + 2).iter().map(|value| 0.005 + value.abs() / 100.0).collect();
        let bias = numbers(columns, seed + 3);
        let weights: Vec<f32> =
            integers.iter().enumerate().map(|(index, value)| f32::from(*value) * scales[index % columns]).collect();
        let exact = exact(&source, &weights, &bias, inner);
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let values = Values::I8 { values: &integers, scales: &scales };
            let matrix = Matrix::pack(isa, Precision::Int8, inner, &[(values, &bias)]);
            let stored = multiply(&matrix, &source, Epilogue::Store, &vec![0.0; rows * columns]);
            for (index, exact) in exact.iter().enumerate() {
                // Each activation is off by half a step of 2/255 at most.
                let column = index % columns;
                let magnitudes = (0..inner).map(|k| f64::from(weights[k * columns + column].abs())).sum::<f64>();
                let bound = magnitudes * 1.01 / 255.0 + 1e-5;
                prop_assert!((f64::from(stored[index]) - exact).abs() < bound, "{isa}: {} is not {exact}", stored[index]);
            }
            match &first {
                None => first = Some(stored),
                Some(first) => prop_assert_eq!(first, &stored, "{} differs", isa),
            }
        }
    }

    #[test]
    fn row_of_a_product_has_the_same_bits_alone_and_in_any_batch(
        rows in 1_usize..ROWS, inner in 1_usize..SIDE, columns in 1_usize..SIDE, seed: u64,
    ) {
        let (source, weights) = (numbers(rows * inner, seed), numbers(inner * columns, seed + 1));
        let bias = numbers(columns, seed + 2);
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                let matrix = Matrix::pack(isa, precision, inner, &[(Values::F32(&weights), &bias)]);
                let all = multiply(&matrix, &source, Epilogue::Store, &vec![0.0; rows * columns]);
                for (row, together) in source.chunks(inner).zip(all.chunks(columns)) {
                    let alone = multiply(&matrix, row, Epilogue::Store, &vec![0.0; columns]);
                    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&alone), bits(together), "{} {:?}", isa, precision);
                }
            }
        }
    }

    #[test]
    fn matrices_packed_side_by_side_compute_the_separate_products(
        rows in 1_usize..8, inner in 1_usize..SIDE, left in 1_usize..SIDE, right in 1_usize..SIDE, seed: u64,
    ) {
        let source = numbers(rows * inner, seed);
        let parts = [(numbers(inner * left, seed + 1), numbers(left, seed + 2)), (numbers(inner * right, seed + 3), numbers(right, seed + 4))];
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                let pack = |parts: &[(Vec<f32>, Vec<f32>)]| {
                    let parts: Vec<_> = parts.iter().map(|(values, bias)| (Values::F32(values), bias.as_slice())).collect();
                    Matrix::pack(isa, precision, inner, &parts)
                };
                let both = multiply(&pack(&parts), &source, Epilogue::Store, &vec![0.0; rows * (left + right)]);
                let first = multiply(&pack(&parts[..1]), &source, Epilogue::Store, &vec![0.0; rows * left]);
                let second = multiply(&pack(&parts[1..]), &source, Epilogue::Store, &vec![0.0; rows * right]);
                for row in 0..rows {
                    let expected = [&first[row * left..][..left], &second[row * right..][..right]].concat();
                    prop_assert_eq!(&both[row * (left + right)..][..left + right], expected);
                }
            }
        }
    }
}

#[test]
fn largest_inner_dimension_does_not_overflow() {
    let inner = if cfg!(miri) { 1 << 9 } else { 1 << 16 };
    let (values, scales, bias) = (vec![127_i8; inner], [1.0], [0.0]);
    for isa in Isa::available() {
        let weights = Values::I8 { values: &values, scales: &scales };
        let matrix = Matrix::pack(isa, Precision::Int8, inner, &[(weights, &bias)]);
        let out = multiply(&matrix, &vec![1.0; inner], Epilogue::Store, &[0.0]);
        let exact = 127.0 * inner as f32;
        assert!((out[0] / exact - 1.0).abs() < 1e-6, "{isa}: {} is not {exact}", out[0]);
    }
}

#[test]
fn rows_without_a_range_or_not_finite_do_not_panic() {
    let inner = 20;
    let (weights, bias) = (numbers(inner * 3, 1), [0.5, -0.5, 0.25]);
    for isa in Isa::available() {
        let matrix = Matrix::pack(isa, Precision::Int8, inner, &[(Values::F32(&weights), &bias)]);
        let out = multiply(&matrix, &vec![0.0; inner], Epilogue::Store, &[0.0; 3]);
        assert_eq!(out, bias);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-42] {
            let mut source = vec![0.5; inner];
            source[7] = value;
            multiply(&matrix, &source, Epilogue::Store, &[0.0; 3]);
        }
        let brain = Matrix::pack(isa, Precision::Bf16, inner, &[(Values::F32(&weights), &bias)]);
        for value in [f32::NAN, f32::INFINITY, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
            let mut source = vec![0.5; inner];
            source[7] = value;
            let out = multiply(&brain, &source, Epilogue::Store, &[0.0; 3]);
            assert!(out.iter().all(|value| !value.is_finite()), "{isa}: {out:?} of {value}");
        }
    }
}

#[test]
#[should_panic(expected = "values of a matrix [4, 2]")]
fn matrix_of_wrong_length_is_refused() {
    Matrix::pack(Isa::best(), Precision::F32, 4, &[(Values::F32(&[0.0; 7]), &[0.0; 2])]);
}
