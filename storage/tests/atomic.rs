//! S-1: a file is visible under its final name only when complete; one process works in a run.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Mount, may_mount};
use crate::skip::skip;
use reclora_storage::atomic::{
    RunLock, create_dir_all, is_tmp_name, write_atomic, write_bytes_atomic,
};

/// Set in a child process of these tests: the directory it works in.
const CHILD: &str = "RECLORA_STORAGE_TEST_CHILD";

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// This test binary, running one test as a child.
fn child(test: &str, dir: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for the child to say that it is where the test wants it.
fn wait_ready(child: &mut std::process::Child) {
    let stdout = BufReader::new(child.stdout.take().unwrap());
    assert!(
        stdout.lines().map_while(Result::ok).any(|l| l.ends_with("READY")),
        "child never ready"
    );
}

#[test]
fn writes_and_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    write_bytes_atomic(&path, b"one").unwrap();
    write_bytes_atomic(&path, b"two").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    assert_eq!(names(dir.path()), ["file"]);
}

#[test]
fn a_failing_writer_leaves_the_old_file_and_no_temporary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    write_bytes_atomic(&path, b"old").unwrap();
    let error = write_atomic(&path, |w| {
        w.write_all(&[7; 1 << 20])?;
        Err(io::Error::from(io::ErrorKind::StorageFull))
    })
    .unwrap_err()
    .to_string();
    assert!(error.contains("file") && error.contains("free some space"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["file"]);
}

#[test]
fn a_panicking_writer_leaves_no_temporary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let result = std::panic::catch_unwind(|| write_atomic(&path, |_| panic!("broke")));
    assert!(result.is_err());
    assert!(names(dir.path()).is_empty());
}

#[test]
fn unwritable_directories_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    write_bytes_atomic(&file, b"x").unwrap();
    // A file where the directory should be, no directory at all, one nobody may write to (/proc
    // refuses root as well), and a path without a file name.
    for bad in [file.join("x"), dir.path().join("none/x"), PathBuf::from("/proc/reclora-x")] {
        let error = write_bytes_atomic(&bad, b"x").unwrap_err().to_string();
        assert!(error.contains(bad.to_str().unwrap()), "{error}");
    }
    assert!(write_bytes_atomic(Path::new("/"), b"x").is_err());
    let error = create_dir_all(&file.join("sub")).unwrap_err().to_string();
    assert!(error.contains("create directory") && error.contains("sub"), "{error}");
    assert_eq!(names(dir.path()), ["file"]);
}

/// On Linux a thread may be another user than its process where files are concerned.
#[cfg(target_os = "linux")]
#[test]
fn a_read_only_directory_is_named() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    /// A user without rights, whom every system has.
    const NOBODY: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let is_root = std::fs::metadata(dir.path()).unwrap().uid() == 0;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    let write = || {
        if is_root {
            // SAFETY: the call touches no memory, and holds for this thread alone, which ends with the write.
            unsafe { libc::setfsuid(NOBODY) };
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        write_bytes_atomic(&dir.path().join("x"), b"x").unwrap_err().to_string()
    };
    let error = std::thread::scope(|scope| scope.spawn(write).join().unwrap());
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(error.contains("permissions of the directory"), "{error}");
}

#[test]
fn a_directory_of_that_name_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("taken");
    std::fs::create_dir_all(path.join("inside")).unwrap();
    assert!(write_bytes_atomic(&path, b"x").is_err());
    assert_eq!(names(dir.path()), ["taken"]);
}

#[test]
fn threads_write_one_name_without_mixing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::thread::scope(|scope| {
        for byte in 0..8_u8 {
            let path = &path;
            scope.spawn(move || {
                for _ in 0..5 {
                    write_bytes_atomic(path, &vec![byte; 100_000]).unwrap();
                }
            });
        }
    });
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() == 100_000 && bytes.windows(2).all(|w| w[0] == w[1]));
    assert_eq!(names(dir.path()), ["file"]);
}

#[test]
fn a_full_disk_leaves_the_old_file_and_no_temporary() {
    if !may_mount() {
        return skip("needs root: a small file system is mounted");
    }
    let mount = Mount::new("64k");
    let path = mount.path().join("file");
    write_bytes_atomic(&path, b"old").unwrap();
    let error = write_bytes_atomic(&path, &vec![1; 1 << 20]).unwrap_err().to_string();
    assert!(error.contains("No space left") && error.contains("free some space"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names(mount.path()), ["file"]);
    // The space is free again.
    write_bytes_atomic(&path, &[2; 20_000]).unwrap();
}

#[test]
fn killed_halfway_leaves_only_the_temporary() {
    if let Ok(dir) = std::env::var(CHILD) {
        let path = Path::new(&dir).join("file");
        let _ = write_atomic(&path, |w| {
            w.write_all(&[9; 1 << 20])?;
            println!("READY");
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        });
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    write_bytes_atomic(&path, b"old").unwrap();
    let mut child = child("atomic::killed_halfway_leaves_only_the_temporary", dir.path());
    wait_ready(&mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    let names = names(dir.path());
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(is_tmp_name(&names[1]), "{names:?}");
    write_bytes_atomic(&path, b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
}

#[test]
fn the_lock_excludes_and_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let lock = RunLock::acquire(dir.path(), Duration::ZERO).unwrap();
    let start = Instant::now();
    let error = RunLock::acquire(dir.path(), Duration::from_millis(120)).unwrap_err().to_string();
    assert!(start.elapsed() >= Duration::from_millis(120));
    assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
    drop(lock);
    drop(RunLock::acquire(dir.path(), Duration::ZERO).unwrap());
    assert!(RunLock::acquire(&dir.path().join("none"), Duration::ZERO).is_err());
}

#[test]
fn the_lock_of_a_killed_process_is_free() {
    if let Ok(dir) = std::env::var(CHILD) {
        let _lock = RunLock::acquire(Path::new(&dir), Duration::ZERO).unwrap();
        println!("READY");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = child("atomic::the_lock_of_a_killed_process_is_free", dir.path());
    wait_ready(&mut child);
    assert!(RunLock::acquire(dir.path(), Duration::ZERO).is_err());
    child.kill().unwrap();
    child.wait().unwrap();
    RunLock::acquire(dir.path(), Duration::from_secs(5)).unwrap();
}
