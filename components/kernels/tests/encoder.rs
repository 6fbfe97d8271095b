//! The encoder of every instruction set against the same computation in plain f64, and against itself in other batches.

use proptest::prelude::*;
use weir_kernels::{
    Activation, Embeddings, Encoder, EncoderConfig, EncoderError, EncoderWeights, Isa, LayerWeights, Linear, Norm,
    Precision, Scratch, Table, Texts, Values,
};

const HIDDEN: usize = 24;
const HEADS: usize = 3;
const INTERMEDIATE: usize = 50;
const WORDS: usize = 40;
const POSITIONS: usize = 70;
const LAYERS: usize = 2;

const CONFIG: EncoderConfig = EncoderConfig {
    hidden: HIDDEN,
    heads: HEADS,
    intermediate: INTERMEDIATE,
    activation: Activation::GeluTanh,
    epsilon: 1e-5,
    first_position: 2,
    score_factor: 0.353_553_4,
};

/// Query, key, value, attention output, intermediate, output: weight as torch stores it, bias.
type Linears = [(Vec<f32>, Vec<f32>); 6];

/// Random weights of a small model.
struct Model {
    words: Vec<f32>,
    positions: Vec<f32>,
    types: Vec<f32>,
    norm: [Vec<f32>; 2],
    layers: Vec<(Linears, [[Vec<f32>; 2]; 2])>,
}

impl Model {
    fn new() -> Self {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut numbers = |count: usize, scale: f32, shift: f32| -> Vec<f32> {
            let mut next = || {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                ((seed >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale + shift
            };
            (0..count).map(|_| next()).collect()
        };
        let (words, positions) = (numbers(WORDS * HIDDEN, 1.0, 0.0), numbers(POSITIONS * HIDDEN, 0.5, 0.0));
        let types = numbers(2 * HIDDEN, 0.2, 0.0);
        let norm = [numbers(HIDDEN, 0.3, 1.0), numbers(HIDDEN, 0.2, 0.0)];
        let layers = (0..LAYERS).map(|_| {
            let mut linear =
                |inner: usize, columns: usize| (numbers(inner * columns, 0.4, 0.0), numbers(columns, 0.1, 0.0));
            let linears = [
                linear(HIDDEN, HIDDEN),
                linear(HIDDEN, HIDDEN),
                linear(HIDDEN, HIDDEN),
                linear(HIDDEN, HIDDEN),
                linear(HIDDEN, INTERMEDIATE),
                linear(INTERMEDIATE, HIDDEN),
            ];
            let mut norm = || [numbers(HIDDEN, 0.3, 1.0), numbers(HIDDEN, 0.2, 0.0)];
            (linears, [norm(), norm()])
        });
        let layers = layers.collect();
        Self { words, positions, types, norm, layers }
    }

    fn weights(&self) -> EncoderWeights<'_> {
        let norm = |[gain, bias]: &'_ [Vec<f32>; 2]| Norm { gain: leak(gain), bias: leak(bias) };
        let linear = |(values, bias): &'_ (Vec<f32>, Vec<f32>)| Linear {
            values: Values::F32Transposed(leak(values)),
            bias: leak(bias),
        };
        EncoderWeights {
            embeddings: Embeddings {
                words: Table::F32(&self.words),
                positions: &self.positions,
                types: &self.types,
                norm: norm(&self.norm),
            },
            layers: self
                .layers
                .iter()
                .map(|(linears, norms)| LayerWeights {
                    query: linear(&linears[0]),
                    key: linear(&linears[1]),
                    value: linear(&linears[2]),
                    attention_output: linear(&linears[3]),
                    attention_norm: norm(&norms[0]),
                    intermediate: linear(&linears[4]),
                    output: linear(&linears[5]),
                    output_norm: norm(&norms[1]),
                })
                .collect(),
        }
    }

    fn encoder(&self, isa: Isa, precision: Precision) -> Encoder {
        Encoder::new(isa, precision, CONFIG, &self.weights())
            .expect("the weights have the lengths of the configuration")
    }

