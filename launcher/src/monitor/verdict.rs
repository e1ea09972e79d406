//! What holds a run up: pure functions of samples. Each verdict gives the figures it rests on and one suggestion.
//!
//! Nothing is said of rates over less than [`ENOUGH`] seconds: a stage begins and ends with work of other kinds.

use reclora_trainer::telemetry::measure::Phase;
use serde::Serialize;

use super::gpu::{MEMORY_TOTAL, MEMORY_USED, TENSOR_ACTIVE, UTILIZATION};
use super::sample::{GIB, Gpu, Rank, Sample};
use super::window::{Rates, Window};

/// Seconds over which rates are judged.
const ENOUGH: f64 = 8.0;
/// Seconds without a word of a rank, which says something each second.
const SILENT: f64 = 5.0;
/// Age of a node's samples, which come each second, when others are new.
pub const OLD: f64 = 10.0;
/// Age of samples of a node that no longer takes part: it may have gone, or be of an earlier job of the run.
const FORGOTTEN: f64 = 120.0;
/// Share of memory in use that is nearly all.
const FULL: f64 = 0.95;
/// Seconds without any step, sample or token on a busy GPU after which it hangs.
const FROZEN: f64 = 12.0;
/// Looks at which a GPU's clocks must have been held down, one after the other.
const HELD_LOOKS: usize = 3;

/// What is the matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Nothing goes on.
    Stalled,
    /// A GPU is gone.
    GpuLost,
    /// One rank keeps the others waiting.
    Straggler,
    /// Held down from outside: clocks, or cores that others use.
    Throttled,
    /// Memory is nearly full.
    MemoryNearLimit,
    /// Waits for samples.
    DataBound,
    /// Waits for the network.
    CommunicationBound,
    /// Computes nearly all the time, as it should.
    ComputeBound,
}

impl Kind {
    /// What users read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::GpuLost => "GPU lost",
            Self::Straggler => "straggler",
            Self::Throttled => "throttled",
            Self::MemoryNearLimit => "memory near the limit",
            Self::DataBound => "data-bound",
            Self::CommunicationBound => "communication-bound",
            Self::ComputeBound => "compute-bound",
        }
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// What is the matter.
    pub kind: Kind,
    /// With which rank, where it is one.
    pub rank: Option<usize>,
    /// The figures.
    pub figures: String,
    /// What to do.
    pub help: String,
}

fn verdict(kind: Kind, rank: Option<usize>, figures: String, help: &str) -> Verdict {
    Verdict { kind, rank, figures, help: help.to_owned() }
}

/// A rank with what it does.
struct Seen<'a> {
    rank: &'a Rank,
    /// Over long enough.
    rates: Option<Rates>,
}

/// What there is to say at the time `now`, the worst first.
pub fn diagnose(windows: &[Window], now: f64) -> Vec<Verdict> {
    let newest = windows.iter().filter_map(Window::last).map(|sample| sample.time);
    let newest = newest.fold(f64::NEG_INFINITY, f64::max);
    if now - newest > OLD {
        // The run is over, or its launchers are: the ranks with them.
        return Vec::new();
    }
    let mut verdicts: Vec<Verdict> = Vec::new();
    let (mut ranks, mut hung) = (Vec::new(), Vec::new());
    for (window, last) in windows.iter().filter_map(|window| Some((window, window.last()?))) {
        let age = newest - last.time;
        if age > FORGOTTEN {
            continue;
        }
        if age > OLD && !last.ranks.is_empty() {
            let host = &last.host;
            let figures =
                format!("nothing has come from node {} ({host}) for {age:.0} s", last.node);
            let help = "see whether the node runs, and its launcher on it";
            verdicts.push(verdict(Kind::Stalled, None, figures, help));
            continue;
        }
        verdicts.extend(machine(window, last));
        hung.extend(last.ranks.iter().filter_map(|rank| frozen(window, last, rank)));
        let alive = last.ranks.iter().filter(|rank| rank.process.is_some());
        ranks.extend(alive.map(|rank| {
            let rates = window.rates(rank).filter(|rates| rates.seconds >= ENOUGH);
            Seen { rank, rates }
        }));
    }
    let stalled = ranks.iter().filter_map(|seen| stopped(seen.rank));
    let stalled: Vec<Verdict> = stalled.chain(hung).collect();
    // What the others do meanwhile is only the consequence.
    if stalled.is_empty() {
        verdicts.extend(pace(&ranks));
    }
    verdicts.extend(stalled);
    // That nothing is in the way is only said where nothing is.
    if verdicts.len() > 1 {
        verdicts.retain(|verdict| verdict.kind != Kind::ComputeBound);
    }
    verdicts.sort_by_key(|verdict| (verdict.kind, verdict.rank));
    verdicts
}

