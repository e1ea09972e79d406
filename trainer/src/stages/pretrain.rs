//! `pretrain`: the CRM on the full train split, selected on valid AUC; and another on train without the holdout.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;
use reclora_comm::Communicator;
use reclora_storage::dataset::{Dataset, Sample, Split};
use serde_json::json;

use super::crms::{CrmInputs, before_holdout, shape, without_vectors};
use super::inputs::dataset;
use super::{Counts, Description, RunContext, Stage, artifacts, write_json};
use crate::config::{EmbeddingOptimizer, EmbeddingSharding};
use crate::crm::{Crm, Workspace};
use crate::error::Result;
use crate::metrics::Validation;
use crate::parameters::{Gradient, Losses, Parameters, Ready};
use crate::scoring::valid_metrics;
use crate::telemetry::History;
use crate::telemetry::progress::Progress;
use crate::training::exchange::{Fetched, Held, gather_rows};
use crate::training::{Objective, Selection, TrainPlan, train};

/// Valid samples of a rank whose rows of a shared-out table are brought at once.
const VALID_BLOCK: usize = 1024;

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

struct CrmObjective<'a> {
    crm: &'a Crm,
    dataset: &'a Dataset,
    inputs: &'a CrmInputs<'a>,
    /// The samples it is trained on, as indices of the dataset.
    train: Range<u64>,
    valid: Range<u64>,
    seed: u64,
}

impl CrmObjective<'_> {
    fn rows_of(&self, indices: impl Iterator<Item = u64>) -> Result<Vec<u32>> {
        let (batch, _) = self.inputs.batch(indices)?;
        Ok(batch.rows().collect())
    }

    /// The logit of the sample of this index, by itself.
    fn logit(&self, parameters: Parameters<'_>, index: u64) -> Result<f32> {
        let (mut batch, _) = self.inputs.batch(std::iter::once(index))?;
        parameters.rows.map_or(Ok(()), |rows| batch.number_by(rows))?;
        let score = |ws: &mut Workspace| self.crm.score(parameters, ws, &batch.inputs());
        let (logits, _) = WORKSPACE.with_borrow_mut(score);
        Ok(logits.first().copied().unwrap_or(f32::NAN))
    }
}

impl Objective for CrmObjective<'_> {
    fn micro_batch(
        &self,
        parameters: Parameters<'_>,
        samples: &[u64],
        epoch: u64,
        weight: f32,
        gradient: &mut Gradient,
        _finished: &mut Ready<'_>,
    ) -> Result<Losses> {
        let indices = samples.iter().map(|position| self.train.start + position);
        let (mut batch, samples) = self.inputs.batch(indices)?;
        parameters.rows.map_or(Ok(()), |rows| batch.number_by(rows))?;
        let label = |sample: &Sample| f32::from(u8::from(sample.label));
        let labels: Vec<f32> = samples.iter().map(label).collect();
        let keys: Vec<u64> = samples.iter().map(|sample| sample.index).collect();
        let dropout_seed = self.seed.wrapping_add(epoch << 40);
        let loss = WORKSPACE.with_borrow_mut(|ws| {
            self.crm.loss_and_gradient(
                parameters,
                ws,
                &batch.inputs(),
                &labels,
                &keys,
                dropout_seed,
                weight,
                gradient,
            )
        });
        Ok(loss.into())
    }

    fn joins_micro_batches(&self) -> bool {
        true
    }

    fn rows(&self, samples: &[u64]) -> Result<Vec<u32>> {
        self.rows_of(samples.iter().map(|position| self.train.start + position))
    }

    fn tensors(&self) -> Vec<(String, Range<usize>)> {
        let tensors = self.crm.tensors().iter();
        tensors.map(|tensor| (tensor.name.clone(), tensor.range.clone())).collect()
    }

    fn validate(&self, held: Held<'_>, comm: &mut dyn Communicator) -> Result<Validation> {
        let samples = self.valid.clone().map(|index| {
            let sample = self.dataset.sample(index)?;
            Ok((sample.user, sample.label))
        });
        let samples: Vec<(u32, bool)> = samples.collect::<Result<_>>()?;
        // As many exchanges on every rank, however many samples each has.
        let most = samples.len().div_ceil(comm.world_size());
        let block = if held.share.is_all() { most.max(1) } else { VALID_BLOCK };
        let validation = valid_metrics(&samples, comm, |own, comm| {
            let first = self.valid.start + own.start as u64;
            let mut logits = Vec::with_capacity(own.len());
            for start in (0..most).step_by(block) {
                let place = |place: usize| first + place.min(own.len()) as u64;
                let indices = place(start)..place(start + block);
                let mut fetched = Fetched::default();
                let rows = || self.rows_of(indices.clone());
                let parameters = held.parameters(rows, &mut fetched, comm)?;
                let score = |index| self.logit(parameters, index);
                let scored = indices.clone().into_par_iter().map(score);
                logits.extend(scored.collect::<Result<Vec<f32>>>()?);
            }
            Ok(logits)
        })?;
        // The lens will have them.
        Ok(Validation { logits: Vec::new(), ..validation })
    }
}

