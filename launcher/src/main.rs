//! `reclora-launch`: configuration, stage pipeline, rank processes, report.
//!
//! `main` parses flags; [`run`] and [`commands`] turn them into things that are built and run. One
//! binary serves every role: `reclora-launch rank` is a worker (see [`rank`]).

mod cli;
mod cluster;
mod commands;
mod compare;
mod config;
mod doctor;
mod error;
mod failure;
mod gang;
mod inspect;
mod monitor;
mod pipeline;
mod plan;
mod preflight;
mod progress;
mod rank;
mod rendezvous;
mod report;
mod run;
mod signals;
mod slurm;
mod verify;

use std::panic::PanicHookInfo;

use clap::Parser;
use reclora_storage::raw::is_decoding;

use cli::{Cli, Command};
use error::{EXIT_OK, Result};

fn main() {
    // A rank's first act is to tie its life to the launcher's.
    if std::env::args_os().nth(1).is_some_and(|word| word == "rank") {
        std::process::exit(rank::main());
    }
    std::panic::set_hook(Box::new(|info| {
        if !is_decoding() {
            eprintln!("error: {}", panic_line(info));
        }
    }));
    let code = match dispatch(&Cli::parse().command) {
        Ok(()) => EXIT_OK,
        Err(error) => {
            eprintln!("{}", error::block(&error));
            error::exit_code(&error)
        }
    };
    std::process::exit(code);
}

fn dispatch(command: &Command) -> Result<()> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Export(args) => commands::export(args),
        Command::Predict(args) => commands::predict_pair(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Report(args) => commands::rebuild_report(&args.run),
        Command::Verify(args) => verify::verify(args),
        Command::Config(command) => commands::config(command),
        Command::Compare(args) => compare::compare(args),
        Command::Monitor(args) => monitor::run(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Plan(args) => plan::plan(args),
        Command::Submit(args) => slurm::submit(args),
        Command::Status(args) => slurm::status(&args.run, args.json),
        Command::Logs(args) => slurm::logs(args),
        Command::Cancel(args) => slurm::cancel(&args.run),
        Command::Synth(args) => commands::synth(args),
        Command::Completions { shell } => commands::completions(*shell),
        Command::Man { out_dir } => commands::man(out_dir.as_deref()),
        Command::Rank => std::process::exit(rank::main()),
    }
}

/// A panic in one line: a bug of ours, said as such.
fn panic_line(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let what = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown".into());
    let place =
        info.location().map_or(String::new(), |at| format!(" at {}:{}", at.file(), at.line()));
    format!("internal error{place}: {}; this is a bug, please report it", what.replace('\n', " "))
}
