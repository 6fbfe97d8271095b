//! The goals and the measured values. Every verdict is computed from the results.

use crate::corpus::Mix;
use crate::results::{Cell, Results, median};

/// A goal and its result.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) goal: String,
    /// The measured value, and the case in which it is worst.
    pub(crate) measured: String,
    /// None: it could not be measured.
    pub(crate) hit: Option<bool>,
}

pub(crate) const TRANSFORMERS: &str = "fastapi-transformers";
pub(crate) const INT8: &str = "fastapi-onnxruntime-int8";
/// The engines of Weir: the precisions of the built-in one, and the others.
pub(crate) const ENGINES: [&str; 5] = ["f32", "bf16", "int8", "onnxruntime", "tract"];
pub(crate) const SAME_WEIGHTS: [&str; 3] = ["fastapi-onnxruntime", "mosec", "pytriton"];
/// The most that memory may grow within an overload, as a share.
const FLAT: f64 = 1.1;

pub(crate) fn verdicts(results: &Results) -> Vec<Verdict> {
    let mut all = Vec::new();
    let everywhere = || cells(results).collect::<Vec<_>>();
    let mixed = || everywhere().into_iter().filter(|(mix, _)| *mix == Mix::Mixed).collect::<Vec<_>>();
    for (goal, server, peers, cells, wanted) in [
        (
            "int8, the default: at least 3 times the best peer in f32, every load and mix",
            "weir-int8",
            SAME_WEIGHTS.as_slice(),
            everywhere(),
            3.0,
        ),
        ("int8: at least 1.4 times the best peer in int8, every load and mix", "weir-int8", &[INT8], everywhere(), 1.4),
        ("int8: at least 2 times the best peer in int8 on mixed lengths", "weir-int8", &[INT8], mixed(), 2.0),
        (
            "int8: at least 5 times FastAPI + transformers, every load and mix",
            "weir-int8",
            &[TRANSFORMERS],
            everywhere(),
            5.0,
        ),
        (
            "f32: at least 1.1 times the best peer in f32, every load and mix",
            "weir-f32",
            &SAME_WEIGHTS,
            everywhere(),
            1.1,
        ),
    ] {
        all.push(against(results, goal, server, peers, cells, wanted));
    }
    let ours: Vec<&str> = ENGINES
        .into_iter()
        .filter(|engine| results.ran().any(|server| server.name == format!("weir-{engine}")))
        .collect();
    for engine in &ours {
        let goal = format!("{engine}: goodput at p99 <= 100 ms is at least 90 % of the ceiling, every mix");
        let shares = results.plan.mixes.iter().map(|mix| (mix.name().to_owned(), ceiling_share(results, engine, *mix)));
        all.push(worst(goal, shares.collect(), 0.9, |value| format!("{:.1} %", value * 100.0)));
        let goal = format!("{engine}: at concurrency 1 at most 0.12 ms (median) over the bare engine call");
        let added = results.plan.mixes.iter().map(|mix| (mix.name().to_owned(), added_ms(results, engine, *mix)));
        all.push(worst_high(goal, added.collect(), 0.12, |value| format!("{value:.2} ms")));
    }
    for engine in &ours {
        overload(results, &format!("weir-{engine}"), &mut all);
    }
    all
}

fn engine_of(server: &str) -> &str {
    server.strip_prefix("weir-").unwrap_or(server)
}

/// Every mix and load that was measured for all servers.
fn cells(results: &Results) -> impl Iterator<Item = (Mix, String)> {
    let shapes = results.shapes();
    results
        .plan
        .mixes
        .iter()
        .flat_map(move |mix| shapes.clone().into_iter().map(move |shape| (*mix, shape)))
        // Streams are measured on mixed lengths.
        .filter(|(mix, shape)| shape != "stream" || *mix == Mix::Mixed)
}

/// The share of the ceiling, by round; the median.
pub(crate) fn ceiling_share(results: &Results, engine: &str, mix: Mix) -> Option<f64> {
    let server = format!("weir-{engine}");
    let share = |cell: &Cell| Some(cell.value / ceiling(results, engine, mix, cell.round)?);
    median(results.cells(&server, mix, "open").filter_map(share).collect::<Vec<_>>())
}

/// Tokens per second of the bare engine in a round, or for all rounds.
pub(crate) fn ceiling(results: &Results, engine: &str, mix: Mix, round: usize) -> Option<f64> {
    let of = |wanted: usize| {
        let mut found = results.ceilings.iter().filter(|one| one.engine == engine && one.mix == mix);
        found.find(|one| one.round == wanted).map(|one| one.tokens_per_s)
    };
    of(round).or_else(|| of(0))
}

/// What the server adds to a bare call with the same text, one connection: the median over texts, then over rounds.
pub(crate) fn added_ms(results: &Results, engine: &str, mix: Mix) -> Option<f64> {
    let server = format!("weir-{engine}");
    let of_round = |cell: &Cell| {
        let mut bare = results.ceilings.iter().filter(|one| one.engine == engine && one.mix == mix);
        let bare = bare.find(|one| one.round == cell.round || one.round == 0)?;
        let over = |(text, us): &(u32, f64)| Some((us - bare.calls_us.get(*text as usize)?) / 1e3);
        median(cell.measured.samples.iter().filter_map(over).collect::<Vec<_>>())
    };
    median(results.cells(&server, mix, "closed-1").filter_map(of_round).collect::<Vec<_>>())
}

