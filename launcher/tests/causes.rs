//! Each verdict of `monitor`, provoked by a real cause. They need root, control groups (v1), iproute2 and a machine
//! with nothing else to do, so they are not among the tests that always run:
//!
//! cargo nextest run --release -p reclora-launcher --test causes --run-ignored only --test-threads 1 --no-capture
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{configs, launch, stdout};

/// Something that is killed when this goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A control group of a kind, for what is put into it.
struct Group(String);

impl Group {
    fn new(kind: &str, limits: &[(&str, &str)]) -> Self {
        let path = format!("/sys/fs/cgroup/{kind}/reclora-causes-{}", std::process::id());
        std::fs::create_dir(&path).unwrap();
        for (name, value) in limits {
            std::fs::write(format!("{path}/{name}"), value).unwrap();
        }
        Self(path)
    }

    fn take(&self, pid: u64) {
        std::fs::write(format!("{}/cgroup.procs", self.0), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(10);
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn shell(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

/// The launcher as it is run here: `before` it, and with these arguments.
fn run(before: &str, run_dir: &Path, args: &str) -> Running {
    let program = assert_cmd::cargo::cargo_bin("reclora-launch");
    let config = configs().join("quickstart.toml");
    let command = format!(
        "{before} {} run {} --run-dir {} --no-report {args}",
        program.display(),
        config.display(),
        run_dir.display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &command]).stdout(Stdio::null()).stderr(Stdio::null());
    Running(shell.spawn().unwrap())
}

/// Tunes for longer than anybody looks.
const TUNE: &str = "--nproc-per-node 2 --set tune.epochs=1000 --set tune.models=['reclora']";

fn look(run_dir: &Path) -> serde_json::Value {
    let output = launch(&["monitor", run_dir.to_str().unwrap(), "--once", "--json"]).output();
    serde_json::from_slice(&output.unwrap().stdout).unwrap_or_default()
}

/// What is seen first of what `is` looks for.
fn find<T>(run_dir: &Path, what: &str, is: impl Fn(&serde_json::Value) -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let view = look(run_dir);
        if let Some(found) = is(&view) {
            return found;
        }
        assert!(Instant::now() < until, "{what} was not seen: {}", view["verdicts"]);
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn ranks_of_tune(view: &serde_json::Value) -> Option<Vec<u64>> {
    let ranks = view["nodes"][0]["sample"]["ranks"].as_array()?;
    let at_work = ranks.iter().filter(|rank| rank["measures"]["steps"].as_u64() > Some(3));
    let pids: Vec<u64> = at_work.filter_map(|rank| rank["pid"].as_u64()).collect();
    (view["nodes"][0]["sample"]["stage"] == "tune" && pids.len() == 2).then_some(pids)
}

/// Waits until this verdict is the first, and returns it.
fn verdict(run_dir: &Path, kind: &str) -> serde_json::Value {
    let verdict = find(run_dir, kind, |view| {
        let first = &view["verdicts"][0];
        (first["kind"] == kind).then(|| first.clone())
    });
    eprintln!("{verdict}");
    verdict
}

#[test]
#[ignore = "needs an idle machine and root"]
fn an_undisturbed_run_is_compute_bound() {
    let dir = tempfile::tempdir().unwrap();
    let _run = run("exec", dir.path(), TUNE);
    find(dir.path(), "both ranks at work", ranks_of_tune);
    verdict(dir.path(), "compute-bound");
}

#[test]
#[ignore = "needs an idle machine and root"]
fn a_rank_without_cores_is_a_straggler() {
    let dir = tempfile::tempdir().unwrap();
    let group = Group::new("cpu", &[("cpu.cfs_quota_us", "20000")]);
    let run = run("exec", dir.path(), TUNE);
    let pids = find(dir.path(), "both ranks at work", ranks_of_tune);
    group.take(pids[1]);
    let verdict = verdict(dir.path(), "straggler");
    assert_eq!(verdict["rank"], 1, "{verdict}");
    drop(run);
}

#[test]
#[ignore = "needs an idle machine and root"]
fn cores_that_others_use_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let _run = run("exec", dir.path(), TUNE);
    find(dir.path(), "both ranks at work", ranks_of_tune);
    let busy = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let _busy: Vec<Running> = (0..2 * cores).map(|_| Running(busy())).collect();
    let verdict = verdict(dir.path(), "throttled");
    assert!(verdict["figures"].as_str().unwrap().contains("other programs use"), "{verdict}");
}

/// Two namespaces with a cable between them that carries 10 Mbit/s.
struct Link;

impl Link {
    fn new() -> Self {
        let link = Self;
        shell(
            "for n in 1 2; do ip netns add reclora-causes-$n; done
             ip link add causes1 netns reclora-causes-1 type veth peer name causes2 netns reclora-causes-2
             for n in 1 2; do
                 ip -n reclora-causes-$n addr add 10.199.7.$n/24 dev causes$n
                 ip -n reclora-causes-$n link set causes$n up
                 ip -n reclora-causes-$n link set lo up
                 tc -n reclora-causes-$n qdisc add dev causes$n root tbf rate 10mbit burst 32kbit latency 400ms
             done",
        );
        link
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let delete = "ip netns delete reclora-causes-1; ip netns delete reclora-causes-2";
        let _ = Command::new("sh").args(["-c", delete]).status();
    }
}

#[test]
#[ignore = "needs an idle machine and root"]
fn a_slow_link_makes_a_run_communication_bound() {
    let dir = tempfile::tempdir().unwrap();
    let _link = Link::new();
    let node = |node: usize| {
        let before =
            format!("export RECLORA_NNODES=2; exec ip netns exec reclora-causes-{}", node + 1);
        let args = format!(
            "--nproc-per-node 1 --rdzv-endpoint 10.199.7.1:29500 --node-rank {node} --set tune.epochs=1000 \
             --set tune.models=['reclora']"
        );
        run(&before, dir.path(), &args)
    };
    let (_first, _second) = (node(0), node(1));
    verdict(dir.path(), "communication-bound");
}

/// A disk that gives 2 MB/s, and memory for less than what is read.
#[test]
#[ignore = "needs an idle machine and root"]
fn a_slow_disk_makes_a_run_data_bound() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (data, run_dir) = (dir.path().join("data"), dir.path().join("run"));
    let size = ["--users", "100000", "--items", "20000", "--ratings", "10000000", "--seed", "1"];
    stdout(&[&["synth", data.to_str().unwrap()], &size[..]].concat());
    let disk = Group::new("blkio", &[]);
    let memory = Group::new("memory", &[("memory.limit_in_bytes", "250000000")]);
    let join =
        format!("for g in {} {}; do echo $$ > $g/cgroup.procs; done; exec", disk.0, memory.0);
    let args = format!(
        "--nproc-per-node 1 --set data.path={} --set data.format=movielens_25m --set data.memory_limit_mib=64 \
         --set 'data.label={{ greater = 3.0 }}' --set crm.epochs=50",
        data.display()
    );
    let run = run(&join, &run_dir, &args);
    find(&run_dir, "the CRM's training", |view| {
        let rank = &view["nodes"][0]["sample"]["ranks"][0];
        (rank["task"] == "train CRM" && rank["measures"]["steps"].as_u64() > Some(0)).then_some(())
    });
    let device = Command::new("stat").args(["-c", "%Hd:%Ld"]).arg(&run_dir).output().unwrap();
    let device = String::from_utf8(device.stdout).unwrap();
    let limit = |bytes: u32| {
        let limit = format!("{} {bytes}", device.trim());
        std::fs::write(format!("{}/blkio.throttle.read_bps_device", disk.0), limit).unwrap();
    };
    limit(2_000_000);
    verdict(&run_dir, "data-bound");
    // What waits for the disk can't be ended before it has read.
    limit(0);
    drop(run);
}
