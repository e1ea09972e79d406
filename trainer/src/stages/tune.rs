//! `tune`: the adapters on the few-shot set, the backbone frozen.

use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use reclora_comm::Communicator;
use reclora_storage::codec;
use reclora_storage::dataset::Split;
use reclora_storage::hash::xxh3_file;
use serde_json::json;

use super::draw::Drawn;
use super::few_shot::few_shot;
use super::inputs::{Lens, Neighbours, check_scale_of};
use super::text::{TextInputs, deciding_logits};
use super::{Counts, Description, Inputs, RunContext, Stage, artifacts, write_json};
use crate::adapter::{Adapter, Dropout};
use crate::config::{AdapterConfig, GateInput};
use crate::engine::{Adapted, Engine, Prompt, TrainingSample};
use crate::error::{Result, TrainerError};
use crate::losses;
use crate::metrics::Validation;
use crate::parameters::{Gradient, GradientSink, Losses, Parameters, Ready, Table};
use crate::prompt::Example;
use crate::scoring::{valid_metrics, write_valid};
use crate::telemetry::measure::{Phase, timed};
use crate::telemetry::progress::{Event, Progress};
use crate::training::exchange::Held;
use crate::training::{Objective, TrainPlan, train};

/// The settings of plain LoRA, tuned from the beginning: the same but for experts, gate and scales.
pub fn plain(config: &AdapterConfig) -> AdapterConfig {
    AdapterConfig {
        experts: 1,
        sqrt_alpha: false,
        top_k: 0,
        gate: GateInput::Sample,
        scale_of: PathBuf::new(),
        ..config.clone()
    }
}

struct TuneSample {
    example: Example,
    representation: Vec<f32>,
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
        let builder = text.prompts()?;
        let encode = |index: &u64| {
            let sample = dataset.sample(*index)?;
            let prompt = builder.build(sample.user, sample.item, neighbours.text(*index)?)?;
            Ok((builder.example(&prompt, sample.label), prompt.dropped > 0))
        };
        let tune = &ctx.config.tune;
        let (sampler, count) = (tune.few_shot_sampler, tune.few_shot);
        let indices = few_shot(dataset, &lens, sampler, count, ctx.config.seed)?;
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
        let samples = all.iter().zip(encoded).map(|(index, (example, _))| {
            let sample = dataset.sample(*index)?;
            let representation = lens.representation(*index)?;
            Ok(TuneSample { example, representation, user: sample.user, label: sample.label })
        });
        let mut train: Vec<TuneSample> = samples.collect::<Result<_>>()?;
        let valid = train.split_off(indices.len());
        let deciding = builder.answers().deciding();
        drop(builder);
        let llm = text.llm;
        let representation_dim = lens.dim();
        Ok(Self { llm, train, valid, valid_keys, deciding, representation_dim })
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

struct TuneObjective<'a> {
    data: &'a TuneData,
    /// The adapter before the first step.
    initial: Adapter,
    dropout: f32,
    seed: u64,
}

impl TuneObjective<'_> {
    /// The LLM with the adapter that has these parameters.
    fn model<'a>(&'a self, parameters: &'a [f32]) -> Result<Box<dyn Adapted + 'a>> {
        self.data.llm.adapted(Some(self.initial.view_of(parameters)?))
    }
}

impl Objective for TuneObjective<'_> {
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
            let TuneSample { example, representation, label, .. } =
                &self.data.train[index as usize];
            let key = self.seed ^ (epoch << 40 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let dropout = Dropout { probability: self.dropout, key };
            TrainingSample {
                prompt: Prompt { tokens: &example.tokens, representation },
                targets: &example.targets,
                label: *label,
                deciding: Some(self.data.deciding),
                dropout: (self.dropout > 0.0).then_some(dropout),
            }
        });
        let samples: Vec<_> = samples.collect();
        let loss = losses::for_head(self.initial.layout().head().is_some());
        model.train(&samples, loss, weight, GradientSink::observed(gradient.all_dense(), finished))
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
            let prompts = valid[rows].iter().map(|sample| {
                let position = sample.example.targets.first().map_or(0, |target| target.position);
                let tokens = &sample.example.tokens;
                let tokens = tokens.get(..=position).unwrap_or(tokens);
                Prompt { tokens, representation: &sample.representation }
            });
            let prompts: Vec<Prompt<'_>> = prompts.collect();
            let logits = deciding_logits(&*model, &prompts, self.data.deciding)?;
            Ok(logits.into_iter().map(|[no, yes]| yes - no).collect())
        })
    }
}

pub(super) const STAGE: Description = Description {
    name: "tune",
    directory: "adapter",
    what: "tune the adapters on the few-shot set",
    reads: &[Stage::Prepare, Stage::Retrieve, Stage::Few2many],
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
    let dir = ctx.path(Stage::Tune);
    let mut variants = vec![("RecLoRA", dir.clone(), ctx.config.adapter.clone())];
    if ctx.config.tune.plain_lora {
        variants.push(("plain LoRA", dir.join(artifacts::PLAIN_LORA), plain(&ctx.config.adapter)));
    }
    let mut counts = Counts::from([("samples".to_owned(), data.train.len() as u64)]);
    for (name, dir, config) in variants {
        let parameters = tune(ctx, &data, name, &dir, &config, comm, progress)?;
        counts.insert(format!("{} parameters", name.replace(' ', "_")), parameters);
    }
    Ok(counts)
}

/// Tunes one variant into `dir`; returns its number of trained parameters.
fn tune(
    ctx: &RunContext,
    data: &TuneData,
    name: &str,
    dir: &Path,
    config: &AdapterConfig,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<u64> {
    let tune = &ctx.config.tune;
    let seed = ctx.config.seed;
    let mut initial = Adapter::new(data.llm.config(), config, data.representation_dim, seed)?;
    data.llm.start_head(&mut initial, data.deciding)?;
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
        weight_decay: tune.weight_decay,
        max_grad_norm: Some(tune.max_grad_norm),
        seed,
        patience: None,
        checkpoint_every: tune.checkpoint_every,
        checkpoints: ctx.path(Stage::Tune).join("checkpoints").join(name.replace(' ', "_")),
    };
    let (start, parameters) = (initial.parameters().to_vec(), initial.num_parameters() as u64);
    let objective = TuneObjective { data, initial, dropout: config.gate_dropout, seed };
    let trained = train(&plan, &objective, |_| start, comm, progress)?;
    if comm.rank() == 0 {
        reclora_storage::atomic::create_dir_all(dir)?;
        let tuned = objective.initial.with_parameters(trained.parameters);
        let tuned =
            tuned.ok_or_else(|| TrainerError::Input("a checkpoint of another adapter".into()))?;
        tuned.save(&dir.join(artifacts::ADAPTER))?;
        write_json(&dir.join(artifacts::HISTORY), &trained.history)?;
        write_valid(dir, &data.valid_keys, &trained.valid_logits)?;
    }
    Ok(parameters)
}