pub(super) const STAGE: Description = Description {
    name: "pretrain",
    directory: "crm",
    what: "train the recommendation model on all data",
    reads: &[Stage::Prepare, Stage::Embed, Stage::Retrieve, Stage::Count],
    trains: true,
    settings: |config| {
        let mut crm = json!(config.crm);
        // What is made of a trained CRM.
        crm["representation"] = json!(null);
        Ok(json!([config.seed, crm]))
    },
    run,
    ..Description::BASE
};

fn run(
    ctx: &RunContext,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Counts> {
    let config = &ctx.config.crm;
    let dataset = dataset(ctx)?;
    let train = dataset.split(Split::Train);
    let mut counts = Counts::from([("samples".to_owned(), train.end - train.start)]);
    let mut work = vec![("train CRM", artifacts::CRM, train.clone(), config.clone())];
    if let Some(early) = before_holdout(ctx, &dataset) {
        counts.insert("before_holdout".to_owned(), early.end - early.start);
        work.push(("train CRM before the holdout", artifacts::EARLY_CRM, early, config.clone()));
    }
    let plain = without_vectors(config);
    work.extend(plain.map(|c| ("train CRM without vectors", artifacts::CRM_NO_VECTORS, train, c)));
    for (task, file, train, config) in work {
        let inputs = CrmInputs::of(ctx, &config, &dataset)?;
        let crm = Crm::new(&config, shape(&config, Some(&dataset), inputs.dimensions()))?;
        let objective = CrmObjective {
            crm: &crm,
            dataset: &dataset,
            inputs: &inputs,
            train,
            valid: dataset.split(Split::Valid),
            seed: ctx.config.seed,
        };
        let history = train_one(ctx, task, file, &objective, comm, progress)?;
        if file == artifacts::CRM {
            counts.insert("parameters".to_owned(), crm.num_parameters() as u64);
            counts.insert("epochs".to_owned(), history.epochs.len() as u64);
            if comm.rank() == 0 {
                write_json(&ctx.path(Stage::Pretrain).join(artifacts::HISTORY), &history)?;
            }
        }
    }
    Ok(counts)
}

/// Trains a CRM into a file; returns its curves.
fn train_one(
    ctx: &RunContext,
    task: &str,
    file: &str,
    objective: &CrmObjective<'_>,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<History> {
    let (config, crm, dir) = (&ctx.config.crm, objective.crm, ctx.path(Stage::Pretrain));
    let mut checkpoints = dir.join("checkpoints");
    if file != artifacts::CRM {
        checkpoints.push(file);
    }
    let plan = TrainPlan {
        task: task.into(),
        table: crm.table(),
        row_wise: ctx.config.runtime.embedding_sharding == EmbeddingSharding::RowWise,
        lazy_rows: config.embedding_optimizer == EmbeddingOptimizer::LazyAdamw,
        samples: objective.train.end - objective.train.start,
        epochs: config.epochs as u64,
        global_batch: config.batch_size as u64,
        micro_batches: config.micro_batches,
        bucket: ctx.config.runtime.bucket_values(),
        replica_check_every: ctx.config.runtime.replica_check_every,
        learning_rate: config.learning_rate,
        decay: false,
        warmup: 0.0,
        rates: Vec::new(),
        weight_decay: config.weight_decay,
        max_grad_norm: None,
        seed: ctx.config.seed,
        selection: Selection::Auc { patience: config.patience as u64 },
        checkpoint_every: 100,
        checkpoints,
    };
    let initial = |share| crm.init_share(ctx.config.seed, share);
    let trained = train(&plan, objective, initial, comm, progress)?;
    let (rows, dense) = trained.parameters.split_at(trained.share.held().len());
    gather_rows(trained.share, rows, 2, comm, |rows| crm.save_rows(dense, &dir.join(file), rows))?;
    Ok(trained.history)
}
