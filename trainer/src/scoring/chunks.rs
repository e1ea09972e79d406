//! Scoring work cut into fixed chunks of samples, spread over ranks, each done exactly once (D-3).
//!
//! A chunk is a range of sample indices that does not depend on the number of ranks, and its result is
//! one file, visible only when complete. Whatever is killed, the rerun keeps the files that are there
//! and verifies, and does the rest: the bytes are those of an undisturbed run.
//!
//! Where a chunk takes long, what is done of it is told while it is worked on ([`Within`]).

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use reclora_comm::Communicator;
use reclora_storage::loader::{Prefetch, Stalls};
use reclora_storage::shard::{Column, Shard, write_shard};

use crate::error::{Result, TrainerError};
use crate::telemetry::progress::{Event, Progress};

/// Directory of the chunk files in a stage's directory.
pub const PARTS: &str = "parts";
/// Between two tellings of what is done within a chunk.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// One of several shares of a stage's chunks, each done by a launcher of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which, from 0.
    pub index: u64,
    /// Of how many.
    pub of: u64,
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').map(|(index, of)| (index.parse(), of.parse()));
        match numbers {
            Some((Ok(index), Ok(of))) if index < of && of <= Self::MOST => Ok(Self { index, of }),
            _ => Err(format!("write INDEX/COUNT, INDEX from 0, COUNT at most {}: 0/4", Self::MOST)),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl Part {
    /// Most parts of a stage.
    pub const MOST: u64 = 10_000;
    /// All there is.
    pub const ALL: Self = Self { index: 0, of: 1 };
}

/// `range` of sample indices, cut into pieces of `size`, whose results are files of shard kind `name`.
#[derive(Clone, Debug)]
pub struct Chunks {
    name: String,
    dir: PathBuf,
    range: Range<u64>,
    size: u64,
    part: Part,
}

/// What is done within the chunk that is worked on, told at most once a second. Nothing that is computed
/// depends on it.
pub struct Within<'a> {
    task: &'a str,
    /// Passes through a model that each sample takes.
    passes: u64,
    /// Samples of the chunks before.
    before: AtomicU64,
    passed: AtomicU64,
    telling: Mutex<Telling<'a>>,
}

struct Telling<'a> {
    progress: &'a mut dyn Progress,
    last: Instant,
}

impl Within<'_> {
    /// So many prompts went through a model; called by any thread.
    pub fn passed(&self, count: usize) {
        self.passed.fetch_add(count as u64, Ordering::Relaxed);
        // Whoever finds another thread telling has nothing to add.
        if let Ok(mut telling) = self.telling.try_lock()
            && telling.last.elapsed() >= TELL_EVERY
        {
            self.tell(&mut telling);
        }
    }

    /// A chunk is on disk: so many samples are done, those of the chunks before included. Returns whether
    /// the work is to be interrupted.
    fn finished(&self, done: u64) -> bool {
        let mut telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.before.store(done, Ordering::Relaxed);
        self.passed.store(0, Ordering::Relaxed);
        self.tell(&mut telling);
        telling.progress.pause_asked()
    }

    fn tell(&self, telling: &mut Telling<'_>) {
        let within = self.passed.load(Ordering::Relaxed) / self.passes.max(1);
        let done = self.before.load(Ordering::Relaxed) + within;
        let task = self.task.to_owned();
        telling.progress.emit(Event::Update { task, done, note: String::new() });
        telling.last = Instant::now();
    }
}

/// A column that owns its values.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Bytes.
    U8(Vec<u8>),
    /// 16-bit integers, or the bits of f16.
    U16(Vec<u16>),
    /// 32-bit integers.
    U32(Vec<u32>),
    /// 64-bit integers.
    U64(Vec<u64>),
    /// Floats.
    F32(Vec<f32>),
}

impl Values {
    fn column(&self) -> Column<'_> {
        match self {
            Values::U8(values) => Column::U8(values),
            Values::U16(values) => Column::U16(values),
            Values::U32(values) => Column::U32(values),
            Values::U64(values) => Column::U64(values),
            Values::F32(values) => Column::F32(values),
        }
    }
}

impl Chunks {
    /// Chunks of `size` samples of `range`, kept in `dir` under `name`.
    pub fn new(dir: &Path, name: &str, range: Range<u64>, size: u64) -> Self {
        Self { name: name.into(), dir: dir.into(), range, size: size.max(1), part: Part::ALL }
    }

    /// The same, of which only a part is to be done.
    pub fn only(self, part: Option<Part>) -> Self {
        Self { part: part.unwrap_or(Part::ALL), ..self }
    }

