//! Speed of training the CRM, and what it reaches, on a prepared dataset.
//!
//!     cargo bench -p reclora-trainer --bench crm -- data=DIR [KEY=VALUE]...
//!
//! `data=DIR` (a run's `prepare` directory), `history=60` (the latest that many; DIN), `batch=256`,
//! `epochs=1`, `dropout=0`, `optimizer=adamw|lazy_adamw`, `samples=N` (train on the first N only; 0: all),
//! `threads=2`, `dump=FILE` (a safetensors file with the initial weights, all samples and their order, so
//! that another program can do the same). Prints one JSON object: samples per second of training, valid
//! AUC after the last epoch, peak resident memory.

#![allow(clippy::unwrap_used, reason = "a failure is the report")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use reclora_comm::{Communicator, Solo};
use reclora_storage::dataset::{Dataset, Split};
use reclora_storage::permutation::EpochOrder;
use reclora_trainer::config::{CrmConfig, EmbeddingOptimizer};
use reclora_trainer::crm::{Crm, CrmInput, CrmShape, Workspace};
use reclora_trainer::error::Result;
use reclora_trainer::metrics::{Scored, Validation, auc};
use reclora_trainer::parameters::{Gradient, Losses, Parameters, Ready};
use reclora_trainer::telemetry::progress::Silent;
use reclora_trainer::training::exchange::Held;
use reclora_trainer::training::{Objective, Selection, TrainPlan, train};
use safetensors::tensor::{Dtype, TensorView};

const SEED: u64 = 42;

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// Samples in rows of the shared table, built from the dataset when they are needed.
struct Inputs<'a> {
    dataset: &'a Dataset,
    history: usize,
}

#[derive(Default)]
struct Row {
    fields: Vec<u32>,
    items: Vec<u32>,
    ratings: Vec<u32>,
    label: bool,
    user: u32,
}

impl Inputs<'_> {
    fn row(&self, index: u64) -> Result<Row> {
        let sample = self.dataset.sample(index)?;
        let mut row = Row { label: sample.label, user: sample.user, ..Row::default() };
        self.dataset.feature_ids(sample.user, sample.item, &mut row.fields);
        let all = self.dataset.history(sample.user, sample.position);
        let first = all.items.len().saturating_sub(self.history);
        row.items.extend(all.items[first..].iter().map(|item| self.dataset.item_feature(*item)));
        let ratings = all.ratings[first..].iter();
        row.ratings.extend(ratings.map(|level| self.dataset.rating_feature(*level)));
        Ok(row)
    }

    fn rows(&self, indices: impl Iterator<Item = u64>) -> Result<Vec<Row>> {
        indices.map(|index| self.row(index)).collect()
    }
}

impl Row {
    fn input(&self) -> CrmInput<'_> {
        let Self { fields, items, ratings, .. } = self;
        CrmInput {
            fields,
            history_items: items,
            history_ratings: ratings,
            numbers: &[],
            similarities: &[],
        }
    }
}

struct Bench<'a> {
    crm: &'a Crm,
    inputs: Inputs<'a>,
    valid: std::ops::Range<u64>,
    /// Time spent on validation, which is not training.
    validation: Mutex<Duration>,
}

impl Objective for Bench<'_> {
    fn micro_batch(
        &self,
        parameters: Parameters<'_>,
        samples: &[u64],
        epoch: u64,
        weight: f32,
        gradient: &mut Gradient,
        _finished: &mut Ready<'_>,
    ) -> Result<Losses> {
        let rows = self.inputs.rows(samples.iter().copied())?;
        let inputs: Vec<_> = rows.iter().map(Row::input).collect();
        let labels: Vec<f32> = rows.iter().map(|row| f32::from(u8::from(row.label))).collect();
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

    fn tensors(&self) -> Vec<(String, std::ops::Range<usize>)> {
        Vec::new()
    }

    fn validate(&self, held: Held<'_>, _comm: &mut dyn Communicator) -> Result<Validation> {
        let start = Instant::now();
        let parameters = Parameters::whole(held.share.table(), held.values);
        let blocks: Vec<u64> = self.valid.clone().step_by(64).collect();
        let scored = blocks.into_par_iter().map(|first| {
            let rows = self.inputs.rows(first..(first + 64).min(self.valid.end))?;
            let inputs: Vec<_> = rows.iter().map(Row::input).collect();
            let (logits, _) =
                WORKSPACE.with_borrow_mut(|ws| self.crm.score(parameters, ws, &inputs));
            let scored = rows.iter().zip(logits).map(|(row, logit)| Scored {
                user: row.user,
                label: row.label,
                probability: 1.0 / (1.0 + (-logit).exp()),
            });
            Ok(scored.collect::<Vec<_>>())
        });
        let scored: Vec<Scored> = scored.collect::<Result<Vec<_>>>()?.concat();
        *self.validation.lock().unwrap() += start.elapsed();
        Ok(Validation { auc: auc(&scored), ..Validation::default() })
    }
}

