//! Adds up the events of all ranks. Pure: no clock, no terminal.

use std::collections::BTreeMap;

use reclora_comm::Record;
use reclora_trainer::telemetry::progress::Event;

/// A piece of work that ranks share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// What is being done.
    pub name: String,
    /// Units over all ranks.
    pub total: u64,
    /// What a unit is.
    pub unit: String,
    /// Whether ranks do every unit together.
    together: bool,
    /// Units each rank has finished.
    done: Vec<u64>,
    started: Vec<bool>,
    finished: Vec<bool>,
    /// The latest remark.
    pub note: String,
}

impl Task {
    /// Units finished over all ranks, never more than the total. Of units that ranks do together, those that
    /// every rank has finished which began.
    pub fn done(&self) -> u64 {
        let began = self.done.iter().zip(&self.started).filter(|(_, started)| **started);
        let done = if self.together {
            began.map(|(done, _)| *done).min().unwrap_or(0)
        } else {
            began.fold(0_u64, |sum, (done, _)| sum.saturating_add(*done))
        };
        if self.total == 0 { done } else { done.min(self.total) }
    }

    /// Every rank that began has finished.
    pub fn is_finished(&self) -> bool {
        let mut ranks = self.started.iter().zip(&self.finished);
        self.started.contains(&true) && ranks.all(|(started, finished)| !started || *finished)
    }
}

/// What changed with an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A task began, on the first rank that said so.
    Started(Task),
    /// A task went on.
    Advanced(Task),
    /// A task ended on every rank.
    Finished(Task),
    /// Something to read, said for the first time.
    Message(String),
}

/// Largest number of tasks and messages kept of one worker group: a rank can't make the launcher grow.
const MAX_REMEMBERED: usize = 1000;

/// State of one worker group.
#[derive(Clone, Debug)]
pub struct Tracker {
    world_size: usize,
    tasks: Vec<Task>,
    current: Vec<Option<usize>>,
    messages: Vec<String>,
    errors: Vec<Option<String>>,
    records: Vec<Vec<Record>>,
}

impl Tracker {
    /// Nothing has happened yet.
    pub fn new(world_size: usize) -> Self {
        Self {
            world_size,
            tasks: Vec::new(),
            current: vec![None; world_size],
            messages: Vec::new(),
            errors: vec![None; world_size],
            records: vec![Vec::new(); world_size],
        }
    }

    /// Takes an event of a rank.
    pub fn apply(&mut self, rank: usize, event: Event) -> Option<Change> {
        if rank >= self.world_size {
            return None;
        }
        match event {
            Event::Start { task, total, unit, together } => {
                self.start(rank, &task, total, &unit, together)
            }
            Event::Update { task, done, note } => {
                let task = self.find(&task)?;
                let slot = task.done.get_mut(rank)?;
                *slot = done;
                if !note.is_empty() {
                    task.note = note;
                }
                Some(Change::Advanced(task.clone()))
            }
            Event::Finish { task } => {
                let task = self.find(&task)?;
                if task.is_finished() {
                    return None;
                }
                *task.finished.get_mut(rank)? = true;
                task.is_finished().then(|| Change::Finished(task.clone()))
            }
            Event::Message { text } => {
                if self.messages.contains(&text) || self.messages.len() >= MAX_REMEMBERED {
                    return None;
                }
                self.messages.push(text.clone());
                Some(Change::Message(text))
            }
            Event::Beat | Event::Measured { .. } | Event::Saved | Event::Said { .. } => None,
            Event::Collectives { records } => {
                *self.records.get_mut(rank)? = records;
                None
            }
            Event::Failed { error } => {
                *self.errors.get_mut(rank)? = Some(error);
                None
            }
        }
    }

    /// The error a rank reported before it ended.
    pub fn error(&self, rank: usize) -> Option<&str> {
        self.errors.get(rank)?.as_deref()
    }

    /// The last collectives that a failing rank reported.
    pub fn records(&self, rank: usize) -> &[Record] {
        self.records.get(rank).map_or(&[], Vec::as_slice)
    }

    /// What a rank was doing, in words.
    pub fn doing(&self, rank: usize) -> String {
        let index = self.current.get(rank).copied().flatten();
        let Some(task) = index.and_then(|index| self.tasks.get(index)) else {
            return "starting".into();
        };
        let done = task.done.get(rank).copied().unwrap_or(0);
        let verb = match task.finished.get(rank) {
            Some(true) => "finished ",
            _ => "",
        };
        format!("{verb}{}, {done} {} done on this rank", task.name, task.unit)
    }

    /// The task that was begun last.
    pub fn latest(&self) -> Option<&Task> {
        self.tasks.last()
    }

    /// Units done of each task: what restarts are compared by.
    pub fn high_water(&self) -> BTreeMap<String, u64> {
        self.tasks.iter().map(|task| (task.name.clone(), task.done())).collect()
    }

