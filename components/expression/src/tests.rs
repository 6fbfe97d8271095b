use std::{
    cell::Cell,
    pin::pin,
    task::{Context, Poll, Waker},
};

use proptest::prelude::*;

use super::*;

const INPUT: &str = r#"{
    "a": {"b": [1, 2, 3], "c-d": "x"}, "text": "Hello, World", "big": 9007199254740993, "neg": -2, "none": null,
    "people": [
        {"name": "Ann", "age": 30, "tags": ["x", "y"]},
        {"name": "Bob", "age": 20, "tags": []},
        {"name": "Cid", "tags": ["z"]}
    ],
    "nested": [[1, 2], 3, [[4]]]
}"#;

fn evaluate(expression: &str, input: &str) -> String {
    match Expression::parse(expression) {
        Err(error) => format!("parse: {error}"),
        Ok(parsed) => match parsed.evaluate(&Json::from_checked(input), Bounds::default()) {
            Ok(json) => json.as_str().to_owned(),
            Err(error) => format!("error: {error}"),
        },
    }
}

/// The result of an evaluation in slices, and the number of its pauses.
fn in_slices(expression: &Expression, input: &Json, bounds: Bounds) -> (Result<Json, EvaluationError>, usize) {
    let pauses = Cell::new(0);
    let evaluation = pin!(expression.evaluate_in_slices(input, bounds, async || pauses.set(pauses.get() + 1)));
    // `pause` is always ready.
    let Poll::Ready(result) = evaluation.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("the evaluation is pending")
    };
    (result, pauses.get())
}

#[test]
fn large_evaluation_in_slices_has_the_same_result() {
    let numbers = format!("[{}1]", (0..60_000).map(|number| format!("{},", number % 10)).collect::<String>());
    let (numbers, bounds) = (Json::from_checked(numbers), Bounds::default());
    let fewer = Json::from_checked(format!("[{}1]", "7,3,".repeat(10_000)));
    let members: String = (0..20_000).map(|number| format!("\"k{number}\":1,")).collect();
    let members = Json::from_checked(format!("{{{members}\"k\":0}}"));
    let nested = format!("[{}]", vec!["[1,2,3,4,5,6,7,8,9,10]"; 3_000].join(","));
    for (expression, input, least) in [
        ("[length(map(&(@ == `1`), @)), length(map(&(@ == `2`), @))]", &numbers, 20),
        ("length(@[?@ > `3`])", &numbers, 10),
        ("[@,@,@,@] | length(@)", &numbers, 4),
        ("@[*].[@, @] | [] | length(@)", &numbers, 20),
        ("map(&length(@[?@ > `3`]), @) | sum(@)", &Json::from_checked(nested.clone()), 10),
        // More than `ATTEMPT_STEPS` for each item.
        ("map(&length(map(&[@, @], @)), [@, @]) | sum(@)", &Json::from_checked(nested.clone()), 15),
        // Reading and writing 120,000 bytes each, and dropping 60,000 values.
        ("@", &numbers, 12),
        // Reading only, and dropping.
        ("length(@)", &numbers, 9),
        ("`true`", &numbers, 9),
        // More than 4 rounds of 20,000 comparisons, after 20 parts are sorted.
        ("sort(@) | length(@)", &fewer, 12),
        ("max(@)", &fewer, 10),
        ("reverse(@) | length(@)", &numbers, 15),
        ("contains(@, `10`)", &numbers, 15),
        ("@ == `[]`", &numbers, 12),
        ("[@] == [@]", &numbers, 30),
        ("@ != @", &numbers, 15),
        ("to_string(@) | length(@)", &numbers, 12),
        ("to_array(@) | length(@)", &numbers, 9),
        ("not_null(`null`, @) | length(@)", &numbers, 15),
        ("values({a: @}) | length(@)", &numbers, 15),
        ("merge({a: @}, {b: @}) | length(@)", &numbers, 25),
        ("[@] | length(@)", &Json::from_checked(nested), 10),
        // Reading 200,000 bytes, copying, moving and dropping 20,000 members.
        ("keys(@) | length(@)", &members, 14),
        ("values(@) | length(@)", &members, 16),
        ("merge(@, `{\"k\":1}`) | length(@)", &members, 16),
        ("merge(@, @) | k1", &members, 22),
        ("[@, @] | [0].k1", &members, 20),
        ("{a: @, b: @}.a.k1", &members, 20),
    ] {
        let parsed = Expression::parse(expression).unwrap();
        let (result, pauses) = in_slices(&parsed, input, bounds);
        assert_eq!(result, parsed.evaluate(input, bounds), "{expression}");
        assert!(result.is_ok() && pauses >= least, "{expression}: {result:?} in {pauses} slices");
    }
}

