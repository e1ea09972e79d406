//! Data-parallel training whose result does not depend on the number of ranks (D-1).
//!
//! The order of an epoch is a keyed permutation. A global batch is cut into a fixed number M of
//! micro-batches; their gradients are the leaves of one binary tree. A rank computes its contiguous
//! block of leaves, a subtree, on as many threads as it has; the rest of the tree is added across
//! ranks. So the sum is added in the same order whatever the numbers of ranks and threads.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use reclora_comm::Communicator;
use reclora_storage::permutation::EpochOrder;

use super::checkpoint::{Layout, TrainState, load, save, write};
use super::exchange::{Fetched, Held, Squares, reduce, squares};
use super::optimizer::{AdamW, clip_gradient_norm};
use super::plan::{Selection, TrainPlan};
use super::replica::{self, Replica};
use super::step::{Communication, Leaves, NOT_FINITE, Objective, cut, gradient, tensor_at};
use crate::error::{Result, TrainerError};
use crate::metrics::Validation;
use crate::parameters::{GradientSum, Losses, TableShare};
use crate::telemetry::measure::{self, Phase};
use crate::telemetry::progress::{Event, Progress};
use crate::telemetry::{EpochRecord, History, StepRecord};

/// What training ends with.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The selected parameters: the rows of `share`, and what is behind the table.
    pub parameters: Vec<f32>,
    /// The rows that this rank holds.
    pub share: TableShare,
    /// The curves.
    pub history: History,
    /// What [`Validation::logits`] were of the selected parameters.
    pub valid_logits: Vec<f32>,
}

/// Trains from the newest checkpoint of this plan, or from what `initial` makes of the rows that this rank
/// is to hold: these, and what is behind the table.
pub fn train(
    plan: &TrainPlan,
    objective: &dyn Objective,
    initial: impl FnOnce(TableShare) -> Vec<f32>,
    comm: &mut dyn Communicator,
    progress: &mut dyn Progress,
) -> Result<Trained> {
    plan.check(comm.world_size())?;
    let share = plan.share(comm);
    let state = match load(&plan.checkpoints, share, comm)? {
        Some(state) => state,
        None => {
            let parameters = initial(share);
            TrainState {
                first_moment: vec![0.0; parameters.len()],
                second_moment: vec![0.0; parameters.len()],
                parameters,
                ..TrainState::default()
            }
        }
    };
    let mut run = Run::new(plan, objective, share, state, comm, progress)?;
    run.progress.emit(Event::Saved);
    let trained = run.all_epochs();
    if let Err(TrainerError::Comm(_)) = &trained {
        run.recover();
    }
    trained
}

