//! The report on made-up runs.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{RunInfo, table, write};
use crate::exit::block;

/// A model's figures less those of the models at 0.742 and 0.735.
fn differences(auc: f64) -> Value {
    let less = |other: f64| {
        let by = auc - other;
        json!({"auc": {"difference": by, "ci95": [by - 0.005, by + 0.006]},
            "gauc": {"difference": by, "ci95": [by - 0.02, by + 0.02]}})
    };
    let mut differences = json!({"reclora": less(0.742), "crm": less(0.735)});
    for (itself, of) in [("reclora", 0.742), ("crm", 0.735)] {
        if auc == of {
            differences.as_object_mut().unwrap().remove(itself);
        }
    }
    differences
}

fn model(auc: f64) -> Value {
    let roc: Vec<_> =
        (0..=50).map(|i| [f64::from(i) / 50.0, (f64::from(i) / 50.0).powf(1.0 - auc)]).collect();
    let bins: Vec<_> = (0..10)
        .map(|i| {
            let p = (f64::from(i) + 0.5) / 10.0;
            json!({"lower": p - 0.05, "upper": p + 0.05, "count": 40 * (i % 9),
                "mean_probability": p, "like_rate": 0.5 + (p - 0.5) * auc})
        })
        .collect();
    json!({
        "metrics": {"auc": auc, "log_loss": 1.2 - auc, "accuracy": auc - 0.05,
            "gauc": auc - 0.02, "auc_ci95": [auc - 0.012, auc + 0.012],
            "gauc_ci95": [auc - 0.04, auc]},
        "differences": differences(auc),
        "calibration": bins,
        "roc": roc,
    })
}

fn metrics() -> Value {
    let modules: Vec<_> = (0..5)
        .flat_map(|layer| ["q_proj", "v_proj"].map(|p| (layer, p)))
        .map(|(layer, projection)| {
            let raw: Vec<f64> =
                (0..8).map(|k| 1.0 + f64::from((k * 7 + layer * 3) % 5) / 5.0).collect();
            let sum: f64 = raw.iter().sum();
            json!({"name": format!("model.layers.{layer}.self_attn.{projection}"),
                "mean_alpha": raw.iter().map(|w| w / sum).collect::<Vec<_>>(), "entropy": 1.97})
        })
        .collect();
    json!({
        "models": {"reclora": model(0.742), "lora": model(0.721), "crm": model(0.735),
            "logistic_regression": model(0.701), "item_mean": model(0.688)},
        "scored": {"samples": 5123, "of_samples": 5123, "users": 812, "of_users": 812,
            "ranked_users": 640, "likes": 2818,
            "order": "all"},
        "gate": {"experts": 8, "modules": modules},
    })
}

fn history(epochs: u32, offset: f64) -> Value {
    let steps: Vec<_> = (1..=epochs * 80)
        .map(|s| {
            let noise = f64::from((s * 7919) % 101) / 101.0 - 0.5;
            let loss = 0.55 + offset + 0.4 * (-f64::from(s) / 60.0).exp() + 0.08 * noise;
            json!({"step": s, "epoch": s / 80, "loss": loss, "learning_rate": 1e-3,
                "gradient_norm": 0.7})
        })
        .collect();
    let epochs: Vec<_> = (1..=epochs)
        .map(|e| {
            let e64 = f64::from(e);
            json!({"epoch": e, "train_loss": 0.7 - 0.04 * e64 + offset,
                "valid_auc": 0.74 - 0.1 / e64 - offset,
                "valid_log_loss": 0.62 + 0.01 * (e64 - 3.0).powi(2)})
        })
        .collect();
    json!({"steps": steps, "epochs": epochs})
}

fn put(run: &Path, file: &str, value: &Value) {
    let path = run.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, value.to_string()).unwrap();
}

fn run() -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    put(run.path(), "predictions/metrics.json", &metrics());
    put(run.path(), "adapter/history.json", &history(5, 0.0));
    put(run.path(), "adapter/plain_lora/history.json", &history(5, 0.03));
    put(run.path(), "crm/history.json", &json!({"epochs": history(6, -0.02)["epochs"]}));
    put(
        run.path(),
        "adapter/manifest.json",
        &json!({"stage": "tune", "files":
            {"adapter_model.safetensors": {"bytes": 10, "xxh3": "0123456789abcdef"}}}),
    );
    run
}

