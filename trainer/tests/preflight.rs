//! What is known before the first stage, and right after `prepare`.

use crate::tiny;
use std::fmt::Write as _;
use std::path::Path;

use reclora_storage::dataset::{self, Dataset};
use reclora_storage::protocol::{LabelRule, ProtocolConfig, prepare};
use reclora_storage::raw::{self, ColumnMapping, DatasetFormat};
use reclora_trainer::backbone::WeightType;
use reclora_trainer::config::Config;
use reclora_trainer::stages::preflight::{
    Severity, check, check_dataset, disk_forecast, is_wrong, known_dataset,
};
use reclora_trainer::stages::{RunContext, Stage};
use tempfile::TempDir;

const USERS: usize = 12;
const ITEMS: usize = 8;

/// A run on made-up ratings of items with titles, with the shipped model.
fn run() -> (TempDir, RunContext) {
    let dir = tempfile::tempdir().unwrap();
    let mut ratings = "user,item,rating,timestamp\n".to_owned();
    for place in 0..ITEMS {
        for user in 0..USERS {
            let (item, time) = ((place * 3 + user) % ITEMS, place * USERS + user);
            writeln!(ratings, "u{user},i{item},{},{time}", 1 + (item + user) % 5).unwrap();
        }
    }
    let mut items = "item,title\n".to_owned();
    for item in 0..ITEMS {
        writeln!(items, "i{item},{}", "many words ".repeat(item)).unwrap();
    }
    std::fs::write(dir.path().join("ratings.csv"), ratings).unwrap();
    std::fs::write(dir.path().join("items.csv"), items).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut config = Config::default();
    config.data.format = DatasetFormat::Csv;
    config.data.path = dir.path().into();
    config.data.columns = ColumnMapping {
        items: "items.csv".into(),
        item_texts: vec!["title".into()],
        ..ColumnMapping::default()
    };
    (config.data.k_core, config.data.min_history) = (2, 2);
    config.data.label = LabelRule::AtLeast(3.0);
    config.backbone.path = shipped.join("models/stories260k");
    config.prompt.template = shipped.join("prompts/movietweetings.toml");
    let run_dir = dir.path().join("run");
    (dir, RunContext::new(run_dir, config))
}

/// Makes the dataset of a run.
fn prepared(ctx: &RunContext) {
    let data = &ctx.config.data;
    let tables = raw::read(data.format, &data.path, &data.columns).unwrap();
    let protocol = ProtocolConfig {
        k_core: data.k_core,
        min_history: data.min_history,
        label: data.label,
        split: data.split,
    };
    let prepared = prepare(&tables, &protocol).unwrap();
    let dir = ctx.path(Stage::Prepare);
    std::fs::create_dir_all(&dir).unwrap();
    dataset::write(&prepared, "csv", &dir).unwrap();
}

/// What is not as it should be.
fn problems(ctx: &RunContext) -> Vec<(Severity, String)> {
    let found = check(ctx, &Stage::ALL, None).into_iter();
    let found = found.filter(|finding| finding.severity != Severity::Fine);
    found.map(|finding| (finding.severity, finding.to_string())).collect()
}

fn of_dataset(ctx: &RunContext) -> Vec<String> {
    let dataset = Dataset::open(&ctx.path(Stage::Prepare)).unwrap();
    check_dataset(ctx, &dataset, &Stage::ALL).iter().map(ToString::to_string).collect()
}

#[test]
fn what_works_is_fine() {
    let (_dir, ctx) = run();
    assert_eq!(problems(&ctx), []);
    prepared(&ctx);
    assert_eq!(of_dataset(&ctx), [""; 0]);
}

#[test]
fn pairs_that_are_not_in_the_dataset_are_named_each() {
    let (_dir, mut ctx) = run();
    prepared(&ctx);
    ctx.config.export.pairs = ["u1:i2", "u99:i2", "u1:i99"].map(str::to_owned).into();
    let found = of_dataset(&ctx);
    assert!(
        found[0].starts_with("config: export.pairs: \"u99:i2\": user \"u99\" is not"),
        "{found:?}"
    );
    assert!(
        found[1].starts_with("config: export.pairs: \"u1:i99\": item \"i99\" is not"),
        "{found:?}"
    );
    assert_eq!(found.len(), 2);
    let dataset = Dataset::open(&ctx.path(Stage::Prepare)).unwrap();
    assert!(check_dataset(&ctx, &dataset, &[Stage::Tune]).is_empty(), "only export needs them");
}

#[test]
fn without_a_test_set_there_must_be_pairs() {
    let (_dir, mut ctx) = run();
    ctx.config.data.split = [0.9, 0.1, 0.0];
    prepared(&ctx);
    assert_eq!(
        of_dataset(&ctx),
        [
            "config: data.split: leaves no sample to test, of which the first would be exported: give test a larger share, or name what to export in export.pairs"
        ]
    );
    ctx.config.export.pairs = vec!["u1:i2".into()];
    assert_eq!(of_dataset(&ctx), [""; 0]);
}

/// Short questions fit, as a made-up one does; that others do not is known once there are titles.
#[test]
fn a_title_that_is_too_long_is_known_after_prepare() {
    let (_dir, mut ctx) = run();
    prepared(&ctx);
    ctx.config.prompt.max_tokens = 20;
    while is_wrong(&check(&ctx, &[Stage::Tune], None)) {
        ctx.config.prompt.max_tokens += 4;
    }
    let found = of_dataset(&ctx);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("config: prompt.max_tokens: the question for item i7 alone"),
        "{found:?}"
    );
}