    fn start(
        &mut self,
        rank: usize,
        name: &str,
        total: u64,
        unit: &str,
        together: bool,
    ) -> Option<Change> {
        let index = self.tasks.iter().position(|task| task.name == name && !task.is_finished());
        let index = match index {
            Some(index) => index,
            None if self.tasks.len() >= MAX_REMEMBERED => return None,
            None => {
                self.tasks.push(Task {
                    name: name.to_owned(),
                    total,
                    unit: unit.to_owned(),
                    together,
                    done: vec![0; self.world_size],
                    started: vec![false; self.world_size],
                    finished: vec![false; self.world_size],
                    note: String::new(),
                });
                self.tasks.len() - 1
            }
        };
        *self.current.get_mut(rank)? = Some(index);
        let task = self.tasks.get_mut(index)?;
        let first = !task.started.contains(&true);
        *task.started.get_mut(rank)? = true;
        *task.finished.get_mut(rank)? = false;
        first.then(|| Change::Started(task.clone()))
    }

    /// The latest task of this name.
    fn find(&mut self, name: &str) -> Option<&mut Task> {
        self.tasks.iter_mut().rev().find(|task| task.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(task: &str, total: u64) -> Event {
        Event::Start { task: task.into(), total, unit: "samples".into(), together: false }
    }
    fn update(task: &str, done: u64) -> Event {
        Event::Update { task: task.into(), done, note: String::new() }
    }
    fn finish(task: &str) -> Event {
        Event::Finish { task: task.into() }
    }

    #[test]
    fn done_is_the_sum_over_ranks() {
        let mut t = Tracker::new(2);
        assert!(matches!(t.apply(0, start("tune", 10)), Some(Change::Started(_))));
        assert_eq!(t.apply(1, start("tune", 10)), None);
        t.apply(0, update("tune", 3));
        let Some(Change::Advanced(task)) = t.apply(1, update("tune", 4)) else { panic!() };
        assert_eq!(task.done(), 7);
        // Updates are absolute, and the total is a ceiling.
        t.apply(0, update("tune", 5));
        let Some(Change::Advanced(task)) = t.apply(1, update("tune", 50)) else { panic!() };
        assert_eq!(task.done(), 10);
        assert_eq!(t.apply(0, finish("tune")), None);
        assert!(matches!(t.apply(1, finish("tune")), Some(Change::Finished(_))));
        assert_eq!(t.apply(1, finish("tune")), None);
    }

    #[test]
    fn units_that_ranks_do_together_count_once() {
        for world_size in [1, 2, 4] {
            let mut t = Tracker::new(world_size);
            let steps = || Event::Start {
                task: "tune".into(),
                total: 64,
                unit: "steps".into(),
                together: true,
            };
            let starts: Vec<_> = (0..world_size).map(|rank| t.apply(rank, steps())).collect();
            let Some(Change::Started(task)) = &starts[0] else { panic!() };
            assert_eq!((task.total, starts.iter().flatten().count()), (64, 1));
            for step in [1, 2, 64] {
                let updates = (0..world_size).map(|rank| t.apply(rank, update("tune", step)));
                let Some(Some(Change::Advanced(task))) = updates.last() else { panic!() };
                assert_eq!(task.done(), step, "{world_size} ranks");
            }
            // One is ahead: the step is not over.
            t.apply(0, update("tune", 63));
            assert_eq!(t.high_water()["tune"], 63);
        }
    }

    #[test]
    fn a_task_may_come_twice() {
        let mut t = Tracker::new(1);
        for _ in 0..2 {
            assert!(matches!(t.apply(0, start("valid", 5)), Some(Change::Started(_))));
            t.apply(0, update("valid", 5));
            assert!(matches!(t.apply(0, finish("valid")), Some(Change::Finished(_))));
        }
    }

    #[test]
    fn messages_are_said_once_and_errors_kept() {
        let mut t = Tracker::new(2);
        let message = || Event::Message { text: "hello".into() };
        assert_eq!(t.apply(0, message()), Some(Change::Message("hello".into())));
        assert_eq!(t.apply(1, message()), None);
        t.apply(1, Event::Failed { error: "no".into() });
        assert_eq!(t.error(1), Some("no"));
        assert_eq!(t.error(0), None);
    }

    #[test]
    fn nonsense_is_ignored() {
        let mut t = Tracker::new(1);
        assert_eq!(t.apply(7, start("x", 1)), None);
        assert_eq!(t.apply(0, update("unknown", 1)), None);
        assert_eq!(t.apply(0, finish("unknown")), None);
        assert_eq!(t.doing(0), "starting");
        t.apply(0, start("x", 0));
        t.apply(0, update("x", u64::MAX));
        assert_eq!(t.high_water().get("x"), Some(&u64::MAX));
    }

    #[test]
    fn doing_says_task_and_units() {
        let mut t = Tracker::new(1);
        t.apply(0, start("tune RecLoRA", 9));
        t.apply(0, update("tune RecLoRA", 4));
        assert_eq!(t.doing(0), "tune RecLoRA, 4 samples done on this rank");
    }
}
