//! Runs as jobs of Slurm: scripts for it, and what it says of them.
//!
//! Slurm's own programs are called, never its library: they are on every node that can submit, and agree
//! with the cluster's version. What was submitted is remembered in `RUN/slurm/jobs.json`.

mod client;
mod logs;
mod script;
mod status;
mod submit;

pub use logs::logs;
pub use status::{cancel, status};
pub use submit::submit;

use std::path::{Path, PathBuf};

use color_eyre::eyre::WrapErr;
use serde::{Deserialize, Serialize};

use crate::error::{LaunchError, Result};
use crate::output::write_json;

/// Directory of scripts, outputs and the list of jobs in the run directory.
const DIRECTORY: &str = "slurm";

/// A submitted job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Slurm's number.
    pub id: u64,
    /// The stage it runs, if not all of them.
    pub stage: Option<String>,
    /// Its script.
    pub script: PathBuf,
    /// Where Slurm writes its output.
    pub output: PathBuf,
}

/// The run that a job was submitted for.
///
/// # Errors
///
/// Slurm does not know the job, or `submit` did not make it.
pub fn run_dir_of(job: u64) -> Result<PathBuf> {
    let record = client::call("scontrol", &["show", "job", &job.to_string()])?;
    let output = record.lines().find_map(|line| line.trim().strip_prefix("StdOut="));
    let run_dir = output.and_then(|output| Path::new(output).parent()?.parent());
    let is_ours = |run_dir: &&Path| {
        jobs_of(run_dir).is_ok_and(|jobs| jobs.iter().any(|known| known.id == job))
    };
    run_dir.filter(is_ours).map(Path::to_owned).ok_or_else(|| {
        let help = "give the run directory instead, or its nodes with --hosts";
        LaunchError::Usage(format!(
            "--slurm {job}: this job was not submitted by `reclora-launch submit`\n  help: {help}"
        ))
        .into()
    })
}

fn jobs_file(run_dir: &Path) -> PathBuf {
    run_dir.join(DIRECTORY).join("jobs.json")
}

/// The jobs of the last `submit` in a run directory.
fn jobs_of(run_dir: &Path) -> Result<Vec<Job>> {
    let path = jobs_file(run_dir);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(LaunchError::Usage(format!(
                "{}: no job was submitted for this run\n  help: reclora-launch submit CONFIG --run-dir \
                 {}",
                run_dir.display(),
                run_dir.display()
            ))
            .into());
        }
        Err(error) => return Err(error).wrap_err_with(|| format!("can't read {}", path.display())),
    };
    serde_json::from_slice(&bytes)
        .wrap_err_with(|| format!("{} is damaged; submit the run again", path.display()))
}

fn remember(run_dir: &Path, jobs: &[Job]) -> Result<()> {
    write_json(&jobs_file(run_dir), &jobs)
}
