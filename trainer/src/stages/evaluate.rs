//! `evaluate`: the test set scored by every model.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;
use reclora_comm::Communicator;
use reclora_storage::dataset::{Dataset, Sample, Split};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::baselines::{Baselines, Likes};
use super::count::known;
use super::crms::{CrmInputs, before_holdout, early_to_full, few_shot_range};
use super::draw::{Drawn, ScoredOrder};
use super::inputs::{Lens, Neighbours, samples as samples_of};
use super::predictions;
use super::text::TextInputs;
use super::tuned::{Adapters, Tuned};
use super::{Counts, Description, RunContext, Stage, artifacts, write_json};
use crate::adapter::Adapter;
use crate::engine::{Adapted, Prompt};
use crate::error::{Result, TrainerError};
use crate::metrics::{
    Bootstrap, CalibrationBin, Compared, Differences, Gain, HistoryGroup, Metrics, Role, Scored,
    by_history_length, calibration, roc,
};
use crate::scoring::chunks::{Chunks, PARTS, Values, Within};
use crate::scoring::{read_valid, sigmoid};
use crate::telemetry::measure::{Phase, timed};
use crate::telemetry::progress::Progress;

/// Bins of the reliability curves.
const BINS: usize = 10;
/// Points of the ROC curves.
const POINTS: usize = 200;
/// The gates' use is a mean over at most this many test samples, evenly spaced.
const GATE_SAMPLES: u64 = 4096;

/// `predictions/metrics.json`.
#[derive(Serialize)]
struct Evaluation {
    models: BTreeMap<&'static str, ModelEvaluation>,
    scored: ScoredSamples,
    gate: Option<GateUse>,
    /// In runs with a holdout: how much surer a CRM is of labels that it was trained on.
    leak: Option<Leak>,
    /// With a prior: how much of what each LLM adds to the CRM's logit is believed.
    gains: BTreeMap<&'static str, Gain>,
}

/// Which test samples were scored, by every model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredSamples {
    /// How many.
    pub samples: u64,
    /// Of how many.
    pub of_samples: u64,
    /// Users that they are of.
    pub users: u64,
    /// Users of the whole test split.
    pub of_users: u64,
    /// Users with likes and others among what was scored: those that gAUC is of.
    pub ranked_users: u64,
    /// How many are likes.
    pub likes: u64,
    /// How they were chosen.
    pub order: ScoredOrder,
}

/// How well two CRMs say the labels of the holdout: one was trained on them, the other was not. Gates and scores that are
/// tuned on what the first says of them learn to believe what no CRM knows of a new sample; they are tuned on what the
/// second says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leak {
    /// Samples of the holdout.
    pub samples: u64,
    /// Log loss of the CRM that was trained on them.
    pub seen: f64,
    /// That of the CRM that was not, brought to the scale of the first: the offset that is tuned on.
    pub unseen: f64,
}

#[derive(Serialize)]
struct ModelEvaluation {
    metrics: Metrics,
    /// Its figures less those of others, by the other's name.
    differences: BTreeMap<&'static str, Differences>,
    calibration: Vec<CalibrationBin>,
    roc: Vec<[f64; 2]>,
    by_history_length: Vec<HistoryGroup>,
}

#[derive(Serialize)]
struct GateUse {
    experts: usize,
    modules: Vec<ModuleUse>,
}

#[derive(Serialize)]
struct ModuleUse {
    name: String,
    /// Mean weight of each expert.
    mean_alpha: Vec<f64>,
    /// Mean entropy of the weights, in nats.
    entropy: f64,
}

pub(super) const STAGE: Description = Description {
    name: "evaluate",
    directory: "predictions",
    what: "score the test set with every model",
    reads: &[Stage::Prepare, Stage::Retrieve, Stage::Count, Stage::Few2many, Stage::Tune],
    reads_backbone: true,
    reads_template: true,
    settings: |config| {
        let (evaluate, models) = (&config.evaluate, &config.tune.models);
        Ok(json!([config.seed, config.prompt.max_tokens, evaluate, models]))
    },
    run,
    ..Description::BASE
};

