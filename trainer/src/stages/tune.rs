//! `tune`: the adapters on the few-shot set, the backbone frozen; and with a prior how much of what they add to it is
//! believed.

use std::ops::Range;

use rayon::prelude::*;
use reclora_comm::Communicator;
use reclora_storage::codec;
use reclora_storage::dataset::Split;
use reclora_storage::hash::xxh3_file;
use serde_json::json;

use super::count::known;
use super::crms::{CrmInputs, early_to_full, few_shot_range};
use super::draw::Drawn;
use super::few_shot::few_shot;
use super::inputs::{Lens, Neighbours, check_scale_of};
use super::text::{TextInputs, deciding_logits};
use super::{Counts, Description, Inputs, RunContext, Stage, artifacts, write_json};
use crate::adapter::{Adapter, AdapterLayout, Dropout};
use crate::config::{Prior, TuneConfig, TuneObjective, TunedModel};
use crate::engine::{Adapted, Engine, Prompt, TrainingSample};
use crate::error::{Result, TrainerError};
use crate::losses::{self, AnswerCrossEntropy, Loss};
use crate::metrics::{Gain, Parts, Validation};
use crate::parameters::{Gradient, GradientSink, Losses, Parameters, Ready, Table, splitmix};
use crate::prompt::Example;
use crate::scoring::{valid_metrics, write_valid};
use crate::telemetry::measure::{Phase, timed};
use crate::telemetry::progress::{Event, Progress};
use crate::training::exchange::Held;
use crate::training::{Objective, Selection, TrainPlan, train};

struct TuneSample {
    example: Example,
    representation: Vec<f32>,
    /// Logit that the score starts from; 0 without a prior.
    offset: f32,
    user: u32,
    label: bool,
}

/// Everything that does not change while tuning.
struct TuneData {
    llm: Box<dyn Engine>,
    train: Vec<TuneSample>,
    valid: Vec<TuneSample>,
    /// The valid samples as indices of the dataset.
    valid_keys: Vec<u64>,
    deciding: [u32; 2],
    representation_dim: usize,
}

impl TuneData {
    fn load(
        ctx: &RunContext,
        comm: &mut dyn Communicator,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let text = TextInputs::open(ctx)?;
        let (dataset, max_tokens) = (&text.dataset, text.max_tokens);
        let neighbours = Neighbours::open(ctx, dataset)?;
        let lens = Lens::open(ctx, dataset)?;
        let inputs = CrmInputs::open(ctx, dataset)?;
        let builder = text.prompts()?;
        let encode = |index: &u64| {
            let sample = dataset.sample(*index)?;
            let (shown, known) = (neighbours.text(*index)?, known(inputs.counters(*index)?));
            let prompt = builder.build(sample.user, sample.item, shown, &known)?;
            Ok((builder.example(&prompt, sample.label), prompt.dropped > 0))
        };
        let tune = &ctx.config.tune;
        let (sampler, count) = (tune.few_shot_sampler, tune.few_shot);
        let few_shot_range = few_shot_range(ctx, dataset);
        let indices = few_shot(dataset, few_shot_range, &lens, sampler, count, ctx.config.seed)?;
        let (split, count) = (dataset.split(Split::Valid), tune.valid_samples as u64);
        let valid_keys = Drawn::new(split, count, tune.valid_order, ctx.config.seed);
        let valid_keys: Vec<u64> = valid_keys.iter().collect();
        let all: Vec<u64> = indices.iter().chain(&valid_keys).copied().collect();
        let encoded = shared(&all, encode, comm)?;
        let cut = encoded.iter().filter(|(_, cut)| *cut).count();
        let tokens: usize = encoded.iter().map(|(example, _)| example.tokens.len()).sum();
        let message = format!(
            "{} few-shot and {} valid prompts, {:.0} tokens on average, {cut} of them cut to \
             {max_tokens} tokens",
            indices.len(),
            valid_keys.len(),
            tokens as f64 / encoded.len().max(1) as f64
        );
        progress.emit(Event::Message { text: message });
        let train = dataset.split(Split::Train);
        let offset: Box<dyn Fn(u64) -> Result<f32>> = match tune.prior {
            Prior::None => Box::new(|_| Ok(0.0)),
            Prior::Crm => {
                let line = early_to_full(dataset, &lens)?;
                let lens = &lens;
                Box::new(move |index| match train.contains(&index) {
                    true => Ok(line.of(f64::from(lens.early_logit(index)?)) as f32),
                    false => lens.logit(index),
                })
            }
        };
        let samples = all.iter().zip(encoded).map(|(index, (example, _))| {
            let sample = dataset.sample(*index)?;
            let (representation, offset) = (lens.representation(*index)?, offset(*index)?);
            let (user, label) = (sample.user, sample.label);
            Ok(TuneSample { example, representation, offset, user, label })
        });
        let mut train: Vec<TuneSample> = samples.collect::<Result<_>>()?;
        let valid = train.split_off(indices.len());
        let deciding = builder.answers().deciding();
        drop((builder, offset));
        let llm = text.llm;
        let representation_dim = lens.dim();
        Ok(Self { llm, train, valid, valid_keys, deciding, representation_dim })
    }
}

