//! The run in a few numbers: `summary.json`.

use std::collections::BTreeMap;

use reclora_trainer::metrics::{COMPARED, Compared, Difference, Differences, Gain};
use reclora_trainer::stages::{Leak, ScoredOrder, ScoredSamples};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::RunInfo;
use super::inputs::{Evaluation, Gate, Inputs};

/// What `summary.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Test metrics by model, RecLoRA first.
    #[serde(serialize_with = "as_map")]
    pub metrics: Vec<(String, ModelSummary)>,
    /// Which test samples these were measured on.
    pub scored: ScoredSamples,
    /// How evenly the gates mix: the mean entropy of their weights as a share of that of an even mix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate_evenness: Option<f64>,
    /// In runs with a holdout: how much surer a CRM is of labels that it was trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leak: Option<Leak>,
    /// With a prior: how much of what each LLM adds to the CRM's score is believed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub gains: BTreeMap<String, Gain>,
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

/// The difference in one figure.
pub type OfFigure = fn(&Differences) -> Option<Difference>;

/// Test metrics of one model; `None` (JSON `null`) where undefined.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelSummary {
    /// Area under the ROC curve.
    pub auc: Option<f64>,
    /// Mean negative log likelihood, in nats.
    pub log_loss: Option<f64>,
    /// Share of samples on the right side of probability 0.5.
    pub accuracy: Option<f64>,
    /// AUC within each user, averaged by the user's samples.
    pub gauc: Option<f64>,
    /// 95 % bootstrap interval of the AUC, over users.
    pub auc_ci95: Option<[f64; 2]>,
    /// 95 % bootstrap interval of the group AUC, over users.
    pub gauc_ci95: Option<[f64; 2]>,
    /// AUC and group AUC less those of RecLoRA and of the CRM, by their names.
    pub differences: BTreeMap<String, Differences>,
}

impl Summary {
    pub(super) fn new(inputs: &Inputs, info: &RunInfo) -> Self {
        Self {
            metrics: models(&inputs.evaluation),
            scored: inputs.evaluation.scored,
            gate_evenness: inputs.evaluation.gate.as_ref().and_then(Gate::evenness),
            leak: inputs.evaluation.leak,
            gains: inputs.evaluation.gains.clone(),
            stages: info.stages.clone(),
            hashes: info.hashes.clone(),
            world_size: info.world_size,
            adapter_xxh3: inputs.adapter_xxh3.clone(),
        }
    }
}

/// The models' figures in the order they are shown.
pub(super) fn models(evaluation: &Evaluation) -> Vec<(String, ModelSummary)> {
    let known = COMPARED.iter().map(|model| model.key);
    let others = evaluation.models.keys().map(String::as_str);
    let others = others.filter(|key| Compared::find(key).is_none());
    let summary = |key: &str| {
        let model = evaluation.models.get(key)?;
        let metrics = &model.metrics;
        let summary = ModelSummary {
            auc: metrics.auc,
            log_loss: metrics.log_loss,
            accuracy: metrics.accuracy,
            gauc: metrics.gauc,
            auc_ci95: metrics.auc_interval(),
            gauc_ci95: metrics.gauc_interval(),
            differences: model.differences.clone(),
        };
        Some((key.to_owned(), summary))
    };
    known.chain(others).filter_map(summary).collect()
}

/// What the LLM brings, in the runs whose CRM reads vectors of items: differences to the CRM that does not.
pub(super) fn contributions(models: &[(String, ModelSummary)]) -> Vec<(&'static str, Differences)> {
    let lines = [
        ("vectors in the CRM", "crm", "crm_no_vectors"),
        ("tuned LLM over it", "reclora", "crm"),
        ("both together", "reclora", "crm_no_vectors"),
    ];
    if !models.iter().any(|(key, _)| key == "crm_no_vectors") {
        return Vec::new();
    }
    let found = lines.into_iter().filter_map(|(what, model, reference)| {
        let (_, model) = models.iter().find(|(key, _)| key == model)?;
        Some((what, *model.differences.get(reference)?))
    });
    found.collect()
}

/// Which test samples were scored, in words; `number` writes a number.
pub(super) fn what_was_scored(scored: &ScoredSamples, number: fn(u64) -> String) -> String {
    let ScoredSamples { samples, of_samples, users, of_users, .. } = scored;
    let [samples, of_samples, users, of_users] =
        [samples, of_samples, users, of_users].map(|count| number(*count));
    let which = match scored.order {
        ScoredOrder::All => format!("all {samples} test samples, of {users} users"),
        ScoredOrder::First => format!(
            "the first {samples} of {of_samples} test samples, of {users} of {of_users} users; others may \
             be easier or harder"
        ),
        ScoredOrder::Sample => format!(
            "{samples} of {of_samples} test samples, drawn at random, of {users} of {of_users} users"
        ),
    };
    let share = scored.likes as f64 / scored.samples.max(1) as f64;
    let ranked = number(scored.ranked_users);
    format!("{which}; {:.1} % are likes; gAUC is of the {ranked} users with both", 100.0 * share)
}

/// The name of a model for people; a model this version does not know keeps its own.
pub fn label(key: &str) -> &str {
    Compared::find(key).map_or(key, |model| model.label)
}

/// Four decimals, or `-` where undefined.
pub fn number(value: Option<f64>) -> String {
    match value {
        Some(value) if value.is_finite() => format!("{value:.4}"),
        _ => "-".to_owned(),
    }
}

/// Writes pairs as a map in their order, which a `BTreeMap` would not.
pub fn as_map<S: Serializer, V: Serialize>(
    pairs: &[(String, V)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(pairs.len()))?;
    for (key, value) in pairs {
        map.serialize_entry(key, value)?;
    }
    map.end()
}
