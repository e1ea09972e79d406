//! Mapped files and typed views of them: the only `unsafe` code of this crate.
//!
//! A file is mapped read-only, or read into memory; both look the same to the caller. A map costs no
//! memory of its own and is shared by all processes of a machine. Its hazard: where the file is cut
//! short while it is mapped, or its file system fails, an access past the new end is no error that
//! could be returned but SIGBUS, the end of the process.
//!
//! What prevents it: files of a run are never written in place, only replaced by a rename, which leaves
//! a mapped inode as it is; the run's lock keeps a second run out of the directory; and on network file
//! systems, whose server may take a file away at any time, files are read instead ([`Access`]). What is
//! left is another program that cuts short a local file in use. Then a rank dies of SIGBUS, which the
//! launcher names as this, and `runtime.file_access = "pread"` avoids it at the price of memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bytemuck::Pod;
/// How bytes are going to be used: a hint to the operating system, never an error.
pub use memmap2::Advice as Pattern;
use memmap2::{Mmap, MmapMut};
use serde::{Deserialize, Serialize};

use crate::error::{Result, StorageError};

mod system;

pub(crate) use system::advise_file;
use system::on_network;

/// How a file is brought into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// As [`set_access`] says; without that, mapped, but read into memory on network file systems.
    #[default]
    #[serde(rename = "automatic")]
    Automatic,
    /// Mapped.
    #[serde(rename = "mmap")]
    Map,
    /// Read into memory of the process.
    #[serde(rename = "pread")]
    Read,
}

/// What [`Access::Automatic`] means in this process.
static ACCESS: Mutex<Access> = Mutex::new(Access::Automatic);

/// Says what [`Access::Automatic`] means from now on in this process: the setting of the run, which
/// nobody between here and there has to know of.
pub fn set_access(access: Access) {
    *ACCESS.lock().unwrap_or_else(PoisonError::into_inner) = access;
}

/// Whether a file is to be read rather than mapped.
fn is_read(access: Access, file: &File) -> bool {
    let of_process = || *ACCESS.lock().unwrap_or_else(PoisonError::into_inner);
    match if access == Access::Automatic { of_process() } else { access } {
        Access::Map => false,
        Access::Read => true,
        Access::Automatic => on_network(file),
    }
}

/// The content of a file: mapped, or read into memory that is not the file's.
#[derive(Debug)]
pub struct Mapped {
    memory: Mmap,
    is_mapped: bool,
}

impl Mapped {
    /// Brings a file into memory.
    ///
    /// # Errors
    /// The file cannot be opened, mapped or read.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let file = File::open(path).map_err(|e| StorageError::io("open", path, e))?;
        let is_mapped = !is_read(access, &file);
        let (action, memory) =
            if is_mapped { ("map", map(&file)) } else { ("read", read_all(&file)) };
        let memory = memory.map_err(|e| StorageError::io(action, path, e))?;
        Ok(Self { memory, is_mapped })
    }

    /// Says how the content is going to be used. Of no effect on what has been read into memory.
    pub fn advise(&self, pattern: Pattern) {
        if self.is_mapped {
            // A kernel that knows no advice serves the same bytes.
            let _ = self.memory.advise(pattern);
        }
    }

    /// Whether it is mapped, not read into memory.
    pub fn is_mapped(&self) -> bool {
        self.is_mapped
    }

    /// The whole content. It begins at a page of memory.
    pub fn bytes(&self) -> &[u8] {
        &self.memory
    }

    /// `rows` values of type `T` from byte `offset` on; `None` where that is outside the file or
    /// not aligned for `T`.
    pub fn view<T: Pod>(&self, offset: usize, rows: usize) -> Option<&[T]> {
        let end = offset.checked_add(rows.checked_mul(size_of::<T>())?)?;
        bytemuck::try_cast_slice(self.bytes().get(offset..end)?).ok()
    }
}

fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: a mapped file must not be changed while it is mapped. Files of this crate get their
    // final names by a rename once complete and are never written again: replacing or removing one
    // leaves the mapped inode as it is.
    unsafe { Mmap::map(file) }
}

fn read_all(file: &File) -> io::Result<Mmap> {
    advise_file(file, Pattern::Sequential);
    let len = usize::try_from(file.metadata()?.len())
        .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut memory = MmapMut::map_anon(len)?;
    file.read_exact_at(&mut memory, 0)?;
    memory.make_read_only()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_and_read_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let bytes: Vec<u8> = (0..=255).collect();
        std::fs::write(&path, &bytes).unwrap();
        for access in [Access::Automatic, Access::Map, Access::Read] {
            let mapped = Mapped::open(&path, access).unwrap();
            assert_eq!(mapped.bytes(), bytes);
            assert_eq!(mapped.view::<u32>(4, 2).unwrap(), [0x0706_0504, 0x0b0a_0908]);
            assert_eq!(mapped.view::<u64>(64, 24).unwrap().len(), 24);
        }
    }

    #[test]
    fn automatic_is_what_the_run_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"0123").unwrap();
        let is_mapped = |access| Mapped::open(&path, access).unwrap().is_mapped();
        // Nothing else in this process depends on it: both serve the same bytes.
        for (set, mapped) in [(Access::Read, false), (Access::Map, true)] {
            set_access(set);
            assert_eq!(is_mapped(Access::Automatic), mapped);
            assert!(is_mapped(Access::Map) && !is_mapped(Access::Read));
        }
        set_access(Access::Automatic);
    }

    #[test]
    fn advice_changes_no_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for bytes in [vec![], vec![7; 100_000]] {
            std::fs::write(&path, &bytes).unwrap();
            for access in [Access::Map, Access::Read] {
                let mapped = Mapped::open(&path, access).unwrap();
                for pattern in
                    [Pattern::Normal, Pattern::Sequential, Pattern::Random, Pattern::WillNeed]
                {
                    mapped.advise(pattern);
                    advise_file(&File::open(&path).unwrap(), pattern);
                    assert_eq!(mapped.bytes(), bytes);
                }
            }
        }
    }

    #[test]
    fn views_outside_or_misaligned_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, [1_u8; 64]).unwrap();
        for access in [Access::Map, Access::Read] {
            let mapped = Mapped::open(&path, access).unwrap();
            assert!(mapped.view::<u32>(2, 1).is_none());
            assert!(mapped.view::<u32>(60, 2).is_none());
            assert!(mapped.view::<u8>(64, 1).is_none());
            assert!(mapped.view::<u8>(64, 0).is_some());
            assert!(mapped.view::<u8>(65, 0).is_none());
            assert!(mapped.view::<u64>(usize::MAX, 1).is_none());
            assert!(mapped.view::<u64>(0, usize::MAX).is_none());
        }
    }

    #[test]
    fn empty_and_missing_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, []).unwrap();
        for access in [Access::Map, Access::Read] {
            assert!(Mapped::open(&path, access).unwrap().bytes().is_empty());
            let error = Mapped::open(&dir.path().join("none"), access).unwrap_err();
            assert!(error.to_string().contains("none"), "{error}");
        }
    }

    #[test]
    fn bytes_are_little_endian() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, [1, 0, 0, 0, 3, 2, 0, 0]).unwrap();
        let mapped = Mapped::open(&path, Access::Map).unwrap();
        assert_eq!(mapped.view::<u32>(0, 2), Some(&[1, 0x0203][..]));
        assert_eq!(bytemuck::cast_slice::<u32, u8>(&[1, 0x0203]), mapped.bytes());
    }
}
