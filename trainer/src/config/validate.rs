//! Settings that can't work are refused before anything runs, each by its name.

use std::path::{Path, PathBuf};

use reclora_comm::Wire;
use reclora_storage::StorageError;
use reclora_storage::protocol::LabelRule;
use reclora_storage::raw::ColumnMapping;

use super::{
    AdapterConfig, CommBackend, Config, CrmConfig, DataConfig, Device, GateInput, Reduction,
    RuntimeConfig,
};
use crate::backbone::Projection;
use crate::error::{Result, TrainerError};

/// Most folds of train: each is a CRM to be trained.
const MAX_FOLDS: usize = 64;
/// Largest width and depth of the CRM.
const MAX_CRM_SIZE: usize = 1 << 14;
/// Smallest and largest memory of `prepare`, in MiB: less makes too many temporary runs, and no machine
/// has more.
const MIN_MEMORY_MIB: u64 = 16;
const MAX_MEMORY_MIB: u64 = 1 << 30;

/// Ends the check of a config with the name of a setting and what is wrong with it.
fn refuse<T>(field: &str, what: impl Into<String>) -> Result<T> {
    Err(TrainerError::config(field, what))
}

impl Config {
    /// Checks every setting that can be checked without reading data or backbone.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn validate(&self, world_size: usize) -> Result<()> {
        let Self { data, retrieve, crm, adapter, tune, evaluate, .. } = self;
        let positive = [
            ("retrieve.pca_dimensions", retrieve.pca_dimensions as u64),
            ("retrieve.crm_k", retrieve.crm_k as u64),
            ("crm.batch_size", crm.batch_size as u64),
            ("crm.epochs", crm.epochs as u64),
            ("tune.few_shot", tune.few_shot as u64),
            ("tune.epochs", tune.epochs as u64),
            ("tune.global_batch", tune.global_batch as u64),
            ("tune.checkpoint_every", tune.checkpoint_every),
            ("evaluate.chunk_size", evaluate.chunk_size),
            ("runtime.nproc_per_node", world_size as u64),
            ("runtime.collective_timeout", self.runtime.collective_timeout),
            ("runtime.rendezvous_timeout", self.runtime.rendezvous_timeout),
            ("runtime.heartbeat_timeout", self.runtime.heartbeat_timeout),
            ("runtime.pause_timeout", self.runtime.pause_timeout),
            ("runtime.bucket_mib", self.runtime.bucket_mib as u64),
        ];
        if let Some((field, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return refuse(field, "must be at least 1");
        }
        if data.split.iter().any(|share| !(0.0..=1.0).contains(share))
            || (data.split.iter().sum::<f64>() - 1.0).abs() > 1e-6
        {
            return refuse("data.split", format!("{:?}: three shares must sum to 1", data.split));
        }
        let (LabelRule::Greater(value) | LabelRule::AtLeast(value)) = data.label;
        if !value.is_finite() {
            return refuse("data.label", format!("{value} is not a rating"));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&data.memory_limit_mib) {
            let what = format!(
                "{} is not a number of MiB from {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}",
                data.memory_limit_mib
            );
            return refuse("data.memory_limit_mib", what);
        }
        columns(data)?;
        crm.validate()?;
        adapter.validate()?;
        optimizer("crm", crm.learning_rate, crm.weight_decay)?;
        optimizer("tune", tune.learning_rate, tune.weight_decay)?;
        if !(tune.max_grad_norm.is_finite() && tune.max_grad_norm > 0.0) {
            let what = format!("{} is not a positive number", tune.max_grad_norm);
            return refuse("tune.max_grad_norm", what);
        }
        if let Some(pair) = self.export.pairs.iter().find(|pair| !pair.contains(':')) {
            return refuse("export.pairs", format!("{pair:?}: write \"user:item\""));
        }
        if !self.export.pairs.is_empty() && adapter.gate == GateInput::Token && adapter.experts > 1
        {
            let what = "no ordinary LoRA equals an adapter that mixes per token (adapter.gate = \"token\")";
            return refuse("export.pairs", what);
        }
        micro_batches("crm.micro_batches", crm.micro_batches, world_size)?;
        micro_batches("tune.micro_batches", tune.micro_batches, world_size)?;
        #[cfg(not(feature = "cuda"))]
        if self.runtime.device == Device::Cuda {
            return Err(no_cuda());
        }
        let RuntimeConfig { backend, reduction, device, .. } = &self.runtime;
        match (backend, reduction) {
            (CommBackend::Nccl, _) if cfg!(not(feature = "cuda")) => {
                refuse("runtime.backend", "this build has no NCCL; use \"tcp\" (the default)")
            }
            (CommBackend::Nccl, _) if *device != Device::Cuda => {
                let what = "\"nccl\" sums on GPUs: set device = \"cuda\", or use \"tcp\"";
                refuse("runtime.backend", what)
            }
            (CommBackend::Nccl, _) if self.runtime.gradient_wire != Wire::F32 => {
                refuse("runtime.gradient_wire", "\"nccl\" sums in f32; use \"f32\" (the default)")
            }
            (CommBackend::Tcp, Reduction::Fastest) => {
                let what = "\"fastest\" is NCCL's own order: with tcp sums are \"canonical\"";
                refuse("runtime.reduction", what)
            }
            _ => Ok(()),
        }
    }
}

