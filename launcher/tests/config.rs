//! Config files and overrides, right and wrong.

mod common;
use common::{configs, experiment, fails, stdout};

#[test]
fn quickstart_names_every_setting_and_begins_with_its_launch_line() {
    let path = configs().join("quickstart.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# reclora-launch run configs/quickstart.toml\n"));
    let file: toml::Table = text.parse().unwrap();
    let reference: toml::Table = stdout(&["config", "reference"]).parse().unwrap();
    for (name, value) in &reference {
        let there = file.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        for (key, value) in value.as_table().into_iter().flatten() {
            let there = there.get(key).unwrap_or_else(|| panic!("{name}.{key} is missing"));
            // `label` holds one of two rules.
            for inner in
                value.as_table().into_iter().filter(|_| key != "label").flat_map(|t| t.keys())
            {
                assert!(there.get(inner).is_some(), "{name}.{key}.{inner} is missing");
            }
        }
    }
    // Every setting, or the group it is in, is explained right above it.
    let mut explained = false;
    for line in text.lines() {
        explained = match line {
            "" => false,
            _ if line.starts_with('#') => true,
            _ => {
                assert!(explained, "no comment above: {line}");
                true
            }
        };
    }
    stdout(&["config", "show", path.to_str().unwrap()]);
}

#[test]
fn show_resolves_and_reads_back() {
    let (dir, config) = experiment("name = \"mine\"\n[tune]\nepochs = 9\n");
    let shown = stdout(&["config", "show", &config, "--set", "adapter.experts=4"]);
    assert!(shown.contains("name = \"mine\""), "{shown}");
    assert!(shown.contains("epochs = 9"), "{shown}");
    assert!(shown.contains("experts = 4"), "{shown}");
    let absolute = dir.path().join("data/movietweetings-100k");
    assert!(shown.contains(&format!("path = \"{}\"", absolute.display())), "{shown}");
    let again = dir.path().join("sub");
    std::fs::create_dir(&again).unwrap();
    let again = again.join("again.toml");
    std::fs::write(&again, &shown).unwrap();
    assert_eq!(stdout(&["config", "show", again.to_str().unwrap()]), shown);
}

