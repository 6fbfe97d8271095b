//! Evaluation in slices, between which other tasks can run on the same thread.
//!
//! The evaluation over an item of an array is first attempted without a pause. If it takes more than [`ATTEMPT_STEPS`]
//! steps, the attempt is undone and the item is evaluated in slices. Evaluation has no side effect other than its
//! budget, so result and budget are those of [`Evaluation::value`].

use std::{borrow::Cow, pin::Pin};

use serde_json::{Map, Value, map};

use super::{
    error::EvaluationError,
    evaluate::{Evaluation, compute, is_equal, is_true, measure, wrong_type},
    functions::{compare_sorted, object},
    text::{Reader, Writer},
    tree::{Comparison, Function, Node},
};

/// Steps after which a slice ends.
const SLICE_STEPS: u64 = 10_000;
/// Bytes of JSON that are read or written in a slice.
const SLICE_BYTES: usize = 32 << 10;
/// Most steps of the evaluation over one item of an array without a pause.
const ATTEMPT_STEPS: u64 = 1_000;

type EvaluationFuture<'s, T> = Pin<Box<dyn Future<Output = Result<T, EvaluationError>> + 's>>;

/// An evaluation that pauses between slices.
pub(super) struct Slices<'p, P> {
    evaluation: Evaluation,
    /// The remaining steps at the start of the current slice.
    steps_at_start: u64,
    /// Steps of the current slice that are not charged to the budget: values that are copied, compared or dropped.
    uncharged_steps: u64,
    /// Arrays and objects that are no longer used. A large value is not dropped at once, but by [`Slices::discard`].
    unused: Vec<Value>,
    pause: &'p mut P,
}

/// The values of an array or object that are not dropped.
enum Remaining {
    Array(std::vec::IntoIter<Value>),
    Object(map::IntoIter),
}

impl Remaining {
    fn of(value: Value) -> Option<Self> {
        match value {
            Value::Array(items) => Some(Self::Array(items.into_iter())),
            Value::Object(members) => Some(Self::Object(members.into_iter())),
            _ => None,
        }
    }

    fn next(&mut self) -> Option<Value> {
        match self {
            Self::Array(items) => items.next(),
            Self::Object(members) => members.next().map(|(_, member)| member),
        }
    }
}

impl<'p, P: AsyncFnMut()> Slices<'p, P> {
    pub(super) fn new(evaluation: Evaluation, pause: &'p mut P) -> Self {
        Self { steps_at_start: evaluation.steps_left(), uncharged_steps: 0, unused: Vec::new(), evaluation, pause }
    }

    /// Reads a text.
    pub(super) async fn read(&mut self, mut reader: Reader<'_>) -> Result<Value, EvaluationError> {
        while reader.advance(SLICE_BYTES)? {
            self.pause().await;
        }
        Ok(reader.into_value())
    }

    /// Writes a value.
    pub(super) async fn write(&mut self, mut writer: Writer<'_>) -> Result<String, EvaluationError> {
        while writer.advance(SLICE_BYTES)? {
            self.pause().await;
        }
        Ok(writer.into_text())
    }

    /// Drops a value, and those that are unused.
    pub(super) async fn discard(&mut self, value: Value) {
        self.set_aside(value);
        while let Some(mut remaining) = self.unused.pop().and_then(Remaining::of) {
            while let Some(value) = remaining.next() {
                self.set_aside(value);
                self.uncharged_steps += 1;
                self.pause_if_due().await;
            }
        }
    }

    /// Keeps a value that is no longer used, if dropping it can take long. The budget of memory bounds such values.
    fn set_aside(&mut self, value: Value) {
        if !is_scalar(&value) {
            self.unused.push(value);
        }
    }

