//! A run from its beginning: its loss, and what its time went to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::sample::{Rank, Sample};

/// Points of the loss that are kept; when there are more, every other is left out.
const MAX_POINTS: usize = 600;
/// Seconds between samples after which nobody was there to look, unless samples were that far apart before.
const AWAY: f64 = 10.0;

/// What is kept of all samples of the node that has rank 0, from the first on.
#[derive(Clone, Debug, Default, Serialize)]
pub struct History {
    /// The loss of the task at work, or of the last that had one.
    pub loss: Curve,
    /// What the time went to.
    pub goodput: Goodput,
    #[serde(skip)]
    last: Option<(f64, f64)>,
    #[serde(skip)]
    first: f64,
    #[serde(skip)]
    at_work: Option<Mark>,
    /// Units that have been reached of every task of every stage.
    #[serde(skip)]
    reached: BTreeMap<(String, String), u64>,
}

/// A loss per optimizer step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curve {
    /// The task.
    pub task: String,
    /// Steps of the process that computed it, and the loss.
    pub points: Vec<(u64, f64)>,
    #[serde(skip)]
    stride: u64,
    #[serde(skip)]
    pid: u32,
    /// Steps of earlier processes of the same task.
    #[serde(skip)]
    before: u64,
}

/// Seconds of a run, restarts included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Goodput {
    /// From the first sample to the last.
    pub wall: f64,
    /// In which a task went on to where it had not been before. Of every task the last second or less is missing.
    pub progress: f64,
    /// In which work was done again that an earlier attempt had done already.
    pub repeated: f64,
    /// In which no launcher was there.
    pub away: f64,
}

impl Goodput {
    /// Share of the time that went into progress; `None` before there is any time.
    pub fn share(&self) -> Option<f64> {
        (self.wall > 0.0).then(|| self.progress / self.wall)
    }

    /// For a person with little room; empty before there is anything to say.
    pub fn short(&self) -> String {
        let share = self.share();
        share.map_or(String::new(), |share| {
            format!("goodput {:.0} % of {:.0} s", 100.0 * share, self.wall)
        })
    }

    /// For a person; empty before there is anything to say.
    pub fn text(&self) -> String {
        if self.share().is_none() {
            return String::new();
        }
        let percent = |seconds: f64| 100.0 * seconds / self.wall;
        format!(
            "{}: {:.0} % done again, {:.0} % without a launcher, {:.0} % in starting, saving and \
             between tasks",
            self.short(),
            percent(self.repeated),
            percent(self.away),
            percent((self.wall - self.progress - self.repeated - self.away).max(0.0))
        )
    }
}

/// How far a process was.
#[derive(Clone, Debug)]
struct Mark {
    pid: u32,
    key: (String, String),
    time: f64,
    done: u64,
}

impl History {
    /// Takes the next sample. One that is not newer than the last is known already.
    pub fn take(&mut self, sample: &Sample) {
        let Some((last, gap)) = self.last else {
            self.last = Some((sample.time, 0.0));
            self.first = sample.time;
            self.follow(sample);
            return;
        };
        let seconds = sample.time - last;
        if seconds <= 0.0 {
            return;
        }
        self.goodput.wall += seconds;
        // Files of long runs are thinned: their samples are evenly far apart.
        let is_away = seconds > AWAY.max(4.0 * gap);
        if is_away {
            self.goodput.away += seconds;
            self.at_work = None;
        }
        // The next sample tells whether this was an absence or a file that is thinner from here on.
        self.last = Some((sample.time, if is_away { seconds / 4.0 } else { seconds }));
        self.follow(sample);
    }

