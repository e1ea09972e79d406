//! How byte-level tokenizers cut a text into words before merging: by the name the file has for it.
//!
//! The names are llama.cpp's, the patterns those of the models' own tokenizers (llama.cpp's are
//! rewritten for another regex engine, to the same cuts).

use serde_json::{Value, json};

/// LLaMA 3: digits in threes.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Qwen 2 and 3: digits one by one.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Mistral's Tekken: words by case.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// What a name of `tokenizer.ggml.pre` means.
#[derive(Debug)]
pub(super) struct Split {
    /// `pre_tokenizer` of tokenizer.json.
    pub pre_tokenizer: Value,
    /// `normalizer` of tokenizer.json.
    pub normalizer: Value,
    /// Whether a word that is a token is taken as it is, without merging.
    pub ignore_merges: bool,
    /// Whether texts begin with the token of the beginning where the file does not say.
    pub add_bos: bool,
}

/// The names that [`Split::of`] knows.
pub(super) const SUPPORTED: &str = "\"gpt-2\", \"smollm\", \"llama-bpe\" (\"llama3\", \"llama-v3\"), \"qwen2\", \
     \"deepseek-r1-qwen\", \"tekken\"";

impl Split {
    /// By the name in the file; `None` for one that is not supported.
    pub fn of(name: &str) -> Option<Self> {
        let plain = |pre_tokenizer| Self {
            pre_tokenizer,
            normalizer: Value::Null,
            ignore_merges: false,
            add_bos: false,
        };
        Some(match name {
            "gpt-2" => plain(bytes(true)),
            "smollm" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                plain(sequence(digits, bytes(true)))
            }
            "qwen2" => Self { normalizer: json!({"type": "NFC"}), ..plain(by_pattern(QWEN2)) },
            "deepseek-r1-qwen" => plain(by_pattern(QWEN2)),
            "llama-bpe" | "llama3" | "llama-v3" => {
                Self { ignore_merges: true, add_bos: true, ..plain(by_pattern(LLAMA3)) }
            }
            "tekken" => Self { ignore_merges: true, add_bos: true, ..plain(by_pattern(TEKKEN)) },
            _ => return None,
        })
    }
}

/// Bytes as letters, after GPT-2's own cuts where `cut`.
fn bytes(cut: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cut})
}

fn by_pattern(pattern: &str) -> Value {
    let pattern = json!({"Regex": pattern});
    let split =
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
    sequence(split, bytes(false))
}

fn sequence(first: Value, second: Value) -> Value {
    json!({"type": "Sequence", "pretokenizers": [first, second]})
}
