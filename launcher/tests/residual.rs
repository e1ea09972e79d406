//! Scores that start from the CRM's: the LLM adds where texts tell something, and nothing where they don't.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
#[path = "common/workers.rs"]
mod workers;

use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{assert_same_results, configs, copy_of, fails, launch, small, stdout};
use serde_json::Value;
use workers::{Random, Victim, kill_at};

/// Everything that starts from the CRM, and everything that a CRM reads of texts.
const RESIDUAL: [&str; 12] = [
    "tune.prior=crm",
    "crm.holdout=0.3",
    "crm.counters=online",
    "crm.item_vectors=['affinity', 'attention', 'input']",
    "crm.representation=hidden",
    "adapter.head=ctr1",
    "adapter.temperature=1.0",
    "tune.models=['reclora', 'lora', 'lora_crm']",
    "tune.gate_learning_rate=0.003",
    "tune.head_learning_rate=0.02",
    "tune.warmup=0.2",
    "tune.valid_samples=200",
];

fn set<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|setting| ["--set", setting]).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// D-1 and D-2: the same bytes on one rank and on two, and after kills at random moments. Every row is there, and
/// the lines that say what the LLM brings.
#[test]
fn e2e_d1_d2_a_residual_run_is_the_same_on_any_ranks_and_after_kills() {
    let (dir, config) = small();
    let run_dir = dir.path().join("one");
    let settings = set(&RESIDUAL);
    let args = |run_dir: &Path, ranks: &str| {
        let run_dir = run_dir.display().to_string();
        let args = ["run", &config, "--run-dir", &run_dir, "--nproc-per-node", ranks];
        args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()
    };
    let run = |run_dir: &Path, ranks: &str| {
        let args = args(run_dir, ranks);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        stdout(&[&args[..], &settings].concat())
    };
    let prepared = dir.path().join("prepared");
    let until = [&settings[..], &["--until", "retrieve"]].concat();
    launch(&["run", &config, "--run-dir", prepared.to_str().unwrap()])
        .args(until)
        .assert()
        .success();
    let started = Instant::now();
    let table = run(&run_dir, "1");
    let time = started.elapsed();
    let rows = ["RecLoRA", "plain LoRA", "plain LoRA + CRM", "CRM alone", "CRM, no vectors"];
    for row in rows.into_iter().chain(["history + text", "what the LLM brings", "both together"]) {
        assert!(table.contains(row), "{row}: {table}");
    }
    let two = dir.path().join("two");
    run(&two, "2");
    assert_same_results(&run_dir, &two, "on two ranks");
    let mut random = Random::from_clock();
    for victim in [Victim::Rank, Victim::Launcher, Victim::Rank, Victim::Launcher] {
        let killed = copy_of(&prepared, "killed");
        let args = args(&killed, "2");
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let args = [&args[..], &settings].concat();
        let moment = time.mul_f64(random.unit());
        let what = format!("{victim:?} killed after {moment:?} of {time:?}");
        kill_at(&args, victim, moment, &mut random, &what);
        run(&killed, "2");
        assert_same_results(&run_dir, &killed, &what);
        for name in ["gain.json", "plain_lora_crm/gain.json", "plain_lora/history.json"] {
            let read = |run: &Path| std::fs::read(run.join("adapter").join(name)).unwrap();
            assert!(read(&run_dir) == read(&killed), "{name}: {what}");
        }
        std::fs::remove_dir_all(&killed).unwrap();
    }
    let summary = json(&run_dir.join("report/summary.json"));
    // Plain LoRA as published starts from nothing.
    assert!(summary["gains"]["lora_crm"].is_object() && summary["gains"]["lora"].is_null());
    assert!(summary["leak"]["unseen"].is_number(), "{summary}");
    let predicted =
        stdout(&["predict", run_dir.to_str().unwrap(), "--user", "27", "--item", "1483013"]);
    assert!(predicted.contains("lora crm  "), "{predicted}");
}

