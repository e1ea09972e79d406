//! Prompts of the shipped dataset for the shipped tokenizer.

use std::path::{Path, PathBuf};

use reclora_storage::dataset::{self, Dataset, Split};
use reclora_storage::protocol::{LabelRule, ProtocolConfig, prepare};
use reclora_storage::raw::{self, ColumnMapping, DatasetFormat};
use reclora_trainer::prompt::{Counted, Known, PromptBuilder, PromptTemplate};
use reclora_trainer::tokenizer::Tokenizer;

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn movietweetings(dir: &Path) -> Dataset {
    let raw = raw::read(
        DatasetFormat::Movietweetings,
        &configs().join("data/movietweetings-100k"),
        &ColumnMapping::default(),
    )
    .unwrap();
    let config = ProtocolConfig {
        k_core: 5,
        min_history: 5,
        label: LabelRule::AtLeast(8.0),
        split: [0.8, 0.1, 0.1],
    };
    dataset::write(&prepare(&raw, &config).unwrap(), "movietweetings", dir).unwrap();
    Dataset::open(dir).unwrap()
}

#[test]
fn prompts_of_the_shipped_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let data = movietweetings(dir.path());
    let tokenizer = Tokenizer::load(&configs().join("models/stories260k")).unwrap();
    let template =
        PromptTemplate::load(&configs().join("prompts/movietweetings.toml"), &data).unwrap();
    let builder = PromptBuilder::new(&template, &tokenizer, &data, 512).unwrap();
    let mut lengths = Vec::new();
    for index in data.split(Split::Test).step_by(200) {
        let sample = data.sample(index).unwrap();
        let positions: Vec<u32> = (sample.position.saturating_sub(10)..sample.position).collect();
        let prompt =
            builder.build(sample.user, sample.item, &positions, &Known::default()).unwrap();
        assert!(prompt.tokens.len() <= 512 - 3, "{}", prompt.text);
        let title = data.item_text(sample.item, "title").unwrap();
        assert!(prompt.text.contains(&format!("***{title}***")), "{}", prompt.text);
        assert!(!prompt.text.contains(data.item_key(sample.item)), "an ID: {}", prompt.text);
        let example = builder.example(&prompt, sample.label);
        let text = prompt.text.clone() + if sample.label { " Yes." } else { " No." };
        let mut whole = example.tokens.clone();
        whole.push(example.targets.last().unwrap().token);
        assert_eq!(whole, tokenizer.encode(&text).unwrap(), "as if tokenised in one piece");
        lengths.push(prompt.tokens.len());
    }
    println!("prompt tokens: {lengths:?}");
}

#[test]
fn the_oldest_lines_are_dropped_and_never_the_question() {
    let dir = tempfile::tempdir().unwrap();
    let data = movietweetings(dir.path());
    let tokenizer = Tokenizer::load(&configs().join("models/stories260k")).unwrap();
    let template =
        PromptTemplate::load(&configs().join("prompts/movietweetings.toml"), &data).unwrap();
    let sample = data.sample(data.split(Split::Test).start).unwrap();
    let long = PromptBuilder::new(&template, &tokenizer, &data, 2048).unwrap();
    let mut positions: Vec<u32> = (0..sample.position.min(8)).collect();
    positions.rotate_left(3);
    let whole = long.build(sample.user, sample.item, &positions, &Known::default()).unwrap();
    let limit = whole.tokens.len() - 20;
    let short = PromptBuilder::new(&template, &tokenizer, &data, limit).unwrap();
    let cut = short.build(sample.user, sample.item, &positions, &Known::default()).unwrap();
    assert!(cut.dropped >= 1 && cut.tokens.len() <= limit);
    positions.retain(|&position| position as usize >= cut.dropped);
    let expected = long.build(sample.user, sample.item, &positions, &Known::default()).unwrap();
    assert_eq!(cut.text, expected.text);
    let tiny = PromptBuilder::new(&template, &tokenizer, &data, 20).unwrap();
    let error = tiny
        .build(sample.user, sample.item, &positions, &Known::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("prompt.max_tokens") && error.contains("alone needs"), "{error}");
    assert!(long.build(sample.user, sample.item, &[u32::MAX - 1], &Known::default()).is_err());
}

