//! `compare`: runs side by side.

use std::collections::{BTreeMap, HashMap};

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use reclora_trainer::config::Config;
use reclora_trainer::metrics::{AucDifference, Metrics, Scored, auc_difference};
use reclora_trainer::stages::{Predicted, predictions};
use serde::Serialize;

use crate::cli::CompareArgs;
use crate::commands::{context, print};
use crate::config;
use crate::error::{LaunchError, Result};
use crate::progress::display::printable;
use crate::report::number;

/// Seed of the resamples: the same runs give the same intervals.
const SEED: u64 = 0;

/// A run beside the first.
#[derive(Debug, Serialize)]
struct Compared {
    run: String,
    metrics: Metrics,
    samples: usize,
    /// Test samples that it has in common with the first run.
    shared: usize,
    /// On these; none for the first run, and where there are none.
    auc_difference: Option<AucDifference>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Comparison {
    model: String,
    runs: Vec<Compared>,
    /// Settings in which the runs differ, each with the value of every run.
    settings: BTreeMap<String, Vec<String>>,
}

/// Reads the runs, and prints them beside each other.
pub fn compare(args: &CompareArgs) -> Result<()> {
    let comparison = comparison(args)?;
    if args.json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&comparison)?));
    }
    print(&readable(&comparison))
}

fn comparison(args: &CompareArgs) -> Result<Comparison> {
    let mut configs = Vec::new();
    let mut first: Option<Vec<Predicted>> = None;
    let mut runs = Vec::new();
    for run in &args.runs {
        if !run.is_dir() {
            let text = format!("{}: there is no such run directory", run.display());
            return Err(LaunchError::Usage(text).into());
        }
        let context = context(run)?;
        let predicted = predictions(&context, &args.model)?;
        let pairs = first.as_deref().map(|first| paired(first, &predicted));
        let resamples = args.resamples as usize;
        let difference = pairs.as_ref().and_then(|[a, b]| auc_difference(a, b, resamples, SEED));
        // With the run's own intervals.
        let (bootstrap, seed) = (context.config.evaluate.bootstrap, context.config.seed);
        runs.push(Compared {
            run: run.display().to_string(),
            metrics: Metrics::compute(&scored(predicted.iter()), bootstrap, seed),
            samples: predicted.len(),
            shared: pairs.map_or(predicted.len(), |[shared, _]| shared.len()),
            auc_difference: difference,
        });
        first.get_or_insert(predicted);
        configs.push(context.config);
    }
    Ok(Comparison { model: args.model.clone(), runs, settings: differing(&configs) })
}

/// The samples of both, in the order of the second.
fn paired(first: &[Predicted], second: &[Predicted]) -> [Vec<Scored>; 2] {
    fn key(sample: &Predicted) -> (&str, &str, i64, bool) {
        (&sample.user, &sample.item, sample.timestamp, sample.label)
    }
    let places: HashMap<_, &Predicted> = first.iter().map(|sample| (key(sample), sample)).collect();
    let shared: Vec<(&Predicted, &Predicted)> =
        second.iter().filter_map(|sample| Some((*places.get(&key(sample))?, sample))).collect();
    [scored(shared.iter().map(|(a, _)| *a)), scored(shared.iter().map(|(_, b)| *b))]
}

/// As the metrics want them: users by number.
fn scored<'a>(predicted: impl Iterator<Item = &'a Predicted>) -> Vec<Scored> {
    let mut users: HashMap<&str, u32> = HashMap::new();
    predicted
        .map(|sample| {
            let next = users.len() as u32;
            let user = *users.entry(&sample.user).or_insert(next);
            Scored { user, label: sample.label, probability: sample.probability }
        })
        .collect()
}

/// Settings that are not the same in all runs. Where a run is and how it was computed is no difference between
/// experiments.
fn differing(configs: &[Config]) -> BTreeMap<String, Vec<String>> {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in configs.iter().flat_map(config::settings) {
        values.entry(name).or_default().push(value);
    }
    values.retain(|name, values| {
        let own = name == "run_dir" || name.starts_with("runtime.");
        !own && values.iter().any(|value| *value != values[0])
    });
    values
}

fn readable(comparison: &Comparison) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    let difference = "AUC less the first's [95 %]";
    table.set_header(["run", "AUC [95 %]", difference, "log loss", "accuracy", "gAUC", "samples"]);
    for run in &comparison.runs {
        let metrics = &run.metrics;
        let interval = |ci95: Option<[f64; 2]>| {
            ci95.map_or(String::new(), |[low, high]| format!(" [{low:.4}, {high:.4}]"))
        };
        let signed = |ci95: Option<[f64; 2]>| {
            ci95.map_or(String::new(), |[low, high]| format!(" [{low:+.4}, {high:+.4}]"))
        };
        let difference = run.auc_difference.map_or_else(
            || "-".to_owned(),
            |by| format!("{:+.4}{}", by.difference, signed(by.ci95)),
        );
        let samples = match run.shared == run.samples {
            true => run.samples.to_string(),
            false => format!("{} ({} in common)", run.samples, run.shared),
        };
        table.add_row([
            printable(&run.run),
            format!("{}{}", number(metrics.auc), interval(metrics.auc_ci95)),
            difference,
            number(metrics.log_loss),
            number(metrics.accuracy),
            number(metrics.gauc),
            samples,
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("model {} on the test sets\n{table}\n", comparison.model);
    if comparison.settings.is_empty() {
        text.push_str("the settings are the same\n");
        return text;
    }
    let mut settings = Table::new();
    settings.load_preset(UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    let header = comparison.runs.iter().map(|run| printable(&run.run));
    settings.set_header(["setting".to_owned()].into_iter().chain(header));
    for (name, values) in &comparison.settings {
        settings.add_row([name].into_iter().chain(values).map(|text| printable(text)));
    }
    text.push_str(&format!("{settings}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_differ_are_named() {
        let mut other = Config { run_dir: "elsewhere".into(), ..Config::default() };
        other.adapter.rank += 1;
        other.runtime.nproc_per_node += 1;
        let ranks = [&Config::default(), &other].map(|config| config.adapter.rank.to_string());
        let expected = BTreeMap::from([("adapter.rank".to_owned(), ranks.to_vec())]);
        assert_eq!(differing(&[Config::default(), other]), expected);
    }

    #[test]
    fn samples_are_paired_by_what_they_are() {
        let sample = |user: &str, timestamp, probability| Predicted {
            user: user.into(),
            item: "i".into(),
            timestamp,
            label: timestamp > 1,
            probability,
        };
        let first = [sample("a", 1, 0.1), sample("a", 2, 0.2), sample("b", 1, 0.3)];
        let second = [sample("b", 1, 0.5), sample("a", 2, 0.6), sample("c", 1, 0.7)];
        let [a, b] = paired(&first, &second);
        let values = |scored: &[Scored]| scored.iter().map(|s| s.probability).collect::<Vec<_>>();
        assert_eq!((values(&a), values(&b)), (vec![0.3, 0.2], vec![0.5, 0.6]));
    }
}
