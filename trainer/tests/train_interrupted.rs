//! Training that is interrupted, paused, or loses a rank: it goes on to the same bits (D-2).

use std::sync::atomic::AtomicU64;

use crate::ranks::with_ranks;
use crate::toy::{Toy, bits, initial, plan, solo};
use reclora_comm::Communicator;
use reclora_trainer::error::TrainerError;
use reclora_trainer::telemetry::progress::{Event, Progress, Silent};
use reclora_trainer::training::{TrainPlan, train};

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
