//! All cases of the compliance suite of JMESPath (`tests/jmespath`). Unsupported features are listed here, with their
//! reasons.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use weir_core::pipelines::Json;
use weir_expression::{Bounds, Expression};

/// The unsupported features, and the number of cases of the suite that fail because of each.
const DEPARTURES: &[(&str, usize)] = &[(BY_EXPRESSION, 15), (OBJECT_WILDCARD, 40), (SLICE, 37)];

const BY_EXPRESSION: &str = "unsupported: functions by expression other than `map`: `sort_by`, `max_by`, `min_by`";
const OBJECT_WILDCARD: &str = "unsupported: the values of an object by `*`; use `values(@)`";
const SLICE: &str = "unsupported: slices";

/// Why a case may have another result than in the suite.
fn departure(file: &str, expression: &str) -> Option<&'static str> {
    let is_any = |parts: &[&str]| parts.iter().any(|part| expression.contains(part));
    if is_any(&["sort_by(", "max_by(", "min_by("]) {
        Some(BY_EXPRESSION)
    } else if expression.replace("[*]", "").contains('*') || expression == "foo.[*]" {
        Some(OBJECT_WILDCARD)
    } else if file == "slice" {
        Some(SLICE)
    } else {
        None
    }
}

/// The result of an expression; `None` for any error.
fn evaluate(expression: &str, input: &Value) -> Option<Value> {
    let expression = Expression::parse(expression).ok()?;
    let result = expression.evaluate(&Json::from_checked(input.to_string()), Bounds::default()).ok()?;
    Some(serde_json::from_str(result.as_str()).unwrap())
}

/// Whether two values are equal, numbers by their value: the suite writes `5` for a result of `5.0`.
fn is_equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| is_equal(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, value)| right.get(key).is_some_and(|other| is_equal(value, other)))
        }
        _ => left == right,
    }
}

#[test]
fn each_case_has_the_result_of_the_suite_or_a_listed_reason() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/jmespath");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    assert_eq!(files.len(), 15);
    let (mut cases, mut wrong, mut departures) = (0, Vec::new(), BTreeMap::new());
    for path in files {
        let file = path.file_stem().unwrap().to_str().unwrap();
        let suites: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for suite in &suites {
            for case in suite["cases"].as_array().unwrap() {
                cases += 1;
                let expression = case["expression"].as_str().unwrap();
                let actual = evaluate(expression, &suite["given"]);
                let expected = case.get("result");
                let is_right = match (&actual, expected) {
                    (Some(actual), Some(expected)) => is_equal(actual, expected),
                    (None, None) => true,
                    _ => false,
                };
                match departure(file, expression) {
                    // A case with a reason can still have the right result, such as an error.
                    Some(reason) if !is_right => *departures.entry(reason).or_insert(0) += 1,
                    None if !is_right => {
                        let expected = expected.map_or("an error".to_owned(), Value::to_string);
                        let actual = actual.map_or("an error".to_owned(), |actual| actual.to_string());
                        wrong.push(format!("{file}: {expression}\n    gives {actual}\n    not   {expected}"));
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {cases} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(departures, DEPARTURES.iter().copied().collect());
}
