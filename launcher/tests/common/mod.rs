//! A small experiment on disk and the program to run on it.
// Each test file uses a part of this; a panic is the report of a failed test.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use assert_cmd::Command;

/// The program.
pub fn launch(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("reclora-launch").unwrap();
    command.args(args).timeout(std::time::Duration::from_secs(120));
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
