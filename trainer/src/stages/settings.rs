//! The settings a stage is a function of, and whether it was made with those that the config has now.

use std::collections::BTreeMap;

use reclora_storage::hash::xxh3_file;
use reclora_storage::manifest::StageDir;
use reclora_storage::raw;
use serde_json::{Value, json};

use super::{RunContext, Stage, file_key};
use crate::config::Config;
use crate::error::{Result, TrainerError};

/// The settings a stage is a function of, with the prompt template where it is read, by name: what can be
/// compared without reading data or a model.
pub(super) fn settings_of(config: &Config, stage: Stage) -> Result<BTreeMap<String, String>> {
    let mut settings = BTreeMap::from([("config".to_owned(), section(config, stage).to_string())]);
    if stage == Stage::Prepare && config.data.duplicates != raw::Duplicates::Refuse {
        let kept = json!(config.data.duplicates).to_string();
        settings.insert("data.duplicates".into(), kept);
    }
    if stage.reads_backbone() {
        settings.insert("backbone.weights".into(), json!(config.backbone.weights).to_string());
    }
    if matches!(stage, Stage::Tune | Stage::Evaluate | Stage::Export) {
        let template = &config.prompt.template;
        settings.insert(file_key("prompt", template), xxh3_file(template)?);
    }
    Ok(settings)
}

pub(super) fn section(config: &Config, stage: Stage) -> Value {
    match stage {
        Stage::Prepare => {
            let data = &config.data;
            let protocol =
                json!([data.format, data.k_core, data.min_history, data.label, data.split]);
            // Only these formats read the mapping: the fingerprints of the others are as before.
            if data.format.is_mapped() { json!([protocol, data.columns]) } else { protocol }
        }
        Stage::Embed => json!([config.retrieve.pca_dimensions]),
        Stage::Retrieve => json!([config.retrieve]),
        Stage::Pretrain => {
            let mut crm = json!(config.crm);
            // What is made of a trained CRM.
            crm["representation"] = json!(null);
            json!([config.seed, crm])
        }
        Stage::Few2many => json!([config.crm.representation]),
        Stage::Tune => {
            let mut tune = json!(config.tune);
            // How often it is saved does not change what is learnt.
            tune["checkpoint_every"] = json!(0);
            let adapter = config.adapter.without_path();
            json!([config.seed, adapter, config.prompt.max_tokens, tune])
        }
        Stage::Evaluate => {
            json!([config.seed, config.prompt.max_tokens, config.evaluate, config.tune.plain_lora])
        }
        Stage::Export => json!([config.export, config.prompt.max_tokens]),
    }
}

/// The first finished stage up to `last` that was made with other settings than the config has now, as the
/// error that it is where the two are used together. A later run that ended early leaves a run so.
///
/// # Errors
/// A manifest is damaged, or the prompt template can't be read.
pub fn outdated(ctx: &RunContext, last: Stage) -> Result<Option<TrainerError>> {
    let looked_at = |stage: &Stage| *stage <= last && stage.is_needed(&ctx.config);
    for stage in Stage::ALL.into_iter().filter(looked_at) {
        let made = StageDir::new(ctx.path(stage), stage.name(), "").manifest()?;
        let Some(then) = made.map(|manifest| manifest.inputs) else { continue };
        let now = settings_of(&ctx.config, stage)?;
        if now.iter().any(|(name, value)| then.get(name) != Some(value)) {
            let saved = ctx.run_dir.join("config.toml");
            let what = format!(
                "was made with other settings than {0} has now; make it again: reclora-launch run {0}, or \
                 run the config that it was made with, whose settings are there then",
                saved.display()
            );
            return Ok(Some(TrainerError::file(ctx.path(stage), what)));
        }
    }
    Ok(None)
}
