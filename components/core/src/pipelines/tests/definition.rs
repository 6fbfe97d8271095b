use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn check(draft: Draft, want: Expect) {
    let errors = draft.check().expect_err("mistakes");
    want.assert_eq(&errors.iter().map(|error| format!("{error}\n")).collect::<String>());
}

#[test]
fn steps_depend_on_the_previous_step_by_default() {
    let steps = vec![annotate("a"), annotate("b"), after("c", &["a"]), after("d", &[]), after("e", &["c", "d"])];
    let definition = draft(steps).check().expect("a definition");
    let masks: Vec<u64> = (0..5).map(|at| definition.after(at)).collect();
    assert_eq!(masks, [0, 0b1, 0b1, 0, 0b1100]);
    assert_eq!(definition.ancestors(4), 0b1101);
    assert_eq!(definition.sinks(), 0b10010);
}

#[test]
fn errors_name_the_step() {
    check(draft(vec![]), expect!["a pipeline needs at least one step\n"]);
    check(
        draft((0..65).map(|n| annotate(&n.to_string())).collect()),
        expect!["a pipeline has at most 64 steps, and this one has 65\n"],
    );
    let mut twice = annotate("a");
    twice.compensation = vec![Task::new("a", Kind::Annotate), Task::new("u", Kind::Annotate)];
    let mut wrong = draft(vec![
        twice,
        annotate("a b"),
        annotate(""),
        after("d", &["u", "x", "d", "a", "a"]),
        annotate(&"x".repeat(65)),
    ]);
    wrong.name = "..".to_owned();
    check(
        wrong,
        expect![[r#"
            the name must be 1 to 64 of A-Z, a-z, 0-9, _, - and ., and is `..`
            the id `a` is taken
            an id must be 1 to 64 of A-Z, a-z, 0-9, _, - and ., and is `a b`
            an id must be 1 to 64 of A-Z, a-z, 0-9, _, - and ., and is ``
            an id must be 1 to 64 of A-Z, a-z, 0-9, _, - and ., and is `xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx`
            there is no step `u`
            there is no step `x`
            the step `a` is named twice
        "#]],
    );
    let mut numbers = draft(vec![Step::new("a", Kind::Chunk { chunk_size: 0 })]);
    numbers.parallel_max = 65;
    numbers.streaming.buffer_size = 0;
    numbers.streaming.flush_interval_ms = 60_001;
    numbers.steps[0].task.timeout_ms = 0;
    numbers.steps[0].task.retry.max_attempts = 0;
    check(
        numbers,
        expect![[r#"
            streaming.buffer_size must be 1 to 100000, and is 0
            streaming.flush_interval_ms must be 0 to 60000, and is 60001
            parallel_max must be 1 to 64, and is 65
            timeout_ms must be 1 to 86400000, and is 0
            retry.max_attempts must be 1 to 100, and is 0
            chunk_size must be 1 to 100000, and is 0
        "#]],
    );
}

#[test]
fn cycle_is_reported_with_its_steps() {
    check(draft(vec![after("a", &["a"])]), expect!["steps wait for each other: a after a\n"]);
    let steps = vec![after("z", &[]), after("a", &["c", "z"]), after("b", &["a"]), after("c", &["b"]), annotate("d")];
    check(draft(steps), expect!["steps wait for each other: a after c after b after a\n"]);
}

proptest! {
    /// Any graph either has a topological order or is refused with one of its cycles.
    #[test]
    fn graph_has_an_order_or_a_cycle(masks in prop::collection::vec(any::<u64>(), 1..=64), thin in 0u32..4) {
        let count = masks.len();
        let thinned = masks.iter().map(|mask| (0..thin).fold(*mask, |mask, by| mask & mask.rotate_left(7 * by + 3)));
        let masks: Vec<u64> = thinned.map(|mask| mask & crate::pipelines::definition::all(count)).collect();
        let ids = |mask: u64| crate::pipelines::definition::each(mask).map(|at| at.to_string()).collect::<Vec<_>>();
        let steps = masks.iter().enumerate().map(|(at, mask)| {
            Step { after: Some(ids(*mask)), ..annotate(&at.to_string()) }
        });
        match draft(steps.collect()).check() {
            Ok(definition) => {
                for (at, mask) in masks.iter().enumerate() {
                    let before = definition.ancestors(at);
                    prop_assert_eq!(before & (1 << at), 0);
                    prop_assert_eq!(before & mask, *mask);
                }
            }
            Err(errors) => {
                let [DefinitionError::Cycle { ids, .. }] = &errors[..] else { panic!("{errors:?}") };
                let cycle: Vec<usize> = ids.iter().map(|id| id.parse().unwrap()).collect();
                prop_assert_eq!(cycle.first(), cycle.last());
                prop_assert!(cycle.len() > 1);
                for pair in cycle.windows(2) {
                    prop_assert!(masks[pair[0]] & (1 << pair[1]) != 0);
                }
            }
        }
    }
}
