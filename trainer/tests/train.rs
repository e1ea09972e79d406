//! The training loop on a small regression: the same bits for any number of ranks (D-1) and however
//! often it is interrupted (D-2).

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod ranks;

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use ranks::with_ranks;
use reclora_comm::{Communicator, Solo};
use reclora_trainer::distributed::buckets::Finished;
use reclora_trainer::distributed::gradient::{Gradient, Table};
use reclora_trainer::distributed::train::{Objective, TrainPlan, Trained, train};
use reclora_trainer::error::{Result, TrainerError};
use reclora_trainer::progress::Silent;

/// Logistic regression on made-up features; fails after a number of micro-batches, if asked to. With a
/// table, its first weights are rows of which a sample touches some.
struct Toy {
    left: AtomicU64,
    table: Table,
}

/// All weights but the last, in rows of two.
const TABLE: Table = Table { rows: WIDTH / 2, width: 2 };

const WIDTH: usize = 11;

fn features(sample: u64) -> ([f32; WIDTH], f32) {
    let mut x = [0.0; WIDTH];
    for (index, value) in x.iter_mut().enumerate() {
        let hash = (sample * 31 + index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *value = (hash >> 40) as f32 / 2f32.powi(23) - 1.0;
    }
    (x, f32::from(u8::from(x[0] + 0.5 * x[1] > 0.1)))
}

impl Objective for Toy {
    fn micro_batch(
        &self,
        parameters: &[f32],
        samples: &[u64],
        _epoch: u64,
        weight: f32,
        gradient: &mut Gradient,
        finished: &mut Finished<'_>,
    ) -> Result<f32> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(TrainerError::NotFound("interrupted".into()));
        }
        let mut sum = 0.0;
        for &sample in samples {
            let (x, label) = features(sample);
            let logit: f32 = x.iter().zip(parameters).map(|(a, b)| a * b).sum();
            let p = 1.0 / (1.0 + (-logit).exp());
            sum -= (if label > 0.5 { p } else { 1.0 - p }).max(1e-9).ln();
            for (index, x) in x.into_iter().enumerate() {
                let row = index / 2;
                let place = if row >= self.table.rows {
                    &mut gradient.dense(index..index + 1)[0]
                } else if x.abs() < 0.98 {
                    // Small features are as good as none, where rows are sparse.
                    continue;
                } else {
                    &mut gradient.row(row as u32)[index % 2]
                };
                *place += weight * (p - label) * x;
            }
        }
        // As a model does that is through with its upper layers, on one of two micro-batches.
        if samples.first().is_some_and(|sample| sample.is_multiple_of(2)) {
            finished(gradient.all_dense(), 5);
        }
        Ok(sum)
    }

    fn tensors(&self) -> Vec<(String, Range<usize>)> {
        vec![("upper".into(), 0..4), ("lower".into(), 4..WIDTH)]
    }

    fn validate(
        &self,
        parameters: &[f32],
        _comm: &mut dyn Communicator,
    ) -> Result<(Option<f64>, Option<f64>)> {
        let right = (1000..1200).filter(|&sample| {
            let (x, label) = features(sample);
            (x.iter().zip(parameters).map(|(a, b)| a * b).sum::<f32>() > 0.0) == (label > 0.5)
        });
        Ok((Some(right.count() as f64 / 200.0), None))
    }
}

fn plan(dir: &Path) -> TrainPlan {
    TrainPlan {
        task: "toy".into(),
        table: Table::default(),
        lazy_rows: false,
        samples: 203,
        epochs: 6,
        global_batch: 32,
        micro_batches: 8,
        bucket: usize::MAX,
        replica_check_every: 1,
        learning_rate: 0.05,
        decay: true,
        weight_decay: 0.01,
        max_grad_norm: Some(0.2),
        seed: 7,
        patience: None,
        checkpoint_every: 4,
        checkpoints: dir.into(),
    }
}

fn bits(trained: &Trained) -> (Vec<u32>, String) {
    let parameters = trained.parameters.iter().map(|value| value.to_bits()).collect();
    (parameters, serde_json::to_string(&trained.history).unwrap())
}

fn solo(plan: &TrainPlan, micro_batches: u64) -> Result<Trained> {
    let toy = Toy { left: AtomicU64::new(micro_batches), table: plan.table };
    train(plan, &toy, vec![0.0; WIDTH], &mut Solo, &mut Silent)
}

