//! Commands that look ahead of a run: doctor, plan.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use common::{configs, fails, launch, small, stdout, with_ratings};
use serde_json::Value;

#[test]
fn a_doctor_finds_nothing_wrong_with_the_shipped_experiment() {
    let dir = tempfile::tempdir().unwrap();
    let config = configs().join("quickstart.toml").display().to_string();
    let run_dir = dir.path().join("run").display().to_string();
    let args = ["doctor", &config, "--run-dir", &run_dir, "--rdzv-endpoint", "127.0.0.1:0"];
    let text = stdout(&args);
    for name in ["cores", "memory", "loopback", "device", "disk", "run directory", "rendezvous"] {
        assert!(text.lines().any(|line| line.contains(name)), "{name}: {text}");
    }
    let checks: Value = serde_json::from_str(&stdout(&[&args[..], &["--json"]].concat())).unwrap();
    assert!(checks.as_array().unwrap().len() > 8, "{checks}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it leaves nothing");
}

#[test]
fn a_doctor_names_what_a_run_would_stumble_over() {
    let (dir, config) = with_ratings();
    let run_dir = dir.path().join("run").display().to_string();
    let run = |extra: &[&str]| {
        let args = ["doctor", &config, "--run-dir", &run_dir];
        let output = launch(&args).args(extra).assert().code(1).get_output().clone();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run(&["--set", "runtime.interface=nowhere7"]);
    assert!(text.contains("WRONG    interface"), "{text}");
    let text = run(&["--set", "data.path=/none"]);
    assert!(text.contains("WRONG    data") && text.contains("data.path: /none is not"), "{text}");
    assert!(!text.contains("can work"), "{text}");
    let text = run(&["--set", "tune.epochs=0"]);
    assert!(text.contains("WRONG    config"), "{text}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = run(&["--rdzv-endpoint", &taken.local_addr().unwrap().to_string()]);
    assert!(text.contains("is in use"), "{text}");
    // A file that was changed after it was written.
    let args = ["run", &config, "--run-dir", &run_dir, "--only", "prepare"];
    launch(&args).assert().success();
    let manifest = dir.path().join("run/dataset/manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"prepare\"", "\"prepared\"")).unwrap();
    let text = run(&[]);
    assert!(text.contains("WRONG    files") && text.contains("reclora-launch verify"), "{text}");
    let error = fails(&["doctor", "--set", "tune.epochs=3"], 2);
    assert!(error.contains("name one before them"), "{error}");
}

#[test]
fn a_plan_is_what_the_run_then_has() {
    let (dir, config) = small();
    let run_dir = dir.path().join("run").display().to_string();
    let plan = |extra: &[&str]| -> Value {
        let args = [&["plan", &config, "--run-dir", &run_dir, "--json"], extra].concat();
        serde_json::from_str(&stdout(&args)).unwrap()
    };
    let before = plan(&["--world-size", "4"]);
    assert_eq!(before["pretrain"], Value::Null);
    let args = ["run", &config, "--run-dir", &run_dir, "--no-report"];
    launch(&args).assert().success();
    let after = plan(&["--world-size", "4"]);
    let manifest = |stage: &str| -> Value {
        let path = dir.path().join("run").join(stage).join("manifest.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let counts = |stage: &str| manifest(stage)["counts"].clone();
    assert_eq!(after["tune"]["parameters"], counts("adapter")["RecLoRA parameters"]);
    assert_eq!(after["tune"]["parameters"], before["tune"]["parameters"]);
    assert_eq!(after["pretrain"]["parameters"], counts("crm")["parameters"]);
    assert_eq!(after["samples"]["train"], counts("crm")["samples"]);
    assert_eq!(after["samples"]["evaluated"], counts("predictions")["samples"]);
    // 96 samples in batches of 16, twice.
    assert_eq!(after["tune"]["steps"], 12);
    let bytes = after["tune"]["parameters"].as_u64().unwrap() * 4;
    assert_eq!(after["tune"]["sent_per_step"].as_u64(), Some(2 * 3 * bytes / 4));
    assert_eq!(plan(&["--world-size", "1"])["tune"]["sent"], 0);
    assert!(stdout(&["plan", &config, "--run-dir", &run_dir]).contains(", evaluate 160 of "));
    let error = fails(&["plan", &config, "--world-size", "3"], 2);
    assert!(error.contains("power of two"), "{error}");
}
