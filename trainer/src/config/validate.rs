//! Settings that can't work are refused before anything runs, each by its name.
//!
//! The schema has what is wrong with a value by itself; here are settings that don't go together.

use std::path::{Path, PathBuf};

use reclora_comm::Wire;
use reclora_storage::raw::ColumnMapping;

use super::{
    AdapterConfig, CommBackend, Config, CrmConfig, DataConfig, Device, GateInput, Head, Prior,
    Problem, Reduction, RuntimeConfig, TunedModel, check,
};
use crate::error::{Result, TrainerError};

/// What is wrong with a config: values by themselves first, which conflicts of theirs would only repeat.
struct Found<'a> {
    problems: &'a mut Vec<Problem>,
    values: usize,
}

impl<'a> Found<'a> {
    fn new(problems: &'a mut Vec<Problem>) -> Self {
        Self { values: problems.len(), problems }
    }

    /// Settings that don't go together, the one that should change first.
    fn conflict(&mut self, fields: &[&str], what: impl Into<String>) {
        let is_wrong = |field: &&str| {
            let mut wrong = self.problems[..self.values].iter().map(|problem| &problem.field);
            wrong.any(|wrong| {
                field
                    .strip_prefix(wrong.as_str())
                    .is_some_and(|below| below.is_empty() || below.starts_with('.'))
            })
        };
        if !fields.iter().any(is_wrong) {
            self.problems.push(Problem::new(fields[0], what));
        }
    }
}

/// Refuses the first problem: of values by themselves, and of conflicts.
fn refuse(mut problems: Vec<Problem>, conflicts: impl FnOnce(&mut Found<'_>)) -> Result<()> {
    conflicts(&mut Found::new(&mut problems));
    problems.into_iter().next().map_or(Ok(()), |p| Err(TrainerError::config(p.field, p.what)))
}

impl Config {
    /// Checks every setting that can be checked without reading data or backbone.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn validate(&self, world_size: usize) -> Result<()> {
        refuse(check("", self), |found| self.conflicts(world_size, found))
    }

    /// Adds the settings that don't go together to the values that are wrong by themselves. Conflicts with those
    /// are left out.
    pub fn add_conflicts(&self, world_size: usize, problems: &mut Vec<Problem>) {
        self.conflicts(world_size, &mut Found::new(problems));
    }

    fn conflicts(&self, world_size: usize, found: &mut Found<'_>) {
        self.data.conflicts(found);
        self.conflicts_of_models(found);
        self.conflicts_of_prior(found);
        self.adapter.conflicts(found);
        if let Some(pair) = self.export.pairs.iter().find(|pair| !pair.contains(':')) {
            found.conflict(&["export.pairs"], format!("{pair:?}: write \"user:item\""));
        }
        let is_per_token = self.adapter.gate == GateInput::Token && self.adapter.experts > 1;
        if is_per_token && !self.export.pairs.is_empty() {
            let what = "no ordinary LoRA equals an adapter that mixes per token (adapter.gate = \"token\")";
            found.conflict(&["export.pairs", "adapter.gate", "adapter.experts"], what);
        }
        for (field, micro_batches) in self.micro_batches() {
            if !micro_batches.is_power_of_two() {
                found.conflict(&[field], format!("{micro_batches} is not a power of two"));
            } else if !world_size.is_power_of_two() || world_size > micro_batches {
                // Ranks share the leaves of a canonical sum evenly, or results would depend on their number.
                let what = format!(
                    "{world_size} ranks can't share {micro_batches} micro-batches ({field}) so that the \
                     result is the same for any number of ranks; use a power of two of at most that many"
                );
                found.conflict(&["runtime.nproc_per_node", field], what);
            }
        }
        self.runtime.conflicts(found);
    }

    fn conflicts_of_models(&self, found: &mut Found<'_>) {
        let models = &self.tune.models;
        if !models.contains(&TunedModel::Reclora) {
            let what = "leaves out \"reclora\", which is what a run is for: add it";
            found.conflict(&["tune.models"], what);
        }
        if models.contains(&TunedModel::LoraCrm) && self.tune.prior == Prior::None {
            let what = "has \"lora_crm\", which starts from the CRM's logit: set tune.prior to \"crm\", or leave it \
                        out";
            found.conflict(&["tune.models", "tune.prior"], what);
        }
    }

    fn conflicts_of_prior(&self, found: &mut Found<'_>) {
        if self.tune.prior == Prior::None {
            return;
        }
        if self.crm.holdout == 0.0 {
            let what = "is 0; tune.prior = \"crm\" starts from the logit of a CRM that has not seen the sample's \
                        label: set it to 0.2";
            found.conflict(&["crm.holdout", "tune.prior"], what);
        }
        if self.adapter.head == Head::Lm {
            let what = "is \"lm\", which says something of its own before the first step; with tune.prior = \"crm\" \
                        the LLM only adds to the CRM's score: use \"ctr1\"";
            found.conflict(&["adapter.head", "tune.prior"], what);
        }
        if self.tune.valid_samples == 0 || self.data.split[1] == 0.0 {
            let what = "how much of the LLM's part is believed (tune.prior = \"crm\") is chosen on valid samples: \
                        there must be some";
            let of = if self.tune.valid_samples == 0 { "tune.valid_samples" } else { "data.split" };
            found.conflict(&[of, "tune.prior"], what);
        }
    }

    /// Whether so many ranks can share the work.
    pub fn is_shared_evenly(&self, world_size: usize) -> bool {
        let is_enough = |(_, micro_batches)| world_size <= micro_batches;
        world_size.is_power_of_two() && self.micro_batches().into_iter().all(is_enough)
    }

    fn micro_batches(&self) -> [(&'static str, usize); 2] {
        [
            ("crm.micro_batches", self.crm.micro_batches),
            ("tune.micro_batches", self.tune.micro_batches),
        ]
    }
}

impl DataConfig {
    fn conflicts(&self, found: &mut Found<'_>) {
        if (self.split.iter().sum::<f64>() - 1.0).abs() > 1e-6 {
            let what = format!("{:?}: three shares must sum to 1", self.split);
            found.conflict(&["data.split"], what);
        }
        if self.format.is_mapped() {
            for (setting, problem) in self.columns.problems() {
                found.conflict(&[&format!("data.columns.{setting}"), "data.format"], problem);
            }
        } else if self.columns != ColumnMapping::default() {
            let name = self.format.name();
            let what = format!("format = \"{name}\" knows its columns; use \"csv\" or \"parquet\"");
            found.conflict(&["data.columns", "data.format"], what);
        }
    }
}

impl CrmConfig {
    /// Checks what the network is built from.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn validate(&self) -> Result<()> {
        refuse(check("crm", self), |_| ())
    }
}