/// A rank that does nothing at all.
fn stopped(rank: &Rank) -> Option<Verdict> {
    let process = rank.process.as_ref()?;
    if rank.silent < SILENT {
        return None;
    }
    let (pid, silent) = (rank.pid, rank.silent);
    let (figures, help) = match process.state {
        'T' | 't' => (
            format!("its process {pid} is stopped, and has been silent for {silent:.0} s"),
            "let it go on with `kill -CONT`, or end it: the launcher starts the ranks again with --max-restarts",
        ),
        'D' => (
            format!("its process {pid} waits for a disk or a device, silent for {silent:.0} s"),
            "look at the file system and at the kernel's log (dmesg)",
        ),
        state => (
            format!("its process {pid} (state {state}) has said nothing for {silent:.0} s"),
            "look at what it does with `gdb -p`; the launcher ends it after \
             runtime.heartbeat_timeout",
        ),
    };
    Some(verdict(Kind::Stalled, Some(rank.rank), figures, help))
}

/// What is wrong with a machine.
fn machine(window: &Window, last: &Sample) -> Vec<Verdict> {
    let (node, host) = (last.node, &last.host);
    let mut verdicts: Vec<Verdict> =
        last.gpus.iter().flat_map(|gpu| of_gpu(window, last, gpu)).collect();
    let (used, all) = last.memory;
    if !last.ranks.is_empty() && used as f64 > FULL * all as f64 {
        let (used, all) = (used as f64 / GIB, all as f64 / GIB);
        let figures = format!("node {node} ({host}) has {used:.1} of {all:.1} GiB in use");
        let help = "start fewer ranks per node, or see `reclora-launch plan` for what a rank needs";
        verdicts.push(verdict(Kind::MemoryNearLimit, None, figures, help));
    }
    verdicts.extend(starved(window, last));
    verdicts
}

/// A rank that says it lives and gets nowhere, while its GPU looks busy: a kernel that waits for ever, as one of a
/// collective does whose peer never comes.
fn frozen(window: &Window, last: &Sample, rank: &Rank) -> Option<Verdict> {
    let rates = window.rates(rank).filter(|rates| rates.seconds >= FROZEN)?;
    if [rates.units, rates.steps, rates.samples, rates.tokens].iter().any(|rate| *rate > 0.0) {
        return None;
    }
    let has_rank = |gpu: &&Gpu| gpu.processes.iter().any(|(pid, _)| *pid == rank.pid);
    let gpu = last.gpus.iter().find(has_rank)?;
    let same = |sample: &Sample| {
        let gpu = sample.gpus.iter().find(|other| other.index == gpu.index)?;
        // Of a card that can't tell of its tensor cores nothing is said: a long batch looks the same.
        Some(gpu.value(UTILIZATION)? > 50.0 && gpu.value(TENSOR_ACTIVE)? < 1.0)
    };
    let from = last.time - rates.seconds;
    let mut looks = window.samples.iter().filter(|sample| sample.time >= from);
    looks.all(|sample| same(sample) == Some(true)).then(|| {
        let busy = gpu.value(UTILIZATION).unwrap_or_default();
        let figures = format!(
            "no step, sample or token for {:.0} s at {} {}, while GPU {} is {busy:.0} % busy and its tensor cores are idle",
            rates.seconds, rank.done, rank.unit, gpu.index
        );
        let help = "another rank most likely never joined a collective: see which one lags; the launcher ends the \
                    worker group after runtime.collective_timeout";
        verdict(Kind::Stalled, Some(rank.rank), figures, help)
    })
}

/// What is wrong with a GPU.
fn of_gpu(window: &Window, last: &Sample, gpu: &Gpu) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let name = format!("GPU {} of node {} ({})", gpu.index, last.node, last.host);
    if let Some(why) = &gpu.lost {
        let help = "see `dmesg` for Xid errors; such a GPU mostly needs a reset or a reboot";
        verdicts.push(verdict(Kind::GpuLost, None, format!("{name}: {why}"), help));
    }
    if let (Some(used), Some(total)) = (gpu.value(MEMORY_USED), gpu.value(MEMORY_TOTAL))
        && used > FULL * total
    {
        let (used, total) = (used / GIB, total / GIB);
        let figures = format!("{name} has {used:.1} of {total:.1} GiB in use");
        let help = "make tune.micro_batches larger, or prompt.max_tokens smaller";
        verdicts.push(verdict(Kind::MemoryNearLimit, None, figures, help));
    }
    let held = |sample: &Sample| {
        let same = sample.gpus.iter().find(|other| other.index == gpu.index);
        same.is_some_and(|gpu| {
            !gpu.throttled_by.is_empty() && gpu.value(UTILIZATION).is_none_or(|used| used > 50.0)
        })
    };
    let looks = window.samples.iter().rev().take(HELD_LOOKS);
    if looks.len() == HELD_LOOKS && looks.into_iter().all(held) {
        let figures =
            format!("the clocks of {name} are held down: {}", gpu.throttled_by.join(", "));
        let help = "look at its cooling and its power";
        verdicts.push(verdict(Kind::Throttled, None, figures, help));
    }
    verdicts
}

