//! Runs over several nodes (launchers on this machine): the same bits, and what becomes of the others when
//! one of them goes away.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{RESULTS, assert_gone, children, fails, launch, small};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Job {
    dir: tempfile::TempDir,
    config: String,
    endpoint: String,
}

impl Job {
    fn new() -> Self {
        let (dir, config) = small();
        // Free a moment ago; nothing else here asks for ports of its own choice.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        Self { dir, config, endpoint }
    }

    fn run_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The launcher of a node of two, two ranks each.
    fn node(&self, run_dir: &Path, node: usize, extra: &[&str]) -> Node {
        let log = self.dir.path().join(format!("node-{node}-{}", rand_name()));
        let child = Command::new(assert_cmd::cargo::cargo_bin("reclora-launch"))
            .args(["run", &self.config, "--run-dir", run_dir.to_str().unwrap()])
            .env("RECLORA_NNODES", "2")
            .args(["--nproc-per-node", "2", "--rdzv-endpoint", &self.endpoint])
            .args(["--node-rank", &node.to_string(), "--no-report"])
            .args(extra)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Node { child, log }
    }

    /// The results of an undisturbed run on one node.
    fn expected(&self) -> [Vec<u8>; 5] {
        let run_dir = self.run_dir("one");
        let args = ["run", &self.config, "--run-dir", run_dir.to_str().unwrap(), "--no-report"];
        launch(&args).args(["--nproc-per-node", "1"]).assert().success();
        results(&run_dir)
    }
}

fn rand_name() -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string()
}

fn results(run_dir: &Path) -> [Vec<u8>; 5] {
    RESULTS.map(|name| std::fs::read(run_dir.join(name)).unwrap())
}

/// A launcher; killed when dropped.
struct Node {
    child: Child,
    log: PathBuf,
}