impl AdapterConfig {
    /// Checks what the adapter is built from.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn validate(&self) -> Result<()> {
        refuse(check("adapter", self), |found| self.conflicts(found))
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
        refuse(Vec::new(), |found| self.conflicts_of_scales(found))
    }

    fn conflicts(&self, found: &mut Found<'_>) {
        if self.top_k > self.experts {
            let what = format!("{} of {} experts; 0 is all of them", self.top_k, self.experts);
            found.conflict(&["adapter.top_k", "adapter.experts"], what);
        }
        if self.frozen_lora().is_some() {
            self.conflicts_of_scales(found);
        }
    }

    fn conflicts_of_scales(&self, found: &mut Found<'_>) {
        if self.experts != 1 {
            let what = format!(
                "is {}; adapter.scale_of tunes scales of one plain LoRA, so it must be 1",
                self.experts
            );
            found.conflict(&["adapter.experts", "adapter.scale_of"], what);
        }
        if self.gate != GateInput::default() {
            let what = "must be the default (\"sample\"): with adapter.scale_of there is no gate";
            found.conflict(&["adapter.gate", "adapter.scale_of"], what);
        }
    }
}

impl RuntimeConfig {
    fn conflicts(&self, found: &mut Found<'_>) {
        #[cfg(not(feature = "cuda"))]
        if self.device == Device::Cuda {
            found.conflict(&["runtime.device"], NO_CUDA);
        }
        let nccl = self.backend == CommBackend::Nccl;
        if nccl && cfg!(not(feature = "cuda")) {
            let what = "this build has no NCCL; use \"tcp\" (the default)";
            found.conflict(&["runtime.backend"], what);
        } else if nccl && self.device != Device::Cuda {
            let what = "\"nccl\" sums on GPUs: set device = \"cuda\", or use \"tcp\"";
            found.conflict(&["runtime.backend", "runtime.device"], what);
        }
        if nccl && self.gradient_wire != Wire::F32 {
            let what = "\"nccl\" sums in f32; use \"f32\" (the default)";
            found.conflict(&["runtime.gradient_wire", "runtime.backend"], what);
        }
        if !nccl && self.reduction == Reduction::Fastest {
            let what = "\"fastest\" is NCCL's own order: with tcp sums are \"canonical\"";
            found.conflict(&["runtime.reduction", "runtime.backend"], what);
        }
    }
}

#[cfg(not(feature = "cuda"))]
const NO_CUDA: &str =
    "this build has no CUDA; use \"cpu\" (the default), or build with --features cuda";

/// The device is one that this build can't use.
#[cfg(not(feature = "cuda"))]
pub(crate) fn no_cuda() -> TrainerError {
    TrainerError::config("runtime.device", NO_CUDA)
}

#[cfg(test)]
mod tests {
    use reclora_storage::protocol::LabelRule;
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
        let cases: [(&str, Change); 33] = [
            ("tune.models", |c| c.tune.models = vec![TunedModel::Lora]),
            ("tune.models", |c| c.tune.models = vec![TunedModel::Reclora; 2]),
            ("tune.models", |c| c.tune.models.push(TunedModel::LoraCrm)),
            ("crm.holdout", |c| c.crm.holdout = 1.0),
            ("crm.holdout", |c| c.tune.prior = Prior::Crm),
            ("adapter.head", |c| (c.tune.prior, c.crm.holdout) = (Prior::Crm, 0.2)),
            ("tune.valid_samples", |c| {
                (c.tune.prior, c.crm.holdout) = (Prior::Crm, 0.2);
                (c.adapter.head, c.tune.valid_samples) = (Head::Ctr1, 0);
            }),
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

    #[test]
    fn all_is_found_at_once_and_no_conflict_with_what_is_wrong_by_itself() {
        let mut config = Config::default();
        (config.adapter.experts, config.adapter.top_k) = (0, 9);
        (config.tune.micro_batches, config.crm.holdout) = (6, 1.5);
        config.runtime.reduction = Reduction::Fastest;
        let mut problems = check("", &config);
        config.add_conflicts(1, &mut problems);
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
        let expected =
            ["adapter.experts", "crm.holdout", "tune.micro_batches", "runtime.reduction"];
        assert_eq!(fields, expected);
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
