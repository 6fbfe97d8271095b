//! Loads an ONNX file into a decluttered model with symbolic axes, and makes the plan that runs it in any shape on the CPU.

use std::sync::Arc;
use std::time::Instant;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::{DimLike, GenericFactoid};

use super::convert::element_type;
use super::error::chain;
use super::share::PackedWeights;
use crate::config::RegistryConfig;
use crate::engine::{Dimension, ElementType, GraphInfo, GraphSource, TensorInfo};
use crate::error::LoadError;
use crate::onnx;
use crate::tensor::TensorType;
use crate::wording::{case_name, quoted};

/// A loaded graph.
pub(super) struct LoadedModel {
    /// The model before it is lowered to kernels, from which fixed-shape plans are made.
    pub(super) typed: Arc<TypedModel>,
    /// The plan for every shape.
    pub(super) symbolic: Arc<TypedRunnableModel>,
    pub(super) info: GraphInfo,
    /// The packed weights that further plans can share.
    pub(super) weights: PackedWeights,
}

/// A graph before it is lowered to the kernels of a device.
pub(super) struct AnalysedGraph {
    pub(super) typed: TypedModel,
    pub(super) info: GraphInfo,
    stopwatch: Stopwatch,
}

/// Loads a graph for the CPU.
pub(super) fn load(source: GraphSource<'_>, config: &RegistryConfig) -> Result<LoadedModel, LoadError> {
    let origin = source.origin();
    let AnalysedGraph { typed, info, mut stopwatch } = analyse(source, config)?;
    let broken = |e: TractError| LoadError::Broken {
        origin: origin.clone(),
        reason: format!("cannot be planned: {}", chain(&e)),
    };
    let mut optimized = typed.clone();
    optimized.optimize().map_err(broken)?;
    stopwatch.lap("optimize");
    let mut weights = PackedWeights::default();
    weights.share(&mut optimized);
    let symbolic = TypedSimplePlan::new(optimized).map_err(broken)?;
    stopwatch.lap("plan");
    tracing::debug!(%origin, times = %stopwatch.laps, "graph prepared");
    Ok(LoadedModel { typed: Arc::new(typed), symbolic, info, weights })
}

/// Reads a graph, and infers the types and shapes of all values.
pub(super) fn analyse(source: GraphSource<'_>, config: &RegistryConfig) -> Result<AnalysedGraph, LoadError> {
    let origin = source.origin();
    let broken = |what: &str, e: TractError| LoadError::Broken {
        origin: origin.clone(),
        reason: format!("{what}: {}", chain(&e)),
    };
    let mut stopwatch = Stopwatch::start();
    let parsed = onnx::read(source, config)?;
    stopwatch.lap("read");
    let framework = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    let missing = parsed.operators.iter().filter(|op| !framework.op_register.0.contains_key(op.as_str()));
    let missing: Vec<&str> = missing.map(String::as_str).collect();
    if !missing.is_empty() {
        let reason = format!("tract has no operator {}", missing.join(", "));
        return Err(LoadError::Unsupported { origin, reason });
    }
    let result = framework.parse(&parsed.model, None).map_err(|e| broken("malformed graph", e))?;
    if let Some(name) = result.unresolved_inputs.first() {
        return Err(LoadError::Broken {
            origin,
            reason: format!("malformed graph: nothing computes {name}", name = quoted(&name)),
        });
    }
    let mut model = result.model;
    stopwatch.lap("parse");
    let inputs = declare_inputs(&mut model, &parsed, &origin)?;
    let output_names = parsed.output_names;
    let output_bf16 = parsed.output_bf16;
    let parameter_bytes = parsed.parameter_bytes;
    drop(parsed.model);
    let typed = model.into_typed().map_err(|e| broken("inconsistent graph", e))?;
    stopwatch.lap("analyse");
    let typed = typed.into_decluttered().map_err(|e| broken("inconsistent graph", e))?;
    stopwatch.lap("declutter");
    let outputs = describe_outputs(&typed, output_names, &output_bf16, &origin)?;
    Ok(AnalysedGraph { typed, info: GraphInfo { inputs, outputs, parameter_bytes }, stopwatch })
}

