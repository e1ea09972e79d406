//! Raw files before they are read, and the dataset once it is there.

use reclora_storage::dataset::{Dataset, Split};
use reclora_storage::raw;

use super::{Finding, Help, text};
use crate::error::TrainerError;
use crate::stages::{RunContext, Stage, pair};

/// Looks at the beginning of every raw file.
pub fn check_raw(ctx: &RunContext) -> Vec<Finding> {
    let data = &ctx.config.data;
    if !data.path.is_dir() {
        let expected = "the directory of the raw ratings";
        return vec![Finding::absent("data", "data.path", &data.path, expected)];
    }
    let problems = raw::look(data.format, &data.path, &data.columns);
    if problems.is_empty() {
        return vec![Finding::fine("data", data.path.display(), data.format.name())];
    }
    let problems = problems.into_iter();
    problems.map(|error| Finding::wrong("data", error.into(), Help::RawFiles)).collect()
}

/// Looks at what `stages` will ask of a prepared dataset.
pub fn check_dataset(ctx: &RunContext, dataset: &Dataset, stages: &[Stage]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let learns = stages.iter().any(|stage| matches!(stage, Stage::Pretrain | Stage::Tune));
    if learns && dataset.split(Split::Train).is_empty() {
        let what = format!("{:?} leaves no sample to train on", ctx.config.data.split);
        let error = TrainerError::config("data.split", what);
        findings.push(Finding::wrong("dataset", error, "give train a larger share"));
    }
    if stages.contains(&Stage::Export) {
        findings.extend(pairs(ctx, dataset));
    }
    findings.extend(text::check_questions(ctx, dataset, stages));
    findings
}

/// What is exported must be in the data.
fn pairs(ctx: &RunContext, dataset: &Dataset) -> Vec<Finding> {
    let pairs = &ctx.config.export.pairs;
    let mut problems: Vec<TrainerError> = Vec::new();
    for pair in pairs {
        let (user, item) = pair::ids(pair);
        if let Err(error) = pair::indices(ctx, dataset, user, item) {
            problems.push(TrainerError::config("export.pairs", format!("{pair:?}: {error}")));
        }
    }
    if pairs.is_empty() {
        problems.extend(pair::require_test_sample(dataset).err());
    }
    let help = "name raw ids that are in the dataset, as \"user:item\"";
    problems.into_iter().map(|error| Finding::wrong("export", error, help)).collect()
}
