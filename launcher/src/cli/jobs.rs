//! Flags of runs that a scheduler starts.

use std::path::PathBuf;

use clap::Args;
use reclora_trainer::stages::Stage;

use super::{ExperimentArgs, stage_parser};

/// Arguments of `submit`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    #[command(flatten)]
    pub resources: ResourceArgs,
    #[command(flatten)]
    pub jobs: JobArgs,
    /// Print the scripts; write and submit nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// What a job gets.
#[derive(Debug, Args)]
#[command(next_help_heading = "Resources")]
pub struct ResourceArgs {
    /// Nodes of the job
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub nodes: u16,
    /// GPUs on each node; one rank each, unless --nproc-per-node says otherwise
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub gpus_per_node: Option<u16>,
    /// Ranks on each node [default: one per GPU, or runtime.nproc_per_node of the config]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub nproc_per_node: Option<u16>,
    /// Cores on each node, shared by its ranks [default: what the cluster gives a task, mostly one]
    #[arg(long, value_name = "N")]
    pub cpus_per_node: Option<u16>,
    /// Time limit, as sbatch takes it: minutes, or days-hours:minutes:seconds
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,
    /// Partition
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
    /// Account that is charged
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// Any other option of sbatch, as --sbatch=--mem=64G; repeatable
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub sbatch: Vec<String>,
}

/// Which jobs there are, and how they end.
#[derive(Debug, Args)]
#[command(next_help_heading = "Jobs")]
pub struct JobArgs {
    /// Do everything up to and including this stage
    #[arg(long, value_name = "STAGE", value_parser = stage_parser())]
    pub until: Option<Stage>,
    /// A job per stage, each waiting for the one before
    #[arg(long)]
    pub array_of_stages: bool,
    /// Score the data in few2many with an array of so many jobs, on one node each
    #[arg(long, value_name = "N", requires = "array_of_stages")]
    #[arg(value_parser = clap::value_parser!(u16).range(2..=1000))]
    pub few2many_jobs: Option<u16>,
    /// Partition of the stages that run as one process, prepare and export
    #[arg(long, value_name = "NAME", requires = "array_of_stages")]
    pub cpu_partition: Option<String>,
    /// Seconds before the time limit at which ranks are asked to save
    #[arg(long, value_name = "S", default_value_t = 120)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65535))]
    pub notice: u32,
    /// Start a stage's ranks again this often within the job, as long as there is progress
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub max_restarts: u32,
    /// Requeue the job at most this often
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub max_requeues: u32,
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
