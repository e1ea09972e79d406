//! The files the report is made of, read and checked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use color_eyre::Report;
use color_eyre::eyre::eyre;
use reclora_storage::StorageError;
use reclora_trainer::config::TunedModel;
use reclora_trainer::metrics::{CalibrationBin, Differences, Gain, HistoryGroup};
use reclora_trainer::stages::{Leak, ScoredSamples};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::monitor::sample::Goodput;
use crate::monitor::usage::{self, StageUse};

/// No input is larger than this; a file that claims to be is corrupt.
const MAX_BYTES: u64 = 256 << 20;

/// Everything the report reads from a run directory.
#[derive(Clone, Debug)]
pub(super) struct Inputs {
    /// `predictions/metrics.json`.
    pub evaluation: Evaluation,
    /// `adapter/history.json`.
    pub reclora: History,
    /// Those of the other tuned models of the run, by their names.
    pub others: Vec<(&'static str, History)>,
    /// `crm/history.json`.
    pub crm: History,
    /// Hash of the tuned adapter, from `adapter/manifest.json`.
    pub adapter_xxh3: String,
    /// What was seen while the stages ran; empty where nobody looked.
    pub used: Vec<StageUse>,
    /// What the run's time went to.
    pub goodput: Goodput,
}

/// `predictions/metrics.json`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Evaluation {
    /// Models by name (`reclora`, `lora`, ...).
    pub models: BTreeMap<String, Model>,
    /// Which test samples these scored.
    pub scored: ScoredSamples,
    /// How the gates mixed the experts; absent in runs with one expert.
    #[serde(default)]
    pub gate: Option<Gate>,
    /// In runs with a holdout: how much surer a CRM is of labels that it was trained on.
    #[serde(default)]
    pub leak: Option<Leak>,
    /// With a prior: how much of what each LLM adds to it is believed, by names of models.
    #[serde(default)]
    pub gains: BTreeMap<String, Gain>,
}

/// One model on the test set.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Model {
    pub metrics: Metrics,
    /// Its figures less those of other models, by their names.
    pub differences: BTreeMap<String, Differences>,
    #[serde(default)]
    pub calibration: Vec<CalibrationBin>,
    /// (false positive rate, true positive rate), from (0, 0) to (1, 1).
    #[serde(default)]
    pub roc: Vec<[Option<f64>; 2]>,
    #[serde(default)]
    pub by_history_length: Vec<HistoryGroup>,
}

/// Test metrics; `None` where undefined (one class only, no sample).
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Metrics {
    pub auc: Option<f64>,
    pub log_loss: Option<f64>,
    pub accuracy: Option<f64>,
    pub gauc: Option<f64>,
    #[serde(default)]
    auc_ci95: Option<[Option<f64>; 2]>,
    #[serde(default)]
    gauc_ci95: Option<[Option<f64>; 2]>,
}

impl Metrics {
    /// 95 % interval of the AUC, where both ends are defined.
    pub fn auc_interval(&self) -> Option<[f64; 2]> {
        both(self.auc_ci95)
    }

    /// 95 % interval of the group AUC, where both ends are defined.
    pub fn gauc_interval(&self) -> Option<[f64; 2]> {
        both(self.gauc_ci95)
    }
}

fn both(pair: Option<[Option<f64>; 2]>) -> Option<[f64; 2]> {
    match pair {
        Some([Some(low), Some(high)]) => Some([low, high]),
        _ => None,
    }
}

/// Mixture weights of the gates over the test set.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Gate {
    pub experts: usize,
    pub modules: Vec<GateModule>,
}

/// One adapted projection.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct GateModule {
    pub name: String,
    /// Mean weight of each expert.
    pub mean_alpha: Vec<Option<f64>>,
    /// Mean entropy of the weights, in nats.
    pub entropy: Option<f64>,
}

impl Gate {
    /// The mean entropy of the weights as a share of that of an even mix; `None` of a single expert, or where one is
    /// not known.
    pub fn evenness(&self) -> Option<f64> {
        let entropies: Option<Vec<f64>> =
            self.modules.iter().map(|module| module.entropy).collect();
        let entropies = entropies.filter(|_| self.experts > 1 && !self.modules.is_empty())?;
        let mean = entropies.iter().sum::<f64>() / entropies.len() as f64;
        Some(mean / (self.experts as f64).ln())
    }
}

