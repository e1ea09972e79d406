//! The command line as typed: flags only, nothing is opened or checked against the machine here.

use std::path::PathBuf;

use clap::builder::{FalseyValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use reclora_storage::raw::{DatasetFormat, Known};

use reclora_trainer::stages::{Part, Stage};

mod checks;
mod jobs;
mod text;
mod values;

pub use checks::{CompareArgs, DoctorArgs, MonitorArgs, PlanArgs};
pub use jobs::{LogsArgs, ResourceArgs, StatusArgs, SubmitArgs};
use text::*;
pub use values::{Binding, NodeCount};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "reclora-launch", version, about = ABOUT, long_about = LONG_ABOUT)]
#[command(after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an experiment, or continue one
    #[command(long_about = RUN_LONG, after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Look at raw ratings: format, columns, counts, and what the protocol would leave
    #[command(long_about = INSPECT_LONG, after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Write the mixed adapter of a user and an item as a PEFT directory
    #[command(
        after_help = "Examples:\n  reclora-launch export runs/quickstart --user 27 --item 1483013 --out lora/\n\n\
        The run must have finished its tune stage. Ids are those of the raw rating files."
    )]
    Export(ExportArgs),
    /// Predict whether a user likes an item
    #[command(
        after_help = "Examples:\n  reclora-launch predict runs/quickstart --user 27 --item 1483013\n  \
        reclora-launch predict runs/quickstart --user 27 --item 1483013 --json\n\n\
        The run must have finished its tune stage. Ids are those of the raw rating files."
    )]
    Predict(PredictArgs),
    /// Rebuild the report of a run
    #[command(after_help = "Examples:\n  reclora-launch report runs/quickstart")]
    Report(RunDirArgs),
    /// Put runs side by side: metrics, differences with intervals, settings
    #[command(long_about = COMPARE_LONG, after_help = COMPARE_EXAMPLES)]
    Compare(CompareArgs),
    /// Read every file of a run again: is it what was written?
    #[command(long_about = VERIFY_LONG, after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// Show configs: a resolved one, or every setting there is
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make synthetic ratings with something to learn in them
    #[command(long_about = SYNTH_LONG, after_help = SYNTH_EXAMPLES)]
    Synth(SynthArgs),
    /// Submit a run to Slurm
    #[command(long_about = SUBMIT_LONG, after_help = SUBMIT_EXAMPLES)]
    Submit(SubmitArgs),
    /// How far a submitted run is, and what Slurm says of its jobs
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// What a run has said, and goes on to say
    #[command(after_help = LOGS_EXAMPLES)]
    Logs(LogsArgs),
    /// Take a submitted run out of the queue, or end it
    #[command(after_help = CANCEL_EXAMPLES)]
    Cancel(RunDirArgs),
    /// Watch a run, or this machine: GPUs, ranks, and what holds them up
    #[command(long_about = MONITOR_LONG, after_help = MONITOR_EXAMPLES)]
    Monitor(MonitorArgs),
    /// Look at this machine and a config before a run: what would go wrong?
    #[command(long_about = DOCTOR_LONG, after_help = DOCTOR_EXAMPLES)]
    Doctor(DoctorArgs),
    /// Foretell a run: memory per rank, work and bytes on the wire at a number of ranks
    #[command(long_about = PLAN_LONG, after_help = PLAN_EXAMPLES)]
    Plan(PlanArgs),
    /// Print the manual, or write a page for every command
    #[command(after_help = MAN_EXAMPLES)]
    Man {
        /// Directory to write the pages into; made if need be
        #[arg(long, value_name = "DIR")]
        out_dir: Option<PathBuf>,
    },
    /// Print a shell's completion script
    #[command(after_help = "Examples:\n  \
        reclora-launch completions bash > ~/.local/share/bash-completion/completions/reclora-launch\n  \
        reclora-launch completions zsh > \"${fpath[1]}/_reclora-launch\"\n  \
        reclora-launch completions fish > ~/.config/fish/completions/reclora-launch.fish")]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// One worker process; started by `run`, never by hand
    #[command(hide = true)]
    Rank,
}

