//! A forward pass without optimizations: weights in f32 as their types define them, one token after another, plain sums in f64. It
//! rounds where the engine rounds: activations to eight bits in blocks of 32, keys and values to f16.

use std::collections::BTreeMap;

use weir_lm::gguf::Header;
use weir_lm::model::decode_row;

use super::Small;

pub(crate) struct Reference {
    small: Small,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Reference {
    pub(crate) fn new(small: &Small, bytes: &[u8]) -> Self {
        let header = Header::parse(bytes, bytes.len() as u64).unwrap();
        let tensors = header.tensors.iter().map(|(name, entry)| {
            let mut values = vec![0.0; entry.dimensions.iter().product::<u64>() as usize];
            let data = &bytes[entry.offset as usize..][..entry.bytes as usize];
            decode_row(entry.ty, data, &mut values);
            (name.clone(), values)
        });
        Self { small: small.clone(), tensors: tensors.collect() }
    }

    fn product(&self, name: &str, input: &[f64]) -> Vec<f64> {
        let input = round_blocks(input);
        let weights = &self.tensors[&format!("{name}.weight")];
        let mut out: Vec<f64> = weights
            .chunks_exact(input.len())
            .map(|row| row.iter().zip(&input).map(|(weight, value)| f64::from(*weight) * value).sum())
            .collect();
        if let Some(bias) = self.tensors.get(&format!("{name}.bias")) {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += f64::from(*bias));
        }
        out
    }

    fn norm(&self, name: &str, input: &[f64]) -> Vec<f64> {
        let square = input.iter().map(|value| value * value).sum::<f64>() / input.len() as f64;
        let gain = &self.tensors[&format!("{name}.weight")];
        input.iter().zip(gain).map(|(value, gain)| value / (square + 1e-5).sqrt() * f64::from(*gain)).collect()
    }

    /// Rotates the heads of a token, in the layout of the file.
    fn rotate(&self, heads: &mut [f64], position: usize) {
        let size = self.small.head_size;
        for head in heads.chunks_exact_mut(size) {
            for pair in 0..size / 2 {
                let divisor = self.tensors.get("rope_freqs.weight").map_or(1.0, |all| f64::from(all[pair]));
                let angle = position as f64 * 10_000_f64.powf(-2.0 * pair as f64 / size as f64) / divisor;
                let indices =
                    if self.small.architecture == "llama" { (2 * pair, 2 * pair + 1) } else { (pair, pair + size / 2) };
                let (a, b) = (head[indices.0], head[indices.1]);
                head[indices.0] = a * angle.cos() - b * angle.sin();
                head[indices.1] = a * angle.sin() + b * angle.cos();
            }
        }
    }

    fn normalize_heads(&self, name: &str, heads: &mut [f64]) {
        if self.tensors.contains_key(&format!("{name}.weight")) {
            for head in heads.chunks_exact_mut(self.small.head_size) {
                head.copy_from_slice(&self.norm(name, head));
            }
        }
    }

    /// The log probabilities of the token after the last one.
    pub(crate) fn log_probabilities(&self, tokens: &[u32]) -> Vec<f64> {
        let Small { embedding, heads, kv_heads, head_size, layers, .. } = self.small;
        let group = heads / kv_heads;
        let mut cache: Vec<Vec<(Vec<f64>, Vec<f64>)>> = vec![Vec::new(); layers];
        let mut state = Vec::new();
        for (position, token) in tokens.iter().enumerate() {
            let row = &self.tensors["token_embd.weight"][*token as usize * embedding..][..embedding];
            state = row.iter().map(|value| f64::from(*value)).collect();
            for (layer, cache) in cache.iter_mut().enumerate() {
                let name = |part: &str| format!("blk.{layer}.{part}");
                let input = self.norm(&name("attn_norm"), &state);
                let mut query = self.product(&name("attn_q"), &input);
                let mut key = self.product(&name("attn_k"), &input);
                let value = self.product(&name("attn_v"), &input);
                self.normalize_heads(&name("attn_q_norm"), &mut query);
                self.normalize_heads(&name("attn_k_norm"), &mut key);
                self.rotate(&mut query, position);
                self.rotate(&mut key, position);
                cache.push((key.iter().map(half).collect(), value.iter().map(half).collect()));
                let mut attention = vec![0.0; heads * head_size];
                for head in 0..heads {
                    let kv = head / group * head_size;
                    let query = &query[head * head_size..][..head_size];
                    let scores = cache.iter().map(|(key, _)| {
                        let key = &key[kv..kv + head_size];
                        query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (head_size as f64).sqrt()
                    });
                    let scores: Vec<f64> = scores.collect();
                    let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|score| (score - maximum).exp()).sum();
                    for ((_, value), score) in cache.iter().zip(scores) {
                        for element in 0..head_size {
                            let share = (score - maximum).exp() / total;
                            attention[head * head_size + element] += share * value[kv + element];
                        }
                    }
                }
                let output = self.product(&name("attn_output"), &attention);
                state.iter_mut().zip(output).for_each(|(state, output)| *state += output);
                let input = self.norm(&name("ffn_norm"), &state);
                let (gate, up) = (self.product(&name("ffn_gate"), &input), self.product(&name("ffn_up"), &input));
                let gated: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
                let output = self.product(&name("ffn_down"), &gated);
                state.iter_mut().zip(output).for_each(|(state, output)| *state += output);
            }
        }
        let head = if self.small.has_head { "output" } else { "token_embd" };
        let logits = self.product(head, &self.norm("output_norm", &state));
        let maximum = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = maximum + logits.iter().map(|logit| (logit - maximum).exp()).sum::<f64>().ln();
        logits.iter().map(|logit| logit - total).collect()
    }
}

/// Rounds activations to eight bits in blocks of 32.
fn round_blocks(input: &[f64]) -> Vec<f64> {
    let blocks = input.chunks(32).flat_map(|block| {
        let scale = block.iter().fold(0.0_f64, |maximum, value| maximum.max(value.abs())) / 127.0;
        block.iter().map(move |value| if scale > 0.0 { (value / scale).round_ties_even() * scale } else { 0.0 })
    });
    blocks.collect()
}

/// The nearest f16.
fn half(value: &f64) -> f64 {
    let step = if *value == 0.0 { 1.0 } else { 2_f64.powi((value.abs().log2().floor() as i32).max(-14) - 10) };
    (value / step).round_ties_even() * step
}
