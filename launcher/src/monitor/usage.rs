//! What each stage of a run used, of all that was seen of it.

use std::path::Path;

use super::gpu::UTILIZATION;
use super::sample::{Goodput, Sample};
use super::store;
use super::window::between;

/// A stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageUse {
    /// Its name.
    pub stage: String,
    /// Share of the ranks' time per phase, in the order of `Phase::ALL`.
    pub phases: [f64; 5],
    /// Cores in use by a rank, on average.
    pub cores: f64,
    /// Mean utilisation of the GPUs that ranks used, in per cent.
    pub gpu: Option<f64>,
}

/// Sums from which means are made.
#[derive(Debug, Default)]
struct Sums {
    stage: String,
    /// Seconds that ranks were seen at work, all of them together.
    rank_seconds: f64,
    phases: [f64; 5],
    cpu: f64,
    gpu: f64,
    gpus: usize,
}

/// The stages, in the order in which they began, and what the run's time went to. A file that can't be read is one
/// that was never written: the report does without.
pub fn of(run_dir: &Path) -> (Vec<StageUse>, Goodput) {
    let (mut all, mut goodput) = (Vec::new(), Goodput::default());
    for name in store::names(run_dir) {
        let mut before: Option<Sample> = None;
        let read = store::each(run_dir, &name, |sample| {
            if let Some(before) = before.take().filter(|before| before.stage == sample.stage) {
                add(&mut all, &before, &sample);
            }
            if name == store::LEADER {
                goodput = sample.goodput.clone();
            }
            before = Some(sample);
        });
        // What was read before an error counts.
        let _ = read;
    }
    (all.iter().filter_map(Sums::means).collect(), goodput)
}

fn add(all: &mut Vec<Sums>, before: &Sample, after: &Sample) {
    let seconds = after.time - before.time;
    if seconds <= 0.0 || after.ranks.is_empty() {
        return;
    }
    let place = all.iter().position(|sums| sums.stage == after.stage).unwrap_or_else(|| {
        all.push(Sums { stage: after.stage.clone(), ..Sums::default() });
        all.len() - 1
    });
    let sums = &mut all[place];
    for rank in &after.ranks {
        let same = |other: &&super::sample::Rank| other.pid == rank.pid && other.rank == rank.rank;
        let Some(earlier) = before.ranks.iter().find(same) else { continue };
        let rates = between(earlier, rank, seconds);
        sums.rank_seconds += seconds;
        sums.cpu += seconds * rates.cpu;
        for (sum, share) in sums.phases.iter_mut().zip(rates.phases) {
            *sum += seconds * share;
        }
        let used =
            after.gpus.iter().filter(|gpu| gpu.processes.iter().any(|(pid, _)| *pid == rank.pid));
        for utilization in used.filter_map(|gpu| gpu.value(UTILIZATION)) {
            sums.gpu += utilization;
            sums.gpus += 1;
        }
    }
}

impl Sums {
    fn means(&self) -> Option<StageUse> {
        (self.rank_seconds > 0.0).then(|| StageUse {
            stage: self.stage.clone(),
            phases: self.phases.map(|seconds| seconds / self.rank_seconds),
            cores: self.cpu / self.rank_seconds,
            gpu: (self.gpus > 0).then(|| self.gpu / self.gpus as f64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::sample::{Process, Rank};

    #[test]
    fn means_of_what_ranks_did() {
        let run = tempfile::tempdir().unwrap();
        let mut writer = store::Writer::open(run.path(), store::LEADER).unwrap();
        for time in 0..=10_u32 {
            let rank = |rank: usize| {
                let mut rank = Rank { rank, pid: 7 + rank as u32, ..Rank::default() };
                rank.measures.seconds[1] = 0.5 * f64::from(time);
                rank.process = Some(Process { cpu: 0.75 * f64::from(time), ..Process::default() });
                rank
            };
            let stage = if time < 6 { "tune" } else { "evaluate" };
            let ranks = vec![rank(0), rank(1)];
            let mut sample = Sample { time: time.into(), ranks, ..Sample::default() };
            sample.stage = stage.into();
            sample.goodput.wall = time.into();
            writer.write(&sample).unwrap();
        }
        let (used, goodput) = of(run.path());
        let phases = [0.0, 0.5, 0.0, 0.0, 0.0];
        let of = |stage: &str| StageUse { stage: stage.into(), phases, cores: 0.75, gpu: None };
        assert_eq!(used, [of("tune"), of("evaluate")]);
        assert_eq!(goodput.wall, 10.0);
    }
}
