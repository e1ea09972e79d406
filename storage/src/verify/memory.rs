//! What a check has done, for the case that it is interrupted: a line per file, appended.
//!
//! A line that was cut off by a kill is no line. Nothing depends on this file: without it, everything
//! is read again.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::Task;
use super::check::Whole;

/// Name of the file. It is there only while a check runs, or after one that was interrupted.
pub const STATE: &str = ".verify.jsonl";

/// A file that was whole.
#[derive(Serialize, Deserialize)]
struct Line {
    path: PathBuf,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    xxh3: String,
}

/// What is known of earlier, and where more is written.
pub(super) struct Memory {
    path: Option<PathBuf>,
    known: HashMap<PathBuf, Line>,
    file: Mutex<Option<File>>,
    problem: Mutex<Option<String>>,
}

impl Memory {
    /// Takes over what an interrupted check left at `path`, unless `fresh`.
    pub(super) fn open(path: Option<&Path>, fresh: bool) -> Self {
        let mut memory = Self {
            path: path.map(Path::to_path_buf),
            known: HashMap::new(),
            file: Mutex::new(None),
            problem: Mutex::new(None),
        };
        let Some(path) = path else { return memory };
        if !fresh {
            let text = fs::read(path).unwrap_or_default();
            let lines = text.split(|byte| *byte == b'\n');
            let lines = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
            memory.known = lines.map(|line| (line.path.clone(), line)).collect();
        }
        match OpenOptions::new().create(true).append(true).open(path) {
            Ok(file) => {
                let cleared = if fresh { file.set_len(0) } else { Ok(()) };
                // What was cut off ends here, so that it does not spoil the next line.
                let begun = cleared.and_then(|()| (&file).write_all(b"\n"));
                memory.file = Mutex::new(Some(file));
                memory.note(begun);
            }
            Err(error) => memory.note(Err(error)),
        }
        memory
    }

    fn note(&self, result: std::io::Result<()>) {
        if let (Err(error), Some(path)) = (result, &self.path) {
            let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
            problem.get_or_insert_with(|| format!("{} cannot be written: {error}", path.display()));
        }
    }

    /// Whether an interrupted check found this very file whole.
    pub(super) fn knows(&self, task: &Task) -> bool {
        let Some(line) = self.known.get(&task.path) else { return false };
        let modified = fs::metadata(&task.path).ok().and_then(|meta| modified(&meta));
        line.bytes == task.bytes
            && Some(line.modified) == modified
            && task.xxh3.as_ref().is_none_or(|expected| *expected == line.xxh3)
    }

    /// Writes down a file that is whole.
    pub(super) fn add(&self, task: &Task, file: &Whole) {
        let Some(modified) = modified(&file.metadata) else { return };
        let (path, xxh3) = (task.path.clone(), file.xxh3.clone());
        let line = Line { path, bytes: task.bytes, modified, xxh3 };
        let Ok(mut text) = serde_json::to_vec(&line) else { return };
        text.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = file.as_mut() {
            self.note(file.write_all(&text));
        }
    }

    /// Forgets everything: the check has ended. Returns why an interruption would have been costly.
    pub(super) fn finish(self) -> Option<String> {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
        self.problem.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

fn modified(meta: &Metadata) -> Option<u64> {
    let since = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}
