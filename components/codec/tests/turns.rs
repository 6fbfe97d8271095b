//! Values of two users that are read on one thread: those of one user take turns with those of another, slice by slice.

#![allow(clippy::unwrap_used)]

#[path = "../../expression/tests/thread/mod.rs"]
mod thread;

use thread::{TaskTurns, check_order};
use weir_codec::pipelines::text;

async fn read(mut turns: TaskTurns<'_>, body: &str) {
    text::read_in_slices(body.as_bytes(), async || turns.pause().await).await.unwrap();
}

#[test]
fn small_body_of_one_user_precedes_the_second_slice_of_each_large_one() {
    let numbers = format!("[{}1]", "1,".repeat(100_000));
    let members: String = (0..90_000).map(|number| format!("\"{number}\":1,")).collect();
    let members = format!("{{{members}\"a\":1}}");
    let nested = format!("[{}{{}}]", "{\"a\":[]},".repeat(40_000));
    let strings = format!("[{}1]", "\"a \\u00e9\", ".repeat(70_000));
    for body in [numbers, members, nested, strings] {
        check_order(&body[..10], async |turns| read(turns, &body).await, async |turns| read(turns, "[1]").await);
    }
}
