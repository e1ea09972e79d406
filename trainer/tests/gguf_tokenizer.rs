//! Tokenizers of GGUF files: the tokens of the `tokenizer.json` they were made of.

use std::path::Path;

use crate::gguf_file::{GgufFile, Value};
use reclora_trainer::tokenizer::Tokenizer;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

fn load(file: &GgufFile) -> Result<Tokenizer, String> {
    let dir = tempfile::tempdir().unwrap();
    Tokenizer::load(&file.write(dir.path())).map_err(|error| error.to_string())
}

fn vocabulary(file: &mut GgufFile, tokens: &[(String, i32)]) {
    let texts = tokens.iter().map(|(token, _)| token.clone()).collect();
    file.set("tokenizer.ggml.tokens", Value::Texts(texts));
    let types = tokens.iter().map(|(_, kind)| *kind).collect();
    file.set("tokenizer.ggml.token_type", Value::I32s(types));
}

/// The shipped tokenizer as a GGUF file: merges become scores, the best first.
fn stories() -> (Tokenizer, GgufFile) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/stories260k");
    let text = std::fs::read_to_string(dir.join("tokenizer.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![(String::new(), NORMAL); vocab.len()];
    for (token, id) in vocab {
        let kind = match token.as_str() {
            "<unk>" => UNKNOWN,
            "<s>" | "</s>" => CONTROL,
            token if token.starts_with("<0x") => BYTE,
            _ => NORMAL,
        };
        tokens[id.as_u64().unwrap() as usize] = (token.clone(), kind);
    }
    let mut scores = vec![-1000.0; tokens.len()];
    for (rank, merge) in json["model"]["merges"].as_array().unwrap().iter().enumerate() {
        let token = match merge.as_str() {
            Some(text) => text.replace(' ', ""),
            None => merge.as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect(),
        };
        scores[vocab[&token].as_u64().unwrap() as usize] = -(rank as f32);
    }
    let mut file = GgufFile::tiny();
    vocabulary(&mut file, &tokens);
    file.set("tokenizer.ggml.model", "llama");
    file.set("tokenizer.ggml.scores", Value::F32s(scores));
    file.set("tokenizer.ggml.bos_token_id", 1);
    file.set("tokenizer.ggml.eos_token_id", 2);
    file.remove("tokenizer.ggml.merges");
    (Tokenizer::load(&dir).unwrap(), file)
}

const TEXTS: [&str; 12] = [
    "Once upon a time, there was a little girl.",
    "The Birth of a Nation (1915)",
    "Fantômas - À l'ombre de la guillotine (1913)",
    " leading and  double   spaces ",
    "千と千尋の神隠し (2001)",
    "line\nbreak\tand tab",
    "The End </s> <s> <unk> <0x41>",
    "▁▁",
    "a",
    "",
    "🎬 Movie!!! #1",
    "WALL·E 9½ Weeks — don't",
];

#[test]
fn sentence_piece_is_the_tokenizer_it_was_made_of() {
    let (expected, file) = stories();
    let tokenizer = load(&file).unwrap();
    for text in TEXTS {
        let tokens = tokenizer.encode(text).unwrap();
        assert_eq!(tokens, expected.encode(text).unwrap(), "{text:?}");
        assert_eq!(tokenizer.decode(&tokens).unwrap(), expected.decode(&tokens).unwrap());
    }
    let answers = tokenizer.answers("Will the user like it?", " Yes.", " No.").unwrap();
    assert_eq!(answers, expected.answers("Will the user like it?", " Yes.", " No.").unwrap());
}

#[test]
fn beginnings_are_as_the_file_says() {
    let (_, mut file) = stories();
    let plain = load(&file).unwrap().encode("a time").unwrap();
    assert_eq!((plain[0], plain.contains(&2)), (1, false));
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    assert_eq!(load(&file).unwrap().encode("a time").unwrap(), plain[1..]);
    file.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    assert_eq!(load(&file).unwrap().encode(" a time").unwrap(), plain[1..]);
}

/// Whatever a directory's two files say of the tokens around a text, the GGUF file that says what
/// tokenizer_config.json does gives the same tokens, and none of them at the end.
#[test]
fn a_file_and_its_directory_begin_texts_alike() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/stories260k");
    let text = std::fs::read_to_string(directory.join("tokenizer.json")).unwrap();
    let whole: serde_json::Value = serde_json::from_str(&text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for processor in [whole["post_processor"].clone(), serde_json::Value::Null] {
        for (add_bos, add_eos) in [(true, false), (false, false), (true, true), (false, true)] {
            let mut json = whole.clone();
            json["post_processor"] = processor.clone();
            std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
            let config = serde_json::json!({
                "bos_token": "<s>", "add_bos_token": add_bos, "add_eos_token": add_eos,
            });
            std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            let (_, mut file) = stories();
            file.set("tokenizer.ggml.add_bos_token", Value::Bool(add_bos));
            file.set("tokenizer.ggml.add_eos_token", Value::Bool(add_eos));
            let [one, other] = [Tokenizer::load(dir.path()).unwrap(), load(&file).unwrap()];
            let tokens = one.encode("a time").unwrap();
            assert_eq!(other.encode("a time").unwrap(), tokens);
            assert_eq!((tokens[0] == 1, tokens.contains(&2)), (add_bos, false), "{config}");
            let noted = |tokenizer: &Tokenizer| {
                tokenizer.notes().iter().filter(|note| note.contains("goes on")).count()
            };
            assert_eq!((noted(&one), noted(&other)), (add_eos.into(), add_eos.into()), "{config}");
        }
    }
}

/// The letter that a byte is written as.
fn letter(byte: u8) -> char {
    let own = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if own(byte) {
        return byte.into();
    }
    let others = (0..byte).filter(|&other| !own(other)).count() as u32;
    char::from_u32(256 + others).unwrap()
}

const MERGES: [&str; 6] = ["1 9", "9 4", "19 94", "Ġ 1994", "a B", "Ã ©"];

/// All bytes, what merges make, a word that no merge makes, and tokens that are no text.
fn byte_level(pre: &str) -> (GgufFile, Vec<(String, i32)>) {
    let bytes = (0..=255).map(|byte| letter(byte).to_string());
    let merged = MERGES.map(|merge| merge.replace(' ', "")).into_iter();
    let words = bytes.chain(merged).chain(["xyz".to_owned()]);
    let mut tokens: Vec<_> = words.map(|token| (token, NORMAL)).collect();
    tokens.push(("<|begin|>".to_owned(), CONTROL));
    tokens.push(("<think>".to_owned(), USER_DEFINED));
    let mut file = GgufFile::tiny();
    vocabulary(&mut file, &tokens);
    file.set("tokenizer.ggml.merges", Value::Texts(MERGES.map(str::to_owned).to_vec()));
    file.set("tokenizer.ggml.pre", pre);
    file.set("tokenizer.ggml.bos_token_id", tokens.len() - 2);
    (file, tokens)
}

#[test]
fn words_are_cut_as_the_model_was_trained() {
    // Of " 1994", "aB", "xyz" and a decomposed "é" (three bytes where it is not composed first).
    let cases: [(&str, [&str; 4]); 6] = [
        ("gpt-2", ["Ġ1994", "aB", "x y z", "e Ì ģ"]),
        ("smollm", ["Ġ 1 9 9 4", "aB", "x y z", "e Ì ģ"]),
        ("qwen2", ["Ġ 1 9 9 4", "aB", "x y z", "Ã©"]),
        ("deepseek-r1-qwen", ["Ġ 1 9 9 4", "aB", "x y z", "e Ì ģ"]),
        ("llama-bpe", ["Ġ 19 9 4", "aB", "xyz", "e Ì ģ"]),
        ("tekken", ["Ġ 1 9 9 4", "a B", "xyz", "e Ì ģ"]),
    ];
    for (pre, expected) in cases {
        let (file, tokens) = byte_level(pre);
        let tokenizer = load(&file).unwrap();
        for (text, expected) in [" 1994", "aB", "xyz", "e\u{301}"].into_iter().zip(expected) {
            let ids = tokenizer.encode(text).unwrap();
            let names: Vec<&str> = ids.iter().map(|&id| tokens[id as usize].0.as_str()).collect();
            let begins = matches!(pre, "llama-bpe" | "tekken");
            let expected = if begins { format!("<|begin|> {expected}") } else { expected.into() };
            assert_eq!(names.join(" "), expected, "{pre}: {text:?}");
        }
    }
}

#[test]
fn tokens_that_are_no_text() {
    let (file, tokens) = byte_level("smollm");
    let tokenizer = load(&file).unwrap();
    let begin = tokens.len() as u32 - 2;
    assert!(!tokenizer.encode("The <|begin|> of it").unwrap().contains(&begin));
    assert!(tokenizer.encode("I <think> so").unwrap().contains(&(begin + 1)));
    for text in TEXTS {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    }
}

#[test]
fn tokenizers_that_can_not_be_built_are_refused_by_name() {
    let refused = |part: &str, change: &dyn Fn(&mut GgufFile)| {
        for mut file in [byte_level("smollm").0, stories().1] {
            change(&mut file);
            let error = load(&file).unwrap_err();
            assert!(
                error.contains("model.gguf: ") && error.contains(part),
                "no {part:?} in: {error}"
            );
        }
    };
    let set = |key: &'static str, value: Value| {
        move |file: &mut GgufFile| {
            file.set("tokenizer.ggml.model", "gpt2");
            file.set("tokenizer.ggml.pre", "smollm");
            file.set("tokenizer.ggml.merges", Value::Texts(Vec::new()));
            file.set(key, value.clone());
        }
    };
    refused("\"bert\" not supported", &set("tokenizer.ggml.model", "bert".into()));
    refused("pre: \"default\" not supported", &set("tokenizer.ggml.pre", "default".into()));
    let merges = |merge: &str| Value::Texts(vec![merge.to_owned()]);
    refused("is not two tokens", &set("tokenizer.ggml.merges", merges("ab")));
    refused("is not a tokenizer", &set("tokenizer.ggml.merges", merges("q qqqq")));
    refused("types of", &set("tokenizer.ggml.token_type", Value::I32s(vec![1; 3])));
    refused("an array of strings", &set("tokenizer.ggml.tokens", Value::I32s(vec![1; 3])));
    refused("bos_token_id: 9999 is none of", &|file| {
        file.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
        file.set("tokenizer.ggml.bos_token_id", 9999);
    });
    refused("tokens 0 and 1 are both", &|file| {
        vocabulary(file, &[("x".into(), NORMAL), ("x".into(), NORMAL)]);
    });
    for key in ["model", "tokens", "token_type"].map(|name| format!("tokenizer.ggml.{name}")) {
        refused(&format!("key {key}: is missing"), &|file| file.remove(&key));
    }
}

/// A vocabulary whose tokens are each made of others in a thousand ways is refused, not taken apart.
#[test]
fn merges_do_not_multiply() {
    let (_, mut file) = stories();
    let runs: Vec<_> = (1..=1000).map(|length| ("a".repeat(length), NORMAL)).collect();
    vocabulary(&mut file, &runs);
    file.set("tokenizer.ggml.scores", Value::F32s(vec![0.0; 1000]));
    assert!(load(&file).unwrap_err().contains("too many are made of others"));
    file.set("tokenizer.ggml.scores", Value::F32s(vec![f32::NAN; 1000]));
    assert!(load(&file).unwrap_err().contains("tokenizer.ggml.scores: is not 1000 numbers"));
}
