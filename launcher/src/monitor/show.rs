//! What is seen, as text for a terminal and as JSON.

use std::fmt::Write as _;

use comfy_table::{Table, presets};
use reclora_trainer::measure::Phase;
use serde::Serialize;

use super::gpu::{MEMORY_TOTAL, MEMORY_USED, POWER, SM_CLOCK, TEMPERATURE, UTILIZATION};
use super::sample::{GIB, Gpu, Rank, Reading, Sample};
use super::verdict::{OLD, Verdict, diagnose};
use super::window::{Rates, Window};

/// All nodes at a moment.
#[derive(Debug, Serialize)]
pub struct View<'a> {
    /// Seconds since 1970.
    pub time: f64,
    /// The nodes, by the names of their files.
    pub nodes: Vec<Node<'a>>,
    /// What there is to say of them.
    pub verdicts: Vec<Verdict>,
}

/// A node.
#[derive(Debug, Serialize)]
pub struct Node<'a> {
    name: &'a str,
    /// Seconds since it was looked at.
    age: f64,
    /// The latest look.
    sample: &'a Sample,
    /// What each of its ranks does per second, where two looks show it.
    rates: Vec<Option<Rates>>,
}

impl<'a> View<'a> {
    /// Of these nodes, at the time `now`.
    pub fn new(windows: &'a [Window], now: f64) -> Self {
        let nodes = windows.iter().filter_map(|window| {
            let sample = window.last()?;
            let rates = sample.ranks.iter().map(|rank| window.rates(rank)).collect();
            Some(Node { name: &window.name, age: (now - sample.time).max(0.0), sample, rates })
        });
        Self { time: now, nodes: nodes.collect(), verdicts: diagnose(windows, now) }
    }

    /// One line.
    pub fn json(&self) -> String {
        // Plain data with string keys: nothing in it can't be written as JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What a person reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if self.nodes.iter().all(|node| node.age > OLD) {
            text += "Nothing is collected any more: the run is over, or its launchers are gone. This was the last:\n";
        }
        for node in &self.nodes {
            let Sample { host, stage, cores, memory, no_gpus, .. } = node.sample;
            let stage = if stage.is_empty() { "no stage yet" } else { stage };
            let (used, all) = (memory.0 as f64 / GIB, memory.1 as f64 / GIB);
            let _ = writeln!(
                text,
                "{} ({host}), {stage}: {cores} cores, {used:.1} of {all:.1} GiB in use; seen {:.0} s ago",
                node.name, node.age
            );
            match no_gpus {
                Some(why) => text += &format!("GPUs: {why}\n"),
                None if node.sample.gpus.is_empty() => text += "GPUs: none\n",
                None => text += &format!("{}\n", gpus(&node.sample.gpus)),
            }
            if !node.sample.ranks.is_empty() {
                text += &format!("{}\n", ranks(&node.sample.ranks, &node.rates));
            }
        }
        for Verdict { kind, rank, figures, help } in &self.verdicts {
            let of = rank.map_or(String::new(), |rank| format!(" (rank {rank})"));
            let _ = writeln!(text, "{}{of}: {figures}\n  help: {help}", kind.name());
        }
        text
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.iter().copied());
    table
}

fn gpus(gpus: &[Gpu]) -> Table {
    let mut table =
        table(&["GPU", "name", "util %", "memory GiB", "°C", "W", "SM MHz", "processes", "state"]);
    for gpu in gpus {
        let read = |name: &str, unit: f64, digits: usize| match gpu.counters.get(name) {
            Some(Reading::Value(value)) => format!("{:.digits$}", value / unit),
            Some(Reading::Missing(why)) => why.clone(),
            None => "-".to_owned(),
        };
        let state = match (&gpu.lost, gpu.throttled_by.is_empty()) {
            (Some(why), _) => format!("lost: {why}"),
            (None, true) => "ok".to_owned(),
            (None, false) => format!("throttled: {}", gpu.throttled_by.join(", ")),
        };
        let processes = gpu.processes.iter().map(|(pid, _)| pid.to_string());
        table.add_row([
            gpu.index.to_string(),
            gpu.name.clone(),
            read(UTILIZATION, 1.0, 0),
            format!("{} / {}", read(MEMORY_USED, GIB, 1), read(MEMORY_TOTAL, GIB, 1)),
            read(TEMPERATURE, 1.0, 0),
            read(POWER, 1.0, 0),
            read(SM_CLOCK, 1.0, 0),
            processes.collect::<Vec<_>>().join(" "),
            state,
        ]);
    }
    table
}

fn ranks(ranks: &[Rank], rates: &[Option<Rates>]) -> Table {
    let phases = Phase::ALL.map(|phase| format!("{} %", phase.name()));
    let mut header = vec!["rank", "task", "done", "per s", "tokens/s", "loss", "gates"];
    header.extend(phases.iter().map(String::as_str));
    header.extend(["cores", "queued", "MiB", "state"]);
    let mut table = table(&header);
    for (rank, rates) in ranks.iter().zip(rates) {
        let of = |digits: usize, value: Option<f64>| {
            value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let rate = |digits: usize, get: &dyn Fn(&Rates) -> f64| of(digits, rates.as_ref().map(get));
        let mut row = vec![
            rank.rank.to_string(),
            rank.task.clone(),
            format!("{} / {} {}", rank.done, rank.total, rank.unit),
            rate(1, &|rates| rates.units),
            rate(0, &|rates| rates.tokens),
            of(4, rank.measures.loss),
            of(2, rank.measures.gate_entropy),
        ];
        row.extend(Phase::ALL.map(|phase| rate(0, &|rates| 100.0 * rates.phase(phase))));
        let process = rank.process.as_ref();
        row.extend([
            rate(1, &|rates| rates.cpu),
            rate(1, &|rates| rates.queued),
            of(0, process.map(|process| process.rss as f64 / f64::from(1 << 20))),
            process.map_or("gone".to_owned(), |process| process.state.to_string()),
        ]);
        table.add_row(row);
    }
    table
}
