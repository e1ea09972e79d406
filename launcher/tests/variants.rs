//! Whole runs of what differs from the defaults in `[adapter]`: gates and heads, to the exported files.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{fails, launch, small, stdout};
use serde_json::Value;

const ADAPTER: &str = "adapter/adapter_model.safetensors";
const HEAD: &str = "head.safetensors";
/// What must not depend on the number of ranks.
const RESULTS: [&str; 6] = [
    ADAPTER,
    "adapter/valid.shard",
    "adapter/plain_lora/adapter_model.safetensors",
    "predictions/test.parquet",
    "predictions/metrics.json",
    "export/bank.safetensors",
];

/// A finished run of one change to the small experiment, large enough to learn something.
struct Variant {
    _dir: tempfile::TempDir,
    config: String,
    set: String,
    run_dir: PathBuf,
}

impl Variant {
    fn new(set: &str) -> Self {
        let (dir, config) = small();
        let run_dir = dir.path().join("run");
        let variant = Self { _dir: dir, config, set: set.to_owned(), run_dir };
        variant.run(1, &[]);
        variant
    }

    fn run(&self, ranks: usize, extra: &[&str]) {
        let run_dir = self.run_dir.to_str().unwrap();
        let ranks = ranks.to_string();
        let args = ["run", &self.config, "--run-dir", run_dir, "--nproc-per-node", &ranks];
        let settings = ["tune.few_shot=320", "evaluate.limit=240"];
        let settings = self.set.split(' ').chain(settings).flat_map(|setting| ["--set", setting]);
        launch(&args).args(settings).args(extra).assert().success();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.run_dir.join(name)).unwrap()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    /// The command `predict` or `export` for a pair of raw ids.
    fn command<'a>(&'a self, name: &'a str, pair: &'a [String; 2]) -> Vec<&'a str> {
        vec![name, self.run_dir.to_str().unwrap(), "--user", &pair[0], "--item", &pair[1]]
    }

    /// D-1 of the stages that the change is of.
    fn assert_same_with_two_ranks(&self) {
        let expected = RESULTS.map(|name| self.read(name));
        for stage in ["adapter", "predictions", "export"] {
            std::fs::remove_dir_all(self.run_dir.join(stage)).unwrap();
        }
        self.run(2, &[]);
        for (name, expected) in RESULTS.into_iter().zip(expected) {
            assert!(self.read(name) == expected, "{}: {name} has other bytes", self.set);
        }
    }

    /// The loss falls, every figure is a number, and what was learnt ranks unseen samples.
    fn assert_learnt(&self) {
        for name in ["adapter/history.json", "adapter/plain_lora/history.json"] {
            let history = self.json(name);
            let numbers = |list: &str, field: &str| -> Vec<f64> {
                let entries = history[list].as_array().unwrap().iter();
                entries.map(|entry| entry[field].as_f64().unwrap()).collect()
            };
            for norm in numbers("steps", "gradient_norm") {
                assert!(norm.is_finite() && norm > 0.0, "{}: {name}: {norm}", self.set);
            }
            let losses = numbers("epochs", "train_loss");
            assert!(losses[1] < 0.9 * losses[0], "{}: {name}: {losses:?}", self.set);
        }
        let evaluation = self.json("predictions/metrics.json");
        for model in ["reclora", "lora"] {
            let metrics = evaluation["models"][model]["metrics"].as_object().unwrap();
            assert!(metrics.values().all(|value| !value.is_null()), "{}: {metrics:?}", self.set);
        }
        let auc = evaluation["models"]["reclora"]["metrics"]["auc"].as_f64().unwrap();
        assert!(auc > 0.65, "{}: AUC {auc}", self.set);
    }

    /// Files of the stage `export`, without its own records, by directory.
    fn exported(&self) -> BTreeMap<String, Vec<String>> {
        let dir = self.run_dir.join("export");
        let directories = names(&dir).into_iter().filter(|name| dir.join(name).is_dir());
        directories.map(|name| (name.clone(), names(&dir.join(name)))).collect()
    }

    /// The exported user and item, where P(like) of the exported logits is that of `predict`.
    fn assert_exported(&self, directory: &str) -> [String; 2] {
        let example = self.json(&format!("export/{directory}/example.json"));
        let pair = ["user", "item"].map(|name| example[name].as_str().unwrap().to_owned());
        let all = |name: &str| -> Vec<f32> {
            let logits = example[name].as_array().unwrap().iter();
            logits.map(|logit| logit.as_f64().unwrap() as f32).collect()
        };
        let [no, yes] = match example.get("answer_logits") {
            Some(_) => all("answer_logits").try_into().unwrap(),
            None => ["no_token", "yes_token"]
                .map(|token| all("logits")[example[token].as_u64().unwrap() as usize]),
        };
        let text = stdout(&[&self.command("predict", &pair)[..], &["--json"]].concat());
        let prediction: Value = serde_json::from_str(&text).unwrap();
        let model = if directory == "plain_lora" { "lora" } else { "reclora" };
        let predicted = prediction[model].as_f64().unwrap();
        let number = |value: &Value| value.as_f64().unwrap();
        let logit = match example.get("gain") {
            // As the documentation has it.
            Some(gain) => {
                let (offset, line) = (number(&example["offset"]), &example["line"]);
                let residual = f64::from(yes - no);
                offset + number(gain) * (residual - number(&line[0]) - number(&line[1]) * offset)
            }
            None => f64::from(yes - no),
        };
        let expected = 1.0 / (1.0 + (-logit).exp());
        assert!((predicted - expected).abs() < 1e-6, "{}: {predicted}, {expected}", self.set);
        pair
    }
}