fn info() -> RunInfo {
    let times = [
        ("prepare", 0.8),
        ("embed", 3.1),
        ("retrieve", 2.2),
        ("pretrain", 61.0),
        ("few2many", 4.0),
    ];
    let mut stages: Vec<_> = times.map(|(name, s)| (name.to_owned(), s)).into();
    stages.extend([("tune".to_owned(), 185.5), ("evaluate".to_owned(), 42.0)]);
    RunInfo {
        name: "quickstart".into(),
        hashes: vec![("prepare".into(), "0123456789abcdef".into())],
        stages,
        world_size: 2,
        config_toml: "name = \"quickstart\"\nseed = 42\n\n[tune]\nepochs = 5\n".into(),
    }
}

fn page(run: &Path) -> String {
    fs::read_to_string(run.join("report/index.html")).unwrap()
}

/// The text after `marker` up to the next `end`.
fn between<'a>(text: &'a str, marker: &str, end: &str) -> &'a str {
    text.split_once(marker).unwrap().1.split_once(end).unwrap().0
}

#[test]
fn summary_has_the_documented_shape() {
    let run = run();
    write(run.path(), &info()).unwrap();
    let text = fs::read_to_string(run.path().join("report/summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&text).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        keys(&summary),
        ["adapter_xxh3", "gate_evenness", "hashes", "metrics", "scored", "stages", "world_size"]
    );
    assert_eq!(
        keys(&summary["metrics"]),
        ["crm", "item_mean", "logistic_regression", "lora", "reclora"]
    );
    let reclora = &summary["metrics"]["reclora"];
    assert_eq!(
        keys(reclora),
        ["accuracy", "auc", "auc_ci95", "differences", "gauc", "gauc_ci95", "log_loss"]
    );
    assert_eq!(reclora["differences"], differences(0.742));
    assert_eq!(summary["scored"], metrics()["scored"]);
    assert_eq!(reclora["auc"], 0.742);
    assert_eq!(reclora["auc_ci95"], json!([0.742 - 0.012, 0.742 + 0.012]));
    assert_eq!(summary["stages"]["tune"], 185.5);
    assert_eq!(summary["hashes"]["prepare"], "0123456789abcdef");
    assert_eq!(summary["world_size"], 2);
    assert_eq!(summary["adapter_xxh3"], "0123456789abcdef");
    let order = ["\"prepare\"", "\"embed\"", "\"pretrain\"", "\"evaluate\""];
    let at = order.map(|stage| text.find(stage).unwrap());
    assert!(at.is_sorted(), "stages are in the order they ran");
}

#[test]
fn page_has_all_figures_and_loads_nothing() {
    let run = run();
    write(run.path(), &info()).unwrap();
    let page = page(run.path());
    assert_eq!(page.matches("<svg role=\"img\"").count(), 8);
    for absent in ["<script", "@import", "url(", "No values were recorded"] {
        assert!(!page.contains(absent), "{absent}");
    }
    // The only addresses are the name spaces of the drawings.
    assert_eq!(
        page.matches("://").count(),
        page.matches("xmlns=\"http://www.w3.org/2000/svg").count()
    );
    assert!(!page.contains("NaN"));
    for shown in
        ["RecLoRA", "plain LoRA", "0.7420", "0.7300–<wbr>0.7540", "3 min 06 s", "5\u{202f}123"]
    {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(page.contains("all 5\u{202f}123 test samples, of 812 users; 55.0 % are likes; gAUC is of the 640 users with both."));
    assert!(page.contains(
        "<li>To rank the samples of all users together (AUC), RecLoRA is a better choice than the CRM alone: \
         its AUC is 0.0070 higher (95\u{a0}% interval 0.0020 to 0.0130). This is not chance.</li>"
    ));
    // Sure, and unsure: RecLoRA less the CRM.
    assert!(page.contains("<td><b>+0.0070</b><small>+0.0020&nbsp;to +0.0130</small></td>"));
    assert!(page.contains("<td>+0.0070<small>-0.0130&nbsp;to +0.0270</small></td>"));
}

#[test]
fn writing_twice_gives_the_same_bytes() {
    let run = run();
    write(run.path(), &info()).unwrap();
    let first = page(run.path());
    write(run.path(), &info()).unwrap();
    assert_eq!(first, page(run.path()));
}

#[test]
fn hostile_strings_are_escaped() {
    let run = run();
    let evil = "</pre><script>alert(1)</script>\" onload='x' & {{ 7 * 7 }}";
    let mut metrics = metrics();
    metrics["gate"]["modules"][0]["name"] = json!(evil);
    metrics["models"][evil] = model(0.6);
    put(run.path(), "predictions/metrics.json", &metrics);
    put(
        run.path(),
        "adapter/manifest.json",
        &json!({"files": {"adapter_model.safetensors": {"xxh3": evil}}}),
    );
    let mut info = info();
    info.name = evil.into();
    info.config_toml = evil.into();
    info.stages.push((evil.into(), 1.0));
    let summary = write(run.path(), &info).unwrap();
    let page = page(run.path());
    assert!(!page.contains("<script"));
    assert!(!page.contains("\" onload"));
    assert!(page.contains("&lt;script&gt;"));
    assert!(page.contains("{{ 7 * 7 }}"), "a value is never a template");
    assert_eq!(summary.metrics.len(), 6, "a model this version does not know is still shown");
}

#[test]
fn undefined_values_show_as_a_dash() {
    let run = run();
    let mut metrics = metrics();
    metrics["models"]["reclora"]["metrics"] = json!({"auc": null, "log_loss": 0.5, "accuracy": null,
        "gauc": null, "auc_ci95": [null, null], "gauc_ci95": null});
    metrics["models"]["reclora"]["roc"] = json!([]);
    metrics["gate"]["modules"][0]["entropy"] = json!(null);
    put(run.path(), "predictions/metrics.json", &metrics);
    let summary = write(run.path(), &info()).unwrap();
    let table = table(&summary);
    let row = table.lines().find(|line| line.contains("RecLoRA")).unwrap();
    assert_eq!(row.split_whitespace().filter(|cell| *cell == "-").count(), 3, "{row}");
    assert!(row.contains("0.5000"));
    let json = fs::read_to_string(run.path().join("report/summary.json")).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["metrics"]["reclora"]["auc"], Value::Null);
    assert_eq!(json["metrics"]["reclora"]["auc_ci95"], Value::Null);
    assert!(
        between(&page(run.path()), "<th scope=\"row\">RecLoRA</th>", "</tr>")
            .contains("<td>-</td>")
    );
}

#[test]
fn the_terminal_shows_figures_differences_and_what_they_say() {
    let run = run();
    let text = table(&write(run.path(), &info()).unwrap());
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('│')).collect();
    // Three tables with a header and five models.
    assert_eq!(rows.len(), 18, "{text}");
    assert!(rows[1].contains("RecLoRA") && rows[1].contains("0.7420 [0.7300, 0.7540]"));
    assert!(rows[5].contains("item mean"));
    assert!(rows[6].contains("AUC less that of") && rows[6].contains("CRM alone [95 %]"));
    assert!(rows[9].contains("CRM alone") && rows[9].contains("-0.0070 [-0.0120, -0.0010]"));
    assert!(rows[13].contains("+0.0070 [-0.0130, +0.0270]"), "{text}");
    let said = text.rsplit('┘').next().unwrap().replace("\n  ", " ");
    let said: Vec<&str> = said.trim().lines().collect();
    assert_eq!(
        said[0],
        "scored: all 5123 test samples, of 812 users; 55.0 % are likes; gAUC is of the 640 users with both"
    );
    assert!(said[1].ends_with("(95 % interval 0.0020 to 0.0130). This is not chance."), "{text}");
    assert!(said[2].contains("can't be told apart") && said.len() == 4, "{text}");
    assert!(said[3].starts_with("The gates hardly choose: the entropy"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn what_was_scored_is_said() {
    let run = run();
    let cases = [
        ("first", "the first 4000 of 9458 test samples, of 70 of 166 users; others may be"),
        ("sample", "4000 of 9458 test samples, drawn at random, of 70 of 166 users"),
    ];
    for (order, expected) in cases {
        let mut metrics = metrics();
        metrics["scored"] = json!({"samples": 4000, "of_samples": 9458, "users": 70,
            "of_users": 166, "ranked_users": 61, "likes": 2000, "order": order});
        put(run.path(), "predictions/metrics.json", &metrics);
        let text = table(&write(run.path(), &info()).unwrap()).replace("\n  ", " ");
        assert!(text.contains(expected), "{text}");
        let spaced = expected.replace("4000", "4\u{202f}000").replace("9458", "9\u{202f}458");
        assert!(page(run.path()).contains(&spaced));
    }
}

#[test]
fn first_steps_do_not_flatten_the_loss() {
    let run = run();
    write(run.path(), &info()).unwrap();
    assert!(!page(run.path()).contains("deciding token"));
    let steps: Vec<_> = (1..=100)
        .map(|s| {
            let loss = if s < 4 { 5.0 - f64::from(s) } else { 0.3 + f64::from(s % 2) / 10.0 };
            json!({"step": s, "loss": loss, "deciding_loss": 2.0 * loss})
        })
        .collect();
    let history = json!({"steps": steps, "epochs": []});
    put(run.path(), "adapter/history.json", &history);
    put(run.path(), "adapter/plain_lora/history.json", &history);
    write(run.path(), &info()).unwrap();
    let page = page(run.path());
    let figure = between(&page, "<h3>Tuning loss</h3>", "</figure>");
    assert!(figure.contains("The first steps, up to 8.00, are above the figure."), "{figure}");
    assert!(figure.contains("deciding token") && figure.contains("0.6931"), "{figure}");
    let ticks: Vec<f64> = figure.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert!(ticks.contains(&0.6) && !ticks.contains(&4.0), "{ticks:?}");
}

#[test]
fn empty_histories_leave_placeholders() {
    let run = run();
    let empty = json!({"steps": [], "epochs": []});
    for file in ["adapter/history.json", "adapter/plain_lora/history.json", "crm/history.json"] {
        put(run.path(), file, &empty);
    }
    write(run.path(), &info()).unwrap();
    assert_eq!(page(run.path()).matches("No values were recorded").count(), 4);
}

#[test]
fn odd_numbers_do_not_break_the_figures() {
    let run = run();
    let step = |s: u64, loss: f64| json!({"step": s, "epoch": 0, "loss": loss});
    for losses in [vec![0.7], vec![0.5; 4], vec![1e300, -1e300, 0.1], vec![1e11, 1e11 + 1.0]] {
        let steps: Vec<_> =
            losses.iter().enumerate().map(|(i, loss)| step(i as u64, *loss)).collect();
        let epochs =
            json!([{"epoch": u64::MAX, "valid_auc": 0.5}, {"epoch": 1, "valid_auc": null}]);
        put(run.path(), "adapter/history.json", &json!({"steps": steps, "epochs": epochs}));
        write(run.path(), &info()).unwrap();
        assert!(!page(run.path()).contains("NaN"));
    }
}

#[test]
fn runs_without_gate_or_plain_lora_have_a_report() {
    let run = run();
    let mut metrics = metrics();
    metrics.as_object_mut().unwrap().remove("gate");
    metrics["models"].as_object_mut().unwrap().remove("lora");
    put(run.path(), "predictions/metrics.json", &metrics);
    fs::remove_file(run.path().join("adapter/plain_lora/history.json")).unwrap();
    let summary = write(run.path(), &info()).unwrap();
    assert_eq!(summary.metrics.len(), 4);
    assert!(page(run.path()).contains("One expert: plain LoRA, without a gate."));
    for experts in [0, 1, 40] {
        let name = "m".repeat(500);
        let module = json!({"name": name, "mean_alpha": vec![0.025; experts], "entropy": 0.1});
        metrics["gate"] = json!({"experts": experts, "modules": vec![module; 70]});
        put(run.path(), "predictions/metrics.json", &metrics);
        write(run.path(), &info()).unwrap();
    }
}

#[test]
fn missing_inputs_name_the_file_and_the_command() {
    let cases = [
        ("predictions/metrics.json", "--from evaluate"),
        ("adapter/history.json", "--from tune"),
        ("adapter/plain_lora/history.json", "--from tune"),
        ("adapter/manifest.json", "--from tune"),
        ("crm/history.json", "--from pretrain"),
    ];
    for (file, command) in cases {
        let run = run();
        fs::remove_file(run.path().join(file)).unwrap();
        let error = write(run.path(), &info()).unwrap_err();
        let message = block(&error);
        assert!(message.contains(file) && message.contains(command), "{message}");
        assert!(!run.path().join("report").exists(), "no half a report");
    }
}

#[test]
fn corrupt_inputs_name_the_file_and_what_is_wrong() {
    let mut gate = metrics();
    gate["gate"]["modules"][2]["mean_alpha"] = json!([0.5]);
    let mut no_model = metrics();
    no_model["models"].as_object_mut().unwrap().remove("reclora");
    let cases: [(&str, String, &str); 6] = [
        ("predictions/metrics.json", "{\"models\": {".into(), "line 1 column"),
        ("predictions/metrics.json", gate.to_string(), "1 mean weights for 8 experts"),
        ("predictions/metrics.json", no_model.to_string(), "models.reclora"),
        ("adapter/history.json", "{}".into(), "missing field `epochs`"),
        ("adapter/manifest.json", "{\"files\": {}}".into(), "adapter_model.safetensors"),
        ("crm/history.json", "\0\0\0".into(), "not as expected"),
    ];
    for (file, content, what) in cases {
        let run = run();
        fs::write(run.path().join(file), content).unwrap();
        let error = write(run.path(), &info()).unwrap_err();
        let message = block(&error);
        assert!(message.contains(file) && message.contains(what), "{message}");
        assert!(message.contains("reclora-launch run CONFIG --from"), "{message}");
    }
}
