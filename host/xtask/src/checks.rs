//! `cargo xtask test`: all checks of CI in one run, with a table of results.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::args::Args;
use crate::house::{COMPONENTS, GUESTS, House, LIGHT_PACKAGES, NN, PLUGS, PORTABLE_PARTS, SEPARATE_PACKAGES};
use crate::ui::{Step, seconds};
use crate::{
    browser, build, debian, deploy, dist, hosts, kafka, kafka_tls, lm, nats, nginx, node, portable, pushpin, python,
    redis, setup, sh, typescript, web, wheels, wit,
};

pub(crate) const USAGE: &str = "\
Builds everything, then: formatting, lints, documentation, vendored WIT, tests of every crate (end-to-end included), and
`cargo deny` if it is installed. Tests run under cargo-nextest if it is installed, else under `cargo test`. A failed check
does not stop the others.

Options:
  --no-nextest   run the tests under `cargo test`

Environment:
  WEIR_DATA   a folder with held-out data, on which the scores of the bundled models are tested";

/// The test that scores the shipped models on held-out data.
const SCORES: &str = "shipped_models_reach_their_goals";

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let nextest = !args.flag("--no-nextest") && has_subcommand(house, "nextest");
    args.finish()?;

    let mut report = Report::default();
    let built = report.whole("build", || {
        setup::ensure(house)?;
        build::components(house, &[GUESTS, PORTABLE_PARTS])?;
        portable::compose(house)?;
        portable::store_models(house, &[portable::MODEL_INSIDE.to_owned()])?;
        build::weir(house)?;
        python::ensure(house)
    });
    let Some(python) = built else { return report.end() };

    report.check("format", "rustfmt", sh::cargo(house).args(["fmt", "--all", "--check", "--", "--color=never"]));
    lints(house, &mut report);
    documentation(house, &mut report);
    report.whole("wit", || wit::check(house));
    for reason in report.whole("deploy", || deploy::check(house, false, None)).unwrap_or_default() {
        report.skipped("deploy", &reason);
    }
    report.whole("dist", || dist::check(house));

    let data = std::env::var_os("WEIR_DATA").map(|data| {
        // Tests run in the folder of their package, so a relative path would differ for each.
        std::path::absolute(&data).unwrap_or_else(|_| data.into())
    });
    let redis = report.whole("redis", || redis::server(house));
    let pushpin = report.whole("pushpin", || pushpin::folder(house));
    let nginx = report.whole("nginx", || nginx::folder(house));
    let node_packages = node::is_available().then(|| report.whole("npm", || node::ensure(house))).flatten();
    let browser = browser::is_available().then(|| report.whole("browser", || browser::browser(house))).flatten();
    let hosts = node::is_available().then(|| report.whole("hosts", || hosts::programs(house))).flatten();
    let model = lm::model(house);
    // Its wheel is for x86-64 with glibc 2.35 or later.
    let llama_server = lm::server(house);
    // The wheels of these two are for x86-64 and aarch64.
    let nats_server = nats::server(house);
    let kafka_broker = kafka::broker(house);
    if node_packages.is_some() {
        let program = house.weir();
        report.whole("typescript", || typescript::test(house, &program, browser.as_deref()));
        if let Some(browser) = &browser {
            report.whole("web", || web::test(house, &program, browser));
        }
    }
    report.whole("python", || wheels::test(house, &house.weir()));
    let mut test = |name: &str, what: &str, command: &mut Command| {
        command.env("WEIR_COMPONENTS_DIR", house.components());
        command.env("WEIR_TEST_PYTHON", &python.python).env("WEIR_TEST_WASMTIME", &python.wasmtime);
        if let Some(hosts) = &hosts {
            hosts.set(command);
        }
        if let Some(redis) = &redis {
            command.env(redis::VARIABLE, redis);
        }
        if let Some(pushpin) = &pushpin {
            command.env(pushpin::VARIABLE, pushpin);
        }
        if let Some(nginx) = &nginx {
            command.env(nginx::VARIABLE, nginx);
        }
        if let Ok(model) = &model {
            command.env(lm::VARIABLE, model);
        }
        if let Ok(folder) = &llama_server {
            command.env(lm::SERVER_VARIABLE, folder);
        }
        if let Ok(program) = &nats_server {
            command.env(nats::VARIABLE, program);
        }
        if let Ok(program) = &kafka_broker {
            command.env(kafka::VARIABLE, program);
        }
        if let Some(node_packages) = &node_packages {
            command.env(node::VARIABLE, node_packages);
        }
        if let Some(browser) = &browser {
            command.env(browser::VARIABLE, browser);
        }
        if let Some(data) = &data {
            command.env("WEIR_DATA", data);
        }
        report.check(name, what, command);
    };
    // Tests and examples are run separately: nextest runs no examples, and to run those of the gateway, cargo would link it for
    // this machine, which cannot resolve a component's imports.
    // One more than the processors, since those of adapters mostly wait (`.config/nextest.toml`).
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get() + 1).to_string();
    let (runner, run): (_, &[&str]) = if nextest {
        (
            "nextest run",
            &[
                "--no-fail-fast",
                "--no-tests=pass",
                "--status-level",
                "slow",
                "--final-status-level",
                "flaky",
                "--test-threads",
                &threads,
            ],
        )
    } else {
        ("test --lib --bins --tests", &["--no-fail-fast"])
    };
    test("tests", "core, codec, events, components, bench and xtask", light_cargo(house, runner).args(run));
    for package in SEPARATE_PACKAGES {
        let mut command = sh::cargo(house);
        command.args(runner.split(' ')).args(["-p", package]).args(run);
        test(package, "a component of a build of its own", &mut command);
    }
    let mut host = build::host_cargo(house, runner);
    host.args(run);
    // A test fails without its program or data. Where they cannot be had, it is left out, and a row of the table says so.
    let mut skipped: Vec<&str> = if data.is_none() { vec![SCORES] } else { Vec::new() };
    skipped.extend(hosts::CONFORMANCE);
    skipped.push(kafka_tls::TESTS);
    if hosts.is_none() {
        skipped.extend(hosts::TESTS);
    }
    if node_packages.is_none() {
        skipped.extend(node::TESTS);
    }
    if browser.is_none() {
        skipped.push(browser::TEST);
    }
    if model.is_err() {
        skipped.push(lm::TESTS);
    }
    if model.is_err() || llama_server.is_err() {
        skipped.push(lm::SERVER_TESTS);
    }
    if nats_server.is_err() {
        skipped.extend(nats::TESTS);
    }
    if kafka_broker.is_err() {
        skipped.push(kafka::TEST);
    }
    if nextest && !skipped.is_empty() {
        let tests: Vec<String> = skipped.iter().map(|test| format!("not test({test})")).collect();
        host.args(["-E", &tests.join(" and ")]);
    } else if !skipped.is_empty() {
        host.arg("--").args(skipped.iter().flat_map(|test| ["--skip", test]));
    }
    test("host tests", "host crates and end-to-end", &mut host);
    let mut examples = sh::cargo(house);
    test(
        "examples",
        "those in the documentation",
        examples.args(["test", "--doc", "-p", "weir-core", "-p", "weir-codec", "-p", "weir-events"]),
    );
    test("host examples", "those in the documentation", &mut build::host_cargo(house, "test --doc"));
    if data.is_none() {
        report.skipped("scores", "WEIR_DATA is not set");
    }
    if let Err(error) = &model {
        report.skipped("model", &format!("there is no language model: {error:#}"));
    }
    if let Err(error) = &llama_server {
        report.skipped("llama-server", &format!("{error:#}"));
    }
    if let Err(error) = &nats_server {
        report.skipped("nats-server", &format!("{error:#}"));
    }
    if let Err(error) = &kafka_broker {
        report.skipped("kafka broker", &format!("{error:#}"));
    }
    if node_packages.is_none() {
        report.skipped(
            "npm clients",
            "Node.js and npm are not here, or their packages were not fetched; `js` blocks of documents are not run",
        );
    }
    report
        .skipped("other hosts", "`cargo xtask hosts` runs the conformance cases under wash, Node.js and a given Spin");
    report.skipped("kafka with TLS", "`cargo xtask kafka-tls` builds OpenSSL and runs the tests");
    if hosts.is_none() {
        report.skipped("host tools", "npm is not here, or wash, Node.js 24 and jco were not fetched");
    }
    if browser.is_none() {
        report.skipped("browser", "there is no Chromium here, and no apt to fetch one with");
    }
    if has_subcommand(house, "deny") {
        report.check(
            "deny",
            "licences, advisories and bans",
            sh::cargo(house).args(["deny", "--color=never", "check"]),
        );
    } else {
        report.skipped("deny", "cargo-deny is not installed");
    }
    report.end()
}

