//! Data-parallel training whose result does not depend on the number of ranks (D-1).
//!
//! The order of an epoch is a keyed permutation. A global batch is cut into a fixed number M of
//! micro-batches; their gradients are the leaves of one binary tree. A rank computes its contiguous
//! block of leaves, a subtree, on as many threads as it has; the rest of the tree is added across
//! ranks. So the sum is added in the same order whatever the numbers of ranks and threads.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use reclora_comm::{Communicator, tree};
use reclora_storage::permutation::EpochOrder;

use super::buckets::{Finished, cut};
use super::checkpoint::{EpochRecord, History, StepRecord, TrainState, load, save};
use super::gradient::{Gradient, GradientSum, Table};
use super::leaves::Leaves;
use super::overlap::{Communication, NOT_FINITE, gradient};
use super::replica::{self, Replica};
use crate::error::{Result, TrainerError};
use crate::optimizer::{AdamW, clip_gradient_norm, linear_decay};
use crate::progress::{Event, Progress};

/// What is trained.
pub trait Objective: Sync {
    /// Adds `weight` times the gradient of each sample's loss to `gradient` and returns the sum of
    /// the losses. A pure function of its arguments; `samples` are positions in the training set.
    /// Whoever tells `finished` what is final early lets it travel while the rest is computed.
    fn micro_batch(
        &self,
        parameters: &[f32],
        samples: &[u64],
        epoch: u64,
        weight: f32,
        gradient: &mut Gradient,
        finished: &mut Finished<'_>,
    ) -> Result<f32>;

    /// Names of the tensors in the flat parameter vector, as users know them, and their places.
    fn tensors(&self) -> Vec<(String, Range<usize>)>;

    /// AUC and log loss on the valid samples, the same on every rank.
    fn validate(
        &self,
        parameters: &[f32],
        comm: &mut dyn Communicator,
    ) -> Result<(Option<f64>, Option<f64>)>;
}

/// Name of the tensor at a place of the flat parameter vector.
pub fn tensor_at(objective: &dyn Objective, place: usize) -> String {
    let tensor = objective.tensors().into_iter().find(|(_, range)| range.contains(&place));
    tensor.map_or_else(|| format!("parameter {place}"), |(name, _)| name)
}

/// How to train.
#[derive(Clone, Debug)]
pub struct TrainPlan {
    /// What is being done, in words a user reads.
    pub task: String,
    /// The table the parameters begin with, of which a batch touches few rows.
    pub table: Table,
    /// Whether the optimizer moves only the rows that a batch touches.
    pub lazy_rows: bool,
    /// Size of the training set.
    pub samples: u64,
    /// Largest number of epochs.
    pub epochs: u64,
    /// Samples per optimizer step, over all ranks.
    pub global_batch: u64,
    /// Leaves of the canonical sum: a power of two, at least the number of ranks.
    pub micro_batches: usize,
    /// Values of the dense gradient that travel together, at most.
    pub bucket: usize,
    /// The ranks' replicas are compared every this many steps; 0 never.
    pub replica_check_every: u64,
    /// Learning rate, at the start if it decays.
    pub learning_rate: f32,
    /// Whether the learning rate decays linearly to 0.
    pub decay: bool,
    /// Weight decay of AdamW.
    pub weight_decay: f32,
    /// Gradients are scaled down to this norm, if given.
    pub max_grad_norm: Option<f32>,
    /// Seed of the order of samples.
    pub seed: u64,
    /// Select the epoch with the best valid AUC, and stop after this many epochs without a better
    /// one. Without it the last epoch's parameters are kept.
    pub patience: Option<u64>,
    /// Write a checkpoint every this many steps, and after each epoch.
    pub checkpoint_every: u64,
    /// Where checkpoints are kept.
    pub checkpoints: PathBuf,
}

impl TrainPlan {
    fn batches(&self) -> u64 {
        self.samples.div_ceil(self.global_batch)
    }

    fn check(&self, world_size: usize) -> Result<()> {
        let wrong = |field: &str, what: String| Err(TrainerError::config(field, what));
        if self.samples == 0 || self.global_batch == 0 {
            return wrong(
                &self.task,
                "needs at least one sample and a batch of at least one".into(),
            );
        }
        if !self.micro_batches.is_power_of_two() {
            return wrong("tune.micro_batches", "must be a power of two".into());
        }
        if !world_size.is_power_of_two() || world_size > self.micro_batches {
            let what = format!(
                "{world_size} ranks can't share {} micro-batches so that the result is the same for \
                 any number of ranks; use a power of two of at most that many",
                self.micro_batches
            );
            return wrong("runtime.nproc_per_node", what);
        }
        Ok(())
    }
}

/// What training ends with.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The selected parameters.
    pub parameters: Vec<f32>,
    /// The curves.
    pub history: History,
}

