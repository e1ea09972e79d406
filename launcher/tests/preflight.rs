//! What would end a run late is said before it begins, by `run`, `doctor` and `plan` alike.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::path::{Path, PathBuf};

use common::{configs, fails, launch, small};

/// The small experiment with a model and a template of its own, which a test damages.
struct Experiment {
    dir: tempfile::TempDir,
    config: String,
}

impl Experiment {
    fn new() -> Self {
        let (dir, config) = small();
        let experiment = Self { dir, config };
        std::fs::create_dir(experiment.path("model")).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            let shipped = configs().join("models/stories260k").join(name);
            std::fs::copy(shipped, experiment.path("model").join(name)).unwrap();
        }
        let shipped = configs().join("prompts/movietweetings.toml");
        std::fs::copy(shipped, experiment.path("prompt.toml")).unwrap();
        experiment
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn change(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} has no {from:?}");
        std::fs::write(self.path(name), text.replace(from, to)).unwrap();
    }

    fn args(&self, command: &str, extra: &[&str]) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let mut args = vec![command.to_owned(), self.config.clone()];
        args.extend(["--run-dir".into(), path("run")]);
        for (key, name) in [("backbone.path", "model"), ("prompt.template", "prompt.toml")] {
            args.extend(["--set".into(), format!("{key}={}", path(name))]);
        }
        args.extend(extra.iter().map(|arg| (*arg).to_owned()));
        args
    }

    /// What `run` says, which must end with 2.
    fn run_error(&self, extra: &[&str]) -> String {
        fails(&words(&self.args("run", extra)), 2)
    }

    /// All three refuse, say so, and nothing is begun.
    fn refused(&self, extra: &[&str], says: &[&str]) {
        let plan = fails(&words(&self.args("plan", extra)), 2);
        let doctor = launch(&words(&self.args("doctor", extra))).assert().code(1);
        let doctor = String::from_utf8(doctor.get_output().stdout.clone()).unwrap();
        assert!(doctor.contains("WRONG") && !doctor.contains("can work"), "{doctor}");
        for text in [self.run_error(extra), plan, doctor] {
            for part in says {
                assert!(text.contains(part), "no {part:?} in: {text}");
            }
        }
        assert!(!self.path("run").exists(), "nothing is begun");
    }
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn a_template_that_does_not_work_is_refused_with_what_is_wrong() {
    let changes = [
        (
            "{{ target.title }}",
            "{{ target.titel }}",
            "target.titel is not there; there are target.title,",
        ),
        ("{{ target.title }}", "{{ target.title|uper }}", "uper"),
        ("{{ target.title }}", "{{ target.title }", "body, line"),
        ("{{ body }}", "hello", "the template shows nothing of the item"),
        ("no = \" No.\"", "no = \" Yes.\"", "do not differ"),
    ];
    for (from, to, says) in changes {
        let experiment = Experiment::new();
        experiment.change("prompt.toml", from, to);
        experiment.refused(&[], &[says]);
    }
}

#[test]
fn a_question_that_is_too_long_is_refused() {
    let says = ["prompt.max_tokens", "alone needs", "the limit is 20"];
    Experiment::new().refused(&["--set", "prompt.max_tokens=20"], &says);
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let experiment = Experiment::new();
    experiment.change("prompt.toml", "target.title", "target.titel");
    experiment.change("model/config.json", "LlamaForCausalLM", "GPT2LMHeadModel");
    std::fs::remove_file(experiment.path("model/tokenizer.json")).unwrap();
    let says = ["target.titel", "GPT2LMHeadModel", "tokenizer.json", "/none is not there"];
    experiment.refused(&["--set", "data.path=/none"], &says);
}

#[test]
fn a_model_without_weights_is_refused() {
    let experiment = Experiment::new();
    std::fs::remove_file(experiment.path("model/model.safetensors")).unwrap();
    experiment.refused(&[], &["model.safetensors"]);
}

#[test]
fn a_column_that_the_table_lacks_is_refused() {
    let experiment = Experiment::new();
    std::fs::create_dir(experiment.path("shop")).unwrap();
    let table = "who,what,stars,at,name\nu,a,3,1,A\n";
    std::fs::write(experiment.path("shop/ratings.csv"), table).unwrap();
    let text = std::fs::read_to_string(&experiment.config).unwrap();
    let shop = experiment.path("shop").display().to_string();
    let shipped = configs().join("data/movietweetings-100k").display().to_string();
    let text = text.replace("\"movietweetings\"", "\"csv\"").replace(&shipped, &shop);
    let columns = "\n[data.columns]\nuser = \"who\"\nitem = \"what\"\nrating = \"score\"\n\
                   timestamp = \"at\"\nitem_texts = [\"name\"]\n";
    std::fs::write(&experiment.config, text + columns).unwrap();
    // The template is for films, so it does not fit either.
    experiment.refused(&[], &["rating", "score", "item.title is not there; there are item.name,"]);
}

#[test]
fn a_stage_is_not_refused_for_what_only_others_need() {
    let experiment = Experiment::new();
    std::fs::remove_dir_all(experiment.path("model")).unwrap();
    experiment.change("prompt.toml", "target.title", "target.titel");
    launch(&words(&experiment.args("run", &["--only", "prepare"]))).assert().success();
}

/// Who is in the data is known after `prepare`: nothing else runs, and what was prepared stays.
#[test]
fn an_export_of_somebody_unknown_is_refused_after_prepare() {
    let experiment = Experiment::new();
    let pairs = ["--set", "export.pairs=[\"999999:1\"]"];
    let says = "user \"999999\" is not among the";
    assert!(experiment.run_error(&pairs).contains(says));
    let prepared = experiment.path("run/dataset/manifest.json");
    assert!(prepared.is_file() && !experiment.path("run/items").exists());
    let written = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let before = written(&prepared);
    let error = experiment.run_error(&pairs);
    assert!(error.contains(says) && error.contains("export.pairs"), "{error}");
    assert!(fails(&words(&experiment.args("plan", &pairs)), 2).contains(says));
    assert_eq!(written(&prepared), before, "it is not made again");
    // What was prepared of other data says nothing.
    let other = [&pairs[..], &["--set", "data.k_core=11"]].concat();
    launch(&words(&experiment.args("plan", &other))).assert().success();
}
