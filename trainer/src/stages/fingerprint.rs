//! What a stage is a function of, and whether what is there was made of that.

use std::path::Path;

use reclora_comm::Reduction;
use reclora_storage::hash::{xxh3_file, xxh3_hex};
use reclora_storage::manifest::StageDir;
use serde_json::json;

use super::{Inputs, RunContext, Stage, description, inputs};
use crate::config::Config;
use crate::error::{Remedy, Result, TrainerError};

/// Raised when a stage writes something else for the same inputs.
const VERSION: u32 = 10;

/// A stage's directory, with the fingerprint of what the stage is a function of.
///
/// # Errors
/// An earlier stage has not finished, or an input file is missing.
pub fn stage_dir(ctx: &RunContext, stage: Stage) -> Result<StageDir> {
    Ok(directory(ctx, stage, &inputs_of(ctx, stage)?))
}

/// What is there of a stage, whatever it was made of.
pub(super) fn finished(ctx: &RunContext, stage: Stage) -> StageDir {
    StageDir::new(ctx.path(stage), stage.name(), "")
}

pub(super) fn directory(ctx: &RunContext, stage: Stage, inputs: &Inputs) -> StageDir {
    let fingerprint = xxh3_hex(json!([stage.name(), VERSION, inputs]).to_string().as_bytes());
    StageDir::new(ctx.path(stage), stage.name(), &fingerprint)
}

/// Everything a stage is a function of. Of `[runtime]` only the device and the order of sums, and no path.
pub(super) fn inputs_of(ctx: &RunContext, stage: Stage) -> Result<Inputs> {
    let (config, description) = (&ctx.config, description(stage));
    let mut inputs = Inputs::new();
    for before in stage.reads(config) {
        inputs.insert(before.name().to_owned(), finished(ctx, before).content_hash()?);
    }
    if description.reads_backbone {
        inputs.insert("runtime.device".into(), json!(config.runtime.device).to_string());
        for path in inputs::backbone_files(&config.backbone.path)? {
            inputs.insert(file_key("backbone", &path), xxh3_file(&path)?);
        }
    }
    if description.trains {
        let runtime = &config.runtime;
        inputs.insert("runtime.reduction".into(), json!(runtime.reduction).to_string());
        inputs.insert("runtime.gradient_wire".into(), json!(runtime.gradient_wire).to_string());
        if runtime.reduction == Reduction::Fastest {
            // NCCL's own order depends on the length of what it sums.
            inputs.insert("runtime.bucket_mib".into(), runtime.bucket_mib.to_string());
        }
    }
    inputs.extend((description.files)(ctx)?);
    inputs.extend(settings_of(config, stage)?);
    Ok(inputs)
}

/// The settings a stage is a function of, with the prompt template where it is read: what can be compared without
/// reading data or a model.
fn settings_of(config: &Config, stage: Stage) -> Result<Inputs> {
    let description = description(stage);
    let settings = (description.settings)(config)?.to_string();
    let mut inputs = Inputs::from([("config".to_owned(), settings)]);
    if description.reads_backbone {
        inputs.insert("backbone.weights".into(), json!(config.backbone.weights).to_string());
    }
    if description.reads_template {
        let template = &config.prompt.template;
        inputs.insert(file_key("prompt", template), xxh3_file(template)?);
    }
    Ok(inputs)
}

fn file_key(kind: &str, path: &Path) -> String {
    format!("{kind}/{}", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Says which stage a run still lacks before its models can be used, and which is not of its config.
pub(super) fn require(ctx: &RunContext) -> Result<()> {
    let needed = |stage: &Stage| *stage <= Stage::Tune && stage.is_needed(&ctx.config);
    let needed: Vec<Stage> = Stage::ALL.into_iter().filter(needed).collect();
    for stage in &needed {
        finished(ctx, *stage).content_hash()?;
    }
    if let Some(error) = outdated(ctx, Stage::Tune)? {
        return Err(error);
    }
    needed.into_iter().try_for_each(|stage| check_origin(ctx, stage))
}

/// Refuses what a stage made from other files than are there now: a lens of another CRM, say. Directories
/// that were removed since are no contradiction.
pub(super) fn check_origin(ctx: &RunContext, stage: Stage) -> Result<()> {
    let made = finished(ctx, stage).manifest()?;
    let inputs = made.map(|manifest| manifest.inputs).unwrap_or_default();
    for before in stage.reads(&ctx.config).filter(|before| ctx.path(*before).exists()) {
        let now = finished(ctx, before).content_hash()?;
        if inputs.get(before.name()).is_some_and(|then| *then != now) {
            let what = format!(
                "{}: was made from another {} than {} holds now",
                ctx.path(stage).display(),
                before.directory(),
                ctx.path(before).display()
            );
            return Err(TrainerError::Remake { what, remedy: Remedy::Again(stage.name()) });
        }
    }
    Ok(())
}

/// The first finished stage up to `last` that was made with other settings than the config has now, as the
/// error that it is where the two are used together. A later run that ended early leaves a run so.
///
/// # Errors
/// A manifest is damaged, or the prompt template can't be read.
pub fn outdated(ctx: &RunContext, last: Stage) -> Result<Option<TrainerError>> {
    let looked_at = |stage: &Stage| *stage <= last && stage.is_needed(&ctx.config);
    for stage in Stage::ALL.into_iter().filter(looked_at) {
        let made = finished(ctx, stage).manifest()?;
        let Some(then) = made.map(|manifest| manifest.inputs) else { continue };
        let now = settings_of(&ctx.config, stage)?;
        if now.iter().any(|(name, value)| then.get(name) != Some(value)) {
            let saved = ctx.run_dir.join("config.toml");
            let made = ctx.path(stage);
            let (made, now) = (made.display(), saved.display());
            let what = format!("{made}: was made with other settings than {now} has now");
            return Ok(Some(TrainerError::Remake { what, remedy: Remedy::Settings(saved) }));
        }
    }
    Ok(None)
}
