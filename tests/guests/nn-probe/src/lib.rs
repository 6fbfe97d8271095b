//! A guest that calls wasi:nn for the tests of the host, by the functions of `wit/probe.wit`. Its test is `host/nn/tests/wasi_nn.rs`.
#![allow(missing_docs, reason = "bindings; the WIT documents them")]
#![allow(clippy::too_many_arguments, reason = "a generated function has as many parameters as its WIT flattens to")]

wit_bindgen::generate!({
    path: ["../../../wit/deps/nn.wit", "wit"],
    world: "weir:nn-probe/probe",
    generate_all,
});

use wasi::nn::errors::Error;
use wasi::nn::graph::{Graph, load, load_by_name};
use wasi::nn::inference::GraphExecutionContext;
use wasi::nn::tensor::Tensor;

struct Probe;

impl Guest for Probe {
    fn compute(graph: Source, runs: Vec<Vec<Value>>) -> Result<Vec<Result<Vec<Value>, Failure>>, Failure> {
        let graph = match graph {
            Source::ByName(name) => load_by_name(&name),
            Source::FromBytes(builder) => load(&builder.parts, builder.encoding, builder.target),
        };
        let context = context(graph.map_err(|e| failure(Stage::Load, &e))?)?;
        Ok(runs.iter().map(|inputs| run(&context, inputs)).collect())
    }

    fn echo(value: Value) -> Value {
        let Value { name, dimensions, ty, data } = value;
        read(name, &Tensor::new(&dimensions, ty, &data))
    }

    fn hoard(name: String, count: u32, value: Value) -> Result<Vec<Value>, Failure> {
        let context = context(load_by_name(&name).map_err(|e| failure(Stage::Load, &e))?)?;
        let mut tensors: Vec<Tensor> = (0..count).map(|_| tensor(&value)).collect();
        let last = tensors.pop().into_iter().map(|tensor| (value.name.clone(), tensor)).collect();
        let outputs = context.compute(last).map_err(|e| failure(Stage::Compute, &e))?;
        Ok(outputs.iter().map(|(name, tensor)| read(name.clone(), tensor)).collect())
    }
}

fn context(graph: Graph) -> Result<GraphExecutionContext, Failure> {
    graph.init_execution_context().map_err(|e| failure(Stage::Context, &e))
}

fn run(context: &GraphExecutionContext, inputs: &[Value]) -> Result<Vec<Value>, Failure> {
    let inputs = inputs.iter().map(|value| (value.name.clone(), tensor(value))).collect();
    let outputs = context.compute(inputs).map_err(|e| failure(Stage::Compute, &e))?;
    Ok(outputs.iter().map(|(name, tensor)| read(name.clone(), tensor)).collect())
}

fn tensor(value: &Value) -> Tensor {
    Tensor::new(&value.dimensions, value.ty, &value.data)
}

fn read(name: String, tensor: &Tensor) -> Value {
    Value { name, dimensions: tensor.dimensions(), ty: tensor.ty(), data: tensor.data() }
}

fn failure(stage: Stage, error: &Error) -> Failure {
    Failure { stage, code: error.code(), text: error.data() }
}

export!(Probe);