fn run(
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let text = TextInputs::open(ctx)?;
    let adapters = Adapters::open(ctx, text.llm.config())?;
    let neighbours = Neighbours::open(ctx, &text.dataset)?;
    let lens = Lens::open(ctx, &text.dataset)?;
    let config = &ctx.config.evaluate;
    let split = text.dataset.split(Split::Test);
    let test = Drawn::limited(split, config.limit, config.limit_order, ctx.config.seed);
    let dir = ctx.path(Stage::Evaluate);
    // Of positions among what was drawn.
    let chunks = Chunks::new(&dir.join(PARTS), "scores", 0..test.len(), config.chunk_size);
    let inputs = CrmInputs::open(ctx, &text.dataset)?;
    score(&chunks, &test, &text, &adapters, &neighbours, &inputs, &lens, comm, progress)?;
    if comm.rank() == 0 {
        let samples = test.samples(&text.dataset)?;
        let baselines = Baselines::fit(ctx, &text.dataset, &inputs)?;
        let mut models = llm_probabilities(&chunks, &adapters, &lens, &samples)?;
        models.extend(baselines.likes(&lens, &samples)?);
        let columns = models.iter().map(|(name, likes)| (*name, predictions::Likes::All(likes)));
        let columns: Vec<_> = columns.collect();
        predictions::write(&dir.join(artifacts::TEST), &text.dataset, &samples, &columns)?;
        write_valid(ctx, &text.dataset, &lens, &baselines)?;
        let evaluation = Evaluation {
            models: measure(ctx, &samples, &models)?,
            scored: scored_samples(&text.dataset, &test, &samples)?,
            gate: gate_use(&adapters.reclora.adapter, &lens, &test)?,
            leak: leak(ctx, &text.dataset, &lens)?,
            gains: adapters.gains(),
        };
        write_json(&dir.join(artifacts::METRICS), &evaluation)?;
    }
    Ok([("samples".to_owned(), test.len())].into())
}

/// What each model says of valid: those without text of all of it, the others of what they were shown while
/// they were tuned.
fn write_valid(
    ctx: &RunContext,
    dataset: &Dataset,
    lens: &Lens,
    baselines: &Baselines<'_>,
) -> Result<()> {
    let samples = samples_of(dataset, dataset.split(Split::Valid))?;
    let mut llm = Vec::new();
    for model in &ctx.config.tune.models {
        let scores = read_valid(&model.directory(&ctx.path(Stage::Tune)))?;
        let likes: Vec<Option<f32>> =
            samples.iter().map(|sample| scores.get(&sample.index).copied()).collect();
        llm.push((model.key(), likes));
    }
    let others = baselines.likes(lens, &samples)?;
    let llm = llm.iter().map(|(name, likes)| (*name, predictions::Likes::Scored(likes)));
    let others = others.iter().map(|(name, likes)| (*name, predictions::Likes::All(likes)));
    let path = ctx.path(Stage::Evaluate).join(artifacts::VALID);
    predictions::write(&path, dataset, &samples, &llm.chain(others).collect::<Vec<_>>())
}

/// The answers' logits of each test sample, by every tuned model.
#[expect(clippy::too_many_arguments, reason = "each is opened once, for all of the stage")]
fn score(
    chunks: &Chunks,
    test: &Drawn,
    text: &TextInputs,
    adapters: &Adapters,
    neighbours: &Neighbours,
    inputs: &CrmInputs<'_>,
    lens: &Lens,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<()> {
    let prompts = text.prompts()?;
    let deciding = prompts.answers().deciding();
    let models = adapters.all().map(|tuned| Ok((tuned.model.key(), tuned.adapted(text)?)));
    let models = models.collect::<Result<Vec<_>>>()?;
    let read = |range: Range<u64>| -> Result<Vec<(Vec<u32>, Vec<f32>)>> {
        let read = |position| {
            let index = test.at(position);
            let sample = text.dataset.sample(index)?;
            let known = known(inputs.counters(index)?);
            let shown = neighbours.text(index)?;
            let prompt = prompts.build(sample.user, sample.item, shown, &known)?;
            Ok((prompt.tokens, lens.representation(index)?))
        };
        range.into_par_iter().map(|position| timed(Phase::Data, || read(position))).collect()
    };
    let score = |_: Range<u64>, encoded: Vec<(Vec<u32>, Vec<f32>)>, within: &Within<'_>| {
        let prompts = encoded.iter();
        let prompts = prompts.map(|(tokens, representation)| Prompt { tokens, representation });
        let prompts: Vec<Prompt<'_>> = prompts.collect();
        let told = |count| within.passed(count);
        let of_model = |(name, model): &(&'static str, Box<dyn Adapted + '_>)| {
            Ok((*name, Values::F32(model.answers(&prompts, deciding, &told)?.concat())))
        };
        models.iter().map(of_model).collect()
    };
    chunks.run_telling("score test", models.len() as u64, comm, progress, read, score)
}

