//! `monitor`: what the machines and the ranks of a run do, as text, as a view that keeps itself up to date, or over HTTP.

use std::io::IsTerminal;
use std::time::Duration;

use crate::cli::MonitorArgs;
use crate::error::Result;
use crate::monitor::source::Source;
use crate::monitor::{serve, terminal};
use crate::output::print_to_reader;
use crate::{signals, slurm};

/// Shows what there is to see, once or until a signal ends this process, which has nothing to clean up.
pub fn monitor(args: &MonitorArgs) -> Result<()> {
    let interval = Duration::from_secs(args.interval.into());
    let is_text = args.json || args.once || args.listen.is_some();
    let is_screen = !is_text && std::io::stdout().is_terminal();
    if is_screen {
        // A signal must not leave the terminal as the view has made it.
        signals::install()?;
    }
    let run = match (&args.run, args.slurm) {
        (None, Some(job)) => Some(slurm::run_dir_of(job)?),
        (run, _) => run.clone(),
    };
    let mut source = Source::open(run.as_deref(), &args.hosts, &args.rsh)?;
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
