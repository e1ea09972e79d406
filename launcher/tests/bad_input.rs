//! Bad input, through the program: each is refused with what, where and what to do, and harms nothing.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
use std::io::Write;
use std::path::{Path, PathBuf};

use common::{configs, fails, launch, small};
use flate2::read::GzDecoder;

/// A copy of the small experiment whose data and backbone may be damaged.
struct Experiment {
    dir: tempfile::TempDir,
    config: String,
}

impl Experiment {
    fn new() -> Self {
        let (dir, config) = small();
        let text = std::fs::read_to_string(&config).unwrap();
        for name in ["data/movietweetings-100k", "models/stories260k"] {
            copy(&configs().join(name), &dir.path().join(name));
        }
        let text = text.replace(configs().to_str().unwrap(), dir.path().to_str().unwrap());
        let text = text.replace(
            dir.path().join("prompts").to_str().unwrap(),
            configs().join("prompts").to_str().unwrap(),
        );
        std::fs::write(&config, text).unwrap();
        Self { dir, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args(&self) -> Vec<String> {
        let run_dir = self.path("run").display().to_string();
        ["run", &self.config, "--run-dir", &run_dir].map(str::to_owned).to_vec()
    }

    /// The error of a run that must end with this code.
    fn error(&self, code: i32, extra: &[&str]) -> String {
        let args = self.args();
        let args: Vec<&str> =
            args.iter().map(String::as_str).chain(extra.iter().copied()).collect();
        fails(&args, code)
    }

    /// Replaces the ratings by `change` of their text.
    fn change_ratings(&self, change: impl FnOnce(String) -> String) {
        let path = self.path("data/movietweetings-100k/ratings.dat.gz");
        let mut text = String::new();
        let mut file = GzDecoder::new(std::fs::File::open(&path).unwrap());
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        let level = flate2::Compression::fast();
        let mut file = flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), level);
        file.write_all(change(text).as_bytes()).unwrap();
        file.finish().unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

#[test]
fn an_interface_that_is_not_there_is_refused_with_those_that_are() {
    let error = Experiment::new()
        .error(2, &["--nproc-per-node", "2", "--set", "runtime.interface=\"nowhere0\""]);
    assert!(error.contains("runtime.interface: this machine has no address on \"nowhere0\""));
    assert!(error.contains("lo 127.0.0.1"), "{error}");
}

#[test]
fn ratings_that_are_missing_empty_or_cut_off() {
    let experiment = Experiment::new();
    let ratings = experiment.path("data/movietweetings-100k/ratings.dat.gz");
    truncate(&ratings);
    assert_says(&experiment.error(4, &[]), &["ratings.dat.gz", "prepare"]);
    experiment.change_ratings_to("");
    assert_says(&experiment.error(2, &[]), &["ratings.dat", "no rows"]);
    std::fs::remove_file(&ratings).unwrap();
    assert_says(
        &experiment.error(2, &[]),
        &["neither ratings.dat nor ratings.dat.gz", "data.path"],
    );
    assert!(!experiment.path("run/dataset/manifest.json").exists());
}

impl Experiment {
    fn change_ratings_to(&self, text: &str) {
        let path = self.path("data/movietweetings-100k/ratings.dat.gz");
        let file = std::fs::File::create(path).unwrap();
        let mut file = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        file.write_all(text.as_bytes()).unwrap();
        file.finish().unwrap();
    }
}

/// Each bad line is put at the end, and named by its number.
#[test]
fn ratings_with_a_bad_line() {
    let experiment = Experiment::new();
    let bad = [
        ("new::0111161::9", "column"),
        ("new::0111161::nine::1365460000", "nine"),
        ("new::0111161::9::yesterday", "yesterday"),
        ("new::no-such-item::9::1365460000", "no-such-item"),
    ];
    experiment.change_ratings(|text| text + bad[0].0 + "\n");
    for (index, (line, names)) in bad.iter().enumerate() {
        if index > 0 {
            experiment.change_ratings(|text| text.replace(bad[index - 1].0, line));
        }
        assert_says(&experiment.error(4, &[]), &["ratings.dat", ":100001:", names]);
    }
    let mut first = String::new();
    experiment.change_ratings(|text| {
        first = text.lines().next().unwrap().to_owned();
        format!("{}{first}\n", text.replace(&format!("{}\n", bad[3].0), ""))
    });
    assert_says(&experiment.error(4, &[]), &["ratings.dat", ":100001:", "line 1"]);
}

#[test]
fn users_with_one_rating_each_leave_no_samples() {
    let experiment = Experiment::new();
    experiment.change_ratings(|text| {
        let lines = text.lines().take(50).enumerate();
        lines
            .map(|(user, line)| format!("{user}::{}\n", line.split_once("::").unwrap().1))
            .collect()
    });
    let error = experiment.error(4, &[]);
    assert_says(&error, &["no samples left", "k_core", "min_history", "fix the above, then run"]);
    assert!(!error.contains("below: it continues"), "{error}");
}

#[test]
fn a_damaged_backbone_or_tokenizer() {
    let experiment = Experiment::new();
    let model = experiment.path("models/stories260k");
    let weights = std::fs::read(model.join("model.safetensors")).unwrap();
    truncate(&model.join("model.safetensors"));
    assert_says(&experiment.error(2, &[]), &["model.safetensors", "truncated"]);
    std::fs::write(model.join("model.safetensors"), weights).unwrap();
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let other = config.replace("LlamaForCausalLM", "Qwen2ForCausalLM");
    std::fs::write(model.join("config.json"), other).unwrap();
    assert_says(&experiment.error(2, &[]), &["config.json", "Qwen2ForCausalLM"]);
    std::fs::write(model.join("config.json"), config).unwrap();
    let tokenizer = std::fs::read_to_string(model.join("tokenizer.json")).unwrap();
    let lacking = tokenizer.replace("\"Y\"", "\"\u{e000}\"");
    let lacking = lacking.replace("\"byte_fallback\": true", "\"byte_fallback\": false");
    std::fs::write(model.join("tokenizer.json"), lacking).unwrap();
    assert_says(&experiment.error(2, &[]), &["tokenizer.json", "answer", "Yes"]);
    assert!(!experiment.path("run").exists(), "nothing was begun");
}

/// One changed byte in what a stage wrote is refused by the stage that reads it, and repaired by the
/// command the message gives.
#[test]
fn a_corrupt_byte_of_a_shard() {
    let experiment = Experiment::new();
    let args = experiment.args();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    launch(&[&args[..], &["--set", "tune.epochs=1"]].concat()).assert().success();
    let shard = experiment.path("run/lens/lens-000001.shard");
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let error = experiment.error(4, &["--from", "tune"]);
    assert_says(&error, &["lens-000001.shard", "--from few2many"]);
    launch(&[&args[..], &["--from", "few2many"]].concat()).assert().success();
}
