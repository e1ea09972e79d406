//! A small experiment on disk and the program to run on it.
// Each test file uses a part of this; a panic is the report of a failed test.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use assert_cmd::Command;

/// What must not depend on the number of nodes and ranks, nor on what happens to them.
pub const RESULTS: [&str; 5] = [
    "crm/crm.safetensors",
    "lens/lens-000000.shard",
    "adapter/adapter_model.safetensors",
    "predictions/test.parquet",
    "predictions/metrics.json",
];

/// Two runs with the same bytes.
pub fn assert_same_results(one: &Path, other: &Path, what: &str) {
    for name in RESULTS {
        let read = |run: &Path| std::fs::read(run.join(name)).unwrap();
        assert!(read(one) == read(other), "{name} has other bytes: {what}");
    }
}

/// The program.
pub fn launch(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("reclora-launch").unwrap();
    command.args(args).timeout(Duration::from_secs(120));
    command
}

/// Standard output of a command that must succeed.
pub fn stdout(args: &[&str]) -> String {
    let output = launch(args).assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

/// Standard error of a command that must end with `code`.
pub fn fails(args: &[&str], code: i32) -> String {
    let output = launch(args).assert().code(code).get_output().stderr.clone();
    let text = String::from_utf8(output).unwrap();
    for noise in ["stack backtrace", "panicked", "RUST_BACKTRACE", "Location:"] {
        assert!(!text.contains(noise), "{text}");
    }
    text
}

/// Directory of the shipped configs.
pub fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("configs")
}

/// The shipped ratings, for a config of [`experiment`]; the other inputs stay empty.
pub fn with_ratings() -> (tempfile::TempDir, String) {
    let data = configs().join("data/movietweetings-100k");
    experiment(&format!("[data]\npath = \"{}\"\n", data.display()))
}

/// A directory with a config of `text` whose inputs exist (though they are empty).
pub fn experiment(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    for path in ["data/movietweetings-100k", "models/stories260k", "prompts"] {
        std::fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    std::fs::write(dir.path().join("prompts/movietweetings.toml"), "").unwrap();
    let config = dir.path().join("experiment.toml");
    std::fs::write(&config, text).unwrap();
    (dir, config.display().to_string())
}

/// A copy of a run directory beside it.
pub fn copy_of(run_dir: &Path, name: &str) -> PathBuf {
    let to = run_dir.with_file_name(name);
    let status = std::process::Command::new("cp").arg("-r").args([run_dir, &to]).status().unwrap();
    assert!(status.success());
    to
}

/// A config of every stage on the shipped data and backbone, small enough to run in seconds.
pub fn small() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let data = configs().join("data/movietweetings-100k");
    let config = write_small(dir.path(), &data, "movietweetings", "movietweetings", 12);
    (dir, config)
}

/// The same on the raw files in `dir`, where the config is then too, with little few-shot.
pub fn on_data(dir: &Path, format: &str, template: &str) -> String {
    write_small(dir, dir, format, template, 5)
}

fn write_small(dir: &Path, data: &Path, format: &str, template: &str, k_core: u32) -> String {
    let configs = configs();
    let path = |name: &str| configs.join(name).display().to_string();
    let text = format!(
        r#"
name = "small"
seed = 5
[data]
format = "{format}"
path = "{}"
k_core = {k_core}
[backbone]
path = "{}"
[prompt]
template = "{}"
[retrieve]
pca_dimensions = 16
text_k = 2
crm_k = 10
[crm]
embedding_dim = 8
hidden_dim = 16
batch_size = 128
epochs = 2
[adapter]
experts = 4
rank = 4
gate_hidden = 16
[tune]
few_shot = 96
epochs = 2
global_batch = 16
checkpoint_every = 3
learning_rate = 0.01
valid_samples = 32
[evaluate]
limit = 160
chunk_size = 16
bootstrap = 50
"#,
        data.display(),
        path("models/stories260k"),
        path(&format!("prompts/{template}.toml"))
    );
    let config = dir.join("small.toml");
    std::fs::write(&config, text).unwrap();
    config.display().to_string()
}

/// Processes started by a process.
pub fn children(pid: u32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let all = text.unwrap_or_default();
    all.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// S-4: no process outlives its run.
pub fn assert_gone(pids: &[i32], what: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    for pid in pids {
        let stat = format!("/proc/{pid}/stat");
        let alive = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        while alive() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!alive(), "{what}: process {pid} is still there");
    }
}

/// Waits until something is there.
pub fn wait<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = there() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An NVIDIA driver's library in `dir` whose GPUs are the lines of the file $GPU_SIM_NVML.
pub fn simulated_driver(dir: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/gpu-sim/nvml.c");
    let library = dir.join("libnvidia-ml.so.1");
    let built = std::process::Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unused-parameter", "-o"])
        .args([&library, &source])
        .status();
    assert!(built.unwrap().success());
}
