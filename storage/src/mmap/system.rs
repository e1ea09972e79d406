//! What only the operating system can say or be told of a file.

use std::fs::File;

use super::Pattern;

/// Names of file systems by the number that `statfs` gives, whose server can take a file away while it
/// is mapped.
#[cfg(target_os = "linux")]
const NETWORK: [(u32, &str); 14] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xfe53_4d42, "SMB2"),
    (0xff53_4d42, "CIFS"),
    (0x6573_5546, "FUSE"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "kAFS"),
    (0x7375_7245, "Coda"),
    (0xaad7_aaea, "PanFS"),
];

/// Whether the file is on one of them.
#[cfg(target_os = "linux")]
pub(super) fn on_network(file: &File) -> bool {
    // The numbers are 32 bits wide whatever the field's type is.
    nix::sys::statfs::fstatfs(file).is_ok_and(|stat| is_network(stat.filesystem_type().0 as u32))
}

#[cfg(target_os = "linux")]
fn is_network(kind: u32) -> bool {
    NETWORK.iter().any(|(number, _)| *number == kind)
}

/// Other systems have no such list: files are mapped.
#[cfg(not(target_os = "linux"))]
pub(super) fn on_network(_: &File) -> bool {
    false
}

/// Says how an open file is going to be read. A refusal is of no consequence: the same bytes are read.
#[cfg(target_os = "linux")]
pub(crate) fn advise_file(file: &File, pattern: Pattern) {
    use nix::fcntl::{PosixFadviseAdvice as Advice, posix_fadvise};
    let advice = match pattern {
        Pattern::Sequential => Advice::POSIX_FADV_SEQUENTIAL,
        Pattern::Random => Advice::POSIX_FADV_RANDOM,
        Pattern::WillNeed => Advice::POSIX_FADV_WILLNEED,
        _ => Advice::POSIX_FADV_NORMAL,
    };
    let _ = posix_fadvise(file, 0, 0, advice);
}

/// Other systems are not told.
#[cfg(not(target_os = "linux"))]
pub(crate) fn advise_file(_: &File, _: Pattern) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn local_file_systems_are_mapped_and_network_ones_read() {
        // ext4, XFS, Btrfs, tmpfs, overlay, ZFS.
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1] {
            assert!(!is_network(local), "{local:#x}");
        }
        for (number, name) in NETWORK {
            assert!(is_network(number), "{name}");
        }
    }
}
