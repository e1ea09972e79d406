//! The run in a few numbers: `summary.json` and the table at the end of `run`.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::RunInfo;
use super::inputs::Inputs;

/// The models of the comparison in the order they are shown, with the names people read.
const MODELS: [(&str, &str); 5] = [
    ("reclora", "RecLoRA"),
    ("lora", "plain LoRA"),
    ("crm", "CRM alone"),
    ("logistic_regression", "logistic regression"),
    ("item_mean", "item mean"),
];

/// What `summary.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Test metrics by model, RecLoRA first.
    #[serde(serialize_with = "as_map")]
    pub metrics: Vec<(String, ModelSummary)>,
    /// Seconds by stage, in the order they ran.
    #[serde(serialize_with = "as_map")]
    pub stages: Vec<(String, f64)>,
    /// Hash of the content of each stage's files: equal for equal files, of whatever run.
    #[serde(serialize_with = "as_map")]
    pub hashes: Vec<(String, String)>,
    /// Number of ranks of the distributed stages.
    pub world_size: usize,
    /// Hash of the tuned adapter's weights.
    pub adapter_xxh3: String,
}

/// Test metrics of one model; `None` (JSON `null`) where undefined.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ModelSummary {
    /// Area under the ROC curve.
    pub auc: Option<f64>,
    /// Mean negative log likelihood, in nats.
    pub log_loss: Option<f64>,
    /// Share of samples on the right side of probability 0.5.
    pub accuracy: Option<f64>,
    /// AUC within each user, averaged by the user's samples.
    pub gauc: Option<f64>,
    /// 95 % bootstrap interval of the AUC.
    pub auc_ci95: Option<[f64; 2]>,
}

impl Summary {
    pub(super) fn new(inputs: &Inputs, info: &RunInfo) -> Self {
        let models = &inputs.evaluation.models;
        let known = MODELS.iter().map(|(key, _)| *key);
        let others = models.keys().map(String::as_str).filter(|key| !is_known(key));
        let metrics = known
            .chain(others)
            .filter_map(|key| {
                let metrics = &models.get(key)?.metrics;
                let row = ModelSummary {
                    auc: metrics.auc,
                    log_loss: metrics.log_loss,
                    accuracy: metrics.accuracy,
                    gauc: metrics.gauc,
                    auc_ci95: metrics.auc_interval(),
                };
                Some((key.to_owned(), row))
            })
            .collect();
        Self {
            metrics,
            stages: info.stages.clone(),
            hashes: info.hashes.clone(),
            world_size: info.world_size,
            adapter_xxh3: inputs.adapter_xxh3.clone(),
        }
    }

    /// The content of `summary.json`.
    pub(super) fn to_json(&self) -> String {
        // Maps with string keys and plain values only: serialisation has nothing to fail on.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

fn is_known(key: &str) -> bool {
    MODELS.iter().any(|(known, _)| *known == key)
}

/// The name of a model for people; a model this version does not know keeps its own.
pub(super) fn label(key: &str) -> &str {
    MODELS.iter().find(|(known, _)| *known == key).map_or(key, |(_, label)| label)
}

/// The table for the terminal: a row per model, `-` where a metric is undefined.
pub fn table(summary: &Summary) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["model", "AUC [95 % interval]", "log loss", "accuracy", "gAUC"]);
    for (key, row) in &summary.metrics {
        let auc = match row.auc_ci95 {
            Some([low, high]) => format!("{} [{low:.4}, {high:.4}]", number(row.auc)),
            None => number(row.auc),
        };
        // Names come from a file: control characters must not reach the terminal.
        let name: String = label(key).chars().filter(|c| !c.is_control()).collect();
        let numbers = [row.log_loss, row.accuracy, row.gauc].map(number);
        table.add_row([name, auc].into_iter().chain(numbers));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Four decimals, or `-` where undefined.
pub fn number(value: Option<f64>) -> String {
    match value {
        Some(value) if value.is_finite() => format!("{value:.4}"),
        _ => "-".to_owned(),
    }
}

/// Keeps the order of the pairs, which a `BTreeMap` would not.
fn as_map<S: Serializer, V: Serialize>(
    pairs: &[(String, V)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(pairs.len()))?;
    for (key, value) in pairs {
        map.serialize_entry(key, value)?;
    }
    map.end()
}
