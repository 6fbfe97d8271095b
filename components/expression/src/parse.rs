//! Text into a tree: a lexer and a parser by precedence.

use serde_json::Value;

use super::{DEPTH_MAX, EXPRESSION_BYTES_MAX, ParseError, functions::Function};

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
    /// `a.b`, `a[0]`, `a | b`: the second over the first.
    Then(Box<Node>, Box<Node>),
    /// `a[*].b`, `a[?p].b`, `a[].b`: the last over each item of the first.
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

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    /// A name in double quotes, which is a field and never a function.
    QuotedName(String),
    Literal(Value),
    Number(i64),
    Sign(&'static str),
    End,
}

/// All signs, the longer before those they begin with.
const SIGNS: &[&str] = &[
    "||", "|", "&&", "&", "==", "!=", "!", "<=", "<", ">=", ">", "[]", "[?", "[", "]", "{", "}", "(", ")", ",", ":",
    ".", "@", "*", "+", "-", "/", "%",
];

/// How strongly a sign holds what is left of it; 0: not at all.
fn power(token: &Token) -> u8 {
    let Token::Sign(sign) = token else { return 0 };
    match *sign {
        "|" => 1,
        "||" => 2,
        "&&" => 3,
        "==" | "!=" | "<" | "<=" | ">" | ">=" => 5,
        "+" | "-" => 6,
        "*" | "/" | "%" => 7,
        "[]" => 9,
        "[?" => 21,
        "." => 40,
        "[" => 55,
        _ => 0,
    }
}

/// Operators that hold less than this end a projection.
const POWER_PROJECTION_END: u8 = 10;
const POWER_STAR: u8 = 20;
const POWER_NOT: u8 = 45;

pub(super) fn parse(text: &str) -> Result<Node, ParseError> {
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(ParseError { message: format!("more than {EXPRESSION_BYTES_MAX} bytes"), at: 1 });
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, nesting: 0 };
    let parsed = parser.expression(0)?;
    match parser.peek() {
        Token::End => Ok(parsed.node),
        _ => parser.unexpected(),
    }
}

fn tokens(text: &str) -> Result<Vec<(Token, usize)>, ParseError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let wrong = |message: &str| ParseError { message: message.to_owned(), at: at + 1 };
        let (token, length) = match first {
            ' ' | '\t' | '\r' | '\n' => {
                at += 1;
                continue;
            }
            'A'..='Z' | 'a'..='z' | '_' => {
                let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let length = rest.find(|c| !fits(c)).unwrap_or(rest.len());
                (Token::Name(rest[..length].to_owned()), length)
            }
            '0'..='9' => {
                let length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                let number = rest[..length].parse().map_err(|_| wrong("a number that is too large"))?;
                (Token::Number(number), length)
            }
            '"' | '\'' | '`' => {
                let length = quoted(rest, first).ok_or_else(|| wrong("a quote without its end"))?;
                let inner = &rest[1..length - 1];
                let token = match first {
                    '"' => serde_json::from_str(&rest[..length]).map(Token::QuotedName),
                    '\'' => Ok(Token::Literal(Value::String(inner.replace("\\'", "'")))),
                    _ => serde_json::from_str(&inner.replace("\\`", "`")).map(Token::Literal),
                };
                (token.map_err(|_| wrong("a literal that is not JSON"))?, length)
            }
            _ => {
                let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
                let sign = sign.ok_or_else(|| wrong("an unexpected character"))?;
                (Token::Sign(sign), sign.len())
            }
        };
        tokens.push((token, at));
        at += length;
    }
    tokens.push((Token::End, text.len()));
    Ok(tokens)
}

/// The length of a quoted text, both quotes included.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        if character == quote && !escaped {
            return Some(at + character.len_utf8());
        }
        escaped = !escaped && character == '\\';
    }
    None
}

/// A node and how deep it is.
struct Parsed {
    node: Node,
    depth: usize,
}

impl Parsed {
    fn leaf(node: Node) -> Self {
        Self { node, depth: 1 }
    }

    fn boxed(self) -> Box<Node> {
        Box::new(self.node)
    }
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    next: usize,
    nesting: usize,
}

