//! Reading a Hugging Face directory or a GGUF file into a [`Backbone`].

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;

use super::{
    Backbone, BackboneConfig, BlockWeights, FrozenLinear, Gguf, TensorFile, Weight, is_gguf,
};
use crate::config::{Projection, WeightType};
use crate::error::{Result, TrainerError};

/// `model.safetensors.index.json`: which file holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// What to do about weights that can't be read or are not those of config.json.
const ADVICE: &str = "weights and config.json must be one whole model: copy or download both again";

/// The most bytes of packed weights that a process keeps.
const PACKED_BYTES: usize = 32 << 20;

/// The most bytes that the projections of all tokens may take.
const LOWEST_BYTES: usize = 16 << 20;

/// Tensors by their Hugging Face names.
trait Tensors {
    /// A tensor of this width, as f32.
    fn vector(&mut self, name: &str, width: usize) -> Result<Vec<f32>>;

    /// A matrix of exactly this shape, stored as `weight_type`.
    fn matrix(&mut self, name: &str, shape: [usize; 2], weight_type: WeightType) -> Result<Weight>;
}

/// The settings alone.
pub(super) fn config(path: &Path) -> Result<BackboneConfig> {
    if is_gguf(path) {
        return Gguf::open(path)?.config();
    }
    let config_path = path.join("config.json");
    BackboneConfig::parse(&config_path, &read(&config_path)?)
}

pub(super) fn load(path: &Path, weight_type: WeightType) -> Result<Backbone> {
    if is_gguf(path) {
        let mut file = Gguf::open(path)?;
        let config = file.config()?;
        return load_weights(path, config, &mut file, weight_type);
    }
    let config = config(path)?;
    Shards::open(path)
        .and_then(|mut shards| load_weights(path, config, &mut shards, weight_type))
        .map_err(|error| error.advise(ADVICE))
}

fn load_weights(
    path: &Path,
    config: BackboneConfig,
    tensors: &mut dyn Tensors,
    weight_type: WeightType,
) -> Result<Backbone> {
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let table = [vocab, hidden];
    let embedding = tensors.matrix("model.embed_tokens.weight", table, weight_type)?;
    let blocks = (0..config.num_layers)
        .map(|layer| load_block(tensors, &config, layer, weight_type))
        .collect::<Result<_>>()?;
    let norm = tensors.vector("model.norm.weight", hidden)?;
    let head = if config.tie_word_embeddings {
        None
    } else {
        Some(tensors.matrix("lm_head.weight", table, weight_type)?)
    };
    let path = path.to_path_buf();
    // A single block projects the queries of few positions.
    let lowest_bytes = vocab * config.qkv_dim() * size_of::<f32>();
    let keeps_lowest = config.num_layers > 1 && lowest_bytes <= LOWEST_BYTES;
    let lowest = keeps_lowest.then(OnceLock::new);
    let mut backbone =
        Backbone { config, path, weight_type, embedding, blocks, norm, head, lowest };
    keep_packed_if_small(&mut backbone.blocks);
    Ok(backbone)
}

/// Packs a small model's weights once instead of for every sequence. In a large one packing is a small
/// part of the work, and the memory is better shared by the processes of a machine.
fn keep_packed_if_small(blocks: &mut [BlockWeights]) {
    let weights = blocks.iter().flat_map(|block| &block.projections);
    let bytes = weights.map(|linear| linear.weight.packed_bytes()).sum::<Option<usize>>();
    if bytes.is_some_and(|bytes| bytes <= PACKED_BYTES) {
        let weights = blocks.iter_mut().flat_map(|block| &mut block.projections);
        weights.for_each(|linear| linear.weight.keep_packed());
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| {
        let hint = "a backbone is a Hugging Face directory: config.json, model.safetensors (or an \
                    index with shards) and tokenizer.json";
        TrainerError::file(path, format!("can't be read: {e}; {hint}"))
    })
}

fn load_block(
    tensors: &mut dyn Tensors,
    config: &BackboneConfig,
    layer: usize,
    weight_type: WeightType,
) -> Result<BlockWeights> {
    let mut linear = |projection: Projection| -> Result<FrozenLinear> {
        let name = projection.module(layer);
        let shape = config.projection(projection);
        let weight = tensors.matrix(&format!("{name}.weight"), shape, weight_type)?;
        let bias = config.has_bias(projection);
        let bias = bias.then(|| tensors.vector(&format!("{name}.bias"), shape[0])).transpose()?;
        Ok(FrozenLinear { weight, bias })
    };
    let [q, k, v, o, gate, up, down] = Projection::ALL;
    let projections =
        [linear(q)?, linear(k)?, linear(v)?, linear(o)?, linear(gate)?, linear(up)?, linear(down)?];
    let mut norm = |name: &str, width: usize| {
        tensors.vector(&format!("model.layers.{layer}.{name}.weight"), width)
    };
    let qk_norm = if config.qk_norm {
        let width = config.head_dim;
        Some([norm("self_attn.q_norm", width)?, norm("self_attn.k_norm", width)?])
    } else {
        None
    };
    Ok(BlockWeights {
        input_norm: norm("input_layernorm", config.hidden_size)?,
        mlp_norm: norm("post_attention_layernorm", config.hidden_size)?,
        qk_norm,
        projections,
    })
}

/// The weight files of a directory.
struct Shards {
    files: Vec<TensorFile>,
    /// The file where every tensor should be: named in errors.
    root: PathBuf,
    /// From the index: tensor to file. Empty without an index.
    map: BTreeMap<String, usize>,
}

impl Shards {
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

    /// The file that holds a tensor.
    fn file(&mut self, name: &str) -> Result<&mut TensorFile> {
        let at = if self.map.is_empty() { Some(0) } else { self.map.get(name).copied() };
        at.and_then(|at| self.files.get_mut(at)).ok_or_else(|| {
            let what = format!("tensor {name}: is missing from the weight map");
            TrainerError::file(&self.root, what)
        })
    }
}

impl Tensors for Shards {
    fn vector(&mut self, name: &str, width: usize) -> Result<Vec<f32>> {
        self.file(name)?.read(name, &[width])
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2], weight_type: WeightType) -> Result<Weight> {
        self.file(name)?.weight(name, shape, weight_type)
    }
}

impl Tensors for Gguf {
    fn vector(&mut self, name: &str, width: usize) -> Result<Vec<f32>> {
        self.read(name, &[width])
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2], weight_type: WeightType) -> Result<Weight> {
        self.weight(name, shape, weight_type)
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
