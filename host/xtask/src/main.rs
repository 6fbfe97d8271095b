//! `cargo xtask`: builds, runs, tests and measures Weir on a fresh machine.
//!
//! - [`args`], [`ui`], [`sh`], [`files`]: the command line, progress, other programs, files and stamps
//! - [`house`]: the workspace's folders, and the tables of components, guests and packages
//! - [`setup`] and [`debian`]: the wasm32-wasip2 target; [`apt`]: packages of Debian, fetched and unpacked without being installed
//! - [`build`]: components, their precompiled forms, `weir`; [`portable`]: the same components composed for other hosts
//! - [`server`] and [`http`]: a `weir serve` for the demo and the measurements, and a client for it
//! - [`first_build`]: the estimate of the first build; [`dist`]: the archive for distribution, also for
//!   another platform ([`cross`]), with its bill of materials ([`sbom`]); [`deploy`]: the checks of deploy/
//! - [`demo`], [`checks`] (`cargo xtask test`), [`docs`], [`conformance`], [`fuzz`], [`mod@bench`]: the commands of the same names
//! - [`redis`], [`nats`], [`pushpin`], [`browser`]: a Redis server, a NATS server, a proxy that holds connections, a Chromium, for the
//!   tests; [`lm`]: a language model and a server of such models; [`index_program`]: programs in wheels of Python's package index
//! - [`python`], [`node`], [`make`]: the Python environment of the tests, packages of npm for them, `make` for a C library
//! - [`kafka_tls`]: the tests of Kafka with TLS, with a build of `weir` of its own
//! - [`hosts`]: other hosts of the components, for the tests; [`kernels`]: instruction sets that this machine may not have
//! - [`nginx`]: a proxy for the tests, and the server that the fan-out is compared with
//! - [`npm`], [`typescript`], [`web`]: the TypeScript client and the page of the gateway; [`wheels`]: the Python package
//! - [`wit`]: the vendored WIT packages
//! - `rules`, `imports`: tests of the dependencies between crates and between files
#![allow(clippy::print_stdout, reason = "a command line program answers on standard output")]

mod apt;
mod args;
mod bench;
mod browser;
mod build;
mod build_command;
mod checks;
mod conformance;
mod cross;
mod debian;
mod demo;
mod deploy;
mod dist;
mod docs;
mod files;
mod first_build;
mod fuzz;
mod hosts;
mod house;
mod http;
#[cfg(test)]
mod imports;
mod index_program;
mod kafka;
mod kafka_tls;
mod kernels;
mod lm;
mod make;
mod nats;
mod nginx;
mod node;
mod npm;
mod portable;
mod pushpin;
mod python;
mod redis;
#[cfg(test)]
mod rules;
mod sbom;
mod server;
mod setup;
mod sh;
mod typescript;
mod ui;
mod web;
mod wheels;
mod wit;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::args::Args;
use crate::house::House;

struct Task {
    name: &'static str,
    about: &'static str,
    usage: &'static str,
    run: fn(&House, Args) -> Result<()>,
}

