//! Looks at this node each second, and writes down what it sees.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use color_eyre::eyre::WrapErr;

use super::goodput::Account;
use super::gpu::Driver;
use super::process;
use super::sample::{Goodput, Gpu, Rank, Sample, now};
use super::store::{self, LEADER, Writer};
use super::tensorboard::Scalars;
use super::watch::Watch;
use super::window::Window;
use crate::error::Result;
use crate::output::say;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// What looks at a machine.
pub struct Eyes {
    driver: Driver,
    gpus: Vec<Gpu>,
    host: String,
}

impl Eyes {
    /// Opens them.
    pub fn open() -> Self {
        Self { driver: Driver::open(), gpus: Vec::new(), host: process::host() }
    }

    /// The machine now, with these ranks.
    pub fn sample(&mut self, node: usize, stage: &str, mut ranks: Vec<Rank>) -> Sample {
        let looked = self.driver.look(&self.gpus);
        let no_gpus = looked.as_ref().err().cloned();
        self.gpus = looked.unwrap_or_default();
        for rank in &mut ranks {
            rank.process = process::look(rank.pid);
        }
        Sample {
            time: now(),
            node,
            host: self.host.clone(),
            stage: stage.to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            busy: process::busy(),
            memory: process::memory().unwrap_or_default(),
            gpus: self.gpus.clone(),
            no_gpus,
            ranks,
            goodput: Goodput::default(),
            collector_seconds: process::own_seconds(),
        }
    }
}

/// A thread that collects until this is dropped.
#[derive(Debug)]
pub struct Collector {
    watch: Arc<Watch>,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Begins; samples go to `RUN/monitor/NAME.jsonl`.
    pub fn start(run_dir: &Path, name: &str, node: usize) -> Result<Self> {
        let watch = Arc::new(Watch::default());
        let (end, ended) = channel();
        let mut account = (name == LEADER).then(|| account(run_dir));
        let mut writer = Writer::open(run_dir, name)?;
        let (seen, directory) = (Arc::clone(&watch), run_dir.join(super::tensorboard::DIR));
        let work = move || {
            let mut eyes = Eyes::open();
            let (mut said, mut is_over) = (false, false);
            let mut scalars = Scalars::new(&directory);
            while !is_over {
                is_over = ended.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout);
                let (stage, ranks) = seen.now();
                // The last look says that nothing is left here that could be missed.
                let ranks = if is_over { Vec::new() } else { ranks };
                let mut sample = eyes.sample(node, &stage, ranks);
                if let Some(account) = &mut account {
                    account.take(&mut sample);
                }
                let written = writer.write(&sample);
                let written = written.and(scalars.write(&seen.curves()));
                // The run goes on, unseen: watching must not end it.
                if let Err(error) = written
                    && !std::mem::replace(&mut said, true)
                {
                    say(&format!("what can be seen of this node is not written down: {error}"));
                }
            }
        };
        let thread = std::thread::Builder::new().name("collector".into()).spawn(work);
        let thread = thread.wrap_err("can't start a thread")?;
        Ok(Self { watch, end: Some(end), thread: Some(thread) })
    }

    /// What is to be notified of what this node's ranks do.
    pub fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }
}

/// What the run's time went to so far.
fn account(run_dir: &Path) -> Account {
    let windows = store::read(run_dir).unwrap_or_else(|error| {
        // The run goes on: watching must not stop it.
        say(&format!("what the run's time went to is counted anew: {error:#}"));
        Vec::new()
    });
    let last = |window: &Window| window.last().map_or(0.0, |sample| sample.time);
    let seen = windows.iter().map(last).fold(0.0, f64::max);
    let leader = windows.iter().find(|window| window.name == LEADER).and_then(Window::last);
    leader.map_or(Account::default(), |before| Account::after(before, seen, now()))
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
