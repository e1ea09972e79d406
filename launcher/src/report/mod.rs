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

use std::path::{Path, PathBuf};

use reclora_storage::atomic;
use reclora_storage::error::StorageError;

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

/// Why there is no report. Every variant names the file and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file an earlier stage should have written is not there.
    #[error("{path}: missing; write it with `reclora-launch run CONFIG --from {stage}`")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The stage that writes it.
        stage: &'static str,
    },
    /// A file is there and can't be read.
    #[error("{path}: {source}; check its permissions and the disk")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file was read and does not hold what it should.
    #[error("{path}: {what}; rebuild it with `reclora-launch run CONFIG --from {stage}`")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        what: String,
        /// The stage that writes it.
        stage: &'static str,
    },
    /// A figure could not be drawn.
    #[error("report: can't draw the figure \"{figure}\": {what}")]
    Draw {
        /// The figure's title.
        figure: String,
        /// What the drawing library said.
        what: String,
    },
    /// The page could not be put together.
    #[error("report: can't render the page: {0}")]
    Page(#[from] minijinja::Error),
    /// The report could not be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Figures of a run's models, as its `evaluate` left them, in the order they are shown.
///
/// # Errors
///
/// The file is missing or corrupt; see [`ReportError`].
pub fn models(run_dir: &Path) -> Result<Vec<(String, ModelSummary)>, ReportError> {
    Ok(summary::models(&inputs::Evaluation::read(run_dir)?))
}

/// Writes `RUN/report/index.html` and `RUN/report/summary.json` and returns the summary.
///
/// Both files are replaced atomically, the summary last: where it exists, the page does too.
///
/// # Errors
///
/// An input is missing or corrupt, or the report can't be written; see [`ReportError`].
pub fn write(run_dir: &Path, info: &RunInfo) -> Result<Summary, ReportError> {
    let inputs = inputs::Inputs::read(run_dir)?;
    let summary = Summary::new(&inputs, info);
    let page = page::render(&inputs, info, &summary)?;
    let dir = run_dir.join("report");
    atomic::create_dir_all(&dir)?;
    atomic::write_bytes_atomic(&dir.join("index.html"), page.as_bytes())?;
    atomic::write_bytes_atomic(&dir.join("summary.json"), summary.to_json().as_bytes())?;
    Ok(summary)
}