fn lints(house: &House, report: &mut Report) {
    const STRICT: [&str; 3] = ["--", "-D", "warnings"];
    report.check("lint", "clippy", all_cargo(house, "clippy").arg("--all-targets").args(STRICT));
    for package in SEPARATE_PACKAGES {
        let mut command = sh::cargo(house);
        command.args(["clippy", "--release", "-p", package, "--all-targets"]).args(STRICT);
        report.check(&format!("{package} lint"), "clippy", &mut command);
    }
    if debian::selected_compiler(house).is_some() {
        report.skipped("wasm lint", "Debian's compiler has no clippy");
        return;
    }
    let mut wasm = build::component_cargo(house, "clippy");
    let parts = PORTABLE_PARTS.iter().chain([&NN]);
    for component in COMPONENTS.iter().chain(PLUGS.iter().map(|(plug, _)| plug)).chain(GUESTS).chain(parts) {
        wasm.args(["-p", component.package]);
    }
    report.check("wasm lint", "clippy for the components and guests", wasm.args(STRICT));
}

fn documentation(house: &House, report: &mut Report) {
    let mut command = all_cargo(house, "doc");
    report.check("docs", "rustdoc", command.arg("--no-deps").env("RUSTDOCFLAGS", "-D warnings"));
}

/// `cargo COMMAND` for the host's and the light packages, in the release profile: each dependency is checked once, and the proc macros and
/// build scripts are those of the build.
fn all_cargo(house: &House, subcommand: &str) -> Command {
    let mut command = build::host_cargo(house, subcommand);
    for package in LIGHT_PACKAGES {
        command.args(["-p", package]);
    }
    command
}

