//! The supported architectures and the names of their tensors.

use std::fmt;

use serde_json::{Value, json};

use super::settings::Settings;
use crate::wording::quoted;

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Bert,
    DistilBert,
    /// RoBERTa, XLM-R and CamemBERT.
    Roberta,
    Electra,
    Albert,
    Mpnet,
    /// DeBERTa v2 and v3.
    Deberta,
    ModernBert,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bert => "BERT",
            Self::DistilBert => "DistilBERT",
            Self::Roberta => "RoBERTa",
            Self::Electra => "ELECTRA",
            Self::Albert => "ALBERT",
            Self::Mpnet => "MPNet",
            Self::Deberta => "DeBERTa v2",
            Self::ModernBert => "ModernBERT",
        })
    }
}

/// The names of a layer's parts.
pub(super) struct LayerNames {
    pub(super) query: String,
    pub(super) key: String,
    pub(super) value: String,
    pub(super) attention_output: String,
    pub(super) attention_norm: String,
    pub(super) intermediate: String,
    pub(super) output: String,
    pub(super) output_norm: String,
}

impl Family {
    /// The architecture that `config.json` names.
    ///
    /// # Errors
    /// When it is unknown, or uses a feature that is not supported.
    pub(super) fn of(settings: &Settings) -> Result<Self, String> {
        let family = match settings.text("model_type")?.ok_or("model_type is missing")? {
            "bert" => Self::Bert,
            "distilbert" => Self::DistilBert,
            "roberta" | "xlm-roberta" | "camembert" => Self::Roberta,
            "electra" => Self::Electra,
            "albert" => Self::Albert,
            "mpnet" => Self::Mpnet,
            "deberta-v2" => Self::Deberta,
            "modernbert" => Self::ModernBert,
            other => return Err(format!("model_type = {other} is not supported", other = quoted(&other))),
        };
        settings.only("position_embedding_type", &json!("absolute"))?;
        settings.only("is_decoder", &Value::Bool(false))?;
        settings.only("add_cross_attention", &Value::Bool(false))?;
        if settings.value("quantization_config").is_some() {
            return Err("quantization_config is not supported".to_owned());
        }
        Ok(family)
    }

    /// The prefix of the encoder's names in a file of the whole model; a file of only the encoder has none.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert.",
            Self::DistilBert => "distilbert.",
            Self::Roberta => "roberta.",
            Self::Electra => "electra.",
            Self::Albert => "albert.",
            Self::Mpnet => "mpnet.",
            Self::Deberta => "deberta.",
            Self::ModernBert => "model.",
        }
    }

    /// The tensor names of a layer; `index` counts the layers with weights of their own.
    pub(super) fn layer(self, root: &str, index: usize) -> LayerNames {
        let scope = "attention.self";
        let (layer, parts) = match self {
            Self::DistilBert => (
                format!("transformer.layer.{index}"),
                ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"].map(str::to_owned),
            ),
            Self::Albert => (
                format!("encoder.albert_layer_groups.{index}.albert_layers.0"),
                ["attention.query", "attention.key", "attention.value", "attention.dense"].map(str::to_owned),
            ),
            Self::Mpnet => (
                format!("encoder.layer.{index}"),
                ["attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"].map(str::to_owned),
            ),
            Self::Deberta => (
                format!("encoder.layer.{index}"),
                [
                    format!("{scope}.query_proj"),
                    format!("{scope}.key_proj"),
                    format!("{scope}.value_proj"),
                    "attention.output.dense".to_owned(),
                ],
            ),
            Self::Bert | Self::Roberta | Self::Electra | Self::ModernBert => (
                format!("encoder.layer.{index}"),
                [
                    format!("{scope}.query"),
                    format!("{scope}.key"),
                    format!("{scope}.value"),
                    "attention.output.dense".to_owned(),
                ],
            ),
        };
        let rest = match self {
            Self::DistilBert => ["sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"],
            Self::Albert => ["attention.LayerNorm", "ffn", "ffn_output", "full_layer_layer_norm"],
            Self::Mpnet => ["attention.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"],
            Self::Bert | Self::Roberta | Self::Electra | Self::Deberta | Self::ModernBert => {
                ["attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"]
            }
        };
        let name = |part: &str| format!("{root}{layer}.{part}");
        let [query, key, value, attention_output] = parts.each_ref().map(|part| name(part));
        let [attention_norm, intermediate, output, output_norm] = rest.map(name);
        LayerNames { query, key, value, attention_output, attention_norm, intermediate, output, output_norm }
    }
}
