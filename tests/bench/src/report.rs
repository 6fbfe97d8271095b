//! RESULTS.md and its plots, from the results of a run.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::corpus::Mix;
use crate::goals::{self, ENGINES, INT8, SAME_WEIGHTS, TRANSFORMERS};
use crate::results::{Cell, Results, Server, median};
use crate::svg::{self, Series};

/// Writes RESULTS.md and the plots into `to`.
pub(crate) fn write(results: &Results, to: &Path) -> Result<()> {
    let results = &results.clone().without_impossible();
    let mut text = String::new();
    heading(results, &mut text)?;
    verdicts(results, &mut text)?;
    servers(results, &mut text)?;
    throughput(results, &mut text)?;
    ratios(results, &mut text)?;
    latency(results, &mut text)?;
    ceilings(results, &mut text)?;
    overload(results, &mut text)?;
    for (file, title, plot) in plots(results) {
        write!(text, "![{title}](plots/{file})\n\n")?;
        let folder = to.join("plots");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(&file), plot).with_context(|| format!("cannot write {file}"))?;
    }
    method(results, &mut text)?;
    std::fs::write(to.join("RESULTS.md"), text).with_context(|| format!("cannot write into {}", to.display()))
}

fn heading(results: &Results, text: &mut String) -> Result<()> {
    let machine = &results.machine;
    writeln!(text, "# Weir beside other servers\n")?;
    writeln!(text, "Written by `cargo xtask bench`; every number and verdict comes from the run that it describes.\n")?;
    if results.quick {
        writeln!(
            text,
            "**This was a quick run (`--quick`): few rounds, short windows, some servers. It proves little.**\n"
        )?;
    }
    writeln!(text, "| | |\n|---|---|")?;
    let memory = machine.memory_bytes as f64 / f64::from(1 << 30);
    writeln!(
        text,
        "| machine | {}, {} cores, {memory:.0} GiB, Linux {} |",
        machine.processor, machine.cores, machine.system
    )?;
    let shared = if machine.siblings { ", two threads of one core" } else { "" };
    writeln!(text, "| cores | server on {}, load on {}{shared} |", machine.server_core, machine.load_core)?;
    let versions: Vec<String> = machine.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    writeln!(text, "| versions | {} |", versions.join(", "))?;
    let plan = &results.plan;
    writeln!(
        text,
        "| run | {} rounds in alternating order, {:.1} min, seed {}, windows of {:.1} to {:.1} s |",
        plan.rounds,
        results.took_s / 60.0,
        results.seed,
        plan.scaled(plan.closed_s),
        plan.open_s
    )?;
    for corpus in &results.corpora {
        writeln!(
            text,
            "| texts, {} | {} texts, {:.1} tokens on average, median {}, at most {} |",
            corpus.mix.name(),
            corpus.texts,
            corpus.mean_tokens,
            corpus.p50_tokens,
            corpus.max_tokens
        )?;
    }
    writeln!(text)?;
    Ok(())
}

fn verdicts(results: &Results, text: &mut String) -> Result<()> {
    writeln!(text, "## Goals\n\n| goal | measured | |\n|---|---|---|")?;
    for verdict in goals::verdicts(results) {
        let hit = match verdict.hit {
            Some(true) => "hit",
            Some(false) => "**miss**",
            None => "-",
        };
        writeln!(text, "| {} | {} | {hit} |", verdict.goal, verdict.measured)?;
    }
    writeln!(text)?;
    Ok(())
}

fn servers(results: &Results, text: &mut String) -> Result<()> {
    writeln!(
        text,
        "## Servers\n\nThe scores of 64 texts, compared before the measurements: of single requests with the first server's, and"
    )?;
    writeln!(
        text,
        "with the server's own when all 64 are requested at once. Every server has one thread for the model.\n"
    )?;
    writeln!(
        text,
        "| server | start, s | difference from the first | difference in a batch | |\n|---|---|---|---|---|"
    )?;
    for server in &results.servers {
        let Server { title, skipped, start_s, difference, together, .. } = server;
        match skipped {
            Some(why) => writeln!(text, "| {title} | | | | skipped: {why} |")?,
            None => writeln!(text, "| {title} | {start_s:.1} | {difference:.1e} | {together:.1e} | |")?,
        }
    }
    writeln!(text)?;
    Ok(())
}

