//! What a stage is a function of.

use reclora_storage::raw::{DatasetFormat, Duplicates};
use serde_json::json;

use super::*;
use crate::config::Config;

/// Inputs of `prepare` for the data in a directory.
fn prepare_inputs(data: impl FnOnce(&mut Config)) -> Inputs {
    let mut config = Config::default();
    data(&mut config);
    inputs_of(&RunContext::new("none".into(), config), Stage::Prepare).unwrap()
}

#[test]
fn the_mapping_is_no_input_of_formats_without_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/data/movietweetings-100k");
    let inputs = |user: &str| {
        prepare_inputs(|config| {
            config.data.path = path.clone();
            config.data.columns.user = user.into();
        })
    };
    let names: Vec<String> = inputs("who").into_keys().collect();
    assert_eq!(names, ["config", "data/movies.dat.gz", "data/ratings.dat.gz"]);
    assert_eq!(inputs("who"), inputs("whom"));
}

/// Every stage names itself, and reads only what comes before it.
#[test]
fn stages_describe_themselves_in_order() {
    for (place, stage) in Stage::ALL.into_iter().enumerate() {
        assert_eq!(json!(stage), stage.name());
        assert!(!stage.directory().is_empty() && !stage.describe().is_empty());
        let before = description(stage).reads.iter();
        assert!(before.clone().all(|read| Stage::ALL[..place].contains(read)), "{stage:?}");
        assert!(before.is_sorted());
    }
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
    let [first, last] = [Duplicates::First, Duplicates::Last].map(inputs);
    assert_ne!(first, last);
    assert_ne!(first, inputs(Duplicates::Refuse));
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
        (description(Stage::Tune).settings)(&config).unwrap()
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
