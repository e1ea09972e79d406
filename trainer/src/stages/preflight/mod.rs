//! What can be known before the first stage: everything that would end a later one is looked for at once, and
//! of large files only headers are read.

mod data;
mod disk;
mod text;

use std::fmt;
use std::path::Path;

use reclora_storage::StorageError;
use reclora_storage::dataset::Dataset;
use reclora_storage::raw::{self, TextColumns};

use super::inputs::check_scale_of;
use super::{RunContext, Stage, embed, finished, forecast, inputs, stage_dir};
use crate::adapter::{Adapter, AdapterLayout};
use crate::backbone::{self, BackboneConfig, BackboneSummary};
use crate::engine;
use crate::error::{Remedy, Result, TrainerError};

pub use data::check_dataset;
pub use disk::{DiskForecast, disk_forecast};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// It may end the run, or be something else than was meant.
    Warning,
    /// It would end the run.
    Wrong,
}

/// What was looked at, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// A file or a setting.
    pub place: String,
    /// What was seen there.
    pub what: String,
    /// What to do, where it is not as it should be.
    pub help: Help,
    /// What helps with what a stage made.
    pub remedy: Option<Remedy>,
}

/// What to do about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Help {
    /// This.
    Words(&'static str),
    /// Correct the path in the config, which is relative to it.
    Path,
    /// Look at the raw files.
    RawFiles,
}

impl From<&'static str> for Help {
    fn from(words: &'static str) -> Self {
        Self::Words(words)
    }
}

impl Finding {
    fn fine(name: &'static str, place: impl fmt::Display, what: impl Into<String>) -> Self {
        let severity = Severity::Fine;
        Self {
            name,
            severity,
            place: place.to_string(),
            what: what.into(),
            help: "".into(),
            remedy: None,
        }
    }

    fn of(
        name: &'static str,
        severity: Severity,
        error: TrainerError,
        help: impl Into<Help>,
    ) -> Self {
        let remedy = match &error {
            TrainerError::Remake { remedy, .. } => Some(remedy.clone()),
            _ => None,
        };
        let (place, what) = match error {
            TrainerError::File { path, what } => (path.display().to_string(), what),
            TrainerError::Config { field, what } => (format!("config: {field}"), what),
            other => (String::new(), other.to_string()),
        };
        Self { name, severity, place, what, help: help.into(), remedy }
    }

    fn wrong(name: &'static str, error: TrainerError, help: impl Into<Help>) -> Self {
        Self::of(name, Severity::Wrong, error, help)
    }

    /// What a user should know of a model.
    fn note(name: &'static str, what: String) -> Self {
        let help = "it can be used so, if that is meant";
        let (severity, place) = (Severity::Warning, String::new());
        Self { name, severity, place, what, help: help.into(), remedy: None }
    }

    /// A path of the config where nothing is, or something else.
    fn absent(name: &'static str, field: &str, path: &Path, expected: &str) -> Self {
        let there = if path.is_dir() {
            "is a directory"
        } else if path.exists() {
            "is a file"
        } else {
            "is not there"
        };
        let what = format!("{} {there} (expected {expected})", path.display());
        Self::wrong(name, TrainerError::config(field, what), Help::Path)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place.as_str() {
            "" => f.write_str(&self.what),
            place => write!(f, "{place}: {}", self.what),
        }
    }
}

/// Whether any of the findings would end a run.
pub fn is_wrong(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Wrong)
}

/// Looks at everything that `stages` need and earlier stages do not make, and at what is known of the dataset.
/// Whether a stage is up to date is not asked: what it was made from would pass as well.
pub fn check(ctx: &RunContext, stages: &[Stage], dataset: Option<&Dataset>) -> Vec<Finding> {
    let needed = stages.iter().copied().filter(|stage| stage.is_needed(&ctx.config));
    let stages = &needed.collect::<Vec<_>>()[..];
    let mut findings = Vec::new();
    if stages.contains(&Stage::Prepare) {
        findings.extend(data::check_raw(ctx));
    }
    let columns = text_columns(ctx);
    if let (true, Some(columns)) = (stages.contains(&Stage::Embed), &columns)
        && let Err(error) = embed::require_texts(&columns.items)
    {
        findings.push(Finding::wrong("data", error, "they are words, such as a title"));
    }
    if stages.iter().any(|stage| stage.reads_backbone()) {
        if let Err(error) = engine::supports(&ctx.config) {
            findings.push(Finding::wrong("device", error, "change it, or runtime.device"));
        }
        let backbone = backbone(ctx, &mut findings);
        findings.extend(text::check(ctx, stages, columns.as_ref(), backbone.as_ref()));
        if stages.contains(&Stage::Tune) {
            findings.extend(adapter(ctx, backbone.as_ref()));
        }
    }
    if let Some(dataset) = dataset {
        findings.extend(of_dataset(ctx, dataset, stages));
    }
    findings.extend(directories(ctx, stages));
    findings
}

