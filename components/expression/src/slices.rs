//! Evaluation in slices, between which other tasks can run on the same thread.
//!
//! The evaluation over an item of an array is first attempted without a pause. If it takes more than [`ATTEMPT_STEPS`]
//! steps, the attempt is undone and the item is evaluated in slices. Evaluation has no side effect other than its
//! budget, so result and budget are those of [`Evaluation::value`].

use std::{borrow::Cow, pin::Pin};

use serde_json::{Map, Value};

use super::{
    EvaluationError,
    evaluate::{Evaluation, compute, is_true, wrong_type},
    parse::Node,
};

/// Steps after which a slice ends. The copy of a value and the call of a function are not interrupted.
const SLICE_STEPS: u64 = 10_000;
/// Most steps of the evaluation over one item of an array without a pause.
const ATTEMPT_STEPS: u64 = 1_000;

type EvaluationFuture<'s, T> = Pin<Box<dyn Future<Output = Result<T, EvaluationError>> + 's>>;

/// An evaluation that pauses between slices.
pub(super) struct Slices<'p, P> {
    evaluation: Evaluation,
    /// The remaining steps at the start of the current slice.
    steps_at_start: u64,
    pause: &'p mut P,
}

impl<'p, P: AsyncFnMut()> Slices<'p, P> {
    pub(super) fn new(evaluation: Evaluation, pause: &'p mut P) -> Self {
        Self { steps_at_start: evaluation.steps_left(), evaluation, pause }
    }

    /// The value of a node over a value.
    pub(super) fn value<'s, 'v: 's>(
        &'s mut self,
        node: &'v Node,
        input: &'v Value,
    ) -> EvaluationFuture<'s, Cow<'v, Value>> {
        Box::pin(self.value_of(node, input))
    }

    async fn value_of<'v>(&mut self, node: &'v Node, input: &'v Value) -> Result<Cow<'v, Value>, EvaluationError> {
        let is_leaf = matches!(node, Node::Current | Node::Field(_) | Node::Index(_) | Node::Literal(_));
        if !is_leaf {
            self.evaluation.charge_steps(1)?;
        }
        Ok(match node {
            Node::Current | Node::Field(_) | Node::Index(_) | Node::Literal(_) => self.evaluation.value(node, input)?,
            Node::Then(left, right) => match self.value(left, input).await? {
                Cow::Borrowed(left) => self.value(right, left).await?,
                Cow::Owned(left) => Cow::Owned(self.over_owned(right, left).await?),
            },
            Node::Project { left, flatten, filter, right } => {
                let left = self.value(left, input).await?;
                let Value::Array(items) = &*left else { return Ok(Cow::Owned(Value::Null)) };
                let mut all = Vec::new();
                for item in items {
                    match item {
                        Value::Array(inner) if *flatten => {
                            for item in inner {
                                self.project(filter.as_deref(), right, item, &mut all).await?;
                            }
                        }
                        item => self.project(filter.as_deref(), right, item, &mut all).await?,
                    }
                }
                Cow::Owned(Value::Array(all))
            }
            Node::List(_) | Node::Object(_) if input.is_null() => Cow::Owned(Value::Null),
            Node::List(nodes) => {
                let mut items = Vec::with_capacity(nodes.len());
                for node in nodes {
                    items.push(self.owned(node, input).await?);
                }
                self.evaluation.charge_memory(1, 0)?;
                Cow::Owned(Value::Array(items))
            }
            Node::Object(nodes) => {
                let mut members = Map::new();
                for (name, node) in nodes {
                    let member = self.owned(node, input).await?;
                    self.evaluation.charge_memory(1, name.len())?;
                    members.insert(name.clone(), member);
                }
                self.evaluation.charge_memory(1, 0)?;
                Cow::Owned(Value::Object(members))
            }
            Node::Or(left, right) => match self.value(left, input).await? {
                left if is_true(&left) => left,
                _ => self.value(right, input).await?,
            },
            Node::And(left, right) => match self.value(left, input).await? {
                left if is_true(&left) => self.value(right, input).await?,
                left => left,
            },
            Node::Not(inner) => Cow::Owned(Value::Bool(!is_true(&*self.value(inner, input).await?))),
            Node::Compare(comparison, left, right) => {
                let (left, right) = (self.value(left, input).await?, self.value(right, input).await?);
                let result = self.evaluation.compare(*comparison, &left, &right)?;
                self.pause_if_due().await;
                Cow::Owned(result)
            }
            Node::Arithmetic(operator, left, right) => {
                let (left, right) = (self.value(left, input).await?, self.value(right, input).await?);
                Cow::Owned(Value::Number(compute(*operator, &left, &right)?))
            }
            Node::Call(function, nodes) => {
                let mut arguments = Vec::with_capacity(nodes.len());
                for node in nodes {
                    arguments.push(self.value(node, input).await?);
                }
                let value = self.evaluation.call(*function, arguments)?;
                self.pause_if_due().await;
                Cow::Owned(value)
            }
            Node::Map(each, list) => {
                let list = self.value(list, input).await?;
                let Value::Array(items) = &*list else { return Err(wrong_type("map", "an array", &list)) };
                let mut all = Vec::new();
                for item in items {
                    let value = match self.attempt(|evaluation| evaluation.owned(each, item)) {
                        Some(value) => value?,
                        None => self.owned(each, item).await?,
                    };
                    all.push(value);
                    self.pause_if_due().await;
                }
                Cow::Owned(Value::Array(all))
            }
        })
    }

    async fn owned(&mut self, node: &Node, input: &Value) -> Result<Value, EvaluationError> {
        let value = self.value(node, input).await?;
        let value = self.evaluation.materialize(value)?;
        self.pause_if_due().await;
        Ok(value)
    }

    async fn over_owned(&mut self, node: &Node, input: Value) -> Result<Value, EvaluationError> {
        match node {
            Node::Current | Node::Field(_) => self.evaluation.over_owned(node, input),
            _ => self.owned(node, &input).await,
        }
    }

    async fn project(
        &mut self,
        filter: Option<&Node>,
        right: &Node,
        item: &Value,
        all: &mut Vec<Value>,
    ) -> Result<(), EvaluationError> {
        let length = all.len();
        if let Some(result) = self.attempt(|evaluation| evaluation.project(filter, right, item, all)) {
            result?;
            self.pause_if_due().await;
            return Ok(());
        }
        all.truncate(length);
        if let Some(filter) = filter
            && !is_true(&*self.value(filter, item).await?)
        {
            return Ok(());
        }
        let value = self.value(right, item).await?;
        if !value.is_null() {
            let value = self.evaluation.materialize(value)?;
            all.push(value);
        }
        self.pause_if_due().await;
        Ok(())
    }

    /// Evaluates without a pause. `None` if that takes more than [`ATTEMPT_STEPS`] steps; the budget is then unchanged.
    fn attempt<T>(
        &mut self,
        evaluate: impl FnOnce(&mut Evaluation) -> Result<T, EvaluationError>,
    ) -> Option<Result<T, EvaluationError>> {
        let before = self.evaluation.begin_attempt(ATTEMPT_STEPS);
        let result = evaluate(&mut self.evaluation);
        self.evaluation.end_attempt(before).then_some(result)
    }

    /// Pauses, and starts the next slice, if the current one has used its steps.
    async fn pause_if_due(&mut self) {
        if self.steps_at_start.saturating_sub(self.evaluation.steps_left()) >= SLICE_STEPS {
            (self.pause)().await;
            self.steps_at_start = self.evaluation.steps_left();
        }
    }
}
