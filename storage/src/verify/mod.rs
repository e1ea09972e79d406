//! Reading everything again: is each file still what was written? (S-1)
//!
//! [`Work::of`] finds what there is to check (a run, a directory, a file) without reading content;
//! [`Work::run`] reads every file once, several at a time. Files are read, not mapped: a file that is
//! cut short meanwhile is a finding, not a fault. An interrupted check is continued by the next one;
//! one that ends is forgotten, so that "all is well" never rests on what was read another day.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Result;

mod check;
mod collect;
mod memory;

use memory::Memory;
pub use memory::STATE;

/// A file that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// The stage that writes it, where that is known.
    pub stage: Option<String>,
    /// Whether no run wrote it: then nothing is rebuilt, it is in the wrong place.
    pub foreign: bool,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Files that are as they were written.
    pub whole: u64,
    /// Those of them that an interrupted check had read.
    pub remembered: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Files that are not, by path.
    pub damaged: Vec<Finding>,
    /// Directories of stages that have not finished: their files count for nothing yet.
    pub unfinished: Vec<PathBuf>,
    /// What was made from something else than what is there now, in words. The next run makes it
    /// again.
    pub outdated: Vec<String>,
    /// Why an interruption would have lost what was done, where that is so.
    pub forgetful: Option<String>,
}

/// Answers for files that this crate does not know: `None` for a file of no known kind.
pub type Other<'a> = &'a (dyn Fn(&Path) -> Option<Result<(), String>> + Sync);

/// A file to be read.
#[derive(Clone, Debug)]
struct Task {
    path: PathBuf,
    /// Size now.
    bytes: u64,
    /// Hash by the manifest.
    xxh3: Option<String>,
    stage: Option<String>,
}

/// What there is to check.
#[derive(Debug, Default)]
pub struct Work {
    tasks: Vec<Task>,
    damaged: Vec<Finding>,
    unfinished: Vec<PathBuf>,
    /// Files that were checked by being read here: manifests.
    manifests: u64,
    /// Content hash of each stage, and what each was made from.
    hashes: BTreeMap<String, String>,
    inputs: Vec<(String, BTreeMap<String, String>)>,
    /// Where an interruption is remembered; `None` for a single file.
    memory: Option<PathBuf>,
}

impl Work {
    /// Finds what there is at `path`: a run, a directory of a run, or a file.
    ///
    /// # Errors
    /// It does not exist or cannot be listed.
    pub fn of(path: &Path) -> Result<Self> {
        collect::collect(path)
    }

    /// Whether there is nothing that could be checked.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
            && self.damaged.is_empty()
            && self.unfinished.is_empty()
            && self.manifests == 0
    }

    /// Bytes there are to read.
    pub fn bytes(&self) -> u64 {
        self.tasks.iter().map(|task| task.bytes).sum()
    }

    /// Checks everything with `threads` threads. `advance` is told of bytes that are done. `fresh`
    /// takes nothing over from an interrupted check.
    pub fn run(
        self,
        threads: usize,
        fresh: bool,
        other: Other<'_>,
        advance: &(dyn Fn(u64) + Sync),
    ) -> Report {
        let memory = Memory::open(self.memory.as_deref(), fresh);
        let (next, report) = (AtomicUsize::new(0), Mutex::new(Report::default()));
        std::thread::scope(|scope| {
            let work = || {
                while let Some(task) = self.tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check_task(task, &memory, other, advance, &report);
                }
            };
            // This thread works too, so that a system without room for another is slower, not stuck.
            for _ in 1..threads.min(self.tasks.len()) {
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        let mut report = report.into_inner().unwrap_or_else(|e| e.into_inner());
        report.outdated = self.outdated();
        report.whole += self.manifests;
        report.damaged.extend(self.damaged);
        report.damaged.sort_by(|a, b| a.path.cmp(&b.path));
        report.unfinished = self.unfinished;
        report.forgetful = memory.finish();
        report
    }

    /// Stages whose inputs are no longer what they were made from.
    fn outdated(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (stage, inputs) in &self.inputs {
            for (input, hash) in inputs {
                if self.hashes.get(input).is_some_and(|now| now != hash) {
                    lines.push(format!("{stage} was made from another {input} than is there now"));
                }
            }
        }
        lines
    }
}

/// Checks a file and adds what was found to the report.
fn check_task(
    task: &Task,
    memory: &Memory,
    other: Other<'_>,
    advance: &(dyn Fn(u64) + Sync),
    report: &Mutex<Report>,
) {
    let remembered = memory.knows(task);
    let found = match remembered {
        true => {
            advance(task.bytes);
            Ok(())
        }
        false => check::check(task, other, advance).map(|file| memory.add(task, &file)),
    };
    let mut report = report.lock().unwrap_or_else(|e| e.into_inner());
    report.remembered += u64::from(remembered);
    report.bytes += if remembered { 0 } else { task.bytes };
    match found {
        Ok(()) => report.whole += 1,
        Err(problem) => report.damaged.push(Finding {
            path: task.path.clone(),
            problem,
            stage: task.stage.clone(),
            foreign: false,
        }),
    }
}
