//! Whole runs, from raw ratings to predictions: the guarantees a user relies on, byte for byte.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
#[path = "common/workers.rs"]
mod workers;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use common::{configs, launch, small, stdout};
use flate2::read::GzDecoder;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use reclora_trainer::adapter::Adapter;
use reclora_trainer::backbone::Backbone;
use workers::{Victim, kill_at};

/// What a run is for, as bytes.
const RESULTS: [&str; 8] = [
    "adapter/adapter_model.safetensors",
    "adapter/plain_lora/adapter_model.safetensors",
    "predictions/test.parquet",
    "predictions/metrics.json",
    "export/bank.safetensors",
    "predictions/valid.parquet",
    "adapter/history.json",
    "adapter/plain_lora/history.json",
];

fn results(run_dir: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    RESULTS.into_iter().map(|name| (name, std::fs::read(run_dir.join(name)).unwrap())).collect()
}

fn assert_same(expected: &BTreeMap<&'static str, Vec<u8>>, run_dir: &Path, what: &str) {
    for (name, bytes) in results(run_dir) {
        assert!(bytes == expected[name], "{what}: {name} has other bytes");
    }
}

fn run(config: &str, run_dir: &Path, extra: &[&str]) {
    let args = ["run", config, "--run-dir", run_dir.to_str().unwrap()];
    launch(&args).args(extra).assert().success();
}

/// D-1: the number of ranks changes no bit. D-3: each test sample is scored exactly once.
#[test]
fn e2e_d1_d3_the_number_of_ranks_changes_no_bit() {
    let (dir, config) = small();
    let one = dir.path().join("one");
    run(&config, &one, &["--nproc-per-node", "1"]);
    let expected = results(&one);
    // Nor does how they talk.
    let checked = ["--set", "runtime.replica_check_every=1"];
    let subnet = ["--set", "runtime.interface=127.0.0.0/8"];
    for (ranks, extra) in [("2", checked), ("4", subnet)] {
        let run_dir = dir.path().join(ranks);
        run(&config, &run_dir, &[&["--nproc-per-node", ranks], &extra[..]].concat());
        assert_same(&expected, &run_dir, &format!("{ranks} ranks"));
        assert_scored_once(&run_dir, 160);
    }
    assert_valid_is_as_tuned(&one);
    // Rounded on the wire, gradients are others.
    let rounded = dir.path().join("rounded");
    let wire = ["--nproc-per-node", "2", "--set", "runtime.gradient_wire=bf16"];
    run(&config, &rounded, &wire);
    assert!(results(&rounded)[RESULTS[0]] != expected[RESULTS[0]]);
    assert_scored_once(&rounded, 160);
    // Another seed gives another adapter, or the comparison above would prove nothing.
    let other = dir.path().join("other");
    run(&config, &other, &["--set", "seed=6"]);
    assert!(results(&other)[RESULTS[0]] != expected[RESULTS[0]]);
}

fn assert_scored_once(run_dir: &Path, samples: i64) {
    let file = File::open(run_dir.join("predictions/test.parquet")).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    let keys: Vec<i64> = rows.iter().map(|row| row.get_long(0).unwrap()).collect();
    assert_eq!(keys.len() as i64, samples);
    assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    // Drawn of all of test, not its beginning.
    assert!(keys[keys.len() - 1] > keys[0] + 2 * samples, "{keys:?}");
    for row in &rows {
        for column in 5..10 {
            let probability = row.get_float(column).unwrap();
            assert!((0.0..=1.0).contains(&probability), "{row}");
        }
    }
}

/// What `valid.parquet` says of the samples that were scored is what the end of tuning said.
fn assert_valid_is_as_tuned(run_dir: &Path) {
    let file = File::open(run_dir.join("predictions/valid.parquet")).unwrap();
    let rows = SerializedFileReader::new(file).unwrap().into_iter().map(Result::unwrap);
    let rows: Vec<_> = rows.collect();
    for (column, history) in [(5, "adapter"), (6, "adapter/plain_lora")] {
        let scored = rows.iter().filter_map(|row| {
            let (user, label) = (0, row.get_bool(4).unwrap());
            let probability = row.get_float(column).ok()?;
            Some(reclora_trainer::metrics::Scored { user, label, probability })
        });
        let scored: Vec<_> = scored.collect();
        assert_eq!(scored.len(), 32, "those of tune.valid_samples");
        let history = std::fs::read(run_dir.join(history).join("history.json")).unwrap();
        let history: serde_json::Value = serde_json::from_slice(&history).unwrap();
        let last = history["epochs"].as_array().unwrap().last().unwrap();
        assert_eq!(last["valid_auc"].as_f64(), reclora_trainer::metrics::auc(&scored));
        for record in history["steps"].as_array().unwrap() {
            let loss = |name: &str| record[name].as_f64().unwrap();
            // An answer of one token of three: the other two are soon known.
            assert!(loss("deciding_loss") > 0.2 && loss("deciding_loss") < 3.0, "{record}");
        }
    }
    assert!(rows.len() > 200 && rows.iter().all(|row| row.get_float(7).is_ok()), "the CRM of all");
}

