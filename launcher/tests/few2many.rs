//! Few2Many scoring: every sample once, whatever is killed; a holdout; few-shot samplers; a full disk.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
#[path = "../../tests/skip.rs"]
mod skip;
#[path = "common/workers.rs"]
mod workers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::{configs, copy_of, fails, launch, small};
use reclora_storage::dataset::{Dataset, Split};
use reclora_storage::shard::Shard;
use skip::skip;
use workers::{Random, Victim, kill_at};

/// A run up to and including the CRM.
struct Pretrained {
    _dir: tempfile::TempDir,
    config: String,
    run_dir: PathBuf,
}

impl Pretrained {
    /// With a scored CRM that is large enough for its scoring to be interrupted.
    fn new(settings: &[&str]) -> Self {
        let (dir, config) = small();
        let run_dir = dir.path().join("pretrained");
        let mut text = std::fs::read_to_string(&config).unwrap();
        text = text.replace("hidden_dim = 16", "hidden_dim = 256\nnum_layers = 2");
        text = text.replace("k_core = 12", "k_core = 5").replace("crm_k = 10", "crm_k = 60");
        text = text.replace("epochs = 2\n[adapter]", "epochs = 1\n[adapter]");
        std::fs::write(&config, text).unwrap();
        let run = Self { _dir: dir, config, run_dir };
        for stage in ["prepare", "embed", "retrieve", "count", "pretrain"] {
            run.stage(&run.run_dir, stage, &[settings, &["--nproc-per-node", "2"]].concat());
        }
        run
    }

    fn args<'a>(&'a self, run_dir: &'a Path, stage: &'a str) -> Vec<&'a str> {
        let run_dir = run_dir.to_str().unwrap();
        vec!["run", &self.config, "--run-dir", run_dir, "--no-report", "--only", stage]
    }

    fn stage(&self, run_dir: &Path, stage: &str, extra: &[&str]) {
        launch(&self.args(run_dir, stage)).args(extra).assert().success();
    }

    /// Another run directory with the same stages done.
    fn copy(&self, name: &str) -> PathBuf {
        copy_of(&self.run_dir, name)
    }
}

