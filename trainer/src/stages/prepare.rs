//! `prepare`: raw files to a memory-mapped dataset, by the protocol of the paper.

use reclora_comm::Communicator;
use reclora_storage::protocol::ProtocolConfig;
use reclora_storage::spill::Spill;
use reclora_storage::{dataset, protocol, raw};

use super::{Counts, RunContext, Stage};
use crate::error::Result;
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
    let counts = dataset::write(&prepared, name, &dir)?;
    let list: Vec<String> =
        counts.iter().map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
    progress.emit(Event::Message { text: format!("{name}: {}", list.join(", ")) });
    Ok(counts)
}