/// D-2: whatever is killed, and whenever, the same command ends with the same bytes.
#[test]
fn e2e_d2_a_killed_run_continues_to_the_same_bytes() {
    let (dir, config) = small();
    let undisturbed = dir.path().join("undisturbed");
    let started = std::time::Instant::now();
    run(&config, &undisturbed, &["--nproc-per-node", "2"]);
    let mut time = started.elapsed();
    let expected = results(&undisturbed);
    let mut random = workers::Random::from_clock();
    let mut killed = 0;
    for attempt in 0..10_u32 {
        let victim = if attempt % 2 == 0 { Victim::Rank } else { Victim::Launcher };
        let moment = time.mul_f64((f64::from(attempt) + random.unit()) / 10.0);
        let run_dir = dir.path().join(format!("killed_{attempt}"));
        let what = format!("{victim:?} killed after {moment:?} of {time:?}");
        let path = run_dir.to_str().unwrap();
        let args = ["run", &config, "--nproc-per-node", "2", "--run-dir", path];
        if kill_at(&args, victim, moment, &mut random, &what) {
            killed += 1;
        } else {
            // It ended before its moment: the machine is less busy than when the time was taken.
            time = time.mul_f64(0.7);
        }
        run(&config, &run_dir, &["--nproc-per-node", "2"]);
        assert_same(&expected, &run_dir, &what);
        std::fs::remove_dir_all(&run_dir).unwrap();
    }
    assert!(killed >= 5, "only {killed} of 10 runs were still running when something was killed");
}

/// The stages that a run does, rather than finding them up to date.
fn stages_done(config: &str, run_dir: &Path, extra: &[&str]) -> Vec<String> {
    let args = ["run", config, "--run-dir", run_dir.to_str().unwrap()];
    let output = launch(&args).args(extra).assert().success().get_output().stderr.clone();
    let text = String::from_utf8(output).unwrap();
    let stages = text.lines().filter(|line| line.contains("done in"));
    stages.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// What is done is not done again; what a setting changes, and only that, is.
#[test]
fn e2e_a_finished_run_is_up_to_date_and_a_change_redoes_what_depends_on_it() {
    let (dir, config) = small();
    let run_dir = dir.path().join("run");
    run(&config, &run_dir, &[]);
    let again = |extra: &[&str]| stages_done(&config, &run_dir, extra);
    assert_eq!(again(&[]), [] as [&str; 0]);
    assert_eq!(again(&["--set", "evaluate.bootstrap=60"]), ["evaluate"]);
    let slower = ["--set", "evaluate.bootstrap=60", "--set", "tune.learning_rate=0.001"];
    assert_eq!(again(&slower), ["tune", "evaluate", "export"]);
    // What the gates are given is chosen after the CRM is trained.
    let crm = std::fs::read(run_dir.join("crm/crm.safetensors")).unwrap();
    let slower = [&slower[..], &["--set", "crm.representation=user"]].concat();
    assert_eq!(again(&slower), ["few2many", "tune", "evaluate", "export"]);
    assert!(std::fs::read(run_dir.join("crm/crm.safetensors")).unwrap() == crm);
    // No setting of the machine changes a result, so none redoes anything.
    let machine = ["--set", "runtime.threads_per_rank=1", "--nproc-per-node", "2"];
    assert_eq!(again(&[&slower[..], &machine].concat()), [] as [&str; 0]);
}

/// A pair that is no sample is scored afresh: one that was never rated, and one rated with too short a
/// history before it.
fn assert_fresh_pairs(run_dir: &str, user: &str, item: &str) {
    let predict = |user: &str, item: &str| -> serde_json::Value {
        let args = ["predict", run_dir, "--json", "--user", user, "--item", item];
        serde_json::from_str(&stdout(&args)).unwrap()
    };
    let ratings = configs().join("data/movietweetings-100k/ratings.dat.gz");
    let mut text = String::new();
    GzDecoder::new(File::open(ratings).unwrap()).read_to_string(&mut text).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split("::").collect()).collect();
    let rated = |user: &str, item: &str| rows.iter().any(|row| row[0] == user && row[1] == item);
    let stranger = rows.iter().map(|row| row[0]).find(|other| {
        let known = ["predict", run_dir, "--user", other, "--item", item];
        !rated(other, item) && launch(&known).output().unwrap().status.success()
    });
    let unseen = predict(stranger.unwrap(), item);
    assert!(unseen["liked"].is_null(), "{unseen}");
    assert!(unseen["history_items"].as_u64().unwrap() > 0, "{unseen}");
    let mut own: Vec<&Vec<&str>> = rows.iter().filter(|row| row[0] == user).collect();
    own.sort_by_key(|row| row[3].parse::<u64>().unwrap());
    // The first of the user's ratings that the k-core kept.
    let first = own.iter().find(|row| {
        let known = ["predict", run_dir, "--user", user, "--item", row[1]];
        launch(&known).output().unwrap().status.success()
    });
    let first = predict(user, first.unwrap()[1]);
    assert!(first["liked"].is_boolean(), "{first}");
    assert_eq!(first["history_items"], 0, "{first}");
    for prediction in [unseen, first] {
        for model in ["reclora", "lora", "crm"] {
            let probability = prediction[model].as_f64().unwrap();
            assert!(probability > 0.0 && probability < 1.0, "{model}: {prediction}");
        }
    }
}

