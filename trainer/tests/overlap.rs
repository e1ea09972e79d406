//! Buckets of a gradient travel while the rest of it is computed.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::ranks::with_ranks;
use reclora_comm::Communicator;
use reclora_trainer::error::{Result, TrainerError};
use reclora_trainer::metrics::Validation;
use reclora_trainer::parameters::{Gradient, Losses, Parameters, Ready, Table};
use reclora_trainer::telemetry::progress::Silent;
use reclora_trainer::training::exchange::Held;
use reclora_trainer::training::{Objective, Selection, TrainPlan, train};

/// A communicator that says which sums are done.
struct Telling<C> {
    inner: C,
    summed: Sender<String>,
}

impl<C: Communicator> Communicator for Telling<C> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn all_reduce_sum(&mut self, name: &str, buffer: &mut [f32]) -> reclora_comm::Result<()> {
        self.inner.all_reduce_sum(name, buffer)?;
        let _ = self.summed.send(name.to_owned());
        Ok(())
    }

    fn reduce_scatter_sum(
        &mut self,
        name: &str,
        buffer: &mut [f32],
    ) -> reclora_comm::Result<Range<usize>> {
        self.inner.reduce_scatter_sum(name, buffer)
    }

    fn all_gather(&mut self, name: &str, bytes: &[u8]) -> reclora_comm::Result<Vec<Vec<u8>>> {
        self.inner.all_gather(name, bytes)
    }

    fn all_to_all(
        &mut self,
        name: &str,
        pieces: Vec<Vec<u8>>,
    ) -> reclora_comm::Result<Vec<Vec<u8>>> {
        self.inner.all_to_all(name, pieces)
    }

    fn broadcast(
        &mut self,
        name: &str,
        root: usize,
        bytes: &mut Vec<u8>,
    ) -> reclora_comm::Result<()> {
        self.inner.broadcast(name, root, bytes)
    }

    fn barrier(&mut self, name: &str) -> reclora_comm::Result<()> {
        self.inner.barrier(name)
    }
}

/// Four weights; the first two are computed only when the sum of the last two has come from all ranks.
struct Patient {
    summed: Mutex<Receiver<String>>,
    /// The gradient of the last weight.
    last: f32,
}

impl Objective for Patient {
    fn micro_batch(
        &self,
        parameters: Parameters<'_>,
        _samples: &[u64],
        _epoch: u64,
        weight: f32,
        gradient: &mut Gradient,
        finished: &mut Ready<'_>,
    ) -> Result<Losses> {
        let gradient = gradient.all_dense();
        gradient[2..].copy_from_slice(&[weight, self.last]);
        finished(gradient, 2);
        let summed = self.summed.lock().unwrap_or_else(PoisonError::into_inner);
        match summed.recv_timeout(Duration::from_secs(20)) {
            Ok(name) if name == "gradient bucket 0" => {}
            other => return Err(TrainerError::NotFound(format!("no early sum, but {other:?}"))),
        }
        gradient[..2].fill(2.0 * weight);
        // Nothing is said of the rest: the end of the micro-batch says it.
        Ok(parameters.dense.iter().sum::<f32>().into())
    }

    fn tensors(&self) -> Vec<(String, Range<usize>)> {
        (0..4).map(|place| (format!("weight {place}"), place..place + 1)).collect()
    }

    fn validate(&self, _held: Held<'_>, _comm: &mut dyn Communicator) -> Result<Validation> {
        Ok(Validation::default())
    }
}

fn plan(dir: &std::path::Path) -> TrainPlan {
    TrainPlan {
        task: "wait".into(),
        table: Table::default(),
        row_wise: false,
        lazy_rows: false,
        samples: 2,
        epochs: 1,
        global_batch: 2,
        micro_batches: 2,
        bucket: 2,
        replica_check_every: 1,
        learning_rate: 0.1,
        decay: false,
        warmup: 0.0,
        rates: Vec::new(),
        weight_decay: 0.0,
        max_grad_norm: None,
        seed: 1,
        selection: Selection::Last,
        checkpoint_every: 100,
        checkpoints: dir.into(),
    }
}

#[test]
fn the_upper_half_is_summed_before_the_lower_half_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let trained = with_ranks(2, |inner| {
        let (summed, done) = channel();
        let objective = Patient { summed: Mutex::new(done), last: 1.0 };
        let mut comm = Telling { inner, summed };
        let plan = plan(&dir.path().join("checkpoints"));
        train(&plan, &objective, |_| vec![1.0; 4], &mut comm, &mut Silent).unwrap()
    });
    for trained in trained {
        // One step of Adam goes by the learning rate, whatever the size of the gradient.
        assert!(trained.parameters.iter().all(|p| (p - 0.9).abs() < 1e-6), "{trained:?}");
    }
}

#[test]
fn a_gradient_that_is_not_a_number_is_named_by_its_tensor_on_every_rank() {
    let dir = tempfile::tempdir().unwrap();
    let errors = with_ranks(2, |inner| {
        let (summed, done) = channel();
        let last = if inner.rank() == 1 { f32::NAN } else { 1.0 };
        let objective = Patient { summed: Mutex::new(done), last };
        let mut comm = Telling { inner, summed: summed.clone() };
        // The lower half need not wait for a sum that fails.
        summed.send("gradient bucket 0".into()).unwrap();
        let plan = plan(&dir.path().join("checkpoints"));
        train(&plan, &objective, |_| vec![1.0; 4], &mut comm, &mut Silent).unwrap_err().to_string()
    });
    for error in errors {
        assert!(error.contains("the gradient of weight 3, summed over the ranks"), "{error}");
    }
}
