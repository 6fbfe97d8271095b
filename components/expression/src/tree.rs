//! The tree of an expression.

use serde_json::Value;

/// A node of the tree.
#[derive(Debug, Clone)]
pub(super) enum Node {
    /// `@`
    Current,
    /// `name`
    Field(String),
    /// `[n]`
    Index(i64),
    /// A literal.
    Literal(Value),
    /// `a.b`, `a[0]`, `a | b`: the right node over the value of the left one.
    Then(Box<Node>, Box<Node>),
    /// `a[*].b`, `a[?p].b`, `a[].b`: the right node over each item of the left value.
    Project { left: Box<Node>, flatten: bool, filter: Option<Box<Node>>, right: Box<Node> },
    /// `[a, b]`
    List(Vec<Node>),
    /// `{x: a}`
    Object(Vec<(String, Node)>),
    /// `a || b`
    Or(Box<Node>, Box<Node>),
    /// `a && b`
    And(Box<Node>, Box<Node>),
    /// `!a`
    Not(Box<Node>),
    /// `a < b`
    Compare(Comparison, Box<Node>, Box<Node>),
    /// `a + b`
    Arithmetic(Operator, Box<Node>, Box<Node>),
    /// `f(a, b)`
    Call(Function, Vec<Node>),
    /// `map(&a, b)`
    Map(Box<Node>, Box<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

macro_rules! functions {
    ($( $variant:ident = $name:literal ($min:expr, $max:expr) ),+ $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Function { $( $variant ),+ }

        impl Function {
            pub(super) fn name(self) -> &'static str {
                match self { $( Self::$variant => $name ),+ }
            }

            pub(super) fn from_name(name: &str) -> Option<Self> {
                match name { $( $name => Some(Self::$variant), )+ _ => None }
            }

            /// The minimum and maximum number of arguments.
            pub(super) fn arguments(self) -> (usize, usize) {
                match self { $( Self::$variant => ($min, $max) ),+ }
            }
        }
    };
}

functions! {
    Abs = "abs" (1, 1),
    Avg = "avg" (1, 1),
    Ceil = "ceil" (1, 1),
    Contains = "contains" (2, 2),
    EndsWith = "ends_with" (2, 2),
    Floor = "floor" (1, 1),
    Join = "join" (2, 2),
    Keys = "keys" (1, 1),
    Length = "length" (1, 1),
    Lower = "lower" (1, 1),
    Max = "max" (1, 1),
    Merge = "merge" (1, 16),
    Min = "min" (1, 1),
    NotNull = "not_null" (1, 16),
    Replace = "replace" (3, 3),
    Reverse = "reverse" (1, 1),
    Sort = "sort" (1, 1),
    Split = "split" (2, 2),
    StartsWith = "starts_with" (2, 2),
    Sum = "sum" (1, 1),
    ToArray = "to_array" (1, 1),
    ToNumber = "to_number" (1, 1),
    ToString = "to_string" (1, 1),
    Trim = "trim" (1, 1),
    Type = "type" (1, 1),
    Upper = "upper" (1, 1),
    Values = "values" (1, 1),
}
