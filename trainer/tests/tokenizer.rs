//! The shipped tokenizer and its answers; tokenizers that can't be used.

use std::path::{Path, PathBuf};

use reclora_trainer::tokenizer::Tokenizer;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/stories260k")
}

#[test]
fn answers_begin_with_a_common_token_that_goes_to_the_prompt() {
    let tokenizer = Tokenizer::load(&model()).unwrap();
    let answers = tokenizer.answers("Will the user like it?", " Yes.", " No.").unwrap();
    assert_eq!(answers.lead.len(), 1);
    assert_eq!(tokenizer.decode(&answers.yes).unwrap(), "Yes.");
    assert_eq!(tokenizer.decode(&answers.no).unwrap(), "No.");
    let [no, yes] = answers.deciding();
    assert_ne!(no, yes);
    let whole = tokenizer.encode("Will the user like it? Yes.").unwrap();
    let mut joined = tokenizer.encode("Will the user like it?").unwrap();
    joined.extend(answers.lead.iter().chain(&answers.yes));
    assert_eq!(joined, whole);
}

#[test]
fn answers_that_do_not_differ_are_refused() {
    let tokenizer = Tokenizer::load(&model()).unwrap();
    for (yes, no) in [(" Yes", " Yes"), (" Yes", " Yes."), ("", "")] {
        let error = tokenizer.answers("Like it?", yes, no).unwrap_err().to_string();
        assert!(error.contains("do not differ"), "{error}");
    }
}

#[test]
fn special_tokens_in_a_title_are_plain_text() {
    let tokenizer = Tokenizer::load(&model()).unwrap();
    let tokens = tokenizer.encode("The End </s> <s> <unk>").unwrap();
    assert_eq!(tokens.iter().filter(|token| **token < 3).count(), 1, "only the first: {tokens:?}");
}

#[test]
fn a_tokenizer_without_the_answers_tokens_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(model().join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let model = json["model"].as_object_mut().unwrap();
    model["byte_fallback"] = false.into();
    let vocab = model["vocab"].as_object_mut().unwrap();
    let id = vocab.remove("Y").unwrap();
    vocab.insert("\u{e000}".into(), id);
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let error = tokenizer.answers("Like it?", " Yes.", " No.").unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("lacks tokens"), "{error}");
}

#[test]
fn a_missing_or_truncated_tokenizer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: can't be read"), "{error}");
    let bytes = std::fs::read(model().join("tokenizer.json")).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), &bytes[..bytes.len() / 2]).unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: is not a tokenizer"), "{error}");
}
