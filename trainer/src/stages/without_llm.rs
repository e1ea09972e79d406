//! The models that read no text: the CRM by the lens, and baselines of users and items.

use std::collections::BTreeSet;

use rayon::prelude::*;
use reclora_storage::dataset::Split;
use serde::Serialize;

use super::baselines::Baselines;
use super::crms::CrmInputs;
use super::evaluate::{bootstrap, scored};
use super::inputs::{self, Lens};
use super::{RunContext, Stage, check_origin, finished};
use crate::error::Result;
use crate::metrics::{Metrics, Scored};

/// The models without an LLM on a split.
#[derive(Clone, Debug, Serialize)]
pub struct SplitMetrics {
    /// Samples of it, all of them scored.
    pub samples: u64,
    /// Users among them.
    pub users: u64,
    /// The models and their figures.
    pub models: Vec<(&'static str, Metrics)>,
}

/// The models without an LLM, as soon as few2many is done.
#[derive(Clone, Debug, Serialize)]
pub struct WithoutLlm {
    /// To choose settings by.
    pub valid: SplitMetrics,
    /// What chosen settings are reported by.
    pub test: SplitMetrics,
}

/// Measures the CRM and the baselines on all of valid and test, without the LLM.
///
/// # Errors
/// few2many is not done, or what it wrote is damaged.
pub fn without_llm(ctx: &RunContext) -> Result<WithoutLlm> {
    for stage in [Stage::Prepare, Stage::Count, Stage::Few2many] {
        finished(ctx, stage).verify()?;
        check_origin(ctx, stage)?;
    }
    let dataset = inputs::dataset(ctx)?;
    let lens = Lens::open(ctx, &dataset)?;
    let crm_inputs = CrmInputs::open(ctx, &dataset)?;
    let baselines = Baselines::fit(ctx, &dataset, &crm_inputs)?;
    let measure = |split: Split| -> Result<SplitMetrics> {
        let samples = inputs::samples(&dataset, dataset.split(split))?;
        let users: BTreeSet<u32> = samples.iter().map(|sample| sample.user).collect();
        let (resamples, seed) = (ctx.config.evaluate.bootstrap, ctx.config.seed);
        let (names, likes): (Vec<_>, Vec<_>) =
            baselines.likes(&lens, &samples)?.into_iter().unzip();
        let scored = names.iter().zip(&likes).map(|(name, likes)| scored(name, &samples, likes));
        let scored: Vec<Vec<Scored>> = scored.collect::<Result<_>>()?;
        let bootstrap = bootstrap(&scored, resamples, seed)?;
        let models = names.par_iter().zip(&scored).enumerate();
        let models =
            models.map(|(place, (name, scored))| (*name, Metrics::new(scored, &bootstrap, place)));
        let models = models.collect();
        Ok(SplitMetrics { samples: samples.len() as u64, users: users.len() as u64, models })
    };
    Ok(WithoutLlm { valid: measure(Split::Valid)?, test: measure(Split::Test)? })
}
