//! The weight files of a Hugging Face directory: one file, or shards with an index.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::{BackboneConfig, TensorFile};
use crate::error::{Result, TrainerError};

/// The embedding, and the output head where it is another tensor.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const HEAD: &str = "lm_head.weight";

/// `model.safetensors.index.json`: which file holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The weight files of a directory.
pub(super) struct Shards {
    files: Vec<TensorFile>,
    /// The file where every tensor should be: named in errors.
    root: PathBuf,
    /// From the index: tensor to file. Empty without an index.
    map: BTreeMap<String, usize>,
}

impl Shards {
    /// Opens all files and checks their headers.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        if !index.exists() || single.exists() {
            let files = vec![TensorFile::open(&single)?];
            return Ok(Self { files, root: single, map: BTreeMap::new() });
        }
        let text = std::fs::read(&index)
            .map_err(|error| TrainerError::file(&index, format!("can't be read: {error}")))?;
        let parsed: Index = serde_json::from_slice(&text)
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

    fn place(&self, name: &str) -> Option<usize> {
        if self.map.is_empty() { Some(0) } else { self.map.get(name).copied() }
    }

    fn missing(&self, name: &str) -> TrainerError {
        let what = format!("tensor {name}: is missing from the weight map");
        TrainerError::file(&self.root, what)
    }

    /// The file that should hold a tensor.
    pub fn file(&self, name: &str) -> Result<&TensorFile> {
        let file = self.place(name).and_then(|at| self.files.get(at));
        file.ok_or_else(|| self.missing(name))
    }

    /// The file that should hold a tensor, to read it.
    pub fn file_mut(&mut self, name: &str) -> Result<&mut TensorFile> {
        match self.place(name) {
            Some(at) if at < self.files.len() => Ok(&mut self.files[at]),
            _ => Err(self.missing(name)),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.file(name).is_ok_and(|file| !self.map.is_empty() || file.has(name))
    }

    /// Sets whether the head is the embedding by what the files have, as transformers does (from version
    /// 5 on), and returns the name of the embedding's tensor and what a user should know.
    ///
    /// With `tie_word_embeddings` either of two names is enough. Where both tensors are there and differ,
    /// the field is wrong: the head was trained, and is used. They are compared byte by byte up to the
    /// first difference, but not beyond `limit` bytes. So a trained head costs next to nothing, and two
    /// copies of the embedding cost reading both once: 0.5 GB of a LLaMA-2-7B in half precision.
    pub fn resolve_head(
        &self,
        config: &mut BackboneConfig,
        limit: usize,
    ) -> Result<(&'static str, Vec<String>)> {
        if !config.tie_word_embeddings || !self.has(HEAD) {
            return Ok((EMBEDDING, Vec::new()));
        }
        if !self.has(EMBEDDING) {
            return Ok((HEAD, Vec::new()));
        }
        let (embedding, head) = (self.file(EMBEDDING)?, self.file(HEAD)?);
        let shape = [config.vocab_size, config.hidden_size];
        if embedding.same((EMBEDDING, head, HEAD), &shape, limit)? {
            return Ok((EMBEDDING, Vec::new()));
        }
        config.tie_word_embeddings = false;
        let note = format!(
            "{}: tensor {HEAD} differs from {EMBEDDING}, though config.json says \
             tie_word_embeddings = true: it is used as the head, as by transformers 5 (version 4 \
             passes it over); set the field to false",
            head.path().display()
        );
        Ok((EMBEDDING, vec![note]))
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
