//! What a stage is a function of.

use reclora_storage::raw::DatasetFormat;

use super::*;

/// Inputs of `prepare` for the data in a directory.
fn prepare_inputs(data: impl FnOnce(&mut Config)) -> BTreeMap<String, String> {
    let mut config = Config::default();
    data(&mut config);
    inputs_of(&RunContext::new("none".into(), config), Stage::Prepare).unwrap()
}

#[test]
fn formats_without_a_mapping_keep_the_fingerprints_they_had() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/data/movietweetings-100k");
    let inputs = prepare_inputs(|config| config.data.path = path);
    let names: Vec<&str> = inputs.keys().map(String::as_str).collect();
    assert_eq!(names, ["config", "data/movies.dat.gz", "data/ratings.dat.gz"]);
    assert_eq!(inputs["config"], r#"["movietweetings",5,5,{"at_least":8.0},[0.8,0.1,0.1]]"#);
}

#[test]
fn which_of_two_ratings_is_kept_is_an_input() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/data/movietweetings-100k");
    let inputs = |duplicates| {
        prepare_inputs(|config| {
            config.data.path = path.clone();
            config.data.duplicates = duplicates;
        })
    };
    let [first, last] = [raw::Duplicates::First, raw::Duplicates::Last].map(inputs);
    assert_ne!(first, last);
    assert_eq!(last["data.duplicates"], "\"last\"");
    assert!(!inputs(raw::Duplicates::Refuse).contains_key("data.duplicates"));
}

#[test]
fn the_mapping_and_every_part_are_inputs() {
    let dir = tempfile::tempdir().unwrap();
    for part in ["ratings.parquet/day=1", "ratings.parquet/day=2"] {
        std::fs::create_dir_all(dir.path().join(part)).unwrap();
        std::fs::write(dir.path().join(part).join("part-0.parquet"), part).unwrap();
    }
    let inputs = |user: &str| {
        prepare_inputs(|config| {
            config.data.format = DatasetFormat::Parquet;
            config.data.path = dir.path().into();
            config.data.columns.user = user.into();
        })
    };
    let who = inputs("who");
    let names: Vec<&str> = who.keys().map(String::as_str).collect();
    let parts = [1, 2].map(|day| format!("data/ratings.parquet/day={day}/part-0.parquet"));
    assert_eq!(names, ["config", &parts[0], &parts[1]]);
    assert_ne!(who[&parts[0]], who[&parts[1]]);
    assert_ne!(who["config"], inputs("whom")["config"]);
}

#[test]
fn the_place_of_a_frozen_lora_is_no_input_and_every_setting_of_an_adapter_is() {
    let tune = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        settings::section(&config, Stage::Tune)
    };
    let default = tune(|_| ());
    assert_eq!(tune(|config| config.adapter.scale_of = "some/file".into()), default);
    for change in [
        (|config| config.adapter.top_k = 3) as fn(&mut Config),
        |config| config.adapter.gate = crate::config::GateInput::Token,
        |config| config.adapter.head = crate::config::Head::Ctr1,
    ] {
        assert_ne!(tune(change), default);
    }
}
