//! Config files and overrides, right and wrong.

mod common;
use common::{configs, experiment, fails, stdout};

/// Its comments are not kept by hand: a setting's words stand in its doc comment. To bring the file up to date,
/// write what the command prints over it.
#[test]
fn quickstart_is_what_the_reference_makes_of_its_values() {
    let path = configs().join("quickstart.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# reclora-launch run configs/quickstart.toml\n"));
    let path = path.to_str().unwrap();
    assert_eq!(
        stdout(&["config", "reference", path]),
        text,
        "bring it up to date: F=configs/quickstart.toml; \
         reclora-launch config reference $F > quickstart.new && mv quickstart.new $F"
    );
    stdout(&["config", "show", path]);
}

#[test]
fn the_reference_has_choices_ranges_and_defaults() {
    let (_dir, config) = experiment("# mine\n\n[retrieve]\ntext_k = 3\n");
    let said = stdout(&["config", "reference", &config]);
    for part in [
        "# mine\n\n# A short name",
        "Default: 10.\ntext_k = 3\n",
        "\n#   sequential: The K most similar to the target",
        "\n#   { at_least = NUMBER }: Rating >= value.\nlabel = { at_least = 8.0 }\n",
        "Range: at least 1.\ncrm_k = 60\n",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let (_dir, config) = experiment("[tune]\nepochs = 0\n");
    assert!(fails(&["config", "reference", &config], 2).contains("2:10: `tune.epochs`: is 0;"));
}

#[test]
fn the_schema_is_json_that_editors_take() {
    let schema: serde_json::Value = serde_json::from_str(&stdout(&["config", "schema"])).unwrap();
    assert_eq!(schema["additionalProperties"], false);
    let tune = &schema["properties"]["tune"]["properties"];
    assert_eq!((&tune["epochs"]["minimum"], &tune["epochs"]["default"]), (&1.into(), &5.into()));
    assert!(schema["properties"]["tune"]["description"].as_str().unwrap().contains("few-shot"));
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
        ("[data]\nk_core = 5_000_000_000\n", "2:10: `data.k_core`: expected a whole number up to"),
        ("[data]\nmin_history = 2020-01-01\n", "found \"2020-01-01\""),
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
fn everything_wrong_is_said_at_once_by_line() {
    let (_dir, config) = experiment(
        "sead = 3\n[adapter]\nexperts = 4\ntop_k = 5\n[tune]\nepoch = 3\nepochs = 0\nlearning_rate = true\n\
         valid_order = \"firs\"\nmicro_batches = 6\n",
    );
    let args = ["run", &config, "--set", "crm.epochs=0", "--set", "crm.micro_batches=3"];
    let error = fails(&args, 2);
    let mut rest = error.as_str();
    for part in [
        "experiment.toml:1:1: unknown key `sead`",
        "help: did you mean `seed`?",
        "4:9: `adapter.top_k`: 5 of 4 experts",
        "6:1: unknown key `epoch` in [tune]",
        "7:10: `tune.epochs`: is 0; it must be at least 1",
        "8:17: `tune.learning_rate`: expected a number, found true",
        "9:15: `tune.valid_order`: `firs` is not a choice",
        "help: did you mean `first`?",
        "10:17: `tune.micro_batches`: 6 is not a power of two",
        "--set crm.micro_batches=3: `crm.micro_batches`: 3 is not a power of two",
        "--set crm.epochs=0: `crm.epochs`: is 0; it must be at least 1",
    ] {
        let at = rest.find(part).unwrap_or_else(|| panic!("no {part:?} in its place in {error}"));
        rest = &rest[at..];
    }
}

/// What the command line sets in its place is not the file's fault.
#[test]
fn an_override_takes_a_wrong_value_out() {
    let (_dir, config) = experiment("[tune]\nepochs = 0\nmicro_batches = 6\n");
    let set = ["--set", "tune.epochs=2", "--set", "tune.micro_batches=4"];
    stdout(&[&["config", "show", &config][..], &set].concat());
    let error = fails(&["run", &config, "--set", "tune.epochs=2", "--nproc-per-node", "3"], 2);
    assert!(!error.contains("tune.epochs"), "{error}");
    assert!(error.contains("3:17: `tune.micro_batches`: 6 is not a power of two"), "{error}");
    assert!(error.contains("--nproc-per-node 3: `runtime.nproc_per_node`: 3 ranks"), "{error}");
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
