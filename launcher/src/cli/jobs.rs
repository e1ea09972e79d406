//! Flags of runs that a scheduler starts.

use std::path::PathBuf;

use clap::Args;
use reclora_trainer::stages::Stage;

use super::stage_parser;

/// Arguments of `submit`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// The experiment, a TOML file
    pub config: PathBuf,
    /// Where the run is kept [default: run_dir of the config]
    #[arg(long, value_name = "DIR", help_heading = "Experiment")]
    pub run_dir: Option<PathBuf>,
    /// Change one setting, as in `run`; repeatable
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Experiment")]
    pub set: Vec<String>,
    /// Nodes of the job
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Resources")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub nodes: u16,
    /// GPUs on each node; one rank each, unless --nproc-per-node says otherwise
    #[arg(long, value_name = "N", help_heading = "Resources")]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub gpus_per_node: Option<u16>,
    /// Ranks on each node [default: one per GPU, or runtime.nproc_per_node of the config]
    #[arg(long, value_name = "N", help_heading = "Resources")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub nproc_per_node: Option<u16>,
    /// Cores on each node, shared by its ranks [default: what the cluster gives a task, mostly one]
    #[arg(long, value_name = "N", help_heading = "Resources")]
    pub cpus_per_node: Option<u16>,
    /// Time limit, as sbatch takes it: minutes, or days-hours:minutes:seconds
    #[arg(long, value_name = "TIME", help_heading = "Resources")]
    pub time: Option<String>,
    /// Partition
    #[arg(long, value_name = "NAME", help_heading = "Resources")]
    pub partition: Option<String>,
    /// Account that is charged
    #[arg(long, value_name = "NAME", help_heading = "Resources")]
    pub account: Option<String>,
    /// Any other option of sbatch, as --sbatch=--mem=64G; repeatable
    #[arg(long, value_name = "OPTION", help_heading = "Resources", allow_hyphen_values = true)]
    pub sbatch: Vec<String>,
    /// Do everything up to and including this stage
    #[arg(long, value_name = "STAGE", value_parser = stage_parser(), help_heading = "Jobs")]
    pub until: Option<Stage>,
    /// A job per stage, each waiting for the one before
    #[arg(long, help_heading = "Jobs")]
    pub array_of_stages: bool,
    /// Score the data in few2many with an array of so many jobs, on one node each
    #[arg(long, value_name = "N", help_heading = "Jobs", requires = "array_of_stages")]
    #[arg(value_parser = clap::value_parser!(u16).range(2..=1000))]
    pub few2many_jobs: Option<u16>,
    /// Partition of the stages that run as one process, prepare and export
    #[arg(long, value_name = "NAME", help_heading = "Jobs", requires = "array_of_stages")]
    pub cpu_partition: Option<String>,
    /// Seconds before the time limit at which ranks are asked to save
    #[arg(long, value_name = "S", default_value_t = 120, help_heading = "Jobs")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65535))]
    pub notice: u32,
    /// Start a stage's ranks again this often within the job, as long as there is progress
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Jobs")]
    pub max_restarts: u32,
    /// Requeue the job at most this often
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Jobs")]
    pub max_requeues: u32,
    /// Print the scripts; write and submit nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The run directory
    pub run: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The run directory
    pub run: PathBuf,
    /// Go on until no job of the run is left (or, without Slurm, until Ctrl-C)
    #[arg(long, short)]
    pub follow: bool,
    /// What this rank said, instead of what the job said
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
    /// Of this stage
    #[arg(long, value_name = "STAGE", value_parser = stage_parser())]
    pub stage: Option<Stage>,
    /// Only the last lines
    #[arg(long, value_name = "N", short = 'n')]
    pub lines: Option<usize>,
}
