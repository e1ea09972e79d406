//! `plan`: the forecast of a run, for people.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use indicatif::BinaryBytes;
use reclora_trainer::stages::{Forecast, RunContext, Training, forecast};

use crate::cli::{NodeCount, PlanArgs};
use crate::error::Result;
use crate::output::{count, show};
use crate::preflight;
use crate::resolve::resolve;
use crate::workers::env::threads_per_rank;

/// Computes and prints.
pub fn plan(args: &PlanArgs) -> Result<()> {
    let config = resolve(&args.experiment, None, NodeCount::ONE)?;
    let per_node = config.runtime.nproc_per_node;
    let world_size = args.world_size.map_or(per_node, usize::from);
    // As many on each machine as the config says, on machines like this one.
    let (per_node, cores) =
        (per_node.min(world_size), std::thread::available_parallelism().map_or(1, usize::from));
    let threads = threads_per_rank(config.runtime.threads_per_rank, cores, per_node);
    let context = RunContext::new(config.run_dir.clone(), config);
    preflight::elsewhere(&context)?;
    let forecast = forecast(&context, world_size, threads)?;
    show(&forecast, args.json, |forecast| readable(forecast, per_node, threads))
}

fn readable(forecast: &Forecast, per_node: usize, threads: usize) -> String {
    let Forecast { world_size, backbone, pretrain, tune, samples } = forecast;
    let mut text = format!(
        "{world_size} ranks, {per_node} on each machine, of {threads} threads each\n\nbackbone: {} weights, {} \
         (mapped files are shared by the ranks of a machine)\n",
        count(backbone.parameters),
        BinaryBytes(backbone.bytes)
    );
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "stage",
        "trained",
        "steps at most",
        "samples per step",
        "memory per rank",
        "sent per step",
        "sent in all",
        "took here",
    ]);
    let mut row = |name: &str, training: &Training| {
        table.add_row([
            name.to_owned(),
            count(training.parameters),
            count(training.steps),
            count(training.global_batch),
            BinaryBytes(training.bytes_per_rank).to_string(),
            BinaryBytes(training.sent_per_step).to_string(),
            BinaryBytes(training.sent).to_string(),
            training.measured_seconds.map_or("-".into(), |seconds| format!("{seconds:.1} s")),
        ]);
    };
    if let Some(pretrain) = pretrain {
        row("pretrain", pretrain);
    }
    row("tune", tune);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    text.push_str(&format!("\n{}\n\n", table.trim_fmt()));
    match samples {
        Some(samples) => text.push_str(&format!(
            "few2many scores {} samples, evaluate {}{}\n",
            count(samples.all),
            count(samples.evaluated),
            match samples.evaluated < samples.test {
                true => format!(" of {} in test (evaluate.limit)", count(samples.test)),
                false => String::new(),
            }
        )),
        None => text.push_str(
            "pretrain, few2many and evaluate: known after `run CONFIG --only prepare`, which counts users, \
             items and samples\n",
        ),
    }
    text.push_str(
        "memory: parameters, optimizer and gradients; what forward and backward keep of a sample comes on top\n\
         sent: by each rank, of the dense gradient\n",
    );
    text
}
