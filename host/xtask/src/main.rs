//! `cargo xtask`: what a fresh machine needs to build, run, test and measure Weir.
//!
//! - [`args`], [`ui`], [`sh`], [`files`]: the command line, what a person sees, other programs, files and stamps
//! - [`house`]: where things are, and the tables of components, guests and packages
//! - [`setup`] and [`debian`]: the wasm32-wasip2 target
//! - [`build`]: components, their precompiled forms, `weir`
//! - [`server`] and [`http`]: a `weir serve` of our own, and a client for it
//! - [`first_build`]: how long the first build takes, said before it; [`dist`]: the archive to give away
//! - [`demo`], [`checks`] (`cargo xtask test`), [`docs`], [`fuzz`], [`mod@bench`]: what people run
//! - [`redis`], [`pushpin`], [`browser`], [`nginx`]: a Redis server, a proxy that holds connections, a Chromium, and a proxy that the
//!   fan-out is compared with too, for the tests
//! - [`wit`]: the vendored WIT packages
#![allow(clippy::print_stdout, reason = "a command line program answers on standard output")]

mod args;
mod bench;
mod browser;
mod build;
mod checks;
mod debian;
mod demo;
mod dist;
mod docs;
mod files;
mod first_build;
mod fuzz;
mod house;
mod http;
mod nginx;
mod node;
mod pushpin;
mod python;
mod redis;
#[cfg(test)]
mod rules;
mod server;
mod setup;
mod sh;
mod ui;
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
        about: "get what the build needs: the wasm32-wasip2 target",
        usage: setup::USAGE,
        run: setup::task,
    },
    Task {
        name: "build",
        about: "build the components and target/release/weir",
        usage: build::USAGE,
        run: build::task,
    },
    Task { name: "dist", about: "build, then pack an archive that runs anywhere", usage: dist::USAGE, run: dist::task },
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
        about: "measure start, first event and rate, then compare with other servers",
        usage: bench::USAGE,
        run: bench::task,
    },
    Task { name: "fuzz", about: "execute the fuzz targets with many inputs", usage: fuzz::USAGE, run: fuzz::task },
    Task { name: "docs", about: "build the book of docs/", usage: docs::USAGE, run: docs::task },
    Task { name: "redis", about: "get a redis-server for the tests", usage: redis::USAGE, run: redis::task },
    Task { name: "browser", about: "get a headless Chromium for the tests", usage: browser::USAGE, run: browser::task },
    Task { name: "pushpin", about: "get Pushpin for the tests", usage: pushpin::USAGE, run: pushpin::task },
    Task { name: "nginx", about: "get nginx for the tests", usage: nginx::USAGE, run: nginx::task },
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
    // What follows `serve` belongs to `weir serve`, its help too.
    let mut ours = rest.iter().take_while(|arg| *arg != "--");
    if task.name != "serve" && ours.any(|arg| arg == "-h" || arg == "--help") {
        println!("cargo xtask {}: {}\n\n{}", task.name, task.about, task.usage);
        return Ok(());
    }
    (task.run)(&House::find(), Args::new(task.name, rest))
}

fn help() -> String {
    let mut text = String::from("cargo xtask COMMAND [OPTIONS]: what a fresh machine needs for Weir\n\nCommands:\n");
    for task in TASKS {
        text.push_str(&format!("  {:<8}{}\n", task.name, task.about));
    }
    text.push_str(
        "\n`cargo xtask COMMAND --help` says what a command takes. Every command does what it needs first\n\
         (build sets up, demo builds), can be repeated, and does nothing twice.",
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
    fn unknown_words_get_one_sentence() {
        assert_eq!(error("bild"), "unknown command `bild`: `cargo xtask --help` lists the commands");
        assert_eq!(error("--fast"), "unknown flag `--fast`: `cargo xtask --help` lists the commands");
        assert_eq!(error("build --fast"), "unknown flag `--fast`: `cargo xtask build --help` lists what build takes");
    }

    #[test]
    fn help_names_every_command() {
        let help = help();
        assert!(TASKS.iter().all(|task| help.contains(&format!("  {:<8}{}", task.name, task.about))), "{help}");
    }
}
