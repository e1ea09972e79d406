//! The tokenizer of a GGUF file, as the `tokenizer.json` it was made from had it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::Gguf;
use super::split::{SUPPORTED, Split};
use crate::error::Result;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";

/// Token types of the file: ordinary text, the unknown token, control tokens, tokens found in a text
/// before anything else. The others (unused ones, single bytes) are needed in the vocabulary only.
const NORMAL: f64 = 1.0;
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// Longest token in bytes that can be taken apart into two others.
const MAX_TOKEN: usize = 1024;
/// Most ways, on average, of making a token of two others, and most bytes they take over those of
/// the tokens. Real vocabularies have two to three; a file must not make them many.
const MAX_MERGES: usize = 16;
const MAX_MERGE_BYTES: usize = 64;

const DAMAGED: &str = "the file is not one whole model: copy or download it again";

impl Gguf {
    /// The content of `tokenizer.json`.
    pub fn tokenizer_json(&self) -> Result<Value> {
        let vocabulary = Vocabulary::read(self)?;
        let model = self.need(MODEL, self.text(MODEL)?)?;
        let (mut json, add_bos) = match model {
            "gpt2" => vocabulary.byte_level()?,
            "llama" => vocabulary.sentence_piece()?,
            other => {
                let supported = "supported: \"gpt2\" (byte-level BPE), \"llama\" (SentencePiece)";
                return self.fail_key(MODEL, &format!("{other:?} not supported; {supported}"));
            }
        };
        json["version"] = json!("1.0");
        json["added_tokens"] = vocabulary.added();
        json["post_processor"] = vocabulary.post_processor(add_bos)?;
        Ok(json)
    }

    /// The token for a purpose: `bos`, `eos`, `unknown`.
    pub(super) fn token_id(&self, purpose: &str) -> Result<Option<usize>> {
        let key = format!("tokenizer.ggml.{purpose}_token_id");
        let Some(id) = self.unsigned(&key)? else { return Ok(None) };
        let count = self.texts(TOKENS)?.map_or(0, |tokens| tokens.len());
        if id < count as u64 {
            return Ok(Some(id as usize));
        }
        self.fail_key(&key, &format!("{id} is none of {count} tokens; {DAMAGED}"))
    }
}

