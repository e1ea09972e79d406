//! `report`: a finished run as a page and a table.

use std::path::Path;

use reclora_storage::atomic::create_dir_all;
use reclora_trainer::stages::{Stage, stage_dir, without_llm};

use crate::config;
use crate::error::Result;
use crate::output::{print, write_json};
use crate::report::{self, RunInfo};
use crate::run_dir::{context, note_outdated};

/// Makes the report of a run again.
pub fn report(run_dir: &Path) -> Result<()> {
    print(&write_report(run_dir)?)
}

/// Writes the report of a run; returns what the terminal shows of it.
pub fn write_report(run_dir: &Path) -> Result<String> {
    let context = context(run_dir)?;
    let (mut stages, mut hashes) = (Vec::new(), Vec::new());
    for stage in Stage::ALL.into_iter().filter(|stage| stage.is_needed(&context.config)) {
        let dir = stage_dir(&context, stage)?;
        if let Some(manifest) = dir.manifest()? {
            stages.push((stage.name().to_owned(), manifest.seconds));
            hashes.push((stage.name().to_owned(), dir.content_hash()?));
        }
    }
    note_outdated(&context);
    let info = RunInfo {
        name: context.config.name.clone(),
        stages,
        hashes,
        world_size: context.config.runtime.nproc_per_node,
        config_toml: config::render(&context.config),
    };
    let summary = report::write(run_dir, &info)?;
    let page = run_dir.join("report/index.html");
    Ok(format!("{}report: {}\n", report::table(&summary), page.display()))
}

/// Measures the models without an LLM of a run up to few2many: `RUN/report/crm.json`; returns what the
/// terminal shows of it.
pub fn write_without_llm(run_dir: &Path) -> Result<String> {
    let context = context(run_dir)?;
    let measured = without_llm(&context)?;
    let dir = context.run_dir.join("report");
    create_dir_all(&dir)?;
    let path = dir.join("crm.json");
    write_json(&path, &measured)?;
    Ok(format!("{}\n{}\n", report::without_llm(&measured), path.display()))
}