/// An experiment.
#[derive(Debug, Args)]
#[command(next_help_heading = "Experiment")]
pub struct ExperimentArgs {
    /// The experiment, a TOML file (`config reference` lists every setting)
    #[arg(help_heading = None::<&str>)]
    pub config: PathBuf,
    /// Where the run is kept [default: run_dir of the config]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Change one setting, e.g. tune.epochs=3; repeatable. The value is TOML, bare words are text
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    #[command(flatten)]
    pub stages: StageArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub processes: ProcessArgs,
}

/// Which stages are run.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Stages")]
pub struct StageArgs {
    /// Do this stage and everything after it again
    #[arg(long, value_name = "STAGE", value_parser = stage_parser(), conflicts_with = "only")]
    pub from: Option<Stage>,
    /// Do only this stage; what it reads must be there
    #[arg(long, value_name = "STAGE", value_parser = stage_parser())]
    pub only: Option<Stage>,
    /// Do everything up to and including this stage; up to few2many, the run ends with the table of the models
    /// without an LLM
    #[arg(long, value_name = "STAGE", value_parser = stage_parser(), conflicts_with = "only")]
    pub until: Option<Stage>,
    /// Do the selected stages again even when they are up to date
    #[arg(long)]
    pub force: bool,
    /// With --only few2many: score only this share of the data, e.g. 0/4; several can run at the same time, and a
    /// run without --part completes the stage
    #[arg(long, value_name = "INDEX/COUNT", conflicts_with_all = ["force", "from", "until"])]
    pub part: Option<Part>,
    /// Don't write the report at the end
    #[arg(long)]
    pub no_report: bool,
}

/// What is said of a run, and where.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Where the ranks' logs go [default: logs/ in the run directory]
    #[arg(long, value_name = "DIR", env = "RECLORA_LOG_DIR")]
    pub log_dir: Option<PathBuf>,
    /// Show what ranks write on standard error too; lines of several ranks that are alike are shown once
    #[arg(long, env = "RECLORA_TEE", value_parser = FalseyValueParser::new())]
    pub tee: bool,
    /// With --tee, only ranks of these numbers on their node, e.g. 0,1
    #[arg(long, value_name = "R,...", value_delimiter = ',', requires = "tee")]
    pub local_ranks_filter: Option<Vec<usize>>,
}

