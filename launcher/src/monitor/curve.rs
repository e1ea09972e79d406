//! The loss of the task at work, from its beginning.

use serde::Serialize;

use super::sample::Sample;

/// Points that are kept; when there are more, every other is left out.
const MAX_POINTS: usize = 600;

/// A loss per optimizer step, of the task at work or of the last that had one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curve {
    /// The task.
    pub task: String,
    /// Steps that were seen of it, and the loss.
    pub points: Vec<(u64, f64)>,
    #[serde(skip)]
    stride: u64,
    #[serde(skip)]
    pid: u32,
    /// What is to be added to the steps of the process: it may have done others before, and others before it.
    #[serde(skip)]
    offset: i64,
}

impl Curve {
    /// Takes the next sample of the node that has rank 0. One that was taken already changes nothing.
    pub fn take(&mut self, sample: &Sample) {
        let Some(rank) = sample.ranks.iter().min_by_key(|rank| rank.rank) else { return };
        let Some(loss) = rank.measures.loss else { return };
        let steps = rank.measures.steps as i64;
        let last = self.points.last().map_or(0, |(step, _)| *step);
        if self.task != rank.task {
            // The counters and the loss are the process's: until it steps on they are of its last task.
            let before = if self.pid == rank.pid { -steps } else { 0 };
            let task = rank.task.clone();
            *self = Self { task, stride: 1, pid: rank.pid, offset: before, points: Vec::new() };
        } else if self.pid != rank.pid {
            (self.pid, self.offset) = (rank.pid, last as i64);
        }
        let Ok(step) = u64::try_from(steps + self.offset) else { return };
        let last = self.points.last().map_or(0, |(step, _)| *step);
        if step == 0 || step < last + self.stride {
            return;
        }
        self.points.push((step, loss));
        if self.points.len() > MAX_POINTS {
            self.stride *= 2;
            let mut place = 0_usize;
            self.points.retain(|_| {
                place += 1;
                place % 2 == 1
            });
        }
    }

    /// The losses that are drawn, from the lowest to one that all but a few are below: those of the first steps
    /// would leave no room for the rest.
    pub fn range(&self) -> (f64, f64) {
        let mut losses: Vec<f64> = self.points.iter().map(|(_, loss)| *loss).collect();
        losses.sort_by(f64::total_cmp);
        let high = losses.get(losses.len() * 97 / 100).or(losses.last());
        (losses.first().copied().unwrap_or(0.0), high.copied().unwrap_or(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::sample::Rank;

    fn sample(task: &str, pid: u32, steps: u64, loss: f64) -> Sample {
        let measures = reclora_trainer::telemetry::measure::Measures {
            steps,
            loss: Some(loss),
            ..Default::default()
        };
        let rank = Rank { pid, task: task.into(), measures, ..Rank::default() };
        Sample { ranks: vec![rank], ..Sample::default() }
    }

    #[test]
    fn a_long_curve_gets_thinner_and_goes_on_after_a_restart() {
        let mut curve = Curve::default();
        for step in 1..=5000_u64 {
            curve.take(&sample("tune", 1, step, 0.5));
            curve.take(&sample("tune", 1, step, 0.5));
        }
        let count = curve.points.len();
        assert!(count <= MAX_POINTS && count > MAX_POINTS / 3, "{count}");
        assert_eq!(curve.points[0].0, 1);
        let last = curve.points.last().unwrap().0;
        curve.take(&sample("tune", 2, 100, 0.5));
        assert_eq!(curve.points.last().unwrap().0, last + 100);
    }

    #[test]
    fn the_last_task_of_a_process_is_not_the_beginning_of_the_next() {
        let mut curve = Curve::default();
        curve.take(&sample("tune RecLoRA", 1, 40, 0.1));
        curve.take(&sample("tune plain LoRA", 1, 40, 0.1));
        assert!(curve.points.is_empty());
        curve.take(&sample("tune plain LoRA", 1, 42, 2.0));
        assert_eq!(curve.points, [(2, 2.0)]);
    }

    #[test]
    fn the_first_losses_do_not_flatten_the_rest() {
        let mut curve = Curve::default();
        for step in 1..=100 {
            curve.take(&sample(
                "tune",
                1,
                step,
                if step < 3 { 9.0 } else { 1.0 + step as f64 / 100.0 },
            ));
        }
        assert_eq!(curve.range(), (1.03, 2.0));
        assert_eq!(Curve::default().range(), (0.0, 0.0));
    }
}
