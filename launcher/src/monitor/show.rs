//! What is seen: as JSON, as text, and as the tables that other views draw.

use std::fmt::Write as _;

use comfy_table::{Table, presets};
use reclora_trainer::telemetry::measure::Phase;
use serde::Serialize;

use super::curve::Curve;
use super::gpu::{
    MEMORY_TOTAL, MEMORY_USED, POWER, SM_CLOCK, TEMPERATURE, TENSOR_ACTIVE, UTILIZATION,
};
use super::sample::{GIB, Goodput, Gpu, Rank, Reading, Sample};
use super::store::LEADER;
use super::verdict::{OLD, Verdict, diagnose};
use super::window::{Rates, Window};

/// All nodes at a moment.
#[derive(Debug, Serialize)]
pub struct View<'a> {
    /// What is looked at.
    pub job: String,
    /// Seconds since 1970.
    pub time: f64,
    /// The nodes, by the names of their files.
    pub nodes: Vec<Node<'a>>,
    /// What there is to say of them.
    pub verdicts: Vec<Verdict>,
    /// The loss of the run.
    pub loss: &'a Curve,
    /// What the run's time went to.
    pub goodput: Goodput,
}

/// A node.
#[derive(Debug, Serialize)]
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// Seconds since it was looked at.
    pub age: f64,
    /// The latest look.
    pub sample: &'a Sample,
    /// What each of its ranks does per second, where two looks show it.
    pub rates: Vec<Option<Rates>>,
}

impl<'a> View<'a> {
    /// Of these nodes, at the time `now`.
    pub fn new(job: &str, windows: &'a [Window], loss: &'a Curve, now: f64) -> Self {
        let nodes = windows.iter().filter_map(|window| {
            let sample = window.last()?;
            let rates = sample.ranks.iter().map(|rank| window.rates(rank)).collect();
            Some(Node { name: &window.name, age: (now - sample.time).max(0.0), sample, rates })
        });
        let (nodes, verdicts) = (nodes.collect(), diagnose(windows, now));
        let leader = windows.iter().find(|window| window.name == LEADER).and_then(Window::last);
        let goodput = leader.map(|sample| sample.goodput.clone()).unwrap_or_default();
        Self { job: job.to_owned(), time: now, nodes, verdicts, loss, goodput }
    }

    /// One line.
    pub fn json(&self) -> String {
        // Plain data with string keys: nothing in it can't be written as JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether nobody collects any more.
    pub fn is_over(&self) -> bool {
        self.nodes.iter().all(Node::is_gone)
    }

    /// What a person reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if self.is_over() {
            text += "Nothing is collected any more: the run is over, or its launchers are gone. This was the last:\n";
        }
        for node in &self.nodes {
            text += &format!("{}\n", node.heading());
            match (&node.sample.no_gpus, node.sample.gpus.is_empty()) {
                (Some(why), _) => text += &format!("GPUs: {why}\n"),
                (None, true) => text += "GPUs: none\n",
                (None, false) => text += &format!("{}\n", gpus(&node.sample.gpus).text()),
            }
            if !node.sample.ranks.is_empty() {
                text += &format!("{}\n", ranks(&node.sample.ranks, &node.rates).text());
            }
        }
        for Verdict { kind, rank, figures, help } in &self.verdicts {
            let of = rank.map_or(String::new(), |rank| format!(" (rank {rank})"));
            let _ = writeln!(text, "{}{of}: {figures}\n  help: {help}", kind.name());
        }
        let goodput = self.goodput.text();
        if goodput.is_empty() { text } else { text + &goodput + "\n" }
    }
}

impl Node<'_> {
    /// Whether nobody looks at it any more.
    pub fn is_gone(&self) -> bool {
        self.age > OLD
    }

    /// What it is and does, in a line.
    pub fn heading(&self) -> String {
        let Sample { host, stage, cores, memory, .. } = self.sample;
        let stage = if stage.is_empty() { "no stage yet" } else { stage };
        let (used, all) = (memory.0 as f64 / GIB, memory.1 as f64 / GIB);
        format!(
            "{} ({host}), {stage}: {cores} cores, {used:.1} of {all:.1} GiB in use; seen {:.0} s ago",
            self.name, self.age
        )
    }
}

/// A table as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Titles of the columns, and whether they are shown where there is little room.
    pub header: Vec<(String, bool)>,
    /// The cells of each row.
    pub rows: Vec<Vec<String>>,
}

impl Grid {
    fn text(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(self.header.iter().map(|(title, _)| title));
        table.add_rows(&self.rows);
        table
    }
}

/// The GPUs of a node.
pub fn gpus(gpus: &[Gpu]) -> Grid {
    let header = [
        ("GPU", true),
        ("name", false),
        ("util %", true),
        ("tensor %", false),
        ("memory GiB", true),
        ("°C", true),
        ("W", true),
        ("SM MHz", false),
        ("processes", false),
        ("state", true),
    ];
    let row = |gpu: &Gpu| {
        let read = |name: &str, unit: f64, digits: usize| match gpu.counters.get(name) {
            Some(Reading::Value(value)) => format!("{:.digits$}", value / unit),
            Some(Reading::Missing(_)) | None => "-".to_owned(),
        };
        let mut state = match (&gpu.lost, gpu.throttled_by.is_empty()) {
            (Some(why), _) => format!("lost: {why}"),
            (None, true) => "ok".to_owned(),
            (None, false) => format!("throttled: {}", gpu.throttled_by.join(", ")),
        };
        if let Some(xid) = gpu.xid {
            state += &format!(", Xid {xid}");
        }
        let processes = gpu.processes.iter().map(|(pid, _)| pid.to_string());
        vec![
            gpu.index.to_string(),
            gpu.name.clone(),
            read(UTILIZATION, 1.0, 0),
            read(TENSOR_ACTIVE, 1.0, 0),
            format!("{} / {}", read(MEMORY_USED, GIB, 1), read(MEMORY_TOTAL, GIB, 1)),
            read(TEMPERATURE, 1.0, 0),
            read(POWER, 1.0, 0),
            read(SM_CLOCK, 1.0, 0),
            processes.collect::<Vec<_>>().join(" "),
            state,
        ]
    };
    let header = header.map(|(title, is_short)| (title.to_owned(), is_short));
    Grid { header: header.to_vec(), rows: gpus.iter().map(row).collect() }
}

/// The ranks of a node.
pub fn ranks(ranks: &[Rank], rates: &[Option<Rates>]) -> Grid {
    let mut header = vec![
        ("rank", true),
        ("task", false),
        ("done", true),
        ("per s", true),
        ("tokens/s", false),
        ("loss", true),
        ("gates", false),
    ];
    header.extend(Phase::ALL.map(|phase| (phase.name(), true)));
    header.extend([("cores", true), ("queued", false), ("MiB", false), ("state", true)]);
    let row = |(rank, rates): (&Rank, &Option<Rates>)| {
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
        row
    };
    let titled =
        |(title, is_short): (&str, bool)| match Phase::ALL.iter().any(|p| p.name() == title) {
            true => (format!("{title} %"), is_short),
            false => (title.to_owned(), is_short),
        };
    Grid {
        header: header.into_iter().map(titled).collect(),
        rows: ranks.iter().zip(rates).map(row).collect(),
    }
}
