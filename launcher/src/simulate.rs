//! `simulate`: the supervision of ranks under made-up failures, and a table of what became of them.

use std::collections::BTreeMap;
use std::time::Duration;

use color_eyre::eyre::eyre;
use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::cli::SimulateArgs;
use crate::commands::print;
use crate::error::Result;
use crate::gang::simulation::{JobEnd, job};

/// Runs as many schedules as asked for.
pub fn simulate(args: &SimulateArgs) -> Result<()> {
    let mut ends: BTreeMap<JobEnd, u64> = BTreeMap::new();
    let mut after_fault: Vec<Duration> = Vec::new();
    let mut gangs = 0;
    for seed in args.seed..args.seed.saturating_add(args.schedules) {
        let mut lines = String::new();
        let told = args.trace && seed == args.seed;
        let mut say = |attempt: usize, at: Duration, text: &str| {
            if told {
                let at = at.as_secs_f64();
                lines.push_str(&format!("attempt {} at {at:7.2} s: {text}\n", attempt + 1));
            }
        };
        let run = job(seed, args.world_size.into(), &mut say).map_err(|what| {
            eyre!("schedule {seed} broke a promise: {what}\n  help: simulate --seed {seed} --schedules 1 \
                   --trace --world-size {} tells it step by step", args.world_size)
        });
        print(&lines)?;
        let run = run?;
        *ends.entry(run.end).or_default() += 1;
        gangs += run.attempts;
        after_fault.extend(run.after_fault);
    }
    after_fault.sort();
    print(&format!("{}\n", summary(args, &ends, gangs, &after_fault)))
}

fn summary(
    args: &SimulateArgs,
    ends: &BTreeMap<JobEnd, u64>,
    gangs: usize,
    after_fault: &[Duration],
) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    for (end, count) in ends {
        let what = match end {
            JobEnd::Finished => "finished",
            JobEnd::Paused => "saved and ended, as asked",
            JobEnd::Interrupted => "ended, as asked",
            JobEnd::GaveUp => "gave up: restarts used up",
            JobEnd::Hopeless => "gave up: the same would come again",
        };
        table.add_row([&count.to_string(), what]);
    }
    let place = |share: f64| {
        let index = (after_fault.len().saturating_sub(1) as f64 * share) as usize;
        after_fault.get(index).map_or(0.0, Duration::as_secs_f64)
    };
    format!(
        "{} schedules of {} ranks, {gangs} gangs: every promise was kept\n{}\nfrom a fault to the end of its \
         gang: median {:.2} s, 90 % within {:.2} s, longest {:.2} s",
        args.schedules,
        args.world_size,
        table.trim_fmt(),
        place(0.5),
        place(0.9),
        place(1.0)
    )
}
