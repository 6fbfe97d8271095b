//! What an expression is evaluated over.

use serde_json::{Map, Value};
use weir_core::pipelines::{Inputs, Json};

use super::tree::Node;

/// What an expression is evaluated over.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// A value.
    Value(&'a Json),
    /// The inputs of a step, as `{"input": …, "steps": {id: output, …}}`. Those that the expression does not use are not
    /// parsed.
    Step(&'a Inputs),
}

impl<'a> From<&'a Json> for Input<'a> {
    fn from(json: &'a Json) -> Self {
        Self::Value(json)
    }
}

impl<'a> From<&'a Inputs> for Input<'a> {
    fn from(inputs: &'a Inputs) -> Self {
        Self::Step(inputs)
    }
}

/// The place of a text in the value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    Whole,
    Input,
    /// The output of the step with this id.
    Output(&'a str),
}

impl<'a> Input<'a> {
    /// The texts that an expression uses, with their places.
    pub(super) fn texts(self, root: &Node) -> Vec<(Place<'a>, &'a Json)> {
        let inputs = match self {
            Self::Value(json) => return vec![(Place::Whole, json)],
            Self::Step(inputs) => inputs,
        };
        let mut used = Used::default();
        used.add(root);
        let outputs = inputs.steps.iter().filter(|(id, _)| used.all_outputs || used.outputs.contains(&&**id));
        let outputs = outputs.map(|(id, output)| (Place::Output(id), output));
        used.input.then_some((Place::Input, &inputs.input)).into_iter().chain(outputs).collect()
    }
}

/// Builds the value from the values of its texts.
pub(super) fn assemble(values: Vec<(Place<'_>, Value)>) -> Value {
    let (mut members, mut outputs) = (Map::new(), Map::new());
    for (place, value) in values {
        match place {
            Place::Whole => return value,
            Place::Input => drop(members.insert("input".to_owned(), value)),
            Place::Output(id) => drop(outputs.insert(id.to_owned(), value)),
        }
    }
    members.insert("steps".to_owned(), Value::Object(outputs));
    Value::Object(members)
}

/// The members of the inputs that an expression uses. Others can be absent without a difference to its result.
#[derive(Default)]
struct Used<'n> {
    input: bool,
    all_outputs: bool,
    outputs: Vec<&'n str>,
}

impl<'n> Used<'n> {
    /// Adds those of a node that is evaluated over the inputs.
    fn add(&mut self, node: &'n Node) {
        match node {
            Node::Current => (self.input, self.all_outputs) = (true, true),
            Node::Field(name) => match name.as_str() {
                "input" => self.input = true,
                "steps" => self.all_outputs = true,
                _ => {}
            },
            Node::Index(_) | Node::Literal(_) => {}
            Node::Then(left, right) => match (&**left, &**right) {
                (Node::Field(steps), Node::Field(id)) if steps == "steps" => self.outputs.push(id),
                // The right node is evaluated over the value of the left one.
                _ => self.add(left),
            },
            Node::Project { left, .. } => self.add(left),
            Node::Map(_, list) => self.add(list),
            Node::Not(inner) => self.add(inner),
            Node::Or(left, right)
            | Node::And(left, right)
            | Node::Compare(_, left, right)
            | Node::Arithmetic(_, left, right) => {
                self.add(left);
                self.add(right);
            }
            Node::List(nodes) | Node::Call(_, nodes) => nodes.iter().for_each(|node| self.add(node)),
            Node::Object(members) => members.iter().for_each(|(_, node)| self.add(node)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bounds, Expression};

    #[test]
    fn expression_over_inputs_has_the_result_over_their_whole_value() {
        let json = |text: &str| Json::from_checked(text);
        let inputs = Inputs {
            input: json(r#"{"a":[1,2]}"#),
            steps: vec![("x".into(), json(r#"{"b":3}"#)), ("y".into(), json("[4]"))],
            direct: vec![0],
        };
        let whole = json(r#"{"input":{"a":[1,2]},"steps":{"x":{"b":3},"y":[4]}}"#);
        // The expression, and the number of texts that it uses.
        for (expression, texts) in [
            ("@", 3),
            ("keys(@)", 3),
            ("input", 1),
            ("input.a[0]", 1),
            ("steps.x.b", 1),
            ("steps.y[0]", 1),
            ("steps.\"y\"", 1),
            ("steps | x", 1),
            ("steps", 2),
            ("values(steps)", 2),
            ("steps.{x: x, y: y}", 2),
            ("steps.[x]", 2),
            ("input.steps.x", 1),
            ("{i: input, y: steps.y}", 2),
            ("[input.a, steps.x.b == `3`, !(steps.none)]", 2),
            ("map(&[@, input], input.a)", 1),
            ("input.a[?@ > `1`]", 1),
            ("steps.y[] | [0]", 1),
            ("`1` + steps.x.b", 1),
            ("input && steps.x || steps.y", 3),
            ("[0]", 3),
            ("`1`", 0),
            ("none.input", 0),
            ("@.input", 3),
        ] {
            let parsed = Expression::parse(expression).unwrap();
            assert_eq!(Input::Step(&inputs).texts(&parsed.root).len(), texts, "{expression}");
            let want = parsed.evaluate(&whole, Bounds::default());
            assert_eq!(parsed.evaluate(&inputs, Bounds::default()), want, "{expression}");
        }
    }
}
