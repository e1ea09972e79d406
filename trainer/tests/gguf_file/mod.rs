//! A writer of GGUF files: whole ones, made of the tiny backbones, and damaged ones.

#![allow(dead_code, reason = "each test file uses the part it needs")]

use std::path::{Path, PathBuf};

use reclora_trainer::backbone::{self, Backbone, WeightType};

use crate::tiny::{Sizes, Tensors};

pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q4_0: u32 = 2;
pub const Q4_1: u32 = 3;
pub const Q8_0: u32 = 8;
pub const BF16: u32 = 30;

/// A value of the metadata.
#[derive(Clone, Debug)]
pub enum Value {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    /// Any type and bytes.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<usize> for Value {
    fn from(n: usize) -> Self {
        Self::U32(n.try_into().unwrap())
    }
}

impl Value {
    fn kind(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::Texts(_) | Self::F32s(_) | Self::I32s(_) => 9,
            Self::Raw(kind, _) => *kind,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let array = |kind: u32, count: usize, out: &mut Vec<u8>| {
            out.extend(kind.to_le_bytes());
            out.extend((count as u64).to_le_bytes());
        };
        match self {
            Self::U32(n) => out.extend(n.to_le_bytes()),
            Self::I32(n) => out.extend(n.to_le_bytes()),
            Self::F32(x) => out.extend(x.to_le_bytes()),
            Self::Bool(flag) => out.push((*flag).into()),
            Self::Text(text) => write_text(text, out),
            Self::Texts(texts) => {
                array(8, texts.len(), out);
                texts.iter().for_each(|text| write_text(text, out));
            }
            Self::F32s(numbers) => {
                array(6, numbers.len(), out);
                out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
            }
            Self::I32s(numbers) => {
                array(5, numbers.len(), out);
                out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
            }
            Self::Raw(_, bytes) => out.extend(bytes),
        }
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A tensor as the file has it: dimensions with the row's width first.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
    /// In place of the offset that follows from the tensors before.
    pub offset: Option<u64>,
}

/// A file that is whole until a test damages it.
#[derive(Clone, Debug)]
pub struct GgufFile {
    pub version: u32,
    pub alignment: usize,
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

impl GgufFile {
    /// The file that llama.cpp's converter would make of a tiny backbone's directory.
    pub fn of(sizes: &Sizes, tensors: &Tensors) -> Self {
        let metadata = metadata(sizes).into_iter().map(|(key, value)| (key.to_owned(), value));
        let tensors = tensors.iter().map(|(name, tensor)| {
            let dims = tensor.shape.iter().rev().map(|&dim| dim as u64).collect();
            let bytes = in_file_order(name, sizes, &tensor.bytes, tensor.shape[0]);
            Tensor { name: file_name(name), dims, kind: F32, bytes, offset: None }
        });
        Self { version: 3, alignment: 32, metadata: metadata.collect(), tensors: tensors.collect() }
    }

    pub fn tiny() -> Self {
        let sizes = Sizes::default();
        Self::of(&sizes, &crate::tiny::tensors(&sizes, 1))
    }

    /// Adds or replaces a key.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.remove(key);
        self.metadata.push((key.to_owned(), value.into()));
    }

    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(name, _)| name != key);
    }

    /// Makes a LLaMA file one of `qwen2` or `qwen3`, whose blocks have more vectors: here of ones.
    pub fn into_qwen(mut self, architecture: &str, sizes: &Sizes) -> Self {
        for (key, _) in &mut self.metadata {
            if let Some(name) = key.strip_prefix("llama.") {
                *key = format!("{architecture}.{name}");
            }
        }
        self.set("general.architecture", architecture);
        let (q, kv) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
        let vectors = match architecture {
            "qwen2" => vec![("attn_q.bias", q), ("attn_k.bias", kv), ("attn_v.bias", kv)],
            _ => {
                vec![("attn_q_norm.weight", sizes.head_dim), ("attn_k_norm.weight", sizes.head_dim)]
            }
        };
        for layer in 0..sizes.layers {
            for (name, width) in &vectors {
                let name = format!("blk.{layer}.{name}");
                let (dims, bytes) = (vec![*width as u64], 1.0_f32.to_le_bytes().repeat(*width));
                self.tensors.push(Tensor { name, dims, kind: F32, bytes, offset: None });
            }
        }
        self
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    /// Everything before the tensors' bytes, without the padding.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            write_text(key, &mut out);
            out.extend(value.kind().to_le_bytes());
            value.write(&mut out);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            write_text(&tensor.name, &mut out);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(self.alignment) as u64;
        }
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.bytes);
        }
        out
    }

    pub fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

fn metadata(sizes: &Sizes) -> Vec<(&'static str, Value)> {
    let tokens = (0..sizes.vocab).map(|id| format!("t{id}")).collect();
    vec![
        ("general.architecture", "llama".into()),
        ("general.name", "tiny".into()),
        ("llama.block_count", sizes.layers.into()),
        ("llama.context_length", 64_usize.into()),
        ("llama.embedding_length", sizes.hidden.into()),
        ("llama.feed_forward_length", sizes.intermediate.into()),
        ("llama.attention.head_count", sizes.heads.into()),
        ("llama.attention.head_count_kv", sizes.kv_heads.into()),
        ("llama.attention.key_length", sizes.head_dim.into()),
        ("llama.attention.value_length", sizes.head_dim.into()),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.freq_base", Value::F32(100.0)),
        ("llama.rope.dimension_count", sizes.head_dim.into()),
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", "gpt-2".into()),
        ("tokenizer.ggml.tokens", Value::Texts(tokens)),
        ("tokenizer.ggml.token_type", Value::I32s(vec![1; sizes.vocab])),
        ("tokenizer.ggml.merges", Value::Texts(Vec::new())),
    ]
}

/// The file's name of a tensor.
pub fn file_name(name: &str) -> String {
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    names.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// What the converter does to queries and keys, as it writes it: heads as `[2, half]` rows, swapped.
pub fn in_file_order(name: &str, sizes: &Sizes, bytes: &[u8], rows: usize) -> Vec<u8> {
    let heads = match name {
        name if name.contains("q_proj") => sizes.heads,
        name if name.contains("k_proj") => sizes.kv_heads,
        _ => return bytes.to_vec(),
    };
    let (width, half) = (bytes.len() / rows, rows / heads / 2);
    let mut swapped = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for pair in 0..half {
            for side in 0..2 {
                let row = (head * 2 + side) * half + pair;
                swapped.extend(&bytes[row * width..(row + 1) * width]);
            }
        }
    }
    swapped
}

/// The error of a tiny file after `change`: it begins with the file and has these parts.
pub fn refused(parts: &[&str], change: impl FnOnce(&mut GgufFile)) {
    let mut file = GgufFile::tiny();
    change(&mut file);
    refused_bytes(parts, &file.bytes());
}

/// The error of these bytes.
pub fn refused_bytes(parts: &[&str], bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let error = Backbone::load(&path).unwrap_err().to_string();
    let checked = backbone::check(&path, WeightType::F32).unwrap_err().to_string();
    assert_eq!(checked, error);
    assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}
