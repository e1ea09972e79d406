//! `compare`: runs side by side.

use std::collections::{BTreeMap, HashMap};

use comfy_table::Table;
use reclora_trainer::config::Config;
use reclora_trainer::metrics::{Bootstrap, Differences, Scored};
use reclora_trainer::stages::{Predicted, predictions};
use serde::Serialize;

use crate::cli::CompareArgs;
use crate::config;
use crate::error::{LaunchError, Result};
use crate::output::{printable, show};
use crate::report::table::{
    FIGURES, aligned, new, reference_titles, signed, to_references, with_interval,
};
use crate::report::{self, ModelSummary, label, number};
use crate::run_dir::{context, note_outdated};

/// Seed of the resamples: the same runs give the same intervals.
const SEED: u64 = 0;

/// A run beside the first.
#[derive(Debug, Serialize)]
struct Compared {
    run: String,
    /// Every model of the run, with its differences to RecLoRA and the CRM, as the run itself says.
    #[serde(serialize_with = "report::as_map")]
    models: Vec<(String, ModelSummary)>,
    samples: usize,
    /// Test samples that it has in common with the first run.
    shared: usize,
    /// The model's figures less those of the first run, on the samples in common; none for the first run.
    differences: Option<Differences>,
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
    show(&comparison(args)?, args.json, readable)
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
        let models = report::models(&context.run_dir)?;
        note_outdated(&context);
        let pairs = first.as_deref().map(|first| paired(first, &predicted));
        let resamples = args.resamples as usize;
        let differences = |pairs: &[Vec<Scored>; 2]| {
            Some(Bootstrap::new(pairs, resamples, SEED)?.differences(1, 0))
        };
        runs.push(Compared {
            run: run.display().to_string(),
            samples: predicted.len(),
            shared: pairs.as_ref().map_or(predicted.len(), |[shared, _]| shared.len()),
            differences: pairs.as_ref().and_then(differences),
            models,
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
    let mut users: Vec<&str> = shared.iter().map(|(sample, _)| sample.user.as_str()).collect();
    users.sort_unstable();
    users.dedup();
    let scored = |sample: &Predicted| Scored {
        user: users.partition_point(|user| *user < sample.user.as_str()) as u32,
        label: sample.label,
        probability: sample.probability,
    };
    [
        shared.iter().map(|(first, _)| scored(first)).collect(),
        shared.iter().map(|(_, second)| scored(second)).collect(),
    ]
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
    let mut text = format!("model {} on the test sets\n", comparison.model);
    text.push_str(&format!("{}\n", metrics(comparison)));
    text.push_str(&format!("{}\n", to_the_first(comparison)));
    text.push_str("all models of each run\n");
    for (figure, of) in FIGURES {
        let titles = ["run".to_owned(), format!("{figure} less that of")];
        let mut table = new(titles.into_iter().chain(reference_titles()));
        for run in &comparison.runs {
            let names = [printable(&run.run)].into_iter().chain(std::iter::repeat(String::new()));
            for (name, (key, model)) in names.zip(&run.models) {
                let cells = to_references(key, model, of);
                table.add_row([name, printable(label(key))].into_iter().chain(cells));
            }
        }
        text.push_str(&format!("{}\n", aligned(table, 2)));
    }
    if comparison.settings.is_empty() {
        text.push_str("the settings are the same\n");
        return text;
    }
    let header = comparison.runs.iter().map(|run| printable(&run.run));
    let mut settings = new(["setting".to_owned()].into_iter().chain(header));
    for (name, values) in &comparison.settings {
        settings.add_row([name].into_iter().chain(values).map(|text| printable(text)));
    }
    text.push_str(&format!("{settings}\n"));
    text
}

/// The compared model's figures, a row per run.
fn metrics(comparison: &Comparison) -> Table {
    let header = ["run", "AUC [95 %]", "gAUC [95 %]", "log loss", "accuracy", "samples"];
    let mut table = new(header.map(str::to_owned));
    for run in &comparison.runs {
        let model = run.models.iter().find(|(key, _)| *key == comparison.model);
        let of = model.map(|(_, model)| model.clone()).unwrap_or_default();
        table.add_row([
            printable(&run.run),
            with_interval(of.auc, of.auc_ci95),
            with_interval(of.gauc, of.gauc_ci95),
            number(of.log_loss),
            number(of.accuracy),
            run.samples.to_string(),
        ]);
    }
    aligned(table, 1)
}

/// The compared model's figures less those of the first run.
fn to_the_first(comparison: &Comparison) -> Table {
    let first = comparison.runs.first().map_or(String::new(), |run| printable(&run.run));
    let header = [format!("less {first}"), "AUC [95 %]".into(), "gAUC [95 %]".into()];
    let mut table = new(header.into_iter().chain(["samples in common".to_owned()]));
    for run in comparison.runs.iter().skip(1) {
        let by = run.differences.unwrap_or_default();
        let cells = FIGURES.map(|(_, of)| signed(of(&by)));
        let names = [printable(&run.run)].into_iter();
        table.add_row(names.chain(cells).chain([run.shared.to_string()]));
    }
    aligned(table, 1)
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
