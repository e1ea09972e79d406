//! Reading a Hugging Face directory or a GGUF file into a [`Backbone`].
//!
//! A model is opened first: its settings and the headers of all its weight files are read, and every
//! tensor that it needs must be there. What is opened can be loaded, but for its values.

use std::path::Path;
use std::sync::OnceLock;

use super::shards::{EMBEDDING, HEAD, Shards};
use super::{
    Backbone, BackboneConfig, BackboneSummary, BlockWeights, FrozenLinear, Gguf, Weight, diagnose,
    is_gguf,
};
use crate::backbone::{Projection, WeightType};
use crate::error::{Result, TrainerError};

/// What to do about weights that can't be read or are not those of config.json.
const ADVICE: &str = "weights and config.json must be one whole model: copy or download both again";

/// The most bytes of packed weights that a process keeps.
const PACKED_BYTES: usize = 32 << 20;

/// The most bytes that the projections of all tokens may take.
const LOWEST_BYTES: usize = 16 << 20;

/// How much of two tensors is compared where no weights are to be read.
const GLANCE: usize = 1 << 20;

/// Tensors by their Hugging Face names.
trait Tensors {
    /// A tensor of this width, as f32.
    fn vector(&mut self, name: &str, width: usize) -> Result<Vec<f32>>;

    /// A matrix of exactly this shape, stored as `weight_type`.
    fn matrix(&mut self, name: &str, shape: [usize; 2], weight_type: WeightType) -> Result<Weight>;
}

/// Weight files whose headers are known.
enum Files {
    Directory(Shards),
    Gguf(Gguf),
}

impl Tensors for Files {
    fn vector(&mut self, name: &str, width: usize) -> Result<Vec<f32>> {
        match self {
            Self::Directory(shards) => shards.file(name)?.read(name, &[width]),
            Self::Gguf(file) => file.read(name, &[width]),
        }
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2], weight_type: WeightType) -> Result<Weight> {
        match self {
            Self::Directory(shards) => shards.file_mut(name)?.weight(name, shape, weight_type),
            Self::Gguf(file) => file.weight(name, shape, weight_type),
        }
    }
}

impl Files {
    /// Says what to do about weights that are not as they should be.
    fn advise(&self, error: TrainerError) -> TrainerError {
        match self {
            Self::Directory(_) => error.advise(ADVICE),
            Self::Gguf(_) => error,
        }
    }
}

/// The headers alone: a tensor is looked up as if it were to be read, and has no values.
struct Headers<'a>(&'a Files);

impl Tensors for Headers<'_> {
    fn vector(&mut self, name: &str, width: usize) -> Result<Vec<f32>> {
        match self.0 {
            Files::Directory(shards) => shards.file(name)?.check(name, &[width])?,
            Files::Gguf(file) => file.check(name, &[width])?,
        }
        Ok(Vec::new())
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2], weight_type: WeightType) -> Result<Weight> {
        match self.0 {
            Files::Directory(shards) => {
                shards.file(name)?.check_weight(name, shape, weight_type)?;
            }
            Files::Gguf(file) => {
                file.check_weight(name, shape, weight_type)?;
            }
        }
        Ok(Weight::empty())
    }
}

/// How far a model is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// No weights are needed.
    Headers,
    /// The weights are going to be read.
    Weights,
}

/// A model that can be loaded, but for the values of its weights.
struct Opened {
    config: BackboneConfig,
    files: Files,
    /// The tensor of the embedding.
    embedding: &'static str,
    notes: Vec<String>,
}

/// The settings alone.
pub(super) fn config(path: &Path) -> Result<BackboneConfig> {
    if is_gguf(path) {
        return Gguf::open_header(path).and_then(|file| file.config()).map_err(explained);
    }
    let config_path = path.join("config.json");
    let text = std::fs::read(&config_path).map_err(|error| {
        let hint = "a backbone is a Hugging Face directory: config.json, model.safetensors (or an \
                    index with shards) and tokenizer.json";
        let what = format!("can't be read: {error}; {hint}");
        explained(TrainerError::file(&config_path, what))
    })?;
    BackboneConfig::parse(&config_path, &text).map_err(explained)
}