/// The processes of a run, here and on other nodes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Processes")]
pub struct ProcessArgs {
    /// Rank processes on this machine [default: runtime.nproc_per_node of the config]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[arg(env = "RECLORA_NPROC_PER_NODE")]
    pub nproc_per_node: Option<u16>,
    /// Nodes of the job: the same command is run on each, with its --node-rank. With MIN:MAX, stages are run by
    /// as many of MAX as are there, MIN at least
    #[arg(long, value_name = "N or MIN:MAX", default_value = "1", env = "RECLORA_NNODES")]
    pub nnodes: NodeCount,
    /// Which node this is, from 0; node 0 leads
    #[arg(long, value_name = "R", default_value_t = 0, env = "RECLORA_NODE_RANK")]
    pub node_rank: u16,
    /// Where node 0 is reached, by ranks and by the launchers of other nodes [default: 127.0.0.1 and a free
    /// port]
    #[arg(long, value_name = "HOST:PORT", env = "RECLORA_RDZV_ENDPOINT")]
    pub rdzv_endpoint: Option<String>,
    /// Name of the job, the same on all nodes: a node of another job is sent away
    #[arg(long, value_name = "ID", default_value = "", env = "RECLORA_RDZV_ID")]
    pub rdzv_id: String,
    /// How long a node that went away may take to come back [default: runtime.rendezvous_timeout of the config]
    #[arg(long, value_name = "SECONDS", env = "RECLORA_REJOIN_TIMEOUT")]
    pub rejoin_timeout: Option<u64>,
    /// One node, whatever the environment says
    #[arg(long, env = "RECLORA_STANDALONE", value_parser = FalseyValueParser::new())]
    pub standalone: bool,
    /// Start a stage's ranks again this often when one dies, as long as there is progress
    #[arg(long, value_name = "N", default_value_t = 0, env = "RECLORA_MAX_RESTARTS")]
    pub max_restarts: u32,
    /// Bind each rank to the cores of one NUMA node (node), or not
    #[arg(long, value_enum, default_value_t)]
    pub numa_binding: Binding,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A config, a directory of raw files, or one CSV or Parquet table
    pub path: PathBuf,
    /// Layout of a directory's files, where it shall not be detected
    #[arg(long, value_name = "FORMAT", value_parser = format_parser())]
    pub format: Option<DatasetFormat>,
    /// Change one setting, as in `run`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A user and an item of a run.
#[derive(Debug, Args)]
pub struct PairArgs {
    /// The run directory
    pub run: PathBuf,
    /// Raw id of the user
    #[arg(long, value_name = "ID")]
    pub user: String,
    /// Raw id of the item
    #[arg(long, value_name = "ID")]
    pub item: String,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub pair: PairArgs,
    /// Directory to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    #[command(flatten)]
    pub pair: PairArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `synth`.
#[derive(Debug, Args)]
pub struct SynthArgs {
    /// Directory to write movies.csv and ratings.csv into; made if need be
    pub out_dir: PathBuf,
    /// Users, each with at least one rating; few of them have most
    #[arg(long, value_name = "N")]
    pub users: u32,
    /// Films; the least popular may be left without a rating
    #[arg(long, value_name = "N")]
    pub items: u32,
    /// Ratings, in sum exactly this many; no user rates a film twice
    #[arg(long, value_name = "N")]
    pub ratings: u64,
    /// Seed of every random choice
    #[arg(long, value_name = "S")]
    pub seed: u64,
    /// What the titles say of the films
    #[arg(long, value_enum, default_value_t)]
    pub titles: SynthTitles,
    /// Replace files that are there
    #[arg(long)]
    pub force: bool,
}

/// What synthetic titles say.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum SynthTitles {
    /// A word of the genre, which the table has too
    #[default]
    Plain,
    /// Also, by their adjective, whether a film is good: what ids don't tell of films with few ratings
    Telling,
    /// The same ratings, but every title is that of another film
    Shuffled,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A run directory, a directory of it, or a file
    #[arg(value_name = "RUN_OR_DIR_OR_FILE")]
    pub path: PathBuf,
    /// Take nothing over from an interrupted check
    #[arg(long)]
    pub fresh: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A run directory.
#[derive(Debug, Args)]
pub struct RunDirArgs {
    /// The run directory
    pub run: PathBuf,
}

/// Subcommands of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a config with every default filled in and every path resolved
    #[command(after_help = "Examples:\n  reclora-launch config show configs/quickstart.toml\n  \
        reclora-launch config show configs/quickstart.toml --set tune.epochs=3 > mine.toml")]
    Show {
        /// The experiment, a TOML file
        config: PathBuf,
        /// Change one setting, as in `run`
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Print every setting with its meaning, choices, range and default, as a TOML file
    #[command(after_help = "Examples:\n  reclora-launch config reference | less\n  \
        reclora-launch config reference mine.toml > commented.toml")]
    Reference {
        /// An experiment, whose values are printed in the place of defaults
        config: Option<PathBuf>,
    },
    /// Print the JSON schema of configs, by which editors complete and check them
    #[command(after_help = "Examples:\n  reclora-launch config schema > reclora.schema.json\n\n\
        With `#:schema reclora.schema.json` as its first line, a config is checked as it is written, by editors that \
        know taplo (Even Better TOML).")]
    Schema,
}

fn stage_parser() -> impl TypedValueParser<Value = Stage> {
    PossibleValuesParser::new(Stage::ALL.map(Stage::name)).try_map(|name| {
        Stage::ALL
            .into_iter()
            .find(|stage| stage.name() == name)
            .ok_or_else(|| format!("unknown stage {name}"))
    })
}

fn format_parser() -> impl TypedValueParser<Value = DatasetFormat> {
    PossibleValuesParser::new(Known::ALL.map(|known| known.format.name())).try_map(|name| {
        let known = Known::ALL.into_iter().find(|known| known.format.name() == name);
        known.map(|known| known.format).ok_or_else(|| format!("unknown format {name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn stages_are_parsed_by_name() {
        let cli = Cli::parse_from(["reclora-launch", "run", "c.toml", "--from", "tune"]);
        let Command::Run(args) = cli.command else { panic!("not run") };
        assert_eq!(args.stages.from, Some(Stage::Tune));
    }
}