impl TuneData {
    /// How much of what an adapter adds is believed, by its logits of the valid samples; these become the scores.
    fn gain(&self, logits: &mut [f32], seed: u64) -> Gain {
        let parts = self.valid.iter().zip(logits.iter()).map(|(sample, logit)| Parts {
            user: sample.user,
            chooses: splitmix(seed ^ splitmix(u64::from(sample.user))).is_multiple_of(2),
            label: sample.label,
            offset: f64::from(sample.offset),
            residual: f64::from(logit - sample.offset),
        });
        let gain = Gain::choose(&parts.collect::<Vec<_>>());
        for (sample, logit) in self.valid.iter().zip(logits) {
            *logit = gain.score(sample.offset, *logit - sample.offset);
        }
        gain
    }
}

/// Encodes prompts, each on one rank, and gives all of them to every rank.
fn shared(
    indices: &[u64],
    encode: impl Fn(&u64) -> Result<(Example, bool)> + Sync + Send,
    comm: &mut dyn Communicator,
) -> Result<Vec<(Example, bool)>> {
    let share = indices.len().div_ceil(comm.world_size()).max(1);
    let own = indices.chunks(share).nth(comm.rank()).unwrap_or_default();
    let encode = |index| timed(Phase::Data, || encode(index));
    let encoded: Vec<(Example, bool)> = own.par_iter().map(encode).collect::<Result<_>>()?;
    let of_ranks = comm.all_gather("prompts", &codec::encode(&encoded)?)?;
    let mut all = Vec::with_capacity(indices.len());
    for bytes in of_ranks {
        all.extend(codec::decode::<Vec<(Example, bool)>>(&bytes, bytes.len())?);
    }
    if all.len() != indices.len() {
        let (came, expected) = (all.len(), indices.len());
        return Err(TrainerError::Input(format!(
            "{came} of {expected} prompts came from the ranks"
        )));
    }
    Ok(all)
}

struct Tuning<'a> {
    data: &'a TuneData,
    /// The adapter before the first step.
    initial: Adapter,
    loss: &'static dyn Loss,
    /// Whether scores start from the samples' offsets.
    starts: bool,
    dropout: f32,
    seed: u64,
}

impl Tuning<'_> {
    /// The LLM with the adapter that has these parameters.
    fn model<'a>(&'a self, parameters: &'a [f32]) -> Result<Box<dyn Adapted + 'a>> {
        self.data.llm.adapted(Some(self.initial.view_of(parameters)?))
    }

    /// What the score of a sample with this offset starts from.
    fn start(&self, offset: f32) -> f32 {
        if self.starts { offset } else { 0.0 }
    }
}

impl Objective for Tuning<'_> {
    fn micro_batch(
        &self,
        parameters: Parameters<'_>,
        samples: &[u64],
        epoch: u64,
        weight: f32,
        gradient: &mut Gradient,
        finished: &mut Ready<'_>,
    ) -> Result<Losses> {
        let model = self.model(parameters.dense)?;
        let samples = samples.iter().map(|&index| {
            let TuneSample { example, representation, offset, label, .. } =
                &self.data.train[index as usize];
            let key = self.seed ^ (epoch << 40 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let dropout = Dropout { probability: self.dropout, key };
            TrainingSample {
                prompt: Prompt { tokens: &example.tokens, representation },
                targets: &example.targets,
                label: *label,
                deciding: Some(self.data.deciding),
                offset: self.start(*offset),
                dropout: (self.dropout > 0.0).then_some(dropout),
            }
        });
        let samples: Vec<_> = samples.collect();
        let gradient = GradientSink::observed(gradient.all_dense(), finished);
        model.train(&samples, self.loss, weight, gradient)
    }

    fn tells_deciding_loss(&self) -> bool {
        true
    }

    fn tensors(&self) -> Vec<(String, Range<usize>)> {
        let tensors = self.initial.layout().tensors().iter();
        tensors.map(|tensor| (tensor.name.clone(), tensor.range.clone())).collect()
    }

    fn validate(&self, held: Held<'_>, comm: &mut dyn Communicator) -> Result<Validation> {
        let model = self.model(held.values)?;
        let valid = &self.data.valid;
        let samples: Vec<(u32, bool)> =
            valid.iter().map(|sample| (sample.user, sample.label)).collect();
        valid_metrics(&samples, comm, |rows, _| {
            let prompts = valid[rows.clone()].iter().map(|sample| {
                let position = sample.example.targets.first().map_or(0, |target| target.position);
                let tokens = &sample.example.tokens;
                let tokens = tokens.get(..=position).unwrap_or(tokens);
                Prompt { tokens, representation: &sample.representation }
            });
            let prompts: Vec<Prompt<'_>> = prompts.collect();
            let logits = deciding_logits(&*model, &prompts, self.data.deciding)?;
            let offsets = valid[rows].iter().map(|sample| self.start(sample.offset));
            Ok(logits
                .into_iter()
                .zip(offsets)
                .map(|([no, yes], offset)| offset + (yes - no))
                .collect())
        })
    }
}

