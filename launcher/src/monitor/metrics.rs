//! What is seen, as Prometheus reads it. GPUs have the names, units and labels that NVIDIA's exporter gives them, so
//! that dashboards and alerts for that one work here too.

use prometheus::{CounterVec, Encoder, GaugeVec, Opts, Registry, TextEncoder};
use reclora_trainer::telemetry::measure::Phase;

use super::gpu::{COUNTERS, XID};
use super::sample::{Gpu, Rank, Sample};
use super::show::{Node, View};
use crate::error::Result;

/// The format that [`text`] is in.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const GPU_LABELS: [&str; 8] =
    ["gpu", "UUID", "device", "modelName", "Hostname", "job", "node", "stage"];
const RANK_LABELS: [&str; 5] = ["job", "node", "rank", "stage", "task"];

/// A metric's name, what it is, and where its value is from.
type Row<T, V> = (&'static str, &'static str, fn(&T) -> V);

/// Metrics of one moment: there is nothing to keep between two.
struct Families {
    registry: Registry,
}

impl Families {
    fn gauge(&self, name: &str, help: &str, labels: &[&str], rows: impl Rows) -> Result<()> {
        let family = GaugeVec::new(Opts::new(name, help), labels)?;
        for (labels, value) in rows {
            family.with_label_values(&labels).set(value);
        }
        Ok(self.registry.register(Box::new(family))?)
    }

    fn counter(&self, name: &str, help: &str, labels: &[&str], rows: impl Rows) -> Result<()> {
        let family = CounterVec::new(Opts::new(name, help), labels)?;
        // A counter can't go down, and of one moment it need not.
        for (labels, value) in rows.into_iter().filter(|(_, value)| *value >= 0.0) {
            family.with_label_values(&labels).inc_by(value);
        }
        Ok(self.registry.register(Box::new(family))?)
    }
}

/// The values of a family, each with its labels.
trait Rows: IntoIterator<Item = (Vec<String>, f64)> {}
impl<T: IntoIterator<Item = (Vec<String>, f64)>> Rows for T {}

/// Everything in `view`.
pub fn text(view: &View<'_>) -> Result<String> {
    let families = Families { registry: Registry::new() };
    gpus(&families, view)?;
    ranks(&families, view)?;
    nodes(&families, view)?;
    let mut bytes = Vec::new();
    TextEncoder::new().encode(&families.registry.gather(), &mut bytes)?;
    Ok(String::from_utf8(bytes)?)
}

/// The nodes that are looked at: of one that is gone, the last look would be taken for news.
fn seen<'v, 'a>(view: &'v View<'a>) -> impl Iterator<Item = &'v Node<'a>> {
    view.nodes.iter().filter(|node| !node.is_gone())
}

fn gpus(families: &Families, view: &View<'_>) -> Result<()> {
    let gpus: Vec<(&Node<'_>, &Gpu)> =
        seen(view).flat_map(|node| node.sample.gpus.iter().map(move |gpu| (node, gpu))).collect();
    let labels = |node: &Node<'_>, gpu: &Gpu| {
        vec![
            gpu.index.to_string(),
            gpu.uuid.clone(),
            format!("nvidia{}", gpu.index),
            gpu.name.clone(),
            node.sample.host.clone(),
            view.job.clone(),
            node.name.to_owned(),
            node.sample.stage.clone(),
        ]
    };
    for counter in &COUNTERS {
        let rows = gpus.iter().filter_map(|(node, gpu)| {
            Some((labels(node, gpu), gpu.value(counter.name)? / counter.per_unit))
        });
        match counter.is_total {
            true => families.counter(counter.dcgm, counter.help, &GPU_LABELS, rows)?,
            false => families.gauge(counter.dcgm, counter.help, &GPU_LABELS, rows)?,
        }
    }
    let gauges: [Row<Gpu, f64>; 3] = [
        (XID, "Value of the last XID error encountered.", |gpu| gpu.xid.unwrap_or(0) as f64),
        ("reclora_gpu_lost", "1 if the GPU can't be looked at any more.", |gpu| {
            f64::from(u8::from(gpu.lost.is_some()))
        }),
        ("reclora_gpu_throttled", "1 if its clocks are held down.", |gpu| {
            f64::from(u8::from(!gpu.throttled_by.is_empty()))
        }),
    ];
    for (name, help, value) in gauges {
        let rows = gpus.iter().map(|(node, gpu)| (labels(node, gpu), value(gpu)));
        families.gauge(name, help, &GPU_LABELS, rows)?;
    }
    Ok(())
}