    fn follow(&mut self, sample: &Sample) {
        let Some(rank) = sample.ranks.iter().min_by_key(|rank| rank.rank) else {
            self.at_work = None;
            return;
        };
        self.loss.take(rank);
        let key = (sample.stage.clone(), rank.task.clone());
        let same = |mark: &Mark| mark.pid == rank.pid && mark.key == key;
        let mark = self.at_work.take().filter(same);
        let began = (sample.time - rank.task_seconds).max(self.first);
        let mut mark = mark.unwrap_or(Mark { pid: rank.pid, key, time: began, done: 0 });
        if rank.done > mark.done {
            let reached = self.reached.entry(mark.key.clone()).or_default();
            let new = rank.done.saturating_sub(mark.done.max(*reached));
            let share = new as f64 / (rank.done - mark.done) as f64;
            let seconds = sample.time - mark.time;
            self.goodput.progress += share * seconds;
            self.goodput.repeated += (1.0 - share) * seconds;
            *reached = rank.done.max(*reached);
            (mark.time, mark.done) = (sample.time, rank.done);
        }
        self.at_work = Some(mark);
    }
}

impl Curve {
    /// The losses that are drawn, from the lowest to one that all but a few are below: those of the first steps
    /// would leave no room for the rest.
    pub fn range(&self) -> (f64, f64) {
        let mut losses: Vec<f64> = self.points.iter().map(|(_, loss)| *loss).collect();
        losses.sort_by(f64::total_cmp);
        let high = losses.get(losses.len() * 97 / 100).or(losses.last());
        (losses.first().copied().unwrap_or(0.0), high.copied().unwrap_or(0.0))
    }

    fn take(&mut self, rank: &Rank) {
        let Some(loss) = rank.measures.loss else { return };
        if self.task != rank.task {
            *self = Self { task: rank.task.clone(), stride: 1, pid: rank.pid, ..Self::default() };
        }
        let last = self.points.last().map_or(0, |(step, _)| *step);
        if self.pid != rank.pid {
            (self.pid, self.before) = (rank.pid, last);
        }
        let step = self.before + rank.measures.steps;
        if step < last + self.stride || rank.measures.steps == 0 {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(time: f64, pid: u32, done: u64) -> Sample {
        let measures = reclora_trainer::measure::Measures {
            steps: done,
            loss: Some(0.5),
            ..Default::default()
        };
        let rank = Rank { pid, done, task: "tune".into(), measures, ..Rank::default() };
        Sample { time, stage: "tune".into(), ranks: vec![rank], ..Sample::default() }
    }

    #[test]
    fn what_the_time_of_a_run_went_to() {
        let mut history = History::default();
        // Ten seconds of work; what was done since unit 60 is lost with the process.
        for second in 0..=10 {
            history.take(&sample(f64::from(second), 1, 10 * second as u64));
        }
        assert_eq!(history.goodput.share(), Some(1.0));
        // Half a minute later another goes on from 60, after two seconds of beginning.
        history.take(&sample(40.0, 2, 0));
        history.take(&sample(41.0, 2, 0));
        history.take(&sample(42.0, 2, 60));
        for second in 1..=10 {
            history.take(&sample(42.0 + f64::from(second), 2, 60 + 10 * second as u64));
        }
        // To come to unit 60 took until 42 s; from there to unit 100 it was done before.
        let Goodput { wall, progress, repeated, away } = history.goodput;
        assert_eq!((wall, away), (52.0, 30.0));
        assert_eq!((progress, repeated), (16.0, 6.0));
        // A sample that was seen already counts once.
        history.take(&sample(52.0, 2, 160));
        assert_eq!(history.goodput.wall, 52.0);
        assert!(history.goodput.text().starts_with("goodput 31 % of 52 s"));
        assert_eq!(Goodput::default().text(), "");
    }

    #[test]
    fn a_thinned_file_is_not_taken_for_absence() {
        let mut history = History::default();
        for time in 0..100_u32 {
            history.take(&sample(16.0 * f64::from(time), 1, time.into()));
        }
        assert!(history.goodput.away <= 16.0, "{:?}", history.goodput);
    }

    #[test]
    fn a_long_curve_gets_thinner_and_goes_on_after_a_restart() {
        let mut history = History::default();
        for step in 1..=5000_u64 {
            history.take(&sample(step as f64, 1, step));
        }
        let points = &history.loss.points;
        assert!(points.len() <= MAX_POINTS && points.len() > MAX_POINTS / 3, "{}", points.len());
        assert_eq!(points[0].0, 1);
        let last = points.last().unwrap().0;
        history.take(&sample(6000.0, 2, 100));
        assert_eq!(history.loss.points.last().unwrap().0, last + 100);
    }
}
