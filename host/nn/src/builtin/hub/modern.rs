//! ModernBERT.

use serde_json::{Value, json};
use weir_kernels::{Isa, Linear, ModernConfig, ModernEncoder, ModernLayerWeights, Precision, Table, Values};

use super::family::Family;
use super::settings::{LAYERS_MAX, Settings, TOKENS_MAX};
use super::tensors::{OwnedLinear, Tensors};
use crate::builtin::network::AnyEncoder;

/// The kind of attention of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attention {
    Full,
    Sliding,
}

struct Layers {
    kinds: Vec<Attention>,
    /// The base of rotary positions in full and in sliding attention.
    bases: [f32; 2],
    /// The greatest distance in sliding attention.
    distance_max: usize,
}

impl Layers {
    fn read(settings: &Settings) -> Result<Self, String> {
        let count = settings.bounded("num_hidden_layers", LAYERS_MAX)?;
        let kinds = match settings.value("layer_types") {
            Some(Value::Array(kinds)) => {
                let kind = |kind: &Value| match kind.as_str() {
                    Some("full_attention") => Ok(Attention::Full),
                    Some("sliding_attention") => Ok(Attention::Sliding),
                    _ => Err(format!("layer_types: {kind} is not supported")),
                };
                kinds.iter().map(kind).collect::<Result<Vec<_>, _>>()?
            }
            Some(other) => return Err(format!("layer_types: {other} is not a list")),
            None => {
                let every = settings.number("global_attn_every_n_layers")?.unwrap_or(3).max(1);
                (0..count).map(|layer| if layer % every == 0 { Attention::Full } else { Attention::Sliding }).collect()
            }
        };
        if kinds.len() != count {
            return Err(format!("layer_types has {} layers, not {count}", kinds.len()));
        }
        let base = |kind: &str, old_key: &str, default: f32| -> Result<f32, String> {
            let base = match settings.value("rope_parameters").and_then(|all| all.get(kind)) {
                Some(parameters) => {
                    if let Some(other) = parameters.get("rope_type").filter(|kind| **kind != json!("default")) {
                        return Err(format!("rope_parameters: rope_type = {other} is not supported"));
                    }
                    parameters.get("rope_theta").and_then(Value::as_f64).map_or(default, |base| base as f32)
                }
                None => settings.real(old_key)?.unwrap_or(default),
            };
            if base > 0.0 && base.is_finite() {
                Ok(base)
            } else {
                Err(format!("the base {base} of rotary positions is not above 0"))
            }
        };
        let bases = [
            base("full_attention", "global_rope_theta", 160_000.0)?,
            base("sliding_attention", "local_rope_theta", 10_000.0)?,
        ];
        Ok(Self { kinds, bases, distance_max: settings.number("local_attention")?.unwrap_or(128) / 2 })
    }
}

fn root(tensors: &Tensors) -> &'static str {
    let prefix = Family::ModernBert.prefix();
    if tensors.has(&format!("{prefix}embeddings.tok_embeddings.weight")) { prefix } else { "" }
}

/// Checks the settings and the names of the tensors, and describes the encoder.
pub(super) fn shape(settings: &Settings, tensors: &Tensors) -> Result<String, String> {
    let layers = Layers::read(settings)?;
    let (hidden, heads) = (settings.required("hidden_size")?, settings.required("num_attention_heads")?);
    settings.activation("hidden_activation")?;
    let root = root(tensors);
    tensors.matrix_shape(&format!("{root}embeddings.tok_embeddings.weight"))?;
    for layer in 0..layers.kinds.len() {
        tensors.matrix_shape(&format!("{root}layers.{layer}.attn.Wqkv.weight"))?;
    }
    Ok(format!("{} layers, {hidden} wide, {heads} heads", layers.kinds.len()))
}

/// Packs the encoder.
pub(super) fn load(
    settings: &Settings,
    tensors: &Tensors,
    isa: Isa,
    precision: Precision,
) -> Result<AnyEncoder, String> {
    let layers = Layers::read(settings)?;
    let (hidden, intermediate) = (settings.required("hidden_size")?, settings.required("intermediate_size")?);
    let tokens_max = match settings.value("max_position_embeddings") {
        Some(_) => settings.bounded("max_position_embeddings", TOKENS_MAX)?,
        None => 8192,
    };
    let config = ModernConfig {
        hidden,
        heads: settings.required("num_attention_heads")?,
        intermediate,
        activation: settings.activation("hidden_activation")?,
        epsilon: settings.real("norm_eps")?.unwrap_or(1e-5),
        tokens_max,
    };
    let root = root(tensors);
    let words = tensors.table(&format!("{root}embeddings.tok_embeddings.weight"), hidden)?;
    let norm = tensors.norm(&format!("{root}embeddings.norm"), hidden)?;
    let final_norm = tensors.norm(&format!("{root}final_norm"), hidden)?;
    let failed = |error: weir_kernels::EncoderError| error.to_string();
    let words = Table::Shared(&words);
    let mut encoder =
        ModernEncoder::without_layers(isa, config, words, norm.view(), final_norm.view()).map_err(failed)?;
    for (layer, kind) in layers.kinds.iter().enumerate() {
        let name = |part: &str| format!("{root}layers.{layer}.{part}");
        // The first layer reads the embeddings, which are normalized.
        let attention_norm = if layer == 0 { None } else { Some(tensors.norm(&name("attn_norm"), hidden)?) };
        let qkv = tensors.linear(&name("attn.Wqkv"), hidden, 3 * hidden)?;
        let attention_output = tensors.linear(&name("attn.Wo"), hidden, hidden)?;
        let feed_forward_norm = tensors.norm(&name("mlp_norm"), hidden)?;
        // Input and gate lie in one matrix, one after the other.
        let both = tensors.linear(&name("mlp.Wi"), hidden, 2 * intermediate)?;
        let output = tensors.linear(&name("mlp.Wo"), intermediate, hidden)?;
        let part = |which: usize| {
            let OwnedLinear { weight, bias } = &both;
            let rows = which * intermediate..(which + 1) * intermediate;
            Linear { values: Values::F32Transposed(&weight[rows.start * hidden..rows.end * hidden]), bias: &bias[rows] }
        };
        let weights = ModernLayerWeights {
            attention_norm: attention_norm.as_ref().map(|norm| norm.view()),
            qkv: qkv.view(),
            attention_output: attention_output.view(),
            feed_forward_norm: feed_forward_norm.view(),
            input: part(0),
            gate: part(1),
            output: output.view(),
            window: (*kind == Attention::Sliding).then_some(layers.distance_max),
            rotary_base: layers.bases[usize::from(*kind == Attention::Sliding)],
        };
        encoder.push_layer(precision, &weights).map_err(failed)?;
    }
    Ok(AnyEncoder::Modern(Box::new(encoder)))
}
