//! What the machines and the ranks of a run do: collected on every node, and shown.
//!
//! Every launcher has a [`collect::Collector`], which writes a [`sample::Sample`] of its node each second into
//! `RUN/monitor/` ([`store`]). Whoever watches reads these files: a run needs no watcher, watchers don't disturb
//! it, and a node that is gone is one whose samples grow old. [`source`] looks; [`window`] makes rates of samples,
//! [`goodput`] says what a run's time went to, [`verdict`] says what holds the run up. [`show`] puts all of it together
//! for the views: text, a [`terminal`], and over HTTP ([`serve`]) a page and Prometheus' [`metrics`].

pub mod collect;
pub mod curve;
pub mod goodput;
pub mod gpu;
pub mod hosts;
pub mod metrics;
pub mod process;
pub mod sample;
pub mod serve;
pub mod show;
pub mod source;
pub mod store;
pub mod tensorboard;
pub mod terminal;
pub mod usage;
pub mod verdict;
pub mod watch;
pub mod window;

use std::io::IsTerminal;
use std::time::Duration;

use crate::cli::MonitorArgs;
use crate::commands::print_to_reader;
use crate::error::Result;
use source::Source;

/// Shows what there is to see, once or until a signal ends this process, which has nothing to clean up.
pub fn run(args: &MonitorArgs) -> Result<()> {
    let interval = Duration::from_secs(args.interval.into());
    let is_text = args.json || args.once || args.listen.is_some();
    let is_screen = !is_text && std::io::stdout().is_terminal();
    if is_screen {
        // A signal must not leave the terminal as the view has made it.
        crate::signals::install()?;
    }
    let mut source = Source::open(args)?;
    if let Some(address) = args.listen {
        return serve::serve(source, address, interval);
    }
    if is_screen {
        return terminal::show(source, interval);
    }
    if args.once {
        source.wait();
    }
    loop {
        let look = source.look()?;
        let view = look.view();
        let text = if args.json { format!("{}\n", view.json()) } else { view.text() };
        let is_read = print_to_reader(&text)?;
        if args.once || !is_read {
            return Ok(());
        }
        std::thread::sleep(interval);
    }
}
