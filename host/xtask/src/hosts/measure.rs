//! `cargo xtask hosts measure`: the time to the first answer, the memory and the processor time of the components under each host.
//!
//! Processor time rather than elapsed time for a token, because it depends less on what else the machine does.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;

use super::programs::Programs;
use crate::files::{copy_if_changed, write_if_changed};
use crate::house::House;
use crate::python::Python;
use crate::sh::Process;
use crate::ui::{Step, finish};
use crate::{http, sh};

/// The page with the table, and the marks around it.
const PAGE: &str = "docs/guides/hosts.md";
const MARKS: [&str; 2] = ["<!-- figures -->\n\n", "\n\n<!-- /figures -->"];
/// How long a start may take: a host compiles the component first.
const START_MAX: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
/// The requests that load the models of a server.
const TASKS: &[&str] = &["/v1/tokens", "/v1/embed", "/v1/classify"];
/// Requests of the measurement, and texts in each.
const REQUESTS: usize = 20;
const TEXTS: usize = 16;
const TEXT: &str =
    "The train from Paris was late again, and the coffee was terrible, but the view of the lake was worth the wait.";

/// What was measured of a host.
struct Figures {
    host: &'static str,
    first_answer: Duration,
    memory_bytes: u64,
    processor: Duration,
}

/// A process with a host of the components.
struct HostProcess {
    process: Process,
    address: SocketAddr,
    started: Instant,
    /// The requests for which it has models.
    tasks: &'static [&'static str],
}

/// Measures every host, and writes the table to the guide or prints it.
pub(crate) fn measure(house: &House, programs: &Programs, python: &Python, write: bool) -> Result<()> {
    let scratch = house.keep().join("measure");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let mut rows = Vec::new();

    let native = start(&scratch, |address| {
        let mut command = sh::program(house, house.weir());
        command.args(["serve", "--listen", &address.to_string(), "--set", "models.replicas=1"]);
        Ok(command)
    })?;
    add(&mut rows, "`weir serve`, one thread for each model", &native);
    let before = tokens(native.address)?;
    post(native.address, "/v1/classify", TEXTS)?;
    let each = tokens(native.address)?.saturating_sub(before);

    let wasmtime = |flags: &[String], component: &Path| {
        let mut command = sh::program(house, &python.wasmtime);
        command.args(["serve", "-Sp3,cli", "-Wcomponent-model-async", "--max-instance-reuse-count=100000"]);
        command.args(["--max-instance-concurrent-reuse-count=1000", "--idle-instance-timeout=3600s"]);
        command.args(flags).arg(component);
        command
    };
    let mount = format!("{}::/models", house.components().join("models").display());
    let portable = house.components().join("weir.wasm");
    let compiled = scratch.join("weir.cwasm");
    let compile = |from: &Path, to: &Path| {
        let mut step = Step::begin("compile", &format!("compiles {} once", from.display()));
        let mut compile = sh::program(house, &python.wasmtime);
        compile.args(["compile", "-Wcomponent-model-async"]).arg(from).arg("-o").arg(to);
        let done = sh::check(&mut step, &mut compile).map(|_| to.display().to_string());
        finish(step, done)
    };
    compile(&portable, &compiled)?;
    for (host, component) in
        [("`wasmtime serve` of weir.wasm", &portable), ("`wasmtime serve` of a compiled weir.cwasm", &compiled)]
    {
        let running = start(&scratch, |address| {
            let flags = ["--allow-precompiled", "--dir", &mount, "--addr", &address.to_string()];
            Ok(wasmtime(&flags.map(str::to_owned), component))
        })?;
        add(&mut rows, host, &running);
    }
    let with_models = scratch.join("weir-with-models.cwasm");
    compile(&house.components().join("weir-with-models.wasm"), &with_models)?;
    let mut running = start(&scratch, |address| {
        Ok(wasmtime(&["--allow-precompiled", "--addr", &address.to_string()].map(str::to_owned), &with_models))
    })?;
    running.tasks = &["/v1/classify"];
    add(&mut rows, "`wasmtime serve` of a compiled weir-with-models.cwasm, sentiment alone", &running);
    drop(running);
    let remote = format!("WEIR_REMOTE_URL=http://{}", native.address);
    let thin = start(&scratch, |address| {
        let flags = ["--env", &remote, "--addr", &address.to_string()];
        Ok(wasmtime(&flags.map(str::to_owned), &house.components().join("weir-thin.wasm")))
    })?;
    add(&mut rows, "`wasmtime serve` of weir-thin.wasm, without the server that it asks", &thin);
    drop((thin, native));

    let mut step = Step::begin("jco", "makes a module of weir.wasm");
    for file in ["package.json", "serve.mjs"] {
        copy_if_changed(&house.root.join("examples/node").join(file), &programs.packages.join(file))?;
    }
    let mut jco = sh::program(house, &programs.node);
    jco.arg(programs.packages.join("node_modules/@bytecodealliance/jco/dist/jco.js")).arg("transpile").arg(&portable);
    jco.args(["-o", "weir", "--async-mode", "jspi", "--quiet"]).current_dir(&programs.packages);
    let done = sh::check(&mut step, &mut jco).map(|_| "target/xtask/jco/weir".to_owned());
    finish(step, done)?;
    let node = start(&scratch, |address| {
        let mut command = sh::program(house, &programs.node);
        command.args(["--experimental-wasm-jspi", "serve.mjs"]).arg(house.components().join("models"));
        command.arg(address.to_string()).current_dir(&programs.packages);
        Ok(command)
    })?;
    add(&mut rows, "Node.js", &node);
    drop(node);

    let wash = start(&scratch, |address| {
        let shipped =
            fs::read_to_string(house.root.join(".wash/config.yaml")).context("cannot read .wash/config.yaml")?;
        let components = house.components().display().to_string();
        let config = shipped.replace("target/components", &components).replace("127.0.0.1:8000", &address.to_string());
        write_if_changed(&scratch.join(".wash/config.yaml"), config.as_bytes())?;
        let mut command = sh::program(house, &programs.wash);
        command.args(["--non-interactive", "-C"]).arg(&scratch).arg("dev").env("HOME", &scratch);
        Ok(command)
    })?;
    add(&mut rows, "`wash dev`", &wash);
    drop(wash);

    let table = table(&rows, each);
    if !write {
        println!("{table}");
        return Ok(());
    }
    let page = house.root.join(PAGE);
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let (before, rest) = text.split_once(MARKS[0]).context("the page has no mark before the figures")?;
    let (_, after) = rest.split_once(MARKS[1]).context("the page has no mark after the figures")?;
    write_if_changed(&page, format!("{before}{}{}{}{after}", MARKS[0], table.trim_end(), MARKS[1]).as_bytes())?;
    Ok(())
}

