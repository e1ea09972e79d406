//! `prepare`: raw files to a memory-mapped dataset, by the protocol of the paper.

use reclora_comm::Communicator;
use reclora_storage::hash::xxh3_file;
use reclora_storage::protocol::{LabelRule, Prepared, ProtocolConfig};
use reclora_storage::spill::Spill;
use reclora_storage::{dataset, protocol, raw};
use serde_json::json;

use super::{Counts, Description, RunContext, Stage};
use crate::error::{Result, TrainerError};
use crate::telemetry::progress::{Event, Progress};

pub(super) const STAGE: Description = Description {
    name: "prepare",
    directory: "dataset",
    what: "read raw ratings, make samples and splits",
    single_process: true,
    settings: |config| {
        let data = &config.data;
        let split = json!([data.k_core, data.min_history, data.label, data.split, data.duplicates]);
        // The mapping of columns is read for some formats only.
        let columns = data.format.is_mapped().then_some(&data.columns);
        Ok(json!([data.format, split, columns]))
    },
    files: |ctx| {
        let data = &ctx.config.data;
        let files = raw::files(data.format, &data.path, &data.columns)?.into_iter();
        files
            .map(|path| {
                // Parts of a table in several directories may have one name.
                let name = path.strip_prefix(&data.path).unwrap_or(&path);
                Ok((format!("data/{}", name.to_string_lossy()), xxh3_file(&path)?))
            })
            .collect()
    },
    run,
    ..Description::BASE
};

fn run(
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
    let raw = raw::read_within(data.format, &data.path, &data.columns, data.duplicates, &spill)?;
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
    let levels = given_levels(prepared)?;
    if let [only] = levels.as_slice() {
        let what = format!(
            "every rating is {only}, which is data of one class (clicks or purchases?): no rule cuts it in two. Add \
             rows of what was shown and not taken, with a lower rating"
        );
        return Err(TrainerError::config("data.path", what));
    }
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

/// The levels that some rating has, ascending.
fn given_levels(prepared: &Prepared) -> Result<Vec<f32>> {
    let mut given = vec![false; prepared.rating_levels.len()];
    prepared.rating.for_each_piece(|piece| {
        for level in piece {
            if let Some(given) = given.get_mut(usize::from(*level)) {
                *given = true;
            }
        }
        Ok(())
    })?;
    let levels = prepared.rating_levels.iter().zip(given);
    Ok(levels.filter(|(_, given)| *given).map(|(stars, _)| *stars).collect())
}

#[cfg(test)]
mod tests {
    use reclora_storage::raw::{ColumnMapping, DatasetFormat};

    use super::*;

    /// What is said of CSV ratings of these stars.
    fn said(stars: [u8; 4], rule: LabelRule) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let rows = stars.iter().enumerate().map(|(i, stars)| format!("u,{i},{stars},{i}\n"));
        let text = format!("user,item,rating,timestamp\n{}", rows.collect::<String>());
        std::fs::write(dir.path().join("ratings.csv"), text).unwrap();
        let columns = ColumnMapping::default();
        let raw = raw::read(DatasetFormat::Csv, dir.path(), &columns).unwrap();
        let (k_core, min_history, split) = (0, 0, [0.5, 0.25, 0.25]);
        let config = ProtocolConfig { k_core, min_history, label: rule, split };
        let prepared = protocol::prepare(&raw, &config).unwrap();
        check_labels(&prepared, rule).err().map(|error| error.to_string())
    }

    #[test]
    fn data_of_one_class_is_told_from_a_rule_that_leaves_one() {
        let only = said([1; 4], LabelRule::AtLeast(1.0)).unwrap();
        for words in ["data.path: every rating is 1", "one class", "shown and not taken"] {
            assert!(only.contains(words), "{only}");
        }
        assert!(!only.contains("choose a rule"), "{only}");
        assert_eq!(said([1; 4], LabelRule::AtLeast(2.0)), Some(only));
        let rule = said([1, 2, 1, 2], LabelRule::AtLeast(1.0)).unwrap();
        assert!(
            rule.contains("every one is a \"like\"") && rule.contains("choose a rule"),
            "{rule}"
        );
        assert_eq!(said([1, 2, 1, 2], LabelRule::AtLeast(2.0)), None);
    }
}