#[test]
fn a_template_that_needs_a_history_is_told() {
    let (dir, mut ctx) = run();
    let path = dir.path().join("prompt.toml");
    std::fs::write(
        &path,
        "body = \"{{ history[0].title }} {{ target.title }}?\"\nyes = \" Yes\"\nno = \" No\"\n",
    )
    .unwrap();
    ctx.config.prompt.template = path;
    let found = problems(&ctx);
    assert!(found.len() == 1 && found[0].0 == Severity::Warning, "{found:?}");
    ctx.config.data.min_history = 0;
    assert_eq!(problems(&ctx)[0].0, Severity::Wrong);
}

#[test]
fn a_misspelt_name_in_the_wrapper_is_told_once() {
    let (dir, mut ctx) = run();
    let path = dir.path().join("prompt.toml");
    let text = "body = \"{{ target.title }}?\"\nwrapper = \"USER: {{ bdy }}\"\nyes = \" Yes\"\nno = \" No\"\n";
    std::fs::write(&path, text).unwrap();
    ctx.config.prompt.template = path;
    let found = problems(&ctx);
    assert_eq!(found.len(), 1, "{found:?}");
    let says = "wrapper, line 1 of it: bdy is not there; there is body";
    assert!(found[0].1.contains(says), "{found:?}");
}

/// A prompt goes on with its answer, so such a token is left off, and that is told.
#[test]
fn a_tokenizer_that_ends_every_text_can_be_used() {
    let (dir, mut ctx) = run();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(ctx.config.backbone.path.join(name), model.join(name)).unwrap();
    }
    let text = std::fs::read(ctx.config.backbone.path.join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let frame = &mut json["post_processor"];
    let end = serde_json::json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } });
    frame["single"].as_array_mut().unwrap().push(end);
    let end = serde_json::json!({ "id": "</s>", "ids": [2], "tokens": ["</s>"] });
    frame["special_tokens"]["</s>"] = end;
    std::fs::write(model.join("tokenizer.json"), json.to_string()).unwrap();
    ctx.config.backbone.path = model;
    let found = problems(&ctx);
    assert!(found.len() == 1 && found[0].0 == Severity::Warning, "{found:?}");
    assert!(found[0].1.contains("ends every text with </s>"), "{found:?}");
}

/// Whatever loading refuses is refused before: here rows that no block of 8-bit numbers fits.
#[test]
fn weights_that_could_not_be_loaded_are_told() {
    let (dir, mut ctx) = run();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let tokenizer = ctx.config.backbone.path.join("tokenizer.json");
    std::fs::copy(tokenizer, model.join("tokenizer.json")).unwrap();
    let sizes = tiny::Sizes { vocab: 512, ..tiny::Sizes::default() };
    tiny::write(&model, &sizes, 1);
    ctx.config.backbone.path = model;
    ctx.config.prompt.max_tokens = 0;
    ctx.config.backbone.weights = WeightType::Q8_0;
    let found = problems(&ctx);
    assert!(found.iter().any(|(_, text)| text.contains("can't be kept as q8_0")), "{found:?}");
}

#[test]
fn more_positions_than_the_backbone_has_are_told() {
    let (_dir, mut ctx) = run();
    ctx.config.prompt.max_tokens = 1 << 20;
    let found = problems(&ctx);
    assert!(found.len() == 1 && found[0].0 == Severity::Warning, "{found:?}");
    assert!(found[0].1.starts_with("config: prompt.max_tokens: the backbone has"), "{found:?}");
}

#[test]
fn without_words_of_items_nothing_can_be_embedded() {
    let (_dir, mut ctx) = run();
    ctx.config.data.columns.item_texts.clear();
    let found = problems(&ctx);
    assert!(found[0].1.starts_with("config: data.columns.item_texts: no text"), "{found:?}");
    assert!(found[1].1.contains("body, line 3 of it: item.title is not there"), "{found:?}");
}

#[test]
fn files_in_the_way_of_the_last_stage_are_told_before_the_first() {
    let (_dir, ctx) = run();
    let export = ctx.path(Stage::Export);
    std::fs::create_dir_all(&export).unwrap();
    assert_eq!(problems(&ctx), []);
    std::fs::write(export.join("precious"), "x").unwrap();
    let found = problems(&ctx);
    assert!(found.len() == 1 && found[0].1.contains("precious"), "{found:?}");
    std::fs::write(export.join("plan.json"), "{}").unwrap();
    assert_eq!(problems(&ctx), []);
}

/// What a run that was killed has left is not asked for a second time.
#[test]
fn d2_room_is_asked_for_what_is_not_there_yet() {
    let (_dir, ctx) = run();
    let forecast = || disk_forecast(&ctx, &Stage::ALL, known_dataset(&ctx).as_ref());
    let first = forecast();
    assert!(0 < first.at_least && first.at_least < first.while_training);
    let adapter = ctx.path(Stage::Tune).join("plain_lora");
    std::fs::create_dir_all(&adapter).unwrap();
    std::fs::write(adapter.join("half"), vec![0; first.at_least as usize / 2]).unwrap();
    assert_eq!(forecast().at_least, first.at_least - first.at_least / 2);
    std::fs::write(adapter.join("more"), vec![0; first.while_training as usize]).unwrap();
    assert_eq!((forecast().at_least, forecast().while_training), (0, 0));
    prepared(&ctx);
    // Only a dataset with a manifest is complete.
    assert_eq!(forecast().at_least, 0);
    std::fs::write(ctx.path(Stage::Prepare).join("manifest.json"), "").unwrap();
    assert!(forecast().at_least > 0, "the data is known now");
}