/// A run on made-up ratings whose titles say `titles`; returns its summary.
fn run_with_titles(dir: &Path, titles: &str) -> Value {
    let data = dir.join(titles);
    let numbers = ["--users", "1500", "--items", "30000", "--ratings", "60000", "--seed", "1"];
    let synth = ["synth", data.to_str().unwrap(), "--titles", titles];
    launch(&[&synth[..], &numbers].concat()).assert().success();
    let (template, config) = (dir.join("title.toml"), dir.join("titles.toml"));
    std::fs::write(&template, "body = \"{{ target.title }}\"\nyes = \" Yes.\"\nno = \" No.\"\n")
        .unwrap();
    let backbone = configs().join("models/stories260k");
    let text = format!(
        "[data]\nformat = \"movielens_25m\"\npath = {data:?}\nlabel = {{ greater = 3.0 }}\nk_core = 1\n\
         [backbone]\npath = {backbone:?}\n[prompt]\ntemplate = {template:?}\n\
         [retrieve]\ntext_k = 0\ntext_order = \"recent\"\ncrm_order = \"recent\"\ncrm_k = 20\n\
         [crm]\nembedding_dim = 32\nhidden_dim = 64\nlearning_rate = 0.0003\ncounters = \"online\"\nholdout = 0.2\n\
         representation = \"hidden\"\n[adapter]\nhead = \"ctr1\"\ntemperature = 1.0\n\
         [tune]\nprior = \"crm\"\nmodels = [\"reclora\", \"lora_crm\"]\nfew_shot = 4096\nepochs = 4\nglobal_batch = 64\n\
         learning_rate = 0.01\ngate_learning_rate = 0.001\nhead_learning_rate = 0.05\nvalid_samples = 5000\n\
         [evaluate]\nbootstrap = 300\n"
    );
    std::fs::write(&config, text).unwrap();
    let run_dir: PathBuf = dir.join(format!("run-{titles}"));
    launch(&["run", config.to_str().unwrap(), "--run-dir", run_dir.to_str().unwrap()])
        .assert()
        .success();
    json(&run_dir.join("report/summary.json"))
}

/// Where titles say how good films are that few have rated, the LLM adds to the CRM. Of shuffled titles, with the same
/// ratings, plain LoRA adds nothing and its score is the CRM's; RecLoRA, whose gates read more of the CRM than its
/// score, next to nothing.
#[test]
fn e2e_telling_titles_are_believed_and_shuffled_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let [telling, shuffled] = ["telling", "shuffled"].map(|t| run_with_titles(dir.path(), t));
    for model in ["reclora", "lora_crm"] {
        let less_crm = &telling["metrics"][model]["differences"]["crm"]["auc"];
        assert!(less_crm["ci95"][0].as_f64().unwrap() > 0.005, "{model}: {less_crm}");
        assert!(telling["gains"][model]["gain"].as_f64().unwrap() > 0.0, "{model}");
    }
    assert_eq!(shuffled["gains"]["lora_crm"]["gain"], 0.0);
    let less_crm = |model: &str| shuffled["metrics"][model]["differences"]["crm"]["auc"].clone();
    assert_eq!(less_crm("lora_crm")["ci95"], serde_json::json!([0.0, 0.0]));
    let by = less_crm("reclora")["difference"].as_f64().unwrap();
    assert!(by.abs() < 0.002, "{by}");
    let auc = |summary: &Value| summary["metrics"]["crm"]["auc"].as_f64().unwrap();
    assert!((auc(&telling) - auc(&shuffled)).abs() < 0.02, "the same ratings");
}

/// The answer alone can be learnt with the LLM's own head, too; another objective gives another adapter.
#[test]
fn the_objective_is_the_answer_or_its_tokens() {
    let (dir, config) = small();
    let history = |objective: &str| {
        let run_dir = dir.path().join(objective);
        let objective = format!("tune.objective={objective}");
        let settings = set(&[&objective, "tune.models=['reclora']", "adapter.head=lm"]);
        let args = ["run", &config, "--run-dir", run_dir.to_str().unwrap(), "--no-report"];
        launch(&args).args(settings).assert().success();
        json(&run_dir.join("adapter/history.json"))["epochs"][1].clone()
    };
    let [answer, tokens] = ["answer", "tokens"].map(history);
    // What is learnt is what is shown beside it.
    assert_eq!(answer["train_loss"], answer["deciding_loss"]);
    assert_ne!(tokens["train_loss"], tokens["deciding_loss"]);
    assert_ne!(answer["valid_auc"], tokens["valid_auc"]);
}

/// What does not go together is said before anything starts, by the names of the settings.
#[test]
fn settings_that_do_not_go_together_are_refused() {
    let (_dir, config) = small();
    for (setting, said) in [
        ("tune.models=['lora']", "leaves out \"reclora\""),
        ("tune.models=['reclora', 'lora_crm']", "tune.prior"),
        ("tune.models=['reclora', 'reclora']", "tune.models"),
        ("tune.models=['recLoRA']", "did you mean `reclora`?"),
        ("crm.item_vectors=['none']", "expected one of `affinity`, `attention`, `input`"),
        ("crm.item_vectors='affinity'", "crm.item_vectors"),
        ("tune.warmup=1.5", "tune.warmup"),
        ("tune.gate_learning_rate=-1.0", "tune.gate_learning_rate"),
    ] {
        let refused = fails(&["run", &config, "--set", setting], 2);
        assert!(refused.contains(said), "{setting}: {refused}");
    }
}
