//! BERT and encoders that differ from it in a few parts: DistilBERT, RoBERTa, ELECTRA, ALBERT, MPNet, DeBERTa.

use serde_json::json;
use weir_kernels::{
    Activation, Embeddings, Encoder, EncoderConfig, Isa, LayerDistances, LayerWeights, Precision, Relative, Table,
    Variant,
};

use super::deberta::{self, Deberta};
use super::family::Family;
use super::settings::{LAYERS_MAX, Settings};
use super::tensors::Tensors;
use crate::builtin::network::AnyEncoder;

/// The numbers of `config.json`.
struct BertDimensions {
    hidden: usize,
    heads: usize,
    intermediate: usize,
    /// Layers that are computed.
    layers: usize,
    /// Layers with weights of their own.
    groups: usize,
    activation: Activation,
    epsilon: f32,
    first_position: usize,
}

impl BertDimensions {
    fn read(family: Family, settings: &Settings) -> Result<Self, String> {
        let (hidden, heads, layers, intermediate, activation) = match family {
            Family::DistilBert => ("dim", "n_heads", "n_layers", "hidden_dim", "activation"),
            _ => ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "hidden_act"),
        };
        let layers = settings.bounded(layers, LAYERS_MAX)?;
        let groups = if family == Family::Albert {
            settings.only("inner_group_num", &json!(1))?;
            settings.number("num_hidden_groups")?.unwrap_or(1)
        } else {
            layers
        };
        if groups == 0 || groups > layers {
            return Err(format!("num_hidden_groups: {groups} groups of {layers} layers"));
        }
        // The position of the first token is after that of the padding token.
        let first_position = match family {
            Family::Roberta => settings.number("pad_token_id")?.unwrap_or(1) + 1,
            Family::Mpnet => 2,
            _ => 0,
        };
        let epsilon = match family {
            Family::DistilBert => 1e-12,
            Family::Deberta => settings.real("layer_norm_eps")?.unwrap_or(1e-7),
            _ => settings.real("layer_norm_eps")?.unwrap_or(1e-12),
        };
        let activation = match (family, settings.value(activation)) {
            (Family::Albert, None) => Activation::GeluTanh,
            _ => settings.activation(activation)?,
        };
        let (hidden, heads) = (settings.required(hidden)?, settings.required(heads)?);
        if hidden % heads != 0 {
            return Err(format!("num_attention_heads: {heads} heads cannot share a hidden size of {hidden}"));
        }
        let intermediate = settings.required(intermediate)?;
        Ok(Self { hidden, heads, intermediate, layers, groups, activation, epsilon, first_position })
    }
}

/// The prefix of the encoder's tensor names.
fn root(family: Family, tensors: &Tensors) -> &'static str {
    if tensors.has(&format!("{}embeddings.word_embeddings.weight", family.prefix())) { family.prefix() } else { "" }
}

/// Checks the settings and the names of the tensors, and describes the encoder.
pub(super) fn shape(family: Family, settings: &Settings, tensors: &Tensors) -> Result<String, String> {
    let BertDimensions { hidden, heads, layers, groups, .. } = BertDimensions::read(family, settings)?;
    if family == Family::Deberta {
        Deberta::read(settings)?;
    }
    let root = root(family, tensors);
    tensors.matrix_shape(&format!("{root}embeddings.word_embeddings.weight"))?;
    for index in 0..groups {
        tensors.matrix_shape(&format!("{}.weight", family.layer(root, index).query))?;
    }
    Ok(format!("{layers} layers, {hidden} wide, {heads} heads"))
}

