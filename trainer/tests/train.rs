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
use reclora_trainer::distributed::checkpoint::is_whole;
use reclora_trainer::distributed::gradient::Gradient;
use reclora_trainer::distributed::table::{Fetched, Held, Parameters, Table, TableShare};
use reclora_trainer::distributed::train::{Objective, TrainPlan, Trained, train};
use reclora_trainer::error::{Result, TrainerError};
use reclora_trainer::progress::{Event, Progress, Silent};

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
fn place(parameters: Parameters<'_>, row: usize) -> usize {
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
        finished: &mut Finished<'_>,
    ) -> Result<f32> {
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
        Ok(sum)
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

    fn validate(
        &self,
        held: Held<'_>,
        comm: &mut dyn Communicator,
    ) -> Result<(Option<f64>, Option<f64>)> {
        let samples: Vec<u64> = (1000..1200).collect();
        let mut fetched = Fetched::default();
        let parameters = held.parameters(|| self.rows(&samples), &mut fetched, comm)?;
        let right = samples.iter().filter(|&&sample| {
            let (x, label) = features(sample);
            (self.logit(parameters, &x) > 0.0) == (label > 0.5)
        });
        Ok((Some(right.count() as f64 / 200.0), None))
    }
}

fn plan(dir: &Path) -> TrainPlan {
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
        weight_decay: 0.01,
        max_grad_norm: Some(0.2),
        seed: 7,
        patience: None,
        checkpoint_every: 4,
        checkpoints: dir.into(),
    }
}

fn bits(trained: &Trained) -> (Vec<u32>, String) {
    assert!(trained.share.is_all());
    let parameters = trained.parameters.iter().map(|value| value.to_bits()).collect();
    (parameters, serde_json::to_string(&trained.history).unwrap())
}

/// The same of ranks that hold some rows each.
fn bits_of_shares(of_ranks: &[Trained]) -> (Vec<u32>, String) {
    let table = of_ranks[0].share.table();
    let mut whole = vec![0; WIDTH];
    for Trained { parameters, share, history } in of_ranks {
        assert_eq!(share.parts(), of_ranks.len());
        let (rows, dense) = parameters.split_at(share.held().len());
        for (row, values) in share.rows().zip(rows.chunks(table.width)) {
            for (place, value) in whole[row * table.width..].iter_mut().zip(values) {
                *place = value.to_bits();
            }
        }
        for (place, value) in whole[table.len()..].iter_mut().zip(dense) {
            *place = value.to_bits();
        }
        assert_eq!(history, &of_ranks[0].history);
    }
    (whole, serde_json::to_string(&of_ranks[0].history).unwrap())
}

/// What a rank begins with: the values of its rows, and of what is behind the table.
fn initial(share: TableShare) -> Vec<f32> {
    let value = |index: usize| (index % 5) as f32 * 0.01;
    let width = share.table().width;
    let rows = share.rows().flat_map(|row| row * width..(row + 1) * width);
    rows.chain(share.table().len()..WIDTH).map(value).collect()
}

fn solo(plan: &TrainPlan, micro_batches: u64) -> Result<Trained> {
    let toy = Toy { left: AtomicU64::new(micro_batches), table: plan.table };
    train(plan, &toy, initial, &mut Solo, &mut Silent)
}