    fn set_aside_owned(&mut self, value: Cow<'_, Value>) {
        if let Cow::Owned(value) = value {
            self.set_aside(value);
        }
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
                if !left.is_array() {
                    self.set_aside_owned(left);
                    return Ok(Cow::Owned(Value::Null));
                }
                let mut all = Vec::new();
                let result = self.project_all(&left, *flatten, filter.as_deref(), right, &mut all).await;
                self.set_aside_owned(left);
                self.finish(result, Value::Array(all))?
            }
            Node::List(_) | Node::Object(_) if input.is_null() => Cow::Owned(Value::Null),
            Node::List(nodes) => {
                let mut items = Vec::with_capacity(nodes.len());
                let result = self.list(nodes, input, &mut items).await;
                self.finish(result, Value::Array(items))?
            }
            Node::Object(nodes) => {
                let mut members = Map::new();
                let result = self.object(nodes, input, &mut members).await;
                self.finish(result, Value::Object(members))?
            }
            Node::Or(left, right) => match self.value(left, input).await? {
                left if is_true(&left) => left,
                _ => self.value(right, input).await?,
            },
            Node::And(left, right) => match self.value(left, input).await? {
                left if is_true(&left) => self.value(right, input).await?,
                left => left,
            },
            Node::Not(inner) => {
                let inner = self.value(inner, input).await?;
                let is_false = !is_true(&inner);
                self.set_aside_owned(inner);
                Cow::Owned(Value::Bool(is_false))
            }
            Node::Compare(comparison, left, right) => {
                let (left, right) = (self.value(left, input).await?, self.value(right, input).await?);
                let result = match comparison {
                    Comparison::Equal => self.is_equal(&left, &right).await.map(Value::Bool),
                    Comparison::NotEqual => self.is_equal(&left, &right).await.map(|is_equal| Value::Bool(!is_equal)),
                    _ => self.evaluation.compare(*comparison, &left, &right),
                };
                self.set_aside_owned(left);
                self.set_aside_owned(right);
                self.pause_if_due().await;
                Cow::Owned(result?)
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
                let result = self.call(*function, &mut arguments).await;
                arguments.into_iter().for_each(|argument| self.set_aside_owned(argument));
                self.pause_if_due().await;
                Cow::Owned(result?)
            }
            Node::Map(each, list) => {
                let list = self.value(list, input).await?;
                let mut all = Vec::new();
                let result = self.map(each, &list, &mut all).await;
                self.set_aside_owned(list);
                self.finish(result, Value::Array(all))?
            }
        })
    }

    /// The value, unless it could not be completed.
    fn finish<'v>(
        &mut self,
        result: Result<(), EvaluationError>,
        value: Value,
    ) -> Result<Cow<'v, Value>, EvaluationError> {
        match result {
            Ok(()) => Ok(Cow::Owned(value)),
            Err(error) => {
                self.set_aside(value);
                Err(error)
            }
        }
    }

    async fn project_all(
        &mut self,
        left: &Value,
        flatten: bool,
        filter: Option<&Node>,
        right: &Node,
        all: &mut Vec<Value>,
    ) -> Result<(), EvaluationError> {
        for item in left.as_array().into_iter().flatten() {
            match item {
                Value::Array(inner) if flatten => {
                    for item in inner {
                        self.project(filter, right, item, all).await?;
                    }
                }
                item => self.project(filter, right, item, all).await?,
            }
        }
        Ok(())
    }

    async fn list(&mut self, nodes: &[Node], input: &Value, items: &mut Vec<Value>) -> Result<(), EvaluationError> {
        for node in nodes {
            items.push(self.owned(node, input).await?);
        }
        self.evaluation.charge_memory(1, 0)
    }

    async fn object(
        &mut self,
        nodes: &[(String, Node)],
        input: &Value,
        members: &mut Map<String, Value>,
    ) -> Result<(), EvaluationError> {
        for (name, node) in nodes {
            let member = self.owned(node, input).await?;
            members.insert(name.clone(), member);
            self.evaluation.charge_memory(1, name.len())?;
        }
        self.evaluation.charge_memory(1, 0)
    }

    async fn map(&mut self, each: &Node, list: &Value, all: &mut Vec<Value>) -> Result<(), EvaluationError> {
        let Value::Array(items) = list else { return Err(wrong_type("map", "an array", list)) };
        for item in items {
            let value = match self.attempt(|evaluation| evaluation.owned(each, item)) {
                Some(value) => value?,
                None => self.owned(each, item).await?,
            };
            all.push(value);
            self.pause_if_due().await;
        }
        Ok(())
    }

    async fn owned(&mut self, node: &Node, input: &Value) -> Result<Value, EvaluationError> {
        let value = self.value(node, input).await?;
        self.materialize(value).await
    }

    async fn over_owned(&mut self, node: &Node, mut input: Value) -> Result<Value, EvaluationError> {
        let result = match node {
            Node::Current => return Ok(input),
            Node::Field(name) => {
                let member = input.as_object_mut().and_then(|members| members.remove(name));
                Ok(member.unwrap_or(Value::Null))
            }
            _ => self.owned(node, &input).await,
        };
        self.set_aside(input);
        result
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
            let value = self.materialize(value).await?;
            all.push(value);
        }
        self.pause_if_due().await;
        Ok(())
    }

    /// Calls a function. The work of those that are not listed here is proportional to the number of items of one array
    /// or the length of strings; they are not interrupted.
    async fn call(
        &mut self,
        function: Function,
        arguments: &mut Vec<Cow<'_, Value>>,
    ) -> Result<Value, EvaluationError> {
        let name = function.name();
        let first = arguments.first().map_or(&Value::Null, |first| &**first);
        Ok(match (function, first) {
            (Function::Sort, Value::Array(items)) => {
                self.charge(first).await?;
                let sorted = self.sorted(name, items).await?;
                let mut copies = Vec::with_capacity(sorted.len());
                for item in sorted {
                    copies.push(item.clone());
                    self.uncharged_steps += 1;
                    self.pause_if_due().await;
                }
                Value::Array(copies)
            }
            (Function::Max | Function::Min, Value::Array(items)) => {
                let sorted = self.sorted(name, items).await?;
                let extreme = if function == Function::Max { sorted.last() } else { sorted.first() };
                extreme.map_or(Value::Null, |value| (*value).clone())
            }
            (Function::Reverse, Value::Array(_)) => match self.copy(first).await? {
                Value::Array(mut items) => {
                    items.reverse();
                    Value::Array(items)
                }
                other => other,
            },
            (Function::Values, _) => {
                let members = self.copy(first).await?;
                if let Err(error) = object(name, &members) {
                    self.set_aside(members);
                    return Err(error);
                }
                let mut all = Vec::new();
                if let Value::Object(members) = members {
                    for (_, member) in members {
                        all.push(member);
                        self.uncharged_steps += 1;
                        self.pause_if_due().await;
                    }
                }
                Value::Array(all)
            }
            (Function::Merge, _) => {
                let mut all = Map::new();
                for argument in arguments.iter() {
                    let result = self.merge(name, argument, &mut all).await;
                    if let Err(error) = result {
                        self.set_aside(Value::Object(all));
                        return Err(error);
                    }
                }
                Value::Object(all)
            }
            (Function::Contains, Value::Array(items)) => {
                self.charge(first).await?;
                let second = arguments.get(1).map_or(&Value::Null, |second| &**second);
                for item in items {
                    if self.has_equal_parts(item, second).await {
                        return Ok(Value::Bool(true));
                    }
                }
                Value::Bool(false)
            }
            (Function::Keys, _) => {
                self.charge(first).await?;
                let mut all = Vec::new();
                for key in object(name, first)?.keys() {
                    all.push(Value::String(key.clone()));
                    self.uncharged_steps += 1;
                    self.pause_if_due().await;
                }
                Value::Array(all)
            }
            (Function::NotNull, _) => match arguments.iter().position(|value| !value.is_null()) {
                Some(at) => self.materialize(arguments.swap_remove(at)).await?,
                None => Value::Null,
            },
            (Function::ToArray, _) => match self.materialize(arguments.swap_remove(0)).await? {
                array @ Value::Array(_) => array,
                value => Value::Array(vec![value]),
            },
            (Function::ToString, value) if !value.is_string() => {
                self.charge(value).await?;
                // An escape has at most six bytes for one byte.
                self.evaluation.charge_memory(1, measure(value).saturating_mul(6))?;
                Value::String(self.write(Writer::unbounded(value)).await?)
            }
            _ => self.evaluation.call(function, arguments)?,
        })
    }

    /// Copies the members of an object to another.
    async fn merge(
        &mut self,
        name: &'static str,
        argument: &Value,
        all: &mut Map<String, Value>,
    ) -> Result<(), EvaluationError> {
        let members = self.copy(argument).await?;
        if let Err(error) = object(name, &members) {
            self.set_aside(members);
            return Err(error);
        }
        if let Value::Object(members) = members {
            for (key, member) in members {
                if let Some(replaced) = all.insert(key, member) {
                    self.set_aside(replaced);
                }
                self.uncharged_steps += 1;
                self.pause_if_due().await;
            }
        }
        Ok(())
    }

    /// Converts a value to an owned one; the budget is charged for a copy.
    async fn materialize(&mut self, value: Cow<'_, Value>) -> Result<Value, EvaluationError> {
        match value {
            Cow::Owned(value) => Ok(value),
            Cow::Borrowed(value) => self.copy(value).await,
        }
    }

    /// Copies a value; the budget is charged before.
    async fn copy(&mut self, value: &Value) -> Result<Value, EvaluationError> {
        self.charge(value).await?;
        Ok(self.copy_uncharged(value).await)
    }

    fn copy_uncharged<'s>(&'s mut self, value: &'s Value) -> Pin<Box<dyn Future<Output = Value> + 's>> {
        Box::pin(async move {
            if let Some(values) = small_size(value) {
                self.uncharged_steps += values as u64;
                self.pause_if_due().await;
                return value.clone();
            }
            match value {
                Value::Array(items) => {
                    let mut all = Vec::with_capacity(items.len());
                    for item in items {
                        all.push(self.copy_uncharged(item).await);
                    }
                    Value::Array(all)
                }
                Value::Object(members) => {
                    let mut all = Map::new();
                    for (key, member) in members {
                        all.insert(key.clone(), self.copy_uncharged(member).await);
                    }
                    Value::Object(all)
                }
                scalar => scalar.clone(),
            }
        })
    }

    /// Charges a copy or a traversal of a whole value to the budget, in the order of [`Evaluation::charge_value`].
    async fn charge(&mut self, value: &Value) -> Result<(), EvaluationError> {
        let mut rest: Vec<(Option<&str>, &Value)> = vec![(None, value)];
        while let Some((key, value)) = rest.pop() {
            if let Some(key) = key {
                self.evaluation.charge_memory(1, key.len())?;
            }
            self.evaluation.charge_steps(1)?;
            let text_bytes = value.as_str().map_or(0, str::len);
            self.evaluation.charge_memory(1, text_bytes)?;
            match value {
                Value::Array(items) => rest.extend(items.iter().rev().map(|item| (None, item))),
                Value::Object(members) => {
                    rest.extend(members.iter().rev().map(|(key, member)| (Some(key.as_str()), member)));
                }
                _ => {}
            }
            self.pause_if_due().await;
        }
        Ok(())
    }

    /// Whether two values are equal; the budget is charged for a traversal of the left value.
    async fn is_equal(&mut self, left: &Value, right: &Value) -> Result<bool, EvaluationError> {
        self.charge(left).await?;
        Ok(self.has_equal_parts(left, right).await)
    }

    async fn has_equal_parts(&mut self, left: &Value, right: &Value) -> bool {
        let mut rest = vec![(left, right)];
        while let Some((left, right)) = rest.pop() {
            match (left, right) {
                (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
                    rest.extend(left.iter().zip(right));
                }
                (Value::Object(left), Value::Object(right)) if left.len() == right.len() => {
                    for (key, left) in left {
                        let Some(right) = right.get(key) else { return false };
                        rest.push((left, right));
                        self.uncharged_steps += 1;
                        self.pause_if_due().await;
                    }
                }
                (left, right) if is_scalar(left) && is_equal(left, right) => {}
                _ => return false,
            }
            self.uncharged_steps += 1;
            self.pause_if_due().await;
        }
        true
    }

    /// References to numbers or strings in ascending order, by a stable merge sort.
    async fn sorted<'v>(&mut self, name: &'static str, items: &'v [Value]) -> Result<Vec<&'v Value>, EvaluationError> {
        self.evaluation.check_sortable(name, items)?;
        self.pause_if_due().await;
        let mut sorted: Vec<&Value> = items.iter().collect();
        let mut length = SORTED_ITEMS;
        for run in sorted.chunks_mut(length) {
            run.sort_by(|left, right| compare_sorted(left, right));
            self.uncharged_steps += run.len() as u64;
            self.pause_if_due().await;
        }
        while length < sorted.len() {
            let mut merged = Vec::with_capacity(sorted.len());
            for pair in sorted.chunks(2 * length) {
                let (mut left, mut right) = pair.split_at(length.min(pair.len()));
                while let (Some(first_left), Some(first_right)) = (left.first(), right.first()) {
                    let side = if compare_sorted(first_left, first_right).is_le() { &mut left } else { &mut right };
                    merged.extend(side.split_off_first());
                    self.uncharged_steps += 1;
                    self.pause_if_due().await;
                }
                merged.extend(left.iter().chain(right));
            }
            sorted = merged;
            length *= 2;
        }
        Ok(sorted)
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
        let charged = self.steps_at_start.saturating_sub(self.evaluation.steps_left());
        if charged + self.uncharged_steps >= SLICE_STEPS {
            self.pause().await;
        }
    }

    async fn pause(&mut self) {
        (self.pause)().await;
        (self.steps_at_start, self.uncharged_steps) = (self.evaluation.steps_left(), 0);
    }
}

/// Most items that are sorted without a pause.
const SORTED_ITEMS: usize = 1024;
/// Most values that are copied without a pause.
const SMALL_VALUES: usize = 1000;

fn is_scalar(value: &Value) -> bool {
    !value.is_array() && !value.is_object()
}

/// The number of values in a value, if they are at most [`SMALL_VALUES`].
fn small_size(value: &Value) -> Option<usize> {
    let (mut size, mut rest) = (1, vec![value]);
    while let Some(value) = rest.pop() {
        let length = match value {
            Value::Array(items) => items.len(),
            Value::Object(members) => members.len(),
            _ => continue,
        };
        size += length;
        if size > SMALL_VALUES {
            return None;
        }
        match value {
            Value::Array(items) => rest.extend(items),
            Value::Object(members) => rest.extend(members.values()),
            _ => {}
        }
    }
    Some(size)
}
