//! Evaluation of an expression tree over a value, within a budget.

use std::{borrow::Cow, cmp::Ordering};

use serde_json::{Map, Number, Value};

use super::{
    bounds::Bounds,
    error::EvaluationError,
    tree::{Comparison, Node, Operator},
};

/// The memory cost of a value besides its text, in bytes.
const VALUE_BYTES: usize = 32;

type Borrowed<'v> = Result<Cow<'v, Value>, EvaluationError>;

/// An evaluation and its remaining budget.
pub(super) struct Evaluation {
    bounds: Bounds,
    steps_left: u64,
    bytes_left: usize,
    /// Steps that the current attempt must not use; 0 outside of an attempt.
    steps_reserved: u64,
    /// Whether the current attempt needed more steps than its bound.
    is_exceeded: bool,
}

/// The remaining budget at the start of an attempt.
pub(super) struct BeforeAttempt {
    steps_left: u64,
    bytes_left: usize,
}

impl Evaluation {
    pub(super) fn new(bounds: Bounds) -> Self {
        let (steps_left, bytes_left) = (bounds.steps_max, bounds.memory_bytes_max);
        Self { bounds, steps_left, bytes_left, steps_reserved: 0, is_exceeded: false }
    }

    /// The remaining steps.
    pub(super) fn steps_left(&self) -> u64 {
        self.steps_left
    }

    /// Starts an attempt of at most `steps_max` steps, which [`Self::end_attempt`] ends.
    pub(super) fn begin_attempt(&mut self, steps_max: u64) -> BeforeAttempt {
        self.steps_reserved = self.steps_left.saturating_sub(steps_max);
        BeforeAttempt { steps_left: self.steps_left, bytes_left: self.bytes_left }
    }

    /// Ends an attempt. False if it needed more steps than its bound: its result is void, and the budget is restored.
    pub(super) fn end_attempt(&mut self, before: BeforeAttempt) -> bool {
        self.steps_reserved = 0;
        if self.is_exceeded {
            BeforeAttempt { steps_left: self.steps_left, bytes_left: self.bytes_left } = before;
            self.is_exceeded = false;
            return false;
        }
        true
    }

    /// Charges steps to the budget.
    pub(super) fn charge_steps(&mut self, steps: usize) -> Result<(), EvaluationError> {
        let error = EvaluationError::Steps(self.bounds.steps_max);
        let Some(left) = self.steps_left.checked_sub(steps as u64) else {
            // An attempt that reserves steps has exceeded its own bound too.
            self.is_exceeded = self.steps_reserved > 0;
            return Err(error);
        };
        if left < self.steps_reserved {
            self.is_exceeded = true;
            return Err(error);
        }
        self.steps_left = left;
        Ok(())
    }

    /// Charges the memory of new values to the budget, before they are allocated.
    pub(super) fn charge_memory(&mut self, values: usize, text_bytes: usize) -> Result<(), EvaluationError> {
        let bytes = values.saturating_mul(VALUE_BYTES).saturating_add(text_bytes);
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left = left.ok_or(EvaluationError::Memory(self.bounds.memory_bytes_max))?;
        Ok(())
    }

    /// Converts a value to an owned one; the budget is charged for a copy.
    pub(super) fn materialize(&mut self, value: Cow<'_, Value>) -> Result<Value, EvaluationError> {
        if let Cow::Borrowed(value) = &value {
            self.charge_value(value)?;
        }
        Ok(value.into_owned())
    }

    /// Charges a copy or a traversal of a whole value to the budget.
    pub(super) fn charge_value(&mut self, value: &Value) -> Result<(), EvaluationError> {
        self.charge_steps(1)?;
        match value {
            Value::String(text) => self.charge_memory(1, text.len()),
            Value::Array(items) => {
                self.charge_memory(1, 0)?;
                items.iter().try_for_each(|item| self.charge_value(item))
            }
            Value::Object(members) => {
                self.charge_memory(1, 0)?;
                members.iter().try_for_each(|(key, member)| {
                    self.charge_memory(1, key.len())?;
                    self.charge_value(member)
                })
            }
            _ => self.charge_memory(1, 0),
        }
    }