/// Starts a host on a free port.
fn start(scratch: &Path, command: impl FnOnce(SocketAddr) -> Result<Command>) -> Result<HostProcess> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = command(address)?;
    let log = fs::File::create(scratch.join("log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    Ok(HostProcess { process: Process(child), address, started: Instant::now(), tasks: TASKS })
}

/// Adds the figures of a host; one that does not answer is named and left out.
fn add(rows: &mut Vec<Figures>, host: &'static str, running: &HostProcess) {
    match figures(host, running) {
        Ok(figures) => rows.push(figures),
        Err(error) => println!("{host}: {error:#}"),
    }
}

fn figures(host: &'static str, running: &HostProcess) -> Result<Figures> {
    let mut step = Step::begin("measure", host);
    let measured = first_answer(running).and_then(|first_answer| {
        for path in running.tasks {
            post(running.address, path, TEXTS)?;
        }
        let id = running.process.0.id();
        let memory_bytes = memory_bytes(id)?;
        let before = sh::processor_time(id)?;
        for done in 0..REQUESTS {
            step.show_progress(&format!("{done} of {REQUESTS} requests"));
            post(running.address, "/v1/classify", TEXTS)?;
        }
        Ok(Figures { host, first_answer, memory_bytes, processor: sh::processor_time(id)?.saturating_sub(before) })
    });
    finish(step, measured.as_ref().map(|_| String::new()).map_err(|error| anyhow!("{error:#}")))?;
    measured
}

/// From the start of the process to the first label.
fn first_answer(running: &HostProcess) -> Result<Duration> {
    while running.started.elapsed() < START_MAX {
        if post(running.address, "/v1/classify", TEXTS).is_ok() {
            return Ok(running.started.elapsed());
        }
        thread::sleep(POLL);
    }
    bail!("no answer after {} s", START_MAX.as_secs())
}

fn post(to: SocketAddr, path: &str, texts: usize) -> Result<()> {
    let body = json!({"inputs": vec![TEXT; texts]}).to_string();
    let mut response = http::request(to, "POST", path, Some(&body))?;
    let mut answer = String::new();
    response.body.read_to_string(&mut answer)?;
    ensure!(response.status == 200, "{path} answers {}: {answer}", response.status);
    Ok(())
}

/// The tokens that `weir serve` has computed with the model of `/v1/classify`.
fn tokens(server: SocketAddr) -> Result<u64> {
    let mut response = http::request(server, "GET", "/metrics", None)?;
    let mut metrics = String::new();
    response.body.read_to_string(&mut metrics)?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("weir_infer_tokens_total{model=\"sentiment\"} "));
    line.context("no metric of tokens")?.parse().context("the metric of tokens is no number")
}

fn memory_bytes(id: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// The table in Markdown; `tokens` are those of one request.
fn table(rows: &[Figures], tokens: u64) -> String {
    let mut table = String::from(
        "| | first answer, s | memory with its models, MB | processor time for a token, µs |\n|---|---:|---:|---:|\n",
    );
    for row in rows {
        let per_token = row.processor.as_secs_f64() * 1e6 / (REQUESTS as u64 * tokens).max(1) as f64;
        table += &format!(
            "| {} | {:.2} | {} | {per_token:.0} |\n",
            row.host,
            row.first_answer.as_secs_f64(),
            row.memory_bytes / 1_000_000,
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_time_for_each_token() {
        let row = |host, ms| Figures {
            host,
            first_answer: Duration::from_millis(1500),
            memory_bytes: 250_000_000,
            processor: Duration::from_millis(ms),
        };
        let table = table(&[row("a", 200), row("b", 2000)], 100);
        assert!(table.ends_with("| a | 1.50 | 250 | 100 |\n| b | 1.50 | 250 | 1000 |\n"), "{table}");
    }

    #[test]
    fn processor_time_and_memory_of_this_process_are_read() {
        let id = std::process::id();
        assert!(memory_bytes(id).unwrap() > 0);
        let before = sh::processor_time(id).unwrap();
        let began = Instant::now();
        while sh::processor_time(id).unwrap() == before {
            assert!(began.elapsed() < Duration::from_secs(60), "no processor time in a minute of work");
        }
    }
}
