//! The built-in functions.

use std::{borrow::Cow, cmp::Ordering};

use serde_json::{Number, Value};

use super::{
    error::EvaluationError,
    evaluate::{Evaluation, is_equal, number, order, type_name, wrong_type},
    tree::Function,
};

impl Evaluation {
    /// The value of a function. The parser has checked the number of arguments.
    pub(super) fn call(
        &mut self,
        function: Function,
        arguments: &mut Vec<Cow<'_, Value>>,
    ) -> Result<Value, EvaluationError> {
        let name = function.name();
        let null = Cow::Owned(Value::Null);
        let first = arguments.first().unwrap_or(&null);
        let second = arguments.get(1).unwrap_or(&null);
        Ok(match function {
            Function::Abs => match number_of(name, first)? {
                number if number.as_i64().is_some_and(|n| n >= 0) || number.is_u64() => number.clone().into(),
                number => float(name, number, f64::abs)?,
            },
            Function::Ceil => rounded(name, first, f64::ceil)?,
            Function::Floor => rounded(name, first, f64::floor)?,
            Function::Sum | Function::Avg => {
                let items = array(name, first)?;
                self.charge_steps(items.len())?;
                if items.is_empty() && function == Function::Avg {
                    return Ok(Value::Null);
                }
                let mut sum = 0.0;
                for item in items {
                    sum += number_of(name, item)?.as_f64().unwrap_or(f64::NAN);
                }
                let count = if function == Function::Avg { items.len() as f64 } else { 1.0 };
                number(name, sum / count)?.into()
            }
            Function::Max | Function::Min => {
                let items = array(name, first)?;
                let sorted = self.sorted(name, items)?;
                let extreme = if function == Function::Max { sorted.last() } else { sorted.first() };
                extreme.map_or(Value::Null, |value| (*value).clone())
            }
            Function::Sort => {
                let items = array(name, first)?;
                self.charge_value(first)?;
                Value::Array(self.sorted(name, items)?.into_iter().cloned().collect())
            }
            Function::Length => match &**first {
                Value::String(text) => {
                    self.charge_steps(text.len() / 64)?;
                    text.chars().count().into()
                }
                Value::Array(items) => items.len().into(),
                Value::Object(members) => members.len().into(),
                other => return Err(wrong_type(name, "a string, an array or an object", other)),
            },
            Function::Reverse => match &**first {
                Value::String(text) => {
                    self.charge_memory(1, text.len())?;
                    text.chars().rev().collect::<String>().into()
                }
                Value::Array(items) => {
                    self.charge_value(first)?;
                    Value::Array(items.iter().rev().cloned().collect())
                }
                other => return Err(wrong_type(name, "a string or an array", other)),
            },
            Function::Contains => match &**first {
                Value::String(text) => {
                    self.charge_steps(text.len() / 64)?;
                    text.contains(string(name, second)?).into()
                }
                Value::Array(items) => {
                    self.charge_value(first)?;
                    items.iter().any(|item| is_equal(item, second)).into()
                }
                other => return Err(wrong_type(name, "a string or an array", other)),
            },
            Function::StartsWith => string(name, first)?.starts_with(string(name, second)?).into(),
            Function::EndsWith => string(name, first)?.ends_with(string(name, second)?).into(),
            Function::Join => {
                let glue = string(name, first)?;
                let items = array(name, second)?;
                let texts: Vec<&str> = items.iter().map(|item| string(name, item)).collect::<Result<_, _>>()?;
                let bytes = texts.iter().map(|text| text.len() + glue.len()).sum();
                self.charge_steps(texts.len())?;
                self.charge_memory(1, bytes)?;
                texts.join(glue).into()
            }
            Function::Split => {
                let (text, by) = (string(name, first)?, string(name, second)?);
                let parts = if by.is_empty() { text.chars().count() } else { text.matches(by).count() + 1 };
                self.charge_steps(parts + text.len() / 64)?;
                self.charge_memory(parts + 1, text.len())?;
                match by.is_empty() {
                    true => text.chars().map(|c| Value::String(c.to_string())).collect(),
                    false => text.split(by).map(|part| Value::String(part.to_owned())).collect(),
                }
            }
            Function::Replace => {
                let (text, old) = (string(name, first)?, string(name, second)?);
                let new = string(name, arguments.get(2).unwrap_or(&null))?;
                let matches = text.matches(old).count();
                self.charge_steps(matches + text.len() / 64)?;
                self.charge_memory(1, text.len().saturating_add(matches.saturating_mul(new.len())))?;
                text.replace(old, new).into()
            }
            Function::Lower => self.text(name, first, str::to_lowercase)?,
            Function::Upper => self.text(name, first, str::to_uppercase)?,
            Function::Trim => self.text(name, first, |text| text.trim().to_owned())?,
            Function::Keys => {
                self.charge_value(first)?;
                object(name, first)?.keys().cloned().map(Value::String).collect()
            }
            Function::Values => {
                self.charge_value(first)?;
                object(name, first)?.values().cloned().collect()
            }
            Function::Merge => {
                let mut all = serde_json::Map::new();
                for argument in arguments.iter() {
                    self.charge_value(argument)?;
                    let members = object(name, argument)?;
                    all.extend(members.iter().map(|(key, value)| (key.clone(), value.clone())));
                }
                Value::Object(all)
            }
            Function::NotNull => {
                let first = arguments.drain(..).find(|value| !value.is_null());
                first.map_or(Ok(Value::Null), |value| self.materialize(value))?
            }
            Function::ToArray => {
                let value = self.materialize(first.clone())?;
                if value.is_array() { value } else { Value::Array(vec![value]) }
            }
            Function::ToNumber => match &**first {
                Value::Number(number) => number.clone().into(),
                Value::String(text) => text.trim().parse::<Number>().map_or(Value::Null, Value::Number),
                _ => Value::Null,
            },
            Function::ToString => match &**first {
                Value::String(_) => self.materialize(first.clone())?,
                value => {
                    self.charge_value(value)?;
                    // An escape has at most six bytes for one byte.
                    self.charge_memory(1, super::evaluate::measure(value).saturating_mul(6))?;
                    value.to_string().into()
                }
            },
            Function::Type => type_name(first).into(),
        })
    }