struct Run<'a> {
    plan: &'a TrainPlan,
    objective: &'a dyn Objective,
    share: TableShare,
    comm: &'a mut dyn Communicator,
    progress: &'a mut dyn Progress,
    optimizer: AdamW,
    state: TrainState,
    /// The step of the newest checkpoint.
    saved: u64,
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
        share: TableShare,
        mut state: TrainState,
        comm: &'a mut dyn Communicator,
        progress: &'a mut dyn Progress,
    ) -> Result<Self> {
        let first = std::mem::take(&mut state.first_moment);
        let second = std::mem::take(&mut state.second_moment);
        let parameters = state.parameters.len();
        let optimizer = AdamW::from_parts(plan.weight_decay, first, second, state.step)
            .map(|optimizer| {
                optimizer.with_lazy_rows(plan.lazy_rows).with_rates(plan.rates.clone())
            })
            .filter(|optimizer| optimizer.first_moment().len() == parameters)
            .ok_or_else(|| TrainerError::other_checkpoint(&plan.checkpoints))?;
        let (saved, spent) = (state.step, Spent::default());
        Ok(Self { plan, objective, share, comm, progress, optimizer, state, saved, spent })
    }

    fn all_epochs(&mut self) -> Result<Trained> {
        let (task, batches) = (self.plan.task.clone(), self.plan.batches());
        self.progress.emit(Event::Start {
            task: task.clone(),
            total: self.plan.epochs * batches,
            unit: "steps".into(),
            together: true,
        });
        while self.state.epoch < self.plan.epochs && !self.is_over() {
            let order = EpochOrder::new(self.plan.samples, self.plan.seed, self.state.epoch);
            while self.state.batch < batches {
                let asked = self.step(&order)?;
                if asked || self.state.step.is_multiple_of(self.plan.checkpoint_every.max(1)) {
                    self.save()?;
                }
                if asked {
                    // Nobody leaves before the checkpoint is whole.
                    self.comm.barrier("checkpoint of a pause")?;
                    return Err(TrainerError::Paused);
                }
            }
            self.end_epoch()?;
            self.save()?;
        }
        self.comm.barrier(&task)?;
        self.progress.emit(Event::Finish { task });
        let state = std::mem::take(&mut self.state);
        let parameters = state.best.map_or(state.parameters, |(_, best)| best);
        let TrainState { history, valid_logits, .. } = state;
        Ok(Trained { parameters, share: self.share, history, valid_logits })
    }

    /// Whether no epoch was better for as long as the patience lasts.
    fn is_over(&self) -> bool {
        let Selection::Auc { patience } = self.plan.selection else { return false };
        let best = self.state.best.as_ref().map_or(self.state.epoch, |(epoch, _)| *epoch);
        self.state.epoch - best >= patience.max(1)
    }

    /// Returns whether a pause was asked for on any rank: all return the same.
    fn step(&mut self, order: &EpochOrder) -> Result<bool> {
        let (plan, started) = (self.plan, Instant::now());
        let start = self.state.batch * plan.global_batch;
        let end = (start + plan.global_batch).min(plan.samples);
        let batch: Vec<u64> = (start..end).map(|position| order.at(position)).collect();
        let learning_rate = plan.rate_at(self.state.step);
        let exposed = self.spent.communication.exposed;
        let (mut gradient, asked) = self.gradient(&batch)?;
        let Losses { training, deciding } = gradient.losses;
        let loss = training / batch.len() as f32;
        let tells = self.objective.tells_deciding_loss();
        let deciding_loss = tells.then(|| deciding / batch.len() as f32);
        let squares = squares(self.share, &gradient, plan.micro_batches, self.comm)?;
        self.check_finite(&gradient, squares, loss)?;
        let norm = squares.norm();
        clip_gradient_norm(&mut gradient, norm, plan.max_grad_norm.unwrap_or(f32::INFINITY));
        measure::spent(Phase::Communication, self.spent.communication.exposed - exposed);
        measure::timed(Phase::Optimizer, || {
            self.optimizer.step(&mut self.state.parameters, &gradient, learning_rate);
        });
        measure::stepped(loss, deciding_loss);
        self.state.batch += 1;
        self.state.step += 1;
        let (step, epoch) = (self.state.step, self.state.epoch + 1);
        let gradient_norm = norm;
        let record = StepRecord { step, epoch, loss, deciding_loss, learning_rate, gradient_norm };
        if self.comm.rank() == 0 {
            measure::noted(&plan.task, |history| history.steps.push(record.clone()));
        }
        self.state.history.steps.push(record);
        self.spent.steps += 1;
        self.spent.samples += batch.len() as u64;
        self.spent.time += started.elapsed();
        self.check_replicas()?;
        let deciding = deciding_loss.map_or(String::new(), |loss| format!(", yes/no {loss:.4}"));
        let note = format!("loss {loss:.4}{deciding}");
        let update = Event::Update { task: plan.task.clone(), done: step, note };
        self.progress.emit(update);
        Ok(asked)
    }

    /// Gradient of the mean loss of `batch`, and the sums of its losses: the canonical sum over
    /// micro-batches. Of the table it has the rows that this rank holds. And whether a rank wants to pause.
    fn gradient(&mut self, batch: &[u64]) -> Result<(GradientSum, bool)> {
        let (plan, rank) = (self.plan, self.comm.rank());
        let block = plan.micro_batches / self.comm.world_size();
        let own = rank * block..(rank + 1) * block;
        let piece = (plan.global_batch as usize).div_ceil(plan.micro_batches);
        let started = Instant::now();
        let mut fetched = Fetched::default();
        let held = Held { share: self.share, values: &self.state.parameters };
        let rows = || self.objective.rows(Leaves::samples(batch, piece, own.clone()));
        let parameters = held.parameters(rows, &mut fetched, &mut *self.comm)?;
        if parameters.rows.is_some() {
            self.spent.communication.add_exposed(started.elapsed());
        }
        let given_up = AtomicBool::new(false);
        let leaves = Leaves {
            objective: self.objective,
            parameters,
            table: plan.table,
            batch,
            piece,
            epoch: self.state.epoch,
            given_up: &given_up,
        };
        let ranges = cut(parameters.dense.len(), plan.bucket);
        let communication = &mut self.spent.communication;
        let asked = self.progress.pause_asked();
        let (mut sum, asked) =
            gradient(&leaves, own, &ranges, asked, &mut *self.comm, communication)?;
        let started = Instant::now();
        reduce(self.share, &mut sum, &mut *self.comm)?;
        self.spent.communication.add_exposed(started.elapsed());
        Ok((sum, asked))
    }

    fn check_finite(&self, gradient: &GradientSum, squares: Squares, loss: f32) -> Result<()> {
        let start = self.plan.table.len();
        let odd = || gradient.dense().iter().position(|value| !value.is_finite());
        let place = if squares.table.is_finite() { odd().map(|odd| start + odd) } else { Some(0) };
        let what = match place {
            Some(place) => {
                let tensor = tensor_at(self.objective, place);
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
        let mut tensors = self.objective.tensors();
        let (table, held) = (self.plan.table.len(), self.share.held().len());
        if !self.share.is_all() {
            // Nobody else has this rank's rows; what is behind the table lies behind them.
            tensors.retain(|(_, range)| range.start >= table);
            let shifted =
                |range: &Range<usize>| range.start - table + held..range.end - table + held;
            tensors.iter_mut().for_each(|(_, range)| *range = shifted(range));
        }
        let replica = Replica {
            parameters: &self.state.parameters,
            first_moment: self.optimizer.first_moment(),
            second_moment: self.optimizer.second_moment(),
        };
        replica::check(replica, &tensors, step, self.comm)
    }

    fn end_epoch(&mut self) -> Result<()> {
        let held = Held { share: self.share, values: &self.state.parameters };
        let Validation { auc, log_loss, logits } = self.objective.validate(held, self.comm)?;
        let (valid_auc, valid_log_loss) = (auc, log_loss);
        let epoch = self.state.epoch + 1;
        let steps: Vec<&StepRecord> =
            self.state.history.steps.iter().filter(|record| record.epoch == epoch).collect();
        let mean = |sum: f64| sum / steps.len().max(1) as f64;
        let train_loss = mean(steps.iter().map(|record| f64::from(record.loss)).sum());
        let deciding: Option<f64> =
            steps.iter().map(|record| record.deciding_loss.map(f64::from)).sum();
        let deciding_loss = deciding.filter(|_| !steps.is_empty()).map(mean);
        let record = EpochRecord { epoch, train_loss, deciding_loss, valid_auc, valid_log_loss };
        let selection = self.plan.selection;
        let best = self.state.history.epochs.iter().filter_map(|record| selection.rank(record));
        let best = best.fold(f64::NEG_INFINITY, f64::max);
        let better = selection.rank(&record).is_some_and(|rank| best < rank);
        let selects = selection != Selection::Last;
        let selected = selects && (better || self.state.best.is_none());
        if selected {
            self.state.best = Some((epoch, self.state.parameters.clone()));
        }
        if selected || !selects {
            self.state.valid_logits = logits;
        }
        let spent = std::mem::take(&mut self.spent);
        // Each rank measures another speed; one says it for all.
        if self.comm.rank() == 0 {
            let alone = self.comm.world_size() == 1;
            let text = describe(&self.plan.task, &record, &spent, alone);
            self.progress.emit(Event::Message { text });
            let task = &self.plan.task;
            measure::noted(task, |history| history.epochs.push(record.clone()));
        }
        self.state.history.epochs.push(record);
        self.state.epoch = epoch;
        self.state.batch = 0;
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let layout = if self.plan.row_wise { Layout::Parts(self.share) } else { Layout::Whole };
        self.saved = self.state.step;
        if layout == Layout::Parts(self.share) || self.comm.rank() == 0 {
            self.with_moments(|dir, state, comm| save(dir, state, layout, comm))?;
        }
        self.progress.emit(Event::Saved);
        Ok(())
    }

    /// When another rank went away: leaves what this one has in memory, for the next attempt to go on from. A
    /// step changes the state at once, when all sums of it are there, so it is that of a whole step.
    fn recover(&mut self) {
        if self.plan.row_wise || self.state.step <= self.saved {
            return;
        }
        // If that fails, the next attempt goes on from the last checkpoint.
        if let Err(error) = self.with_moments(|dir, state, _| write(dir, state)) {
            let text = format!("step {} could not be saved: {error}", self.state.step);
            self.progress.emit(Event::Message { text });
        }
    }

    /// Lends the optimizer's moments to the state for as long as it is written.
    fn with_moments(
        &mut self,
        save: impl FnOnce(&Path, &TrainState, &mut dyn Communicator) -> Result<()>,
    ) -> Result<()> {
        let TrainState { first_moment, second_moment, .. } = &mut self.state;
        self.optimizer.swap_moments(first_moment, second_moment);
        let saved = save(&self.plan.checkpoints, &self.state, &mut *self.comm);
        let TrainState { first_moment, second_moment, .. } = &mut self.state;
        self.optimizer.swap_moments(first_moment, second_moment);
        saved
    }
}

fn describe(task: &str, record: &EpochRecord, spent: &Spent, alone: bool) -> String {
    let EpochRecord { epoch, train_loss, deciding_loss, valid_auc, .. } = record;
    let deciding = deciding_loss.map_or(String::new(), |loss| format!(" (yes/no {loss:.4})"));
    let auc = valid_auc.map_or(String::new(), |auc| format!(", valid AUC {auc:.4}"));
    let speed = spent.samples as f64 / spent.time.as_secs_f64().max(f64::MIN_POSITIVE);
    let mut text = format!(
        "{task}: epoch {epoch}, train loss {train_loss:.4}{deciding}{auc}, {speed:.0} samples/s"
    );
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