fn throughput(results: &Results, text: &mut String) -> Result<()> {
    writeln!(
        text,
        "## Throughput\n\nThousands of real tokens a second (texts a second), medians over the rounds. `open` is the highest Poisson rate at"
    )?;
    writeln!(
        text,
        "which 99 % of all requests were answered within 100 ms; `stream` is one NDJSON request of {} items (in later rounds a quarter of that), for servers",
        results.plan.stream_items
    )?;
    writeln!(text, "without streams 64 requests at a time.\n")?;
    for mix in &results.plan.mixes {
        let shapes: Vec<String> = shapes_of(results, *mix);
        writeln!(text, "| {} | {} |\n|---|{}", mix.name(), shapes.join(" | "), "---|".repeat(shapes.len()))?;
        for server in results.ran() {
            let cell = |shape: &String| {
                let of = |value: fn(&Cell) -> f64| median(results.cells(&server.name, *mix, shape).map(value));
                match (of(|cell| cell.value), of(|cell| cell.measured.texts_per_s)) {
                    (Some(0.0), _) => "none".to_owned(),
                    (Some(tokens), Some(texts)) => format!("{:.1} ({texts:.0})", tokens / 1e3),
                    _ => "-".to_owned(),
                }
            };
            let row: Vec<String> = shapes.iter().map(cell).collect();
            writeln!(text, "| {} | {} |", server.title, row.join(" | "))?;
        }
        writeln!(text)?;
    }
    Ok(())
}

fn shapes_of(results: &Results, mix: Mix) -> Vec<String> {
    results.shapes().into_iter().filter(|shape| shape != "stream" || mix == Mix::Mixed).collect()
}

fn ratios(results: &Results, text: &mut String) -> Result<()> {
    writeln!(text, "## Ratios\n\nMedians of the ratios within each round (least to most), by real tokens a second.\n")?;
    for ours in results.ran().filter(|server| server.name.starts_with("weir-")) {
        for mix in &results.plan.mixes {
            let shapes = shapes_of(results, *mix);
            writeln!(text, "| {} to, {} | {} |", ours.title, mix.name(), shapes.join(" | "))?;
            writeln!(text, "|---|{}", "---|".repeat(shapes.len()))?;
            let peers = SAME_WEIGHTS.iter().chain([&INT8, &TRANSFORMERS]);
            for theirs in peers.filter_map(|peer| results.ran().find(|server| server.name == *peer)) {
                let cell = |shape: &String| {
                    let ratios = results.ratios(&ours.name, &theirs.name, *mix, shape);
                    let (least, most) =
                        ratios.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), v| (a.min(*v), b.max(*v)));
                    median(ratios).map_or("-".to_owned(), |middle| format!("**{middle:.2}** ({least:.2} to {most:.2})"))
                };
                let row: Vec<String> = shapes.iter().map(cell).collect();
                writeln!(text, "| {} | {} |", theirs.title, row.join(" | "))?;
            }
            writeln!(text)?;
        }
    }
    Ok(())
}

