//! What stages read: files of the backbone, the dataset, and what earlier stages wrote.

use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use rayon::prelude::*;
use reclora_storage::dataset::{Dataset, Sample};
use reclora_storage::shard::Shard;

use super::{RunContext, Stage};
use crate::adapter::Adapter;
use crate::backbone::is_gguf;
use crate::error::{Result, TrainerError};
use crate::scoring::chunks::{ChunkStore, Chunks};

/// Samples per file of `lens/`.
const LENS_CHUNK: u64 = 4096;
/// Samples per file of `neighbours/`: many, so that many of them are of one user.
const NEIGHBOUR_CHUNK: u64 = 1 << 16;

/// The files of a backbone that a result depends on, sorted: of a directory, or a GGUF file alone.
pub fn backbone_files(dir: &Path) -> Result<Vec<PathBuf>> {
    if is_gguf(dir) {
        return Ok(vec![dir.to_path_buf()]);
    }
    let entries = std::fs::read_dir(dir).map_err(|error| {
        TrainerError::file(dir, format!("can't be read ({error}); is backbone.path right?"))
    })?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name == "config.json"
                || name == "tokenizer.json"
                || name == "tokenizer_config.json"
                || name == "model.safetensors.index.json"
                || name.ends_with(".safetensors")
        })
        .collect();
    files.sort();
    Ok(files)
}

/// Checks `adapter.scale_of` by the header of its file: a plain LoRA of the run's settings, in a file
/// that the run itself does not write.
///
/// # Errors
/// The setting that can't work, or a file that can't be read.
pub fn check_scale_of(ctx: &RunContext) -> Result<()> {
    let Some(path) = ctx.config.adapter.frozen_lora() else { return Ok(()) };
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let written = [Stage::Tune, Stage::Export].map(|stage| real(&ctx.path(stage)));
    if written.iter().any(|dir| real(path).starts_with(dir)) {
        let what = format!(
            "{} is a file of this very run, which would replace it: give the run of the scales a \
             directory of its own (run_dir)",
            path.display()
        );
        return Err(TrainerError::config("adapter.scale_of", what));
    }
    Adapter::check_scale_of(&ctx.config.adapter)
}

/// Opens the dataset of a run.
pub fn dataset(ctx: &RunContext) -> Result<Dataset> {
    Ok(Dataset::open(&ctx.path(Stage::Prepare))?)
}

/// Samples of a dataset, in their order.
pub fn samples(dataset: &Dataset, range: Range<u64>) -> Result<Vec<Sample>> {
    range.into_par_iter().map(|index| Ok(dataset.sample(index)?)).collect()
}

/// The chunks of `neighbours/`.
pub fn neighbour_chunks(ctx: &RunContext, dataset: &Dataset) -> Chunks {
    Chunks::new(&ctx.path(Stage::Retrieve), "neighbours", 0..dataset.num_samples(), NEIGHBOUR_CHUNK)
}

/// The chunks of `lens/`.
pub fn lens_chunks(ctx: &RunContext, dataset: &Dataset) -> Chunks {
    Chunks::new(&ctx.path(Stage::Few2many), "lens", 0..dataset.num_samples(), LENS_CHUNK)
}

/// The history positions that `retrieve` chose for each sample.
#[derive(Debug)]
pub struct Neighbours(ChunkStore);

impl Neighbours {
    /// Opens `neighbours/`.
    pub fn open(ctx: &RunContext, dataset: &Dataset) -> Result<Self> {
        Ok(Self(neighbour_chunks(ctx, dataset).open()?))
    }

    /// Positions shown to the LLM, in the order they are shown.
    pub fn text(&self, sample: u64) -> Result<&[u32]> {
        self.positions(sample, ["text_offsets", "text_positions"])
    }

    /// Positions shown to the CRM.
    pub fn crm(&self, sample: u64) -> Result<&[u32]> {
        self.positions(sample, ["crm_offsets", "crm_positions"])
    }

    fn positions(&self, sample: u64, [offsets, positions]: [&str; 2]) -> Result<&[u32]> {
        let (shard, row) = located(&self.0, sample)?;
        let offsets = shard.u64(offsets)?;
        let range = offsets.get(row).zip(offsets.get(row + 1));
        range
            .and_then(|(&start, &end)| shard.u32(positions).ok()?.get(start as usize..end as usize))
            .ok_or_else(|| damaged(shard, "neighbours"))
    }
}

/// The file that has a sample, and its row there.
pub fn located(store: &ChunkStore, sample: u64) -> Result<(&Shard, usize)> {
    store.locate(sample)?.ok_or_else(|| TrainerError::NotFound(format!("no sample {sample}")))
}

/// What a file says that does not fit together with the others.
pub fn damaged(shard: &Shard, what: &str) -> TrainerError {
    TrainerError::file(
        shard.path(),
        format!("its {what} do not fit together; run that stage again"),
    )
}

/// What the CRM wrote of each sample.
#[derive(Debug)]
pub struct Lens {
    store: ChunkStore,
    dim: usize,
}

impl Lens {
    /// Opens `lens/`.
    pub fn open(ctx: &RunContext, dataset: &Dataset) -> Result<Self> {
        let store = lens_chunks(ctx, dataset).open()?;
        let mut dim = 0;
        if let Some(shard) = store.shards().first() {
            let rows = shard.f32("logit")?.len().max(1);
            dim = shard.u16("representation")?.len() / rows;
        }
        Ok(Self { store, dim })
    }

    /// Width of a representation.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The representation of a sample, `[dim]`.
    pub fn representation(&self, sample: u64) -> Result<Vec<f32>> {
        let (shard, row) = located(&self.store, sample)?;
        let bits = shard.u16("representation")?.get(row * self.dim..(row + 1) * self.dim);
        let bits = bits.ok_or_else(|| damaged(shard, "representations"))?;
        Ok(bits.iter().map(|&bits| f16::from_bits(bits).to_f32()).collect())
    }

    /// The CRM's logit of a sample.
    pub fn logit(&self, sample: u64) -> Result<f32> {
        self.number(sample, "logit")
    }

    /// The logit of the CRM of train without the holdout, in runs that have one.
    pub fn early_logit(&self, sample: u64) -> Result<f32> {
        self.number(sample, "early_logit")
    }

    fn number(&self, sample: u64, column: &str) -> Result<f32> {
        let (shard, row) = located(&self.store, sample)?;
        shard.f32(column)?.get(row).copied().ok_or_else(|| damaged(shard, "logits"))
    }
}

/// A representation as the lens holds it: rounded to f16, and back.
pub fn as_in_lens(representation: &[f32]) -> Vec<f32> {
    representation.iter().map(|&value| f16::from_f32(value).to_f32()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backbone_is_the_files_of_a_directory_or_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
        for name in names.into_iter().chain(["README.md", "other.gguf"]) {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let files = backbone_files(dir.path()).unwrap();
        assert_eq!(files, names.map(|name| dir.path().join(name)));
        let file = dir.path().join("other.gguf");
        assert_eq!(backbone_files(&file).unwrap(), [file]);
    }
}
