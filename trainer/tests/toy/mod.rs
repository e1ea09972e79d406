//! A small regression to train.
// Each test file uses a part of this; a panic is the report of a failed test.
#![allow(dead_code, clippy::unwrap_used)]

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use reclora_comm::{Communicator, Solo};
use reclora_trainer::error::{Result, TrainerError};
use reclora_trainer::metrics::Validation;
use reclora_trainer::parameters::{Gradient, Losses, Parameters, Ready, Table, TableShare};
use reclora_trainer::telemetry::progress::Silent;
use reclora_trainer::training::exchange::{Fetched, Held};
use reclora_trainer::training::{Objective, Selection, TrainPlan, Trained, train};

/// Logistic regression on made-up features; fails after a number of micro-batches, if asked to. With a
/// table, its first weights are rows of which a sample touches some.
pub struct Toy {
    pub left: AtomicU64,
    pub table: Table,
}

/// All weights but the last, in rows of two.
pub const TABLE: Table = Table { rows: WIDTH / 2, width: 2 };

pub const WIDTH: usize = 11;

pub fn features(sample: u64) -> ([f32; WIDTH], f32) {
    let mut x = [0.0; WIDTH];
    for (index, value) in x.iter_mut().enumerate() {
        let hash = (sample * 31 + index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *value = (hash >> 40) as f32 / 2f32.powi(23) - 1.0;
    }
    (x, f32::from(u8::from(x[0] + 0.5 * x[1] > 0.1)))
}

impl Toy {
    /// Whether a sample reads a weight: small features are as good as none, where rows are sparse.
    fn reads(&self, index: usize, x: f32) -> bool {
        index / 2 >= self.table.rows || x.abs() >= 0.9
    }

    fn logit(&self, parameters: Parameters<'_>, x: &[f32; WIDTH]) -> f32 {
        let read = x.iter().enumerate().filter(|(index, x)| self.reads(*index, **x));
        read.map(|(index, x)| {
            let weight = match index.checked_sub(self.table.len()) {
                Some(dense) => parameters.dense[dense],
                None => parameters.table[2 * place(parameters, index / 2) + index % 2],
            };
            x * weight
        })
        .sum()
    }
}

/// Where a row lies.
pub fn place(parameters: Parameters<'_>, row: usize) -> usize {
    parameters.rows.map_or(row, |rows| rows.binary_search(&(row as u32)).unwrap())
}

impl Objective for Toy {
    fn micro_batch(
        &self,
        parameters: Parameters<'_>,
        samples: &[u64],
        _epoch: u64,
        weight: f32,
        gradient: &mut Gradient,
        finished: &mut Ready<'_>,
    ) -> Result<Losses> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(TrainerError::NotFound("interrupted".into()));
        }
        let mut sum = 0.0;
        for &sample in samples {
            let (x, label) = features(sample);
            let logit = self.logit(parameters, &x);
            let p = 1.0 / (1.0 + (-logit).exp());
            sum -= (if label > 0.5 { p } else { 1.0 - p }).max(1e-9).ln();
            for (index, x) in x.into_iter().enumerate() {
                if !self.reads(index, x) {
                    continue;
                }
                let value = match index.checked_sub(self.table.len()) {
                    Some(dense) => &mut gradient.dense(dense..dense + 1)[0],
                    None => &mut gradient.row(place(parameters, index / 2) as u32)[index % 2],
                };
                *value += weight * (p - label) * x;
            }
        }
        // As a model does that is through with its upper layers, on one of two micro-batches.
        if samples.first().is_some_and(|sample| sample.is_multiple_of(2)) {
            finished(gradient.all_dense(), 5);
        }
        // Told apart, as the choice between yes and no is from the tokens of an answer.
        Ok(Losses { training: sum, deciding: 0.3 * sum })
    }

    fn tells_deciding_loss(&self) -> bool {
        true
    }

    fn rows(&self, samples: &[u64]) -> Result<Vec<u32>> {
        let rows = |sample: &u64| {
            let x = features(*sample).0.into_iter().enumerate();
            let read = x.filter(|(index, x)| *index < self.table.len() && self.reads(*index, *x));
            read.map(|(index, _)| index as u32 / 2).collect::<Vec<_>>()
        };
        Ok(samples.iter().flat_map(rows).collect())
    }

    fn tensors(&self) -> Vec<(String, Range<usize>)> {
        let table = self.table.len();
        let table = (table > 0).then(|| ("table".into(), 0..table)).into_iter();
        let start = self.table.len().max(4);
        let upper = (self.table.is_empty()).then(|| ("upper".into(), 0..4));
        table.chain(upper).chain([("lower".into(), start..WIDTH)]).collect()
    }

    fn validate(&self, held: Held<'_>, comm: &mut dyn Communicator) -> Result<Validation> {
        let samples: Vec<u64> = (1000..1200).collect();
        let mut fetched = Fetched::default();
        let parameters = held.parameters(|| self.rows(&samples), &mut fetched, comm)?;
        let scored = samples.iter().map(|sample| {
            let (x, label) = features(*sample);
            (self.logit(parameters, &x), label > 0.5)
        });
        let scored: Vec<(f32, bool)> = scored.collect();
        let right = scored.iter().filter(|(logit, label)| (*logit > 0.0) == *label);
        let auc = Some(right.count() as f64 / 200.0);
        let losses = scored.iter().map(|(logit, label)| {
            let lead = f64::from(if *label { *logit } else { -logit });
            (-lead).max(0.0) + (-lead.abs()).exp().ln_1p()
        });
        let log_loss = Some(losses.sum::<f64>() / 200.0);
        let logits = scored.iter().take(5).map(|(logit, _)| *logit).collect();
        Ok(Validation { auc, log_loss, logits })
    }
}

pub fn plan(dir: &Path) -> TrainPlan {
    TrainPlan {
        task: "toy".into(),
        table: Table::default(),
        row_wise: false,
        lazy_rows: false,
        samples: 203,
        epochs: 6,
        global_batch: 32,
        micro_batches: 8,
        bucket: usize::MAX,
        replica_check_every: 1,
        learning_rate: 0.05,
        decay: true,
        warmup: 0.2,
        rates: vec![(0..1, 2.0)],
        weight_decay: 0.01,
        max_grad_norm: Some(0.2),
        seed: 7,
        selection: Selection::Last,
        checkpoint_every: 4,
        checkpoints: dir.into(),
    }
}

/// Parameters, and what is kept beside them: curves, and scores of valid samples.
pub fn bits(trained: &Trained) -> (Vec<u32>, String) {
    assert!(trained.share.is_all());
    let parameters = trained.parameters.iter().map(|value| value.to_bits()).collect();
    (parameters, beside(trained))
}

/// What is kept beside parameters.
pub fn beside(trained: &Trained) -> String {
    assert!(!trained.valid_logits.is_empty());
    serde_json::to_string(&(&trained.history, &trained.valid_logits)).unwrap()
}

/// What a rank begins with: the values of its rows, and of what is behind the table.
pub fn initial(share: TableShare) -> Vec<f32> {
    let value = |index: usize| (index % 5) as f32 * 0.01;
    let width = share.table().width;
    let rows = share.rows().flat_map(|row| row * width..(row + 1) * width);
    rows.chain(share.table().len()..WIDTH).map(value).collect()
}

pub fn solo(plan: &TrainPlan, micro_batches: u64) -> Result<Trained> {
    let toy = Toy { left: AtomicU64::new(micro_batches), table: plan.table };
    train(plan, &toy, initial, &mut Solo, &mut Silent)
}