    /// References to numbers or strings in ascending order.
    fn sorted<'v>(&mut self, name: &'static str, items: &'v [Value]) -> Result<Vec<&'v Value>, EvaluationError> {
        self.check_sortable(name, items)?;
        let mut sorted: Vec<&Value> = items.iter().collect();
        sorted.sort_by(|left, right| compare_sorted(left, right));
        Ok(sorted)
    }

    /// Checks that all items are numbers or all are strings, and charges the budget for sorting them.
    pub(super) fn check_sortable(&mut self, name: &'static str, items: &[Value]) -> Result<(), EvaluationError> {
        // Sorting needs about n log2 n comparisons.
        let rounds = items.len().checked_ilog2().unwrap_or(0) as usize + 1;
        self.charge_steps(items.len().saturating_mul(rounds))?;
        self.charge_memory(items.len(), 0)?;
        let expected = "numbers or strings, all alike";
        for pair in items.windows(2) {
            if std::mem::discriminant(&pair[0]) != std::mem::discriminant(&pair[1]) {
                return Err(wrong_type(name, expected, &pair[1]));
            }
        }
        if let Some(other) = items.first().filter(|item| !item.is_number() && !item.is_string()) {
            return Err(wrong_type(name, expected, other));
        }
        let text_bytes: usize = items.iter().filter_map(Value::as_str).map(str::len).sum();
        self.charge_steps((text_bytes / 64).saturating_mul(rounds))
    }

    fn text(
        &mut self,
        name: &'static str,
        value: &Value,
        change: impl Fn(&str) -> String,
    ) -> Result<Value, EvaluationError> {
        let text = string(name, value)?;
        self.charge_steps(text.len() / 64)?;
        // The text in another case has at most three times as many bytes.
        self.charge_memory(1, text.len().saturating_mul(3))?;
        Ok(change(text).into())
    }
}

/// The order of two items of an array that [`Evaluation::check_sortable`] accepts.
pub(super) fn compare_sorted(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => order(left, right).unwrap_or(Ordering::Equal),
        (Value::String(left), Value::String(right)) => left.cmp(right),
        _ => Ordering::Equal,
    }
}

fn number_of<'v>(name: &'static str, value: &'v Value) -> Result<&'v Number, EvaluationError> {
    match value {
        Value::Number(number) => Ok(number),
        other => Err(wrong_type(name, "a number", other)),
    }
}

fn float(name: &'static str, value: &Number, change: impl Fn(f64) -> f64) -> Result<Value, EvaluationError> {
    Ok(number(name, change(value.as_f64().unwrap_or(f64::NAN)))?.into())
}

fn rounded(name: &'static str, value: &Value, round: impl Fn(f64) -> f64) -> Result<Value, EvaluationError> {
    match number_of(name, value)? {
        whole if !whole.is_f64() => Ok(whole.clone().into()),
        number => float(name, number, round),
    }
}

fn string<'v>(name: &'static str, value: &'v Value) -> Result<&'v str, EvaluationError> {
    value.as_str().ok_or_else(|| wrong_type(name, "strings", value))
}

fn array<'v>(name: &'static str, value: &'v Value) -> Result<&'v [Value], EvaluationError> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| wrong_type(name, "an array", value))
}

pub(super) fn object<'v>(
    name: &'static str,
    value: &'v Value,
) -> Result<&'v serde_json::Map<String, Value>, EvaluationError> {
    value.as_object().ok_or_else(|| wrong_type(name, "an object", value))
}