/// The columns of CSV and Parquet, which other formats have no use for.
fn columns(data: &DataConfig) -> Result<()> {
    if !data.format.is_mapped() {
        let name = data.format.name();
        return if data.columns == ColumnMapping::default() {
            Ok(())
        } else {
            let what = format!("format = \"{name}\" knows its columns; use \"csv\" or \"parquet\"");
            refuse("data.columns", what)
        };
    }
    match data.columns.check() {
        Err(StorageError::Mapping { setting, problem }) => {
            refuse(&format!("data.columns.{setting}"), problem)
        }
        checked => Ok(checked?),
    }
}

/// The device is one that this build can't use.
#[cfg(not(feature = "cuda"))]
pub(crate) fn no_cuda() -> TrainerError {
    let what = "this build has no CUDA; use \"cpu\" (the default), or build with --features cuda";
    TrainerError::config("runtime.device", what)
}

/// Ranks share the leaves of a canonical sum evenly, or results would depend on their number.
fn micro_batches(field: &str, micro_batches: usize, world_size: usize) -> Result<()> {
    if !micro_batches.is_power_of_two() {
        return refuse(field, format!("{micro_batches} is not a power of two"));
    }
    if !world_size.is_power_of_two() || world_size > micro_batches {
        let what = format!(
            "{world_size} ranks can't share {micro_batches} micro-batches ({field}) so that the result \
             is the same for any number of ranks; use a power of two of at most that many"
        );
        return refuse("runtime.nproc_per_node", what);
    }
    Ok(())
}

fn optimizer(section: &str, learning_rate: f32, weight_decay: f32) -> Result<()> {
    if !(learning_rate.is_finite() && learning_rate > 0.0) {
        let what = format!("{learning_rate} is not a positive number");
        return refuse(&format!("{section}.learning_rate"), what);
    }
    if !(weight_decay.is_finite() && weight_decay >= 0.0) {
        let what = format!("{weight_decay} is not a number of at least 0");
        return refuse(&format!("{section}.weight_decay"), what);
    }
    Ok(())
}

impl CrmConfig {
    /// Checks what the network is built from.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("crm.embedding_dim", self.embedding_dim),
            ("crm.hidden_dim", self.hidden_dim),
            ("crm.num_layers", self.num_layers),
            ("crm.num_attention_layers", self.num_attention_layers),
        ];
        if let Some((field, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return refuse(field, "must be at least 1");
        }
        // Far more than is of use, and no product of sizes overflows.
        if let Some((field, _)) = positive.iter().find(|(_, value)| *value > MAX_CRM_SIZE) {
            return refuse(field, format!("must be at most {MAX_CRM_SIZE}"));
        }
        if self.folds == 1 || self.folds > MAX_FOLDS {
            let what = format!("must be 0 (none) or 2 to {MAX_FOLDS}");
            return refuse("crm.folds", what);
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse("crm.dropout", "must be at least 0 and below 1");
        }
        Ok(())
    }
}

