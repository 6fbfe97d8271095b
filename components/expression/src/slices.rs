//! An evaluation in slices: between two of them others may work on the same thread.
//!
//! What is evaluated over the items of an array is tried at once first. Where that takes more than [`ATTEMPT_STEPS`] it is undone and
//! evaluated in slices, too; evaluation changes nothing but its budget, so that the result and the budget are those of
//! [`Evaluation::value`].

use std::{borrow::Cow, pin::Pin};

use serde_json::{Map, Value};

use super::{
    EvaluationError,
    evaluate::{Evaluation, compute, is_true, wrong_type},
    parse::Node,
};

/// Steps after which a slice ends, as far as one copy of a value or one function allows.
const SLICE_STEPS: u64 = 10_000;
/// Steps that the evaluation over one item of an array may take to be done at once.
const ATTEMPT_STEPS: u64 = 1_000;

type Evaluated<'s, T> = Pin<Box<dyn Future<Output = Result<T, EvaluationError>> + 's>>;

/// An evaluation that is paused now and then.
pub(super) struct Slices<'p, P> {
    evaluation: Evaluation,
    /// What was left of the steps when the slice began.
    began_left: u64,
    pause: &'p mut P,
}

impl<'p, P: AsyncFnMut()> Slices<'p, P> {
    pub(super) fn new(evaluation: Evaluation, pause: &'p mut P) -> Self {
        Self { began_left: evaluation.steps_left(), evaluation, pause }
    }

    /// The value of a node over a value.
    pub(super) fn value<'s, 'v: 's>(&'s mut self, node: &'v Node, input: &'v Value) -> Evaluated<'s, Cow<'v, Value>> {
        Box::pin(self.value_of(node, input))
    }

    async fn value_of<'v>(&mut self, node: &'v Node, input: &'v Value) -> Result<Cow<'v, Value>, EvaluationError> {
        let is_leaf = matches!(node, Node::Current | Node::Field(_) | Node::Index(_) | Node::Literal(_));
        if !is_leaf {
            self.evaluation.step(1)?;
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
                self.evaluation.make(1, 0)?;
                Cow::Owned(Value::Array(items))
            }
            Node::Object(nodes) => {
                let mut members = Map::new();
                for (name, node) in nodes {
                    let member = self.owned(node, input).await?;
                    self.evaluation.make(1, name.len())?;
                    members.insert(name.clone(), member);
                }
                self.evaluation.make(1, 0)?;
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
                let compared = self.evaluation.compare(*comparison, &left, &right)?;
                self.between().await;
                Cow::Owned(compared)
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
                self.between().await;
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
                    self.between().await;
                }
                Cow::Owned(Value::Array(all))
            }
        })
    }

    async fn owned(&mut self, node: &Node, input: &Value) -> Result<Value, EvaluationError> {
        let value = self.value(node, input).await?;
        let value = self.evaluation.own(value)?;
        self.between().await;
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
        let before = all.len();
        if let Some(projected) = self.attempt(|evaluation| evaluation.project(filter, right, item, all)) {
            projected?;
            self.between().await;
            return Ok(());
        }
        all.truncate(before);
        if let Some(filter) = filter
            && !is_true(&*self.value(filter, item).await?)
        {
            return Ok(());
        }
        let value = self.value(right, item).await?;
        if !value.is_null() {
            let value = self.evaluation.own(value)?;
            all.push(value);
        }
        self.between().await;
        Ok(())
    }

    /// Evaluates at once; none where that takes too many steps, and then nothing was paid.
    fn attempt<T>(
        &mut self,
        evaluate: impl FnOnce(&mut Evaluation) -> Result<T, EvaluationError>,
    ) -> Option<Result<T, EvaluationError>> {
        let before = self.evaluation.begin_attempt(ATTEMPT_STEPS);
        let result = evaluate(&mut self.evaluation);
        self.evaluation.end_attempt(before).then_some(result)
    }

    /// Ends the slice where it has done its steps.
    async fn between(&mut self) {
        if self.began_left.saturating_sub(self.evaluation.steps_left()) >= SLICE_STEPS {
            (self.pause)().await;
            self.began_left = self.evaluation.steps_left();
        }
    }
}