fn light_cargo(house: &House, subcommand: &str) -> Command {
    let mut command = sh::cargo(house);
    command.args(subcommand.split(' '));
    for package in LIGHT_PACKAGES {
        command.args(["-p", package]);
    }
    command
}

fn has_subcommand(house: &House, name: &str) -> bool {
    let mut command = sh::cargo(house);
    command.args([name, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

enum CheckResult {
    Passed(String),
    Failed(String),
    Skipped(String),
}

/// The checks, with their times and results.
#[derive(Default)]
struct Report {
    rows: Vec<(String, Duration, CheckResult)>,
    /// Tests that failed and passed when they were run again.
    flaky: Vec<String>,
}

impl Report {
    /// Runs a check that is one program.
    fn check(&mut self, name: &str, what: &str, command: &mut Command) {
        let mut step = Step::begin(name, what);
        let (elapsed, outcome) = match sh::run(&mut step, command) {
            Ok(output) if output.success => {
                let summary = tests_run(output.lines.iter().map(String::as_str)).unwrap_or_default();
                self.flaky.extend(flaky_tests(output.lines.iter().map(String::as_str)));
                (step.done(&summary), CheckResult::Passed(summary))
            }
            Ok(output) => (step.failed(""), CheckResult::Failed(output.tail())),
            Err(error) => (step.failed(""), CheckResult::Failed(format!("{error:#}"))),
        };
        self.rows.push((name.to_owned(), elapsed, outcome));
    }

    /// Runs work that shows its own steps, as one row.
    fn whole<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        let started = Instant::now();
        let (outcome, value) = match work() {
            Ok(value) => (CheckResult::Passed(String::new()), Some(value)),
            Err(error) => (CheckResult::Failed(format!("{error:#}")), None),
        };
        self.rows.push((name.to_owned(), started.elapsed(), outcome));
        value
    }

    fn skipped(&mut self, name: &str, why: &str) {
        self.rows.push((name.to_owned(), Duration::ZERO, CheckResult::Skipped(why.to_owned())));
    }

    /// Prints the table, then the output of each failed step.
    fn end(self) -> Result<()> {
        println!("\n{:<14}{:>13}  result", "step", "time");
        for (name, elapsed, outcome) in &self.rows {
            let result = match outcome {
                CheckResult::Passed(summary) => format!("ok    {summary}"),
                CheckResult::Failed(_) => "FAIL".to_owned(),
                CheckResult::Skipped(why) => format!("-     skipped: {why}"),
            };
            println!("{name:<14}{:>13}  {}", seconds(*elapsed), result.trim_end());
        }
        let total = self.rows.iter().map(|(_, elapsed, _)| *elapsed).sum();
        println!("{:<14}{:>13}", "all", seconds(total));
        if !self.flaky.is_empty() {
            println!("\nfailed, and passed when run again: {}", self.flaky.join(", "));
        }
        let mut failed = Vec::new();
        for (name, _, outcome) in &self.rows {
            if let CheckResult::Failed(output) = outcome {
                println!("\n---- {name} ----\n{output}");
                failed.push(name.as_str());
            }
        }
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// How many tests ran, from the output of cargo-nextest or `cargo test`; `None` if none ran.
fn tests_run<'a>(lines: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut passed: Option<u64> = None;
    for line in lines {
        if let Some((_, summary)) = line.trim().split_once("] ").filter(|(start, _)| start.starts_with("Summary [")) {
            return Some(summary.trim().to_owned());
        }
        if let Some(result) = line.strip_prefix("test result: ok. ") {
            let count: u64 = result.split(' ').next()?.parse().ok()?;
            passed = Some(passed.unwrap_or(0) + count);
        }
    }
    passed.map(|count| format!("{count} tests run: {count} passed"))
}

/// The names of the tests that passed only when they were run again, from the list at the end of cargo-nextest's output.
fn flaky_tests<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut tests = Vec::new();
    for line in lines {
        if let Some((_, name)) = line.trim().strip_prefix("FLAKY ").and_then(|rest| rest.split_once("] ")) {
            let name = name.split_once(") ").map_or(name, |(_, name)| name);
            tests.push(name.trim().to_owned());
        }
    }
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flaky_tests_are_named() {
        let lines = [
            "   FLAKY 2/2 [   0.530s] (12/34) weir-tests::cli commands::a",
            "        PASS [ 0.1s] b",
            "   FLAKY 2/2 [   1.530s] weir-edge stall::c",
        ];
        assert_eq!(flaky_tests(lines.into_iter()), ["weir-tests::cli commands::a", "weir-edge stall::c"]);
    }

    #[test]
    fn test_counts_of_both_runners_are_read() {
        let nextest = ["        PASS [ 0.1s] a", "     Summary [   0.530s] 34 tests run: 34 passed, 0 skipped"];
        assert_eq!(tests_run(nextest.into_iter()).unwrap(), "34 tests run: 34 passed, 0 skipped");
        let cargo = ["test result: ok. 5 passed; 0 failed;", "running 2 tests", "test result: ok. 2 passed; 0 failed;"];
        assert_eq!(tests_run(cargo.into_iter()).unwrap(), "7 tests run: 7 passed");
        assert!(tests_run(["Finished"].into_iter()).is_none());
    }

    #[test]
    fn failed_check_fails_the_run_and_is_named() {
        let mut report = Report::default();
        report.check("good", "a program that passes", &mut Command::new("true"));
        report.check("bad", "a program that fails", Command::new("sh").args(["-c", "echo why; exit 1"]));
        report.whole::<()>("worse", || bail!("no such thing"));
        assert!(matches!(&report.rows[1].2, CheckResult::Failed(output) if output == "why"));
        assert_eq!(report.end().unwrap_err().to_string(), "failed: bad, worse");
    }
}