fn latency(results: &Results, text: &mut String) -> Result<()> {
    writeln!(
        text,
        "## Latency of one connection\n\nMedian and 99th percentile, ms; what Weir adds to a bare call of its engine with the same text, ms; resident"
    )?;
    writeln!(
        text,
        "memory, MiB, and processor time of the server for each text, ms, on mixed lengths at 64 connections.\n"
    )?;
    let mixes = &results.plan.mixes;
    let names: Vec<&str> = mixes.iter().map(|mix| mix.name()).collect();
    let added: Vec<String> = names.iter().map(|name| format!("added, {name}")).collect();
    writeln!(text, "| server | {} | {} | memory | processor |", names.join(" | "), added.join(" | "))?;
    writeln!(text, "|---|{}", "---|".repeat(2 * mixes.len() + 2))?;
    for server in results.ran() {
        let of = |mix: Mix, shape: &'static str, value: fn(&Cell) -> f64| {
            median(results.cells(&server.name, mix, shape).map(value))
        };
        let mut row = Vec::new();
        for mix in mixes {
            let p50 = of(*mix, "closed-1", |cell| cell.measured.latency_ms.p50);
            let p99 = of(*mix, "closed-1", |cell| cell.measured.latency_ms.p99);
            row.push(p50.zip(p99).map_or("-".to_owned(), |(p50, p99)| format!("{p50:.2}, {p99:.2}")));
        }
        for mix in mixes {
            let engine = server.name.strip_prefix("weir-");
            let added = engine.and_then(|engine| goals::added_ms(results, engine, *mix));
            row.push(added.map_or("-".to_owned(), |ms| format!("{ms:.2}")));
        }
        let memory =
            of(Mix::Mixed, "closed-64", |cell| cell.measured.server.resident_max_bytes as f64 / f64::from(1 << 20));
        row.push(memory.map_or("-".to_owned(), |mib| format!("{mib:.0}")));
        let each = of(Mix::Mixed, "closed-64", |cell| {
            cell.measured.server.cpu_s * 1e3 / (cell.measured.texts_per_s * cell.measured.window_s).max(1.0)
        });
        row.push(each.map_or("-".to_owned(), |ms| format!("{ms:.2}")));
        writeln!(text, "| {} | {} |", server.title, row.join(" | "))?;
    }
    writeln!(text)?;
    Ok(())
}

fn ceilings(results: &Results, text: &mut String) -> Result<()> {
    writeln!(
        text,
        "## Ceiling\n\nThe engine alone in a loop on the server's core, with prepared inputs, in the best shape.\n"
    )?;
    writeln!(
        text,
        "| engine | mix | shape | us for a real token | tokens/s | Weir's goodput relative to it |\n|---|---|---|---|---|---|"
    )?;
    for engine in ENGINES {
        for mix in &results.plan.mixes {
            let ceilings = || results.ceilings.iter().filter(|one| one.engine == engine && one.mix == *mix);
            let Some(tokens_per_s) = median(ceilings().map(|one| one.tokens_per_s)) else { continue };
            let shape = ceilings().next().map_or("", |one| one.shape.as_str());
            let share = goals::ceiling_share(results, engine, *mix);
            let share = share.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0));
            let us = 1e6 / tokens_per_s;
            writeln!(text, "| {engine} | {} | {shape} | {us:.1} | {tokens_per_s:.0} | {share} |", mix.name())?;
        }
    }
    writeln!(text)?;
    Ok(())
}

fn overload(results: &Results, text: &mut String) -> Result<()> {
    writeln!(
        text,
        "## Overload\n\nPoisson arrivals at multiples of the round's `open` rate on mixed lengths; medians over the rounds. Lag is the delay of the"
    )?;
    writeln!(text, "generator itself against its schedule; latencies of rejections include it.\n")?;
    writeln!(
        text,
        "| server | times | due/s | goodput/s | of its peak | rejected | rejection p50, p99, ms | responses p99, ms | lost | memory first, most, MiB | lag p99, ms |"
    )?;
    writeln!(text, "|---|{}", "---|".repeat(10))?;
    for server in results.ran().filter(|server| server.name.starts_with("weir-")) {
        for times in &results.plan.overload_times {
            let shape = format!("overload-{times}");
            let cells: Vec<&Cell> = results.cells(&server.name, Mix::Mixed, &shape).collect();
            if cells.is_empty() {
                continue;
            }
            let of = |value: fn(&Cell) -> f64| median(cells.iter().map(|cell| value(cell))).unwrap_or(0.0);
            let peak = median(results.cells(&server.name, Mix::Mixed, "open").map(|cell| cell.measured.good_per_s));
            let good = of(|cell| cell.measured.good_per_s);
            let lost: u64 = cells.iter().map(|cell| cell.measured.failed + cell.measured.unanswered).sum();
            let mib = |bytes: f64| bytes / f64::from(1 << 20);
            writeln!(
                text,
                "| {} | {times} | {:.0} | {good:.0} | {:.1} % | {:.1} % | {:.2}, {:.2} | {:.0} | {lost} | {:.0}, {:.0} | {:.2} |",
                server.title,
                of(|cell| cell.measured.requests as f64 / cell.measured.window_s),
                100.0 * good / peak.unwrap_or(f64::INFINITY).max(1e-9),
                of(|cell| 100.0 * cell.measured.rejected as f64 / cell.measured.requests.max(1) as f64),
                of(|cell| cell.measured.rejection_ms.p50),
                of(|cell| cell.measured.rejection_ms.p99),
                of(|cell| cell.measured.latency_ms.p99),
                mib(of(|cell| cell.measured.server.resident_first_bytes as f64)),
                mib(of(|cell| cell.measured.server.resident_max_bytes as f64)),
                of(|cell| cell.measured.lag_ms.p99),
            )?;
        }
    }
    writeln!(text)?;
    Ok(())
}