impl Node {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits for it to end by itself.
    fn ends_within(&mut self, seconds: u64) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it has so many ranks, and returns their pids.
    fn ranks(&mut self, count: usize) -> Vec<i32> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let pid = self.child.id();
        loop {
            let ranks = children(pid);
            if ranks.len() == count {
                return ranks;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "has ended:\n{}", self.log());
            assert!(Instant::now() < deadline, "no {count} ranks:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn d1_two_nodes_give_the_bits_of_one() {
    let job = Job::new();
    let run_dir = job.run_dir("two");
    // The agent comes first: it waits for the leader, and for what the leader makes.
    let mut agent = job.node(&run_dir, 1, &[]);
    std::thread::sleep(Duration::from_millis(300));
    let mut leader = job.node(&run_dir, 0, &[]);
    let expected = job.expected();
    assert!(leader.ends_within(100).success(), "{}", leader.log());
    assert!(agent.ends_within(5).success(), "{}", agent.log());
    assert!(results(&run_dir) == expected, "two nodes have other bytes");
    assert!(leader.log().contains("node 1 is here: 127.0.0.1"), "{}", leader.log());
    // The logs of all ranks are in the run directory, whoever started them.
    assert!(run_dir.join("logs/tune/attempt_1/rank_3/stderr.log").is_file());
    launch(&["verify", run_dir.to_str().unwrap()]).assert().success();
}

/// S-2, S-4, D-2: an agent that is killed is missed at once, and the same commands go on.
#[test]
fn s4_a_killed_agent_ends_the_run_and_the_same_commands_go_on() {
    let job = Job::new();
    let run_dir = job.run_dir("killed");
    let mut leader = job.node(&run_dir, 0, &[]);
    let mut agent = job.node(&run_dir, 1, &[]);
    let (of_agent, of_leader) = (agent.ranks(2), leader.ranks(2));
    agent.send(Signal::SIGKILL);
    assert_eq!(leader.ends_within(5).code(), Some(3), "{}", leader.log());
    assert_gone(&[of_agent, of_leader].concat(), "its node was killed");
    let log = leader.log();
    let lost = |rank: u32| log.contains(&format!("rank {rank} (node 1 at 127.0.0.1) is lost"));
    assert!(lost(2) || lost(3), "{log}");
    assert!(log.contains("the launcher of its node ended or did not answer"), "{log}");
    agent.ends_within(5);
    let mut leader = job.node(&run_dir, 0, &[]);
    let mut agent = job.node(&run_dir, 1, &[]);
    assert!(leader.ends_within(100).success(), "{}", leader.log());
    assert!(agent.ends_within(5).success(), "{}", agent.log());
    assert!(results(&run_dir) == job.expected(), "other bytes");
}

/// With restarts the leader waits for the node to come back.
#[test]
fn d2_an_agent_that_is_killed_and_started_again_is_taken_in() {
    let job = Job::new();
    let run_dir = job.run_dir("restarted");
    let mut leader = job.node(&run_dir, 0, &["--max-restarts", "5"]);
    for _ in 0..2 {
        let mut agent = job.node(&run_dir, 1, &[]);
        agent.ranks(2);
        std::thread::sleep(Duration::from_millis(200));
        agent.send(Signal::SIGKILL);
    }
    let mut agent = job.node(&run_dir, 1, &[]);
    assert!(leader.ends_within(100).success(), "{}", leader.log());
    assert!(agent.ends_within(5).success(), "{}", agent.log());
    assert!(leader.log().contains("starting the ranks again"), "{}", leader.log());
    assert!(results(&run_dir) == job.expected(), "other bytes");
}

/// S-2: what agents report while the leader stands still is more than it keeps at a time.
#[test]
fn a_leader_that_stood_still_catches_up() {
    let job = Job::new();
    let run_dir = job.run_dir("still");
    // Many small steps, each of which is reported.
    let small = ["--set", "crm.batch_size=16", "--set", "crm.micro_batches=4"];
    let mut leader = job.node(&run_dir, 0, &small);
    let mut agent = job.node(&run_dir, 1, &small);
    let log = run_dir.join("logs/pretrain/attempt_1/rank_2/stdout.log");
    let steps = || std::fs::read_to_string(&log).map_or(0, |log| log.matches("loss").count());
    common::wait("steps", || (steps() > 10).then_some(()));
    leader.send(Signal::SIGSTOP);
    let before = steps();
    std::thread::sleep(Duration::from_secs(4));
    leader.send(Signal::SIGCONT);
    let reported = 2 * (steps() - before);
    assert!(leader.ends_within(60).success(), "{reported} events\n{}", leader.log());
    assert!(agent.ends_within(5).success(), "{reported} events\n{}", agent.log());
    eprintln!("{reported} events while the leader stood still");
}

/// D-1: a job that may have fewer nodes goes on without a lost one, and with it again when it is back.
#[test]
fn d1_a_job_of_one_to_two_nodes_shrinks_and_grows() {
    let job = Job::new();
    let run_dir = job.run_dir("elastic");
    let args = ["--nnodes", "1:2", "--max-restarts", "3", "--rejoin-timeout", "1"];
    let mut leader = job.node(&run_dir, 0, &args);
    let mut agent = job.node(&run_dir, 1, &args);
    agent.ranks(2);
    std::thread::sleep(Duration::from_millis(200));
    agent.send(Signal::SIGKILL);
    let seen = |text: &str| leader.log().contains(text).then_some(());
    common::wait("the leader alone", || seen("going on with 1 of 2 nodes"));
    let mut agent = job.node(&run_dir, 1, &args);
    common::wait("both again", || seen("going on with 2 of 2 nodes"));
    assert!(leader.ends_within(100).success(), "{}", leader.log());
    assert!(agent.ends_within(5).success(), "{}", agent.log());
    assert!(results(&run_dir) == job.expected(), "other bytes");
}

#[test]
fn s4_agents_end_with_their_leader() {
    let job = Job::new();
    let run_dir = job.run_dir("led");
    let mut leader = job.node(&run_dir, 0, &[]);
    let mut agent = job.node(&run_dir, 1, &[]);
    let ranks = [agent.ranks(2), leader.ranks(2)].concat();
    leader.send(Signal::SIGKILL);
    assert_eq!(agent.ends_within(5).code(), Some(1), "{}", agent.log());
    assert_gone(&ranks, "the leader was killed");
    assert!(agent.log().contains("node 0 is gone; every rank here has been ended"));
    leader.ends_within(1);
    // A leader that fails says so.
    let mut leader = job.node(&run_dir, 0, &["--set", "crm.epochs=3"]);
    let mut agent = job.node(&run_dir, 1, &[]);
    agent.ranks(2);
    leader.send(Signal::SIGTERM);
    assert_eq!(leader.ends_within(5).code(), Some(128 + 15), "{}", leader.log());
    assert_eq!(agent.ends_within(5).code(), Some(128 + 15), "{}", agent.log());
    assert!(agent.log().contains("node 0 has ended: SIGTERM"), "{}", agent.log());
}

/// S-2: an agent that stands still is as good as gone after some seconds.
#[test]
fn s2_an_agent_that_stands_still_is_missed() {
    let job = Job::new();
    let run_dir = job.run_dir("still");
    let mut leader = job.node(&run_dir, 0, &["--set", "runtime.collective_timeout=60"]);
    let mut agent = job.node(&run_dir, 1, &[]);
    let ranks = agent.ranks(2);
    // Long enough for them to have tied their lives to the agent's.
    std::thread::sleep(Duration::from_millis(100));
    for rank in &ranks {
        kill(Pid::from_raw(*rank), Signal::SIGSTOP).unwrap();
    }
    agent.send(Signal::SIGSTOP);
    assert_eq!(leader.ends_within(20).code(), Some(3), "{}", leader.log());
    assert!(leader.log().contains("is lost"), "{}", leader.log());
    agent.send(Signal::SIGKILL);
    assert_gone(&ranks, "the agent stood still and was killed");
}

#[test]
fn s2_s3_nodes_that_do_not_come_or_do_not_belong_are_named() {
    let job = Job::new();
    let run_dir = job.run_dir("missing");
    let soon = ["--set", "runtime.rendezvous_timeout=3", "--rdzv-id", "a"];
    let mut leader = job.node(&run_dir, 0, &soon);
    // Of another job, and one that there is no place for.
    let mut other = job.node(&run_dir, 1, &["--rdzv-id", "b"]);
    assert_eq!(other.ends_within(20).code(), Some(1), "{}", other.log());
    assert!(other.log().contains("its --rdzv-id is b, the job's is a"), "{}", other.log());
    assert_eq!(leader.ends_within(20).code(), Some(3), "{}", leader.log());
    assert!(leader.log().contains("was sent away: its --rdzv-id is b"), "{}", leader.log());
    assert!(leader.log().contains("node 1 did not come within 3 s"), "{}", leader.log());
    // Nobody leads.
    let mut agent = job.node(&job.run_dir("nobody"), 1, &soon);
    assert_eq!(agent.ends_within(20).code(), Some(1), "{}", agent.log());
    assert!(agent.log().contains("node 0 has not made"), "{}", agent.log());
}

/// The environment stands for the flags, unless `--standalone` says otherwise.
#[test]
fn the_environment_is_used_unless_the_node_stands_alone() {
    let job = Job::new();
    let run_dir = job.run_dir("alone");
    let args = ["run", &job.config, "--run-dir", run_dir.to_str().unwrap(), "--only", "prepare"];
    let run = |extra: &[&str]| {
        let mut command = launch(&[&args[..], extra].concat());
        // An address of no machine here.
        command.env("RECLORA_NNODES", "2").env("RECLORA_RDZV_ENDPOINT", "192.0.2.1:29500");
        command.env("RECLORA_NODE_RANK", "2");
        command
    };
    let output = run(&[]).assert().code(2).get_output().stderr.clone();
    let error = String::from_utf8(output).unwrap();
    assert!(error.contains("--node-rank 2: nodes are counted from 0"), "{error}");
    run(&["--standalone"]).assert().success();
    run(&[]).env("RECLORA_STANDALONE", "1").assert().success();
    run(&[]).env("RECLORA_STANDALONE", "0").assert().code(2);
}

#[test]
fn flags_that_can_not_work_are_usage_errors() {
    let (_dir, config) = small();
    let refused = |args: &[&str]| fails(&[&["run", config.as_str()], args].concat(), 2);
    assert!(refused(&["--nnodes", "2"]).contains("--rdzv-endpoint HOST:PORT"));
    assert!(refused(&["--nnodes", "2", "--node-rank", "2"]).contains("counted from 0"));
    assert!(refused(&["--nnodes", "0"]).contains("--nnodes"));
    let odd = ["--nnodes", "3", "--rdzv-endpoint", "127.0.0.1:1"];
    assert!(refused(&odd).contains("power of two"));
}
