//! Products with quantized weights, attention over pages and the functions of decoders, of every instruction set against f64.

mod numbers;

use numbers::numbers;
use proptest::prelude::*;
use weir_kernels::{
    BLOCK, CachePages, Isa, PAGE_TOKENS, PANEL, PageShape, PagedAttention, QuantizedMatrix, QuantizedRows, WeightBlock,
    WeightForm, exponentials, gated_silu, greatest, rms_norm, rotate,
};

/// Miri takes a thousand times as long.
const CASES: u32 = if cfg!(miri) { 1 } else { 60 };

const FORMS: [WeightForm; 5] = [
    WeightForm::Nibbles { center: 8 },
    WeightForm::NibblesWithMinimum,
    WeightForm::Bytes { center: 16 },
    WeightForm::Bytes { center: 128 },
    WeightForm::BytesWithMinimum,
];

fn has_bytes(form: WeightForm) -> bool {
    matches!(form, WeightForm::Bytes { .. } | WeightForm::BytesWithMinimum)
}

/// A random block; scales are multiples of 2^-10, which f16 represents exactly.
fn block(form: WeightForm, column: usize, index: usize, seed: u64) -> WeightBlock {
    let random = numbers(BLOCK + 2, seed ^ (column as u64) << 20 ^ index as u64);
    let levels = if has_bytes(form) { 256.0 } else { 16.0 };
    let mut values = [0; BLOCK];
    values.iter_mut().zip(&random).for_each(|(value, number)| *value = ((number + 1.0) / 2.0 * levels) as u8);
    let on_grid = |number: f32| (number * 1024.0).round() / 1024.0;
    let has_minimum = matches!(form, WeightForm::NibblesWithMinimum | WeightForm::BytesWithMinimum);
    let minimum = if has_minimum { on_grid(random[BLOCK + 1]) } else { 0.0 };
    WeightBlock { scale: on_grid(random[BLOCK] / 8.0), minimum, values }
}

fn weight(form: WeightForm, block: &WeightBlock, element: usize) -> f64 {
    let center = match form {
        WeightForm::Nibbles { center } | WeightForm::Bytes { center } => f64::from(center),
        _ => 0.0,
    };
    f64::from(block.scale) * (f64::from(block.values[element]) - center) + f64::from(block.minimum)
}

/// Rounds activations to eight bits in blocks.
fn round_blocks(row: &[f32]) -> Vec<f64> {
    let blocks = row.chunks(BLOCK).flat_map(|block| {
        let maximum = block.iter().fold(0.0_f32, |maximum, value| maximum.max(value.abs()));
        let inverse = if maximum > 0.0 { 127.0 / maximum } else { 0.0 };
        block.iter().map(move |value| f64::from((value * inverse).round_ties_even()) * f64::from(maximum / 127.0))
    });
    blocks.collect()
}

fn multiply(matrix: &QuantizedMatrix, isa: Isa, source: &[f32]) -> Vec<f32> {
    let mut rows = QuantizedRows::default();
    rows.quantize(isa, source, matrix.inner());
    let mut out = vec![f32::NAN; matrix.panels() * rows.rows() * PANEL];
    matrix.multiply(0..matrix.panels(), &rows, &mut out);
    out
}