    /// Number of chunks.
    pub fn len(&self) -> u64 {
        (self.range.end - self.range.start).div_ceil(self.size)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The samples of chunk `index`.
    pub fn samples(&self, index: u64) -> Range<u64> {
        let start = self.range.start + index * self.size;
        start..(start + self.size).min(self.range.end)
    }

    /// The file of chunk `index`.
    pub fn path(&self, index: u64) -> PathBuf {
        self.dir.join(format!("{}-{index:06}.shard", self.name))
    }

    /// Does this rank's share of the chunks, then waits for the others. `prepare` gets a range of samples
    /// and reads what `work` needs of it, which returns the chunk's columns: pure functions of that range.
    /// While one chunk is worked on, the next is prepared. Asked to pause, a rank stops after a chunk: all
    /// that is done is on disk, so the others need not know.
    pub fn run<T: Send>(
        &self,
        task: &str,
        comm: &mut dyn Communicator,
        progress: &mut dyn Progress,
        prepare: impl Fn(Range<u64>) -> Result<T> + Sync,
        work: impl Fn(Range<u64>, T) -> Result<Vec<(&'static str, Values)>>,
    ) -> Result<()> {
        self.run_telling(task, 1, comm, progress, prepare, |range, input, _| work(range, input))
    }

    /// The same for `work` that takes long and tells what it has done of a chunk, `passes` of each sample.
    pub fn run_telling<T: Send>(
        &self,
        task: &str,
        passes: u64,
        comm: &mut dyn Communicator,
        progress: &mut dyn Progress,
        prepare: impl Fn(Range<u64>) -> Result<T> + Sync,
        work: impl Fn(Range<u64>, T, &Within<'_>) -> Result<Vec<(&'static str, Values)>>,
    ) -> Result<()> {
        reclora_storage::atomic::create_dir_all(&self.dir)?;
        let own_part = (self.part.index..self.len()).step_by(self.part.of as usize);
        let size = |samples: Range<u64>| samples.end - samples.start;
        let total = own_part.clone().map(|index| size(self.samples(index))).sum();
        let unit = "samples".into();
        progress.emit(Event::Start { task: task.into(), total, unit, together: false });
        let within = Within {
            task,
            passes,
            before: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            telling: Mutex::new(Telling { progress: &mut *progress, last: Instant::now() }),
        };
        let mut ahead = own_part.skip(comm.rank()).step_by(comm.world_size());
        let started = Instant::now();
        let next = || {
            let samples = |index| (!self.is_done(index)).then(|| self.samples(index));
            ahead.next().map(|index| (index, samples(index).map(&prepare)))
        };
        let stalls = std::thread::scope(|scope| {
            let mut prepared = Prefetch::spawn(scope, 1, "prepare", next);
            let mut done = 0;
            while let Some((index, input)) = prepared.next() {
                let samples = self.samples(index);
                if let Some(input) = input {
                    self.write(index, work(samples.clone(), input?, &within)?)?;
                }
                done += samples.end - samples.start;
                if within.finished(done) {
                    return Err(TrainerError::Paused);
                }
            }
            Ok::<_, TrainerError>(prepared.stalls())
        })?;
        let elapsed = started.elapsed();
        comm.barrier(task)?;
        progress.emit(Event::Finish { task: task.into() });
        if comm.rank() == 0 && stalls.items > 0 {
            progress.emit(Event::Message { text: describe(task, stalls, elapsed) });
        }
        Ok(())
    }

    fn write(&self, index: u64, columns: Vec<(&'static str, Values)>) -> Result<()> {
        let views: Vec<_> = columns.iter().map(|(name, values)| (*name, values.column())).collect();
        Ok(write_shard(&self.path(index), &self.name, &views)?)
    }

    /// A file that is damaged counts as not there: its chunk is done again.
    fn is_done(&self, index: u64) -> bool {
        Shard::open(&self.path(index), &self.name).is_ok_and(|shard| shard.verify().is_ok())
    }

    /// Opens the finished chunks in order.
    pub fn open(&self) -> Result<ChunkStore> {
        let shards = (0..self.len())
            .map(|index| Ok(Shard::open(&self.path(index), &self.name)?))
            .collect::<Result<_>>()?;
        let checked = (0..self.len()).map(|_| OnceLock::new()).collect();
        Ok(ChunkStore { start: self.range.start, size: self.size, shards, checked })
    }
}

/// How the work had to wait for its inputs.
fn describe(task: &str, stalls: Stalls, elapsed: Duration) -> String {
    let (waited, elapsed) = (stalls.waited.as_secs_f64(), elapsed.as_secs_f64());
    let Stalls { items, count, .. } = stalls;
    format!(
        "{task}: rank 0 waited {waited:.2} s of {elapsed:.1} s for samples ({count} of {items} chunks \
         were not ready)"
    )
}

/// Finished chunks, found by sample index.
#[derive(Debug)]
pub struct ChunkStore {
    start: u64,
    size: u64,
    shards: Vec<Shard>,
    /// What is wrong with each shard's content, once it has been looked at.
    checked: Vec<OnceLock<Option<String>>>,
}

impl ChunkStore {
    /// The chunk of sample `index` and the sample's row in it; `None` outside the range. A chunk's hashes are
    /// checked when it is first asked for (S-1): who needs few samples of many does not read the rest.
    ///
    /// # Errors
    /// The chunk is damaged.
    pub fn locate(&self, index: u64) -> Result<Option<(&Shard, usize)>> {
        let Some(offset) = index.checked_sub(self.start) else { return Ok(None) };
        let chunk = usize::try_from(offset / self.size).unwrap_or(usize::MAX);
        let (Some(shard), Some(checked)) = (self.shards.get(chunk), self.checked.get(chunk)) else {
            return Ok(None);
        };
        let problem = checked.get_or_init(|| shard.verify().err().map(|error| error.to_string()));
        match problem {
            Some(problem) => Err(TrainerError::Input(problem.clone())),
            None => Ok(Some((shard, (offset % self.size) as usize))),
        }
    }

    /// All chunks, in order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::progress::Silent;
    use reclora_comm::Solo;
    use std::cell::RefCell;

    /// What is prepared of a chunk: its samples.
    fn indices(range: Range<u64>) -> Result<Vec<u64>> {
        Ok(range.collect())
    }

    fn squares(range: Range<u64>, indices: Vec<u64>) -> Result<Vec<(&'static str, Values)>> {
        assert!(indices.iter().copied().eq(range), "a chunk gets what was prepared for it");
        Ok(vec![("square", Values::U64(indices.into_iter().map(|i| i * i).collect()))])
    }

    #[test]
    fn d3_every_sample_is_in_one_chunk_and_found_by_its_index() {
        let dir = tempfile::tempdir().unwrap();
        let chunks = Chunks::new(dir.path(), "squares", 10..33, 5);
        chunks.run("square", &mut Solo, &mut Silent, indices, squares).unwrap();
        let store = chunks.open().unwrap();
        assert_eq!(store.shards().len(), 5);
        for index in 10..33 {
            let (shard, row) = store.locate(index).unwrap().unwrap();
            assert_eq!(shard.u64("square").unwrap()[row], index * index);
        }
        assert!([9, 35].map(|index| store.locate(index).unwrap()).iter().all(Option::is_none));
        // S-1: one of them is damaged; the others are used as ever.
        let path = chunks.path(2);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let store = chunks.open().unwrap();
        let error = store.locate(21).unwrap_err().to_string();
        assert!(
            error.contains("squares-000002.shard") && error.contains("hash differs"),
            "{error}"
        );
        assert!(store.locate(12).is_ok() && store.locate(32).is_ok());
    }

    /// What is told, where every second is over at once.
    #[test]
    fn what_is_done_within_a_chunk_is_told_now_and_then() {
        struct Noted(Vec<u64>);
        impl Progress for Noted {
            fn emit(&mut self, event: Event) {
                if let Event::Update { done, .. } = event {
                    self.0.push(done);
                }
            }
        }
        let mut noted = Noted(Vec::new());
        let within = Within {
            task: "score",
            passes: 2,
            before: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            telling: Mutex::new(Telling { progress: &mut noted, last: Instant::now() }),
        };
        let wait = || {
            let mut telling = within.telling.lock().unwrap();
            telling.last = Instant::now().checked_sub(TELL_EVERY).unwrap();
        };
        within.passed(4);
        wait();
        // Both passes of two samples, and one of a third.
        within.passed(1);
        within.passed(9);
        assert!(!within.finished(8));
        wait();
        within.passed(3);
        assert_eq!(noted.0, [2, 8, 9]);
    }

    #[test]
    fn what_can_not_be_prepared_or_done_ends_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let chunks = Chunks::new(dir.path(), "squares", 0..20, 5);
        let fail = |range: &Range<u64>| match range.start {
            10 => Err(TrainerError::Input("chunk 2".into())),
            _ => Ok(()),
        };
        let prepare = |range: Range<u64>| fail(&range).and_then(|()| indices(range));
        let error = chunks.run("square", &mut Solo, &mut Silent, prepare, squares).unwrap_err();
        assert_eq!(error.to_string(), "chunk 2");
        assert!(chunks.path(1).exists() && !chunks.path(2).exists());
        let work = |range: Range<u64>, indices| fail(&range).and_then(|()| squares(range, indices));
        let error = chunks.run("square", &mut Solo, &mut Silent, indices, work).unwrap_err();
        assert_eq!(error.to_string(), "chunk 2");
    }

    #[test]
    fn d2_a_rerun_does_only_what_is_missing_or_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let chunks = Chunks::new(dir.path(), "squares", 0..20, 5);
        chunks.run("square", &mut Solo, &mut Silent, indices, squares).unwrap();
        let bytes: Vec<_> = (0..4).map(|i| std::fs::read(chunks.path(i)).unwrap()).collect();
        std::fs::remove_file(chunks.path(1)).unwrap();
        let mut damaged = bytes[3].clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        damaged.truncate(bytes[3].len() - 1);
        std::fs::write(chunks.path(3), damaged).unwrap();
        let done = RefCell::new(Vec::new());
        let work = |range: Range<u64>, indices| {
            done.borrow_mut().push(range.start);
            squares(range, indices)
        };
        chunks.run("square", &mut Solo, &mut Silent, indices, work).unwrap();
        assert_eq!(*done.borrow(), [5, 15]);
        for (index, bytes) in bytes.iter().enumerate() {
            assert_eq!(std::fs::read(chunks.path(index as u64)).unwrap(), *bytes);
        }
    }
}
