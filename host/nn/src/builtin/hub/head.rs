//! Heads of classifiers.

use weir_kernels::{Activation, Isa};

use super::family::Family;
use super::settings::Settings;
use super::tensors::Tensors;
use crate::builtin::network::{HeadActivation, Pooling, Readout, RowSelection, Stage};
use crate::wording::quoted;

/// A linear layer of the file; its width is the number of rows of its weight.
fn stage(tensors: &Tensors, name: &str, inner: usize, activation: HeadActivation, isa: Isa) -> Result<Stage, String> {
    let (columns, _) = tensors.matrix_shape(&format!("{name}.weight"))?;
    let linear = tensors.linear(name, inner, columns)?;
    Ok(Stage::linear(isa, inner, &linear.weight, &linear.bias, activation))
}

/// The head that scores texts.
pub(super) fn sequence(
    family: Family,
    settings: &Settings,
    tensors: &Tensors,
    isa: Isa,
    hidden: usize,
) -> Result<Readout, String> {
    let (first, activation, last) = match family {
        Family::Bert => ("bert.pooler.dense", HeadActivation::Tanh, "classifier"),
        Family::Albert => ("albert.pooler", HeadActivation::Tanh, "classifier"),
        Family::Roberta | Family::Mpnet => ("classifier.dense", HeadActivation::Tanh, "classifier.out_proj"),
        Family::Electra => ("classifier.dense", HeadActivation::Kernel(Activation::Gelu), "classifier.out_proj"),
        Family::DistilBert => ("pre_classifier", HeadActivation::Kernel(Activation::Relu), "classifier"),
        Family::Deberta => ("pooler.dense", settings.head_activation("pooler_hidden_act")?, "classifier"),
        Family::ModernBert => return modern(settings, tensors, isa, hidden),
    };
    let stages =
        vec![stage(tensors, first, hidden, activation, isa)?, stage(tensors, last, hidden, HeadActivation::None, isa)?];
    Ok(Readout { from: RowSelection::Texts(Pooling::First), stages })
}

fn modern(settings: &Settings, tensors: &Tensors, isa: Isa, hidden: usize) -> Result<Readout, String> {
    let pooling = match settings.text("classifier_pooling")? {
        None | Some("cls") => Pooling::First,
        Some("mean") => Pooling::Mean,
        Some(other) => return Err(format!("classifier_pooling = {other} is not supported", other = quoted(&other))),
    };
    Ok(Readout { from: RowSelection::Texts(pooling), stages: modern_stages(settings, tensors, isa, hidden)? })
}

fn modern_stages(settings: &Settings, tensors: &Tensors, isa: Isa, hidden: usize) -> Result<Vec<Stage>, String> {
    let norm = tensors.norm("head.norm", hidden)?;
    Ok(vec![
        stage(tensors, "head.dense", hidden, settings.head_activation("classifier_activation")?, isa)?,
        Stage::Norm {
            gain: norm.gain.into_owned(),
            bias: norm.bias.into_owned(),
            epsilon: settings.real("norm_eps")?.unwrap_or(1e-5),
        },
        stage(tensors, "classifier", hidden, HeadActivation::None, isa)?,
    ])
}

/// The head that scores tokens.
pub(super) fn tokens(
    family: Family,
    settings: &Settings,
    tensors: &Tensors,
    isa: Isa,
    hidden: usize,
) -> Result<Readout, String> {
    let stages = match family {
        Family::ModernBert => modern_stages(settings, tensors, isa, hidden)?,
        _ => vec![stage(tensors, "classifier", hidden, HeadActivation::None, isa)?],
    };
    Ok(Readout { from: RowSelection::Tokens, stages })
}
