//! `evaluate`: the test set scored by every model.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;
use reclora_comm::Communicator;
use reclora_storage::dataset::{Dataset, Sample, Split};
use serde::{Deserialize, Serialize};

use super::inputs::{Lens, Neighbours};
use super::scores::sigmoid;
use super::text::{Adapters, TextInputs, deciding_logits};
use super::{Counts, RunContext, Stage, predictions, write_json};
use crate::adapter::Adapter;
use crate::baselines::{Interactions, ItemMean, LogisticRegression};
use crate::distributed::chunks::{Chunks, PARTS, Values};
use crate::error::{Result, TrainerError};
use crate::measure::{Phase, timed};
use crate::metrics::{
    Bootstrap, CalibrationBin, Differences, HistoryGroup, Metrics, Scored, by_history_length,
    calibration, roc,
};
use crate::model::Prompt;
use crate::progress::Progress;

/// Bins of the reliability curves.
const BINS: usize = 10;
/// Points of the ROC curves.
const POINTS: usize = 200;
/// The gates' use is a mean over at most this many test samples, evenly spaced.
const GATE_SAMPLES: u64 = 4096;
/// The models that every model's figures are compared with.
pub const REFERENCES: [&str; 2] = ["reclora", "crm"];

/// `predictions/metrics.json`.
#[derive(Serialize)]
struct Evaluation {
    models: BTreeMap<&'static str, ModelEvaluation>,
    scored: ScoredSamples,
    gate: Option<GateUse>,
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
    /// How they were chosen.
    pub order: ScoredOrder,
}

/// How the scored samples were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoredOrder {
    /// All were scored.
    All,
    /// The first in time.
    First,
    /// Drawn at random.
    Sample,
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

pub fn run(
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let text = TextInputs::open(ctx)?;
    let adapters = Adapters::open(ctx, text.llm.config())?;
    let neighbours = Neighbours::open(ctx, &text.dataset)?;
    let lens = Lens::open(ctx, &text.dataset)?;
    let all = text.dataset.split(Split::Test);
    let test = limited(all.clone(), ctx.config.evaluate.limit);
    let parts = ctx.path(Stage::Evaluate).join(PARTS);
    let chunks = Chunks::new(&parts, "scores", test.clone(), ctx.config.evaluate.chunk_size);
    score(&chunks, &text, &adapters, &neighbours, &lens, comm, progress)?;
    if comm.rank() == 0 {
        let samples: Vec<Sample> =
            test.clone().map(|index| Ok(text.dataset.sample(index)?)).collect::<Result<_>>()?;
        let mut models = llm_probabilities(&chunks, adapters.lora.is_some())?;
        models.extend(baselines(&text.dataset, &lens, &samples)?);
        let path = ctx.path(Stage::Evaluate).join(predictions::FILE);
        predictions::write(&path, &text.dataset, &samples, &models)?;
        let evaluation = Evaluation {
            models: measure(ctx, &samples, &models)?,
            scored: scored_samples(&text.dataset, all, &samples)?,
            gate: gate_use(&adapters.reclora, &lens, test.clone())?,
        };
        write_json(&ctx.path(Stage::Evaluate).join("metrics.json"), &evaluation)?;
    }
    Ok([("samples".to_owned(), test.end - test.start)].into())
}

/// Its first `limit`; 0 is all of it.
pub fn limited(range: Range<u64>, limit: u64) -> Range<u64> {
    match limit {
        0 => range,
        limit => range.start..range.end.min(range.start.saturating_add(limit)),
    }
}

/// The answers' logits of each test sample: by RecLoRA, and by plain LoRA where the run has it.
fn score(
    chunks: &Chunks,
    text: &TextInputs,
    adapters: &Adapters,
    neighbours: &Neighbours,
    lens: &Lens,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<()> {
    let prompts = text.prompts()?;
    let deciding = prompts.answers().deciding();
    let reclora = text.llm.adapted(&adapters.reclora)?;
    let lora = adapters.lora.as_ref().map(|lora| text.llm.adapted(lora)).transpose()?;
    let read = |range: Range<u64>| -> Result<Vec<(Vec<u32>, Vec<f32>)>> {
        let read = |index| {
            let sample = text.dataset.sample(index)?;
            let prompt = prompts.build(sample.user, sample.item, neighbours.text(index)?)?;
            Ok((prompt.tokens, lens.representation(index)?))
        };
        range.into_par_iter().map(|index| timed(Phase::Data, || read(index))).collect()
    };
    chunks.run("score test", comm, progress, read, |_, inputs| {
        let inputs: Vec<Prompt<'_>> = inputs
            .iter()
            .map(|(tokens, representation)| Prompt { tokens, representation })
            .collect();
        let logits = |model| deciding_logits(model, &inputs, deciding);
        let (of_reclora, of_lora) = (logits(&reclora)?, lora.as_ref().map(logits).transpose()?);
        let of_lora = of_lora.unwrap_or_default();
        let column = |logits: &[[f32; 2]], answer: usize| {
            Values::F32(logits.iter().map(|logits| logits[answer]).collect())
        };
        Ok(vec![
            ("reclora_no", column(&of_reclora, 0)),
            ("reclora_yes", column(&of_reclora, 1)),
            ("lora_no", column(&of_lora, 0)),
            ("lora_yes", column(&of_lora, 1)),
        ])
    })
}

/// P(like) of each test sample: METHOD's two-way softmax over the answers is sigmoid(yes − no).
fn llm_probabilities(chunks: &Chunks, with_lora: bool) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let mut models = vec![("reclora", Vec::new())];
    if with_lora {
        models.push(("lora", Vec::new()));
    }
    for shard in chunks.open()?.shards() {
        for (name, probabilities) in &mut models {
            let no = shard.f32(&format!("{name}_no"))?;
            let yes = shard.f32(&format!("{name}_yes"))?;
            probabilities.extend(no.iter().zip(yes).map(|(no, yes)| sigmoid(yes - no)));
        }
    }
    Ok(models)
}