fn ranks(families: &Families, view: &View<'_>) -> Result<()> {
    let ranks: Vec<(&Node<'_>, &Rank)> = seen(view)
        .flat_map(|node| node.sample.ranks.iter().map(move |rank| (node, rank)))
        .collect();
    let labels = |node: &Node<'_>, rank: &Rank| {
        vec![
            view.job.clone(),
            node.name.to_owned(),
            rank.rank.to_string(),
            node.sample.stage.clone(),
            rank.task.clone(),
        ]
    };
    let rows = |value: fn(&Rank) -> Option<f64>| {
        let rows = ranks.iter();
        rows.filter_map(move |(node, rank)| Some((labels(node, rank), value(rank)?)))
    };
    let counters: [Row<Rank, Option<f64>>; 5] = [
        ("steps", "Optimizer steps of the process.", |r| Some(r.measures.steps as f64)),
        ("samples", "Samples that went through a model.", |r| Some(r.measures.samples as f64)),
        ("tokens", "Tokens that went through the LLM.", |r| Some(r.measures.tokens as f64)),
        ("cpu_seconds", "Processor time.", |r| Some(r.process.as_ref()?.cpu)),
        ("read_bytes", "Bytes from storage.", |r| Some(r.process.as_ref()?.read as f64)),
    ];
    for (name, help, value) in counters {
        families.counter(&format!("reclora_rank_{name}_total"), help, &RANK_LABELS, rows(value))?;
    }
    let gauges: [Row<Rank, Option<f64>>; 7] = [
        ("done", "Units of the task that are done.", |r| Some(r.done as f64)),
        ("units", "Units of the task, of all ranks.", |r| Some(r.total as f64)),
        ("silent_seconds", "Since the rank last said anything.", |r| Some(r.silent)),
        ("loss", "Newest training loss.", |r| r.measures.loss),
        ("deciding_loss", "Newest loss of the choice between yes and no.", |r| {
            r.measures.deciding_loss
        }),
        ("gate_entropy_ratio", "How evenly the experts are used; 1 is even.", |r| {
            r.measures.gate_entropy
        }),
        ("resident_bytes", "Resident memory.", |r| Some(r.process.as_ref()?.rss as f64)),
    ];
    for (name, help, value) in gauges {
        families.gauge(&format!("reclora_rank_{name}"), help, &RANK_LABELS, rows(value))?;
    }
    let phases = ranks.iter().flat_map(|(node, rank)| {
        Phase::ALL.map(|phase| {
            let mut labels = labels(node, rank);
            labels.push(phase.name().to_owned());
            (labels, rank.measures.seconds[phase as usize])
        })
    });
    let with_phase = [&RANK_LABELS[..], &["phase"]].concat();
    let help = "Time of the rank, by what it was spent on.";
    families.counter("reclora_rank_phase_seconds_total", help, &with_phase, phases)
}

fn nodes(families: &Families, view: &View<'_>) -> Result<()> {
    let rows = |value: fn(&Sample) -> f64| {
        let labels = |node: &Node<'_>| {
            vec![view.job.clone(), node.name.to_owned(), node.sample.host.clone()]
        };
        view.nodes.iter().map(move |node| (labels(node), value(node.sample)))
    };
    let labels = ["job", "node", "Hostname"];
    let gauges: [Row<Sample, f64>; 4] = [
        ("cores", "Cores.", |sample| sample.cores as f64),
        ("memory_used_bytes", "Memory in use.", |sample| sample.memory.0 as f64),
        ("memory_bytes", "Memory.", |sample| sample.memory.1 as f64),
        ("seen_timestamp_seconds", "When the node was last looked at.", |sample| sample.time),
    ];
    for (name, help, value) in gauges {
        families.gauge(&format!("reclora_node_{name}"), help, &labels, rows(value))?;
    }
    let verdicts = view.verdicts.iter().map(|verdict| {
        let rank = verdict.rank.map_or(String::new(), |rank| rank.to_string());
        (vec![view.job.clone(), verdict.kind.name().to_owned(), rank], 1.0)
    });
    let labels = ["job", "verdict", "rank"];
    families.gauge(
        "reclora_verdict",
        "What holds the run up, if it is seen.",
        &labels,
        verdicts,
    )?;
    let goodput = view.goodput.share();
    let goodput = goodput.map(|share| (vec![view.job.clone()], share));
    let help = "Share of the run's time, restarts included, that went into progress.";
    families.gauge("reclora_goodput_ratio", help, &["job"], goodput)
}
