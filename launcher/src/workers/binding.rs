//! On which cores a rank runs: those of one NUMA node, so that its memory is near.

use std::path::Path;

use color_eyre::eyre::{WrapErr, eyre};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::error::Result;

/// Where Linux tells of NUMA nodes.
const NODES: &str = "/sys/devices/system/node";

/// The cores that this process may use of each NUMA node that has some.
pub fn nodes() -> Result<Vec<Vec<usize>>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).wrap_err("can't see this process's cores")?;
    let is_allowed = |cpu: &usize| allowed.is_set(*cpu).unwrap_or(false);
    let entries = std::fs::read_dir(NODES).into_iter().flatten().flatten();
    let mut nodes: Vec<(usize, Vec<usize>)> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let cpus = read_cpus(&entry.path().join("cpulist"))?;
            Some((number, cpus.into_iter().filter(is_allowed).collect()))
        })
        .collect();
    nodes.retain(|(_, cpus): &(usize, Vec<usize>)| !cpus.is_empty());
    nodes.sort();
    if nodes.is_empty() {
        return Err(eyre!("--numa-binding: {NODES} tells of no NUMA node of this process"));
    }
    Ok(nodes.into_iter().map(|(_, cpus)| cpus).collect())
}

fn read_cpus(path: &Path) -> Option<Vec<usize>> {
    parse(std::fs::read_to_string(path).ok()?.trim())
}

/// The cores of a rank: ranks are dealt to nodes in order, as evenly as can be.
pub fn cpus_of(local_rank: usize, local_world_size: usize, nodes: &[Vec<usize>]) -> Vec<usize> {
    let node = local_rank * nodes.len() / local_world_size.max(1);
    nodes.get(node.min(nodes.len().saturating_sub(1))).cloned().unwrap_or_default()
}

/// Binds this process, and the threads that it will start.
pub fn bind(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu).wrap_err_with(|| format!("core {cpu}"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).wrap_err("can't bind this rank to its cores")
}

/// Cores as Linux writes them: `0-3,8`.
pub fn parse(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for span in text.split(',').filter(|span| !span.is_empty()) {
        let (first, last) = span.split_once('-').unwrap_or((span, span));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        // No machine has more, and no text may make a list without end.
        if last < first || last >= CpuSet::count() {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// The same, without spans.
pub fn render(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores() {
        assert_eq!(parse("0-3,8"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse(""), Some(vec![]));
        for bad in ["a", "3-1", "0-", "0-99999999999", "-1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse(&render(&[1, 5, 6])), Some(vec![1, 5, 6]));
    }

    #[test]
    fn ranks_are_dealt_to_nodes_in_order() {
        let nodes = [vec![0, 1], vec![2, 3]];
        let dealt = |ranks| (0..ranks).map(|r| cpus_of(r, ranks, &nodes)[0]).collect::<Vec<_>>();
        assert_eq!(dealt(1), [0]);
        assert_eq!(dealt(2), [0, 2]);
        assert_eq!(dealt(4), [0, 0, 2, 2]);
        assert_eq!(dealt(8), [0, 0, 0, 0, 2, 2, 2, 2]);
        assert_eq!(dealt(3), [0, 0, 2]);
    }

    #[test]
    fn this_machine_has_cores() {
        let nodes = nodes().unwrap();
        assert!(nodes.iter().all(|cpus| !cpus.is_empty()), "{nodes:?}");
        // What it is allowed already changes nothing.
        bind(&nodes.concat()).unwrap();
        assert_eq!(super::nodes().unwrap(), nodes);
    }
}