/// P(like) of each test sample: the two-way softmax over the answers is sigmoid(yes − no); with a prior of the score.
fn llm_probabilities(
    chunks: &Chunks,
    adapters: &Adapters,
    lens: &Lens,
    samples: &[Sample],
) -> Result<Likes> {
    let chunks = chunks.open()?;
    let of_model = |tuned: &Tuned| {
        let name = tuned.model.key();
        let mut answers = Vec::with_capacity(samples.len());
        for shard in chunks.shards() {
            answers.extend(shard.f32(name)?.as_chunks().0.iter().copied());
        }
        let likes = samples
            .iter()
            .zip(answers)
            .map(|(sample, answers)| Ok(sigmoid(tuned.logit(lens.logit(sample.index)?, answers))));
        Ok((name, likes.collect::<Result<_>>()?))
    };
    adapters.all().map(of_model).collect()
}

fn measure(
    ctx: &RunContext,
    samples: &[Sample],
    models: &[(&'static str, Vec<f32>)],
) -> Result<BTreeMap<&'static str, ModelEvaluation>> {
    // A sample's place in its user's history is the number of those before it.
    let lengths: Vec<u32> = samples.iter().map(|sample| sample.position).collect();
    let scored = models.iter().map(|(name, probabilities)| scored(name, samples, probabilities));
    let scored: Vec<Vec<Scored>> = scored.collect::<Result<_>>()?;
    let bootstrap = bootstrap(&scored, ctx.config.evaluate.bootstrap, ctx.config.seed)?;
    let place = |wanted: &str| models.iter().position(|(name, _)| *name == wanted);
    let measured =
        models.par_iter().zip(&scored).enumerate().map(|(model, ((name, _), scored))| {
            let references = Compared::keys(Role::Reference).chain(Compared::keys(Role::Ablation));
            let references = references.filter(|reference| reference != name);
            let differences = references
                .filter_map(|other| Some((other, bootstrap.differences(model, place(other)?))));
            let evaluation = ModelEvaluation {
                metrics: Metrics::new(scored, &bootstrap, model),
                differences: differences.collect(),
                calibration: calibration(scored, BINS),
                roc: roc(scored, POINTS),
                by_history_length: by_history_length(scored, &lengths),
            };
            (*name, evaluation)
        });
    Ok(measured.collect())
}

/// The resamples on which models are measured.
pub fn bootstrap(scored: &[Vec<Scored>], resamples: usize, seed: u64) -> Result<Bootstrap> {
    Bootstrap::new(scored, resamples, seed).ok_or_else(|| {
        TrainerError::afresh("the models have scored different samples", Stage::Evaluate.name())
    })
}

/// P(like) of samples by a model, with what is to be known of these.
pub fn scored(name: &str, samples: &[Sample], probabilities: &[f32]) -> Result<Vec<Scored>> {
    if probabilities.len() != samples.len() {
        let (count, expected) = (probabilities.len(), samples.len());
        let what = format!("{name}: {count} predictions for {expected} samples");
        return Err(TrainerError::afresh(what, Stage::Evaluate.name()));
    }
    let scored = |(sample, &probability): (&Sample, &f32)| Scored {
        user: sample.user,
        label: sample.label,
        probability,
    };
    Ok(samples.iter().zip(probabilities).map(scored).collect())
}

/// What was drawn of the whole test split.
fn scored_samples(dataset: &Dataset, test: &Drawn, samples: &[Sample]) -> Result<ScoredSamples> {
    let all = dataset.split(Split::Test);
    let of_users = all.clone().map(|index| Ok(dataset.sample(index)?.user));
    let users_of = |like: bool| {
        let users = samples.iter().filter(move |sample| sample.label == like);
        distinct(users.map(|sample| sample.user).collect())
    };
    let (liking, others) = (users_of(true), users_of(false));
    let both = liking.iter().filter(|user| others.binary_search(user).is_ok()).count() as u64;
    Ok(ScoredSamples {
        samples: test.len(),
        of_samples: all.end - all.start,
        users: (liking.len() + others.len()) as u64 - both,
        of_users: distinct(of_users.collect::<Result<_>>()?).len() as u64,
        ranked_users: both,
        likes: samples.iter().filter(|sample| sample.label).count() as u64,
        order: test.order(),
    })
}

/// Every user once, in order.
fn distinct(mut users: Vec<u32>) -> Vec<u32> {
    users.sort_unstable();
    users.dedup();
    users
}

fn leak(ctx: &RunContext, dataset: &Dataset, lens: &Lens) -> Result<Option<Leak>> {
    let holdout = few_shot_range(ctx, dataset);
    if before_holdout(ctx, dataset).is_none() || holdout.is_empty() {
        return Ok(None);
    }
    let line = early_to_full(dataset, lens)?;
    let loss = |logit: f64, label: bool| {
        let lead = if label { logit } else { -logit };
        (-lead).max(0.0) + (-lead.abs()).exp().ln_1p()
    };
    let losses = holdout.clone().into_par_iter().map(|index| {
        let label = dataset.sample(index)?.label;
        let unseen = line.of(f64::from(lens.early_logit(index)?));
        Ok([loss(f64::from(lens.logit(index)?), label), loss(unseen, label)])
    });
    let losses: Vec<[f64; 2]> = losses.collect::<Result<_>>()?;
    let samples = losses.len() as u64;
    let mean = |of: usize| losses.iter().map(|losses| losses[of]).sum::<f64>() / samples as f64;
    Ok(Some(Leak { samples, seen: mean(0), unseen: mean(1) }))
}

/// How the gates mix over the test set; `None` for an adapter without gates, or with gates of tokens.
fn gate_use(adapter: &Adapter, lens: &Lens, test: &Drawn) -> Result<Option<GateUse>> {
    let experts = adapter.config().experts;
    if experts == 1 || adapter.layout().is_per_token() || test.len() == 0 {
        return Ok(None);
    }
    let step = test.len().div_ceil(GATE_SAMPLES);
    let indices: Vec<u64> = test.iter().step_by(step as usize).collect();
    let alphas: Vec<Vec<Vec<f32>>> = indices
        .par_iter()
        .map(|&index| adapter.alpha(&lens.representation(index)?))
        .collect::<Result<_>>()?;
    let modules = adapter.module_names().into_iter().enumerate().map(|(module, name)| {
        let mut mean_alpha = vec![0.0; experts];
        let mut entropy = 0.0;
        for alpha in alphas.iter().filter_map(|modules| modules.get(module)) {
            // With `sqrt_alpha` the weights do not sum to 1; entropy is that of their shares.
            let sum: f64 = alpha.iter().copied().map(f64::from).sum();
            for (mean, &weight) in mean_alpha.iter_mut().zip(alpha) {
                let weight = f64::from(weight);
                *mean += weight / indices.len() as f64;
                let share = weight / sum;
                entropy -= if share > 0.0 { share * share.ln() } else { 0.0 };
            }
        }
        ModuleUse { name, mean_alpha, entropy: entropy / indices.len() as f64 }
    });
    Ok(Some(GateUse { experts, modules: modules.collect() }))
}
