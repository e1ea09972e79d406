//! `reclora-launch`: configuration, stage pipeline, rank processes, report.
//!
//! `main` parses flags; [`commands`] turn them into things that are built and run. One binary serves every role:
//! `reclora-launch rank` is a worker (see [`workers::rank`]).

mod cli;
mod cluster;
mod commands;
mod config;
mod error;
mod exit;
mod hints;
mod monitor;
mod output;
mod pipeline;
mod preflight;
mod progress;
mod report;
mod resolve;
mod run_dir;
mod signals;
mod slurm;
mod workers;

use clap::Parser;
use reclora_storage::raw::is_decoding;

use cli::Cli;
use exit::{EXIT_OK, block, exit_code, panic_line};

fn main() {
    // A rank's first act is to tie its life to the launcher's.
    if std::env::args_os().nth(1).is_some_and(|word| word == "rank") {
        std::process::exit(workers::rank::main());
    }
    std::panic::set_hook(Box::new(|info| {
        if !is_decoding() {
            eprintln!("error: {}", panic_line(info));
        }
    }));
    let code = match commands::dispatch(&Cli::parse().command) {
        Ok(()) => EXIT_OK,
        Err(error) => {
            eprintln!("{}", block(&error));
            exit_code(&error)
        }
    };
    std::process::exit(code);
}
