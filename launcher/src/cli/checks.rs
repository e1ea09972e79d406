//! Flags of commands that look ahead.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::ExperimentArgs;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// An experiment whose inputs, ports and run directory are looked at too
    pub config: Option<PathBuf>,
    /// Where the run is kept [default: run_dir of the config]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Change one setting, as in `run`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Where node 0 is to be reached: can it listen there, or be reached from here?
    #[arg(long, value_name = "HOST:PORT")]
    pub rdzv_endpoint: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `monitor`.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// The run directory [default: this machine's GPUs, whatever runs on them]
    #[arg(conflicts_with_all = ["slurm", "hosts"])]
    pub run: Option<PathBuf>,
    /// The run that this Slurm job was submitted for
    #[arg(long, value_name = "JOB", conflicts_with = "hosts")]
    pub slurm: Option<u64>,
    /// The GPUs of these machines, separated by commas; each needs reclora-launch in its PATH
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub hosts: Vec<String>,
    /// The remote shell for --hosts, with its options
    #[arg(
        long,
        value_name = "COMMAND",
        default_value = "ssh -o BatchMode=yes",
        env = "RECLORA_RSH"
    )]
    pub rsh: String,
    /// Serve a page, JSON (/api/view) and Prometheus metrics (/metrics) there instead; any address but loopback
    /// needs a token in the environment variable RECLORA_MONITOR_TOKEN
    #[arg(long, value_name = "IP:PORT", conflicts_with_all = ["once", "json"])]
    pub listen: Option<SocketAddr>,
    /// Look once, and end
    #[arg(long)]
    pub once: bool,
    /// Print JSON: a line for each look
    #[arg(long)]
    pub json: bool,
    /// Seconds between looks
    #[arg(long, value_name = "S", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub interval: u16,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// Ranks, over all nodes [default: runtime.nproc_per_node of the config]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub world_size: Option<u16>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Run directories; the others are compared with the first
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The model of each run: reclora, lora, crm, history_text, history,
    /// logistic_regression or item_mean
    #[arg(long, value_name = "NAME", default_value = "reclora")]
    pub model: String,
    /// Resamples of the users, for the intervals
    #[arg(long, value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub resamples: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
