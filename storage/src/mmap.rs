//! Mapped files and typed views of them: the only `unsafe` code of this crate.
//!
//! A file is mapped read-only. On network file systems, where a file that vanishes on the server
//! turns an access into SIGBUS, it is read into memory instead; both look the same to the caller.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Result, StorageError};

/// Alignment in bytes that every view of a [`Mapped`] file may rely on for offset 0.
pub const ALIGNMENT: usize = 64;

mod sealed {
    pub trait Sealed {}
}

/// Plain numbers: any bit pattern is a value, there is no padding, and any bytes may be viewed so.
pub trait Pod: sealed::Sealed + Copy + Send + Sync + 'static {
    /// Name of the type in shard headers and errors.
    const NAME: &'static str;
}

macro_rules! pod {
    ($($t:ident),*) => { $(
        impl sealed::Sealed for $t {}
        impl Pod for $t { const NAME: &'static str = stringify!($t); }
    )* };
}
pod!(u8, u16, u32, u64, i64, f32);

/// How a file is brought into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Mapped, but read into memory on network file systems.
    Automatic,
    /// Always mapped.
    Map,
    /// Always read into memory.
    Read,
}

/// The content of a file.
#[derive(Debug)]
pub struct Mapped(Content);

#[derive(Debug)]
enum Content {
    Map(Mmap),
    Memory { blocks: Vec<Block>, len: usize },
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Block([u8; ALIGNMENT]);

impl Mapped {
    /// Brings a file into memory.
    ///
    /// # Errors
    /// The file cannot be opened, mapped or read.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let file = File::open(path).map_err(|e| StorageError::io("open", path, e))?;
        let read = match access {
            Access::Map => false,
            Access::Read => true,
            Access::Automatic => on_network(&file),
        };
        let content = if read { read_all(file) } else { map(&file) };
        content.map(Self).map_err(|e| StorageError::io("map", path, e))
    }

    /// The whole content.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Content::Map(map) => map,
            Content::Memory { blocks, len } => {
                // SAFETY: `blocks` is `blocks.len() * 64` initialised bytes without padding, and
                // the borrow of `self` keeps them alive and unchanged.
                let all = unsafe {
                    std::slice::from_raw_parts(blocks.as_ptr().cast::<u8>(), size_of_val(&**blocks))
                };
                all.get(..*len).unwrap_or(all)
            }
        }
    }

    /// `rows` values of type `T` from byte `offset` on; `None` where that is outside the file or
    /// not aligned for `T`.
    pub fn view<T: Pod>(&self, offset: usize, rows: usize) -> Option<&[T]> {
        let end = offset.checked_add(rows.checked_mul(size_of::<T>())?)?;
        let bytes = self.bytes().get(offset..end)?;
        // SAFETY: `Pod` is sealed to number types for which every bit pattern is valid.
        let (before, values, after) = unsafe { bytes.align_to::<T>() };
        (before.is_empty() && after.is_empty() && values.len() == rows).then_some(values)
    }
}

/// The bytes of a slice of numbers, as they are written to a shard.
pub fn as_bytes<T: Pod>(values: &[T]) -> &[u8] {
    // SAFETY: `Pod` is sealed to number types, which have no padding: every byte is initialised.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }
}

fn map(file: &File) -> io::Result<Content> {
    // SAFETY: a mapped file must not be changed while it is mapped. Files of this crate get their
    // final names by a rename once complete and are never written again: replacing or removing one
    // leaves the mapped inode as it is.
    unsafe { Mmap::map(file) }.map(Content::Map)
}

fn read_all(mut file: File) -> io::Result<Content> {
    let len = usize::try_from(file.metadata()?.len())
        .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let count = len.div_ceil(ALIGNMENT);
    let mut blocks: Vec<Block> = Vec::new();
    blocks.try_reserve_exact(count).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    blocks.resize(count, Block([0; ALIGNMENT]));
    // SAFETY: as in `bytes`, and `blocks` is borrowed mutably here only; any byte is a valid `u8`.
    let all = unsafe {
        std::slice::from_raw_parts_mut(blocks.as_mut_ptr().cast::<u8>(), count * ALIGNMENT)
    };
    if let Some(target) = all.get_mut(..len) {
        file.read_exact(target)?;
    }
    Ok(Content::Memory { blocks, len })
}

/// Whether the file is on a file system whose server can take the file away while it is mapped.
#[cfg(target_os = "linux")]
fn on_network(file: &File) -> bool {
    use std::os::fd::AsRawFd;
    // NFS, SMB, SMB2, CIFS, FUSE, Lustre, GPFS, BeeGFS, 9P, Ceph, AFS.
    const NETWORK: [u32; 11] = [
        0x6969,
        0x517b,
        0xfe53_4d42,
        0xff53_4d42,
        0x6573_5546,
        0x0bd0_0bd0,
        0x4750_4653,
        0x1983_0326,
        0x0102_1997,
        0x00c3_6400,
        0x5346_414f,
    ];
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open for as long as `file` lives and `stat` has room for the answer.
    let ok = unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } == 0;
    if !ok {
        return false;
    }
    // SAFETY: `fstatfs` returned 0, so it has filled `stat`.
    let kind = unsafe { stat.assume_init() }.f_type;
    // The magic numbers are 32 bits wide whatever the field's type is.
    NETWORK.contains(&(kind as u32))
}

/// Other systems have no such list: files are mapped.
#[cfg(not(target_os = "linux"))]
fn on_network(_: &File) -> bool {
    false
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
        assert_eq!(as_bytes(&[1_u32, 0x0203]), [1, 0, 0, 0, 3, 2, 0, 0]);
        assert!(as_bytes::<f32>(&[]).is_empty());
    }
}
