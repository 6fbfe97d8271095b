//! FANOUT.md, from the results of a run.

use std::fmt::Write as _;

use super::load::FanoutResult;
use super::plan::{FanoutResults, SHAPES, Shape};
use crate::results::median;

/// Cores that other processes may use before the report mentions them.
const OTHERS_CORES_MAX: f64 = 0.1;
/// The goal for an idle connection, bytes.
const IDLE_BYTES_MAX: f64 = 8.0 * 1024.0;
/// The goal for the 99th percentile from publishing to receiving, ms.
const P99_MS_MAX: f64 = 10.0;
/// The goal for what streaming adds, percent of the same work without.
const OVERHEAD_PERCENT_MAX: f64 = 10.0;

pub(super) fn text(results: &FanoutResults) -> String {
    let mut text = String::from("# Fan-out: Weir compared with nginx + nchan\n\n");
    // Writing to a string does not fail.
    let _ = write_parts(results, &mut text);
    text
}

fn write_parts(results: &FanoutResults, text: &mut String) -> std::fmt::Result {
    let machine = &results.machine;
    writeln!(
        text,
        "Written by `cargo xtask bench fanout`; every number and verdict comes from the run that it describes.\n"
    )?;
    writeln!(text, "| | |\n|---|---|")?;
    writeln!(
        text,
        "| machine | {}, {} cores, {:.0} GiB, Linux {} |",
        machine.processor,
        machine.cores,
        machine.memory_bytes as f64 / f64::from(1 << 30),
        machine.system
    )?;
    let shared = if machine.siblings { ", two threads of one core" } else { "" };
    writeln!(text, "| cores | server on {}, load on {}{shared} |", machine.server_core, machine.load_core)?;
    writeln!(text, "| versions | {} |", results.versions.join(", "))?;
    writeln!(
        text,
        "| run | {} rounds in alternating order (ABBA), {:.1} min, events for {:.0} s in each shape |\n",
        results.rounds,
        results.took_s / 60.0,
        results.seconds
    )?;
    // Other processes affect every time.
    if results.others_cores > OTHERS_CORES_MAX {
        writeln!(
            text,
            "**Others took {:.1} of the machine's {} cores meanwhile.** Times are then comparable only with each other; memory\n\
             and counts are not affected.\n",
            results.others_cores, machine.cores
        )?;
    }
    goals(results, text)?;
    idle(results, text)?;
    events(results, text)?;
    overhead(results, text)?;
    method(results, text)
}

fn goals(results: &FanoutResults, text: &mut String) -> std::fmt::Result {
    writeln!(text, "## Goals\n\n| goal | measured | |\n|---|---|---|")?;
    let verdict = |hit: bool| if hit { "hit" } else { "**miss**" };
    let bytes = median_or_nan(values(results, "weir", None, per_connection));
    writeln!(
        text,
        "| an idle subscriber takes at most 8 KiB of the server's memory | {:.1} KiB | {} |",
        bytes / 1024.0,
        verdict(bytes <= IDLE_BYTES_MAX)
    )?;
    for shape in SHAPES {
        let p99 = median_or_nan(values(results, "weir", Some(shape), |fanned| fanned.latency_ms.p99));
        let what = describe(results, shape);
        writeln!(
            text,
            "| {what}: p99 from publishing to receiving < 10 ms | {p99:.2} ms | {} |",
            verdict(p99 < P99_MS_MAX)
        )?;
    }
    let of_weir = || results.cells.iter().filter(|cell| cell.server == "weir").map(|cell| &cell.fanned);
    let (lost, twice): (u64, u64) =
        (of_weir().map(|fanned| fanned.lost).sum(), of_weir().map(|fanned| fanned.duplicates).sum());
    writeln!(
        text,
        "| no event is lost or delivered twice | {lost} lost, {twice} twice | {} |",
        verdict(lost + twice == 0)
    )?;
    let percent = overhead_percent(results);
    writeln!(
        text,
        "| a stream takes at most 10 % longer than the same work in one response | {percent:+.1} % | {} |\n",
        verdict(percent <= OVERHEAD_PERCENT_MAX)
    )
}

fn idle(results: &FanoutResults, text: &mut String) -> std::fmt::Result {
    let Some(subscribers) = results.cells.iter().find(|cell| cell.shape.is_none()).map(|cell| cell.fanned.subscribers)
    else {
        return Ok(());
    };
    writeln!(text, "## Memory of {subscribers} idle subscribers\n")?;
    writeln!(
        text,
        "| server | before, MiB | with them, MiB | KiB each | lost of one event to each | twice |\n|---|---|---|---|---|---|"
    )?;
    for (name, title) in &results.servers {
        let of = |value: fn(&FanoutResult) -> f64| median_or_nan(values(results, name, None, value));
        let sum = |value: fn(&FanoutResult) -> f64| values(results, name, None, value).iter().sum::<f64>();
        writeln!(
            text,
            "| {title} | {:.1} | {:.1} | {:.2} | {} | {} |",
            of(|fanned| fanned.resident_before_bytes as f64 / f64::from(1 << 20)),
            of(|fanned| fanned.resident_open_bytes as f64 / f64::from(1 << 20)),
            of(per_connection) / 1024.0,
            sum(|fanned| fanned.lost as f64),
            sum(|fanned| fanned.duplicates as f64),
        )?;
    }
    writeln!(text)
}

