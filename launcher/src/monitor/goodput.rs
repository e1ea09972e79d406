//! What the time of a run goes to, kept by the launcher that has rank 0 and written down with every sample: it holds
//! however few of them are left, and whoever reads them.

use super::sample::{Goodput, Sample};

/// Adds up.
#[derive(Debug, Default)]
pub struct Account {
    sum: Goodput,
    /// Time of the last sample.
    last: Option<f64>,
    /// What is to be added when work begins: a launcher that finds everything done does not prolong the run.
    absence: Option<Absence>,
    /// The stage and the task that [`Goodput::reached`] is of.
    key: (String, String),
    at_work: Option<Mark>,
}

/// The time between two launchers.
#[derive(Debug)]
struct Absence {
    /// All of it.
    wall: f64,
    /// Of which no launcher was there.
    away: f64,
}

/// How far a process was.
#[derive(Debug)]
struct Mark {
    pid: u32,
    time: f64,
    done: u64,
}

impl Account {
    /// Goes on after the last sample of an earlier launcher. `seen` is when any launcher of the run, those of parts
    /// included, was seen last; `now` is when this one begins.
    pub fn after(before: &Sample, seen: f64, now: f64) -> Self {
        let sum = before.goodput.clone();
        let wall = (now - before.time).max(0.0);
        let absence = Some(Absence { wall, away: (now - seen.max(before.time)).max(0.0) });
        let task = before.ranks.iter().min_by_key(|rank| rank.rank).map(|rank| rank.task.clone());
        let key = (before.stage.clone(), task.unwrap_or_default());
        Self { sum, last: Some(now), absence, key, at_work: None }
    }

    /// Takes the next sample, and notes in it what there is so far.
    pub fn take(&mut self, sample: &mut Sample) {
        if sample.ranks.is_empty() && self.absence.is_some() {
            sample.goodput = self.sum.clone();
            return;
        }
        if let Some(Absence { wall, away }) = self.absence.take() {
            self.sum.wall += wall;
            self.sum.away += away;
        }
        let last = *self.last.get_or_insert(sample.time);
        self.sum.wall += (sample.time - last).max(0.0);
        self.last = Some(sample.time);
        match sample.ranks.iter().min_by_key(|rank| rank.rank) {
            // Between worker groups; the task may be gone on with.
            None => self.at_work = None,
            Some(rank) => {
                if (&self.key.0, &self.key.1) != (&sample.stage, &rank.task) {
                    self.key = (sample.stage.clone(), rank.task.clone());
                    self.sum.reached = 0;
                    self.at_work = None;
                }
                let began = (sample.time - rank.task_seconds).max(last);
                let same = self.at_work.take().filter(|mark| mark.pid == rank.pid);
                let mut mark = same.unwrap_or(Mark { pid: rank.pid, time: began, done: 0 });
                if rank.done > mark.done {
                    let new = rank.done.saturating_sub(mark.done.max(self.sum.reached));
                    let share = new as f64 / (rank.done - mark.done) as f64;
                    let seconds = (sample.time - mark.time).max(0.0);
                    self.sum.progress += share * seconds;
                    self.sum.repeated += (1.0 - share) * seconds;
                    self.sum.reached = rank.done.max(self.sum.reached);
                    (mark.time, mark.done) = (sample.time, rank.done);
                }
                self.at_work = Some(mark);
            }
        }
        sample.goodput = self.sum.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::sample::Rank;

    fn sample(time: f64, pid: u32, done: u64) -> Sample {
        let rank = Rank { pid, done, task: "tune".into(), ..Rank::default() };
        Sample { time, stage: "tune".into(), ranks: vec![rank], ..Sample::default() }
    }

    #[test]
    fn what_the_time_of_a_run_goes_to() {
        let mut account = Account::default();
        let mut last = Sample::default();
        let mut take = |account: &mut Account, time: f64, pid: u32, done: u64| {
            last = sample(time, pid, done);
            account.take(&mut last);
            last.clone()
        };
        // Ten seconds of work, with three in which nobody could look.
        for second in [0, 1, 2, 3, 4, 5, 9, 10_u32] {
            take(&mut account, second.into(), 1, 10 * u64::from(second));
        }
        // The worker group begins again, from unit 60, and comes to 120 after two seconds of loading.
        take(&mut account, 11.0, 2, 0);
        take(&mut account, 12.0, 2, 0);
        let mut back = sample(13.0, 2, 60);
        account.take(&mut back);
        let before = (1..=6_u32).map(|second| {
            take(&mut account, 13.0 + f64::from(second), 2, 60 + 10 * u64::from(second))
        });
        let before = before.last().unwrap();
        let Goodput { wall, progress, repeated, away, reached } = before.goodput.clone();
        assert_eq!((wall, progress, away, reached), (19.0, 12.0, 0.0, 120));
        // Loading looks like work done again.
        assert_eq!(repeated, 6.0);
        // The launcher is gone; another begins after half a minute, and must do ten units again.
        let mut account = Account::after(&before, 0.0, 49.0);
        let mut first = sample(50.0, 3, 0);
        first.ranks[0].task_seconds = 0.5;
        account.take(&mut first);
        for second in 1..=3_u32 {
            first = sample(50.0 + f64::from(second), 3, 110 + 10 * u64::from(second - 1));
            account.take(&mut first);
        }
        let Goodput { wall, progress, repeated, away, reached } = first.goodput.clone();
        assert_eq!((wall, away, reached), (53.0, 30.0, 130));
        assert_eq!((progress, repeated), (13.0, 8.5));
        assert!(first.goodput.text().starts_with("goodput 25 % of 53 s: 16 % done again, 57 %"));
        assert_eq!(Goodput::default().text(), "");
        // Jobs that did parts meanwhile were launchers, too.
        let mut account = Account::after(&before, 39.0, 49.0);
        // One that finds nothing to do changes nothing.
        let mut idle = Sample { time: 50.0, ..Sample::default() };
        account.take(&mut idle);
        assert_eq!(idle.goodput, before.goodput);
        let mut first = sample(51.0, 3, 0);
        account.take(&mut first);
        assert_eq!((first.goodput.wall, first.goodput.away), (51.0, 10.0));
    }

    #[test]
    fn another_task_begins_at_nothing() {
        let mut account = Account::default();
        account.take(&mut sample(0.0, 1, 0));
        account.take(&mut sample(5.0, 1, 50));
        let mut other = sample(6.0, 2, 10);
        other.stage = "evaluate".into();
        other.ranks[0].task_seconds = 0.5;
        account.take(&mut other);
        assert_eq!((other.goodput.progress, other.goodput.repeated), (5.5, 0.0));
    }
}