    /// The states of one text in f64, by the formulas of the paper.
    fn exact(&self, ids: &[u32], types: &[u32]) -> Vec<Vec<f64>> {
        let row = |table: &[f32], index: usize| -> Vec<f64> {
            table[index * HIDDEN..][..HIDDEN].iter().map(|value| f64::from(*value)).collect()
        };
        let mut states: Vec<Vec<f64>> = (0..ids.len())
            .map(|index| {
                let parts = [
                    row(&self.words, ids[index] as usize),
                    row(&self.positions, index + CONFIG.first_position),
                    row(&self.types, types.get(index).map_or(0, |kind| *kind as usize)),
                ];
                normalize(
                    &(0..HIDDEN).map(|column| parts.iter().map(|part| part[column]).sum()).collect::<Vec<f64>>(),
                    &self.norm,
                )
            })
            .collect();
        for (linears, norms) in &self.layers {
            let size = HIDDEN / HEADS;
            let [queries, keys, values] = [0, 1, 2].map(|part| apply(&states, &linears[part]));
            let mut context = vec![vec![0.0; HIDDEN]; ids.len()];
            for head in 0..HEADS {
                let columns = head * size..(head + 1) * size;
                for (query, context) in queries.iter().zip(&mut context) {
                    let score = |key: &Vec<f64>| {
                        columns.clone().map(|c| query[c] * key[c]).sum::<f64>() * f64::from(CONFIG.score_factor)
                    };
                    let scores: Vec<f64> = keys.iter().map(score).collect();
                    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let shares: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
                    let total: f64 = shares.iter().sum();
                    for c in columns.clone() {
                        context[c] = shares.iter().zip(&values).map(|(share, value)| share / total * value[c]).sum();
                    }
                }
            }
            let residual = |from: &[Vec<f64>], states: &[Vec<f64>], norm| -> Vec<Vec<f64>> {
                let sums =
                    from.iter().zip(states).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>());
                sums.map(|row| normalize(&row, norm)).collect()
            };
            states = residual(&apply(&context, &linears[3]), &states, &norms[0]);
            let mut wide = apply(&states, &linears[4]);
            wide.iter_mut().flatten().for_each(|x| {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (*x + 0.044_715 * x.powi(3));
                *x = *x / 2.0 * (1.0 + u.tanh());
            });
            states = residual(&apply(&wide, &linears[5]), &states, &norms[1]);
        }
        states
    }
}

/// A slice for the whole test run: the models are small.
fn leak(values: &[f32]) -> &'static [f32] {
    Box::leak(values.to_vec().into_boxed_slice())
}

fn apply(rows: &[Vec<f64>], (weight, bias): &(Vec<f32>, Vec<f32>)) -> Vec<Vec<f64>> {
    let one = |row: &Vec<f64>| {
        let inner = row.len();
        let column = |column: usize| {
            row.iter().zip(&weight[column * inner..]).map(|(a, w)| a * f64::from(*w)).sum::<f64>()
                + f64::from(bias[column])
        };
        (0..bias.len()).map(column).collect()
    };
    rows.iter().map(one).collect()
}

fn normalize(row: &[f64], [gain, bias]: &[Vec<f32>; 2]) -> Vec<f64> {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / row.len() as f64;
    let factor = 1.0 / (variance + f64::from(CONFIG.epsilon)).sqrt();
    let parts = row.iter().zip(gain).zip(bias);
    parts.map(|((value, gain), bias)| (value - mean) * factor * f64::from(*gain) + f64::from(*bias)).collect()
}

/// Generates texts of ids and token types.
fn texts(
    lengths: std::ops::Range<usize>,
    count: std::ops::Range<usize>,
) -> impl Strategy<Value = Vec<Vec<(u32, u32)>>> {
    prop::collection::vec(prop::collection::vec((0..WORDS as u32, 0..2_u32), lengths), count)
}

fn states(encoder: &Encoder, batch: &[&Vec<(u32, u32)>], scratch: &mut Scratch) -> Vec<f32> {
    let tokens = || batch.iter().flat_map(|text| text.iter());
    let ids: Vec<u32> = tokens().map(|(id, _)| *id).collect();
    let types: Vec<u32> = tokens().map(|(_, kind)| *kind).collect();
    let lengths: Vec<usize> = batch.iter().map(|text| text.len()).collect();
    encoder
        .states(Texts { ids: &ids, types: &types, lengths: &lengths }, scratch)
        .expect("the batch is within the tables")
        .to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 60 }))]

    #[test]
    fn states_of_any_text_agree_with_f64(text in prop::collection::vec((0..WORDS as u32, 0..2_u32), 1..LENGTH_MAX)) {
        let model = Model::new();
        let (ids, types): (Vec<u32>, Vec<u32>) = text.iter().copied().unzip();
        let exact: Vec<f64> = model.exact(&ids, &types).concat();
        for isa in Isa::available() {
            for (precision, bound) in [(Precision::F32, 2e-5), (Precision::Bf16, 0.05), (Precision::Int8, 0.15)] {
                let states = states(&model.encoder(isa, precision), &[&text], &mut Scratch::default());
                let worst = states.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                prop_assert!(worst < bound, "{isa} {precision:?}: off by {worst}");
            }
        }
    }

    #[test]
    fn text_has_the_same_bits_alone_and_in_any_batch(batch in texts(1..LENGTH, 1..TEXTS)) {
        let model = Model::new();
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                let encoder = model.encoder(isa, precision);
                let (mut scratch, mut other) = (Scratch::default(), Scratch::default());
                let together = states(&encoder, &batch.iter().collect::<Vec<_>>(), &mut scratch);
                let mut alone = Vec::new();
                for text in &batch {
                    alone.extend(states(&encoder, &[text], &mut other));
                }
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&together), bits(&alone), "{} {:?}", isa, precision);
            }
        }
    }
}

