//! `synth`: what it writes is read by `run`, and what can't work is said before anything is written.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
use common::{experiment, fails, launch, stdout};

const SIZE: [&str; 8] = ["--users", "60", "--items", "50", "--ratings", "1500", "--seed", "3"];

#[test]
fn made_ratings_are_prepared() {
    let (dir, config) = experiment(
        "[data]\nformat = \"movielens_25m\"\npath = \"made\"\nlabel = { greater = 3.0 }\n",
    );
    let made = dir.path().join("made").display().to_string();
    assert_eq!(stdout(&[&["synth", &made], &SIZE[..]].concat()), format!("{made}\n"));
    let run_dir = dir.path().join("run").display().to_string();
    launch(&["run", &config, "--only", "prepare", "--run-dir", &run_dir]).assert().success();
    let manifest = std::fs::read(dir.path().join("run/dataset/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["counts"]["raw_ratings"], 1500);

    let error = fails(&[&["synth", &made], &SIZE[..]].concat(), 1);
    assert!(error.contains("movies.csv") && error.contains("--force"), "{error}");
    stdout(&[&["synth", &made, "--force"], &SIZE[..]].concat());
}

#[test]
fn numbers_that_do_not_work_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out").display().to_string();
    let size = |users: &str, items: &str, ratings: &str| {
        let all = ["synth", &out, "--users", users, "--items", items, "--ratings", ratings];
        fails(&[&all[..], &["--seed", "1"]].concat(), 2)
    };
    assert!(size("10", "10", "101").contains("10 users can rate 10 items once each"));
    assert!(size("10", "10", "9").contains("too few for 10 users"));
    assert!(size("0", "10", "9").contains("at least one user"));
    assert!(size("ten", "10", "9").contains("--users"));
    assert!(size("10", "-1", "9").contains("-1"));
    assert!(fails(&["synth", &out, "--users", "3"], 2).contains("--ratings"));
    assert!(!dir.path().join("out").exists());
}