    /// The value of a node over a value.
    pub(super) fn value<'v>(&mut self, node: &'v Node, input: &'v Value) -> Borrowed<'v> {
        self.charge_steps(1)?;
        Ok(match node {
            Node::Current => Cow::Borrowed(input),
            Node::Field(name) => Cow::Borrowed(input.as_object().and_then(|o| o.get(name)).unwrap_or(&Value::Null)),
            Node::Index(index) => Cow::Borrowed(item(input, *index).unwrap_or(&Value::Null)),
            Node::Literal(value) => Cow::Borrowed(value),
            Node::Then(left, right) => match self.value(left, input)? {
                Cow::Borrowed(left) => self.value(right, left)?,
                Cow::Owned(left) => Cow::Owned(self.over_owned(right, left)?),
            },
            Node::Project { left, flatten, filter, right } => {
                let left = self.value(left, input)?;
                let Value::Array(items) = &*left else { return Ok(Cow::Owned(Value::Null)) };
                let mut all = Vec::new();
                for item in items {
                    match item {
                        Value::Array(inner) if *flatten => {
                            for item in inner {
                                self.project(filter.as_deref(), right, item, &mut all)?;
                            }
                        }
                        item => self.project(filter.as_deref(), right, item, &mut all)?,
                    }
                }
                Cow::Owned(Value::Array(all))
            }
            // A multi-select over null is null.
            Node::List(_) | Node::Object(_) if input.is_null() => Cow::Owned(Value::Null),
            Node::List(nodes) => {
                let mut items = Vec::with_capacity(nodes.len());
                for node in nodes {
                    items.push(self.owned(node, input)?);
                }
                self.charge_memory(1, 0)?;
                Cow::Owned(Value::Array(items))
            }
            Node::Object(nodes) => {
                let mut members = Map::new();
                for (name, node) in nodes {
                    let member = self.owned(node, input)?;
                    self.charge_memory(1, name.len())?;
                    members.insert(name.clone(), member);
                }
                self.charge_memory(1, 0)?;
                Cow::Owned(Value::Object(members))
            }
            Node::Or(left, right) => match self.value(left, input)? {
                left if is_true(&left) => left,
                _ => self.value(right, input)?,
            },
            Node::And(left, right) => match self.value(left, input)? {
                left if is_true(&left) => self.value(right, input)?,
                left => left,
            },
            Node::Not(inner) => Cow::Owned(Value::Bool(!is_true(&*self.value(inner, input)?))),
            Node::Compare(comparison, left, right) => {
                let (left, right) = (self.value(left, input)?, self.value(right, input)?);
                Cow::Owned(self.compare(*comparison, &left, &right)?)
            }
            Node::Arithmetic(operator, left, right) => {
                let (left, right) = (self.value(left, input)?, self.value(right, input)?);
                Cow::Owned(Value::Number(compute(*operator, &left, &right)?))
            }
            Node::Call(function, nodes) => {
                let mut arguments = Vec::with_capacity(nodes.len());
                for node in nodes {
                    arguments.push(self.value(node, input)?);
                }
                Cow::Owned(self.call(*function, &mut arguments)?)
            }
            Node::Map(each, list) => {
                let list = self.value(list, input)?;
                let Value::Array(items) = &*list else { return Err(wrong_type("map", "an array", &list)) };
                let mut all = Vec::new();
                for item in items {
                    all.push(self.owned(each, item)?);
                }
                Cow::Owned(Value::Array(all))
            }
        })
    }

    pub(super) fn owned(&mut self, node: &Node, input: &Value) -> Result<Value, EvaluationError> {
        let value = self.value(node, input)?;
        self.materialize(value)
    }

    /// The value of a node over an owned value: a member is moved out of it, not copied.
    pub(super) fn over_owned(&mut self, node: &Node, mut input: Value) -> Result<Value, EvaluationError> {
        match node {
            Node::Current => Ok(input),
            Node::Field(name) => {
                let member = input.as_object_mut().and_then(|members| members.remove(name));
                Ok(member.unwrap_or(Value::Null))
            }
            _ => self.owned(node, &input),
        }
    }

    pub(super) fn project(
        &mut self,
        filter: Option<&Node>,
        right: &Node,
        item: &Value,
        all: &mut Vec<Value>,
    ) -> Result<(), EvaluationError> {
        if let Some(filter) = filter
            && !is_true(&*self.value(filter, item)?)
        {
            return Ok(());
        }
        let value = self.value(right, item)?;
        if !value.is_null() {
            let value = self.materialize(value)?;
            all.push(value);
        }
        Ok(())
    }

    /// Whether two values are equal: numbers by their value, so `1` and `1.0` are equal at every level. The budget is
    /// charged for a traversal of the left value.
    pub(super) fn is_equal(&mut self, left: &Value, right: &Value) -> Result<bool, EvaluationError> {
        self.charge_value(left)?;
        Ok(is_equal(left, right))
    }