/// Trains from `initial`, or from the newest checkpoint of this plan.
pub fn train(
    plan: &TrainPlan,
    objective: &dyn Objective,
    initial: Vec<f32>,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Trained> {
    plan.check(comm.world_size())?;
    let state = match load(&plan.checkpoints, comm)? {
        Some(state) => state,
        None => TrainState {
            first_moment: vec![0.0; initial.len()],
            second_moment: vec![0.0; initial.len()],
            parameters: initial,
            ..TrainState::default()
        },
    };
    let mut run = Run::new(plan, objective, state, comm, progress)?;
    run.all_epochs()
}

struct Run<'a> {
    plan: &'a TrainPlan,
    objective: &'a dyn Objective,
    comm: &'a mut dyn Communicator,
    progress: &'a mut dyn Progress,
    optimizer: AdamW,
    state: TrainState,
    spent: Spent,
}

/// What this process has done of an epoch, and how long that took.
#[derive(Default)]
struct Spent {
    steps: u32,
    samples: u64,
    time: Duration,
    communication: Communication,
}

impl<'a> Run<'a> {
    fn new(
        plan: &'a TrainPlan,
        objective: &'a dyn Objective,
        mut state: TrainState,
        comm: &'a mut dyn Communicator,
        progress: &'a mut dyn Progress,
    ) -> Result<Self> {
        let first = std::mem::take(&mut state.first_moment);
        let second = std::mem::take(&mut state.second_moment);
        let parameters = state.parameters.len();
        let optimizer = AdamW::from_parts(plan.weight_decay, first, second, state.step)
            .map(|optimizer| optimizer.with_lazy_rows(plan.lazy_rows))
            .filter(|optimizer| optimizer.first_moment().len() == parameters)
            .ok_or_else(|| {
                TrainerError::file(&plan.checkpoints, "a checkpoint of another model; use --force")
            })?;
        let spent = Spent::default();
        Ok(Self { plan, objective, comm, progress, optimizer, state, spent })
    }

    fn all_epochs(&mut self) -> Result<Trained> {
        let (task, batches) = (self.plan.task.clone(), self.plan.batches());
        let total = self.plan.epochs * batches * self.comm.world_size() as u64;
        self.progress.emit(Event::Start { task: task.clone(), total, unit: "steps".into() });
        while self.state.epoch < self.plan.epochs && !self.is_over() {
            let order = EpochOrder::new(self.plan.samples, self.plan.seed, self.state.epoch);
            while self.state.batch < batches {
                self.step(&order)?;
                if self.state.step.is_multiple_of(self.plan.checkpoint_every.max(1)) {
                    self.save()?;
                }
            }
            self.end_epoch()?;
            self.save()?;
        }
        self.comm.barrier(&task)?;
        self.progress.emit(Event::Finish { task });
        let state = std::mem::take(&mut self.state);
        let parameters = match (self.plan.patience, state.best) {
            (Some(_), Some((_, best))) => best,
            _ => state.parameters,
        };
        Ok(Trained { parameters, history: state.history })
    }

    /// Whether no epoch was better for as long as the patience lasts.
    fn is_over(&self) -> bool {
        let best = self.state.best.as_ref().map_or(self.state.epoch, |(epoch, _)| *epoch);
        self.plan.patience.is_some_and(|patience| self.state.epoch - best >= patience.max(1))
    }

    fn step(&mut self, order: &EpochOrder) -> Result<()> {
        let (plan, started) = (self.plan, Instant::now());
        let start = self.state.batch * plan.global_batch;
        let end = (start + plan.global_batch).min(plan.samples);
        let batch: Vec<u64> = (start..end).map(|position| order.at(position)).collect();
        let learning_rate = if plan.decay {
            linear_decay(plan.learning_rate, self.state.step, plan.epochs * plan.batches())
        } else {
            plan.learning_rate
        };
        let mut gradient = self.gradient(&batch)?;
        let loss = gradient.loss / batch.len() as f32;
        self.check_finite(&gradient, loss)?;
        let norm = clip_gradient_norm(&mut gradient, plan.max_grad_norm.unwrap_or(f32::INFINITY));
        self.optimizer.step(&mut self.state.parameters, &gradient, learning_rate);
        self.state.batch += 1;
        self.state.step += 1;
        let (step, epoch) = (self.state.step, self.state.epoch + 1);
        let record = StepRecord { step, epoch, loss, learning_rate, gradient_norm: norm };
        self.state.history.steps.push(record);
        self.spent.steps += 1;
        self.spent.samples += batch.len() as u64;
        self.spent.time += started.elapsed();
        self.check_replicas()?;
        let note = format!("loss {loss:.4}");
        let update = Event::Update { task: plan.task.clone(), done: step, note };
        self.progress.emit(update);
        Ok(())
    }

