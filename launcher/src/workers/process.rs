//! One rank as an operating-system process: start, output, end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use color_eyre::eyre::WrapErr;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use reclora_storage::atomic::create_dir_all;
use reclora_trainer::telemetry::progress::Event;

use super::binding;
use super::cause::Outcome;
use super::env::{CPUS, SECRET};
use super::{GroupSpec, Worker};
use crate::error::Result;
use crate::monitor::process::host;

/// Longest piece of output treated as one line.
const MAX_LINE: u64 = 64 * 1024;
/// Lines of standard error kept for the failure block.
const TAIL_LINES: usize = 8;
/// Characters kept of each of them.
const TAIL_WIDTH: usize = 400;
/// How long a killed process may take to be gone (one stuck in the kernel may take for ever).
const KILL_WAIT: Duration = Duration::from_secs(2);

/// What the reader threads send: rank and event.
pub type Events = SyncSender<(usize, Event)>;

/// A running rank. Its process group is killed when this is dropped.
#[derive(Debug)]
pub struct RankProcess {
    child: Child,
    group: Pid,
    /// Processes that the kernel had killed for lack of memory, when this one began.
    oom_kills: Option<u64>,
    reaped: bool,
    tail: Arc<Mutex<VecDeque<String>>>,
    log: PathBuf,
    readers: Vec<JoinHandle<()>>,
}

impl RankProcess {
    /// Starts a rank of this node in its own process group, bound to `cpus` (none means to none in particular), its
    /// output going to its logs and `events`.
    ///
    /// Must be called from a thread that lives as long as the rank: the kernel ends the rank with
    /// the thread that started it.
    pub fn start(
        spec: &GroupSpec,
        local_rank: usize,
        cpus: &[usize],
        events: &Events,
    ) -> Result<Self> {
        let rank = spec.plan.first_rank + local_rank;
        let log_dir = spec.logs_of(rank);
        create_dir_all(&log_dir)?;
        let open = |name: &str| {
            let path = log_dir.join(name);
            File::create(&path).wrap_err_with(|| format!("can't write {}", path.display()))
        };
        let (stdout_log, stderr_log) = (open("stdout.log")?, open("stderr.log")?);
        let mut child = Command::new(&spec.program)
            .args(&spec.args)
            // That of the job, which only launchers need; what a rank needs comes with the rest.
            .env_remove(SECRET)
            .envs(spec.variables(local_rank))
            .env(CPUS, binding::render(cpus))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .wrap_err_with(|| format!("can't start rank {rank} ({})", spec.program.display()))?;
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
        spec.watch.begin(rank, child.id());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let log = spec.log_of(rank);
        let (oom_kills, readers) = (oom_kills(), Vec::new());
        let mut process = Self { child, group, oom_kills, reaped: false, tail, log, readers };
        notify_of_end(rank, group, events.clone())?;
        if let Some(pipe) = stdout {
            let events = events.clone();
            let see = events.clone();
            let watch = Arc::clone(&spec.watch);
            process.readers.push(reader(rank, "out", pipe, stdout_log, events, move |line| {
                let event = serde_json::from_str(line);
                // Signs of life come every second: no news.
                let is_news = !matches!(event, Ok(Event::Beat | Event::Measured { .. }));
                if let Ok(event) = event {
                    watch.take(rank, &event);
                    let _ = see.send((rank, event));
                }
                is_news
            })?);
        }
        if let Some(pipe) = stderr {
            let tail = Arc::clone(&process.tail);
            let say = spec.plan.tee.has(local_rank).then(|| events.clone());
            process.readers.push(reader(
                rank,
                "err",
                pipe,
                stderr_log,
                events.clone(),
                move |line| {
                    if let Some(say) = &say {
                        let _ = say.send((rank, Event::Said { text: line.to_owned() }));
                    }
                    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                    if tail.len() == TAIL_LINES {
                        tail.pop_front();
                    }
                    tail.push_back(line.chars().take(TAIL_WIDTH).collect());
                    true
                },
            )?);
        }
        Ok(process)
    }

    /// Whether all it has said has been read.
    pub fn is_drained(&self) -> bool {
        self.readers.iter().all(JoinHandle::is_finished)
    }
}

impl Worker for RankProcess {
    /// What is left of its process group is killed first, while the pid can't have been given to another
    /// process.
    fn poll(&mut self) -> Result<Option<Outcome>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let outcome = match waitid(Id::Pid(self.group), flags).wrap_err("can't watch a rank")? {
            WaitStatus::Exited(_, code) => Outcome::from_code(code),
            WaitStatus::Signaled(_, Signal::SIGKILL, _) if oom_kills() > self.oom_kills => {
                Outcome::OutOfMemory
            }
            WaitStatus::Signaled(_, signal, _) => Outcome::Killed(signal),
            _ => return Ok(None),
        };
        self.signal(Signal::SIGKILL);
        // Returns at once: the process has ended, as `waitid` just said.
        let _ = self.child.wait();
        self.reaped = true;
        Ok(Some(outcome))
    }

    fn signal(&self, signal: Signal) {
        if !self.reaped {
            // The group may be gone already.
            let _ = killpg(self.group, signal);
        }
    }

    fn tail(&self) -> Vec<String> {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().cloned().collect()
    }

    fn log(&self) -> &Path {
        &self.log
    }

    fn host(&self) -> String {
        host()
    }
}

impl Drop for RankProcess {
    /// Ends a rank that still runs, for instance when the start of a later one failed.
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let deadline = Instant::now() + KILL_WAIT;
        while !self.reaped && Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                _ => self.reaped = true,
            }
        }
    }
}

/// Processes that the kernel has killed for lack of memory, of the machine or of a control group, so far.
fn oom_kills() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// Wakes whoever waits for events when a process has ended, which then is there to be polled.
fn notify_of_end(rank: usize, process: Pid, events: Events) -> Result<()> {
    let work = move || {
        let _ = waitid(Id::Pid(process), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let _ = events.send((rank, Event::Beat));
    };
    let thread = std::thread::Builder::new().name(format!("rank-{rank}-end")).spawn(work);
    thread.map(drop).wrap_err("can't start a thread")
}

/// Copies a pipe to a log file line by line, but for those of which `see` says that they are no news.
fn reader(
    rank: usize,
    name: &str,
    pipe: impl Read + Send + 'static,
    mut log: File,
    events: Events,
    mut see: impl FnMut(&str) -> bool + Send + 'static,
) -> Result<JoinHandle<()>> {
    let work = move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        let mut log_works = true;
        loop {
            line.clear();
            match pipe.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let is_news = see(String::from_utf8_lossy(&line).trim_end());
            if is_news
                && log_works
                && let Err(error) = log.write_all(&line)
            {
                // A full disk must not silence the rank, nor fill the screen.
                log_works = false;
                let text = format!("the log of rank {rank} can't be written: {error}");
                let _ = events.send((rank, Event::Message { text }));
            }
        }
    };
    std::thread::Builder::new()
        .name(format!("rank-{rank}-{name}"))
        .spawn(work)
        .wrap_err("can't start a thread")
}
