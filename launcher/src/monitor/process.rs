//! What Linux tells of a process (proc(5)).

use std::fs;
use std::path::Path;

use nix::unistd::{SysconfVar, sysconf};

use super::sample::Process;

/// Looks at a process; `None` if it is gone.
pub fn look(pid: u32) -> Option<Process> {
    let dir = Path::new("/proc").join(pid.to_string());
    let mut process = parse_stat(&fs::read_to_string(dir.join("stat")).ok()?)?;
    if process.state == 'Z' {
        return None;
    }
    // Needs the right to look, which the owner has.
    let io = fs::read_to_string(dir.join("io")).unwrap_or_default();
    process.read = number(&io, "read_bytes:").unwrap_or(0);
    process.written = number(&io, "write_bytes:").unwrap_or(0);
    for task in fs::read_dir(dir.join("task")).into_iter().flatten().flatten() {
        // A thread may have ended meanwhile.
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        process.queued += seconds(text.split_whitespace().nth(1));
    }
    Some(process)
}

/// Processor time of the calling thread, in seconds.
pub fn own_seconds() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    seconds(text.split_whitespace().next())
}

/// Memory of the machine that is in use, and all of it, in bytes; `None` if the kernel does not tell.
pub fn memory() -> Option<(u64, u64)> {
    parse_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn parse_memory(text: &str) -> Option<(u64, u64)> {
    let bytes = |name| Some(number(text, name)? * 1024);
    let (all, free) = (bytes("MemTotal:")?, bytes("MemAvailable:")?);
    Some((all.saturating_sub(free), all))
}

/// Seconds of processor time that the machine has spent so far, on all cores together.
pub fn busy() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // User, nice, system; idle and waiting for disks; interrupts. What guests take is in the first two.
    [0, 1, 2, 5, 6].iter().filter_map(|place| ticks.get(*place)).sum::<u64>() as f64
        / system(SysconfVar::CLK_TCK).unwrap_or(100) as f64
}

fn system(variable: SysconfVar) -> Option<u64> {
    sysconf(variable).ok().flatten().and_then(|number| u64::try_from(number).ok())
}

/// The machine's name.
pub fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The number behind a name at the beginning of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn seconds(nanoseconds: Option<&str>) -> f64 {
    nanoseconds.and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// `/proc/PID/stat`. The name, in brackets, may hold anything, brackets too.
fn parse_stat(text: &str) -> Option<Process> {
    let rest = text.rsplit_once(')')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Field 3 of the manual, the state, is the first here.
    let number = |place: usize| fields.get(place - 3)?.parse::<u64>().ok();
    let ticks = system(SysconfVar::CLK_TCK).unwrap_or(100);
    let page = system(SysconfVar::PAGE_SIZE).unwrap_or(4096);
    Some(Process {
        state: fields.first()?.chars().next()?,
        major_faults: number(12)?,
        cpu: (number(14)? + number(15)?) as f64 / ticks as f64,
        threads: usize::try_from(number(20)?).ok()?,
        rss: number(24)? * page,
        ..Process::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process() {
        let process = look(std::process::id()).unwrap();
        assert!(process.rss > 0 && process.threads > 0);
        assert!("RSD".contains(process.state));
        assert_eq!(look(u32::MAX), None);
        let (used, all) = memory().unwrap();
        assert!(0 < used && used < all);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24689764 kB\nMemAvailable:   100 kB\n";
        assert_eq!(parse_memory(text), Some((24_689_664 * 1024, 24_689_764 * 1024)));
        assert_eq!(parse_memory("MemTotal: 5 kB\n"), None);
    }

    #[test]
    fn names_can_hold_anything() {
        let rest = " S 1 2 3 4 5 6 7 8 9 10 200 100 0 0 20 0 7 0 99 1000 5 x";
        let process = parse_stat(&format!("12 (a) R (b){rest}")).unwrap();
        assert_eq!((process.state, process.threads, process.major_faults), ('S', 7, 9));
        for bad in ["", "12", "12 (x)", "12 (x) S 1"] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
    }
}