fn events(results: &FanoutResults, text: &mut String) -> std::fmt::Result {
    writeln!(text, "## From publishing to receiving\n")?;
    for shape in SHAPES {
        let Some(fanned) = results.cells.iter().find(|cell| cell.shape == Some(shape)).map(|cell| &cell.fanned) else {
            continue;
        };
        let deliveries = fanned.subscribers as f64 * shape.rate;
        writeln!(text, "{}: {deliveries:.0} deliveries a second.\n", describe(results, shape))?;
        writeln!(
            text,
            "| server | p50, ms | p99, ms | max, ms | lost | twice | closed | refused | server's core | load's core |"
        )?;
        writeln!(text, "|---|---|---|---|---|---|---|---|---|---|")?;
        for (name, title) in &results.servers {
            let of = |value: fn(&FanoutResult) -> f64| median_or_nan(values(results, name, Some(shape), value));
            let sum = |value: fn(&FanoutResult) -> f64| values(results, name, Some(shape), value).iter().sum::<f64>();
            let max =
                values(results, name, Some(shape), |fanned| fanned.latency_ms.max).into_iter().fold(0.0, f64::max);
            writeln!(
                text,
                "| {title} | {:.2} | {:.2} | {max:.1} | {} | {} | {} | {} | {:.0} % | {:.0} % |",
                of(|fanned| fanned.latency_ms.p50),
                of(|fanned| fanned.latency_ms.p99),
                sum(|fanned| fanned.lost as f64),
                sum(|fanned| fanned.duplicates as f64),
                sum(|fanned| fanned.closed as f64),
                sum(|fanned| fanned.refused as f64),
                of(|fanned| fanned.server_cpu * 100.0),
                of(|fanned| fanned.load_cpu * 100.0),
            )?;
        }
        writeln!(text)?;
    }
    Ok(())
}

fn overhead(results: &FanoutResults, text: &mut String) -> std::fmt::Result {
    let Some(first) = results.overhead.first() else { return Ok(()) };
    writeln!(text, "## Overhead of streaming\n")?;
    writeln!(
        text,
        "The same text (500 code points, one chunk; sentiment, entities and summary) to `/process-stream` ({} events) and to\n\
         `/process-batch` (one response), alternating (ABBA) over one connection.\n",
        first.events
    )?;
    writeln!(text, "| | p50, ms | p99, ms | mean, ms | requests |\n|---|---|---|---|---|")?;
    for streams in [true, false] {
        let of = |value: fn(&crate::histogram::Quantiles) -> f64| {
            let values = results.overhead.iter().map(|one| value(if streams { &one.stream_ms } else { &one.batch_ms }));
            values.collect::<Vec<f64>>()
        };
        writeln!(
            text,
            "| {} | {:.2} | {:.2} | {:.2} | {} |",
            if streams { "`/process-stream`" } else { "`/process-batch`" },
            median_or_nan(of(|quantiles| quantiles.p50)),
            median_or_nan(of(|quantiles| quantiles.p99)),
            median_or_nan(of(|quantiles| quantiles.mean)),
            of(|quantiles| quantiles.count as f64).iter().sum::<f64>()
        )?;
    }
    writeln!(text, "\nThe median of a stream is {:+.1} % of the batch's.\n", overhead_percent(results))
}

fn method(results: &FanoutResults, text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "## Method\n\n\
         Each server has one core and the load another. Numbers are medians over the rounds; `max`, lost, twice, closed and refused\n\
         are of all rounds together. Events have about 200 bytes, the same for both servers, and are published over HTTP, four\n\
         connections for each channel. Subscribers, publishers and clock are one thread of one process: a time runs from the publisher's\n\
         write (or from when the event was due, where the server had not yet responded to an earlier one) until the subscriber's socket\n\
         receives it, so it includes the time in which the load's core reads for all subscribers. `twice` counts events received before,\n\
         `lost` those that the server accepted and a subscriber did not receive within 5 s after the last delivery.\n\n\
         Memory is resident memory (`VmRSS`) of all of the server's processes before and after the subscribers connect, divided by their\n\
         number, after 50 others have connected and disconnected; the kernel's memory of a socket is not included. Idle subscribers are spread over 100\n\
         channels, and each gets one event at the end.\n\n\
         ```sh\ncargo xtask bench fanout\n```\n"
    )?;
    for (title, command) in &results.commands {
        writeln!(text, "{title}:\n\n```sh\n{}\n```\n", command.trim_end())?;
    }
    Ok(())
}

/// The median; a goal that has none is missed.
fn median_or_nan(values: Vec<f64>) -> f64 {
    median(values).unwrap_or(f64::NAN)
}

/// A value of each round.
fn values(results: &FanoutResults, server: &str, shape: Option<Shape>, value: fn(&FanoutResult) -> f64) -> Vec<f64> {
    let cells = results.cells.iter().filter(|cell| cell.server == server && cell.shape == shape);
    cells.map(|cell| value(&cell.fanned)).collect()
}

fn per_connection(fanned: &FanoutResult) -> f64 {
    fanned.resident_open_bytes.saturating_sub(fanned.resident_before_bytes) as f64 / fanned.subscribers as f64
}

/// Percent that a stream takes longer than a batch, by their medians.
fn overhead_percent(results: &FanoutResults) -> f64 {
    let percent = results.overhead.iter().map(|one| (one.stream_ms.p50 / one.batch_ms.p50 - 1.0) * 100.0);
    median_or_nan(percent.collect())
}

fn describe(results: &FanoutResults, shape: Shape) -> String {
    let subscribers =
        results.cells.iter().find(|cell| cell.shape == Some(shape)).map_or(0, |cell| cell.fanned.subscribers);
    let channels = match shape.channels {
        1 => "one channel".to_owned(),
        channels => format!("each of {channels} channels"),
    };
    format!("{subscribers} subscribers, {:.0} events a second on {channels}", shape.rate)
}
