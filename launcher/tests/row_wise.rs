//! A CRM whose table is shared out over the ranks: the bytes of one that every rank has a copy of.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
#[path = "common/workers.rs"]
mod workers;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{copy_of, launch, small};
use workers::{Random, Victim, kill_at};

const ROW_WISE: [&str; 2] = ["--set", "runtime.embedding_sharding=row_wise"];

/// A run up to what the CRM is trained on.
struct Retrieved {
    _dir: tempfile::TempDir,
    config: String,
    run_dir: PathBuf,
}

impl Retrieved {
    fn new() -> Self {
        let (dir, config) = small();
        let run_dir = dir.path().join("retrieved");
        let run = Self { _dir: dir, config, run_dir };
        for stage in ["prepare", "embed", "retrieve", "count"] {
            launch(&run.args(&run.run_dir, stage, "2", &[])).assert().success();
        }
        run
    }

    fn args<'a>(
        &'a self,
        run_dir: &'a Path,
        stage: &'a str,
        ranks: &'a str,
        extra: &[&'a str],
    ) -> Vec<&'a str> {
        let run_dir = run_dir.to_str().unwrap();
        let args = ["run", &self.config, "--run-dir", run_dir, "--only", stage];
        [&args[..], &["--nproc-per-node", ranks], extra].concat()
    }

    /// Another run directory with the same stages done.
    fn copy(&self, name: &str) -> PathBuf {
        copy_of(&self.run_dir, name)
    }

    /// What a pretraining from the beginning to the end writes, and how long it takes.
    fn trained(&self, name: &str, ranks: &str, extra: &[&str]) -> ([Vec<u8>; 3], Duration) {
        let run_dir = self.copy(name);
        let started = Instant::now();
        launch(&self.args(&run_dir, "pretrain", ranks, extra)).assert().success();
        (written(&run_dir), started.elapsed())
    }
}

fn written(run_dir: &Path) -> [Vec<u8>; 3] {
    ["crm.safetensors", "early.safetensors", "history.json"]
        .map(|name| std::fs::read(run_dir.join("crm").join(name)).unwrap())
}

#[test]
fn d1_d2_rows_on_any_ranks_killed_or_not_train_the_same_crm() {
    let run = Retrieved::new();
    let holdout = ["--set", "crm.holdout=0.3"];
    let (expected, _) = run.trained("copies", "1", &holdout);
    let settings = [holdout, ROW_WISE].concat();
    let mut time = Duration::ZERO;
    for ranks in ["1", "2", "4"] {
        let (trained, took) = run.trained(&format!("{ranks} ranks"), ranks, &settings);
        assert!(trained == expected, "{ranks} ranks: other bytes");
        time = took;
    }
    let (mut random, mut killed) = (Random::from_clock(), 0);
    let mut run_dir = run.copy("killed");
    for attempt in 0..6 {
        let args = run.args(&run_dir, "pretrain", "4", &settings);
        let victim = if attempt % 2 == 0 { Victim::Rank } else { Victim::Launcher };
        let moment = time.mul_f64(random.unit());
        let what = format!("{victim:?} of 4 ranks killed after {moment:?} of {time:?}");
        if kill_at(&args, victim, moment, &mut random, &what) {
            killed += 1;
        } else {
            assert!(written(&run_dir) == expected, "killed {killed} times: other bytes");
            // It was over before: from the beginning again, and sooner.
            time /= 2;
            run_dir = run.copy(&format!("killed {attempt}"));
        }
    }
    // Another number of ranks takes over.
    launch(&run.args(&run_dir, "pretrain", "2", &settings)).assert().success();
    assert!(written(&run_dir) == expected, "killed {killed} times: other bytes");
    assert!(killed > 0, "nothing was still running when it was to be killed");
}
