//! Chaos: a run over two nodes of two ranks, in which ranks, the agent and the leader are killed and stopped at
//! random every few seconds. It ends with the bytes of an undisturbed run (D-2), and nothing of it is left (S-4).
//!
//! RECLORA_CHAOS_FAULTS sets the number of faults.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
#[path = "common/workers.rs"]
mod workers;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{assert_gone, assert_same_results, children, launch, small};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use workers::Random;

/// How long the whole may take, per fault.
const PATIENCE: Duration = Duration::from_secs(40);

/// The launchers of a job, which are started again when they have ended, as a scheduler would.
struct Job {
    config: String,
    run_dir: PathBuf,
    endpoint: String,
    nodes: [Option<Child>; 2],
    /// When a launcher that stands still goes on.
    thaws: Vec<(Instant, i32)>,
    /// Every process that was seen.
    seen: BTreeSet<i32>,
    restarts: usize,
}

impl Job {
    fn new(config: &str, run_dir: &Path) -> Self {
        // Free a moment ago; nothing else here asks for ports of its own choice.
        let endpoint = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        Self {
            config: config.into(),
            run_dir: run_dir.into(),
            endpoint,
            nodes: [None, None],
            thaws: Vec::new(),
            seen: BTreeSet::new(),
            restarts: 0,
        }
    }

    fn start(&self, node: usize) -> Child {
        let log = self.run_dir.with_extension(format!("node-{node}.log"));
        let log = std::fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
        Command::new(assert_cmd::cargo::cargo_bin("reclora-launch"))
            .args(["run", &self.config, "--run-dir", self.run_dir.to_str().unwrap(), "--no-report"])
            .args(["--nnodes", "2", "--nproc-per-node", "2", "--rdzv-endpoint", &self.endpoint])
            .args(["--node-rank", &node.to_string(), "--max-restarts", "1000"])
            .args(["--set", "runtime.heartbeat_timeout=4"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Starts what is missing; returns whether the leader has finished.
    fn keep_up(&mut self) -> bool {
        let now = Instant::now();
        for (_, pid) in self.thaws.extract_if(.., |(when, _)| *when <= now) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
        for node in 0..2 {
            let ended = self.nodes[node].as_mut().map(|child| child.try_wait().unwrap());
            match ended {
                Some(Some(status)) if status.success() && node == 0 => return true,
                Some(Some(_)) => {
                    self.nodes[node] = None;
                    self.restarts += 1;
                }
                Some(None) => {}
                None => self.nodes[node] = Some(self.start(node)),
            }
            if let Some(child) = &self.nodes[node] {
                self.seen.extend(children(child.id()));
            }
        }
        false
    }

    /// Hurts somebody; returns what was done, if there was somebody.
    fn hurt(&mut self, random: &mut Random) -> Option<String> {
        let node = (random.unit() * 2.0) as usize;
        let launcher = self.nodes[node].as_ref()?.id();
        let ranks = children(launcher);
        let (name, pid) = if random.unit() < 0.5 {
            let rank = *ranks.get((random.unit() * ranks.len() as f64) as usize)?;
            (format!("a rank of node {node}"), rank)
        } else {
            (["the leader", "the agent"][node].to_owned(), launcher as i32)
        };
        if random.unit() < 0.5 {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok()?;
            return Some(format!("{name} was killed"));
        }
        kill(Pid::from_raw(pid), Signal::SIGSTOP).ok()?;
        // Ranks stay still until they are missed. A launcher mostly comes back, sometimes too late.
        let late = random.unit() < 0.2;
        let seconds = if late { 12.0 } else { 3.0 * random.unit() };
        if pid == launcher as i32 {
            self.thaws.push((Instant::now() + Duration::from_secs_f64(seconds), pid));
            return Some(format!("{name} stood still for {seconds:.1} s"));
        }
        Some(format!("{name} was stopped"))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Files of a run that last: all but logs, what processes lock while they run, and checkpoints, of which those that
/// are left depend on where the run was interrupted.
fn files(run_dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut pending = vec![run_dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.strip_prefix(run_dir).unwrap().to_owned();
            match path.is_dir() {
                true if name == Path::new("logs") || name == Path::new(".ranks") => {}
                true if name.ends_with("checkpoints") => {}
                true => pending.push(path),
                false => drop(found.insert(name)),
            }
        }
    }
    found
}

#[test]
fn e2e_d2_s4_chaos_changes_nothing() {
    let wanted = std::env::var("RECLORA_CHAOS_FAULTS").map_or(10, |n| n.parse().unwrap());
    let (dir, config) = small();
    // Longer, for more to happen in it.
    let text = std::fs::read_to_string(&config).unwrap();
    let longer = text.replace("few_shot = 96\nepochs = 2", "few_shot = 96\nepochs = 8");
    assert_ne!(text, longer);
    std::fs::write(&config, longer).unwrap();
    let alone = dir.path().join("alone");
    let args = ["run", &config, "--run-dir", alone.to_str().unwrap(), "--no-report"];
    launch(&args).assert().success();
    let mut random = Random::from_clock();
    let mut faults = Vec::new();
    let mut runs = 0;
    while faults.len() < wanted {
        let run_dir = dir.path().join(format!("run-{runs}"));
        runs += 1;
        let mut job = Job::new(&config, &run_dir);
        let until = Instant::now() + PATIENCE * (wanted as u32);
        let mut next = Instant::now() + Duration::from_secs(1);
        while !job.keep_up() {
            assert!(Instant::now() < until, "no end after {faults:#?}");
            if Instant::now() >= next && faults.len() < wanted {
                faults.extend(job.hurt(&mut random));
                next = Instant::now() + Duration::from_secs_f64(1.0 + 3.0 * random.unit());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The agent is notified, or finds its leader gone.
        if let Some(agent) = &mut job.nodes[1] {
            for (_, pid) in job.thaws.drain(..) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
            }
            let until = Instant::now() + Duration::from_secs(75);
            while agent.try_wait().unwrap().is_none() {
                assert!(Instant::now() < until, "the agent is still there after {faults:#?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let seen: Vec<i32> = job.seen.iter().copied().collect();
        assert_gone(&seen, &format!("{faults:#?}"));
        assert!(TcpListener::bind(&job.endpoint).is_ok(), "the port is taken after {faults:#?}");
        assert_same_results(&alone, &run_dir, &format!("after {faults:#?}"));
        let mut extra: Vec<PathBuf> = files(&run_dir).difference(&files(&alone)).cloned().collect();
        // Every launcher, and every worker group that goes back, begins a file of curves.
        extra.retain(|path| !path.starts_with("tensorboard"));
        // What leader and agent share, and what was seen of the agent's node.
        let expected = [".secret", "monitor/node_1.jsonl"].map(PathBuf::from);
        assert_eq!(extra, expected, "after {faults:#?}");
        eprintln!(
            "run {runs}: {} faults so far, {} launchers started again",
            faults.len(),
            job.restarts
        );
    }
    eprintln!("{faults:#?}");
}