/// The lens files by name.
fn lens(run_dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(run_dir.join("lens")).unwrap().map(Result::unwrap);
    let shards = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "shard"));
    shards
        .map(|entry| {
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn shards(run_dir: &Path) -> Vec<Shard> {
    let open = |name: String| Shard::open(&run_dir.join("lens").join(name), "lens").unwrap();
    lens(run_dir).into_keys().map(open).collect()
}

/// A column of all shards, in order.
fn numbers(run_dir: &Path, column: &str) -> Vec<f32> {
    shards(run_dir).iter().flat_map(|shard| shard.f32(column).unwrap().to_vec()).collect()
}

fn assert_every_key_once(run_dir: &Path) {
    let shards = shards(run_dir);
    let keys: Vec<u64> = shards.iter().flat_map(|s| s.u64("key").unwrap().to_vec()).collect();
    assert!(keys.len() > 10_000 && keys.iter().copied().eq(0..keys.len() as u64));
}

/// D-2, D-3: killed at 20 random moments, in 1, 2 and 4 ranks, it ends with every key exactly once and the
/// bytes of an undisturbed run.
#[test]
fn d2_d3_scoring_that_is_killed_ends_with_the_same_bytes() {
    let run = Pretrained::new(&[]);
    let undisturbed = run.copy("undisturbed");
    let started = Instant::now();
    run.stage(&undisturbed, "few2many", &["--nproc-per-node", "1"]);
    let mut time = started.elapsed();
    assert_every_key_once(&undisturbed);
    let expected = lens(&undisturbed);
    assert!(expected.len() > 8, "{} files", expected.len());
    let (mut random, mut killed) = (Random::from_clock(), 0);
    for attempt in 0..20 {
        let ranks = ["1", "2", "4"][attempt % 3];
        let victim = if attempt % 2 == 0 { Victim::Rank } else { Victim::Launcher };
        let run_dir = run.copy("killed");
        let mut args = run.args(&run_dir, "few2many");
        args.extend(["--nproc-per-node", ranks]);
        let moment = time.mul_f64(random.unit());
        let what = format!("{victim:?} of {ranks} ranks killed after {moment:?} of {time:?}");
        if kill_at(&args, victim, moment, &mut random, &what) {
            killed += 1;
        } else {
            // It ended before its moment, or had not begun.
            time = time.mul_f64(0.9);
        }
        run.stage(&run_dir, "few2many", &["--nproc-per-node", ranks]);
        assert!(lens(&run_dir) == expected, "{what}: other bytes");
        std::fs::remove_dir_all(&run_dir).unwrap();
    }
    assert!(killed >= 10, "only {killed} of 20 runs were still running when something was killed");
}

/// With a holdout the CRM of all of train says what it says without, and the gates read one that was trained before it.
#[test]
fn d1_a_holdout_changes_what_the_gates_read_and_no_score() {
    let holdout = ["--set", "crm.holdout=0.2"];
    let run = Pretrained::new(&holdout);
    let one = run.copy("one");
    run.stage(&one, "few2many", &[&holdout[..], &["--nproc-per-node", "1"]].concat());
    run.stage(&run.run_dir, "few2many", &[&holdout[..], &["--nproc-per-node", "2"]].concat());
    assert!(lens(&one) == lens(&run.run_dir), "D-1: the number of ranks changes no bit");
    assert_every_key_once(&one);
    let without = run.copy("without");
    for stage in ["pretrain", "few2many"] {
        run.stage(&without, stage, &["--nproc-per-node", "2"]);
    }
    assert!(numbers(&one, "logit") == numbers(&without, "logit"));
    let early = numbers(&one, "early_logit");
    let changed = early.iter().zip(numbers(&one, "logit")).filter(|(early, full)| *early != full);
    assert!(changed.count() as f64 > 0.99 * early.len() as f64);
    let representations = |run_dir: &Path| -> Vec<u16> {
        let shards = shards(run_dir);
        shards.iter().flat_map(|shard| shard.u16("representation").unwrap().to_vec()).collect()
    };
    assert_ne!(representations(&one), representations(&without));
}

/// What the score starts from, and what the gates read of a few-shot sample, does not depend on its label.
#[test]
fn a_label_of_the_holdout_changes_nothing_of_its_own_row() {
    let (dir, config) = small();
    let data = dir.path().join("data");
    let path = format!("data.path={}", data.display());
    let settings = ["--set", "crm.holdout=0.3", "--set", &path];
    let run = |name: &str| {
        let run_dir = dir.path().join(name);
        let args = ["run", &config, "--run-dir", run_dir.to_str().unwrap(), "--until", "few2many"];
        launch(&args).args(settings).arg("--no-report").assert().success();
        run_dir
    };
    std::fs::create_dir(&data).unwrap();
    let raw = configs().join("data/movietweetings-100k");
    for name in ["movies.dat", "ratings.dat"] {
        let plain = std::fs::File::create(data.join(name)).unwrap();
        let packed = raw.join(format!("{name}.gz"));
        let unpacked = Command::new("gzip").arg("-dc").arg(packed).stdout(plain).status().unwrap();
        assert!(unpacked.success());
    }
    let before = run("before");
    // The last ratings of train in time, one of which is of a user who comes again.
    let dataset = Dataset::open(&before.join("dataset")).unwrap();
    let train = dataset.split(Split::Train);
    let sample = dataset.sample(train.end - 1).unwrap();
    let ratings = std::fs::read_to_string(data.join("ratings.dat")).unwrap();
    let key = format!("{}::{}::", dataset.user_key(sample.user), dataset.item_key(sample.item));
    let flipped = ratings.lines().map(|line| match line.strip_prefix(&key) {
        Some(rest) => {
            let (_, time) = rest.split_once("::").unwrap();
            format!("{key}{}::{time}\n", if sample.label { 1 } else { 10 })
        }
        None => format!("{line}\n"),
    });
    let flipped: String = flipped.collect();
    assert_ne!(flipped, ratings);
    std::fs::write(data.join("ratings.dat"), flipped).unwrap();
    let after = run("after");
    let now = Dataset::open(&after.join("dataset")).unwrap().sample(sample.index).unwrap();
    assert_eq!((now.user, now.item, now.label), (sample.user, sample.item, !sample.label));
    let row = |run_dir: &Path| {
        let shards = shards(run_dir);
        let rows: usize = shards.iter().map(|shard| shard.f32("logit").unwrap().len()).sum();
        let all: Vec<u16> =
            shards.iter().flat_map(|s| s.u16("representation").unwrap().to_vec()).collect();
        let (dim, row) = (all.len() / rows, sample.index as usize);
        let early = numbers(run_dir, "early_logit")[row].to_bits();
        (early, all[row * dim..(row + 1) * dim].to_vec())
    };
    assert_eq!(row(&before), row(&after));
    // It is no constant.
    assert_ne!(numbers(&before, "logit"), numbers(&after, "logit"));
}

/// A lens is of one CRM and one dataset: put into a run with another CRM, it is refused.
#[test]
fn a_lens_of_another_crm_is_refused() {
    let (dir, config) = small();
    let run_dir = dir.path().join("run");
    let args = ["run", &config, "--run-dir", run_dir.to_str().unwrap()];
    let stage = |stage: &str, extra: &[&str]| {
        launch(&args).args(["--only", stage]).args(extra).assert().success();
    };
    let quick = ["--set", "tune.models=['reclora']", "--set", "tune.epochs=1"];
    for name in ["prepare", "embed", "retrieve", "count", "pretrain", "few2many", "tune"] {
        stage(name, &quick);
    }
    stage("pretrain", &[&quick[..], &["--set", "crm.epochs=1"]].concat());
    let tune = [&args[..], &["--set", "crm.epochs=1", "--only", "tune"]].concat();
    let refused = common::fails(&tune, 2);
    assert!(refused.contains("few2many has to come first"), "{refused}");
    // Also by what reads a run without its config.
    let predict = ["predict", run_dir.to_str().unwrap(), "--user", "1", "--item", "1"];
    let refused = common::fails(&predict, 1);
    assert!(refused.contains("was made from another crm"), "{refused}");
    assert!(refused.contains("--from few2many"), "{refused}");
}

/// Up to few2many there is a table without an LLM; where only the last items are shown nothing is embedded, and
/// whatever comes later does without.
#[test]
fn the_models_without_an_llm_come_first_and_recent_items_need_no_embeddings() {
    let (dir, config) = small();
    let run_dir = dir.path().join("run");
    let recent = ["retrieve.text_order=recent", "retrieve.crm_order=recent", "tune.epochs=1"];
    let run = |extra: &[&str]| {
        let mut command = launch(&["run", &config, "--run-dir", run_dir.to_str().unwrap()]);
        let output = command.args(recent.into_iter().flat_map(|set| ["--set", set])).args(extra);
        let output = output.assert().success().get_output().clone();
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap())
    };
    let [table, said] = run(&["--until", "few2many"]);
    assert!(said.contains("embed     not needed") && !said.contains("tune"), "{said}");
    let (valid, test) = table.split_once("test, to report what was chosen").unwrap();
    for split in [valid, test] {
        for model in ["CRM alone", "logistic regression", "item mean"] {
            assert!(split.contains(model), "{table}");
        }
    }
    let json = std::fs::read(run_dir.join("report/crm.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let crm = |measured: &serde_json::Value| measured["models"][0][1]["auc"].as_f64();
    let history = std::fs::read(run_dir.join("crm/history.json")).unwrap();
    let history: serde_json::Value = serde_json::from_slice(&history).unwrap();
    let epochs = history["epochs"].as_array().unwrap().iter();
    let best = epochs.filter_map(|epoch| epoch["valid_auc"].as_f64()).fold(0.0, f64::max);
    // Probabilities are in blocks here, one by one there.
    assert!((crm(&json["valid"]).unwrap() - best).abs() < 1e-4, "{json}");
    // All stages; then a pair that is a sample, and films that its user never rated.
    run(&[]);
    assert!(!run_dir.join("items").exists());
    let exported = std::fs::read_dir(run_dir.join("export")).unwrap().map(Result::unwrap);
    let exported = exported.map(|entry| entry.file_name().into_string().unwrap());
    let names: Vec<String> = exported.filter(|name| name.starts_with("user_")).collect();
    let (user, item) = names[0].strip_prefix("user_").unwrap().split_once("_item_").unwrap();
    let predict = |item: &str| {
        common::stdout(&["predict", run_dir.to_str().unwrap(), "--user", user, "--item", item])
    };
    assert!(predict(item).contains("\nliked "));
    let fresh = ["1483013", "0816711", "1300854"].map(predict);
    assert!(fresh.iter().any(|text| !text.contains("\nliked ")), "{fresh:?}");
    let backwards = ["--from", "tune", "--until", "embed"];
    let args = [&["run", &config][..], &backwards].concat();
    assert!(fails(&args, 2).contains("embed comes before tune"));
}

/// Tuning takes another few-shot set for every sampler; what is no sampler is refused by name.
#[test]
fn samplers_draw_other_few_shot_sets() {
    let (dir, config) = small();
    let run_dir = dir.path().join("run");
    let args = ["run", &config, "--run-dir", run_dir.to_str().unwrap()];
    let adapter = |sampler: &str| {
        let set = format!("tune.few_shot_sampler={sampler}");
        let small = ["--set", "tune.models=['reclora']", "--set", "tune.epochs=1", "--set", &set];
        let small = [&small[..], &["--no-report"]].concat();
        for stage in ["prepare", "embed", "retrieve", "count", "pretrain", "few2many", "tune"] {
            launch(&args).args(["--only", stage]).args(&small).assert().success();
        }
        std::fs::read(run_dir.join("adapter/adapter_model.safetensors")).unwrap()
    };
    let adapters = ["uniform", "user", "time", "crm_score"].map(adapter);
    for (i, a) in adapters.iter().enumerate() {
        assert!(adapters[..i].iter().all(|b| a != b), "sampler {i} draws what another one draws");
    }
    let wrong = [&args[..], &["--set", "tune.few_shot_sampler=oldest"]].concat();
    let refused = common::fails(&wrong, 2);
    assert!(refused.contains("few_shot_sampler") && refused.contains("crm_score"), "{refused}");
}

/// A disk that is full half way: an error that names the file, nothing half-written, and the same command
/// completes once there is room.
#[test]
fn s1_a_full_disk_is_an_error_and_the_rerun_completes() {
    let run = Pretrained::new(&[]);
    let undisturbed = run.copy("undisturbed");
    run.stage(&undisturbed, "few2many", &[]);
    let total: usize = lens(&undisturbed).values().map(Vec::len).sum();
    let full = run.copy("full");
    std::fs::create_dir(full.join("lens")).unwrap();
    let program = assert_cmd::cargo::cargo_bin("reclora-launch");
    let args = run.args(&full, "few2many");
    // A small file system of its own at the stage's directory, whose files are kept.
    let script = format!(
        "mount -t tmpfs -o size={} none {lens} || exit 77; {program} {args}; code=$?; \
         cp -r {lens} {kept}; exit $code",
        total / 2,
        lens = full.join("lens").display(),
        kept = full.join("kept").display(),
        program = program.display(),
        args = args.join(" "),
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || text.contains("unshare") {
        eprintln!("{text}");
        return skip(
            "needs unshare, and the right of a user to mount a file system in a namespace",
        );
    }
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("No space left on device") && text.contains("lens"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    std::fs::remove_dir_all(full.join("lens")).unwrap();
    std::fs::rename(full.join("kept"), full.join("lens")).unwrap();
    let (kept, expected) = (lens(&full), lens(&undisturbed));
    assert!(!kept.is_empty() && kept.len() < expected.len(), "{} files", kept.len());
    assert!(kept.iter().all(|(name, bytes)| expected[name] == *bytes), "a file is half-written");
    run.stage(&full, "few2many", &[]);
    assert!(lens(&full) == expected);
}

/// D-3: parts that several launchers score at the same time, one of them again, are the whole.
#[test]
fn d3_parts_scored_side_by_side_are_the_whole() {
    let run = Pretrained::new(&[]);
    let (alone, parts) = (run.copy("alone"), run.copy("parts"));
    run.stage(&alone, "few2many", &["--nproc-per-node", "2"]);
    let args = run.args(&parts, "few2many");
    let start = |part: &str| {
        Command::new(assert_cmd::cargo::cargo_bin("reclora-launch"))
            .args(&args)
            .args(["--nproc-per-node", "2", "--part", part])
            .spawn()
            .unwrap()
    };
    let mut running = ["0/3", "1/3", "2/3", "1/3"].map(start);
    let ends = running.each_mut().map(|child| child.wait().unwrap().success());
    // The same part twice: one of them may have found the other at work.
    assert!(ends[0] && ends[2] && (ends[1] || ends[3]), "{ends:?}");
    assert!(lens(&parts) == lens(&alone));
    let error = fails(&run.args(&parts, "tune"), 2);
    assert!(error.contains("stage few2many has to come first"), "{error}");
    // Whoever does all of it finds all done.
    run.stage(&parts, "few2many", &["--nproc-per-node", "2"]);
    assert_every_key_once(&parts);
    assert!(lens(&parts) == lens(&alone));

    let part = ["--part", "0/2", "--nproc-per-node", "2"];
    let error = fails(&[&run.args(&parts, "tune")[..], &part].concat(), 2);
    assert!(error.contains("only --only few2many"), "{error}");
    let other = [&args[..], &part, &["--set", "crm.hidden_dim=8"]].concat();
    assert!(fails(&other, 2).contains("the config is not that of the run"));
    for bad in ["2/2", "a", "1/0", "-1/3"] {
        launch(&args).args([&format!("--part={bad}")]).assert().code(2);
    }
}
