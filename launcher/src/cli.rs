//! The command line as typed: flags only, nothing is opened or checked against the machine here.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use reclora_storage::raw::{DatasetFormat, Known};
use reclora_trainer::stages::Stage;

const ABOUT: &str =
    "Personalised LoRA for recommendation, from raw ratings to an evaluated adapter";

const LONG_ABOUT: &str = "\
Personalised LoRA for recommendation, from raw ratings to an evaluated adapter.

One config file describes one experiment. `run` takes it through eight stages; each leaves a \
directory in the run directory, and a stage whose directory is complete is not done again. So the \
same command continues a run that was interrupted, and gives the same result bit for bit, with any \
number of processes.";

const EXAMPLES: &str = "\
Examples:
  reclora-launch run configs/quickstart.toml
      Run the shipped experiment; then open runs/quickstart/report/index.html
  reclora-launch run configs/quickstart.toml --set tune.epochs=3 --run-dir runs/three
      The same with one setting changed, kept apart
  reclora-launch predict runs/quickstart --user 27 --item 1483013
      How likely a user is to like an item, and the prompt that was used
  reclora-launch export runs/quickstart --user 27 --item 1483013 --out lora/
      That user's adapter for that item, as a directory Hugging Face PEFT loads
  reclora-launch inspect configs/data/movietweetings-100k
      What is in raw ratings, and what a run would make of them
  reclora-launch config reference
      Every setting with its meaning and default
  reclora-launch synth data/synthetic --users 1000 --items 500 --ratings 100000 --seed 1
      Make ratings to try things on, of any size

Exit codes:
  0    done
  1    failure (disk, port, corrupt file, ...)
  2    the command line or the config can't work; nothing was started
  3    a rank died or reported an error; RUN/error.json has the details
  129  stopped by a hangup  130  stopped by Ctrl-C  143  stopped by SIGTERM";

const RUN_LONG: &str = "\
Runs an experiment: every stage that is not up to date, in order, then the report.