    pub(super) fn compare(
        &mut self,
        comparison: Comparison,
        left: &Value,
        right: &Value,
    ) -> Result<Value, EvaluationError> {
        let order = match (left, right) {
            (Value::Number(left), Value::Number(right)) => order(left, right),
            (Value::String(left), Value::String(right)) => {
                self.charge_steps(left.len().min(right.len()) / 64)?;
                Some(left.cmp(right))
            }
            _ => None,
        };
        let result = match comparison {
            Comparison::Equal | Comparison::NotEqual => {
                let is_equal = self.is_equal(left, right)?;
                return Ok(Value::Bool(is_equal == (comparison == Comparison::Equal)));
            }
            Comparison::Less => order.map(Ordering::is_lt),
            Comparison::LessOrEqual => order.map(Ordering::is_le),
            Comparison::Greater => order.map(Ordering::is_gt),
            Comparison::GreaterOrEqual => order.map(Ordering::is_ge),
        };
        Ok(result.map_or(Value::Null, Value::Bool))
    }
}

/// Whether two values are equal, as defined by [`Evaluation::is_equal`].
pub(super) fn is_equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => order(left, right).is_some_and(Ordering::is_eq),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| is_equal(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, left)| right.get(key).is_some_and(|right| is_equal(left, right)))
        }
        _ => left == right,
    }
}

/// The truth of a value: false for `false`, `null` and empty values, true for all others.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

/// The name of a value's type, as the function `type` returns it.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

pub(super) fn wrong_type(operation: &'static str, expected: &'static str, value: &Value) -> EvaluationError {
    EvaluationError::Type { operation, expected, actual: type_name(value) }
}

/// A lower bound of a value's length as JSON, in bytes.
pub(super) fn measure(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| measure(item) + 1).sum::<usize>() + 1,
        Value::Object(members) => {
            members.iter().map(|(key, member)| key.len() + 3 + measure(member) + 1).sum::<usize>() + 1
        }
        _ => 1,
    }
}

fn item(value: &Value, index: i64) -> Option<&Value> {
    let items = value.as_array()?;
    let from_end = || items.len().checked_sub(usize::try_from(index.unsigned_abs()).ok()?);
    let at = if index < 0 { from_end()? } else { usize::try_from(index).ok()? };
    items.get(at)
}

/// The order of two numbers: exact for integers, as f64 for others.
pub(super) fn order(left: &Number, right: &Number) -> Option<Ordering> {
    match (whole(left), whole(right)) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        _ => left.as_f64()?.partial_cmp(&right.as_f64()?),
    }
}

fn whole(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}

pub(super) fn compute(operator: Operator, left: &Value, right: &Value) -> Result<Number, EvaluationError> {
    let name = match operator {
        Operator::Add => "`+`",
        Operator::Subtract => "`-`",
        Operator::Multiply => "`*`",
        Operator::Divide => "`/`",
        Operator::Modulo => "`%`",
    };
    let Value::Number(left) = left else { return Err(wrong_type(name, "numbers", left)) };
    let Value::Number(right) = right else { return Err(wrong_type(name, "numbers", right)) };
    if let (Some(a), Some(b)) = (whole(left), whole(right)) {
        // Operands have at most 64 bits. A result that does not fit in 64 bits is computed as f64 below.
        let exact = match operator {
            Operator::Add => a.checked_add(b),
            Operator::Subtract => a.checked_sub(b),
            Operator::Multiply => a.checked_mul(b),
            Operator::Divide => a.checked_rem(b).filter(|remainder| *remainder == 0).map(|_| a / b),
            Operator::Modulo => a.checked_rem(b),
        };
        let number =
            exact.and_then(|n| i64::try_from(n).ok().map(Number::from).or(u64::try_from(n).ok().map(Number::from)));
        if let Some(number) = number {
            return Ok(number);
        }
    }
    let (Some(a), Some(b)) = (left.as_f64(), right.as_f64()) else { return Err(EvaluationError::NotANumber(name)) };
    let result = match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => a / b,
        Operator::Modulo => a % b,
    };
    number(name, result)
}

/// An f64 as a JSON number, an integer if it is a whole number of at most 53 bits.
pub(super) fn number(operation: &'static str, value: f64) -> Result<Number, EvaluationError> {
    // Up to 2^53, f64 represents every integer exactly.
    if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 {
        return Ok(Number::from(value as i64));
    }
    Number::from_f64(value).ok_or(EvaluationError::NotANumber(operation))
}
