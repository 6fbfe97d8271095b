//! A lexer, and a parser by operator precedence.

use serde_json::Value;

use super::{
    bounds::{DEPTH_MAX, EXPRESSION_BYTES_MAX},
    error::ParseError,
    tree::{Comparison, Function, Node, Operator},
};

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    /// A name in double quotes, which is always a field, not a function.
    QuotedName(String),
    Literal(Value),
    Number(i64),
    Sign(&'static str),
    End,
}

/// All signs; a sign precedes its own prefixes.
const SIGNS: &[&str] = &[
    "||", "|", "&&", "&", "==", "!=", "!", "<=", "<", ">=", ">", "[]", "[?", "[", "]", "{", "}", "(", ")", ",", ":",
    ".", "@", "*", "+", "-", "/", "%",
];

/// The binding power of a token as an infix or postfix operator; 0 if it is none.
fn binding_power(token: &Token) -> u8 {
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

/// Operators with a lower binding power end a projection.
const POWER_PROJECTION_END: u8 = 10;
const POWER_STAR: u8 = 20;
const POWER_NOT: u8 = 45;

pub(super) fn parse(text: &str) -> Result<Node, ParseError> {
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(ParseError { message: format!("more than {EXPRESSION_BYTES_MAX} bytes"), at: 1 });
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, nesting: 0 };
    let tree = parser.expression(0)?;
    match parser.peek() {
        Token::End => Ok(tree.node),
        _ => parser.unexpected(),
    }
}

fn tokens(text: &str) -> Result<Vec<(Token, usize)>, ParseError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let error = |message: &str| ParseError { message: message.to_owned(), at: at + 1 };
        let (token, length) = match first {
            ' ' | '\t' | '\r' | '\n' => {
                at += 1;
                continue;
            }
            'A'..='Z' | 'a'..='z' | '_' => {
                let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                (Token::Name(rest[..length].to_owned()), length)
            }
            '0'..='9' => {
                let length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                let number = rest[..length].parse().map_err(|_| error("a number that is too large"))?;
                (Token::Number(number), length)
            }
            '"' | '\'' | '`' => {
                let length = quoted_length(rest, first).ok_or_else(|| error("a quote without its end"))?;
                let inner = &rest[1..length - 1];
                let token = match first {
                    '"' => serde_json::from_str(&rest[..length]).map(Token::QuotedName),
                    '\'' => Ok(Token::Literal(Value::String(inner.replace("\\'", "'")))),
                    _ => serde_json::from_str(&inner.replace("\\`", "`")).map(Token::Literal),
                };
                (token.map_err(|_| error("a literal that is not JSON"))?, length)
            }
            _ => {
                let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
                let sign = sign.ok_or_else(|| error("an unexpected character"))?;
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
fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        if character == quote && !escaped {
            return Some(at + character.len_utf8());
        }
        escaped = !escaped && character == '\\';
    }
    None
}

/// A node and its depth.
struct Subtree {
    node: Node,
    depth: usize,
}

impl Subtree {
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

type ParseResult = Result<Subtree, ParseError>;

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

    /// Consumes a sign if it is the next token; returns whether it was.
    fn consume(&mut self, sign: &str) -> bool {
        let is_next = matches!(self.peek(), Token::Sign(other) if *other == sign);
        self.next += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, sign: &str) -> Result<(), ParseError> {
        if self.consume(sign) { Ok(()) } else { self.unexpected() }
    }

    /// A node whose children have the given depths.
    fn node(&self, node: Node, depths: impl IntoIterator<Item = usize>) -> ParseResult {
        let depth = depths.into_iter().max().unwrap_or(0) + 1;
        if depth > DEPTH_MAX {
            return self.error("too deep a nesting");
        }
        Ok(Subtree { node, depth })
    }

    fn expression(&mut self, power_min: u8) -> ParseResult {
        self.nesting += 1;
        if self.nesting > DEPTH_MAX {
            return self.error("too deep a nesting");
        }
        let mut left = self.prefix()?;
        while binding_power(self.peek()) > power_min {
            left = self.infix(left)?;
        }
        self.nesting -= 1;
        Ok(left)
    }