fn plots(results: &Results) -> Vec<(String, String, String)> {
    let mut plots = Vec::new();
    for mix in &results.plan.mixes {
        let shapes = shapes_of(results, *mix);
        let bars = |server: &Server| {
            let value = |shape: &String| median(results.cells(&server.name, *mix, shape).map(|cell| cell.value / 1e3));
            let points = shapes.iter().enumerate().filter_map(|(ix, shape)| Some((ix as f64, value(shape)?)));
            Series { name: server.title.clone(), points: points.collect() }
        };
        let series: Vec<Series> = results.ran().map(bars).collect();
        let title = format!("Throughput, {} texts", mix.name());
        let plot = svg::bars(&title, "thousand real tokens a second", &shapes, &series);
        plots.push((format!("throughput-{}.svg", mix.name()), title, plot));
        let curve = |server: &Server, value: fn(&crate::results::Step) -> f64| {
            let searches = results.searches.iter().filter(|search| search.server == server.name && search.mix == *mix);
            let points = searches.flat_map(|search| search.steps.iter().map(|step| (step.rate, value(step)))).collect();
            Series { name: server.title.clone(), points }
        };
        let title = format!("99th percentile over the rate, {} texts", mix.name());
        let series: Vec<Series> = results.ran().map(|server| curve(server, |step| step.p99_ms)).collect();
        let plot = svg::lines(&title, "requests due each second", "ms", true, &series);
        plots.push((format!("latency-{}.svg", mix.name()), title, plot));
    }
    let goodput = |server: &Server| {
        let searches = results.searches.iter().filter(|one| one.server == server.name && one.mix == Mix::Mixed);
        let steps = searches.flat_map(|search| search.steps.iter().map(|step| (step.rate, step.good_per_s)));
        let overloads =
            results.cells.iter().filter(|cell| cell.server == server.name && cell.shape.starts_with("overload"));
        let overloads = overloads.map(|cell| (cell.measured.load, cell.measured.good_per_s));
        Series { name: server.title.clone(), points: steps.chain(overloads).collect() }
    };
    let title = "Goodput (answers within 100 ms) over the rate, mixed texts".to_owned();
    let series: Vec<Series> = results.ran().map(goodput).collect();
    let plot = svg::lines(&title, "requests due each second", "good answers a second", false, &series);
    plots.push(("goodput-mixed.svg".to_owned(), title, plot));
    plots
}

fn method(results: &Results, text: &mut String) -> Result<()> {
    writeln!(text, "## Method\n")?;
    writeln!(
        text,
        "Servers run one at a time on one core, the load on another. In each round every server is started, warmed and measured; the\n\
         order alternates with every round (A B, B A), so that slow drift affects all alike. Closed loops count from the last response\n\
         before the window to the last one in it, by real tokens. Open loops measure from the due time of a request; requests to Weir have\n\
         a timeout of 100 ms (`timeout_ms`), which the peers do not support. All peers have the same\n\
         weights in f32 (matrices stored as int8 are converted when they load), or in int8 by dynamic quantization where the name has it, cut\n\
         at 128 tokens, and batch up to 32 texts.\n"
    )?;
    if !results.notes.is_empty() {
        writeln!(text, "Problems during the run:\n")?;
        for note in &results.notes {
            writeln!(text, "- {}", note.replace('\n', " "))?;
        }
        writeln!(text)?;
    }
    writeln!(text, "Commands:\n\n```text")?;
    for command in &results.commands {
        writeln!(text, "{command}")?;
    }
    writeln!(text, "```")?;
    Ok(())
}