/// Milliseconds per step, for the log.
struct Stopwatch {
    last: Instant,
    laps: String,
}

impl Stopwatch {
    fn start() -> Self {
        Self { last: Instant::now(), laps: String::new() }
    }

    fn lap(&mut self, step: &str) {
        use std::fmt::Write as _;
        let ms = self.last.elapsed().as_secs_f64() * 1e3;
        // Writing to a String cannot fail.
        let _ = write!(self.laps, "{step} {ms:.1} ms ");
        self.last = Instant::now();
    }
}

/// Declares each input, with a new symbol for each open dimension.
fn declare_inputs(
    model: &mut InferenceModel,
    parsed: &onnx::FoldedGraph,
    origin: &str,
) -> Result<Vec<TensorInfo>, LoadError> {
    let unsupported = |reason: String| LoadError::Unsupported { origin: origin.to_owned(), reason };
    let broken = |e: TractError| LoadError::Broken { origin: origin.to_owned(), reason: chain(&e) };
    let outlets = model.input_outlets().map_err(broken)?.to_vec();
    let mut infos = Vec::with_capacity(outlets.len());
    for (ix, outlet) in outlets.iter().enumerate() {
        let name = model.node(outlet.node).name.clone();
        let fact = model.outlet_fact(*outlet).map_err(broken)?.clone();
        let datum = fact
            .datum_type
            .concretize()
            .ok_or_else(|| unsupported(format!("input {name} has no type", name = quoted(&name))))?;
        if fact.shape.is_open() {
            return Err(unsupported(format!("input {name} does not say its rank", name = quoted(&name))));
        }
        let dims: Vec<Option<TDim>> = fact.shape.dims().map(GenericFactoid::concretize).collect();
        let mut shape: TVec<TDim> = tvec![];
        let mut dimensions = vec![];
        for dim in dims {
            let dim = dim.unwrap_or_else(|| model.symbols.new_with_prefix("d").into());
            dimensions.push(match (&dim, dim.to_usize()) {
                (_, Ok(size)) => Dimension::Fixed(size),
                (TDim::Sym(symbol), _) => Dimension::Symbol(symbol.to_string()),
                _ => Dimension::Unknown,
            });
            shape.push(dim);
        }
        model.set_input_fact(ix, InferenceFact::dt_shape(datum, shape)).map_err(broken)?;
        let element = match element_type(datum) {
            Some(ElementType::Wit(TensorType::Fp32)) if parsed.input_bf16.contains(&name) => {
                ElementType::Wit(TensorType::Bf16)
            }
            Some(element) => element,
            None => {
                return Err(unsupported(format!(
                    "input {name} is {ty}, which no guest can pass",
                    name = quoted(&name),
                    ty = case_name(&datum)
                )));
            }
        };
        infos.push(TensorInfo { name, element, dimensions: Some(dimensions) });
    }
    Ok(infos)
}

fn describe_outputs(
    typed: &TypedModel,
    names: Vec<String>,
    bf16: &std::collections::HashSet<String>,
    origin: &str,
) -> Result<Vec<TensorInfo>, LoadError> {
    let describe = |(ix, name): (usize, String)| {
        let fact = typed.output_fact(ix);
        let fact = fact.map_err(|e| LoadError::Broken { origin: origin.to_owned(), reason: chain(&e) })?;
        let element = match element_type(fact.datum_type) {
            Some(ElementType::Wit(TensorType::Fp32)) if bf16.contains(&name) => ElementType::Wit(TensorType::Bf16),
            Some(element) => element,
            None => {
                let reason = format!(
                    "output {name} is {}, which no guest can get",
                    case_name(&fact.datum_type),
                    name = quoted(&name)
                );
                return Err(LoadError::Unsupported { origin: origin.to_owned(), reason });
            }
        };
        let dimension = |dim: &TDim| match (dim, dim.to_usize()) {
            (_, Ok(size)) => Dimension::Fixed(size),
            (TDim::Sym(symbol), _) => Dimension::Symbol(symbol.to_string()),
            _ => Dimension::Unknown,
        };
        Ok(TensorInfo { name, element, dimensions: Some(fact.shape.iter().map(dimension).collect()) })
    };
    names.into_iter().enumerate().map(describe).collect()
}
