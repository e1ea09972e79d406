//! What the fuzz targets share: files in memory, and files whose hashes are put right.
//!
//! A hash stops a fuzzer at the door. So targets of hashed files take either the bytes as they are, or
//! the content, around which the hashes are made.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use reclora_trainer::backbone::{BackboneConfig, LayerShape, RopeScaling};
use xxhash_rust::xxh3::xxh3_64;

/// A directory of this process, in memory where the system has such a place.
pub fn scratch() -> &'static Path {
    static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
        let base = Path::new("/dev/shm");
        let base = if base.is_dir() { base.to_path_buf() } else { std::env::temp_dir() };
        let dir = base.join(format!("reclora-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a scratch directory");
        dir
    });
    &DIR
}

/// Writes a file of the scratch directory.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch().join(name);
    std::fs::create_dir_all(path.parent().unwrap_or(scratch())).expect("a directory");
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// Splits off the first byte, which chooses between variants of an input.
pub fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// Splits off a piece whose length is the first two bytes.
pub fn piece(data: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return (&[], &[]) };
    rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()))
}

/// A piece as [`piece`] reads it.
pub fn as_piece(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a piece is short");
    [&length.to_le_bytes()[..], bytes].concat()
}

/// A shard with any header and body, and every hash and length as it should be for `columns` columns.
pub fn shard(header: &[u8], columns: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"RCLSHARD".to_vec();
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(header);
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    let mut trailer = xxh3_64(&bytes).to_le_bytes().to_vec();
    for _ in 0..columns {
        trailer.extend(xxh3_64(body).to_le_bytes());
    }
    trailer.extend(xxh3_64(&trailer).to_le_bytes());
    bytes.extend(body);
    let length = (bytes.len() + trailer.len() + 16) as u64;
    bytes.extend(trailer);
    bytes.extend(length.to_le_bytes());
    bytes.extend(b"DRAHSLCR");
    bytes
}

/// A safetensors file: the bytes as they are, or a header made into a file, with data as long as the
/// header says (as long as that is little).
pub fn safetensors(data: &[u8]) -> Vec<u8> {
    const MOST: u64 = 1 << 20;
    let (variant, rest) = choice(data);
    if variant.is_multiple_of(2) {
        return rest.to_vec();
    }
    let ends = serde_json::from_slice::<serde_json::Value>(rest).ok();
    let ends = ends.iter().filter_map(serde_json::Value::as_object).flat_map(|o| o.values());
    let end = ends.filter_map(|tensor| tensor["data_offsets"][1].as_u64()).max().unwrap_or(0);
    let mut bytes = (rest.len() as u64).to_le_bytes().to_vec();
    bytes.extend(rest);
    bytes.resize(bytes.len() + end.min(MOST) as usize, 0);
    bytes
}

/// The backbone that adapters of the seeds are made for: that of [`CONFIG`].
pub fn backbone() -> BackboneConfig {
    BackboneConfig {
        hidden_size: 4,
        layers: vec![LayerShape {
            num_heads: 2,
            num_kv_heads: 1,
            intermediate_size: 4,
            sliding_window: None,
        }],
        head_dim: 2,
        vocab_size: 3,
        max_position_embeddings: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        qkv_bias: false,
        o_bias: false,
        qk_norm: false,
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    }
}

/// `config.json` of that backbone.
pub const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":4,
    "intermediate_size":4,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,
    "vocab_size":3,"max_position_embeddings":8,"rms_norm_eps":1e-5,"tie_word_embeddings":true,
    "hidden_act":"silu","bos_token_id":1,"eos_token_id":2}"#;

/// The columns of a dataset in the order in which an input has them, and their types: bytes of a number.
pub const DATASET_COLUMNS: [(&str, u8); 15] = [
    ("schema", 1),
    ("user_offsets", 8),
    ("item", 4),
    ("rating", 1),
    ("timestamp", 4),
    ("sample", 4),
    ("user.key.offsets", 8),
    ("user.key.bytes", 1),
    ("user.by_key", 4),
    ("item.key.offsets", 8),
    ("item.key.bytes", 1),
    ("item.by_key", 4),
    ("item.field1", 4),
    ("item.text0.offsets", 8),
    ("item.text0.bytes", 1),
];