/// A pair that is a sample is predicted with the very bits of `evaluate`, and exported as PEFT.
#[test]
fn e2e_predict_and_export_agree_with_evaluate() {
    let (dir, config) = small();
    let run_dir = dir.path().join("run");
    run(&config, &run_dir, &[]);
    let run_dir = run_dir.to_str().unwrap();
    let file = File::open(Path::new(run_dir).join("predictions/test.parquet")).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let row = reader.get_row_iter(None).unwrap().nth(3).unwrap().unwrap();
    let (user, item) = (row.get_string(1).unwrap(), row.get_string(2).unwrap());
    let pair = ["--user", user.as_str(), "--item", item.as_str()];
    let text = stdout(&[&["predict", run_dir, "--json"], &pair[..]].concat());
    let prediction: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(prediction["liked"], row.get_bool(4).unwrap());
    for (column, name) in [(5, "reclora"), (6, "lora"), (7, "crm")] {
        let probability = f64::from(row.get_float(column).unwrap());
        let predicted = prediction[name].as_f64().unwrap();
        assert!((predicted as f32).to_bits() == (probability as f32).to_bits(), "{name}: {text}");
    }
    assert_fresh_pairs(run_dir, user, item);
    let out = dir.path().join("peft");
    let export = [&["export", run_dir, "--out", out.to_str().unwrap()], &pair[..]].concat();
    stdout(&export);
    stdout(&export);
    for name in ["adapter_config.json", "adapter_model.safetensors", "example.json"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    let unknown = common::fails(&["predict", run_dir, "--user", "no-one", "--item", pair[3]], 1);
    assert!(unknown.contains("user \"no-one\""), "{unknown}");
    let foreign = [&["export", run_dir, "--out", run_dir], &pair[..]].concat();
    let refused = common::fails(&foreign, 1);
    assert!(refused.contains("not an exported adapter"), "{refused}");
    assert_other_settings_are_refused(&config, run_dir, &pair);
}

/// A run that ends early leaves its settings beside an adapter that was tuned with others.
fn assert_other_settings_are_refused(config: &str, run_dir: &str, pair: &[&str]) {
    let early = |set: &[&str]| {
        let args = ["run", config, "--run-dir", run_dir, "--until", "few2many", "--no-report"];
        launch(&[&args[..], set].concat()).assert().success();
    };
    let predict = [&["predict", run_dir], pair].concat();
    let template = Path::new(run_dir).with_file_name("other.toml");
    let shipped = configs().join("prompts/movietweetings.toml");
    let text = std::fs::read_to_string(shipped).unwrap();
    std::fs::write(&template, format!("# another\n{text}")).unwrap();
    let template = format!("prompt.template={}", template.display());
    let out = format!("{run_dir}/../unwritten");
    let export = [&["export", run_dir, "--out", &out], pair].concat();
    for set in [template.as_str(), "tune.learning_rate=0.001"] {
        early(&["--set", set]);
        let says = "adapter: was made with other settings than";
        for args in [&predict, &export] {
            let error = common::fails(args, 1);
            assert!(error.contains(says) && error.contains("run/config.toml"), "{error}");
        }
        assert!(!Path::new(&out).exists());
        let compared = launch(&["compare", run_dir, run_dir]).assert().success();
        let note = String::from_utf8(compared.get_output().stderr.clone()).unwrap();
        assert!(note.contains("note: ") && note.contains(says), "{note}");
    }
    early(&["--set", "runtime.threads_per_rank=1", "--nproc-per-node", "2"]);
    stdout(&predict);
    let compared = launch(&["compare", run_dir, run_dir]).assert().success();
    assert!(compared.get_output().stderr.is_empty());
}

/// Scales of the plain LoRA of another run: tuned with the same bits by any number of ranks, without it
/// once they are tuned, and again when it is another.
#[test]
fn e2e_scales_of_the_plain_lora_of_another_run() {
    let (dir, config) = small();
    let first = dir.path().join("first");
    run(&config, &first, &[]);
    let file = first.join(RESULTS[1]);
    let scale_of = format!("adapter.scale_of={}", file.display());
    let set = ["--set", "adapter.experts=1", "--set", &scale_of];
    let one = dir.path().join("one");
    run(&config, &one, &[&set[..], &["--nproc-per-node", "1"]].concat());
    let two = dir.path().join("two");
    run(&config, &two, &[&set[..], &["--nproc-per-node", "2"]].concat());
    let expected = results(&one);
    assert_same(&expected, &two, "2 ranks");
    assert!(expected[RESULTS[4]] == expected[RESULTS[0]], "exported whole");
    assert_scored_once(&two, 160);

    let backbone = Backbone::load(&configs().join("models/stories260k")).unwrap();
    let load = |path: &Path| Adapter::load(path, backbone.config()).unwrap();
    let (mut lora, scales) = (load(&file), load(&one.join(RESULTS[0])));
    assert!(scales.frozen().unwrap().parameters() == lora.parameters());
    assert!(scales.parameters().iter().all(|offset| *offset != 0.0), "every scale is tuned");
    // The baseline is tuned from the beginning, as in the first run.
    assert!(load(&one.join(RESULTS[1])).parameters() == lora.parameters());

    assert_eq!(stages_done(&config, &one, &set), [] as [&str; 0]);
    lora.parameters_mut()[0] += 0.1;
    lora.save(&file).unwrap();
    assert_eq!(stages_done(&config, &one, &set), ["tune", "evaluate", "export"]);
    assert!(results(&one)[RESULTS[0]] != expected[RESULTS[0]]);

    std::fs::remove_dir_all(&first).unwrap();
    assert_scales_need_no_other_run(&two, &dir.path().join("peft"));
    let args = [&["run", &config, "--run-dir", two.to_str().unwrap()], &set[..]].concat();
    let missing = common::fails(&args, 2);
    assert!(missing.contains("config: adapter.scale_of: "), "{missing}");
}

fn assert_scales_need_no_other_run(run_dir: &Path, out: &Path) {
    let run_dir = run_dir.to_str().unwrap();
    let file = File::open(Path::new(run_dir).join("predictions/test.parquet")).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let row = reader.get_row_iter(None).unwrap().nth(3).unwrap().unwrap();
    let pair = ["--user", row.get_string(1).unwrap(), "--item", row.get_string(2).unwrap()];
    let text = stdout(&[&["predict", run_dir, "--json"], &pair[..]].concat());
    let prediction: serde_json::Value = serde_json::from_str(&text).unwrap();
    let probability = |name: &str| prediction[name].as_f64().unwrap() as f32;
    assert_eq!(probability("reclora").to_bits(), row.get_float(5).unwrap().to_bits(), "{text}");
    assert!(probability("reclora") != probability("lora"), "scales are not the LoRA: {text}");
    stdout(&[&["export", run_dir, "--out", out.to_str().unwrap()], &pair[..]].concat());
    assert!(out.join("adapter_model.safetensors").is_file());
}

/// Before anything is started: settings of another LoRA, and a file that the run would replace.
#[test]
fn e2e_a_lora_that_can_not_be_scaled_is_refused_at_once() {
    let (dir, config) = small();
    let first = dir.path().join("first");
    run(&config, &first, &[]);
    let refused = |run_dir: &Path, file: &Path, extra: &[&str], parts: &[&str]| {
        let scale_of = format!("adapter.scale_of={}", file.display());
        let mut args = vec!["run", &config, "--run-dir", run_dir.to_str().unwrap()];
        args.extend(["--set", "adapter.experts=1", "--set", &scale_of]);
        let error = common::fails(&[&args[..], extra].concat(), 2);
        for part in parts {
            assert!(error.contains(part), "no {part:?} in: {error}");
        }
    };
    let (plain, other) = (first.join(RESULTS[1]), dir.path().join("other"));
    let name = plain.display().to_string();
    let rank = ["--set", "adapter.rank=8"];
    refused(&other, &plain, &rank, &["config: adapter.rank: is 8, but 4 in ", &name]);
    let experts = first.join(RESULTS[0]);
    refused(&other, &experts, &[], &["config: adapter.scale_of: ", "4 experts"]);
    refused(&other, &first.join("adapter"), &[], &["config: adapter.scale_of: ", "adapter_model"]);
    assert!(!other.exists());
    let before = std::fs::read(&plain).unwrap();
    refused(&first, &plain, &[], &["config: adapter.scale_of: ", "this very run"]);
    assert!(std::fs::read(&plain).unwrap() == before);
}
