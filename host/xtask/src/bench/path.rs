//! `cargo xtask bench path`: the time of each stage of a request, by the example `path` of host/edge, on one core and on all.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::programs;
use crate::args::Args;
use crate::build;
use crate::house::{House, SHIPPED_MODELS};
use crate::sh;
use crate::ui::{Step, finish};

const EXAMPLE: &str = "release/examples/path";

pub(super) fn task(house: &House, args: Args) -> Result<()> {
    let (mut args, more) = args.split();
    let (quick, as_built) = (args.flag("--quick"), args.flag("--as-built"));
    args.finish()?;
    programs::build_weir(house, as_built)?;
    if !as_built {
        let mut step = Step::begin("path", "builds the server with its client");
        let built = sh::check(&mut step, build::host_cargo(house, "build").args(["--example", "path"]));
        finish(step, built.map(|_| format!("target/{EXAMPLE}")))?;
    }
    let (requests, items) = if quick { ("300", "1000") } else { ("3000", "10000") };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let has_taskset = Command::new("taskset").arg("--version").output().is_ok_and(|output| output.status.success());
    for on_one in [true, false] {
        let program = house.target.join(EXAMPLE);
        let mut command = if on_one && has_taskset {
            println!("\non one core:");
            let mut command = sh::program(house, "taskset");
            command.args(["-c", &(cores - 1).to_string()]).arg(program);
            command
        } else {
            println!("\non {cores} cores:");
            sh::program(house, program)
        };
        command.arg(house.target.join("components")).arg(house.root.join(SHIPPED_MODELS));
        command.args(["--requests", requests, "--items", items]).args(&more);
        let status = command.stdout(Stdio::inherit()).stderr(Stdio::inherit()).status();
        let status = status.context("cannot start the example `path`")?;
        if !status.success() {
            bail!("the example `path`: {status}");
        }
    }
    Ok(())
}
