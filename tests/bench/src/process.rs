//! Resident memory and processor time of a process and its descendants, from `/proc`.

use std::collections::HashMap;
use std::fs;

use serde::{Deserialize, Serialize};

/// `sysconf(_SC_CLK_TCK)` of common Linux systems.
const TICKS_PER_SECOND: f64 = 100.0;

/// The resources of a server during a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ResourceUsage {
    pub(crate) resident_first_bytes: u64,
    pub(crate) resident_last_bytes: u64,
    pub(crate) resident_max_bytes: u64,
    /// Processor time, s, of user and system together.
    pub(crate) cpu_s: f64,
}

/// The process and its descendants; empty when it has ended.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut processes = if stat(root).is_some() { vec![root] } else { Vec::new() };
    let mut index = 0;
    while index < processes.len() {
        processes.extend(children.remove(&processes[index]).unwrap_or_default());
        index += 1;
    }
    processes
}

/// The start of a process, in clock ticks since boot: identifies it together with its id.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// Whether it is running; a zombie is not.
pub(crate) fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| !matches!(fields.first().map(String::as_str), Some("Z" | "X")))
}

pub(crate) fn resident_bytes(pids: &[u32]) -> u64 {
    let kib = |pid: &u32| -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    pids.iter().filter_map(kib).sum::<u64>() * 1024
}

pub(crate) fn cpu_s(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| -> Option<u64> {
        let fields = stat(*pid)?;
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<u64>() as f64 / TICKS_PER_SECOND
}

/// Processor time of a process and of its ended children, s.
pub(crate) fn cpu_with_ended_s(pid: u32) -> f64 {
    let fields = stat(pid).unwrap_or_default();
    let ticks = fields.iter().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok());
    ticks.sum::<u64>() as f64 / TICKS_PER_SECOND
}

/// Processor time of all processes of the machine since its start, s.
pub(crate) fn busy_s() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let times: Vec<u64> = first.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    // user, nice, system, (idle, waiting,) interrupts of both kinds.
    [0, 1, 2, 5, 6].iter().filter_map(|index| times.get(*index)).sum::<u64>() as f64 / TICKS_PER_SECOND
}

/// The fields of `/proc/PID/stat` from the third on (the state): the name before them may contain any character.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_tree_is_measured_until_it_ends() {
        let mut child = std::process::Command::new("sh").args(["-c", "sleep 30 & wait"]).spawn().unwrap();
        let own = std::process::id();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while tree(child.id()).len() < 2 && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        let below = tree(child.id());
        assert_eq!(below.len(), 2, "{below:?}");
        assert!(tree(own).contains(&below[1]));
        assert!(busy_s() > 0.0 && busy_s() >= cpu_with_ended_s(own) && cpu_with_ended_s(own) >= cpu_s(&[own]));
        assert!(resident_bytes(&below) > 100_000 && start_ticks(below[1]).is_some() && is_alive(below[1]));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(tree(child.id()).is_empty() && !is_alive(child.id()));
        // The grandchild is included.
        std::process::Command::new("sh").args(["-c", &format!("kill {}", below[1])]).status().unwrap();
    }
}