fn on_ranks(world_size: usize, plan: &TrainPlan) -> Vec<Trained> {
    with_ranks(world_size, |mut comm| {
        let toy = Toy { left: AtomicU64::new(u64::MAX), table: plan.table };
        train(plan, &toy, initial, &mut comm, &mut Silent).unwrap()
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
fn d1_a_table_shared_out_over_the_ranks_gives_the_bits_of_copies() {
    let dir = tempfile::tempdir().unwrap();
    for lazy_rows in [false, true] {
        let plan = |name: &str| TrainPlan {
            table: TABLE,
            lazy_rows,
            patience: Some(2),
            checkpoints: dir.path().join(format!("{lazy_rows} {name}")),
            ..plan(dir.path())
        };
        let expected = bits(&solo(&plan("solo"), u64::MAX).unwrap());
        for world_size in [1, 2, 4, 8] {
            let plan = TrainPlan { row_wise: true, ..plan(&format!("{world_size} ranks")) };
            let trained = on_ranks(world_size, &plan);
            assert_eq!(bits_of_shares(&trained), expected, "{world_size} ranks");
        }
    }
}

/// D-2: whoever wrote a checkpoint, whoever reads it.
#[test]
fn d2_checkpoints_of_a_shared_out_table_are_continued_by_any_number_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |row_wise, epochs| TrainPlan {
        table: TABLE,
        row_wise,
        epochs,
        decay: false,
        patience: Some(9),
        ..plan(&dir.path().join("checkpoints"))
    };
    let undisturbed = TrainPlan { checkpoints: dir.path().join("solo"), ..plan(false, 6) };
    let expected = bits(&solo(&undisturbed, u64::MAX).unwrap());
    // Each continues from what the one before it left.
    for (epochs, world_size, row_wise) in
        [(1, 2, true), (2, 4, true), (3, 1, true), (4, 2, false), (5, 8, true), (6, 2, true)]
    {
        let of_ranks = on_ranks(world_size, &plan(row_wise, epochs));
        assert_eq!(of_ranks[0].history.epochs.len() as u64, epochs);
        if epochs == 6 {
            assert_eq!(bits_of_shares(&of_ranks), expected);
        }
    }
    let mut names: Vec<String> = std::fs::read_dir(dir.path().join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    // The files of no kept checkpoint are gone; the newest but one was written by two ranks too.
    assert_eq!(names.len(), 6, "{names:?}");
    let paths = names.iter().map(|name| dir.path().join("checkpoints").join(name));
    for path in paths.filter(|path| path.extension().is_some_and(|e| e == "checkpoint")) {
        assert_eq!(is_whole(&path), Some(true));
    }
}

#[test]
fn a_checkpoint_with_a_damaged_or_missing_part_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let plan = TrainPlan { table: TABLE, row_wise: true, ..plan(dir.path()) };
    let expected = bits_of_shares(&on_ranks(2, &plan));
    let files = |end: &str| {
        let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> =
            entries.filter(|path| path.to_string_lossy().ends_with(end)).collect();
        paths.sort();
        paths
    };
    let newest = files(".checkpoint").pop().unwrap();
    let part = files("part-1-of-2.shard").pop().unwrap();
    let whole = std::fs::read(&part).unwrap();
    let mut damaged = whole.clone();
    damaged[70] ^= 1;
    let older = std::fs::read(&files("part-1-of-2.shard")[0]).unwrap();
    for bytes in [Some(damaged), Some(older), None] {
        match bytes {
            Some(bytes) => std::fs::write(&part, bytes).unwrap(),
            None => std::fs::remove_file(&part).unwrap(),
        }
        assert_eq!(is_whole(&newest), Some(false));
        // What is left is the one before it: the steps behind it are taken again.
        assert_eq!(bits_of_shares(&on_ranks(2, &plan)), expected);
        assert_eq!(std::fs::read(&part).unwrap(), whole);
        assert_eq!(is_whole(&newest), Some(true));
    }
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
    let held = Held { share: trained.share, values: &trained.parameters };
    assert_eq!(toy.validate(held, &mut Solo).unwrap().0, Some(best));
    assert!(aucs.len() < 40 && aucs[aucs.len() - 1] <= best, "{aucs:?}");
}

/// One bit of one weight on one rank, as faulty memory flips it.
#[test]
fn a_rank_whose_replica_differs_is_named_with_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let plan = TrainPlan { replica_check_every: 3, ..plan(dir.path()) };
    let errors = with_ranks(4, |mut comm| {
        let rank = comm.rank();
        let initial = |_| {
            let mut initial = vec![0.5f32; WIDTH];
            if rank == 2 {
                initial[6] = f32::from_bits(initial[6].to_bits() ^ 1);
            }
            initial
        };
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

/// Asks to pause after some steps.
struct PauseAfter(u64);

impl Progress for PauseAfter {
    fn emit(&mut self, event: Event) {
        if let Event::Update { .. } = event {
            self.0 = self.0.saturating_sub(1);
        }
    }

    fn pause_asked(&self) -> bool {
        self.0 == 0
    }
}

#[test]
fn d2_ranks_agree_on_the_step_of_a_pause_and_go_on_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = solo(&plan(&dir.path().join("undisturbed")), u64::MAX).unwrap();
    // No checkpoint but those of the pauses.
    let plan = TrainPlan { checkpoint_every: u64::MAX, ..plan(&dir.path().join("paused")) };
    for (world_size, asked) in [(1, 3), (2, 4), (4, 2)] {
        let before = last_step(&plan);
        let paused = with_ranks(world_size, |mut comm| {
            let toy = Toy { left: AtomicU64::new(u64::MAX), table: plan.table };
            // One of them is asked; the others learn of it.
            let last = comm.rank() + 1 == comm.world_size();
            let mut progress = PauseAfter(if last { asked } else { u64::MAX });
            train(&plan, &toy, initial, &mut comm, &mut progress).map(drop).unwrap_err()
        });
        assert!(paused.iter().all(|error| matches!(error, TrainerError::Paused)), "{paused:?}");
        // Asked after a step, a rank says so with the next.
        assert_eq!(last_step(&plan), before + asked + 1, "{world_size} ranks");
    }
    assert_eq!(bits(&solo(&plan, u64::MAX).unwrap()), bits(&undisturbed));
}

#[test]
fn d2_what_a_rank_has_in_memory_survives_the_loss_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = solo(&plan(&dir.path().join("undisturbed")), u64::MAX).unwrap();
    let plan = TrainPlan { checkpoint_every: u64::MAX, ..plan(&dir.path().join("healed")) };
    let ends = with_ranks(2, |mut comm| {
        // Four micro-batches of each step are rank 1's: it ends in the fifth step, of seven in an epoch.
        let left = if comm.rank() == 1 { 18 } else { u64::MAX };
        let toy = Toy { left: AtomicU64::new(left), table: plan.table };
        train(&plan, &toy, initial, &mut comm, &mut Silent).map(drop).unwrap_err()
    });
    assert!(matches!(ends[0], TrainerError::Comm(_)), "{ends:?}");
    assert_eq!(ends[1].to_string(), "interrupted");
    assert_eq!(last_step(&plan), 4, "the steps that both had taken");
    assert_eq!(bits(&solo(&plan, u64::MAX).unwrap()), bits(&undisturbed));
}

/// The step of the newest checkpoint.
fn last_step(plan: &TrainPlan) -> u64 {
    let files = std::fs::read_dir(&plan.checkpoints).into_iter().flatten().flatten();
    let steps = files.filter_map(|file| {
        let name = file.file_name().into_string().ok()?;
        name.strip_prefix("step-")?.strip_suffix(".checkpoint")?.parse().ok()
    });
    steps.max().unwrap_or(0)
}