type Step = Result<Parsed, ParseError>;

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next.min(self.tokens.len() - 1)].0
    }

    fn advance(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn error<T>(&self, message: &str) -> Result<T, ParseError> {
        let at = self.tokens[self.next.min(self.tokens.len() - 1)].1 + 1;
        Err(ParseError { message: message.to_owned(), at })
    }

    fn unexpected<T>(&self) -> Result<T, ParseError> {
        match self.peek() {
            Token::End => self.error("an unexpected end"),
            Token::Sign(sign) => self.error(&format!("an unexpected `{sign}`")),
            Token::Name(_) | Token::QuotedName(_) => self.error("an unexpected name"),
            Token::Literal(_) => self.error("an unexpected literal"),
            Token::Number(_) => self.error("an unexpected number; literal numbers stand between backticks"),
        }
    }

    fn takes(&mut self, sign: &str) -> bool {
        let is = matches!(self.peek(), Token::Sign(other) if *other == sign);
        self.next += usize::from(is);
        is
    }

    fn expect(&mut self, sign: &str) -> Result<(), ParseError> {
        if self.takes(sign) { Ok(()) } else { self.unexpected() }
    }

    /// A node over children of the depths given.
    fn node(&self, node: Node, depths: impl IntoIterator<Item = usize>) -> Step {
        let depth = depths.into_iter().max().unwrap_or(0) + 1;
        if depth > DEPTH_MAX {
            return self.error("too deep a nesting");
        }
        Ok(Parsed { node, depth })
    }

    fn expression(&mut self, power_min: u8) -> Step {
        self.nesting += 1;
        if self.nesting > DEPTH_MAX {
            return self.error("too deep a nesting");
        }
        let mut left = self.prefix()?;
        while power(self.peek()) > power_min {
            left = self.infix(left)?;
        }
        self.nesting -= 1;
        Ok(left)
    }

    fn prefix(&mut self) -> Step {
        match self.peek().clone() {
            Token::Literal(value) => {
                self.next += 1;
                Ok(Parsed::leaf(Node::Literal(value)))
            }
            Token::Name(name) => {
                let quoted = self.next;
                self.next += 1;
                if self.takes("(") { self.call(&name, quoted) } else { Ok(Parsed::leaf(Node::Field(name))) }
            }
            Token::QuotedName(name) => {
                self.next += 1;
                Ok(Parsed::leaf(Node::Field(name)))
            }
            Token::Sign("@") => {
                self.next += 1;
                Ok(Parsed::leaf(Node::Current))
            }
            Token::Sign("!") => {
                self.next += 1;
                let inner = self.expression(POWER_NOT)?;
                let depth = inner.depth;
                self.node(Node::Not(inner.boxed()), [depth])
            }
            Token::Sign("(") => {
                self.next += 1;
                let inner = self.expression(0)?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("{") => self.object(),
            Token::Sign("[") if !self.is_bracket() => self.list(),
            Token::Sign("[" | "[]" | "[?") => self.infix(Parsed::leaf(Node::Current)),
            _ => self.unexpected(),
        }
    }

    /// True when the `[` ahead begins an index or `[*]`, not a list.
    fn is_bracket(&self) -> bool {
        let ahead = |by: usize| self.tokens.get(self.next + by).map(|(token, _)| token);
        match ahead(1) {
            Some(Token::Number(_)) => true,
            Some(Token::Sign("-")) => matches!(ahead(2), Some(Token::Number(_))),
            Some(Token::Sign("*")) => matches!(ahead(2), Some(Token::Sign("]"))),
            _ => false,
        }
    }

    fn infix(&mut self, left: Parsed) -> Step {
        let token = self.advance();
        let Token::Sign(sign) = token else { return self.unexpected() };
        let binary = |parser: &mut Self, make: &dyn Fn(Box<Node>, Box<Node>) -> Node, left: Parsed| {
            let right = parser.expression(power(&Token::Sign(sign)))?;
            let depths = [left.depth, right.depth];
            parser.node(make(left.boxed(), right.boxed()), depths)
        };
        let compare = |comparison| move |a, b| Node::Compare(comparison, a, b);
        let compute = |operator| move |a, b| Node::Arithmetic(operator, a, b);
        match sign {
            "|" => binary(self, &Node::Then, left),
            "||" => binary(self, &Node::Or, left),
            "&&" => binary(self, &Node::And, left),
            "==" => binary(self, &compare(Comparison::Equal), left),
            "!=" => binary(self, &compare(Comparison::NotEqual), left),
            "<" => binary(self, &compare(Comparison::Less), left),
            "<=" => binary(self, &compare(Comparison::LessOrEqual), left),
            ">" => binary(self, &compare(Comparison::Greater), left),
            ">=" => binary(self, &compare(Comparison::GreaterOrEqual), left),
            "+" => binary(self, &compute(Operator::Add), left),
            "-" => binary(self, &compute(Operator::Subtract), left),
            "*" => binary(self, &compute(Operator::Multiply), left),
            "/" => binary(self, &compute(Operator::Divide), left),
            "%" => binary(self, &compute(Operator::Modulo), left),
            "." => {
                let right = self.after_dot()?;
                let depths = [left.depth, right.depth];
                self.node(Node::Then(left.boxed(), right.boxed()), depths)
            }
            "[]" => self.projection(left, true, None, power(&Token::Sign("[]"))),
            "[?" => {
                let filter = self.expression(0)?;
                self.expect("]")?;
                self.projection(left, false, Some(filter), power(&Token::Sign("[?")))
            }
            "[" if self.takes("*") => {
                self.expect("]")?;
                self.projection(left, false, None, POWER_STAR)
            }
            "[" => {
                let sign = if self.takes("-") { -1 } else { 1 };
                let Token::Number(number) = *self.peek() else { return self.unexpected() };
                self.next += 1;
                self.expect("]")?;
                let depth = left.depth;
                self.node(Node::Then(left.boxed(), Box::new(Node::Index(sign * number))), [depth])
            }
            _ => {
                self.next -= 1;
                self.unexpected()
            }
        }
    }

    fn after_dot(&mut self) -> Step {
        match self.peek() {
            Token::Name(_) | Token::QuotedName(_) | Token::Sign("{") => self.prefix(),
            Token::Sign("[") => self.list(),
            _ => self.unexpected(),
        }
    }

    /// What is done with each item: everything up to an operator that ends a projection.
    fn projection(&mut self, left: Parsed, flatten: bool, filter: Option<Parsed>, power_min: u8) -> Step {
        let right = match self.peek() {
            token if power(token) < POWER_PROJECTION_END => Parsed::leaf(Node::Current),
            Token::Sign(".") => {
                self.next += 1;
                let mut right = self.after_dot()?;
                while power(self.peek()) > power_min {
                    right = self.infix(right)?;
                }
                right
            }
            _ => {
                let mut right = Parsed::leaf(Node::Current);
                while power(self.peek()) > power_min {
                    right = self.infix(right)?;
                }
                right
            }
        };
        let depths = [left.depth, right.depth, filter.as_ref().map_or(0, |filter| filter.depth)];
        let filter = filter.map(Parsed::boxed);
        self.node(Node::Project { left: left.boxed(), flatten, filter, right: right.boxed() }, depths)
    }

    fn list(&mut self) -> Step {
        self.expect("[")?;
        let (mut items, mut depth) = (Vec::new(), 0);
        loop {
            let item = self.expression(0)?;
            depth = depth.max(item.depth);
            items.push(item.node);
            if !self.takes(",") {
                self.expect("]")?;
                return self.node(Node::List(items), [depth]);
            }
        }
    }

    fn object(&mut self) -> Step {
        self.expect("{")?;
        let (mut members, mut depth) = (Vec::new(), 0);
        loop {
            let (Token::Name(name) | Token::QuotedName(name)) = self.peek().clone() else { return self.unexpected() };
            self.next += 1;
            self.expect(":")?;
            let member = self.expression(0)?;
            depth = depth.max(member.depth);
            members.push((name, member.node));
            if !self.takes(",") {
                self.expect("}")?;
                return self.node(Node::Object(members), [depth]);
            }
        }
    }

    /// The arguments of a function; its name is the token at `name_at`.
    fn call(&mut self, name: &str, name_at: usize) -> Step {
        let (mut arguments, mut depth) = (Vec::new(), 0);
        let mut by_expression = false;
        if !self.takes(")") {
            loop {
                by_expression |= name == "map" && arguments.is_empty() && self.takes("&");
                let argument = self.expression(0)?;
                depth = depth.max(argument.depth);
                arguments.push(argument.node);
                if !self.takes(",") {
                    self.expect(")")?;
                    break;
                }
            }
        }
        let count = arguments.len();
        if name == "map" {
            let pair: Result<[Node; 2], _> = arguments.try_into();
            return match pair {
                Ok([each, list]) if by_expression => self.node(Node::Map(Box::new(each), Box::new(list)), [depth]),
                _ => self.error_at(name_at, "`map` takes `&expression` and an array"),
            };
        }
        let Some(function) = Function::from_name(name) else {
            return self.error_at(name_at, "no function of this name");
        };
        let (min, max) = function.arguments();
        if !(min..=max).contains(&count) {
            return self.error_at(name_at, &format!("`{}` takes another number of arguments", function.name()));
        }
        self.node(Node::Call(function, arguments), [depth])
    }

    fn error_at<T>(&mut self, token: usize, message: &str) -> Result<T, ParseError> {
        self.next = token;
        self.error(message)
    }
}
