//! What each command does, a file each; those of Slurm's jobs are in [`crate::slurm`].

mod compare;
mod completions;
mod config;
mod doctor;
mod export;
mod inspect;
mod man;
mod monitor;
mod plan;
mod predict;
mod report;
mod run;
mod synth;
mod verify;

use crate::cli::Command;
use crate::error::Result;
use crate::{slurm, workers};

/// Does what the command line asks for.
pub fn dispatch(command: &Command) -> Result<()> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Export(args) => export::export(args),
        Command::Predict(args) => predict::predict(args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Report(args) => report::report(&args.run),
        Command::Verify(args) => verify::verify(args),
        Command::Config(command) => config::config(command),
        Command::Compare(args) => compare::compare(args),
        Command::Monitor(args) => monitor::monitor(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Plan(args) => plan::plan(args),
        Command::Submit(args) => slurm::submit(args),
        Command::Status(args) => slurm::status(&args.run, args.json),
        Command::Logs(args) => slurm::logs(args),
        Command::Cancel(args) => slurm::cancel(&args.run),
        Command::Synth(args) => synth::synth(args),
        Command::Completions { shell } => completions::completions(*shell),
        Command::Man { out_dir } => man::man(out_dir.as_deref()),
        Command::Rank => std::process::exit(workers::rank::main()),
    }
}