/// Names in a directory, in order.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A tensor of a safetensors file: its shape and its bytes.
fn tensor(file: &[u8], name: &str) -> (Value, Vec<u8>) {
    let data = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..data]).unwrap();
    let offset = |end: usize| header[name]["data_offsets"][end].as_u64().unwrap() as usize;
    (header[name]["shape"].clone(), file[data + offset(0)..data + offset(1)].to_vec())
}

#[test]
fn e2e_gate_of_tokens_is_tuned_scored_and_exported_as_its_bank_only() {
    let variant = Variant::new("adapter.gate=token");
    variant.assert_learnt();
    assert!(variant.json("predictions/metrics.json")["gate"].is_null());
    // No LoRA is that of a user and an item; plain LoRA is one.
    let plain = ["adapter_config.json", "adapter_model.safetensors", "example.json"];
    let plain = plain.map(str::to_owned).to_vec();
    assert_eq!(variant.exported(), BTreeMap::from([("plain_lora".to_owned(), plain)]));
    assert!(variant.read("export/bank.safetensors") == variant.read(ADAPTER));
    let pair = variant.assert_exported("plain_lora");
    let out = variant.run_dir.join("out");
    let export = [&variant.command("export", &pair)[..], &["--out", out.to_str().unwrap()]];
    let error = fails(&export.concat(), 2);
    assert!(error.contains("adapter.gate") && error.contains("no ordinary LoRA"), "{error}");
    assert!(!out.exists(), "nothing is left of a refused export");
    variant.assert_same_with_two_ranks();
}

#[test]
fn e2e_gate_of_attention_is_tuned_scored_and_exported() {
    let variant = Variant::new("adapter.gate=attention");
    variant.assert_learnt();
    let gate = &variant.json("predictions/metrics.json")["gate"];
    for module in gate["modules"].as_array().unwrap() {
        let alpha = module["mean_alpha"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
        let sum: f64 = alpha.clone().sum();
        assert!(alpha.count() == 4 && (sum - 1.0).abs() < 1e-5, "{module}");
    }
    let files = variant.exported();
    let directories: Vec<&String> = files.keys().collect();
    assert!(directories.len() == 2 && directories[1].starts_with("user_"), "{directories:?}");
    for directory in directories {
        variant.assert_exported(directory);
    }
    variant.assert_same_with_two_ranks();
}

/// The LLM only adds to the CRM's score, which a rule chosen on valid may leave as it is.
#[test]
fn e2e_d1_with_a_prior_the_score_starts_from_the_crm() {
    let prior = "tune.prior=crm crm.holdout=0.3 adapter.head=ctr1 tune.valid_samples=400";
    let variant = Variant::new(prior);
    let gain = variant.json("adapter/gain.json");
    assert_eq!(gain["tried"].as_array().unwrap().len(), 11);
    let evaluation = variant.json("predictions/metrics.json");
    assert_eq!(evaluation["gains"]["reclora"], gain);
    let same = evaluation["models"]["reclora"]["metrics"] == evaluation["models"]["crm"]["metrics"];
    assert_eq!(same, gain["gain"] == 0.0, "{gain}");
    let history = variant.json("adapter/history.json");
    let losses = history["epochs"].as_array().unwrap().iter();
    let losses: Vec<f64> = losses.map(|e| e["valid_log_loss"].as_f64().unwrap()).collect();
    // The CRM is not worse than a coin before the LLM adds anything.
    assert!(losses.iter().all(|loss| *loss < 0.68), "{losses:?}");
    for directory in variant.exported().keys() {
        variant.assert_exported(directory);
    }
    variant.assert_same_with_two_ranks();
}

/// A run with a trained head of so many outputs.
fn check_head(set: &str, outputs: usize) {
    let variant = Variant::new(set);
    variant.assert_learnt();
    let files = variant.exported();
    assert_eq!(files.len(), 2);
    for (directory, files) in files {
        let expected = ["adapter_config.json", "adapter_model.safetensors", "example.json", HEAD];
        assert_eq!(files, expected, "{directory}");
        variant.assert_exported(&directory);
        // What was learnt, not what the head started from.
        let learnt = match directory.as_str() {
            "plain_lora" => variant.read("adapter/plain_lora/adapter_model.safetensors"),
            _ => variant.read(ADAPTER),
        };
        let head = variant.read(&format!("export/{directory}/{HEAD}"));
        for (name, shape) in [("head.weight", vec![outputs, 64]), ("head.bias", vec![outputs])] {
            let exported = tensor(&head, name);
            assert_eq!(exported.0, serde_json::json!(shape), "{directory}: {name}");
            assert!(exported.1.iter().any(|byte| *byte != 0), "{directory}: {name}");
            assert!(exported == tensor(&learnt, name), "{directory}: {name}");
        }
    }
    variant.assert_same_with_two_ranks();
}

#[test]
fn e2e_head_of_one_output_is_tuned_scored_and_exported() {
    check_head("adapter.head=ctr1", 1);
}

#[test]
fn e2e_head_of_two_outputs_is_tuned_scored_and_exported() {
    check_head("adapter.head=ctr2", 2);
}