/// The element of a result `[panel][row][16]`.
fn at(out: &[f32], rows: usize, row: usize, column: usize) -> f32 {
    out[(column / PANEL * rows + row) * PANEL + column % PANEL]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn quantized_product_of_any_shape_is_that_of_the_rounded_activations(
        rows in 0_usize..20, blocks in 1_usize..5, columns in 1_usize..40, form in 0_usize..5, seed: u64,
    ) {
        let (inner, form) = (blocks * BLOCK, FORMS[form]);
        let (source, bias) = (numbers(rows * inner, seed), numbers(columns, seed + 1));
        for isa in Isa::available() {
            let matrix = QuantizedMatrix::pack(isa, (inner, columns), form, 0.5, |c, b| block(form, c, b, seed)).with_bias(&bias);
            let out = multiply(&matrix, isa, &source);
            for (row, values) in source.chunks(inner).enumerate() {
                let values = round_blocks(values);
                for (column, &start) in bias.iter().enumerate() {
                    let terms = (0..inner).map(|k| {
                        let block = block(form, column, k / BLOCK, seed);
                        0.5 * weight(form, &block, k % BLOCK) * values[k]
                    });
                    let (exact, size) = terms.fold((f64::from(start), 1.0), |(sum, size), term| (sum + term, size + term.abs()));
                    let value = f64::from(at(&out, rows, row, column));
                    prop_assert!((value - exact).abs() < 1e-5 * size, "{isa} {form:?}: {value} is not {exact}");
                }
            }
        }
    }

    #[test]
    fn quantized_row_has_the_same_bits_alone_and_in_any_batch_and_panel_range(
        rows in 1_usize..20, blocks in 1_usize..5, columns in 1_usize..40, form in 0_usize..5, seed: u64,
    ) {
        let (inner, form) = (blocks * BLOCK, FORMS[form]);
        let source = numbers(rows * inner, seed);
        for isa in Isa::available() {
            let matrix = QuantizedMatrix::pack(isa, (inner, columns), form, 1.0, |c, b| block(form, c, b, seed));
            let all = multiply(&matrix, isa, &source);
            for (row, values) in source.chunks(inner).enumerate() {
                let alone = multiply(&matrix, isa, values);
                for column in 0..columns {
                    prop_assert_eq!(at(&all, rows, row, column).to_bits(), at(&alone, 1, 0, column).to_bits(), "{}", isa);
                }
            }
            let mut lowered = QuantizedRows::default();
            lowered.quantize(isa, &source, inner);
            let first = matrix.panels() / 2;
            let mut part = vec![0.0; (matrix.panels() - first) * rows * PANEL];
            matrix.multiply(first..matrix.panels(), &lowered, &mut part);
            prop_assert_eq!(&all[first * rows * PANEL..], &part[..]);
        }
    }

    #[test]
    fn column_gives_the_weights_that_were_packed(blocks in 1_usize..5, columns in 1_usize..40, form in 0_usize..5, seed: u64) {
        let form = FORMS[form];
        for isa in Isa::available() {
            let matrix = QuantizedMatrix::pack(isa, (blocks * BLOCK, columns), form, 2.0, |c, b| block(form, c, b, seed));
            let mut weights = vec![0.0; blocks * BLOCK];
            for column in 0..columns {
                matrix.column(column, &mut weights);
                for (k, value) in weights.iter().enumerate() {
                    prop_assert_eq!(f64::from(*value), 2.0 * weight(form, &block(form, column, k / BLOCK, seed), k % BLOCK));
                }
            }
        }
    }

    #[test]
    fn attention_over_pages_agrees_with_f64_and_does_not_depend_on_other_queries(
        queries in 1_usize..30, tokens in 1_usize..120, size in 1_usize..6, seed: u64,
    ) {
        let shape = PageShape { heads: 2, head_size: 16 * size };
        let width = shape.token_elements();
        let (keys, values) = (numbers(tokens * width, seed), numbers(tokens * width, seed + 1));
        let query_rows = numbers(queries * shape.head_size, seed + 2);
        let lengths: Vec<usize> = (0..queries).map(|query| 1 + (query * 37 + 11) % tokens).collect();
        // Pages in another order than tokens, with unused pages between them.
        let count = tokens.div_ceil(PAGE_TOKENS);
        let pages: Vec<u32> = (0..count as u32).rev().map(|page| 2 * page + 1).collect();
        for isa in Isa::available() {
            let mut cache = CachePages::new(shape, 2 * count + 1);
            for slot in 0..PAGE_TOKENS {
                let garbage = vec![f32::INFINITY; width];
                pages.iter().for_each(|page| cache.write(isa, *page as usize, slot, &garbage, &garbage));
            }
            for token in 0..tokens {
                let range = token * width..(token + 1) * width;
                let page = pages[token / PAGE_TOKENS] as usize;
                cache.write(isa, page, token % PAGE_TOKENS, &keys[range.clone()], &values[range]);
            }
            let attend = |queries: &[f32], lengths: &[usize]| {
                let mut out = vec![0.0; queries.len()];
                let (pages, out_ref) = (&pages, &mut out);
                let mut scores = Vec::new();
                PagedAttention { cache: &cache, pages, head: 1, queries, lengths, factor: 0.3, out: out_ref, scores: &mut scores }
                    .compute(isa);
                out
            };
            let all = attend(&query_rows, &lengths);
            for (index, query) in query_rows.chunks(shape.head_size).enumerate() {
                let out = &all[index * shape.head_size..][..shape.head_size];
                let alone = attend(query, &lengths[index..=index]);
                prop_assert!(out.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
                let head = |all: &[f32], token: usize, element: usize| f64::from(all[token * width + shape.head_size + element]);
                let score = |token: usize| {
                    0.3 * query.iter().enumerate().map(|(e, q)| f64::from(*q) * head(&keys, token, e)).sum::<f64>()
                };
                let scores: Vec<f64> = (0..lengths[index]).map(score).collect();
                let total: f64 = scores.iter().map(|score| score.exp()).sum();
                for (element, value) in out.iter().enumerate() {
                    let terms = scores.iter().enumerate().map(|(token, score)| score.exp() / total * head(&values, token, element));
                    let exact: f64 = terms.sum();
                    // Keys and values are rounded to f16.
                    prop_assert!((f64::from(*value) - exact).abs() < 2e-3, "{isa}: {value} is not {exact}");
                }
            }
        }
    }

    #[test]
    fn functions_of_a_row_agree_with_f64(width in 1_usize..100, seed: u64) {
        let (a, b) = (numbers(width, seed), numbers(width, seed + 1));
        let near = |value: f32, exact: f64| (f64::from(value) - exact).abs() < 1e-5 * (1.0 + exact.abs());
        for isa in Isa::available() {
            let mut out = vec![0.0; width];
            rms_norm(isa, &a, &b, 1e-5, &mut out);
            let square = a.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
            for index in 0..width {
                let exact = f64::from(a[index]) / (square + 1e-5).sqrt() * f64::from(b[index]);
                prop_assert!(near(out[index], exact), "{isa}: {} is not {exact}", out[index]);
            }
            gated_silu(isa, &a, &b, &mut out);
            for index in 0..width {
                let gate = f64::from(a[index]);
                prop_assert!(near(out[index], gate / (1.0 + (-gate).exp()) * f64::from(b[index])), "{isa}");
            }
            let pairs = width / 2;
            let mut head = a.clone();
            let (cosines, sines): (Vec<f32>, Vec<f32>) = b[..pairs].iter().map(|angle| (angle.cos(), angle.sin())).unzip();
            rotate(isa, &mut head, &cosines, &sines);
            for pair in 0..pairs {
                let (x, y, angle) = (f64::from(a[pair]), f64::from(a[pair + pairs]), f64::from(b[pair]));
                prop_assert!(near(head[pair], x * angle.cos() - y * angle.sin()), "{isa}");
                prop_assert!(near(head[pair + pairs], x * angle.sin() + y * angle.cos()), "{isa}");
            }
            prop_assert_eq!(&head[2 * pairs..], &a[2 * pairs..]);
            let maximum = a.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(greatest(isa, &a), maximum);
            let mut powers = a.clone();
            let sum = exponentials(isa, &mut powers, 3.0);
            let exact: Vec<f64> = a.iter().map(|x| (3.0 * (f64::from(*x) - f64::from(maximum))).exp()).collect();
            prop_assert!(near(sum, exact.iter().sum()), "{isa}");
            prop_assert!(powers.iter().zip(exact).all(|(power, exact)| near(*power, exact)), "{isa}");
        }
    }
}

#[test]
fn page_copies_give_the_same_attention() {
    let shape = PageShape { heads: 1, head_size: 32 };
    let (keys, values, query) = (numbers(9 * 32, 1), numbers(9 * 32, 2), numbers(32, 3));
    for isa in Isa::available() {
        let mut cache = CachePages::new(shape, 2);
        for token in 0..9 {
            cache.write(isa, 0, token, &keys[token * 32..][..32], &values[token * 32..][..32]);
        }
        cache.copy(0, 1, 9);
        let attend = |page: u32| {
            let (mut out, mut scores) = (vec![0.0; 32], Vec::new());
            let (pages, lengths) = (&[page], &[9]);
            PagedAttention {
                cache: &cache,
                pages,
                head: 0,
                queries: &query,
                lengths,
                factor: 1.0,
                out: &mut out,
                scores: &mut scores,
            }
            .compute(isa);
            out
        };
        assert_eq!(attend(0), attend(1));
    }
}

#[test]
fn activations_not_finite_or_all_zero_do_not_panic() {
    let form = WeightForm::Nibbles { center: 8 };
    for isa in Isa::available() {
        let matrix = QuantizedMatrix::pack(isa, (64, 20), form, 1.0, |c, b| block(form, c, b, 5));
        assert!(multiply(&matrix, isa, &[0.0; 64])[..20].iter().all(|value| *value == 0.0));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-42] {
            let mut source = numbers(64, 6);
            source[7] = value;
            multiply(&matrix, isa, &source);
        }
    }
}

#[test]
#[should_panic(expected = "the inner dimension of a quantized matrix")]
fn inner_dimension_that_is_not_whole_blocks_is_refused() {
    let form = WeightForm::Nibbles { center: 8 };
    QuantizedMatrix::pack(Isa::best(), (33, 4), form, 1.0, |_, _| WeightBlock::default());
}
