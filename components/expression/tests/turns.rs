//! Evaluations of two users on one thread: those of one user take turns with those of another, slice by slice.

#![allow(clippy::unwrap_used)]

mod thread;

use thread::{TaskTurns, check_order};
use weir_core::pipelines::Json;
use weir_expression::{Bounds, Expression};

/// Evaluates an expression, each slice in a turn.
async fn evaluate(mut turns: TaskTurns<'_>, expression: &str, input: &Json) {
    let expression = Expression::parse(expression).unwrap();
    let pause = async || turns.pause().await;
    expression.evaluate_in_slices(input, Bounds::default(), pause).await.unwrap();
}

#[test]
fn light_evaluation_of_one_user_precedes_the_second_slice_of_each_heavy_one() {
    let numbers = format!("[{}1]", "1,".repeat(20_000));
    let members: String = (0..20_000).map(|number| format!("\"{number}\":1,")).collect();
    let (numbers, members) = (Json::from_checked(numbers), Json::from_checked(format!("{{{members}\"a\":1}}")));
    let small = Json::from_checked("1");
    // Reading, writing, comparing, sorting and copying.
    let over_numbers = ["@", "@ == @", "sort(@)", "[@, @] | [0]", "to_string(@)", "length(map(&(@ + `1`), @))"];
    let over_members = ["@", "a", "keys(@) | [0]", "values(@) | [0]", "merge(@, @) | a", "[@, @] | [0].a"];
    let cases = over_numbers.map(|expression| (expression, &numbers)).into_iter();
    for (expression, input) in cases.chain(over_members.map(|expression| (expression, &members))) {
        check_order(
            expression,
            async |turns| evaluate(turns, expression, input).await,
            async |turns| evaluate(turns, "@", &small).await,
        );
    }
}
