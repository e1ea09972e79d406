//! The shipped tokenizer and its answers; tokenizers that can't be used.

use std::path::{Path, PathBuf};

use reclora_trainer::tokenizer::Tokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/stories260k")
}

/// The shipped tokenizer, changed, in a directory of its own.
fn changed(change: impl FnOnce(&mut Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(model().join("tokenizer.json")).unwrap();
    let mut json = serde_json::from_str(&text).unwrap();
    change(&mut json);
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    dir
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
    let dir = changed(|json| {
        let model = json["model"].as_object_mut().unwrap();
        model["byte_fallback"] = false.into();
        let vocab = model["vocab"].as_object_mut().unwrap();
        let id = vocab.remove("Y").unwrap();
        vocab.insert("\u{e000}".into(), id);
    });
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

/// `<s>`, the text, and what may stand after it.
fn template(begin: &[&str], end: &[&str]) -> Value {
    let special = |token: &&str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> =
        begin.iter().map(special).chain([text.clone()]).chain(end.iter().map(special)).collect();
    let ids = [("<unk>", 0), ("<s>", 1), ("</s>", 2)];
    let tokens = ids.map(|(token, id)| {
        (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}))
    });
    json!({
        "type": "TemplateProcessing", "single": single,
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": serde_json::Map::from_iter(tokens),
    })
}

/// LLaMA with an end token, T5, XLM-R, ALBERT, BERT: each ends every text, a prompt does not end.
#[test]
fn tokens_at_the_end_of_every_text_are_left_off() {
    let shipped = Tokenizer::load(&model()).unwrap();
    let text = "Will the user like it?";
    let plain = shipped.encode(text).unwrap();
    assert!(plain[0] == 1 && shipped.notes().is_empty());
    let frame = |kind| json!({"type": kind, "cls": ["<s>", 1], "sep": ["</s>", 2]});
    let mut roberta = frame("RobertaProcessing");
    roberta["trim_offsets"] = true.into();
    roberta["add_prefix_space"] = false.into();
    let both = template(&["<s>"], &["</s>"]);
    let processors = [
        (both.clone(), true),
        (template(&[], &["</s>"]), false),
        (template(&["<s>"], &["</s>", "</s>"]), true),
        (roberta, true),
        (frame("BertProcessing"), true),
        (json!({"type": "Sequence", "processors": [both]}), true),
    ];
    for (processor, begins) in processors {
        let dir = changed(|json| json["post_processor"] = processor.clone());
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let tokens = tokenizer.encode(text).unwrap();
        assert_eq!(tokens, plain[usize::from(!begins)..], "{processor}");
        let answers = tokenizer.answers(text, " Yes.", " No.").unwrap();
        assert_eq!(answers, shipped.answers(text, " Yes.", " No.").unwrap());
        let [note] = tokenizer.notes() else { panic!("{:?}", tokenizer.notes()) };
        assert!(note.contains("tokenizer.json: ends every text with </s>"), "{note}");
    }
}

#[test]
fn a_text_begins_as_tokenizer_config_says_and_otherwise_as_tokenizer_json_does() {
    let (bos, none) = (template(&["<s>"], &[]), Value::Null);
    let (yes, no) =
        (json!({"bos_token": "<s>", "add_bos_token": true}), json!({"add_bos_token": false}));
    let as_object = json!({"bos_token": {"content": "<s>"}, "add_bos_token": true});
    let no_token = json!({"bos_token": null, "add_bos_token": true});
    let unknown = json!({"bos_token": "<|begin|>", "add_bos_token": true});
    let silent =
        json!({"bos_token": "<s>", "add_bos_token": null, "chat_template": "{{ bos_token }}"});
    let cases = [
        (&bos, &silent, true, None),
        (&none, &silent, false, None),
        (&bos, &yes, true, None),
        (&none, &no, false, None),
        (
            &none,
            &yes,
            true,
            Some("begins with <s>, as tokenizer_config.json says (add_bos_token = true)"),
        ),
        (&none, &as_object, true, Some("would begin with no token of its own")),
        (
            &bos,
            &no,
            false,
            Some(
                "begins with no token of its own, as tokenizer_config.json says (add_bos_token = false)",
            ),
        ),
        (&bos, &no_token, true, Some("its bos_token is none of the tokens")),
        (&none, &unknown, false, Some("its bos_token is none of the tokens")),
    ];
    for (processor, config, begins, note) in cases {
        let dir = changed(|json| json["post_processor"] = processor.clone());
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.encode("Once").unwrap()[0] == 1, begins, "{processor} {config}");
        let notes = tokenizer.notes();
        assert_eq!(notes.len(), usize::from(note.is_some()), "{notes:?}");
        assert!(notes.iter().all(|found| found.contains(note.unwrap())), "{notes:?}");
    }
}

#[test]
fn a_broken_tokenizer_config_is_named() {
    let dir = changed(|_| {});
    for (text, part) in [
        ("{", "is not valid JSON"),
        (r#"{"add_bos_token": "yes"}"#, "add_bos_token = \"yes\" is not a bool"),
        (r#"{"add_eos_token": 1}"#, "add_eos_token = 1 is not a bool"),
    ] {
        std::fs::write(dir.path().join("tokenizer_config.json"), text).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("tokenizer_config.json: {part}")), "{error}");
    }
}

/// The advice is about the cause: where the answer, and where the prompt is to be changed.
#[test]
fn answers_that_change_the_prompt_are_refused_with_the_token() {
    let tokenizer = Tokenizer::load(&model()).unwrap();
    for (context, yes, no, advice) in [
        ("I like th", "em", "is", "let it begin with a space"),
        ("Would you like ", "to", "the", "let the template's text end without a space"),
    ] {
        let error = tokenizer.answers(context, yes, no).unwrap_err().to_string();
        assert!(error.contains("becomes") && error.contains(advice), "{error}");
    }
}