/// Finds out whether a model can be loaded, but for the values of its weights.
pub(super) fn check(path: &Path, weight_type: WeightType) -> Result<BackboneSummary> {
    let Opened { config, notes, .. } = open(path, weight_type, Depth::Headers)?;
    Ok(BackboneSummary { config, notes })
}

pub(super) fn load(path: &Path, weight_type: WeightType) -> Result<Backbone> {
    let Opened { config, mut files, embedding, notes } = open(path, weight_type, Depth::Weights)?;
    if let Files::Gguf(file) = &files {
        file.will_need();
    }
    let parts = read_parts(&mut files, &config, embedding, weight_type);
    let Parts { embedding, mut blocks, norm, head } = parts.map_err(|error| files.advise(error))?;
    keep_packed_if_small(&mut blocks);
    // A single block projects the queries of few positions.
    let lowest_bytes = config.vocab_size * config.qkv_dim(0) * size_of::<f32>();
    let keeps_lowest = config.num_layers() > 1 && lowest_bytes <= LOWEST_BYTES;
    let lowest = keeps_lowest.then(OnceLock::new);
    let path = path.to_path_buf();
    Ok(Backbone { config, path, weight_type, embedding, blocks, norm, head, lowest, notes })
}

fn open(path: &Path, weight_type: WeightType, depth: Depth) -> Result<Opened> {
    let opened = if is_gguf(path) { open_file(path, depth)? } else { open_directory(path, depth)? };
    let Opened { config, files, embedding, .. } = &opened;
    read_parts(&mut Headers(files), config, embedding, weight_type)
        .map_err(|error| files.advise(error))?;
    Ok(opened)
}

fn open_file(path: &Path, depth: Depth) -> Result<Opened> {
    let file = match depth {
        Depth::Headers => Gguf::open_header(path),
        Depth::Weights => Gguf::open(path),
    };
    let file = file.map_err(explained)?;
    let config = file.config()?;
    Ok(Opened { config, files: Files::Gguf(file), embedding: EMBEDDING, notes: Vec::new() })
}

fn open_directory(path: &Path, depth: Depth) -> Result<Opened> {
    let mut config = config(path)?;
    let compared = match depth {
        Depth::Headers => GLANCE,
        Depth::Weights => usize::MAX,
    };
    let opened = Shards::open(path).and_then(|shards| {
        let (embedding, notes) = shards.resolve_head(&mut config, compared)?;
        Ok((Files::Directory(shards), embedding, notes))
    });
    let (files, embedding, notes) =
        opened.map_err(|error| diagnose::cause(&error).unwrap_or_else(|| error.advise(ADVICE)))?;
    Ok(Opened { config, files, embedding, notes })
}

/// The error, or its cause where one is found.
fn explained(error: TrainerError) -> TrainerError {
    diagnose::cause(&error).unwrap_or(error)
}

/// All that is in tensors.
struct Parts {
    embedding: Weight,
    blocks: Vec<BlockWeights>,
    norm: Vec<f32>,
    head: Option<Weight>,
}

fn read_parts(
    tensors: &mut dyn Tensors,
    config: &BackboneConfig,
    embedding: &str,
    weight_type: WeightType,
) -> Result<Parts> {
    let table = [config.vocab_size, config.hidden_size];
    let embedding = tensors.matrix(embedding, table, weight_type)?;
    let blocks = (0..config.num_layers())
        .map(|layer| read_block(tensors, config, layer, weight_type))
        .collect::<Result<_>>()?;
    let norm = tensors.vector("model.norm.weight", config.hidden_size)?;
    let head = if config.tie_word_embeddings {
        None
    } else {
        Some(tensors.matrix(HEAD, table, weight_type)?)
    };
    Ok(Parts { embedding, blocks, norm, head })
}

fn read_block(
    tensors: &mut dyn Tensors,
    config: &BackboneConfig,
    layer: usize,
    weight_type: WeightType,
) -> Result<BlockWeights> {
    let mut linear = |projection: Projection| -> Result<FrozenLinear> {
        let name = projection.module(layer);
        let shape = config.projection(layer, projection);
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