/// Weights, samples (train, then valid; histories padded with 0 in front) and the order of each epoch.
fn dump(path: &Path, bench: &Bench<'_>, initial: &[f32], plan: &TrainPlan) -> Result<()> {
    let bytes = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut tensors = Vec::new();
    for tensor in bench.crm.tensors() {
        let values: Vec<u32> = initial[tensor.range.clone()].iter().map(|v| v.to_bits()).collect();
        tensors.push((tensor.name.clone(), Dtype::F32, tensor.shape.clone(), bytes(&values)));
    }
    for (name, range) in [("train", 0..plan.samples), ("valid", bench.valid.clone())] {
        let rows = bench.inputs.rows(range)?;
        let width = bench.inputs.history;
        let padded = |values: &dyn Fn(&Row) -> &[u32]| -> Vec<u8> {
            let pad = |row: &Row| [&vec![0; width - values(row).len()], values(row)].concat();
            bytes(&rows.iter().flat_map(pad).collect::<Vec<u32>>())
        };
        let column =
            |values: &dyn Fn(&Row) -> u32| bytes(&rows.iter().map(values).collect::<Vec<_>>());
        let fields: Vec<u32> = rows.iter().flat_map(|row| row.fields.clone()).collect();
        let (count, per_row) = (rows.len(), fields.len() / rows.len().max(1));
        let mut add = |what: &str, shape: Vec<usize>, data| {
            tensors.push((format!("{name}.{what}"), Dtype::I32, shape, data));
        };
        add("fields", vec![count, per_row], bytes(&fields));
        add("items", vec![count, width], padded(&|row| &row.items));
        add("ratings", vec![count, width], padded(&|row| &row.ratings));
        add("length", vec![count], column(&|row| row.items.len() as u32));
        add("label", vec![count], column(&|row| u32::from(row.label)));
    }
    let item_field = bytes(&[bench.inputs.dataset.item_field() as u32]);
    tensors.push(("item_field".into(), Dtype::I32, vec![1], item_field));
    for epoch in 0..plan.epochs {
        let order = EpochOrder::new(plan.samples, plan.seed, epoch);
        let order: Vec<u32> = (0..plan.samples).map(|i| order.at(i) as u32).collect();
        tensors.push((format!("order.{epoch}"), Dtype::I32, vec![order.len()], bytes(&order)));
    }
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
    Ok(())
}

fn peak_resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn main() -> Result<()> {
    let mut options: BTreeMap<String, String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .map(|argument| {
            let Some((key, value)) = argument.split_once('=') else {
                eprintln!("{argument}: options are KEY=VALUE");
                std::process::exit(2);
            };
            (key.to_owned(), value.to_owned())
        })
        .collect();
    let mut option = |key: &str, default: &str| options.remove(key).unwrap_or(default.to_owned());
    let data = option("data", "");
    let (history, batch) = (option("history", "60"), option("batch", "256"));
    let (epochs, dropout) = (option("epochs", "1"), option("dropout", "0"));
    let (threads, samples) = (option("threads", "2"), option("samples", "0"));
    let (optimizer, dump_to) = (option("optimizer", "adamw"), option("dump", ""));
    let optimizer: EmbeddingOptimizer = serde_json::from_value(optimizer.into()).unwrap();
    if data.is_empty() || !options.is_empty() {
        eprintln!(
            "data=DIR is needed; history, batch, epochs, dropout, optimizer, samples, threads"
        );
        eprintln!("and dump are the other options (found {:?})", options.keys());
        std::process::exit(2);
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads.parse().unwrap()).build_global().unwrap();
    let dataset = Dataset::open(Path::new(&data))?;
    let shape = CrmShape {
        features: dataset.num_features(),
        fields: dataset.fields().len(),
        item_field: dataset.item_field(),
        user_field: dataset.user_field(),
        numbers: 0,
        similarities: false,
    };
    let config = CrmConfig { dropout: dropout.parse().unwrap(), ..CrmConfig::default() };
    let crm = Crm::new(&config, shape)?;
    let train_samples = dataset.split(Split::Train).end;
    let limit: u64 = samples.parse().unwrap();
    let checkpoints = tempfile::tempdir().unwrap();
    let plan = TrainPlan {
        task: "train CRM".into(),
        table: crm.table(),
        row_wise: false,
        lazy_rows: optimizer == EmbeddingOptimizer::LazyAdamw,
        samples: if limit == 0 { train_samples } else { limit.min(train_samples) },
        epochs: epochs.parse().unwrap(),
        global_batch: batch.parse().unwrap(),
        micro_batches: config.micro_batches,
        bucket: usize::MAX,
        replica_check_every: 0,
        learning_rate: config.learning_rate,
        decay: false,
        warmup: 0.0,
        rates: Vec::new(),
        weight_decay: config.weight_decay,
        max_grad_norm: None,
        seed: SEED,
        selection: Selection::Last,
        checkpoint_every: u64::MAX,
        checkpoints: checkpoints.path().into(),
    };
    let inputs = Inputs { dataset: &dataset, history: history.parse().unwrap() };
    let valid = dataset.split(Split::Valid);
    let bench = Bench { crm: &crm, inputs, valid, validation: Mutex::default() };
    let initial = crm.init(SEED);
    if !dump_to.is_empty() {
        dump(Path::new(&dump_to), &bench, &initial, &plan)?;
    }
    let start = Instant::now();
    let trained = train(&plan, &bench, |_| initial, &mut Solo, &mut Silent)?;
    let seconds = (start.elapsed() - *bench.validation.lock().unwrap()).as_secs_f64();
    let result = serde_json::json!({
        "samples_per_second": (plan.samples as f64 * plan.epochs as f64 / seconds).round(),
        "valid_auc": trained.history.epochs.last().and_then(|epoch| epoch.valid_auc),
        "train_loss": trained.history.epochs.last().map(|epoch| epoch.train_loss),
        "first_loss": trained.history.steps.first().map(|step| step.loss),
        "samples": plan.samples, "epochs": plan.epochs, "features": shape.features,
        "optimizer": optimizer, "threads": threads, "peak_rss_mib": peak_resident_mib().round(),
    });
    println!("{result}");
    Ok(())
}
