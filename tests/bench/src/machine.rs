//! The machine of a run, and the two cores that are used.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::peers::stdout_of;
use crate::results::Machine;

/// The machine, and the two cores that are used.
pub(crate) fn machine(server_core: Option<usize>, load_core: Option<usize>) -> Result<Machine> {
    ensure!(stdout_of(Command::new("taskset").arg("--version")).is_ok(), "`taskset` (util-linux) is not installed");
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let allowed =
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(cores).unwrap_or_default();
    ensure!(allowed.len() >= 2, "two cores are needed: one for the server, one for the load");
    let server_core = server_core.unwrap_or(allowed[0]);
    let siblings = cores(&read(&format!("/sys/devices/system/cpu/cpu{server_core}/topology/thread_siblings_list")));
    let others = || allowed.iter().copied().filter(|core| *core != server_core);
    let apart = others().find(|core| !siblings.contains(core));
    let load_core = load_core.or(apart).or_else(|| others().next()).context("no core for the load")?;
    ensure!(load_core != server_core, "server and load need a core each");
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory =
        field(&read("/proc/meminfo"), "MemTotal").and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
    Ok(Machine {
        processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cores: allowed.len(),
        memory_bytes: memory.unwrap_or(0) * 1024,
        system: read("/proc/sys/kernel/osrelease").trim().split('-').next().unwrap_or("").to_owned(),
        server_core,
        load_core,
        siblings: siblings.contains(&load_core),
        versions: BTreeMap::new(),
    })
}

/// `0-2,5` as a list.
fn cores(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.trim().parse::<usize>().ok()?..=to.trim().parse::<usize>().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read() {
        assert_eq!(cores("\t0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(cores(""), [] as [usize; 0]);
    }
}
