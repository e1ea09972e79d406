//! What micro-batches cost a large CRM: the speed of training with 8 of them beside that with one.
//!
//!     cargo bench -p reclora-trainer --bench micro_batches -- [KEY=VALUE]...
//!
//! `history=10` (items of a sample), `batch=256`, `micro_batches=8`, `hidden=688` (1.5 M dense weights), `threads=1`
//! (one micro-batch keeps one thread busy, so more threads flatter several), `rounds=15`. Samples are made up. Each
//! round trains a few steps both ways, one right after the other; prints one JSON object with the median speeds and
//! the median, over rounds, of their ratio.

#![allow(clippy::unwrap_used, reason = "a failure is the report")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use reclora_comm::{Communicator, Solo};
use reclora_trainer::config::CrmConfig;
use reclora_trainer::crm::{Crm, CrmInput, CrmShape, Workspace};
use reclora_trainer::error::Result;
use reclora_trainer::metrics::Validation;
use reclora_trainer::parameters::{Gradient, Losses, Parameters, Ready};
use reclora_trainer::telemetry::progress::{Event, Progress};
use reclora_trainer::training::exchange::Held;
use reclora_trainer::training::{Objective, Selection, TrainPlan, train};

const SHAPE: CrmShape = CrmShape {
    features: 5000,
    fields: 8,
    item_field: 5,
    user_field: 0,
    numbers: 0,
    similarities: false,
};
/// Steps of a round.
const STEPS: u64 = 8;

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// Samples that are functions of their number.
struct MadeUp<'a> {
    crm: &'a Crm,
    history: usize,
}

impl MadeUp<'_> {
    fn features(sample: u64, kind: u64, count: usize) -> Vec<u32> {
        let hash =
            |place: u64| (sample * 64 + kind * 16 + place).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..count as u64).map(|place| (hash(place) >> 40) as u32 % SHAPE.features as u32).collect()
    }
}

impl Objective for MadeUp<'_> {
    fn micro_batch(
        &self,
        parameters: Parameters<'_>,
        samples: &[u64],
        epoch: u64,
        weight: f32,
        gradient: &mut Gradient,
        _finished: &mut Ready<'_>,
    ) -> Result<Losses> {
        let parts = |sample: &u64| {
            [SHAPE.fields, self.history, self.history]
                .iter()
                .zip(0..)
                .map(|(count, kind)| Self::features(*sample, kind, *count))
                .collect::<Vec<_>>()
        };
        let parts: Vec<_> = samples.iter().map(parts).collect();
        let inputs: Vec<_> = parts
            .iter()
            .map(|part| CrmInput {
                fields: &part[0],
                history_items: &part[1],
                history_ratings: &part[2],
                numbers: &[],
                similarities: &[],
            })
            .collect();
        let labels: Vec<f32> = samples.iter().map(|sample| (sample % 2) as f32).collect();
        let loss = WORKSPACE.with_borrow_mut(|ws| {
            let crm = self.crm;
            crm.loss_and_gradient(
                parameters, ws, &inputs, &labels, samples, epoch, weight, gradient,
            )
        });
        Ok(loss.into())
    }

    fn joins_micro_batches(&self) -> bool {
        true
    }

    fn tensors(&self) -> Vec<(String, Range<usize>)> {
        Vec::new()
    }

    fn validate(&self, _held: Held<'_>, _comm: &mut dyn Communicator) -> Result<Validation> {
        Ok(Validation::default())
    }
}

/// Samples per second of the median step; saving checkpoints is no part of it.
fn speed(objective: &MadeUp<'_>, batch: u64, micro_batches: usize) -> f64 {
    let checkpoints = tempfile::tempdir().unwrap();
    let crm = objective.crm;
    let plan = TrainPlan {
        task: "train CRM".into(),
        table: crm.table(),
        row_wise: false,
        lazy_rows: true,
        samples: STEPS * batch,
        epochs: 1,
        global_batch: batch,
        micro_batches,
        bucket: usize::MAX,
        replica_check_every: 0,
        learning_rate: 1e-3,
        decay: false,
        warmup: 0.0,
        rates: Vec::new(),
        weight_decay: 0.0,
        max_grad_norm: None,
        seed: 1,
        selection: Selection::Last,
        checkpoint_every: u64::MAX,
        checkpoints: checkpoints.path().into(),
    };
    let initial = crm.init(1);
    let mut steps = Steps::default();
    train(&plan, objective, |_| initial, &mut Solo, &mut steps).unwrap();
    let seconds = |pair: &[Instant]| (pair[1] - pair[0]).as_secs_f64();
    batch as f64 / median(steps.ends.windows(2).map(seconds).collect())
}

/// When each step ended.
#[derive(Default)]
struct Steps {
    ends: Vec<Instant>,
}

impl Progress for Steps {
    fn emit(&mut self, event: Event) {
        if let Event::Update { .. } = event {
            self.ends.push(Instant::now());
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut options: BTreeMap<String, String> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect();
    let mut option = |key: &str, default: u64| {
        options.remove(key).map_or(default, |value| value.parse().expect(key))
    };
    let (history, batch, hidden) =
        (option("history", 10), option("batch", 256), option("hidden", 688));
    let (several, threads, rounds) =
        (option("micro_batches", 8), option("threads", 1), option("rounds", 15));
    assert!(options.is_empty(), "no such option: {options:?}");
    rayon::ThreadPoolBuilder::new().num_threads(threads as usize).build_global().unwrap();
    let config = CrmConfig { hidden_dim: hidden as usize, ..CrmConfig::default() };
    let crm = Crm::new(&config, SHAPE).unwrap();
    let objective = MadeUp { crm: &crm, history: history as usize };
    let pair =
        || [1, several as usize].map(|micro_batches| speed(&objective, batch, micro_batches));
    pair();
    let rounds: Vec<[f64; 2]> = (0..rounds).map(|_| pair()).collect();
    let of = |value: fn(&[f64; 2]) -> f64| median(rounds.iter().map(value).collect());
    println!(
        "{}",
        serde_json::json!({
            "dense_weights": crm.num_parameters() - crm.table().len(),
            "history": history, "batch": batch, "micro_batches": several, "threads": threads,
            "samples_per_second_of_one": of(|pair| pair[0]).round(),
            "samples_per_second_of_several": of(|pair| pair[1]).round(),
            "ratio": (of(|pair| pair[1] / pair[0]) * 1e3).round() / 1e3,
        })
    );
}
