//! The page: figures and numbers put into the template, which escapes every value.

use color_eyre::eyre::WrapErr;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use reclora_trainer::metrics::{Compared, Difference, Differences, HistoryGroup, Role};
use reclora_trainer::telemetry::measure::Phase;
use serde::Serialize;

use super::inputs::{Gate, Inputs};
use super::summary::{ModelSummary, Summary, contributions, label, number, what_was_scored};
use super::table::FIGURES;
use super::{RunInfo, figures, verdict};
use crate::error::Result;
use crate::monitor::usage::StageUse;
use crate::output::count;

const TEMPLATE: &str = include_str!("index.html.j2");

/// A row of the metrics table, as text.
#[derive(Serialize)]
struct Row {
    name: String,
    auc: String,
    auc_interval: Option<[String; 2]>,
    /// The interval's place on the column's common scale, in percent: left end and width.
    bar: Option<[String; 2]>,
    log_loss: String,
    accuracy: String,
    gauc: String,
    gauc_interval: Option<[String; 2]>,
}

/// A row of the table of differences.
#[derive(Serialize)]
struct DifferenceRow {
    name: String,
    /// For each reference, the differences in each figure; none of a reference to itself.
    cells: Vec<Option<DifferenceCell>>,
}

/// A difference, as text.
#[derive(Serialize)]
struct DifferenceCell {
    value: String,
    interval: Option<[String; 2]>,
    /// Whether 0 is outside the interval.
    is_sure: bool,
}

/// A row of the table by history length.
#[derive(Serialize)]
struct HistoryRow {
    name: String,
    samples: String,
    /// The AUC of each model.
    aucs: Vec<String>,
}

/// A row of the stage table.
#[derive(Serialize)]
struct StageRow {
    name: String,
    time: String,
    percent: String,
    /// What was seen of it.
    used: Option<UsedRow>,
}

/// What a stage used, as text.
#[derive(Serialize)]
struct UsedRow {
    compute: String,
    data: String,
    communication: String,
    cores: String,
    gpu: String,
}

/// A row of the gate's table of numbers.
#[derive(Serialize)]
struct GateRow {
    name: String,
    weights: Vec<String>,
    entropy: String,
}

/// Renders `index.html`.
pub(super) fn render(inputs: &Inputs, info: &RunInfo, summary: &Summary) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let models: Vec<String> = summary.metrics.iter().map(|(key, _)| key.clone()).collect();
    let total: f64 = summary.stages.iter().map(|(_, seconds)| seconds).sum();
    let values = context! {
        name => info.name,
        samples => thousands(summary.scored.samples),
        users => thousands(summary.scored.users),
        scored => what_was_scored(&summary.scored, thousands),
        world_size => info.world_size,
        adapter_xxh3 => summary.adapter_xxh3,
        rows => rows(inputs, &models),
        verdict => verdict::sentences(summary),
        colours => figures::colours(),
        references => Compared::keys(Role::Reference).map(label).collect::<Vec<_>>(),
        compared => FIGURES.map(|(figure, _)| figure),
        differences => summary.metrics.iter().map(difference_row).collect::<Vec<_>>(),
        contributions => contributions(&summary.metrics).iter().map(contribution_row).collect::<Vec<_>>(),
        test => figures::test(inputs, &models)?,
        tuning => figures::tuning(inputs)?,
        crm => figures::crm(&inputs.crm)?,
        gate => figures::gate(inputs.evaluation.gate.as_ref())?,
        gate_rows => inputs.evaluation.gate.as_ref().map(gate_rows),
        experts => inputs.evaluation.gate.as_ref().map_or(0, |gate| gate.experts),
        even_entropy => inputs.evaluation.gate.as_ref().map(even_entropy),
        histories => history_rows(inputs, &models),
        history_models => models.iter().map(|key| label(key)).collect::<Vec<_>>(),
        stages => stage_rows(summary, &inputs.used, total),
        is_seen => !inputs.used.is_empty(),
        goodput => inputs.goodput.text(),
        total => duration(total),
        hashes => summary.hashes,
        config => info.config_toml,
    };
    environment
        .render_named_str("index.html", TEMPLATE, values)
        .wrap_err("report: can't render the page")
}

