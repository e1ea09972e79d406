//! Other machines, watched by a `monitor` on each of them that a remote shell starts.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use color_eyre::eyre::WrapErr;
use serde::Deserialize;

use super::sample::{self, Sample};
use super::window::{WINDOW, Window};
use crate::error::{LaunchError, Result};

/// Between the end of a remote shell and the next try.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a host may take to say something, and may be silent, before that is said.
const PATIENCE: f64 = 15.0;
/// No line is longer than this.
const MAX_LINE: u64 = 4 << 20;

/// A machine. Dropping it ends the remote shell.
pub struct Host {
    name: String,
    node: usize,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug)]
struct Seen {
    samples: Vec<Sample>,
    /// What the remote shell said when it ended.
    trouble: Option<String>,
    since: Instant,
    child: Option<Child>,
    is_over: bool,
}

/// What `monitor --json` prints, as far as it is read.
#[derive(Deserialize)]
struct Line {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    sample: Sample,
}

impl Host {
    /// Begins to watch.
    ///
    /// # Errors
    ///
    /// `name` or `rsh` can't be what they should.
    pub fn watch(node: usize, name: &str, rsh: &str) -> Result<Self> {
        // Would be taken for an option of the remote shell.
        if name.is_empty() || name.starts_with('-') || name.contains(char::is_whitespace) {
            return Err(LaunchError::Usage(format!("--hosts: {name:?} is no host")).into());
        }
        let mut words = rsh.split_whitespace().map(str::to_owned);
        let program = words.next();
        let program = program.ok_or_else(|| LaunchError::Usage("--rsh is empty".into()))?;
        let mut arguments: Vec<String> = words.collect();
        arguments.push(name.to_owned());
        let remote = ["reclora-launch", "monitor", "--json", "--interval"];
        arguments.extend(remote.iter().map(|&word| word.to_owned()));
        // However seldom that is shown: rates are of the last seconds, and who does not answer is to be known.
        arguments.push("1".into());
        let seen = Arc::new(Mutex::new(Seen {
            samples: Vec::new(),
            trouble: None,
            since: Instant::now(),
            child: None,
            is_over: false,
        }));
        let shared = Arc::clone(&seen);
        let work = move || {
            loop {
                let trouble = follow(node, &program, &arguments, &shared);
                let mut seen = lock(&shared);
                if seen.is_over {
                    return;
                }
                seen.trouble = Some(trouble);
                drop(seen);
                std::thread::sleep(AGAIN);
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        thread.wrap_err("can't start a thread")?;
        Ok(Self { name: name.to_owned(), node, seen })
    }

    /// Its latest samples, or one that says why there are none.
    pub fn window(&self) -> Window {
        let seen = lock(&self.seen);
        let last = seen.samples.last().map(|sample| sample.time);
        let silent = match last {
            Some(time) => sample::now() - time,
            None => seen.since.elapsed().as_secs_f64(),
        };
        let why = match &seen.trouble {
            Some(trouble) => Some(trouble.clone()),
            None if silent > PATIENCE => Some(format!("has not answered for {silent:.0} s")),
            None if last.is_none() => Some("has not answered yet".into()),
            None => None,
        };
        let samples = match why {
            None => seen.samples.clone(),
            Some(why) => vec![Sample {
                time: last.unwrap_or_else(sample::now),
                node: self.node,
                host: self.name.clone(),
                no_gpus: Some(why),
                ..Sample::default()
            }],
        };
        Window::new(&self.name, samples)
    }

    /// Whether it has answered, or can't.
    pub fn has_answered(&self) -> bool {
        let seen = lock(&self.seen);
        !seen.samples.is_empty()
            || seen.trouble.is_some()
            || seen.since.elapsed().as_secs_f64() > PATIENCE
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut seen = lock(&self.seen);
        seen.is_over = true;
        if let Some(child) = &mut seen.child {
            let _ = child.kill();
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next line, or what there is of one that is too long; `None` at the end.
fn next_line(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let count = reader.take(MAX_LINE).read_until(b'\n', &mut line).ok()?;
    (count > 0).then_some(line)
}

/// Reads what a remote shell says until it ends; why it did.
fn follow(node: usize, program: &str, arguments: &[String], shared: &Mutex<Seen>) -> String {
    let node_of = |line: &[u8]| serde_json::from_slice::<Line>(line).ok()?.nodes.into_iter().next();
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return format!("can't start {program}: {error}"),
    };
    let (out, errors) = (child.stdout.take(), child.stderr.take());
    {
        let mut seen = lock(shared);
        if seen.is_over {
            let _ = child.kill();
        }
        seen.child = Some(child);
    }
    let said = Arc::new(Mutex::new(String::new()));
    let last = Arc::clone(&said);
    let listener = std::thread::spawn(move || {
        let mut reader = errors.map(BufReader::new);
        while let Some(line) = reader.as_mut().and_then(next_line) {
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if !line.is_empty() {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = line;
            }
        }
    });
    let mut reader = out.map(BufReader::new);
    while let Some(line) = reader.as_mut().and_then(next_line) {
        let Some(Node { mut sample }) = node_of(&line) else { continue };
        // By this machine's clock: others may go wrong.
        sample.time = sample::now();
        sample.node = node;
        let mut seen = lock(shared);
        let from = sample.time - WINDOW;
        seen.samples.push(sample);
        seen.samples.retain(|sample| sample.time >= from);
        seen.trouble = None;
    }
    drop(reader);
    let child = lock(shared).child.take();
    let status = child.map(|mut child| {
        let _ = child.kill();
        child.wait()
    });
    // What the shell has left running may keep its standard error open for ever.
    let until = Instant::now() + Duration::from_secs(1);
    while !listener.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match status {
        Some(Ok(status)) if said.is_empty() => format!("{program} ended: {status}"),
        Some(Ok(_)) => format!("{program}: {said}"),
        _ => format!("{program} is gone"),
    }
}
