//! `prepare`: raw files to a memory-mapped dataset, by the protocol of the paper.

use reclora_comm::Communicator;
use reclora_storage::protocol::{LabelRule, Prepared, ProtocolConfig};
use reclora_storage::spill::Spill;
use reclora_storage::{dataset, protocol, raw};

use super::{Counts, RunContext, Stage};
use crate::error::{Result, TrainerError};
use crate::progress::{Event, Progress};

pub fn run(
    ctx: &RunContext,
    _comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let data = &ctx.config.data;
    let config = ProtocolConfig {
        k_core: data.k_core,
        min_history: data.min_history,
        label: data.label,
        split: data.split,
    };
    let name = data.format.name();
    let dir = ctx.path(Stage::Prepare);
    // Neither the limit nor the threads change a byte of what is written.
    let limit = usize::try_from(data.memory_limit_mib << 20).unwrap_or(usize::MAX);
    let spill = Spill::within(limit, &dir, rayon::current_num_threads());
    let raw = raw::read_within(data.format, &data.path, &data.columns, &spill)?;
    for dropped in &raw.dropped {
        let text = format!("{name}: dropped {} {}", dropped.count, dropped.what);
        progress.emit(Event::Message { text });
    }
    let prepared = protocol::prepare_within(&raw, &config, &spill)?;
    drop(raw);
    check_labels(&prepared, data.label)?;
    let counts = dataset::write(&prepared, name, &dir)?;
    let list: Vec<String> =
        counts.iter().map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
    progress.emit(Event::Message { text: format!("{name}: {}", list.join(", ")) });
    Ok(counts)
}

/// Samples of one class teach nothing, and nothing can be measured on them: most likely the rule is meant for
/// another scale of ratings.
fn check_labels(prepared: &Prepared, rule: LabelRule) -> Result<()> {
    let (positive, all) = (prepared.counts.positive_samples, prepared.sample.len() as u64);
    if (1..all).contains(&positive) {
        return Ok(());
    }
    let rule = match rule {
        LabelRule::Greater(stars) => format!("{{ greater = {stars} }}"),
        LabelRule::AtLeast(stars) => format!("{{ at_least = {stars} }}"),
    };
    let levels = &prepared.rating_levels;
    let [lowest, highest] =
        [levels.first(), levels.last()].map(|level| level.copied().unwrap_or(0.0));
    let which = if positive == 0 { "none" } else { "every one" };
    Err(TrainerError::config(
        "data.label",
        format!(
            "of {all} samples {which} is a \"like\" by {rule}, and ratings go from {lowest} to {highest}; \
             choose a rule that cuts them in two"
        ),
    ))
}
