//! Runs on a real Slurm of four nodes: submitted, requeued, preempted, crashed, cut off, cancelled. Each ends with
//! the bytes of an undisturbed run on one machine (D-1, D-2), or with nothing left of it (S-4).
//!
//! `scripts/test.sh` starts the cluster (`scripts/slurm/cluster.sh`) and says in RECLORA_SLURM where it is.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
#[path = "../../tests/skip.rs"]
mod skip;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{assert_same_results, configs, launch, small};
use skip::skip;

/// Where the cluster is; without one the test is skipped.
fn cluster() -> Option<Cluster> {
    let Ok(dir) = std::env::var("RECLORA_SLURM") else {
        skip(
            "needs a Slurm of four nodes, which scripts/test.sh starts as root with network namespaces",
        );
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let cluster = Cluster { script: script.join("scripts/slurm/cluster.sh"), dir };
    cluster.empty();
    Some(cluster)
}

struct Cluster {
    script: PathBuf,
    dir: String,
}

impl Cluster {
    /// What a command of the cluster's script says.
    fn control(&self, args: &[&str]) -> String {
        let output = Command::new(&self.script)
            .args([&args[..1], &[self.dir.as_str()], &args[1..]].concat())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}\n{text}{error}", output.status);
        text
    }

    /// Ends what a test before this one may have left, and waits until all nodes are there.
    fn empty(&self) {
        self.control(&["boot", "head"]);
        for node in ["n1", "n2", "n3", "n4"] {
            self.control(&["heal", node]);
            self.control(&["boot", node]);
        }
        self.on_head(&["scancel", "--user", "root"]);
        let until = Instant::now() + Duration::from_secs(60);
        while !self.on_head(&["squeue", "--noheader"]).is_empty() {
            assert!(Instant::now() < until, "jobs stay: {}", self.on_head(&["squeue", "-l"]));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// An undisturbed run on one machine, made by the first test that needs it.
    fn alone(&self, config: &str, settings: &[&str]) -> PathBuf {
        let name: String = settings.concat().chars().filter(char::is_ascii_alphanumeric).collect();
        let run_dir = Path::new(&self.dir).join(format!("alone-{name}"));
        if !run_dir.join("predictions/manifest.json").exists() {
            let args = ["run", config, "--run-dir", run_dir.to_str().unwrap(), "--no-report"];
            launch(&args).args(settings).assert().success();
        }
        run_dir
    }

    /// One of Slurm's programs, or ours, on the head node.
    fn on_head(&self, args: &[&str]) -> String {
        self.control(&[&["exec"], args].concat())
    }

    fn reclora(&self, args: &[&str]) -> String {
        let program = assert_cmd::cargo::cargo_bin("reclora-launch");
        self.on_head(&[&[program.to_str().unwrap()], args].concat())
    }

    /// What our program says on standard error that must end with `code`.
    fn reclora_fails(&self, args: &[&str], code: i32) -> String {
        let program = assert_cmd::cargo::cargo_bin("reclora-launch");
        let output = Command::new(&self.script)
            .args(["exec", &self.dir, program.to_str().unwrap()])
            .args(args)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        error
    }
}

/// What each job of a run has said, by the name of its file.
fn outputs(run_dir: &str) -> Vec<(String, String)> {
    let files = std::fs::read_dir(Path::new(run_dir).join("slurm")).unwrap();
    let paths = files.map(|file| file.unwrap().path().display().to_string());
    let paths = paths.filter(|path| path.ends_with(".out"));
    paths.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// A submitted run.
struct Run<'a> {
    cluster: &'a Cluster,
    dir: tempfile::TempDir,
    config: String,
    extra: Vec<String>,
    id: String,
}

impl<'a> Run<'a> {
    /// Of an experiment that is long enough for something to happen to it.
    fn submit(cluster: &'a Cluster, extra: &[&str]) -> Self {
        let (dir, config) = small();
        let extra = [&["--set", "tune.epochs=12"], extra].concat();
        let extra = extra.iter().map(|&word| word.to_owned()).collect();
        let mut run = Run { cluster, dir, config, extra, id: String::new() };
        run.submit_again();
        run
    }

    fn submit_again(&mut self) {
        let (config, run_dir) = (self.config.clone(), self.run_dir());
        let extra: Vec<&str> = self.extra.iter().map(String::as_str).collect();
        let args =
            ["submit", &config, "--run-dir", &run_dir, "--nodes", "4", "--nproc-per-node", "1"];
        let said = self.cluster.reclora(&[&args[..], &extra].concat());
        let id = said.lines().next().and_then(|line| line.strip_prefix("submitted job "));
        self.id = id.unwrap_or_else(|| panic!("{said}")).to_owned();
    }

    fn run_dir(&self) -> String {
        self.dir.path().join("run").display().to_string()
    }

    /// A field of what Slurm knows of the job.
    fn field(&self, name: &str) -> String {
        let record = self.cluster.on_head(&["scontrol", "--oneliner", "show", "job", &self.id]);
        let field = |word: &str| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        record.split_whitespace().find_map(field).unwrap_or_else(|| panic!("{name}: {record}"))
    }

    fn output(&self) -> String {
        let path = self.dir.path().join(format!("run/slurm/run-{}.out", self.id));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Waits for something that is looked at every 100 ms.
    fn wait(&self, what: &str, seconds: u64, mut there: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(seconds);
        while !there() {
            let queue = || self.cluster.on_head(&["squeue", "-l"]);
            assert!(
                Instant::now() < until,
                "{what}: not within {seconds} s\n{}\n{}",
                queue(),
                self.output()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Until the ranks tune, and have left a checkpoint.
    fn wait_for_tuning(&self) {
        let checkpoints = self.dir.path().join("run/adapter/checkpoints/RecLoRA");
        let there =
            || std::fs::read_dir(&checkpoints).is_ok_and(|mut files| files.next().is_some());
        self.wait("a checkpoint", 120, there);
    }

    /// Until the job has ended well, with the bytes of an undisturbed run.
    fn completes(&self, seconds: u64) {
        self.wait("the end of the job", seconds, || {
            let state = self.field("JobState");
            // Others pass: SIGNALING, PREEMPTED, NODE_FAIL, ...
            let failed = ["FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL"];
            assert!(!failed.contains(&state.as_str()), "{state}\n{}", self.output());
            state == "COMPLETED"
        });
        let settings = self.extra.iter().skip_while(|word| *word != "--set");
        let settings: Vec<&str> = settings.map(String::as_str).collect();
        let alone = self.cluster.alone(&self.config, &settings);
        assert_same_results(&alone, &self.dir.path().join("run"), &self.output());
        assert_eq!(self.processes(), Vec::<String>::new());
    }

    /// Processes that have to do with the run.
    fn processes(&self) -> Vec<String> {
        let ours = self.run_dir();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let text = |path: PathBuf| {
            let bytes = std::fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        all.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
            .filter(|entry| text(entry.path().join("environ")).contains(&ours))
            .map(|entry| text(entry.path().join("cmdline")))
            // One that has ended and was not waited for has no command line.
            .filter(|command| !command.is_empty())
            .collect()
    }
}

/// The shipped experiment, without the model it is compared with and with a part of the test set.
#[test]
fn e2e_slurm_a_submitted_quickstart_completes_and_is_watched() {
    let Some(cluster) = cluster() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let config = configs().join("quickstart.toml").display().to_string();
    let run_dir = path("run");
    let args = ["submit", &config, "--run-dir", &run_dir, "--nodes", "4", "--nproc-per-node", "1"];
    let shorter = ["--set", "tune.models=['reclora']", "--set", "evaluate.limit=1000"];
    let args = [&args[..], &["--time", "20"], &shorter].concat();
    let script = cluster.reclora(&[&args[..], &["--dry-run"]].concat());
    assert!(!Path::new(&run_dir).exists(), "a dry run writes nothing");
    let said = cluster.reclora(&args);
    assert!(said.contains(&format!("reclora-launch logs {run_dir} --follow")), "{said}");
    assert_eq!(std::fs::read_to_string(path("run/slurm/run.sbatch")).unwrap(), script);
    let status = cluster.reclora(&["status", &run_dir]);
    assert!(status.contains("PENDING") || status.contains("RUNNING"), "{status}");
    // Ends with the job.
    let log = cluster.reclora(&["logs", &run_dir, "--follow"]);
    assert!(log.contains("led by node 0") && log.contains("report: "), "{log}");
    let status = cluster.reclora(&["status", &run_dir]);
    assert!(status.contains("COMPLETED") && status.matches("done").count() == 9, "{status}");
    let status = cluster.reclora(&["status", &run_dir, "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["jobs"][0]["state"], "COMPLETED");
    let rank = cluster.reclora(&["logs", &run_dir, "--rank", "3", "--stage", "tune"]);
    assert_eq!(rank, "");
    let id = said.lines().next().unwrap().trim_start_matches("submitted job ");
    let seen = cluster.reclora(&["monitor", "--slurm", id, "--once"]);
    assert!(seen.contains("node_3 (n4)") && seen.contains("goodput"), "{seen}");
    let unknown = cluster.reclora_fails(&["monitor", "--slurm", "999999", "--once"], 1);
    assert!(unknown.contains("Invalid job id"), "{unknown}");
    let alone = path("alone");
    let args = ["run", &config, "--run-dir", &alone, "--nproc-per-node", "2", "--no-report"];
    launch(&args).args(shorter).timeout(Duration::from_secs(300)).assert().success();
    assert_same_results(alone.as_ref(), run_dir.as_ref(), "");
}

/// What `--signal=B:USR1@120` does before the time limit.
#[test]
fn e2e_slurm_a_signal_before_the_limit_saves_and_requeues() {
    let Some(cluster) = cluster() else { return };
    let run = Run::submit(&cluster, &[]);
    run.wait_for_tuning();
    cluster.on_head(&["scancel", "--batch", "--signal=USR1", &run.id]);
    run.completes(120);
    let output = run.output();
    assert!(output.contains("every rank has saved what it had"), "{output}");
    assert!(output.contains("exit code 75: requeued"), "{output}");
    assert_eq!(run.field("Restarts"), "1", "{output}");
}

/// Slurm tells only the ranks of a step, and gives them GraceTime.
#[test]
fn e2e_slurm_a_preempted_run_saves_and_comes_back() {
    let Some(cluster) = cluster() else { return };
    let run = Run::submit(&cluster, &[]);
    run.wait_for_tuning();
    let urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--exclusive"];
    let urgent = [&urgent[..], &["--output=/dev/null", "--wrap", "sleep 1"]].concat();
    cluster.on_head(&urgent);
    run.completes(180);
    let output = run.output();
    assert!(output.contains("SIGTERM: ranks finish their step and save it"), "{output}");
    assert!(output.contains("every rank has saved what it had"), "{output}");
    assert_eq!(run.field("Restarts"), "1", "{output}");
}

#[test]
fn e2e_slurm_a_crashed_node_is_made_up_for() {
    let Some(cluster) = cluster() else { return };
    let run = Run::submit(&cluster, &[]);
    run.wait_for_tuning();
    cluster.control(&["crash", "n3"]);
    run.wait("news of the crash", 30, || run.output().contains("node 2 did not come within 0 s"));
    cluster.control(&["boot", "n3"]);
    run.completes(180);
    assert_ne!(run.field("Restarts"), "0", "{}", run.output());
}

/// Shorter than anybody's patience: nothing is started again.
#[test]
fn e2e_slurm_a_cable_that_is_cut_for_5_s_is_waited_for() {
    let Some(cluster) = cluster() else { return };
    let run = Run::submit(&cluster, &[]);
    run.wait_for_tuning();
    cluster.control(&["cut", "n3"]);
    std::thread::sleep(Duration::from_secs(5));
    cluster.control(&["heal", "n3"]);
    run.completes(120);
    assert_eq!(run.field("Restarts"), "0", "{}", run.output());
    assert!(!run.output().contains("starting the ranks again"), "{}", run.output());
}

#[test]
fn e2e_slurm_a_cable_that_is_cut_for_60_s_is_a_lost_node() {
    let Some(cluster) = cluster() else { return };
    let run = Run::submit(&cluster, &[]);
    run.wait_for_tuning();
    cluster.control(&["cut", "n3"]);
    let cut = Instant::now();
    run.wait("news of the cut", 30, || run.output().contains("node 2 did not come within 0 s"));
    std::thread::sleep(Duration::from_secs(60).saturating_sub(cut.elapsed()));
    cluster.control(&["heal", "n3"]);
    run.completes(240);
    assert_ne!(run.field("Restarts"), "0", "{}", run.output());
}

#[test]
fn e2e_slurm_a_run_does_not_need_the_controller() {
    let Some(cluster) = cluster() else { return };
    let run = Run::submit(&cluster, &["--set", "tune.epochs=30"]);
    run.wait_for_tuning();
    // The controller writes down every few seconds which jobs there are.
    std::thread::sleep(Duration::from_secs(7));
    cluster.control(&["crash", "head"]);
    run.wait("the end of the run", 120, || run.output().contains("report: "));
    cluster.control(&["boot", "head"]);
    run.completes(120);
    assert_eq!(run.field("Restarts"), "0", "{}", run.output());
}

#[test]
fn e2e_slurm_s4_a_cancelled_run_leaves_nothing_and_can_be_submitted_again() {
    let Some(cluster) = cluster() else { return };
    let mut run = Run::submit(&cluster, &[]);
    run.wait_for_tuning();
    assert!(!run.processes().is_empty());
    // Two jobs can't work in one directory.
    let twice = cluster.reclora_fails(&["submit", &run.config, "--run-dir", &run.run_dir()], 2);
    assert!(twice.contains(&format!("job {} of this run is running still", run.id)), "{twice}");
    let said = cluster.reclora(&["cancel", &run.run_dir()]);
    assert_eq!(said, format!("cancelled job {}\n", run.id));
    run.wait("the end of its processes", 10, || run.processes().is_empty());
    assert_eq!(run.field("JobState"), "CANCELLED");
    // It would have been back by now, if the script had requeued it.
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!((run.field("JobState"), run.field("Restarts")), ("CANCELLED".into(), "0".into()));
    assert!(cluster.reclora(&["cancel", &run.run_dir()]).contains("no job of this run"));
    run.submit_again();
    run.completes(120);
}

#[test]
fn e2e_slurm_stages_can_be_jobs_that_wait_for_each_other() {
    let Some(cluster) = cluster() else { return };
    let (dir, config) = small();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let run_dir = path("run");
    let args = ["submit", &config, "--run-dir", &run_dir, "--nodes", "2", "--nproc-per-node", "1"];
    let chain = ["--array-of-stages", "--few2many-jobs", "3", "--cpu-partition", "test"];
    let said = cluster.reclora(&[&args[..], &chain].concat());
    assert_eq!(said.matches("submitted job").count(), 10, "{said}");
    let log = cluster.reclora(&["logs", &run_dir, "--stage", "export", "--follow"]);
    let status = cluster.reclora(&["status", &run_dir]);
    let outputs = outputs(&run_dir);
    let complete = log.contains("report: ") && status.matches("COMPLETED").count() == 10;
    assert!(complete, "{log}\n{status}\n{}\n{outputs:?}", cluster.on_head(&["sinfo", "-Nl"]));
    for part in 0..3 {
        let (_, text) = outputs.iter().find(|o| o.0.ends_with(&format!("_{part}.out"))).unwrap();
        assert!(text.contains(&format!("few2many  part {part}/3 done")), "{text}");
    }
    let alone = cluster.alone(&config, &[]);
    assert_same_results(alone.as_ref(), run_dir.as_ref(), "");
}

/// The GPUs are there in name only; a rank for each of them works on the CPU.
#[test]
fn e2e_slurm_there_is_a_rank_for_every_gpu() {
    let Some(cluster) = cluster() else { return };
    let (dir, config) = small();
    let run_dir = dir.path().join("run").display().to_string();
    let args = ["submit", &config, "--run-dir", &run_dir, "--nodes", "2", "--gpus-per-node", "2"];
    let said = cluster.reclora(&[&args[..], &["--cpus-per-node", "3"]].concat());
    let id = said.lines().next().unwrap().trim_start_matches("submitted job ").to_owned();
    let log = cluster.reclora(&["logs", &run_dir, "--follow"]);
    assert!(log.contains("ranks: 4") && log.contains("report: "), "{log}");
    let record = cluster.on_head(&["scontrol", "--oneliner", "show", "job", &id]);
    assert!(record.contains("gpu:2") && record.contains("CPUs/Task=3"), "{record}");
}

/// S-1: a job that Slurm does not take leaves no half of a chain in the queue.
#[test]
fn e2e_slurm_what_is_refused_is_said_and_withdrawn() {
    let Some(cluster) = cluster() else { return };
    let (dir, config) = small();
    let run_dir = dir.path().join("run").display().to_string();
    let args = ["submit", &config, "--run-dir", &run_dir, "--partition", "none"];
    let chain = ["--array-of-stages", "--cpu-partition", "test"];
    let error = cluster.reclora_fails(&[&args[..], &chain].concat(), 1);
    assert!(error.contains("the job was not submitted; its script is"), "{error}");
    assert!(error.contains("invalid partition"), "{error}");
    let queue = cluster.on_head(&["squeue", "--noheader", "--name=small-prepare", "--states=PD,R"]);
    assert_eq!(queue, "");
}
