//! What a person looks at when a run is over: `RUN/report/index.html` (one self-contained page),
//! `RUN/report/summary.json` (the same figures for programs) and the table in the terminal.
//!
//! The report is a pure function of files that earlier stages left in the run directory and of
//! [`RunInfo`]; it computes no metric itself, so what it shows is what the stages measured.
//! The page reaches for nothing outside itself: no script, no font, no image, no network.

mod figures;
mod inputs;
mod page;
mod plot;
mod summary;
pub mod table;
#[cfg(test)]
mod tests;
mod verdict;
mod without_llm;

use std::path::Path;

use reclora_storage::atomic::{create_dir_all, write_bytes_atomic};

use crate::error::Result;
use crate::output::write_json;
pub use summary::{ModelSummary, Summary, as_map, label, number};
pub use table::table;
pub use without_llm::without_llm;

/// What the report needs to know beyond the files of the run.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// The experiment's name: heads the page.
    pub name: String,
    /// Stages in the order they ran, with wall time in seconds.
    pub stages: Vec<(String, f64)>,
    /// Hash of the content of each stage's files.
    pub hashes: Vec<(String, String)>,
    /// Number of ranks of the distributed stages.
    pub world_size: usize,
    /// The effective configuration, shown verbatim.
    pub config_toml: String,
}

/// Figures of a run's models, as its `evaluate` left them, in the order they are shown.
///
/// # Errors
///
/// The file is missing or corrupt: it is named, with the stage that writes it.
pub fn models(run_dir: &Path) -> Result<Vec<(String, ModelSummary)>> {
    Ok(summary::models(&inputs::Evaluation::read(run_dir)?))
}

/// Writes `RUN/report/index.html` and `RUN/report/summary.json` and returns the summary.
///
/// Both files are replaced atomically, the summary last: where it exists, the page does too.
///
/// # Errors
///
/// An input is missing or corrupt, or the report can't be written.
pub fn write(run_dir: &Path, info: &RunInfo) -> Result<Summary> {
    let inputs = inputs::Inputs::read(run_dir)?;
    let summary = Summary::new(&inputs, info);
    let page = page::render(&inputs, info, &summary)?;
    let dir = run_dir.join("report");
    create_dir_all(&dir)?;
    write_bytes_atomic(&dir.join("index.html"), page.as_bytes())?;
    write_json(&dir.join("summary.json"), &summary)?;
    Ok(summary)
}