/// Miri takes a thousand times as long.
const LENGTH: usize = if cfg!(miri) { 4 } else { 30 };
const LENGTH_MAX: usize = if cfg!(miri) { 4 } else { POSITIONS - 2 };
const TEXTS: usize = if cfg!(miri) { 3 } else { 12 };
const MIXTURES: usize = if cfg!(miri) { 2 } else { 1300 };

/// Batches of texts from a pool, each text in many batches and at many positions.
#[test]
fn texts_have_the_same_bits_in_1300_mixtures() {
    let model = Model::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % bound
    };
    let pool: Vec<Vec<(u32, u32)>> =
        (0..60).map(|_| (0..=below(LENGTH)).map(|_| (below(WORDS) as u32, below(2) as u32)).collect()).collect();
    let mixtures: Vec<Vec<usize>> =
        (0..MIXTURES).map(|_| (0..=below(12)).map(|_| below(pool.len())).collect()).collect();
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let encoder = model.encoder(isa, precision);
            let mut scratch = Scratch::default();
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
            let alone: Vec<_> = pool.iter().map(|text| bits(states(&encoder, &[text], &mut scratch))).collect();
            for mixture in &mixtures {
                let batch: Vec<_> = mixture.iter().map(|text| &pool[*text]).collect();
                let together = bits(states(&encoder, &batch, &mut scratch));
                let expected: Vec<u32> = mixture.iter().flat_map(|text| alone[*text].iter().copied()).collect();
                assert!(together == expected, "{isa} {precision:?}: {mixture:?}");
            }
        }
    }
}

#[test]
fn invalid_batch_is_refused_and_the_next_batch_computes() {
    let encoder = Model::new().encoder(Isa::best(), Precision::F32);
    let mut scratch = Scratch::default();
    let good = Texts { ids: &[1, 2, 3], types: &[], lengths: &[3] };
    let before = encoder.states(good, &mut scratch).unwrap().to_vec();
    let long = vec![1; POSITIONS - 1];
    let bad = [
        (Texts { ids: &[1, 2], types: &[], lengths: &[3] }, EncoderError::Lengths { tokens: 3, ids: 2 }),
        (
            Texts { ids: &[1, 2], types: &[], lengths: &[usize::MAX, 3] },
            EncoderError::Lengths { tokens: usize::MAX, ids: 2 },
        ),
        (Texts { ids: &[1, 2], types: &[0], lengths: &[2] }, EncoderError::Lengths { tokens: 2, ids: 1 }),
        (Texts { ids: &[1, 2], types: &[], lengths: &[2, 0] }, EncoderError::EmptyText),
        (Texts { ids: &[1, 40], types: &[], lengths: &[2] }, EncoderError::Id { kind: "token", id: 40, rows: WORDS }),
        (
            Texts { ids: &[1, 2], types: &[0, 2], lengths: &[2] },
            EncoderError::Id { kind: "token type", id: 2, rows: 2 },
        ),
        (
            Texts { ids: &long, types: &[], lengths: &[long.len()] },
            EncoderError::TextTooLong { tokens: POSITIONS - 1, tokens_max: POSITIONS - 2 },
        ),
    ];
    for (texts, error) in bad {
        assert_eq!(encoder.states(texts, &mut scratch).unwrap_err(), error);
    }
    assert_eq!(encoder.states(good, &mut scratch).unwrap(), before);
    assert_eq!(encoder.states(Texts { ids: &[], types: &[], lengths: &[] }, &mut scratch).unwrap(), [0.0; 0]);
}

#[test]
fn weights_of_wrong_length_are_refused_with_their_name() {
    let model = Model::new();
    let check = |change: &dyn Fn(&mut EncoderWeights<'_>), name: &str| {
        let mut weights = model.weights();
        change(&mut weights);
        let error = Encoder::new(Isa::best(), Precision::F32, CONFIG, &weights).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    };
    check(
        &|weights| weights.layers[1].intermediate.bias = &[0.0; 3],
        "layer 1: bias of intermediate has 3 elements, not 50",
    );
    check(&|weights| weights.layers[0].key.values = Values::F32(&[0.0; 3]), "layer 0: key has 3 elements, not 576");
    check(
        &|weights| weights.layers[0].output_norm.gain = &[0.0; 3],
        "layer 0: output normalization gain has 3 elements",
    );
    check(&|weights| weights.embeddings.words = Table::F32(&[0.0; 25]), "word embeddings has 25 elements, not 24");
    check(&|weights| weights.embeddings.positions = &[0.0; 48], "the first position, 2, is not in a table of 2");
    let config = EncoderConfig { heads: 5, ..CONFIG };
    let error = Encoder::new(Isa::best(), Precision::F32, config, &model.weights()).unwrap_err();
    assert_eq!(error.to_string(), "5 heads cannot share a hidden size of 24");
}
