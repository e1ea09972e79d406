//! Files that are visible under their final names only when complete (S-1), and the lock of a run.
//!
//! A file is written under a temporary name in the same directory, synchronised, renamed, and the
//! directory synchronised. A process killed at any moment leaves the old file or the new one, and at
//! worst a `*.tmp-*` file that the next run removes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Result, StorageError};

/// What marks a temporary file: `<name>.tmp-<pid>-<n>`.
const TMP_MARK: &str = ".tmp-";

/// Whether a file name is that of a temporary file of [`write_atomic`].
pub fn is_tmp_name(name: &str) -> bool {
    name.contains(TMP_MARK)
}

/// Writes a file through `write` (buffered) so that `path` is either what it was or complete.
///
/// # Errors
/// Any failure (directory missing or read-only, disk full, `write` itself): the temporary file is
/// removed, `path` is untouched, and the error names `path` and the cause.
pub fn write_atomic<F>(path: &Path, write: F) -> Result<()>
where
    F: FnOnce(&mut dyn Write) -> io::Result<()>,
{
    let failed = |e| StorageError::io("write", path, e);
    let (mut tmp, file) = create_tmp(path).map_err(failed)?;
    let mut writer = BufWriter::with_capacity(1 << 18, file);
    write(&mut writer).map_err(failed)?;
    let file = writer.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    drop(file);
    fs::rename(&tmp.path, path).map_err(failed)?;
    tmp.renamed = true;
    sync_dir(parent(path)).map_err(failed)
}

/// Writes `bytes` as a file, as [`write_atomic`] does.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_bytes_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |w| w.write_all(bytes))
}

/// Makes a directory and its parents.
///
/// # Errors
/// A parent is a file, not writable, or the disk is full: named with the cause.
pub fn create_dir_all(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| StorageError::io("create directory", path, e))
}

/// Removes a file, if it is there.
///
/// # Errors
/// It can't be removed: named with the cause.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(StorageError::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// The temporary file, removed on drop (an error, a panic) unless it was renamed.
pub(crate) struct Tmp {
    path: PathBuf,
    renamed: bool,
}

impl Drop for Tmp {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a temporary file beside `path` that may be written and read.
pub(crate) fn create_tmp(path: &Path) -> io::Result<(Tmp, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the path has no file name"))?;
    loop {
        // The counter separates threads of this process; `create_new` separates processes that
        // have the same pid on different machines of one file system.
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mut tmp_name = name.to_os_string();
        tmp_name.push(format!("{TMP_MARK}{}-{n}", std::process::id()));
        let tmp = path.with_file_name(tmp_name);
        match OpenOptions::new().read(true).write(true).create_new(true).open(&tmp) {
            Ok(file) => return Ok((Tmp { path: tmp, renamed: false }, file)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Makes a rename durable. Some network file systems cannot synchronise a directory: not an error.
fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

/// The lock of a run directory: one process at a time works in it. Released on drop, and by the
/// operating system when the process dies.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl RunLock {
    /// Locks `dir/.lock` (making the file, not the directory), waiting at most `wait`.
    ///
    /// # Errors
    /// The directory is missing or not writable, or another process holds the lock for longer than
    /// `wait`: the error names the file and the holder's pid.
    pub fn acquire(dir: &Path, wait: Duration) -> Result<Self> {
        Self::lock(dir, wait, false)
    }

    /// The same, together with others that share it: whoever wants it alone has to wait.
    ///
    /// # Errors
    /// As for [`RunLock::acquire`].
    pub fn share(dir: &Path, wait: Duration) -> Result<Self> {
        Self::lock(dir, wait, true)
    }

    fn lock(dir: &Path, wait: Duration, shared: bool) -> Result<Self> {
        const POLL: Duration = Duration::from_millis(50);
        let path = dir.join(".lock");
        let failed = |e| StorageError::io("lock", &path, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let start = Instant::now();
        loop {
            let locked = if shared { file.try_lock_shared() } else { file.try_lock() };
            match locked {
                Ok(()) => break,
                Err(TryLockError::Error(e)) => return Err(failed(e)),
                Err(TryLockError::WouldBlock) if start.elapsed() >= wait => {
                    let waited = start.elapsed().as_secs_f64();
                    return Err(StorageError::Locked { holder: holder(&mut file), path, waited });
                }
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(POLL.min(wait.saturating_sub(start.elapsed())));
                }
            }
        }
        // The pid is only a help for people: the lock itself is the operating system's.
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { file })
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(32).read_to_string(&mut text) {
        Ok(_) if text.trim().parse::<u32>().is_ok() => format!(" (pid {})", text.trim()),
        _ => String::new(),
    }
}