/// The LoRA to scale is a path like the others, and none at all by default.
#[test]
fn a_lora_to_scale_is_relative_to_the_config() {
    let (dir, config) = experiment("[adapter]\nexperts = 1\nscale_of = \"run/lora\"\n");
    let shown = stdout(&["config", "show", &config]);
    let absolute = dir.path().join("run/lora");
    assert!(shown.contains(&format!("scale_of = \"{}\"\n", absolute.display())), "{shown}");
    let shown = stdout(&["config", "show", &config, "--set", "adapter.scale_of="]);
    assert!(shown.contains("scale_of = \"\"\n"), "{shown}");
    let error = fails(&["run", &config], 2);
    let expected = format!("config: adapter.scale_of: {} is not there", absolute.display());
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn typos_in_files_have_a_place_and_a_suggestion() {
    let cases = [
        ("seed = 1\n[tune]\nepoch = 3\n", "3:1: unknown key `epoch` in [tune]", "`tune.epochs`?"),
        ("[tunne]\nepochs = 3\n", "1:2: unknown section [tunne]", "did you mean [tune]?"),
        (
            "[data.columns]\nusr = \"x\"\n",
            "2:1: unknown key `usr` in [data.columns]",
            "did you mean `data.columns.user`?",
        ),
        (
            "[data.columns]\ntime_unit = \"sec\"\n",
            "2:13: `data.columns.time_unit`: `sec` is not a choice",
            "`iso8601`",
        ),
        ("sead = 3\n", "1:1: unknown key `sead`", "did you mean `seed`?"),
        ("[tune]\ntemperature = 3\n", "2:1: unknown key", "`adapter.temperature`?"),
        (
            "[retrieve]\ntext_order = \"sequental\"\n",
            "2:14: `retrieve.text_order`: `sequental` is not a choice",
            "did you mean `sequential`?",
        ),
        ("tune.epoch = 3\n", "1:6: unknown key `epoch` in [tune]", "`tune.epochs`?"),
    ];
    for (text, place, help) in cases {
        let (_dir, config) = experiment(text);
        for command in [&["config", "show"][..], &["run"]] {
            let error = fails(&[command, &[&config]].concat(), 2);
            assert!(error.contains(&format!("experiment.toml:{place}")), "{error}");
            assert!(error.contains(help), "{error}");
        }
    }
}

#[test]
fn wrong_types_name_the_field_and_what_is_expected() {
    let cases = [
        ("[tune]\nepochs = \"three\"\n", "2:10: `tune.epochs`: expected a whole number"),
        ("[tune]\nepochs = -3\n", "2:10: `tune.epochs`: expected a whole number, 0 or more"),
        ("[tune]\n\nlearning_rate = true\n", "3:17: `tune.learning_rate`: expected a number"),
        ("[data]\nsplit = [0.5, 0.5]\n", "2:9: `data.split`:"),
        ("tune = 3\n", "1:8: `tune`: expected a section"),
        ("[data]\nlabel = { more = 3.0 }\n", "`data.label`"),
    ];
    for (text, expected) in cases {
        let (_dir, config) = experiment(text);
        let error = fails(&["run", &config], 2);
        assert!(error.contains(expected), "{text}\n{error}");
    }
}

#[test]
fn bad_toml_has_line_and_column() {
    let (_dir, config) = experiment("seed = 1\n[tune\nepochs = 3\n");
    let error = fails(&["run", &config], 2);
    assert!(error.contains("experiment.toml:2:6: not valid TOML"), "{error}");
    assert!(error.contains("2 | [tune"), "{error}");
    let (_dir, config) = experiment("seed = 1\nseed = 2\n");
    let error = fails(&["run", &config], 2);
    assert!(error.contains("experiment.toml:2:1"), "{error}");
}

#[test]
fn several_typos_are_said_at_once() {
    let (_dir, config) = experiment("sead = 3\n[tune]\nepoch = 3\n");
    let error = fails(&["run", &config], 2);
    assert!(error.contains("`sead`") && error.contains("`epoch`"), "{error}");
}

#[test]
fn typos_in_overrides_are_suggested() {
    let (_dir, config) = experiment("");
    let cases = [
        ("tune.epoch=3", "did you mean `tune.epochs`?"),
        ("tunes.epochs=3", "did you mean `tune.epochs`?"),
        ("tune.epochs=lots", "expected a whole number"),
        ("tune.epochs", "there is no `=`"),
        ("tune=1", "`tune` is a section"),
    ];
    for (set, expected) in cases {
        let error = fails(&["run", &config, "--set", set], 2);
        assert!(error.contains(&format!("--set {set}")), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn missing_files_are_named_before_anything_starts() {
    let error = fails(&["run", "no/such.toml"], 2);
    assert!(error.contains("no/such.toml: no such config file"), "{error}");
    let (dir, config) = experiment("");
    let error = fails(&["run", dir.path().to_str().unwrap()], 2);
    assert!(error.contains("is a directory"), "{error}");
    std::fs::remove_dir(dir.path().join("data/movietweetings-100k")).unwrap();
    let run_dir = dir.path().join("run");
    let error = fails(&["run", &config, "--run-dir", run_dir.to_str().unwrap()], 2);
    assert!(error.contains("data.path"), "{error}");
    assert!(!run_dir.exists());
}

#[test]
fn a_file_that_is_not_text_is_refused() {
    let (_dir, config) = experiment("");
    std::fs::write(&config, b"\xff\xfe\x00").unwrap();
    let error = fails(&["run", &config], 2);
    assert!(error.contains("UTF-8"), "{error}");
}

#[test]
fn nccl_is_refused_by_name() {
    let (_dir, config) = experiment("[runtime]\nbackend = \"nccl\"\n");
    let error = fails(&["run", &config], 2);
    assert!(error.contains("runtime.backend") && error.contains("NCCL"), "{error}");
}

#[test]
fn commands_on_something_that_is_no_run_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    for args in [
        &["predict", path, "--user", "1", "--item", "2"][..],
        &["export", path, "--user", "1", "--item", "2", "--out", "x"],
        &["report", path],
    ] {
        let error = fails(args, 2);
        assert!(error.contains("not a run directory"), "{error}");
    }
}
