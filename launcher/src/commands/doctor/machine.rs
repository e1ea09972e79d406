//! What is the same for every run on this machine.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use indicatif::BinaryBytes;
use nix::sys::statvfs::statvfs;

use crate::monitor::process;
use crate::preflight::Check;

/// Below this NCCL may fail to share buffers between ranks.
const SHM: u64 = 256 << 20;
/// Files and sockets that a rank among hundreds may have open.
const FILES: u64 = 1024;

/// All of them.
pub fn checks() -> Vec<Check> {
    vec![cores(), memory(), shared_memory(), open_files(), loopback(), driver(), nccl()]
}

fn cores() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let seen = format!("{cores}, load {load:.1}");
    if load > cores as f64 {
        return Check::warning(
            "cores",
            seen,
            "something else is running here: a run will be slower",
        );
    }
    Check::fine("cores", seen)
}

fn memory() -> Check {
    match process::memory() {
        Some((used, all)) => {
            let free = all - used;
            let seen = format!("{} of {} available", BinaryBytes(free), BinaryBytes(all));
            if free < all / 10 {
                return Check::warning(
                    "memory",
                    seen,
                    "the kernel may kill ranks: free some of it",
                );
            }
            Check::fine("memory", seen)
        }
        None => Check::warning("memory", "unknown", "/proc/meminfo can't be read"),
    }
}

fn shared_memory() -> Check {
    match statvfs("/dev/shm") {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let seen = format!("{} free in /dev/shm", BinaryBytes(free));
            if free < SHM {
                let help = "NCCL shares buffers there: give the container more, e.g. --shm-size=1g";
                return Check::warning("shared memory", seen, help);
            }
            Check::fine("shared memory", seen)
        }
        Err(error) => {
            Check::warning("shared memory", format!("/dev/shm: {error}"), "NCCL needs it")
        }
    }
}

fn open_files() -> Check {
    let text = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()).unwrap_or("unlimited");
    match soft.parse::<u64>() {
        Ok(limit) if limit < FILES => {
            let help = "a rank has a socket to every other: raise it with `ulimit -n 65536`";
            Check::warning("open files", format!("at most {limit}"), help)
        }
        _ => Check::fine("open files", format!("at most {soft}")),
    }
}

fn loopback() -> Check {
    let talk = || -> std::io::Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        Ok(address.port())
    };
    match talk() {
        Ok(port) => Check::fine("loopback", format!("127.0.0.1 works (free port {port})")),
        Err(error) => Check::wrong(
            "loopback",
            format!("127.0.0.1: {error}"),
            "ranks of a machine meet there: bring the interface lo up",
        ),
    }
}

/// Whether the NVIDIA driver is loaded; only runs on GPUs need it.
fn has_driver() -> Option<String> {
    let version = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let line = version.lines().next()?;
    Some(line.trim_start_matches("NVRM version:").trim().to_owned())
}

fn driver() -> Check {
    match has_driver() {
        Some(version) => Check::fine("NVIDIA driver", version),
        None => Check::fine("NVIDIA driver", "none: runs use the CPU"),
    }
}

fn nccl() -> Check {
    let loader = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/cuda/lib64", "/usr/lib"];
    let mut dirs = loader.split(':').filter(|dir| !dir.is_empty()).chain(usual);
    match dirs.find(|dir| Path::new(dir).join("libnccl.so.2").exists()) {
        Some(dir) => Check::fine("NCCL", format!("{dir}/libnccl.so.2")),
        None => Check::fine("NCCL", "libnccl.so.2 is in none of the usual places: ranks use TCP"),
    }
}
