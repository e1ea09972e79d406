//! What the machines and the ranks of a run do: collected on every node, and shown.
//!
//! Every launcher has a [`collect::Collector`], which writes a [`sample::Sample`] of its node each second into
//! `RUN/monitor/` ([`store`]). Whoever watches reads these files: a run needs no watcher, watchers don't disturb
//! it, and a node that is gone is one whose samples grow old. [`window`] makes rates of samples, [`verdict`] says
//! what holds the run up, [`show`] shows both.

pub mod collect;
pub mod gpu;
pub mod process;
pub mod sample;
pub mod show;
pub mod store;
pub mod verdict;
pub mod watch;
pub mod window;

use std::path::Path;
use std::time::Duration;

use color_eyre::eyre::eyre;

use crate::cli::MonitorArgs;
use crate::commands::print;
use crate::error::{LaunchError, Result};
use collect::Eyes;
use sample::Sample;
use window::{WINDOW, Window};

/// Shows a run or this machine, once or until a signal ends this process, which has nothing to clean up.
pub fn run(args: &MonitorArgs) -> Result<()> {
    let interval = Duration::from_secs(args.interval.into());
    let mut source = match &args.run {
        Some(run) if !run.is_dir() => {
            return Err(LaunchError::Usage(format!(
                "{}: not a run directory\n  help: give the --run-dir of a run, or nothing to watch this \
                 machine",
                run.display()
            ))
            .into());
        }
        Some(run) => Source::Run(run),
        None => Source::Machine(Box::new(Eyes::open()), Vec::new()),
    };
    loop {
        let windows = source.look()?;
        let view = show::View::new(&windows, sample::now());
        match args.json {
            true => print(&format!("{}\n", view.json()))?,
            false if args.once => print(&view.text())?,
            // From the top of a cleared screen.
            false => print(&format!("\x1b[2J\x1b[H{}", view.text()))?,
        }
        if args.once {
            return Ok(());
        }
        std::thread::sleep(interval);
    }
}

/// Where samples come from.
enum Source<'a> {
    /// A run directory.
    Run(&'a Path),
    /// This machine, and its latest samples.
    Machine(Box<Eyes>, Vec<Sample>),
}

impl Source<'_> {
    fn look(&mut self) -> Result<Vec<Window>> {
        match self {
            Self::Run(run) => {
                let windows = store::read(run)?;
                if windows.is_empty() {
                    return Err(eyre!(
                        "{}: nothing has been collected of this run yet; `reclora-launch run` writes it to \
                         monitor/ while it works",
                        run.display()
                    ));
                }
                Ok(windows)
            }
            Self::Machine(eyes, samples) => {
                samples.push(eyes.sample(0, "", Vec::new()));
                let from = sample::now() - WINDOW;
                samples.retain(|sample| sample.time >= from);
                Ok(vec![Window::new("this machine", samples.clone())])
            }
        }
    }
}