/// The tokens and what they are for.
struct Vocabulary<'a> {
    file: &'a Gguf,
    tokens: Vec<&'a str>,
    types: Vec<f64>,
    ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a Gguf) -> Result<Self> {
        let tokens = file.need(TOKENS, file.texts(TOKENS)?)?;
        let types = file.need(TYPES, file.numbers(TYPES)?)?;
        let (count, others) = (tokens.len(), types.len());
        if count != others {
            return file
                .fail_key(TYPES, &format!("has {others} types of {count} tokens; {DAMAGED}"));
        }
        let mut ids = HashMap::with_capacity(count);
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(*token, id) {
                let what = format!("tokens {first} and {id} are both {token:?}; {DAMAGED}");
                return file.fail_key(TOKENS, &what);
            }
        }
        Ok(Self { file, tokens, types, ids })
    }

    fn is(&self, id: usize, kind: f64) -> bool {
        self.types.get(id) == Some(&kind)
    }

    fn vocab(&self) -> Value {
        let entries = self.ids.iter().map(|(token, id)| ((*token).to_owned(), json!(id)));
        Value::Object(entries.collect::<Map<_, _>>())
    }

    /// Control tokens, and those that are found in a text before it is cut.
    fn added(&self) -> Value {
        let added = self.tokens.iter().enumerate().filter_map(|(id, token)| {
            let special = self.is(id, CONTROL) || self.is(id, UNKNOWN);
            (special || self.is(id, USER_DEFINED)).then(|| {
                json!({
                    "id": id, "content": token, "special": special,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                })
            })
        });
        added.collect()
    }

    /// Tokens before and after every text.
    fn post_processor(&self, add_bos: bool) -> Result<Value> {
        let flag = |name: &str| self.file.flag(&format!("tokenizer.ggml.add_{name}_token"));
        let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
        let mut pair = vec![single[0].clone(), json!({"Sequence": {"id": "B", "type_id": 1}})];
        let mut special = Map::new();
        for (purpose, default) in [("bos", add_bos), ("eos", false)] {
            if !flag(purpose)?.unwrap_or(default) {
                continue;
            }
            let key = format!("tokenizer.ggml.{purpose}_token_id");
            let id = self.file.need(&key, self.file.token_id(purpose)?)?;
            let token = self.tokens.get(id).copied().unwrap_or_default();
            special.insert(token.into(), json!({"id": token, "ids": [id], "tokens": [token]}));
            for pieces in [&mut single, &mut pair] {
                let at = if purpose == "bos" { 0 } else { pieces.len() };
                pieces.insert(at, json!({"SpecialToken": {"id": token, "type_id": 0}}));
            }
        }
        if special.is_empty() {
            return Ok(Value::Null);
        }
        Ok(json!({
            "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special,
        }))
    }

    /// GPT-2's kind: merges of bytes that are written as letters.
    fn byte_level(&self) -> Result<(Value, bool)> {
        let name = self.file.need(PRE, self.file.text(PRE)?)?;
        let Some(split) = Split::of(name) else {
            let what = format!("{name:?} not supported; supported: {SUPPORTED}");
            return self.file.fail_key(PRE, &what);
        };
        let mut merges = Vec::new();
        for merge in self.file.need(MERGES, self.file.texts(MERGES)?)? {
            match merge.split_once(' ') {
                Some((left, right)) => merges.push(json!([left, right])),
                None => {
                    let what = format!("{merge:?} is not two tokens; {DAMAGED}");
                    return self.file.fail_key(MERGES, &what);
                }
            }
        }
        let json = json!({
            "normalizer": split.normalizer,
            "pre_tokenizer": split.pre_tokenizer,
            "decoder": {
                "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true,
            },
            "model": {
                "type": "BPE", "ignore_merges": split.ignore_merges, "fuse_unk": false,
                "byte_fallback": false, "vocab": self.vocab(), "merges": merges,
            },
        });
        Ok((json, split.add_bos))
    }

    /// SentencePiece's BPE: spaces are letters, what is in no token becomes bytes.
    fn sentence_piece(&self) -> Result<(Value, bool)> {
        let extra = "tokenizer.ggml.remove_extra_whitespaces";
        if self.file.flag(extra)? == Some(true) {
            return self.file.fail_key(extra, "true not supported; supported: false");
        }
        let prefix = self.file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let mut normalizers =
            vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.file.token_id("unknown")?.unwrap_or(0);
        let json = json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE", "unk_token": self.tokens.get(unknown), "fuse_unk": true,
                "byte_fallback": true, "vocab": self.vocab(), "merges": self.merges()?,
            },
        });
        Ok((json, true))
    }

    /// The merges that scores stand for: the two parts of a token, the best token first.
    fn merges(&self) -> Result<Vec<(&'a str, &'a str)>> {
        let scores = self.file.need(SCORES, self.file.numbers(SCORES)?)?;
        let count = self.tokens.len();
        if scores.len() != count || scores.iter().any(|score| score.is_nan()) {
            return self.file.fail_key(SCORES, &format!("is not {count} numbers; {DAMAGED}"));
        }
        let mut merges: Vec<(f64, usize, &str, &str)> = Vec::new();
        let mut bytes = 0;
        let budget = MAX_MERGE_BYTES * self.tokens.iter().map(|token| token.len()).sum::<usize>();
        for (id, (token, score)) in self.tokens.iter().zip(&scores).enumerate() {
            if !self.is(id, NORMAL) || token.len() > MAX_TOKEN {
                continue;
            }
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if self.is_normal(left) && self.is_normal(right) {
                    merges.push((*score, id, left, right));
                    bytes += token.len();
                }
            }
            if merges.len() > MAX_MERGES * count || bytes > budget {
                let what = "are no tokens of SentencePiece: too many are made of others";
                return self.file.fail_key(TOKENS, what);
            }
        }
        // Of one token the longest left part first, as transformers' converter has it.
        merges.sort_by(|a, b| {
            b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(b.2.len().cmp(&a.2.len()))
        });
        Ok(merges.into_iter().map(|(_, _, left, right)| (left, right)).collect())
    }

    fn is_normal(&self, token: &str) -> bool {
        self.ids.get(token).is_some_and(|&id| self.is(id, NORMAL))
    }
}
