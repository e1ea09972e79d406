//! What can be seen of a run while it works: `monitor` reads what the launchers collect.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{fails, launch, simulated_driver, stdout, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A run that is killed when this goes.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A run of two ranks that tunes for longer than any test looks.
fn long(dir: &Path, config: &str) -> (Run, PathBuf) {
    let run = dir.join("run");
    let program = assert_cmd::cargo::cargo_bin("reclora-launch");
    let child = Command::new(program)
        .args(["run", config, "--run-dir", run.to_str().unwrap(), "--nproc-per-node", "2"])
        .args(["--set", "tune.epochs=100000", "--set", "tune.models=['reclora']"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    (Run(child.unwrap()), run)
}

fn look(run: &Path) -> Option<serde_json::Value> {
    let output = launch(&["monitor", run.to_str()?, "--once", "--json"]).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

fn ranks(view: &serde_json::Value) -> Option<&Vec<serde_json::Value>> {
    view["nodes"][0]["sample"]["ranks"].as_array().filter(|ranks| ranks.len() == 2)
}

#[test]
fn a_run_is_seen_and_a_stopped_rank_named() {
    let (dir, config) = common::small();
    let (_launcher, run) = long(dir.path(), &config);
    let view = wait("both ranks of tune to be seen at work", || {
        let view = look(&run)?;
        let ranks = ranks(&view)?;
        let works = |rank: &serde_json::Value| rank["measures"]["steps"].as_u64() > Some(3);
        let seen = view["nodes"][0]["sample"]["stage"] == "tune" && ranks.iter().all(works);
        let rates = &view["nodes"][0]["rates"];
        (seen && rates[0].is_object() && rates[1].is_object()).then_some(view)
    });
    for rank in 0..2 {
        let seen = &view["nodes"][0]["sample"]["ranks"][rank];
        assert!(seen["measures"]["tokens"].as_u64() > Some(0), "{seen}");
        assert!(seen["measures"]["loss"].is_f64(), "{seen}");
        let entropy = seen["measures"]["gate_entropy"].as_f64().unwrap();
        assert!((0.0..=1.0 + 1e-9).contains(&entropy), "{seen}");
        assert!(seen["process"]["rss"].as_u64() > Some(1 << 20), "{seen}");
        let rates = &view["nodes"][0]["rates"][rank];
        assert!(rates["phases"][1].as_f64() > Some(0.0), "no forward: {rates}");
        assert!(rates["phases"][2].as_f64() > Some(0.0), "no backward: {rates}");
        assert!(rates["cpu"].as_f64() > Some(0.0), "{rates}");
    }
    let text = stdout(&["monitor", run.to_str().unwrap(), "--once"]);
    assert!(text.contains("tune RecLoRA") && text.contains("forward %"), "{text}");

    let pid = view["nodes"][0]["sample"]["ranks"][1]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGSTOP).unwrap();
    let verdict = wait("a verdict on the stopped rank", || {
        let verdicts = look(&run)?["verdicts"].clone();
        verdicts.as_array()?.iter().find(|verdict| verdict["kind"] == "stalled").cloned()
    });
    assert_eq!(verdict["rank"], 1, "{verdict}");
    assert!(verdict["figures"].as_str().unwrap().contains("is stopped"), "{verdict}");
}

#[test]
fn collecting_costs_little() {
    let (dir, config) = common::small();
    let (_launcher, run) = long(dir.path(), &config);
    let (first, last) = wait("ten seconds of samples", || {
        let text = std::fs::read_to_string(run.join("monitor/node_0.jsonl")).ok()?;
        let samples = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let samples: Vec<serde_json::Value> = samples.collect();
        let at = |sample: &serde_json::Value| {
            Some((sample["time"].as_f64()?, sample["collector_seconds"].as_f64()?))
        };
        let (first, last) = (at(samples.first()?)?, at(samples.last()?)?);
        (last.0 - first.0 >= 10.0).then_some((first, last))
    });
    // Processor time, not a duration: what else the machine does hardly changes it. The aim is 1 %.
    let share = (last.1 - first.1) / (last.0 - first.0);
    eprintln!("collecting took {:.3} % of a core", 100.0 * share);
    assert!(share < 0.05, "{share}");
}

#[test]
fn what_is_not_there_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let empty = fails(&["monitor", dir.path().to_str().unwrap(), "--once"], 1);
    assert!(empty.contains("nothing has been collected"), "{empty}");
    let missing = dir.path().join("none");
    let missing = fails(&["monitor", missing.to_str().unwrap()], 2);
    assert!(missing.contains("not a run directory"), "{missing}");
}

/// What `monitor` says of this machine with these GPUs.
fn machine(dir: &Path, gpus: &str, flags: &[&str]) -> String {
    let file = dir.join("gpus");
    std::fs::write(&file, gpus).unwrap();
    let mut command = launch(&["monitor"]);
    command.args(flags).env("LD_LIBRARY_PATH", dir).env("GPU_SIM_NVML", &file);
    let output = command.assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

#[test]
fn simulated_gpus_are_shown_through_the_driver() {
    let dir = tempfile::tempdir().unwrap();
    simulated_driver(dir.path());
    let mut gpus: Vec<String> = (0..8)
        .map(|gpu| format!("{} 10 {} 81559 {} 400000 1980 0 0", 10 * gpu, 1000 * gpu, 40 + gpu))
        .collect();
    // Nearly full; lost.
    gpus[6] = "99 90 81000 81559 91 700000 1200 64 0".into();
    gpus[7] = "0 0 0 81559 0 0 0 0 15".into();
    let text = machine(dir.path(), &gpus.join("\n"), &["--once"]);
    for expected in [
        "Simulated GPU",
        "lost:",
        "throttled: temperature (hardware)",
        "GPU lost: GPU 7",
        "memory near the limit: GPU 6",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    let json = machine(dir.path(), &gpus.join("\n"), &["--once", "--json"]);
    let view: serde_json::Value = serde_json::from_str(&json).unwrap();
    let seen = view["nodes"][0]["sample"]["gpus"].as_array().unwrap();
    assert_eq!(seen.len(), 8);
    let counters = &seen[5]["counters"];
    assert_eq!(counters["gpu_utilization_percent"], 50.0);
    assert_eq!(counters["memory_used_bytes"], 5000.0 * 1024.0 * 1024.0);
    assert_eq!(counters["power_watts"], 400.0);
    assert_eq!(counters["sm_clock_mhz"], 1980.0);
    // The simulated driver has no such function.
    assert_eq!(counters["energy_joules"], "not supported");
    assert_eq!(machine(dir.path(), "", &["--once"]).matches("GPUs: none").count(), 1);
}

#[test]
fn who_closes_the_pipe_has_seen_enough() {
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("reclora-launch"))
        .args(["monitor", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    let mut out = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut out, &mut byte).unwrap();
    drop(out);
    let status = wait("its end", || child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn other_machines_are_watched_through_a_remote_shell() {
    let dir = tempfile::tempdir().unwrap();
    simulated_driver(dir.path());
    std::fs::write(dir.path().join("gpus"), "55 0 10 100 50 1000 1000 0 0\n").unwrap();
    // Leaves out the host and the program's name, which need not be in the PATH here.
    let shell = format!(
        "host=$1; shift 2; test $host = up || {{ echo no route to $host >&2; exit 255; }}; \
         export LD_LIBRARY_PATH={0} GPU_SIM_NVML={0}/gpus; exec {1} \"$@\"\n",
        dir.path().display(),
        assert_cmd::cargo::cargo_bin("reclora-launch").display()
    );
    let script = dir.path().join("shell");
    std::fs::write(&script, shell).unwrap();
    let rsh = format!("sh {}", script.display());
    let hosts = ["monitor", "--hosts", "up,down", "--rsh", &rsh, "--once", "--json"];
    let view: serde_json::Value = serde_json::from_str(&stdout(&hosts)).unwrap();
    let up = &view["nodes"][0]["sample"]["gpus"][0]["counters"]["gpu_utilization_percent"];
    assert_eq!(*up, 55.0, "{view}");
    let down = view["nodes"][1]["sample"]["no_gpus"].as_str().unwrap();
    assert!(down.contains("no route to down"), "{down}");
    let option = fails(&["monitor", "--hosts=-oProxyCommand=x", "--once"], 2);
    assert!(option.contains("is no host"), "{option}");
    let both = fails(&["monitor", dir.path().to_str().unwrap(), "--hosts", "a"], 2);
    assert!(both.contains("cannot be used with"), "{both}");
}

#[test]
fn gpus_that_change_and_vanish_are_followed() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    simulated_driver(dir.path());
    let file = dir.path().join("gpus");
    let two = |utilization: u32| {
        let line = format!("{utilization} 0 10 100 50 1000 1000 0 0\n");
        let next = dir.path().join("next");
        std::fs::write(&next, format!("{line}{line}")).unwrap();
        std::fs::rename(next, &file).unwrap();
    };
    two(11);
    let child = Command::new(assert_cmd::cargo::cargo_bin("reclora-launch"))
        .args(["monitor", "--json"])
        .env("LD_LIBRARY_PATH", dir.path())
        .env("GPU_SIM_NVML", &file)
        .stdout(Stdio::piped())
        .spawn();
    let mut run = Run(child.unwrap());
    let lines = BufReader::new(run.0.stdout.take().unwrap()).lines();
    let mut views =
        lines.map(|line| -> serde_json::Value { serde_json::from_str(&line.unwrap()).unwrap() });
    let mut next = |what: &str, is: &dyn Fn(&serde_json::Value) -> bool| {
        let mut views = views.by_ref().take(10);
        views.find(|view| is(&view["nodes"][0]["sample"]["gpus"])).expect(what)
    };
    let utilization =
        |gpus: &serde_json::Value| gpus[1]["counters"]["gpu_utilization_percent"].clone();
    next("11 %", &|gpus| utilization(gpus) == 11.0);
    two(77);
    next("77 %", &|gpus| utilization(gpus) == 77.0);
    std::fs::write(&file, "77 0 10 100 50 1000 1000 0 0\n").unwrap();
    let view = next("a lost GPU", &|gpus| gpus[1]["lost"].is_string());
    assert_eq!(view["nodes"][0]["sample"]["gpus"][1]["name"], "Simulated GPU");
    assert_eq!(view["verdicts"][0]["kind"], "gpu-lost");
}