    /// Gradient of the mean loss of `batch`, and the sum of its losses: the canonical sum over
    /// micro-batches.
    fn gradient(&mut self, batch: &[u64]) -> Result<GradientSum> {
        let (plan, rank) = (self.plan, self.comm.rank());
        let block = plan.micro_batches / self.comm.world_size();
        let given_up = AtomicBool::new(false);
        let leaves = Leaves {
            objective: self.objective,
            parameters: &self.state.parameters,
            table: plan.table,
            batch,
            piece: (plan.global_batch as usize).div_ceil(plan.micro_batches),
            epoch: self.state.epoch,
            given_up: &given_up,
        };
        let own = rank * block..(rank + 1) * block;
        let ranges = cut(self.state.parameters.len() - plan.table.len(), plan.bucket);
        let communication = &mut self.spent.communication;
        let mut sum = gradient(&leaves, own, &ranges, &mut *self.comm, communication)?;
        let started = Instant::now();
        self.reduce_rows(&mut sum)?;
        self.spent.communication.add_exposed(started.elapsed());
        Ok(sum)
    }

    /// The touched rows of the table, summed over ranks.
    fn reduce_rows(&mut self, sum: &mut GradientSum) -> Result<()> {
        if self.plan.table.is_empty() || self.comm.world_size() == 1 {
            return Ok(());
        }
        let name = "gradient of the table";
        let of_ranks = self.comm.all_gather(name, &sum.rows_to_bytes())?;
        let mut rows = Vec::new();
        for (rank, bytes) in of_ranks.iter().enumerate() {
            let mut part = GradientSum::of_rows(self.plan.table);
            if !part.set_rows(bytes) {
                let what = format!("{name}: what rank {rank} sent is none of this table's");
                return Err(TrainerError::Input(what));
            }
            rows.push(part);
        }
        if let Some(rows) = tree::fold(rows, |left, right| left.add(&right)) {
            sum.take_rows(rows);
        }
        Ok(())
    }

    fn check_finite(&self, gradient: &GradientSum, loss: f32) -> Result<()> {
        let odd = gradient.iter().position(|value| !value.is_finite());
        let what = match odd {
            Some(index) => {
                let tensor = tensor_at(self.objective, gradient.place(index));
                format!("{}: the gradient of {tensor}", self.plan.task)
            }
            None if loss.is_finite() => return Ok(()),
            None => format!("{}: the loss", self.plan.task),
        };
        let what = format!("{what} at step {}", self.state.step + 1);
        Err(TrainerError::NotFinite { what, hint: NOT_FINITE.into() })
    }

    fn check_replicas(&mut self) -> Result<()> {
        let (step, every) = (self.state.step, self.plan.replica_check_every);
        if every == 0 || !step.is_multiple_of(every) || self.comm.world_size() == 1 {
            return Ok(());
        }
        let replica = Replica {
            parameters: &self.state.parameters,
            first_moment: self.optimizer.first_moment(),
            second_moment: self.optimizer.second_moment(),
        };
        replica::check(replica, &self.objective.tensors(), step, self.comm)
    }

    fn end_epoch(&mut self) -> Result<()> {
        let (valid_auc, valid_log_loss) =
            self.objective.validate(&self.state.parameters, self.comm)?;
        let epoch = self.state.epoch + 1;
        let steps = self.state.history.steps.iter().filter(|record| record.epoch == epoch);
        let losses: Vec<f64> = steps.map(|record| f64::from(record.loss)).collect();
        let train_loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        let best = self.state.history.epochs.iter().filter_map(|record| record.valid_auc);
        let better = valid_auc.is_some_and(|auc| best.fold(f64::NEG_INFINITY, f64::max) < auc);
        if self.plan.patience.is_some() && (better || self.state.best.is_none()) {
            self.state.best = Some((epoch, self.state.parameters.clone()));
        }
        let record = EpochRecord { epoch, train_loss, valid_auc, valid_log_loss };
        let spent = std::mem::take(&mut self.spent);
        // Each rank measures another speed; one says it for all.
        if self.comm.rank() == 0 {
            let alone = self.comm.world_size() == 1;
            let text = describe(&self.plan.task, &record, &spent, alone);
            self.progress.emit(Event::Message { text });
        }
        self.state.history.epochs.push(record);
        self.state.epoch = epoch;
        self.state.batch = 0;
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        if self.comm.rank() == 0 {
            self.state.first_moment = self.optimizer.first_moment().to_vec();
            self.state.second_moment = self.optimizer.second_moment().to_vec();
            save(&self.plan.checkpoints, &self.state)?;
        }
        Ok(())
    }
}

fn describe(task: &str, record: &EpochRecord, spent: &Spent, alone: bool) -> String {
    let EpochRecord { epoch, train_loss, valid_auc, .. } = record;
    let auc = valid_auc.map_or(String::new(), |auc| format!(", valid AUC {auc:.4}"));
    let speed = spent.samples as f64 / spent.time.as_secs_f64().max(f64::MIN_POSITIVE);
    let mut text =
        format!("{task}: epoch {epoch}, train loss {train_loss:.4}{auc}, {speed:.0} samples/s");
    if !alone {
        let per_step = |time: Duration| time.as_secs_f64() * 1e3 / f64::from(spent.steps.max(1));
        let Communication { total, exposed } = spent.communication;
        let (total, exposed) = (per_step(total), per_step(exposed));
        text += &format!(
            ", {total:.1} ms of each step in communication, {exposed:.1} ms of it with nothing to \
             compute"
        );
    }
    text
}
