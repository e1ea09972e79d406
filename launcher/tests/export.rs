//! `export` into a directory that an export has written before, or has begun to write.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{fails, launch, small, stdout};

const CONFIG: &str = "adapter_config.json";
const MODEL: &str = "adapter_model.safetensors";
const HEAD: &str = "head.safetensors";

/// All files of a directory.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect()
}

/// The command that exports one pair of the data.
fn export<'a>(run_dir: &'a str, out: &'a str) -> [&'a str; 8] {
    ["export", run_dir, "--user", "154", "--item", "1535108", "--out", out]
}

#[test]
fn e2e_export_replaces_what_an_earlier_one_wrote() {
    let (dir, config) = small();
    let run_dir = dir.path().join("run");
    let run_dir = run_dir.to_str().unwrap();
    let tune = |head: &str| {
        let head = format!("adapter.head={head}");
        let args = ["run", &config, "--run-dir", run_dir, "--no-report"];
        let fast = ["tune.epochs=1", "tune.models=['reclora']", "evaluate.limit=16"];
        let settings = fast.into_iter().chain([head.as_str()]);
        launch(&args).args(settings.flat_map(|set| ["--set", set])).assert().success();
    };
    let path = |name: &str| dir.path().join(name);
    let exported = |name: &str| {
        stdout(&export(run_dir, path(name).to_str().unwrap()));
        files(&path(name))
    };
    tune("ctr2");
    let with_head = exported("out");
    assert!(with_head.contains_key(HEAD) && with_head.len() == 4, "{:?}", with_head.keys());
    tune("lm");
    // A new directory says what the files should be.
    let expected = exported("new");
    assert_eq!(expected.len(), 3);
    assert!(exported("out") == expected, "no head of the other adapter is left");

    // Killed before its first file was complete: what is left is no reason to refuse the directory.
    std::fs::create_dir(path("begun")).unwrap();
    std::fs::write(path("begun/example.json.tmp-7-0"), "{").unwrap();
    assert!(exported("begun") == expected);
    std::fs::write(path("begun/notes.tmp-7-0"), "mine").unwrap();
    assert!(exported("begun").contains_key("notes.tmp-7-0"), "not of an export");

    // Ended in the middle: PEFT, which needs the config, loads no mixture of two adapters.
    std::fs::remove_file(path("out").join(MODEL)).unwrap();
    std::fs::create_dir_all(path("out").join(MODEL).join("in the way")).unwrap();
    let error = fails(&export(run_dir, path("out").to_str().unwrap()), 1);
    assert!(error.contains(MODEL), "{error}");
    assert!(!path("out").join(CONFIG).exists());
    std::fs::remove_dir_all(path("out").join(MODEL)).unwrap();
    assert!(exported("out") == expected);
}