#[test]
fn expressions_evaluate_as_specified() {
    for (expression, want) in [
        ("a.b", "[1,2,3]"),
        ("a.b[0]", "1"),
        ("a.b[-1]", "3"),
        ("a.b[3]", "null"),
        ("a.\"c-d\"", "\"x\""),
        ("missing.field[0]", "null"),
        ("@.neg", "-2"),
        ("big", "9007199254740993"),
        ("people[*].name", r#"["Ann","Bob","Cid"]"#),
        ("people[*].age", "[30,20]"),
        ("people[*].tags[0]", r#"["x","z"]"#),
        ("people[*].tags[]", r#"["x","y","z"]"#),
        ("people[].tags[] | [0]", "\"x\""),
        ("people[?age > `20`].name", r#"["Ann"]"#),
        ("people[?age > `20`].name | [0]", "\"Ann\""),
        ("people[?!age].name", r#"["Cid"]"#),
        ("people[?name == 'Bob' || name == 'Cid'].name", r#"["Bob","Cid"]"#),
        ("people[?age && age < `25`].{n: name, a: age}", r#"[{"a":20,"n":"Bob"}]"#),
        ("people[*].[name, age]", r#"[["Ann",30],["Bob",20],["Cid",null]]"#),
        ("nested[]", "[1,2,3,[4]]"),
        ("nested[][]", "[1,2,3,4]"),
        ("{x: a.b[1], y: 'raw \\'s', z: `{\"k\": [1.50]}`}", r#"{"x":2,"y":"raw 's","z":{"k":[1.5]}}"#),
        ("[neg, text]", r#"[-2,"Hello, World"]"#),
        ("a.b | length(@)", "3"),
        ("missing || 'else'", "\"else\""),
        ("none && 'never'", "null"),
        ("!missing", "true"),
        ("a.b == `[1,2,3]`", "true"),
        ("text != 'x'", "true"),
        ("'a' < 'b'", "true"),
        ("`1` < 'b'", "null"),
        ("`1` == `1.0`", "true"),
        ("`1` + `2` * `3`", "7"),
        ("(`1` + `2`) * `3`", "9"),
        ("`[1, {\"a\": 2.0}]` == `[1.0, {\"a\": 2}]`", "true"),
        ("`{\"a\": [1]}` != `{\"a\": [1.0]}`", "false"),
        ("`[1]` == `[1, 1]`", "false"),
        ("`{\"a\": null}` == `{\"b\": null}`", "false"),
        ("contains(`[[1.0], 2]`, `[1]`)", "true"),
        ("contains(`[1, 2.0]`, `2`)", "true"),
        ("none.[a]", "null"),
        ("missing.{x: @}", "null"),
        ("none | [@]", "null"),
        ("people[*].none.{x: @}", "[]"),
        ("a.b[*].[@]", "[[1],[2],[3]]"),
        ("`7` / `2`", "3.5"),
        ("`8` / `2`", "4"),
        ("`-7` % `4`", "-3"),
        ("neg - `1`", "-3"),
        ("big + `1`", "9007199254740994"),
        ("`18446744073709551615` * `2`", "3.6893488147419103e+19"),
        ("length(people) * `2` > `5`", "true"),
        ("`1` / `0`", "error: the result of `/` is no number"),
        ("text + `1`", "error: `+` takes numbers, not string"),
        ("map(&age, people)", "[30,20,null]"),
        ("map(&(@ * @), a.b)", "[1,4,9]"),
        ("sum(a.b)", "6"),
        ("avg(a.b)", "2"),
        ("avg(`[]`)", "null"),
        ("max(a.b)", "3"),
        ("min(people[*].name)", "\"Ann\""),
        ("sort(`[3, 1, 2.5]`)", "[1,2.5,3]"),
        ("reverse(a.b)", "[3,2,1]"),
        ("reverse('añb')", "\"bña\""),
        ("join(', ', people[*].name)", "\"Ann, Bob, Cid\""),
        ("split(text, ', ')", r#"["Hello","World"]"#),
        ("split('añ', '')", r#"["a","ñ"]"#),
        ("replace(text, 'l', 'L')", "\"HeLLo, WorLd\""),
        ("upper(text)", "\"HELLO, WORLD\""),
        ("lower(text)", "\"hello, world\""),
        ("trim('  x ')", "\"x\""),
        ("starts_with(text, 'Hell')", "true"),
        ("ends_with(text, 'x')", "false"),
        ("contains(text, 'World')", "true"),
        ("contains(a.b, `2`)", "true"),
        ("length('añ')", "2"),
        ("keys(a)", r#"["b","c-d"]"#),
        ("values(a)", r#"[[1,2,3],"x"]"#),
        ("merge(a, {b: `1`})", r#"{"b":1,"c-d":"x"}"#),
        ("not_null(missing, none, text)", "\"Hello, World\""),
        ("to_array(neg)", "[-2]"),
        ("to_number('1.5')", "1.5"),
        ("to_number('x')", "null"),
        ("to_string(a.b)", "\"[1,2,3]\""),
        ("type(a)", "\"object\""),
        ("abs(neg)", "2"),
        ("ceil(`1.2`)", "2"),
        ("floor(`-1.2`)", "-2"),
        ("length(neg)", "error: length takes a string, an array or an object, not number"),
        ("sort(`[1, \"x\"]`)", "error: sort takes numbers or strings, all alike, not string"),
    ] {
        assert_eq!(evaluate(expression, INPUT), want, "{expression}");
    }
}

#[test]
fn malformed_expressions_are_refused() {
    for (expression, want) in [
        ("", "parse: an unexpected end at byte 1"),
        ("a.", "parse: an unexpected end at byte 3"),
        ("a b", "parse: an unexpected name at byte 3"),
        ("a[", "parse: an unexpected end at byte 3"),
        ("a[1", "parse: an unexpected end at byte 4"),
        ("a[1:2]", "parse: an unexpected `:` at byte 4"),
        ("1", "parse: an unexpected number; literal numbers stand between backticks at byte 1"),
        ("'x", "parse: a quote without its end at byte 1"),
        ("`{`", "parse: a literal that is not JSON at byte 1"),
        ("a ? b", "parse: an unexpected character at byte 3"),
        ("{a}", "parse: an unexpected `}` at byte 3"),
        ("a.*", "parse: an unexpected `*` at byte 3"),
        ("nope(a)", "parse: no function of this name at byte 1"),
        ("length()", "parse: `length` takes another number of arguments at byte 1"),
        ("\"length\"(a)", "parse: an unexpected `(` at byte 9"),
        ("map(a, b)", "parse: `map` takes `&expression` and an array at byte 1"),
        ("sort(&a)", "parse: an unexpected `&` at byte 6"),
        ("a[99999999999999999999]", "parse: a number that is too large at byte 3"),
    ] {
        assert_eq!(evaluate(expression, INPUT), want, "{expression}");
    }
    let long = "a".repeat(EXPRESSION_BYTES_MAX + 1);
    assert!(evaluate(&long, INPUT).starts_with("parse: more than 8192 bytes"));
}

#[test]
fn evaluation_is_bounded() {
    let deep = |open: &str, close: &str, count: usize| format!("{}a{}", open.repeat(count), close.repeat(count));
    for expression in [
        deep("(", ")", 4000),
        deep("!", "", 4000),
        deep("[", "]", 4000),
        deep("{a:", "}", 2000),
        format!("a{}", ".a".repeat(4000)),
        format!("a{}", "[0]".repeat(2700)),
        format!("a{}", "|a".repeat(4000)),
        format!("a{}", "[]".repeat(4000)),
    ] {
        assert!(evaluate(&expression, "{}").starts_with("parse: too deep a nesting"), "{}", &expression[..20]);
    }
    // Each pipe doubles the values: 2^40 of them without the bound.
    let doubling = vec!["[@,@]"; 40].join("|");
    let text = format!("'{}'", "x".repeat(2100));
    let large = format!("[{}1]", "1,".repeat(3000));
    for (expression, input, want) in [
        (doubling.clone(), "1", "error: the expression "),
        (format!("{text} | {}", vec!["join(@, [@,@])"; 20].join("|")), "1", "error: the expression makes values of"),
        (format!("{text} | {}", vec!["replace(@, 'x', 'xxxxxxxx')"; 20].join("|")), "1", "error: the expression takes"),
        ("map(&map(&map(&@, $), $), $)".replace('$', "`[]`"), "1", "[]"),
        ("@[*].[@][]".to_owned(), &large, "["),
        (format!("{text} | {}", ["[@,@]"; 9].join("|")), "1", "error: the result has more than"),
    ] {
        let result = evaluate(&expression, input);
        let sliced =
            in_slices(&Expression::parse(&expression).unwrap(), &Json::from_checked(input), Bounds::default()).0;
        assert_eq!(sliced.map_or_else(|error| format!("error: {error}"), |json| json.as_str().to_owned()), result);
        let prefix = &result[..result.len().min(100)];
        assert!(result.starts_with(want), "{}…: {prefix}, not {want}", &expression[..9]);
    }
    // Two nested loops over 3,000 items each.
    let squared = format!("map(&length(map(&@, `{large}`)), @)");
    let result = evaluate(&squared, &large);
    assert!(result.starts_with("error: the expression "), "{result}");
    let nested = format!("{}1{}", "[".repeat(90), "]".repeat(90));
    let result = evaluate(&vec!["[@]"; 20].join("|"), &nested);
    assert_eq!(result, "error: the result is nested deeper than 100 levels");
}

/// Concatenated pieces of syntax, many of which are valid expressions.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "b",
        "@",
        ".",
        "[0]",
        "[-1]",
        "[*]",
        "[]",
        "[?",
        "]",
        "[",
        "(",
        ")",
        "{x:",
        "}",
        ",",
        "|",
        "||",
        "&&",
        "!",
        "==",
        "<",
        "+",
        "-",
        "*",
        "/",
        "%",
        "`1`",
        "`[1,2,[3]]`",
        "'s'",
        "map(&@,",
        "length(",
        "sort(",
        "join('',",
        "to_string(",
        "merge(",
        " ",
        "\"q\"",
        "split(",
        "replace(@,'a','bb')",
        "not_null(",
        "&",
        "é",
    ]);
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_is_parsed_or_refused(text in any::<String>()) {
        let _ = Expression::parse(&text);
    }

    #[test]
    fn arbitrary_expression_ends_within_its_bounds(
        text in pieces(),
        input in prop::sample::select(vec![INPUT, "null", "[1,[2,3],{\"a\":[\"x\"]}]", r#"{"a":{"b":"aaa"},"b":[3,1,2]}"#]),
    ) {
        let Ok(expression) = Expression::parse(&text) else { return Ok(()) };
        let bounds = Bounds { steps_max: 5000, memory_bytes_max: 1 << 16, output_bytes_max: 1 << 12 };
        let whole = expression.evaluate(&Json::from_checked(input), bounds);
        // Attempts do not change the budget.
        prop_assert_eq!(&in_slices(&expression, &Json::from_checked(input), bounds).0, &whole);
        if let Ok(json) = whole {
            prop_assert!(json.bytes() <= bounds.output_bytes_max);
            let value: serde_json::Value = serde_json::from_str(json.as_str()).expect("a result is JSON");
            // `@` over the result is the result.
            let again = Expression::parse("@").expect("@").evaluate(&json, Bounds::default()).expect("@");
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(again.as_str()).expect("JSON"), value);
        }
    }
}
