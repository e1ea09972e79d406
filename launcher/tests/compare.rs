//! Runs side by side.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use common::{copy_of, fails, launch, small, stdout};
use serde_json::Value;

#[test]
fn e2e_runs_are_compared_on_the_samples_they_share() {
    let (dir, config) = small();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (first, other, fewer) = (path("first"), path("other"), path("fewer"));
    launch(&["run", &config, "--run-dir", &first, "--no-report"]).assert().success();
    copy_of(first.as_ref(), "other");
    copy_of(first.as_ref(), "fewer");
    let again = |run: &str, set: &str| {
        let args = ["run", &config, "--run-dir", run, "--no-report", "--set", set];
        launch(&args).assert().success();
    };
    again(&other, "adapter.rank=2");
    again(&fewer, "evaluate.limit=100");
    let args = ["compare", &first, &other, &fewer];
    let json: Value = serde_json::from_str(&stdout(&[&args[..], &["--json"]].concat())).unwrap();
    let runs = json["runs"].as_array().unwrap();
    // As the runs themselves say.
    for (run, name) in runs.iter().zip(["first", "other", "fewer"]) {
        let metrics =
            std::fs::read(dir.path().join(name).join("predictions/metrics.json")).unwrap();
        let metrics: Value = serde_json::from_slice(&metrics).unwrap();
        for (model, expected) in metrics["models"].as_object().unwrap() {
            for figure in ["auc", "log_loss", "accuracy", "gauc", "auc_ci95", "gauc_ci95"] {
                let expected = &expected["metrics"][figure];
                assert_eq!(run["models"][model][figure], *expected, "{name}: {model} {figure}");
            }
            assert_eq!(run["models"][model]["differences"], expected["differences"]);
        }
    }
    assert_eq!(runs[0]["differences"], Value::Null);
    for figure in ["auc", "gauc"] {
        let of = |run: usize| runs[run]["models"]["reclora"][figure].as_f64().unwrap();
        let by = &runs[1]["differences"][figure];
        let difference = by["difference"].as_f64().unwrap();
        assert!((difference - (of(1) - of(0))).abs() < 1e-12, "{json}");
        let [low, high] = [0, 1].map(|end| by["ci95"][end].as_f64().unwrap());
        assert!(low <= difference && difference <= high, "{json}");
        // The same adapter on some of the samples.
        assert_eq!(runs[2]["differences"][figure]["difference"], 0.0);
    }
    assert_eq!((runs[2]["samples"].as_u64(), runs[2]["shared"].as_u64()), (Some(100), Some(100)));
    assert_eq!(json["settings"]["adapter.rank"], serde_json::json!(["4", "2", "4"]));
    assert_eq!(json["settings"].as_object().unwrap().len(), 2, "{json}");
    let text = stdout(&args);
    let less = format!("less {first}");
    let parts = ["model reclora on the test sets", "+0.0000 [+0.0000, +0.0000]", "adapter.rank"];
    for part in parts.into_iter().chain([less.as_str(), "samples in common", "gAUC less that of"]) {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        stdout(&["compare", &first, &first, "--model", "crm"])
            .contains("the settings are the same")
    );

    let error = fails(&["compare", &first, &other, "--model", "din"], 1);
    assert!(error.contains("no model din; there are reclora, lora, crm"), "{error}");
    assert!(fails(&["compare", &first, &path("none")], 2).contains("no such run directory"));
    fails(&["compare", &first], 2);
    let predictions = dir.path().join("other/predictions/test.parquet");
    let mut bytes = std::fs::read(&predictions).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&predictions, bytes).unwrap();
    let error = fails(&args, 1);
    assert!(error.contains("other/predictions/test.parquet"), "{error}");
    std::fs::remove_dir_all(dir.path().join("fewer/predictions")).unwrap();
    let error = fails(&["compare", &first, &fewer], 1);
    assert!(error.contains("fewer/predictions") && error.contains("--from evaluate"), "{error}");
}