pub(super) const STAGE: Description = Description {
    name: "tune",
    directory: "adapter",
    what: "tune the adapters on the few-shot set",
    reads: &[Stage::Prepare, Stage::Embed, Stage::Retrieve, Stage::Count, Stage::Few2many],
    reads_backbone: true,
    reads_template: true,
    trains: true,
    settings: |config| {
        let mut tune = json!(config.tune);
        // How often it is saved does not change what is learnt.
        tune["checkpoint_every"] = json!(0);
        let adapter = config.adapter.without_path();
        Ok(json!([config.seed, adapter, config.prompt.max_tokens, tune]))
    },
    files: |ctx| {
        let Some(path) = ctx.config.adapter.frozen_lora() else { return Ok(Inputs::new()) };
        check_scale_of(ctx)?;
        Ok([("adapter.scale_of".into(), xxh3_file(path)?)].into())
    },
    run,
    ..Description::BASE
};

fn run(
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let data = TuneData::load(ctx, comm, progress)?;
    let mut counts = Counts::from([("samples".to_owned(), data.train.len() as u64)]);
    for model in &ctx.config.tune.models {
        let parameters = tune(ctx, &data, *model, comm, progress)?;
        counts.insert(format!("{} parameters", model.name().replace(' ', "_")), parameters);
    }
    Ok(counts)
}

/// Tunes one model; returns its number of trained parameters.
fn tune(
    ctx: &RunContext,
    data: &TuneData,
    model: TunedModel,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<u64> {
    let tune = &ctx.config.tune;
    let (seed, name, prior) = (ctx.config.seed, model.name(), model.prior(&ctx.config));
    let (dir, config) =
        (model.directory(&ctx.path(Stage::Tune)), model.adapter(&ctx.config.adapter));
    let mut initial = Adapter::new(data.llm.config(), &config, data.representation_dim, seed)?;
    // What adds to a prior begins with nothing.
    if prior == Prior::None {
        data.llm.start_head(&mut initial, data.deciding)?;
    }
    let plan = TrainPlan {
        task: format!("tune {name}"),
        table: Table::default(),
        row_wise: false,
        lazy_rows: false,
        samples: data.train.len() as u64,
        epochs: tune.epochs as u64,
        global_batch: tune.global_batch as u64,
        micro_batches: tune.micro_batches,
        bucket: ctx.config.runtime.bucket_values(),
        replica_check_every: ctx.config.runtime.replica_check_every,
        learning_rate: tune.learning_rate,
        decay: true,
        warmup: tune.warmup,
        rates: rates(tune, initial.layout()),
        weight_decay: tune.weight_decay,
        max_grad_norm: Some(tune.max_grad_norm),
        seed,
        selection: match prior {
            Prior::None => Selection::Last,
            Prior::Crm => Selection::LogLoss,
        },
        checkpoint_every: tune.checkpoint_every,
        checkpoints: ctx.path(Stage::Tune).join("checkpoints").join(name.replace(' ', "_")),
    };
    let (start, parameters) = (initial.parameters().to_vec(), initial.num_parameters() as u64);
    let loss: &dyn Loss = match tune.objective {
        TuneObjective::Answer => &AnswerCrossEntropy,
        TuneObjective::Tokens => losses::for_head(initial.layout().head().is_some()),
    };
    let starts = prior == Prior::Crm;
    let objective = Tuning { data, initial, loss, starts, dropout: config.gate_dropout, seed };
    let trained = train(&plan, &objective, |_| start, comm, progress)?;
    if comm.rank() == 0 {
        reclora_storage::atomic::create_dir_all(&dir)?;
        let tuned = objective.initial.with_parameters(trained.parameters);
        let tuned =
            tuned.ok_or_else(|| TrainerError::Input("a checkpoint of another adapter".into()))?;
        tuned.save(&dir.join(artifacts::ADAPTER))?;
        write_json(&dir.join(artifacts::HISTORY), &trained.history)?;
        let mut logits = trained.valid_logits;
        if prior == Prior::Crm {
            let gain = data.gain(&mut logits, seed);
            write_json(&dir.join(artifacts::GAIN), &gain)?;
            progress.emit(Event::Message { text: format!("{name}: {}", gain.describe()) });
        }
        write_valid(&dir, &data.valid_keys, &logits)?;
    }
    Ok(parameters)
}

/// The tensors that have a learning rate of their own, each as a multiple of that of the others.
fn rates(tune: &TuneConfig, layout: &AdapterLayout) -> Vec<(Range<usize>, f32)> {
    let rate = |name: &str| match name {
        name if AdapterLayout::is_of_gate(name) => tune.gate_learning_rate,
        name if AdapterLayout::is_of_head(name) => tune.head_learning_rate,
        _ => 0.0,
    };
    let tensors = layout.tensors().iter().map(|tensor| (tensor.range.clone(), rate(&tensor.name)));
    let own = tensors.filter(|(_, rate)| *rate > 0.0);
    own.map(|(range, rate)| (range, rate / tune.learning_rate)).collect()
}