fn rows(inputs: &Inputs, models: &[String]) -> Vec<Row> {
    let found: Vec<_> =
        models.iter().filter_map(|key| Some((key, inputs.evaluation.models.get(key)?))).collect();
    let intervals = || found.iter().filter_map(|(_, model)| model.metrics.auc_interval());
    let low = intervals().map(|[low, _]| low).fold(f64::INFINITY, f64::min);
    let high = intervals().map(|[_, high]| high).fold(f64::NEG_INFINITY, f64::max);
    let place = |value: f64| 100.0 * (value - low) / (high - low).max(1e-9);
    found
        .iter()
        .map(|(key, model)| {
            let metrics = &model.metrics;
            let interval = metrics.auc_interval();
            Row {
                name: label(key).to_owned(),
                auc: number(metrics.auc),
                auc_interval: interval.map(ends),
                bar: interval.map(|[low, high]| {
                    let (left, right) = (place(low), place(high));
                    [format!("{left:.1}"), format!("{:.1}", (right - left).max(0.5))]
                }),
                log_loss: number(metrics.log_loss),
                accuracy: number(metrics.accuracy),
                gauc: number(metrics.gauc),
                gauc_interval: metrics.gauc_interval().map(ends),
            }
        })
        .collect()
}

fn ends(interval: [f64; 2]) -> [String; 2] {
    interval.map(|end| number(Some(end)))
}

fn cell(by: Difference) -> DifferenceCell {
    DifferenceCell {
        value: format!("{:+.4}", by.difference),
        interval: by.ci95.map(|ends| ends.map(|end| format!("{end:+.4}"))),
        is_sure: by.ci95.is_some_and(|[low, high]| low > 0.0 || high < 0.0),
    }
}

fn contribution_row((what, by): &(&str, Differences)) -> DifferenceRow {
    let cells = FIGURES.map(|(_, of)| of(by).map(cell));
    DifferenceRow { name: (*what).to_owned(), cells: cells.into() }
}

fn difference_row((key, model): &(String, ModelSummary)) -> DifferenceRow {
    let to = |reference: &str| {
        let by = model.differences.get(reference).copied().unwrap_or_default();
        FIGURES.map(|(_, of)| of(&by).map(cell))
    };
    DifferenceRow {
        name: label(key).to_owned(),
        cells: Compared::keys(Role::Reference).flat_map(to).collect(),
    }
}

fn history_rows(inputs: &Inputs, models: &[String]) -> Vec<HistoryRow> {
    let groups = |key: &String| {
        let model = inputs.evaluation.models.get(key);
        model.map(|model| model.by_history_length.as_slice()).unwrap_or_default()
    };
    let Some(first) = models.first() else { return Vec::new() };
    let row = |group: &HistoryGroup| {
        let auc = |key: &String| {
            let same = groups(key).iter().find(|other| other.from == group.from);
            number(same.and_then(|group| group.auc))
        };
        HistoryRow {
            name: format!("{} to {}", group.from, group.to.saturating_sub(1)),
            samples: thousands(group.samples),
            aucs: models.iter().map(auc).collect(),
        }
    };
    groups(first).iter().map(row).collect()
}

fn stage_rows(summary: &Summary, used: &[StageUse], total: f64) -> Vec<StageRow> {
    let percent = |seconds: f64| (100.0 * seconds / total.max(1e-9)).clamp(0.0, 100.0);
    let row = |(name, seconds): &(String, f64)| StageRow {
        name: name.clone(),
        time: duration(*seconds),
        percent: format!("{:.1}", percent(*seconds)),
        used: used.iter().find(|used| used.stage == *name).map(used_row),
    };
    summary.stages.iter().map(row).collect()
}

fn used_row(used: &StageUse) -> UsedRow {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let share = |phase| used.phases[phase as usize];
    UsedRow {
        compute: percent(share(Phase::Forward) + share(Phase::Backward) + share(Phase::Optimizer)),
        data: percent(share(Phase::Data)),
        communication: percent(share(Phase::Communication)),
        cores: format!("{:.1}", used.cores),
        gpu: used.gpu.map_or("-".to_owned(), |gpu| percent(gpu / 100.0)),
    }
}

fn gate_rows(gate: &Gate) -> Vec<GateRow> {
    let row = |module: &super::inputs::GateModule| GateRow {
        name: module.name.clone(),
        weights: module.mean_alpha.iter().copied().map(number).collect(),
        entropy: number(module.entropy),
    };
    gate.modules.iter().map(row).collect()
}

/// Entropy of an even mix, in nats: the largest there is.
fn even_entropy(gate: &Gate) -> String {
    number(Some((gate.experts.max(1) as f64).ln()))
}

/// `0.4 s`, `12.3 s`, `3 min 05 s`, `2 h 07 min`.
fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".to_owned();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `1234567` is `1 234 567` (with narrow no-break spaces).
fn thousands(value: u64) -> String {
    count(value).replace(',', "\u{202f}")
}