Stages: prepare (raw files to samples), embed (item embeddings), retrieve (top-K history items), \
pretrain (CRM on the full data), few2many (the CRM's representation of every sample), tune \
(few-shot LoRA), evaluate (full test set), export (PEFT adapters).

Every stage except prepare and export runs as a gang of rank processes. The run directory gets \
one directory per stage, report/, logs/<stage>/attempt_N/rank_R/{stdout,stderr}.log and, when a \
rank fails, error.json. Its config.toml is the resolved config: `run RUN/config.toml` continues \
the run from anywhere.";

const RUN_EXAMPLES: &str = "\
Examples:
  reclora-launch run configs/quickstart.toml
  reclora-launch run configs/quickstart.toml --nproc-per-node 4
  reclora-launch run configs/quickstart.toml --from tune --set adapter.experts=4
  reclora-launch run configs/quickstart.toml --only evaluate --force
  reclora-launch run CONFIG --nnodes 2 --node-rank 0 --rdzv-endpoint node0:29500
      On two nodes that share the run directory; the other runs the same with --node-rank 1

Exit codes: 0 done, 1 failure, 2 usage or config, 3 a rank died, 129/130/143 stopped by a signal \
(the same command continues).";

const SYNTH_LONG: &str = "\
Makes synthetic ratings in the layout of MovieLens-25M: movies.csv and ratings.csv, to be read with \
data.format = \"movielens_25m\" and data.label = { greater = 3.0 }.

There is something to learn in them. Each user likes some genres (by a film's first genre) and \
dislikes others, and this drifts over the user's time; films differ in quality and in popularity, \
users in kindness and activity. The rest is noise. The same numbers and seed give the same files, \
byte for byte. Memory grows with users and items only, not with ratings.";

const SYNTH_EXAMPLES: &str = "\
Examples:
  reclora-launch synth data/synthetic --users 1000 --items 500 --ratings 100000 --seed 1
  reclora-launch synth data/as-25m --users 162541 --items 62423 --ratings 25000095 --seed 1
      The size of MovieLens-25M, 0.7 GB

Then, in a config, or with --set data.path=...:
  [data]
  format = \"movielens_25m\"
  path = \"data/synthetic\"
  label = { greater = 3.0 }";

const VERIFY_LONG: &str = "\
Reads every file of a run again and compares it with the hashes that were written with it: manifests \
and the files they list, the columns of shards, checkpoints. Every damaged, missing or foreign file is \
named, with the command that rebuilds it.

Interrupted, the same command continues. A check that ends is forgotten: the next one reads \
everything. Reports, logs and inputs outside the run are not checked.";

const VERIFY_EXAMPLES: &str = "\
Examples:
  reclora-launch verify runs/quickstart
  reclora-launch verify runs/quickstart/dataset
  reclora-launch verify runs/quickstart/lens/lens-000003.shard
  reclora-launch verify runs/quickstart --json

Exit codes: 0 everything is as it was written, 1 something is not, 2 there is nothing to check.";
const INSPECT_LONG: &str = "\
Looks at raw ratings before a run; nothing is written.

Shows the format, the files, each column with examples, how ratings and users are distributed, and what \
each step of the protocol (k_core, min_history, split) would drop and leave. Of a config it reads [data]. \
Of a directory the format is detected by the names of the files, and the protocol's settings are the \
defaults with the paper's rule for likes; --set changes them. For CSV and Parquet it shows each table's \
columns and guesses [data.columns], as lines to copy into a config.

Formats: movietweetings, movielens_100k, movielens_1m, movielens_25m, bookcrossing, goodreads, csv, \
parquet. Files may be plain or .gz (Parquet has its own compression).";

const INSPECT_EXAMPLES: &str = "\
Examples:
  reclora-launch inspect configs/quickstart.toml
      The ratings of an experiment, under its settings
  reclora-launch inspect data/ml-1m --set data.k_core=10
      A directory, its format detected, under another setting
  reclora-launch inspect events.csv
      The columns of a table, and the mapping they suggest
  reclora-launch inspect events.csv --set data.columns.user=who --set data.columns.item=what
      The same with columns that can't be guessed
  reclora-launch inspect data/ml-1m --json | jq .inspection.protocol.samples
      For scripts

Exit codes: 0 done (also where no sample would be left, which is said), 1 files that can't be read, \
2 usage or config.";

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
    /// Read every file of a run again: is it what was written?
    #[command(long_about = VERIFY_LONG, after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// Show configs: a resolved one, or every setting there is
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make synthetic ratings with something to learn in them
    #[command(long_about = SYNTH_LONG, after_help = SYNTH_EXAMPLES)]
    Synth(SynthArgs),
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

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The experiment, a TOML file (`config reference` lists every setting)
    pub config: PathBuf,
    /// Where the run is kept [default: run_dir of the config]
    #[arg(long, value_name = "DIR", help_heading = "Experiment")]
    pub run_dir: Option<PathBuf>,
    /// Change one setting, e.g. tune.epochs=3; repeatable. The value is TOML, bare words are text
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Experiment")]
    pub set: Vec<String>,
    /// Do this stage and everything after it again
    #[arg(long, value_name = "STAGE", value_parser = stage_parser(), help_heading = "Stages")]
    #[arg(conflicts_with = "only")]
    pub from: Option<Stage>,
    /// Do only this stage; what it reads must be there
    #[arg(long, value_name = "STAGE", value_parser = stage_parser(), help_heading = "Stages")]
    pub only: Option<Stage>,
    /// Do the selected stages again even when they are up to date
    #[arg(long, help_heading = "Stages")]
    pub force: bool,
    /// Don't write the report at the end
    #[arg(long, help_heading = "Stages")]
    pub no_report: bool,
    /// Rank processes on this machine [default: runtime.nproc_per_node of the config]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[arg(help_heading = "Processes")]
    pub nproc_per_node: Option<u16>,
    /// Nodes of the job: the same command is run on each, with its --node-rank
    #[arg(long, value_name = "N", default_value_t = 1, env = "RECLORA_NNODES")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Processes")]
    pub nnodes: u16,
    /// Which node this is, from 0; node 0 leads
    #[arg(long, value_name = "R", default_value_t = 0, env = "RECLORA_NODE_RANK")]
    #[arg(help_heading = "Processes")]
    pub node_rank: u16,
    /// Where node 0 is reached, by ranks and by the launchers of other nodes [default: 127.0.0.1 and a free
    /// port]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "RECLORA_RDZV_ENDPOINT",
        help_heading = "Processes"
    )]
    pub rdzv_endpoint: Option<String>,
    /// Name of the job, the same on all nodes: a node of another job is sent away
    #[arg(long, value_name = "ID", default_value = "", env = "RECLORA_RDZV_ID")]
    #[arg(help_heading = "Processes")]
    pub rdzv_id: String,
    /// One node, whatever the environment says
    #[arg(long, help_heading = "Processes")]
    pub standalone: bool,
    /// Start a stage's ranks again this often when one dies, as long as there is progress
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Processes")]
    pub max_restarts: u32,
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

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run directory
    pub run: PathBuf,
    /// Raw id of the user
    #[arg(long, value_name = "ID")]
    pub user: String,
    /// Raw id of the item
    #[arg(long, value_name = "ID")]
    pub item: String,
    /// Directory to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// The run directory
    pub run: PathBuf,
    /// Raw id of the user
    #[arg(long, value_name = "ID")]
    pub user: String,
    /// Raw id of the item
    #[arg(long, value_name = "ID")]
    pub item: String,
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
    /// Replace files that are there
    #[arg(long)]
    pub force: bool,
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
    /// Print every setting with its meaning and default, as a TOML file
    #[command(after_help = "Examples:\n  reclora-launch config reference | less")]
    Reference,
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
        assert_eq!(args.from, Some(Stage::Tune));
    }
}