impl AdapterConfig {
    /// Checks what the adapter is built from.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("adapter.experts", self.experts),
            ("adapter.rank", self.rank),
            ("adapter.gate_hidden", if self.experts > 1 { self.gate_hidden } else { 1 }),
        ];
        if let Some((field, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return refuse(field, "is 0; it must be at least 1");
        }
        if self.experts.checked_mul(self.rank).is_none() {
            let what = format!("{} experts of rank {}: too large", self.experts, self.rank);
            return refuse("adapter.rank", what);
        }
        if self.top_k > self.experts {
            let what = format!("{} of {} experts; 0 is all of them", self.top_k, self.experts);
            return refuse("adapter.top_k", what);
        }
        if !self.lora_alpha.is_finite() {
            let what = format!("{} is not a finite number", self.lora_alpha);
            return refuse("adapter.lora_alpha", what);
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            let what = format!("{} is not a positive number", self.temperature);
            return refuse("adapter.temperature", what);
        }
        if !(0.0..1.0).contains(&self.gate_dropout) {
            return refuse("adapter.gate_dropout", format!("{} is not in 0..1", self.gate_dropout));
        }
        let mut targets = self.targets.clone();
        targets.sort();
        targets.dedup();
        if targets.is_empty() || targets.len() != self.targets.len() {
            let names = Projection::ALL.map(Projection::name).join(", ");
            return refuse("adapter.targets", format!("must name some of {names}, each once"));
        }
        match self.frozen_lora() {
            Some(_) => self.validate_scales(),
            None => Ok(()),
        }
    }

    /// The LoRA whose scales are tuned, where it is one.
    pub fn frozen_lora(&self) -> Option<&Path> {
        Some(self.scale_of.as_path()).filter(|path| !path.as_os_str().is_empty())
    }

    /// As adapter files and fingerprints hold it: without the path of a frozen LoRA. Its place changes nothing,
    /// and what is in that file is hashed by itself.
    pub(crate) fn without_path(&self) -> Self {
        Self { scale_of: PathBuf::new(), ..self.clone() }
    }

    /// Checks what scales of a frozen LoRA ask of the other settings.
    pub(crate) fn validate_scales(&self) -> Result<()> {
        if self.experts != 1 {
            let what = format!(
                "is {}; adapter.scale_of tunes scales of one plain LoRA, so it must be 1",
                self.experts
            );
            return refuse("adapter.experts", what);
        }
        if self.gate != GateInput::default() {
            let what = "must be the default (\"sample\"): with adapter.scale_of there is no gate";
            return refuse("adapter.gate", what);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use reclora_storage::raw::DatasetFormat;

    use super::*;

    fn refused(change: impl FnOnce(&mut Config), world_size: usize) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.validate(world_size).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_valid_for_the_ranks_they_can_be_shared_by() {
        for world_size in [1, 2, 4, 8] {
            Config::default().validate(world_size).unwrap();
        }
        for world_size in [3, 6, 16] {
            let error = refused(|_| {}, world_size);
            assert!(error.contains("runtime.nproc_per_node"), "{error}");
        }
    }

    #[test]
    fn each_bad_setting_is_named() {
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 26] = [
            ("retrieve.pca_dimensions", |c| c.retrieve.pca_dimensions = 0),
            ("data.split", |c| c.data.split = [0.8, 0.1, 0.2]),
            ("data.split", |c| c.data.split = [f64::NAN, 0.1, 0.2]),
            ("data.label", |c| c.data.label = LabelRule::Greater(f32::NAN)),
            ("data.memory_limit_mib", |c| c.data.memory_limit_mib = 15),
            ("data.memory_limit_mib", |c| c.data.memory_limit_mib = u64::MAX),
            ("data.columns", |c| c.data.columns.user = "who".into()),
            ("data.columns.delimiter", |c| {
                c.data.format = DatasetFormat::Csv;
                c.data.columns.delimiter = "::".into();
            }),
            ("crm.hidden_dim", |c| c.crm.hidden_dim = 0),
            ("crm.num_layers", |c| c.crm.num_layers = usize::MAX),
            ("crm.dropout", |c| c.crm.dropout = f32::NAN),
            ("crm.learning_rate", |c| c.crm.learning_rate = -1.0),
            ("crm.micro_batches", |c| c.crm.micro_batches = 6),
            ("adapter.experts", |c| c.adapter.experts = 0),
            ("adapter.top_k", |c| c.adapter.top_k = 9),
            ("adapter.temperature", |c| c.adapter.temperature = 0.0),
            ("adapter.targets", |c| c.adapter.targets.clear()),
            ("adapter.experts", |c| c.adapter.scale_of = "a/lora".into()),
            ("adapter.gate", |c| {
                c.adapter.scale_of = "a/lora".into();
                (c.adapter.experts, c.adapter.gate) = (1, GateInput::Token);
            }),
            ("tune.weight_decay", |c| c.tune.weight_decay = f32::INFINITY),
            ("tune.max_grad_norm", |c| c.tune.max_grad_norm = 0.0),
            ("tune.epochs", |c| c.tune.epochs = 0),
            ("export.pairs", |c| c.export.pairs = vec!["27".into()]),
            ("runtime.backend", |c| c.runtime.backend = CommBackend::Nccl),
            ("runtime.reduction", |c| c.runtime.reduction = Reduction::Fastest),
            ("runtime.bucket_mib", |c| c.runtime.bucket_mib = 0),
        ];
        for (field, change) in cases {
            let error = refused(change, 1);
            assert!(error.starts_with(&format!("config: {field}: ")), "{field}: {error}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        let error = refused(|c| c.runtime.device = Device::Cuda, 1);
        assert!(error.starts_with("config: runtime.device: this build has no CUDA"), "{error}");
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_tunes_no_scales() {
        let change = |c: &mut Config| {
            c.runtime.device = Device::Cuda;
            (c.adapter.experts, c.adapter.scale_of) = (1, "a/lora".into());
        };
        assert!(refused(change, 1).starts_with("config: adapter.scale_of: "));
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_takes_no_8_bit_weights() {
        let change = |c: &mut Config| {
            c.runtime.device = Device::Cuda;
            c.backbone.weights = crate::backbone::WeightType::Q8_0;
        };
        assert!(refused(change, 1).starts_with("config: backbone.weights: q8_0 is not supported"));
    }
}