/// The text columns that the dataset will have; `None` where that can't be known.
fn text_columns(ctx: &RunContext) -> Option<TextColumns> {
    let data = &ctx.config.data;
    raw::text_columns(data.format, &data.path, &data.columns).ok()
}

fn backbone(ctx: &RunContext, findings: &mut Vec<Finding>) -> Option<BackboneConfig> {
    let section = &ctx.config.backbone;
    if !section.path.exists() {
        let expected = "a Hugging Face model directory or a GGUF file";
        findings.push(Finding::absent("backbone", "backbone.path", &section.path, expected));
        return None;
    }
    match backbone::check(&section.path, section.weights) {
        Ok(BackboneSummary { config, notes }) => {
            let layers = config.num_layers();
            let what = format!("{layers} layers of {} hidden values", config.hidden_size);
            findings.push(Finding::fine("backbone", section.path.display(), what));
            findings.extend(notes.into_iter().map(|note| Finding::note("backbone", note)));
            Some(config)
        }
        Err(error) => {
            findings.push(Finding::wrong("backbone", error, "correct backbone.path or the model"));
            None
        }
    }
}

/// What is tuned: that it can be laid out, and that a LoRA to be scaled is one of this backbone.
fn adapter(ctx: &RunContext, backbone: Option<&BackboneConfig>) -> Option<Finding> {
    let config = &ctx.config.adapter;
    let scaled = config.frozen_lora();
    if let Some(path) = scaled.filter(|path| !path.is_file()) {
        let expected = "the adapter_model.safetensors of a trained plain LoRA";
        return Some(Finding::absent("adapter", "adapter.scale_of", path, expected));
    }
    let check = || -> Result<String> {
        check_scale_of(ctx)?;
        let Some(backbone) = backbone else { return Ok(String::new()) };
        let crm = forecast::crm(&ctx.config, backbone, None)?;
        let layout = AdapterLayout::new(backbone, config, crm.representation_dim())?;
        if let Some(path) = scaled {
            Adapter::load(path, backbone)?;
        }
        Ok(format!("{} parameters to tune", layout.num_parameters()))
    };
    match check() {
        Ok(what) if what.is_empty() => None,
        Ok(what) => Some(Finding::fine("adapter", "", what)),
        Err(error) => Some(Finding::wrong("adapter", error, "correct [adapter]")),
    }
}

/// What an earlier run prepared. What is damaged is refused by who needs it, with how to rebuild it.
pub fn known_dataset(ctx: &RunContext) -> Option<Dataset> {
    let is_complete = ctx.path(Stage::Prepare).join("manifest.json").is_file();
    is_complete.then(|| inputs::dataset(ctx).ok()).flatten()
}

/// What is wrong with a known dataset, if it is of the same data still. Hashing that is work, so it is done only
/// where something would be refused.
fn of_dataset(ctx: &RunContext, dataset: &Dataset, stages: &[Stage]) -> Vec<Finding> {
    let findings = check_dataset(ctx, dataset, stages);
    let is_current = || {
        let dir = stage_dir(ctx, Stage::Prepare);
        dir.is_ok_and(|dir| matches!(dir.is_complete(), Ok(true)))
    };
    if is_wrong(&findings) && !is_current() {
        return Vec::new();
    }
    findings
}

/// The directories that stages will write must be a run's.
fn directories(ctx: &RunContext, stages: &[Stage]) -> Vec<Finding> {
    let dirs = stages.iter().map(|stage| finished(ctx, *stage));
    let help = "move the files away, or choose another run directory";
    let wrong = |error: StorageError| Finding::wrong("run directory", error.into(), help);
    dirs.filter_map(|dir| dir.check_free().err().map(wrong)).collect()
}