/// P(like) of the models that read no text.
fn baselines(
    dataset: &Dataset,
    lens: &Lens,
    samples: &[Sample],
) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let train = Columns::of(dataset, dataset.split(Split::Train))?;
    let valid = Columns::of(dataset, dataset.split(Split::Valid))?;
    let (users, items) = (dataset.num_users(), dataset.num_items());
    let mean = ItemMean::fit(train.view(), items);
    let regression = LogisticRegression::fit(train.view(), valid.view(), users, items);
    let crm = samples.iter().map(|sample| Ok(sigmoid(lens.logit(sample.index)?)));
    let regression = samples.iter().map(|sample| regression.predict(sample.user, sample.item));
    Ok(vec![
        ("crm", crm.collect::<Result<_>>()?),
        ("logistic_regression", regression.collect()),
        ("item_mean", samples.iter().map(|sample| mean.predict(sample.item)).collect()),
    ])
}

#[derive(Default)]
struct Columns {
    users: Vec<u32>,
    items: Vec<u32>,
    labels: Vec<bool>,
}

impl Columns {
    fn of(dataset: &Dataset, indices: Range<u64>) -> Result<Self> {
        let mut columns = Self::default();
        for index in indices {
            let sample = dataset.sample(index)?;
            columns.users.push(sample.user);
            columns.items.push(sample.item);
            columns.labels.push(sample.label);
        }
        Ok(columns)
    }

    fn view(&self) -> Interactions<'_> {
        Interactions { users: &self.users, items: &self.items, labels: &self.labels }
    }
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
    let bootstrap = Bootstrap::new(&scored, ctx.config.evaluate.bootstrap, ctx.config.seed);
    let bootstrap = bootstrap.ok_or_else(|| {
        let text = "the models have scored different samples; run evaluate again with --force";
        TrainerError::Input(text.to_owned())
    })?;
    let place = |wanted: &str| models.iter().position(|(name, _)| *name == wanted);
    let measured =
        models.par_iter().zip(&scored).enumerate().map(|(model, ((name, _), scored))| {
            let references = REFERENCES.iter().filter(|reference| *reference != name);
            let differences = references
                .filter_map(|other| Some((*other, bootstrap.differences(model, place(other)?))));
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

fn scored(name: &str, samples: &[Sample], probabilities: &[f32]) -> Result<Vec<Scored>> {
    if probabilities.len() != samples.len() {
        return Err(TrainerError::Input(format!(
            "{name}: {} predictions for {} samples; run evaluate again with --force",
            probabilities.len(),
            samples.len()
        )));
    }
    let scored = |(sample, &probability): (&Sample, &f32)| Scored {
        user: sample.user,
        label: sample.label,
        probability,
    };
    Ok(samples.iter().zip(probabilities).map(scored).collect())
}

/// What `samples` are of the whole test split `all`.
fn scored_samples(dataset: &Dataset, all: Range<u64>, samples: &[Sample]) -> Result<ScoredSamples> {
    let of_users = all.clone().map(|index| Ok(dataset.sample(index)?.user));
    let (scored, of_samples) = (samples.len() as u64, all.end - all.start);
    Ok(ScoredSamples {
        samples: scored,
        of_samples,
        users: distinct(samples.iter().map(|sample| sample.user).collect()),
        of_users: distinct(of_users.collect::<Result<_>>()?),
        order: if scored == of_samples { ScoredOrder::All } else { ScoredOrder::First },
    })
}

fn distinct(mut users: Vec<u32>) -> u64 {
    users.sort_unstable();
    users.dedup();
    users.len() as u64
}

/// How the gates mix over the test set; `None` for an adapter without gates, or with gates of tokens.
fn gate_use(adapter: &Adapter, lens: &Lens, test: Range<u64>) -> Result<Option<GateUse>> {
    let experts = adapter.config().experts;
    if experts == 1 || adapter.layout().is_per_token() || test.is_empty() {
        return Ok(None);
    }
    let step = (test.end - test.start).div_ceil(GATE_SAMPLES);
    let indices: Vec<u64> = test.step_by(step as usize).collect();
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