/// Ranks that wait for cores which others use.
fn starved(window: &Window, last: &Sample) -> Option<Verdict> {
    let rates: Vec<Rates> = last.ranks.iter().filter_map(|rank| window.rates(rank)).collect();
    if rates.is_empty() || rates.iter().any(|rates| rates.seconds < ENOUGH) {
        return None;
    }
    let (cpu, queued) = rates
        .iter()
        .fold((0.0, 0.0), |(cpu, queued), rates| (cpu + rates.cpu, queued + rates.queued));
    let others = window.used_by_others()?;
    let cores = last.cores as f64;
    (queued > 0.3 * (cpu + queued) && others > 0.3 * cores).then(|| {
        let (node, host) = (last.node, &last.host);
        let figures = format!(
            "on node {node} ({host}), other programs use {others:.1} of {cores} cores; the ranks have {cpu:.1}, \
             and {queued:.1} of their threads wait for one"
        );
        verdict(Kind::Throttled, None, figures, "keep the node to this run, or ask for cores of its own")
    })
}

/// What limits the pace of a worker group.
fn pace(ranks: &[Seen<'_>]) -> Vec<Verdict> {
    let rates: Option<Vec<(usize, &Rates)>> =
        ranks.iter().map(|seen| Some((seen.rank.rank, seen.rates.as_ref()?))).collect();
    let Some(rates) = rates.filter(|rates| !rates.is_empty()) else { return Vec::new() };
    if let Some(straggler) = straggler(&rates) {
        return vec![straggler];
    }
    let mean = |of: &dyn Fn(&Rates) -> f64| {
        rates.iter().map(|(_, rates)| of(rates)).sum::<f64>() / rates.len() as f64
    };
    let data = mean(&|rates| rates.phase(Phase::Data));
    let compute = mean(&|rates| rates.phase(Phase::Forward) + rates.phase(Phase::Backward));
    let communication = mean(&|rates| rates.phase(Phase::Communication));
    let percent = |share: f64| format!("{:.0} %", 100.0 * share.min(1.0));
    let [d, c, w] = [data, compute, communication].map(percent);
    let figures = format!("{c} of the time in computing, {d} in data, {w} waiting for other ranks");
    if communication > 0.4 {
        let help = "make the stage's global_batch larger, or set runtime.gradient_wire = \"bf16\"; see that the ranks use \
                    the fast network (runtime.interface)";
        return vec![verdict(Kind::CommunicationBound, None, figures, help)];
    }
    if data > 0.5 && compute < 0.5 {
        let (read, faults) = (mean(&|rates| rates.read) / 1e6, mean(&|rates| rates.major_faults));
        let figures = format!(
            "{figures}; {read:.1} MB/s and {faults:.0} page faults/s from storage per rank"
        );
        let help = "put the run directory on a faster disk, or see runtime.file_access";
        return vec![verdict(Kind::DataBound, None, figures, help)];
    }
    if compute > 0.7 {
        let help = "nothing is in the way; more ranks make it faster";
        return vec![verdict(Kind::ComputeBound, None, figures, help)];
    }
    Vec::new()
}

/// A rank that hardly waits while all others do.
fn straggler(rates: &[(usize, &Rates)]) -> Option<Verdict> {
    let wait = |rates: &Rates| rates.phase(Phase::Communication);
    let (slow, slowest) = rates.iter().min_by(|a, b| wait(a.1).total_cmp(&wait(b.1)))?;
    let others = rates.iter().filter(|(rank, _)| rank != slow);
    let least = others.clone().map(|(_, rates)| wait(rates)).reduce(f64::min)?;
    if least < 0.35 || least - wait(slowest) < 0.3 {
        return None;
    }
    let count = others.clone().count() as f64;
    let excess = |phase: Phase| {
        let mean = others.clone().map(|(_, rates)| rates.phase(phase)).sum::<f64>() / count;
        slowest.phase(phase) - mean
    };
    let own = Phase::ALL.into_iter().filter(|phase| *phase != Phase::Communication);
    let phase = own.max_by(|a, b| excess(*a).total_cmp(&excess(*b)))?;
    let figures = format!(
        "the others wait {:.0} % of the time or more, it waits {:.0} %; it spends {:.0} % more of the time in {}, \
         with {:.1} cores and {:.1} threads waiting for one",
        100.0 * least,
        100.0 * wait(slowest),
        100.0 * excess(phase),
        phase.name(),
        slowest.cpu,
        slowest.queued
    );
    let help = "see what else runs on its node, its clocks and its disk";
    Some(verdict(Kind::Straggler, Some(*slow), figures, help))
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
