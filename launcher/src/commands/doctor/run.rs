//! What one run needs.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, SystemTime};

use reclora_comm::address_of;
use reclora_storage::atomic::RunLock;
use reclora_storage::verify::Work;
use reclora_trainer::config::Config;

use crate::commands::verify;
use crate::config;
use crate::exit::quote;
use crate::hints::said;
use crate::preflight::Check;

/// Time stamps of files and logs are confusing beyond this.
const SKEW: Duration = Duration::from_secs(2);
/// How long an address may take to answer.
const REACH: Duration = Duration::from_secs(5);

/// All of them.
pub fn checks(config: &Config) -> Vec<Check> {
    let mut all = vec![interface(config)];
    all.extend(directory(&config.run_dir));
    all
}

fn interface(config: &Config) -> Check {
    if config.runtime.interface.is_empty() {
        let seen = "ranks reach each other at the address of --rdzv-endpoint, or the loopback";
        return Check::fine("interface", seen);
    }
    match address_of(&config.runtime.interface) {
        Ok(address) => Check::fine("interface", format!("ranks reach each other at {address}")),
        Err(error) => {
            Check::wrong("interface", error, "set runtime.interface to one of this machine")
        }
    }
}

/// The run directory, or where it will be made.
fn directory(run_dir: &Path) -> Vec<Check> {
    let Some(there) = run_dir.ancestors().find(|dir| dir.is_dir()) else {
        let seen = format!("{}: no such place", run_dir.display());
        return vec![Check::wrong("run directory", seen, "choose another with --run-dir")];
    };
    let mut all = vec![clock(there)];
    if there == run_dir {
        all.push(lock(run_dir));
        if config::load_run(run_dir).is_ok() {
            all.push(hashes(run_dir));
        }
    }
    all
}

/// Whether files can be made there, and whether the clock that stamps them agrees with this machine's. On a file
/// system that nodes share, each node's answer is compared with the same clock.
fn clock(dir: &Path) -> Check {
    let probe = dir.join(format!(".reclora-doctor-{}", std::process::id()));
    let before = SystemTime::now();
    let stamped = std::fs::write(&probe, b"doctor")
        .and_then(|()| std::fs::metadata(&probe))
        .and_then(|metadata| metadata.modified());
    let after = SystemTime::now();
    let _ = std::fs::remove_file(&probe);
    let stamp = match stamped {
        Ok(stamp) => stamp,
        Err(error) => {
            let seen = format!("{}: {error}", dir.display());
            return Check::wrong(
                "run directory",
                seen,
                "choose one that can be written, --run-dir",
            );
        }
    };
    let ahead = stamp.duration_since(after).unwrap_or_default();
    let behind = before.duration_since(stamp).unwrap_or_default();
    let skew = ahead.max(behind);
    let seen =
        format!("{} can be written, its clock is {:.1} s off", dir.display(), skew.as_secs_f64());
    if skew > SKEW {
        return Check::warning("run directory", seen, "synchronise the clocks of the nodes (NTP)");
    }
    Check::fine("run directory", seen)
}

fn lock(run_dir: &Path) -> Check {
    match RunLock::acquire(run_dir, Duration::ZERO) {
        Ok(_) => Check::fine("lock", "no other launcher works in the run directory"),
        Err(error) => Check::wrong("lock", error, "wait for it, or choose another with --run-dir"),
    }
}

/// Reads again what an earlier run left.
fn hashes(run_dir: &Path) -> Check {
    let command = format!("reclora-launch verify {}", quote(&run_dir.display().to_string()));
    let work = match Work::of(run_dir) {
        Ok(work) if work.is_empty() => return Check::fine("files", "nothing of an earlier run"),
        Ok(work) => work,
        Err(error) => return Check::wrong("files", said(&error), &command),
    };
    let report = verify::check(work, true);
    match report.damaged.first() {
        None => Check::fine("files", format!("{} are as they were written", report.whole)),
        Some(first) => {
            let (path, problem) = (first.path.display(), &first.problem);
            Check::wrong(
                "files",
                format!("{path}: {problem}"),
                &format!("{command} says how to rebuild it"),
            )
        }
    }
}

/// Whether node 0 can be where it is said to be, or can be reached there.
pub fn endpoint(text: &str) -> Check {
    let name = "rendezvous";
    let address = match text.to_socket_addrs().map(|mut all| all.next()) {
        Ok(Some(address)) => address,
        Ok(None) => return Check::wrong(name, format!("{text}: no address"), "write HOST:PORT"),
        Err(error) => return Check::wrong(name, format!("{text}: {error}"), "write HOST:PORT"),
    };
    match TcpListener::bind(address) {
        Ok(_) => return Check::fine(name, format!("node 0 can listen here, at {address}")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            return Check::wrong(name, format!("{address} is in use"), "choose another port");
        }
        // Another machine's.
        Err(_) => {}
    }
    match TcpStream::connect_timeout(&address, REACH) {
        Ok(_) => Check::fine(name, format!("{address} answers")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            Check::fine(name, format!("{address} is reached; nobody listens there yet"))
        }
        Err(error) => Check::wrong(
            name,
            format!("{address}: {error}"),
            "open the port in firewalls between the nodes, or name an address that all of them reach",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;

    #[test]
    fn endpoints_are_tried() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let check = endpoint(&taken.local_addr().unwrap().to_string());
        assert_eq!(check.level, Level::Wrong, "{check:?}");
        assert_eq!(endpoint("127.0.0.1:0").level, Level::Fine);
        assert_eq!(endpoint("no port").level, Level::Wrong);
    }

    #[test]
    fn a_directory_that_is_in_use_or_missing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let level =
            |checks: &[Check], name| checks.iter().find(|c| c.name == name).map(|c| c.level);
        let free = directory(dir.path());
        assert_eq!(level(&free, "lock"), Some(Level::Fine), "{free:?}");
        let _held = RunLock::acquire(dir.path(), Duration::ZERO).unwrap();
        let held = directory(dir.path());
        assert_eq!(level(&held, "lock"), Some(Level::Wrong), "{held:?}");
        // Where it will be made.
        let later = directory(&dir.path().join("a/b"));
        assert_eq!(level(&later, "run directory"), Some(Level::Fine), "{later:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the lock");
    }
}