/// Packs the encoder. The flag is true when it has more than one token type.
pub(super) fn load(
    family: Family,
    settings: &Settings,
    tensors: &Tensors,
    isa: Isa,
    precision: Precision,
) -> Result<(AnyEncoder, bool), String> {
    let numbers = BertDimensions::read(family, settings)?;
    let BertDimensions { hidden, heads, intermediate, .. } = numbers;
    let deberta = if family == Family::Deberta { Some(Deberta::read(settings)?) } else { None };
    let root = root(family, tensors);
    let name = |part: &str| format!("{root}{part}");
    let (_, width) = tensors.matrix_shape(&name("embeddings.word_embeddings.weight"))?;
    let words = tensors.table(&name("embeddings.word_embeddings.weight"), width)?;
    let rows = |part: &str| {
        let name = name(part);
        match tensors.has(&name) {
            true => tensors.values(&name, &[tensors.matrix_shape(&name)?.0, width]),
            false => Ok(Default::default()),
        }
    };
    let types = rows("embeddings.token_type_embeddings.weight")?;
    let positions = match &deberta {
        Some(deberta) if !deberta.position_biased_input => Default::default(),
        _ => {
            let name = name("embeddings.position_embeddings.weight");
            tensors.values(&name, &[tensors.matrix_shape(&name)?.0, width])?
        }
    };
    let norm = tensors.norm(&name("embeddings.LayerNorm"), width)?;
    let projection = match family {
        Family::Electra if width != hidden => Some(tensors.linear(&name("embeddings_project"), width, hidden)?),
        Family::Albert => Some(tensors.linear(&name("encoder.embedding_hidden_mapping_in"), width, hidden)?),
        _ if width != hidden => {
            return Err(format!("embedding_size = {width} beside a hidden size of {hidden} is not supported"));
        }
        _ => None,
    };
    let distances =
        deberta.as_ref().map(|deberta| deberta.distances(tensors, root, hidden, numbers.epsilon, isa)).transpose()?;
    let bias = match family {
        Family::Mpnet => Some(mpnet_bias(settings, tensors, root, heads, positions.len() / width)?),
        _ => None,
    };
    let relative = match (&bias, &distances) {
        (Some(bias), _) => Relative::Bias(bias),
        (None, Some(distances)) => Relative::Disentangled { rows: &distances.rows, span: distances.span },
        (None, None) => Relative::None,
    };
    let head_size = hidden / heads;
    let score_factor = deberta.as_ref().map_or(1, Deberta::score_terms) as f32;
    let config = EncoderConfig {
        hidden,
        heads,
        intermediate,
        activation: numbers.activation,
        epsilon: numbers.epsilon,
        first_position: numbers.first_position,
        score_factor: 1.0 / (head_size as f32 * score_factor).sqrt(),
    };
    let variant = Variant {
        projection: projection.as_ref().map(|linear| linear.view()),
        layers: (family == Family::Albert).then_some(numbers.layers),
        relative,
        tokens_max: distances.as_ref().map_or(0, |distances| distances.tokens_max),
    };
    let embeddings =
        Embeddings { words: Table::Shared(&words), positions: &positions, types: &types, norm: norm.view() };
    let failed = |error: weir_kernels::EncoderError| error.to_string();
    let mut encoder = Encoder::without_layers(isa, config, &embeddings, variant).map_err(failed)?;
    for index in 0..numbers.groups {
        let names = family.layer(root, index);
        let linear = |name: &str, inner, columns| tensors.linear(name, inner, columns);
        let (query, key) = (linear(&names.query, hidden, hidden)?, linear(&names.key, hidden, hidden)?);
        let value = linear(&names.value, hidden, hidden)?;
        let attention_output = linear(&names.attention_output, hidden, hidden)?;
        let wide = linear(&names.intermediate, hidden, intermediate)?;
        let output = linear(&names.output, intermediate, hidden)?;
        let attention_norm = tensors.norm(&names.attention_norm, hidden)?;
        let output_norm = tensors.norm(&names.output_norm, hidden)?;
        let layer = LayerWeights {
            query: query.view(),
            key: key.view(),
            value: value.view(),
            attention_output: attention_output.view(),
            attention_norm: attention_norm.view(),
            intermediate: wide.view(),
            output: output.view(),
            output_norm: output_norm.view(),
        };
        let projected = match (&deberta, &distances) {
            (Some(deberta), Some(distances)) => Some(deberta.project(distances, tensors, root, index, &query, &key)?),
            _ => None,
        };
        let distances = projected.as_ref().map(|deberta::Projected { keys, queries }| LayerDistances {
            keys: keys.as_deref(),
            queries: queries.as_deref(),
        });
        encoder.push_layer(precision, &layer, distances).map_err(failed)?;
    }
    Ok((AnyEncoder::Bert(Box::new(encoder)), types.len() > width))
}

/// Expands the bias of each head and bucket to one of each head and distance.
fn mpnet_bias(
    settings: &Settings,
    tensors: &Tensors,
    root: &str,
    heads: usize,
    positions: usize,
) -> Result<Vec<f32>, String> {
    // The model's own code always uses 32 buckets, regardless of the configuration.
    const BUCKETS: usize = 32;
    settings.only("relative_attention_num_buckets", &json!(BUCKETS))?;
    let table = tensors.values(&format!("{root}encoder.relative_attention_bias.weight"), &[BUCKETS, heads])?;
    let tokens_max = positions.saturating_sub(2) as i64;
    let distances = 1 - tokens_max..tokens_max;
    Ok((0..heads)
        .flat_map(|head| distances.clone().map(move |distance| (head, distance)))
        .map(|(head, distance)| table[bucket(distance) * heads + head])
        .collect())
}

/// The bucket of 32 of a distance `key - query`: exact near 0, logarithmic up to 128.
fn bucket(distance: i64) -> usize {
    const HALF: usize = 16;
    const EXACT: usize = 8;
    let side = if distance > 0 { HALF } else { 0 };
    let length = distance.unsigned_abs() as usize;
    if length < EXACT {
        return side + length;
    }
    let logarithm = (length as f32 / EXACT as f32).ln() / (128.0f64 / EXACT as f64).ln() as f32;
    let large = EXACT + (logarithm * (HALF - EXACT) as f32) as usize;
    side + large.min(HALF - 1)
}
