//! Disentangled attention of DeBERTa v2 and v3: embeddings of distances, and the row of each distance.

use std::borrow::Cow;

use serde_json::{Value, json};
use weir_kernels::{Epilogue, Isa, Matrix, Precision, Rows, Values};

use super::settings::{Settings, TOKENS_MAX};
use super::tensors::{OwnedLinear, Tensors};
use crate::builtin::network::normalize;
use crate::wording::quoted;

/// The settings of `config.json` that concern distances.
pub(super) struct Deberta {
    /// Whether there are absolute positions too.
    pub(super) position_biased_input: bool,
    /// Whether queries are multiplied by distances.
    content_to_position: bool,
    /// Whether keys are multiplied by distances.
    position_to_content: bool,
    /// Whether distances are projected with the weights of contents.
    share_key: bool,
    normalized: bool,
    /// The number of rows on each side where distant ones share rows; 0 when every distance has its own.
    buckets: usize,
    /// The greatest distance.
    distance_max: usize,
    tokens_max: usize,
}

/// The embeddings of distances.
pub(super) struct Distances<'a> {
    /// `[span, hidden]`
    embeddings: Cow<'a, [f32]>,
    pub(super) span: usize,
    /// The row of each distance from `1 - tokens_max` on.
    pub(super) rows: Vec<u32>,
    pub(super) tokens_max: usize,
    isa: Isa,
}

/// The embeddings of distances as a layer projects them: `[span, hidden]`.
pub(super) struct Projected {
    pub(super) keys: Option<Vec<f32>>,
    pub(super) queries: Option<Vec<f32>>,
}

impl Deberta {
    pub(super) fn read(settings: &Settings) -> Result<Self, String> {
        settings.only("relative_attention", &Value::Bool(true))?;
        if settings.value("relative_attention").is_none() {
            return Err("relative_attention = false is not supported".to_owned());
        }
        settings.only("conv_kernel_size", &json!(0))?;
        settings.only(
            "attention_head_size",
            &json!(settings.required("hidden_size")? / settings.required("num_attention_heads")?),
        )?;
        let kinds: Vec<&str> = match settings.value("pos_att_type") {
            None => Vec::new(),
            Some(Value::String(kinds)) => kinds.split('|').collect(),
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
            Some(other) => return Err(format!("pos_att_type = {other} is not supported")),
        };
        if let Some(other) = kinds.iter().find(|kind| !["c2p", "p2c"].contains(kind)) {
            return Err(format!("pos_att_type = {other} is not supported", other = quoted(&other)));
        }
        let normalized = match settings.text("norm_rel_ebd")? {
            None | Some("none") => false,
            Some("layer_norm") => true,
            Some(other) => return Err(format!("norm_rel_ebd = {other} is not supported", other = quoted(&other))),
        };
        // -1 stands for none.
        let optional = |key: &str| match settings.value(key).and_then(Value::as_i64) {
            Some(..=0) => Ok(0),
            _ => Ok::<_, String>(settings.number(key)?.unwrap_or(0)),
        };
        let tokens_max = settings.bounded("max_position_embeddings", TOKENS_MAX)?;
        let distance_max = match optional("max_relative_positions")? {
            0 => tokens_max,
            distance_max => distance_max,
        };
        let buckets = optional("position_buckets")?;
        // `bucket` divides by the logarithm of the range of the inexact half, which must be positive.
        if buckets == 1 || (buckets > 0 && distance_max <= buckets / 2 + 1) {
            return Err(format!("position_buckets = {buckets} for distances up to {distance_max} is not supported"));
        }
        Ok(Self {
            position_biased_input: settings.flag("position_biased_input")?.unwrap_or(true),
            content_to_position: kinds.contains(&"c2p"),
            position_to_content: kinds.contains(&"p2c"),
            share_key: settings.flag("share_att_key")?.unwrap_or(false),
            normalized,
            buckets,
            distance_max,
            tokens_max,
        })
    }

    /// The number of terms of a score, which determines its scale.
    pub(super) fn score_terms(&self) -> usize {
        1 + usize::from(self.content_to_position) + usize::from(self.position_to_content)
    }

    /// Reads the embeddings that all layers share.
    pub(super) fn distances<'a>(
        &self,
        tensors: &'a Tensors,
        root: &str,
        hidden: usize,
        epsilon: f32,
        isa: Isa,
    ) -> Result<Distances<'a>, String> {
        let half = if self.buckets > 0 { self.buckets } else { self.distance_max };
        let span = 2 * half;
        let mut embeddings = tensors.values(&format!("{root}encoder.rel_embeddings.weight"), &[span, hidden])?;
        if self.normalized {
            let norm = tensors.norm(&format!("{root}encoder.LayerNorm"), hidden)?;
            for row in embeddings.to_mut().chunks_exact_mut(hidden) {
                normalize(row, &norm.gain, &norm.bias, epsilon);
            }
        }
        let (tokens_max, half) = (self.tokens_max as i64, half as i64);
        let row = |distance: i64| (self.bucket(distance) + half).clamp(0, 2 * half - 1) as u32;
        let rows = (1 - tokens_max..tokens_max).map(row).collect();
        Ok(Distances { embeddings, span, rows, tokens_max: self.tokens_max, isa })
    }

    /// The bucket of a distance `query - key`: exact up to half of the buckets, then logarithmic. In f32, as in the model's own code.
    fn bucket(&self, distance: i64) -> i64 {
        let middle = (self.buckets / 2) as i64;
        let length = distance.abs();
        if self.buckets == 0 || length <= middle {
            return distance;
        }
        let ratio = ((self.distance_max - 1) as f64 / middle as f64) as f32;
        let logarithm = (length as f32 / middle as f32).ln() / ratio.ln() * (middle - 1) as f32;
        (logarithm.ceil() as i64 + middle) * distance.signum()
    }

    /// Projects the embeddings for a layer, whose own projections are `query` and `key`.
    pub(super) fn project(
        &self,
        distances: &Distances<'_>,
        tensors: &Tensors,
        root: &str,
        layer: usize,
        query: &OwnedLinear<'_>,
        key: &OwnedLinear<'_>,
    ) -> Result<Projected, String> {
        let hidden = key.bias.len();
        let apply = |linear: &OwnedLinear<'_>| {
            let matrix = Matrix::pack(
                distances.isa,
                Precision::F32,
                hidden,
                &[(Values::F32Transposed(&linear.weight), &linear.bias)],
            );
            let mut projected = vec![0.0; distances.embeddings.len()];
            matrix.multiply(&distances.embeddings, Epilogue::Store, &mut projected, &mut Rows::default());
            projected
        };
        let project = |is_used: bool, shared: &OwnedLinear<'_>, part: &str| match (is_used, self.share_key) {
            (false, _) => Ok(None),
            (true, true) => Ok(Some(apply(shared))),
            (true, false) => {
                let name = format!("{root}encoder.layer.{layer}.attention.self.{part}");
                tensors.linear(&name, hidden, hidden).map(|linear| Some(apply(&linear)))
            }
        };
        Ok(Projected {
            keys: project(self.content_to_position, key, "pos_key_proj")?,
            queries: project(self.position_to_content, query, "pos_query_proj")?,
        })
    }
}
