//! `verify`: what a person and a program see of it, and that it survives being killed.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{fails, launch, stdout, with_ratings};
use reclora_storage::hash::xxh3_hex;
use reclora_storage::manifest::{FileEntry, StageDir, StageManifest};
use reclora_storage::verify::STATE;
use serde_json::Value;

/// A run of which the first stage is done.
fn prepared() -> (tempfile::TempDir, PathBuf) {
    let (dir, config) = with_ratings();
    let run = dir.path().join("run");
    launch(&["run", &config, "--only", "prepare", "--run-dir", run.to_str().unwrap()])
        .assert()
        .success();
    (dir, run)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Standard output of a check that finds damage.
fn damaged(args: &[&str]) -> String {
    let output = launch(args).assert().code(1).get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

#[test]
fn s1_a_damaged_file_is_named_with_the_command_that_rebuilds_it() {
    let (_dir, run) = prepared();
    let verify = ["verify", text(&run)];
    assert!(stdout(&verify).starts_with("2 files are as written; "), "{}", stdout(&verify));
    let shard = run.join("dataset/dataset.shard");
    let mut bytes = fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&shard, &bytes).unwrap();
    let said = damaged(&verify);
    assert!(said.contains(&format!("{}: column `", shard.display())), "{said}");
    let rebuild = format!("reclora-launch run {}/config.toml --from prepare", run.display());
    assert!(said.contains(&rebuild), "{said}");
    assert!(fails(&verify, 1).contains("1 file is not what was written"));
    // The same of the directory, of the file, and for a program.
    for path in [run.join("dataset"), shard.clone()] {
        assert!(damaged(&["verify", text(&path)]).contains(&rebuild));
    }
    let json: Value = serde_json::from_str(&damaged(&["verify", text(&run), "--json"])).unwrap();
    assert_eq!((&json["ok"], &json["whole"]), (&Value::Bool(false), &1.into()));
    assert_eq!(json["damaged"][0]["path"], text(&shard));
    assert_eq!(json["damaged"][0]["rebuild"], rebuild.as_str());

    // What somebody put there is not rebuilt.
    let foreign = run.join("dataset/thesis.tex");
    fs::write(&foreign, "x").unwrap();
    let said = damaged(&verify);
    assert!(said.contains("thesis.tex: is a foreign file"), "{said}");
    assert!(said.contains("move it away") && said.matches("--from").count() == 1, "{said}");
    fs::remove_file(&foreign).unwrap();

    // The command is right: it makes the run whole again.
    let config = run.join("config.toml");
    launch(&["run", text(&config), "--only", "prepare", "--force"]).assert().success();
    stdout(&verify);
    fs::write(run.join("dataset/manifest.json"), "{}").unwrap();
    assert!(damaged(&verify).contains(&rebuild));
    fs::write(&config, "seed = [").unwrap();
    assert!(damaged(&verify).contains("config.toml: is no config"));
}

#[test]
fn nothing_to_check_is_a_mistake_of_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    assert!(fails(&["verify", text(&none)], 2).contains("no such file or directory"));
    assert!(fails(&["verify", text(dir.path())], 2).contains("nothing to check"));
}

#[test]
fn a_run_in_use_is_not_checked() {
    let (_dir, run) = prepared();
    let lock = reclora_storage::atomic::RunLock::acquire(&run, Duration::ZERO).unwrap();
    assert!(fails(&["verify", text(&run)], 1).contains("locked by another process"));
    drop(lock);
    stdout(&["verify", text(&run)]);
}

/// Killed with SIGKILL in the middle, the next check takes over what was done.
#[test]
fn s1_a_killed_check_is_continued() {
    const FILES: usize = 40;
    let root = tempfile::tempdir().unwrap();
    let stage = StageDir::new(root.path().join("stage"), "prepare", "f");
    stage.prepare().unwrap();
    for i in 0..FILES {
        fs::write(stage.path().join(format!("{i:03}")), vec![i as u8; 1000]).unwrap();
    }
    let complete = || stage.complete(BTreeMap::new(), BTreeMap::new(), 0.0).unwrap();
    // A last file that takes minutes to read, and no space: a hole. Nothing waits for its hash.
    let mut manifest = complete();
    manifest.xxh3.clear();
    let bytes = 1 << 41;
    manifest.files.insert("hole".into(), FileEntry { bytes, xxh3: "0".repeat(16) });
    let hole = stage.path().join("hole");
    fs::File::create(&hole).unwrap().set_len(bytes).unwrap();
    let json =
        |manifest: &_| serde_json::to_string_pretty::<StageManifest>(manifest).unwrap() + "\n";
    manifest.xxh3 = xxh3_hex(json(&manifest).as_bytes());
    fs::write(stage.path().join("manifest.json"), json(&manifest)).unwrap();

    let state = root.path().join(STATE);
    let lines = || fs::read_to_string(&state).unwrap_or_default().matches("{\"path\"").count();
    let mut check = Command::new(env!("CARGO_BIN_EXE_reclora-launch"))
        .args(["verify", text(root.path())])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while lines() < FILES {
        assert!(start.elapsed() < Duration::from_secs(60), "{} files are remembered", lines());
        assert!(check.try_wait().unwrap().is_none(), "the check ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    check.kill().unwrap();
    check.wait().unwrap();

    fs::remove_file(&hole).unwrap();
    complete();
    let json: Value =
        serde_json::from_str(&stdout(&["verify", text(root.path()), "--json"])).unwrap();
    assert_eq!((&json["ok"], &json["whole"]), (&Value::Bool(true), &(FILES + 1).into()));
    assert_eq!(json["remembered"], FILES);
    assert_eq!(json["bytes_read"], 0);
    assert!(!state.exists());
    // A check that has ended is forgotten.
    let said = stdout(&["verify", text(root.path())]);
    assert!(said.starts_with("41 files are as written; "), "{said}");
}