/// A server against the best of some others in every cell: the median of the paired ratios, the least over peers and cells.
fn against(
    results: &Results,
    goal: &str,
    ours: &str,
    theirs: &[&str],
    cells: Vec<(Mix, String)>,
    wanted: f64,
) -> Verdict {
    let ran = |name: &str| results.ran().any(|server| server.name == name);
    let mut found = Vec::new();
    if ran(ours) {
        for (mix, shape) in cells {
            for peer in theirs.iter().filter(|peer| ran(peer)) {
                let value = median(results.ratios(ours, peer, mix, &shape));
                found.push((format!("{}, {shape}, {peer}", mix.name()), value));
            }
        }
    }
    worst(goal.to_owned(), found, wanted, |value| format!("{value:.2} times"))
}

fn overload(results: &Results, server: &str, all: &mut Vec<Verdict>) {
    let engine = engine_of(server);
    // The highest planned overload, a factor of 10.
    let times = results.plan.overload_times.iter().copied().fold(0.0, f64::max);
    let shape = format!("overload-{times}");
    let cells: Vec<&Cell> = results.cells(server, Mix::Mixed, &shape).collect();
    let share = |cell: &&Cell| {
        let peak = results.cells(server, Mix::Mixed, "open").find(|open| open.round == cell.round)?;
        Some(cell.measured.good_per_s / peak.measured.good_per_s.max(1e-9))
    };
    let at = format!("{engine}, {times} times overload");
    let percent = |value: f64| format!("{:.1} %", value * 100.0);
    let one = |value: Option<f64>| vec![(String::new(), value)];
    let goodput = median(cells.iter().filter_map(share).collect::<Vec<_>>());
    all.push(worst(format!("{at}: goodput is at least 95 % of its peak"), one(goodput), 0.95, percent));
    let rejecting = cells.iter().filter(|cell| cell.measured.rejected > 0);
    let rejections = median(rejecting.map(|cell| cell.measured.rejection_ms.p99).collect::<Vec<_>>());
    let ms = |value: f64| format!("{value:.2} ms");
    all.push(worst_high(format!("{at}: rejections within 5 ms at p99"), one(rejections), 5.0, ms));
    let growth = |cell: &&Cell| {
        let memory = cell.measured.server;
        (memory.resident_first_bytes > 0).then(|| memory.resident_max_bytes as f64 / memory.resident_first_bytes as f64)
    };
    let growth = cells.iter().filter_map(growth).reduce(f64::max);
    let grown = |value: f64| format!("{:+.1} %", (value - 1.0) * 100.0);
    all.push(worst_high(format!("{at}: memory is flat (at most +10 % in any round)"), one(growth), FLAT, grown));
    let lost: u64 = cells.iter().map(|cell| cell.measured.failed + cell.measured.unanswered).sum();
    let measured = !cells.is_empty();
    let why = cells.iter().find_map(|cell| cell.measured.first_failure.clone()).unwrap_or_default();
    all.push(Verdict {
        goal: format!("{at}: nothing is lost"),
        measured: if measured {
            format!("{lost} requests without an answer {why}").trim().to_owned()
        } else {
            "not measured".to_owned()
        },
        hit: measured.then_some(lost == 0),
    });
    let panics: usize = results.ran().filter(|one| one.name == server).map(|one| one.panics.len()).sum();
    all.push(Verdict {
        goal: format!("{engine}: no panic in the whole run"),
        measured: if measured { format!("{panics} in its log") } else { "not measured".to_owned() },
        hit: measured.then_some(panics == 0),
    });
}

/// The least of several values must reach `wanted`.
fn worst(goal: String, values: Vec<(String, Option<f64>)>, wanted: f64, shown: impl Fn(f64) -> String) -> Verdict {
    verdict(goal, values, shown, |a, b| a < b, |value| value >= wanted)
}

/// The greatest of several values must not exceed `wanted`.
fn worst_high(goal: String, values: Vec<(String, Option<f64>)>, wanted: f64, shown: impl Fn(f64) -> String) -> Verdict {
    verdict(goal, values, shown, |a, b| a > b, |value| value <= wanted)
}

fn verdict(
    goal: String,
    values: Vec<(String, Option<f64>)>,
    shown: impl Fn(f64) -> String,
    worse: impl Fn(f64, f64) -> bool,
    reached: impl Fn(f64) -> bool,
) -> Verdict {
    let all = values.len();
    let known: Vec<(String, f64)> = values.into_iter().filter_map(|(at, value)| Some((at, value?))).collect();
    let count = known.len();
    let missed = known.iter().filter(|(_, value)| !reached(*value)).count();
    let Some((at, value)) = known.into_iter().reduce(|a, b| if worse(b.1, a.1) { b } else { a }) else {
        return Verdict { goal, measured: "not measured".to_owned(), hit: None };
    };
    let mut measured = shown(value);
    if !at.is_empty() {
        measured = format!("{measured} at worst ({at}); {} of {count} reach it", count - missed);
        if count < all {
            measured.push_str(&format!(", {} not measured", all - count));
        }
    }
    Verdict { goal, measured, hit: Some(missed == 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_goal_fails_and_unmeasured_goal_is_unknown() {
        let values = |list: &[f64]| list.iter().map(|value| (format!("at {value}"), Some(*value))).collect::<Vec<_>>();
        let shown = |value: f64| format!("{value}");
        let miss = worst("g".to_owned(), values(&[1.5, 1.2, 2.0]), 1.4, shown);
        assert_eq!((miss.measured.as_str(), miss.hit), ("1.2 at worst (at 1.2); 2 of 3 reach it", Some(false)));
        assert_eq!(worst("g".to_owned(), values(&[1.5]), 1.4, shown).hit, Some(true));
        assert_eq!(worst_high("g".to_owned(), values(&[0.2, 0.4]), 0.3, shown).hit, Some(false));
        assert_eq!(worst("g".to_owned(), vec![(String::new(), None)], 1.0, shown).hit, None);
    }
}
