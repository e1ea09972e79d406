//! Reading a Hugging Face directory or a GGUF file into a [`Backbone`].

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::{Backbone, BackboneConfig, BlockWeights, Gguf, TensorFile, is_gguf};
use crate::error::{Result, TrainerError};

/// `model.safetensors.index.json`: which file holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// What to do about weights that can't be read or are not those of config.json.
const ADVICE: &str = "weights and config.json must be one whole model: copy or download both again";

/// Reads a tensor of this Hugging Face name and exactly this shape as f32.
type Read<'a> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>> + 'a;

pub(super) fn load(path: &Path) -> Result<Backbone> {
    if is_gguf(path) {
        let file = Gguf::open(path)?;
        return load_weights(path, file.config()?, &mut |name, shape| file.read(name, shape));
    }
    let config_path = path.join("config.json");
    let config = BackboneConfig::parse(&config_path, &read(&config_path)?)?;
    let load = || {
        let mut weights = Weights::open(path)?;
        load_weights(path, config, &mut |name, shape| weights.read(name, shape))
    };
    load().map_err(|error| error.advise(ADVICE))
}

fn load_weights(path: &Path, config: BackboneConfig, read: &mut Read<'_>) -> Result<Backbone> {
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let embedding = read("model.embed_tokens.weight", &[vocab, hidden])?;
    let blocks = (0..config.num_layers)
        .map(|layer| load_block(read, &config, layer))
        .collect::<Result<_>>()?;
    let norm = read("model.norm.weight", &[hidden])?;
    let head = if config.tie_word_embeddings {
        None
    } else {
        Some(read("lm_head.weight", &[vocab, hidden])?)
    };
    Ok(Backbone { config, path: path.to_path_buf(), embedding, blocks, norm, head })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| {
        let hint = "a backbone is a Hugging Face directory: config.json, model.safetensors (or an \
                    index with shards) and tokenizer.json";
        TrainerError::file(path, format!("can't be read: {e}; {hint}"))
    })
}

fn load_block(read: &mut Read<'_>, config: &BackboneConfig, layer: usize) -> Result<BlockWeights> {
    let hidden = config.hidden_size;
    let (mlp, padded) = (config.intermediate_size, config.padded_intermediate());
    let (q, kv) = (config.q_dim(), config.kv_dim());
    let mut read =
        |name: &str, shape: &[usize]| read(&format!("model.layers.{layer}.{name}.weight"), shape);
    // Each matrix is allocated after its parts were read: sizes that no file backs allocate nothing.
    let parts = [
        (read("self_attn.q_proj", &[q, hidden])?, 0),
        (read("self_attn.k_proj", &[kv, hidden])?, q),
        (read("self_attn.v_proj", &[kv, hidden])?, q + kv),
    ];
    let qkv = side_by_side(&parts, hidden, config.qkv_dim());
    let o = side_by_side(&[(read("self_attn.o_proj", &[hidden, q])?, 0)], q, hidden);
    let parts = [
        (read("mlp.gate_proj", &[mlp, hidden])?, 0),
        (read("mlp.up_proj", &[mlp, hidden])?, padded),
    ];
    let gate_up = side_by_side(&parts, hidden, 2 * padded);
    let down = read("mlp.down_proj", &[hidden, mlp])?;
    let mut down = side_by_side(&[(down, 0)], mlp, hidden);
    down.resize(padded * hidden, 0.0);
    Ok(BlockWeights {
        input_norm: read("input_layernorm", &[hidden])?,
        qkv,
        o,
        mlp_norm: read("post_attention_layernorm", &[hidden])?,
        gate_up,
        down,
    })
}

/// Joins `[outputs, inputs]` weights into one `[inputs, stride]` matrix, each from its own column on.
fn side_by_side(parts: &[(Vec<f32>, usize)], inputs: usize, stride: usize) -> Vec<f32> {
    let mut joined = vec![0.0; inputs * stride];
    for (weight, offset) in parts {
        for (output, row) in weight.chunks_exact(inputs).enumerate() {
            for (x, dst) in row.iter().zip(joined.chunks_exact_mut(stride)) {
                dst[offset + output] = *x;
            }
        }
    }
    joined
}

/// The weight files of a directory.
struct Weights {
    files: Vec<TensorFile>,
    /// The file where every tensor should be: named in errors.
    root: PathBuf,
    /// From the index: tensor to file. Empty without an index.
    map: BTreeMap<String, usize>,
}

impl Weights {
    fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        if !index.exists() || single.exists() {
            let files = vec![TensorFile::open(&single)?];
            return Ok(Self { files, root: single, map: BTreeMap::new() });
        }
        let parsed: Index = serde_json::from_slice(&read(&index)?)
            .map_err(|e| TrainerError::file(&index, format!("is not a weight index: {e}")))?;
        let mut files: Vec<TensorFile> = Vec::new();
        let mut opened = BTreeMap::new();
        let mut map = BTreeMap::new();
        for (tensor, name) in parsed.weight_map {
            let at = match opened.get(&name) {
                Some(at) => *at,
                None => {
                    files.push(open_shard(dir, &index, &name)?);
                    opened.insert(name, files.len() - 1);
                    files.len() - 1
                }
            };
            map.insert(tensor, at);
        }
        Ok(Self { files, root: index, map })
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let at = if self.map.is_empty() { Some(0) } else { self.map.get(name).copied() };
        match at.and_then(|at| self.files.get_mut(at)) {
            Some(file) => file.read(name, shape),
            None => Err(TrainerError::file(
                &self.root,
                format!("tensor {name}: is missing from the weight map"),
            )),
        }
    }
}

fn open_shard(dir: &Path, index: &Path, name: &str) -> Result<TensorFile> {
    let mut parts = Path::new(name).components();
    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
        return Err(TrainerError::file(
            index,
            format!("names shard {name:?}, which is not a plain file name"),
        ));
    }
    let path = dir.join(name);
    if !path.exists() {
        let what = format!("is missing, but {} names it", index.display());
        return Err(TrainerError::file(path, what));
    }
    TensorFile::open(&path)
}