    fn prefix(&mut self) -> ParseResult {
        match self.peek().clone() {
            Token::Literal(value) => {
                self.next += 1;
                Ok(Subtree::leaf(Node::Literal(value)))
            }
            Token::Name(name) => {
                let name_at = self.next;
                self.next += 1;
                if self.consume("(") { self.call(&name, name_at) } else { Ok(Subtree::leaf(Node::Field(name))) }
            }
            Token::QuotedName(name) => {
                self.next += 1;
                Ok(Subtree::leaf(Node::Field(name)))
            }
            Token::Sign("@") => {
                self.next += 1;
                Ok(Subtree::leaf(Node::Current))
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
            Token::Sign("[" | "[]" | "[?") => self.infix(Subtree::leaf(Node::Current)),
            _ => self.unexpected(),
        }
    }

    /// True if the next token `[` begins an index or `[*]`, not a list.
    fn is_bracket(&self) -> bool {
        let ahead = |by: usize| self.tokens.get(self.next + by).map(|(token, _)| token);
        match ahead(1) {
            Some(Token::Number(_)) => true,
            Some(Token::Sign("-")) => matches!(ahead(2), Some(Token::Number(_))),
            Some(Token::Sign("*")) => matches!(ahead(2), Some(Token::Sign("]"))),
            _ => false,
        }
    }

    fn infix(&mut self, left: Subtree) -> ParseResult {
        let token = self.advance();
        let Token::Sign(sign) = token else { return self.unexpected() };
        let binary = |parser: &mut Self, make: &dyn Fn(Box<Node>, Box<Node>) -> Node, left: Subtree| {
            let right = parser.expression(binding_power(&Token::Sign(sign)))?;
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
            "[]" => self.projection(left, true, None, binding_power(&Token::Sign("[]"))),
            "[?" => {
                let filter = self.expression(0)?;
                self.expect("]")?;
                self.projection(left, false, Some(filter), binding_power(&Token::Sign("[?")))
            }
            "[" if self.consume("*") => {
                self.expect("]")?;
                self.projection(left, false, None, POWER_STAR)
            }
            "[" => {
                let sign = if self.consume("-") { -1 } else { 1 };
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

    fn after_dot(&mut self) -> ParseResult {
        match self.peek() {
            Token::Name(_) | Token::QuotedName(_) | Token::Sign("{") => self.prefix(),
            Token::Sign("[") => self.list(),
            _ => self.unexpected(),
        }
    }

    /// A projection of `left`: its right side extends to the next operator that ends a projection.
    fn projection(&mut self, left: Subtree, flatten: bool, filter: Option<Subtree>, power_min: u8) -> ParseResult {
        let right = match self.peek() {
            token if binding_power(token) < POWER_PROJECTION_END => Subtree::leaf(Node::Current),
            Token::Sign(".") => {
                self.next += 1;
                let mut right = self.after_dot()?;
                while binding_power(self.peek()) > power_min {
                    right = self.infix(right)?;
                }
                right
            }
            _ => {
                let mut right = Subtree::leaf(Node::Current);
                while binding_power(self.peek()) > power_min {
                    right = self.infix(right)?;
                }
                right
            }
        };
        let depths = [left.depth, right.depth, filter.as_ref().map_or(0, |filter| filter.depth)];
        let filter = filter.map(Subtree::boxed);
        self.node(Node::Project { left: left.boxed(), flatten, filter, right: right.boxed() }, depths)
    }

    fn list(&mut self) -> ParseResult {
        self.expect("[")?;
        let (mut items, mut depth) = (Vec::new(), 0);
        loop {
            let item = self.expression(0)?;
            depth = depth.max(item.depth);
            items.push(item.node);
            if !self.consume(",") {
                self.expect("]")?;
                return self.node(Node::List(items), [depth]);
            }
        }
    }

    fn object(&mut self) -> ParseResult {
        self.expect("{")?;
        let (mut members, mut depth) = (Vec::new(), 0);
        loop {
            let (Token::Name(name) | Token::QuotedName(name)) = self.peek().clone() else { return self.unexpected() };
            self.next += 1;
            self.expect(":")?;
            let member = self.expression(0)?;
            depth = depth.max(member.depth);
            members.push((name, member.node));
            if !self.consume(",") {
                self.expect("}")?;
                return self.node(Node::Object(members), [depth]);
            }
        }
    }

    /// A call of a function. Its name is the token at index `name_at`; the next token follows the opening parenthesis.
    fn call(&mut self, name: &str, name_at: usize) -> ParseResult {
        let (mut arguments, mut depth) = (Vec::new(), 0);
        let mut by_expression = false;
        if !self.consume(")") {
            loop {
                by_expression |= name == "map" && arguments.is_empty() && self.consume("&");
                let argument = self.expression(0)?;
                depth = depth.max(argument.depth);
                arguments.push(argument.node);
                if !self.consume(",") {
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