fn on_ranks(world_size: usize, plan: &TrainPlan) -> Vec<Trained> {
    with_ranks(world_size, |mut comm| {
        let toy = Toy { left: AtomicU64::new(u64::MAX), table: plan.table };
        train(plan, &toy, vec![0.0; WIDTH], &mut comm, &mut Silent).unwrap()
    })
}

#[test]
fn d1_any_number_of_ranks_gives_the_same_bits() {
    let mut results = Vec::new();
    for (table, lazy_rows) in [(Table::default(), false), (TABLE, false), (TABLE, true)] {
        let dir = tempfile::tempdir().unwrap();
        let plan = |name: &str| TrainPlan { table, lazy_rows, ..plan(&dir.path().join(name)) };
        let expected = bits(&solo(&plan("solo"), u64::MAX).unwrap());
        for (world_size, bucket) in [(1, 4), (2, usize::MAX), (2, 1), (4, 3), (8, 4), (8, 100)] {
            let name = format!("{world_size} ranks, buckets of {bucket}");
            for trained in on_ranks(world_size, &TrainPlan { bucket, ..plan(&name) }) {
                assert_eq!(bits(&trained), expected, "{name}");
            }
        }
        results.push(expected);
    }
    assert!(results[0] != results[1] && results[1] != results[2], "three kinds of training");
}

#[test]
fn d2_interrupted_anywhere_it_ends_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = solo(&plan(&dir.path().join("undisturbed")), u64::MAX).unwrap();
    let losses: Vec<_> = undisturbed.history.epochs.iter().map(|e| e.train_loss).collect();
    assert!(losses[5] < 0.9 * losses[0], "it learns: {losses:?}");
    for after in [1, 30, 57, 100] {
        let plan = plan(&dir.path().join(after.to_string()));
        let mut attempts = 0;
        let trained = loop {
            attempts += 1;
            assert!(attempts < 50, "no progress with {after} micro-batches per attempt");
            match solo(&plan, after * attempts) {
                Ok(trained) => break trained,
                Err(error) => assert_eq!(error.to_string(), "interrupted"),
            }
        };
        assert_eq!(bits(&trained), bits(&undisturbed), "interrupted every {after} micro-batches");
    }
}

#[test]
fn the_best_epoch_is_selected_and_patience_ends_training() {
    let dir = tempfile::tempdir().unwrap();
    let plan = TrainPlan {
        patience: Some(1),
        epochs: 40,
        learning_rate: 1.0,
        decay: false,
        max_grad_norm: None,
        ..plan(dir.path())
    };
    let trained = solo(&plan, u64::MAX).unwrap();
    let aucs: Vec<_> = trained.history.epochs.iter().filter_map(|epoch| epoch.valid_auc).collect();
    let best = aucs.iter().copied().fold(0.0, f64::max);
    let toy = Toy { left: AtomicU64::new(0), table: Table::default() };
    assert_eq!(toy.validate(&trained.parameters, &mut Solo).unwrap().0, Some(best));
    assert!(aucs.len() < 40 && aucs[aucs.len() - 1] <= best, "{aucs:?}");
}

/// One bit of one weight on one rank, as faulty memory flips it.
#[test]
fn a_rank_whose_replica_differs_is_named_with_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let plan = TrainPlan { replica_check_every: 3, ..plan(dir.path()) };
    let errors = with_ranks(4, |mut comm| {
        let mut initial = vec![0.5f32; WIDTH];
        if comm.rank() == 2 {
            initial[6] = f32::from_bits(initial[6].to_bits() ^ 1);
        }
        let toy = Toy { left: AtomicU64::new(u64::MAX), table: plan.table };
        train(&plan, &toy, initial, &mut comm, &mut Silent).unwrap_err()
    });
    for error in errors {
        let TrainerError::Replica { step, tensor, odd } = &error else { panic!("{error}") };
        assert_eq!((*step, tensor.as_str(), odd.as_slice()), (3, "lower", &[2][..]));
        assert!(error.to_string().starts_with("after step 3 rank 2 has another lower than"));
    }
}

#[test]
fn worlds_that_do_not_fit_the_micro_batches_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plan = TrainPlan { micro_batches: 6, ..plan(dir.path()) };
    let error = solo(&plan, u64::MAX).unwrap_err().to_string();
    assert!(error.contains("tune.micro_batches") && error.contains("power of two"), "{error}");
}