/// Training history of a model.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct History {
    /// Optimizer steps; the CRM records none.
    #[serde(default)]
    pub steps: Vec<Step>,
    pub epochs: Vec<Epoch>,
}

/// One optimizer step.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Step {
    pub step: u64,
    pub loss: Option<f64>,
    /// Of the answers' deciding token alone.
    #[serde(default)]
    pub deciding_loss: Option<f64>,
}

/// One epoch.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Epoch {
    pub epoch: u64,
    #[serde(default)]
    pub train_loss: Option<f64>,
    #[serde(default)]
    pub valid_auc: Option<f64>,
    #[serde(default)]
    pub valid_log_loss: Option<f64>,
}

#[derive(Deserialize)]
struct Manifest {
    files: BTreeMap<String, ManifestFile>,
}

#[derive(Deserialize)]
struct ManifestFile {
    xxh3: String,
}

impl Inputs {
    /// Reads and checks every input below `run_dir`.
    pub fn read(run_dir: &Path) -> Result<Self> {
        let evaluation = Evaluation::read(run_dir)?;
        let adapter = run_dir.join("adapter");
        // These are optional: a run that scored one must also have tuned it.
        let others = [TunedModel::Lora, TunedModel::LoraCrm].into_iter();
        let others = others.filter(|model| evaluation.models.contains_key(model.key()));
        let history = |model: TunedModel| {
            let path = model.directory(&adapter).join("history.json");
            Ok((model.key(), read_json(&path, "tune")?))
        };
        let others = others.map(history).collect::<Result<_>>()?;
        let (used, goodput) = usage::of(run_dir);
        Ok(Self {
            used,
            goodput,
            reclora: read_json(&adapter.join("history.json"), "tune")?,
            crm: read_json(&run_dir.join("crm").join("history.json"), "pretrain")?,
            adapter_xxh3: adapter_hash(&adapter.join("manifest.json"))?,
            evaluation,
            others,
        })
    }
}

impl Evaluation {
    /// Reads and checks that of a run.
    pub fn read(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join("predictions").join("metrics.json");
        let evaluation: Self = read_json(&path, "evaluate")?;
        match evaluation.check() {
            Ok(()) => Ok(evaluation),
            Err(problem) => Err(unusable(&path, "evaluate", problem)),
        }
    }

    /// What the types can't say. The error tells what is wrong.
    fn check(&self) -> Result<(), String> {
        if !self.models.contains_key("reclora") {
            return Err("no entry \"models.reclora\"".into());
        }
        let Some(gate) = &self.gate else { return Ok(()) };
        for module in &gate.modules {
            if module.mean_alpha.len() != gate.experts {
                return Err(format!(
                    "gate module {:?} has {} mean weights for {} experts",
                    module.name,
                    module.mean_alpha.len(),
                    gate.experts
                ));
            }
        }
        Ok(())
    }
}

fn adapter_hash(path: &Path) -> Result<String> {
    const WEIGHTS: &str = "adapter_model.safetensors";
    let manifest: Manifest = read_json(path, "tune")?;
    match manifest.files.get(WEIGHTS) {
        Some(file) => Ok(file.xxh3.clone()),
        None => Err(unusable(path, "tune", format!("no entry \"files\" / \"{WEIGHTS}\""))),
    }
}

/// An input that its stage has to write again.
fn unusable(path: &Path, stage: &str, problem: impl Into<String>) -> Report {
    let (path, stage, problem) = (path.into(), stage.into(), problem.into());
    StorageError::StageFile { path, stage, problem }.into()
}

fn read_json<T: DeserializeOwned>(path: &Path, stage: &str) -> Result<T> {
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => unusable(path, stage, "missing"),
        _ => eyre!("{}: {error}; check its permissions and the disk", path.display()),
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(unusable(path, stage, format!("larger than {MAX_BYTES} bytes")));
    }
    let parsed = serde_json::from_slice(&bytes);
    parsed.map_err(|error| unusable(path, stage, format!("not as expected: {error}")))
}
