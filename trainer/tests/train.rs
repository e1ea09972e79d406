//! The training loop on a small regression: the same bits for any number of ranks (D-1).

use std::sync::atomic::AtomicU64;

use crate::ranks::with_ranks;
use crate::toy::{TABLE, Toy, WIDTH, beside, bits, initial, plan, solo};
use reclora_comm::{Communicator, Solo};
use reclora_trainer::error::TrainerError;
use reclora_trainer::parameters::Table;
use reclora_trainer::telemetry::progress::{Event, Progress, Silent};
use reclora_trainer::training::checkpoint::is_whole;
use reclora_trainer::training::exchange::Held;
use reclora_trainer::training::{Objective, Selection, TrainPlan, Trained, train};

/// The same of ranks that hold some rows each.
fn bits_of_shares(of_ranks: &[Trained]) -> (Vec<u32>, String) {
    let table = of_ranks[0].share.table();
    let mut whole = vec![0; WIDTH];
    for trained in of_ranks {
        let Trained { parameters, share, .. } = trained;
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
        assert_eq!(beside(trained), beside(&of_ranks[0]));
    }
    (whole, beside(&of_ranks[0]))
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
            selection: Selection::Auc { patience: 2 },
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
        selection: Selection::Auc { patience: 9 },
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
fn the_best_epoch_is_selected_and_patience_ends_training() {
    let dir = tempfile::tempdir().unwrap();
    let plan = TrainPlan {
        selection: Selection::Auc { patience: 1 },
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
    let validation = toy.validate(held, &mut Solo).unwrap();
    assert_eq!(validation.auc, Some(best));
    assert_eq!(trained.valid_logits, validation.logits, "of the epoch that was selected");
    assert!(aucs.len() < 40 && aucs[aucs.len() - 1] <= best, "{aucs:?}");
}

/// D-2: the epoch of the least log loss is kept, whenever it was interrupted.
#[test]
fn d2_the_epoch_of_the_least_log_loss_is_selected() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |name: &str| TrainPlan {
        selection: Selection::LogLoss,
        epochs: 6,
        learning_rate: 1.0,
        decay: false,
        max_grad_norm: None,
        ..plan(&dir.path().join(name))
    };
    let trained = solo(&plan("whole"), u64::MAX).unwrap();
    let losses: Vec<f64> =
        trained.history.epochs.iter().filter_map(|epoch| epoch.valid_log_loss).collect();
    assert_eq!(losses.len(), 6, "there is no patience");
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let toy = Toy { left: AtomicU64::new(0), table: Table::default() };
    let held = Held { share: trained.share, values: &trained.parameters };
    let validation = toy.validate(held, &mut Solo).unwrap();
    assert_eq!(validation.log_loss, Some(least));
    assert_eq!(trained.valid_logits, validation.logits);
    for steps in [30, 90] {
        solo(&plan("interrupted"), steps).unwrap_err();
    }
    assert_eq!(bits(&solo(&plan("interrupted"), u64::MAX).unwrap()), bits(&trained));
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

/// Keeps what is told.
struct Told(Vec<Event>);

impl Progress for Told {
    fn emit(&mut self, event: Event) {
        self.0.push(event);
    }
}

#[test]
fn every_rank_tells_optimizer_steps_however_many_ranks_there_are() {
    let dir = tempfile::tempdir().unwrap();
    for world_size in [1, 2] {
        let plan = plan(&dir.path().join(world_size.to_string()));
        let of_ranks = with_ranks(world_size, |mut comm| {
            let toy = Toy { left: AtomicU64::new(u64::MAX), table: plan.table };
            let mut told = Told(Vec::new());
            let trained = train(&plan, &toy, initial, &mut comm, &mut told).unwrap();
            (trained.history, told.0)
        });
        for (history, told) in of_ranks {
            // 203 samples are seven batches of 32.
            assert_eq!(history.steps.len(), 42);
            let start = told.iter().find(|event| matches!(event, Event::Start { .. }));
            let Some(Event::Start { total, together, .. }) = start else { panic!("{told:?}") };
            assert_eq!((*total, *together), (42, true), "{world_size} ranks");
            let updates = told.iter().filter_map(|event| match event {
                Event::Update { done, note, .. } => Some((*done, note.as_str())),
                _ => None,
            });
            let (done, notes): (Vec<u64>, Vec<&str>) = updates.unzip();
            assert!(done.iter().copied().eq(1..=42), "{done:?}");
            assert!(notes.iter().all(|note| note.contains(", yes/no ")), "{notes:?}");
        }
    }
}

#[test]
fn worlds_that_do_not_fit_the_micro_batches_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plan = TrainPlan { micro_batches: 6, ..plan(dir.path()) };
    let error = solo(&plan, u64::MAX).unwrap_err().to_string();
    assert!(error.contains("tune.micro_batches") && error.contains("power of two"), "{error}");
}