/// What was known of user and item is there for templates, as numbers of two decimals.
#[test]
fn templates_see_what_was_counted() {
    let dir = tempfile::tempdir().unwrap();
    let data = movietweetings(dir.path());
    let tokenizer = Tokenizer::load(&configs().join("models/stories260k")).unwrap();
    let path = dir.path().join("counted.toml");
    let body = "{{ target.mean }} of {{ target.count }}; {{ user.mean }} of {{ user.count }}.";
    std::fs::write(&path, format!("body = \"{body}\"\nyes = \" Yes\"\nno = \" No\"\n")).unwrap();
    let template = PromptTemplate::load(&path, &data).unwrap();
    let builder = PromptBuilder::new(&template, &tokenizer, &data, 100).unwrap();
    let known = Known {
        user: Counted { mean: 0.5, count: 12 },
        item: Counted { mean: 0.625_4, count: 1234 },
    };
    let prompt = builder.build(0, 0, &[], &known).unwrap();
    assert_eq!(prompt.text, "0.63 of 1234; 0.5 of 12.");
}

#[test]
fn template_mistakes_are_named_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let data = movietweetings(dir.path());
    let path = dir.path().join("template.toml");
    let load = |text: &str| {
        std::fs::write(&path, text).unwrap();
        PromptTemplate::load(&path, &data).unwrap_err().to_string()
    };
    let error = load("body = \"{{ target.titel }}\"\nyes = \" Yes\"\nno = \" No\"\n");
    assert!(error.contains("template.toml: body, line 1"), "{error}");
    let error = load("body = \"x\"\nyess = \" Yes\"\nno = \" No\"\n");
    assert!(error.contains("line 2") && error.contains("yess"), "{error}");
    let error = load("body = \"{% for %}\"\nyes = \" Yes\"\nno = \" No\"\n");
    assert!(error.contains("body, line 1"), "{error}");
    let error = PromptTemplate::load(&dir.path().join("none.toml"), &data).unwrap_err();
    assert!(error.to_string().contains("none.toml: can't be read"), "{error}");
}

/// As the template says, or every column by name, in the order of the data.
#[test]
fn an_item_is_embedded_as_the_template_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompt.toml");
    let text = |item: &str| {
        let pieces = "body = \"like it?\"\nyes = \"Yes\"\nno = \"No\"\n";
        std::fs::write(&path, format!("{pieces}{item}")).unwrap();
        let columns = [("title", "Up & away"), ("genres", "Animation|Family"), ("year", "2009")];
        PromptTemplate::open(&path).and_then(|template| template.item(&columns))
    };
    let every = "title: Up & away, genres: Animation|Family, year: 2009.";
    let films = std::fs::read_to_string(configs().join("prompts/movielens_1m.toml")).unwrap();
    let films = &films[films.find("item = ").unwrap()..];
    assert_eq!(text(films).unwrap(), "The movie Up & away, genre: Animation|Family.");
    assert_eq!(text(&films.replace("genres is", "kind is")).unwrap(), every);
    assert_eq!(text("").unwrap(), every);
    let error = text("item = \"{{ item.titel }}\"").unwrap_err().to_string();
    assert!(error.contains("prompt.toml") && error.contains("item"), "{error}");
}

#[test]
fn every_shipped_template_parses() {
    for name in ["movielens_100k", "movielens_1m", "movielens_25m", "bookcrossing", "goodreads"] {
        let text = std::fs::read_to_string(configs().join(format!("prompts/{name}.toml"))).unwrap();
        let table: toml::Table = text.parse().unwrap();
        assert!(table["body"].as_str().unwrap().contains("***{{ target.title }}***"), "{name}");
        let films = name.starts_with("movielens");
        assert_eq!(table.contains_key("item"), films, "{name}");
        assert_eq!(table.len(), 4 + usize::from(films), "{name}");
    }
}