const TASKS: &[Task] = &[
    Task {
        name: "setup",
        about: "install what the build needs: the wasm32-wasip2 target, and the language model of the demo",
        usage: setup::USAGE,
        run: setup::task,
    },
    Task {
        name: "build",
        about: "build the components and target/release/weir",
        usage: build_command::USAGE,
        run: build_command::task,
    },
    Task { name: "dist", about: "build, then pack an archive for distribution", usage: dist::USAGE, run: dist::task },
    Task {
        name: "deploy",
        about: "check the chart, the manifests and the Containerfiles of deploy/",
        usage: deploy::USAGE,
        run: deploy::task,
    },
    Task { name: "serve", about: "build, then run `weir serve`", usage: server::USAGE, run: server::task },
    Task {
        name: "demo",
        about: "build, then stream a document through the models",
        usage: demo::USAGE,
        run: demo::task,
    },
    Task { name: "test", about: "build and check everything, as CI does", usage: checks::USAGE, run: checks::task },
    Task {
        name: "bench",
        about: "measure start, first event and throughput, then compare with other servers",
        usage: bench::USAGE,
        run: bench::task,
    },
    Task {
        name: "conformance",
        about: "run the whole Autobahn TestSuite against the WebSockets",
        usage: conformance::USAGE,
        run: conformance::task,
    },
    Task { name: "hosts", about: "run the components under other hosts", usage: hosts::USAGE, run: hosts::task },
    Task { name: "fuzz", about: "run the fuzz targets with many inputs", usage: fuzz::USAGE, run: fuzz::task },
    Task {
        name: "kernels",
        about: "test the kernels for instruction sets that this machine may not have",
        usage: kernels::USAGE,
        run: kernels::task,
    },
    Task { name: "lm", about: "fetch the language model of the demo and the tests", usage: lm::USAGE, run: lm::task },
    Task { name: "docs", about: "build the book of docs/", usage: docs::USAGE, run: docs::task },
    Task { name: "kafka", about: "fetch a second Kafka broker for the tests", usage: kafka::USAGE, run: kafka::task },
    Task {
        name: "kafka-tls",
        about: "test Kafka with TLS and SCRAM, with OpenSSL built from source",
        usage: kafka_tls::USAGE,
        run: kafka_tls::task,
    },
    Task { name: "nats", about: "fetch a nats-server for the tests", usage: nats::USAGE, run: nats::task },
    Task { name: "redis", about: "fetch a redis-server for the tests", usage: redis::USAGE, run: redis::task },
    Task {
        name: "browser",
        about: "fetch a headless Chromium for the tests",
        usage: browser::USAGE,
        run: browser::task,
    },
    Task { name: "pushpin", about: "fetch Pushpin for the tests", usage: pushpin::USAGE, run: pushpin::task },
    Task { name: "nginx", about: "fetch nginx for the tests", usage: nginx::USAGE, run: nginx::task },
    Task {
        name: "typescript",
        about: "regenerate, check or test the TypeScript client",
        usage: typescript::USAGE,
        run: typescript::task,
    },
    Task {
        name: "python",
        about: "build or test the wheels of the Python package",
        usage: wheels::USAGE,
        run: wheels::task,
    },
    Task { name: "web", about: "make, check or test the page of the gateway", usage: web::USAGE, run: web::task },
    Task { name: "wit", about: "refresh or check the vendored WIT packages", usage: wit::USAGE, run: wit::task },
];

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut line: impl Iterator<Item = String>) -> Result<()> {
    let name = match line.next().as_deref() {
        None | Some("help" | "-h" | "--help") => {
            println!("{}", help());
            return Ok(());
        }
        Some(name) => name.to_owned(),
    };
    let Some(task) = TASKS.iter().find(|task| task.name == name) else {
        let what = if name.starts_with('-') { "flag" } else { "command" };
        bail!("unknown {what} `{name}`: `cargo xtask --help` lists the commands");
    };
    let rest: Vec<String> = line.collect();
    // The arguments after `serve` are those of `weir serve`, `--help` included.
    let mut ours = rest.iter().take_while(|arg| *arg != "--");
    if task.name != "serve" && ours.any(|arg| arg == "-h" || arg == "--help") {
        println!("cargo xtask {}: {}\n\n{}", task.name, task.about, task.usage);
        return Ok(());
    }
    (task.run)(&House::find(), Args::new(task.name, rest))
}

fn help() -> String {
    let mut text = String::from("cargo xtask COMMAND [OPTIONS]: builds, runs, tests and measures Weir\n\nCommands:\n");
    for task in TASKS {
        text.push_str(&format!("  {:<11}{}\n", task.name, task.about));
    }
    text.push_str(
        "\n`cargo xtask COMMAND --help` lists the options of a command. Every command runs its prerequisites first\n\
         (build runs setup, demo runs build), and skips finished work when it is repeated.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> String {
        run(line.split_whitespace().map(str::to_owned)).unwrap_err().to_string()
    }

    #[test]
    fn unknown_command_or_flag_is_an_error_of_one_sentence() {
        assert_eq!(error("bild"), "unknown command `bild`: `cargo xtask --help` lists the commands");
        assert_eq!(error("--fast"), "unknown flag `--fast`: `cargo xtask --help` lists the commands");
        assert_eq!(error("build --fast"), "unknown flag `--fast`: `cargo xtask build --help` lists what build takes");
    }

    #[test]
    fn help_names_every_command() {
        let help = help();
        assert!(TASKS.iter().all(|task| help.contains(&format!("  {:<11}{}", task.name, task.about))), "{help}");
    }
}
