//! What the machines and the ranks of a run do: collected on every node, and shown.
//!
//! Every launcher has a [`collect::Collector`], which writes a [`sample::Sample`] of its node each second into
//! `RUN/monitor/` ([`store`]). Whoever watches reads these files: a run needs no watcher, watchers don't disturb
//! it, and a node that is gone is one whose samples grow old. [`source`] looks; [`window`] makes rates of samples,
//! [`history`] what a run's time went to, [`verdict`] says what holds the run up. [`show`] puts all of it together
//! for the views: text, a [`terminal`], and over HTTP ([`serve`]) a page and Prometheus' [`metrics`].

pub mod collect;
pub mod gpu;
pub mod history;
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
use crate::commands::print;
use crate::error::Result;
use source::Source;

/// Shows what there is to see, once or until a signal ends this process, which has nothing to clean up.
pub fn run(args: &MonitorArgs) -> Result<()> {
    let interval = Duration::from_secs(args.interval.into());
    let mut source = Source::open(args)?;
    if let Some(address) = args.listen {
        return serve::serve(source, address, interval);
    }
    if args.once {
        source.wait();
    } else if !args.json && std::io::stdout().is_terminal() {
        return terminal::show(source, interval);
    }
    loop {
        let look = source.look()?;
        let view = look.view();
        match args.json {
            true => print(&format!("{}\n", view.json()))?,
            false => print(&view.text())?,
        }
        if args.once {
            return Ok(());
        }
        std::thread::sleep(interval);
    }
}
