//! The experiment: every setting of every stage, one struct per section of the TOML file.
//!
//! Each stage is a function of its own section (plus its inputs and the seed), so a section holds
//! exactly what its stage reads: changing `[tune]` must not rebuild `dataset/`.

mod adapter;
mod runtime;
mod training;
mod validate;

#[cfg(not(feature = "cuda"))]
pub(crate) use validate::no_cuda;

use std::path::PathBuf;

pub use adapter::{GateInput, Head, MixForm};
pub use reclora_comm::Reduction;
use reclora_storage::protocol::LabelRule;
use reclora_storage::raw::{ColumnMapping, DatasetFormat, Duplicates};
pub use runtime::{CommBackend, Device, EmbeddingSharding, RuntimeConfig};
use serde::{Deserialize, Serialize};
pub use training::{EmbeddingOptimizer, FewShotSampler, LimitOrder};

use crate::backbone::{Projection, WeightType};

/// One experiment, as read from a TOML file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A short name, shown in tables and reports.
    pub name: String,
    /// Seed of every random choice. Same config and seed: the same bits.
    pub seed: u64,
    /// Where the run is kept, unless `--run-dir` says otherwise. Relative to the working directory.
    pub run_dir: PathBuf,
    /// Raw ratings and the protocol that turns them into samples.
    pub data: DataConfig,
    /// The frozen LLM.
    pub backbone: BackboneSection,
    /// Which history items are shown to the LLM and to the CRM.
    pub retrieve: RetrieveConfig,
    /// The conventional recommendation model.
    pub crm: CrmConfig,
    /// How the text of a sample is written.
    pub prompt: PromptConfig,
    /// The personalised LoRA.
    pub adapter: AdapterConfig,
    /// Tuning of the adapters on the few-shot set.
    pub tune: TuneConfig,
    /// Scoring of the test set.
    pub evaluate: EvaluateConfig,
    /// What is exported besides the bank of experts.
    pub export: ExportConfig,
    /// Processes, threads and device.
    pub runtime: RuntimeConfig,
}

/// `[data]`: raw ratings and the protocol that turns them into samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Layout of the raw files: `movietweetings`, `movielens_100k`, `movielens_1m`, `movielens_10m`, `movielens_25m` (also 20M and 32M), `bookcrossing`, `goodreads`, or `csv` or `parquet` with the columns that `[data.columns]` names.
    pub format: DatasetFormat,
    /// Directory of the raw files (each plain or `.gz`). Relative to the config file.
    pub path: PathBuf,
    /// Keep users and items with at least this many ratings, repeated until stable; 0 or 1 keeps all.
    pub k_core: u32,
    /// Drop samples with fewer earlier interactions of the user than this.
    pub min_history: u32,
    /// When a rating counts as "like": `{ greater = 3.0 }` or `{ at_least = 8.0 }`.
    pub label: LabelRule,
    /// Shares of train, valid and test in global time order.
    pub split: [f64; 3],
    /// An item that a user has rated more than once, and an id that a table of users or items has more than once: `refuse` it with an error, or keep the `first` or the `last` (of ratings by time, where times are equal and in tables by row) and count the others.
    pub duplicates: Duplicates,
    /// Memory that ratings may take while they are prepared, in MiB, at least 16; what does not fit is sorted in temporary files of the run directory. Users and items come on top. Never changes the result.
    pub memory_limit_mib: u64,
    /// Which columns of which tables hold what. Only for format = "csv" and "parquet".
    pub columns: ColumnMapping,
}

/// `[backbone]`: the frozen LLM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackboneSection {
    /// Hugging Face directory: config.json, model.safetensors (or an index with shards), tokenizer.json. Relative to the config file.
    pub path: PathBuf,
    /// How its matrices are kept in memory: `f32`, `bf16` (half the memory; on CPUs with bf16 instructions twice the speed) or `q8_0` (about a quarter; computes in f32).
    pub weights: WeightType,
}

/// `[retrieve]`: item embeddings and which history items a sample is shown with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetrieveConfig {
    /// Dimensions kept by the PCA of the item embeddings (at most the backbone's hidden size).
    pub pca_dimensions: usize,
    /// History items shown to the LLM (the paper's K).
    pub text_k: usize,
    /// Which history items, in which order, reach the prompt.
    pub text_order: Order,
    /// History items shown to the CRM (the paper's ctr_K).
    pub crm_k: usize,
    /// Which history items reach the CRM: `sequential` is SIM, `recent` is DIN.
    pub crm_order: Order,
}

/// Choice and order of history items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The last K, chronological.
    Recent,
    /// The K most similar to the target, chronological (the paper's).
    Sequential,
    /// The K most similar, most similar first.
    High,
    /// The K most similar, most similar last.
    Low,
}

/// `[crm]`: the DIN/SIM network and its training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrmConfig {
    /// Which network it is.
    pub network: CrmNetwork,
    /// Width e of the shared embedding table.
    pub embedding_dim: usize,
    /// Width H of the hidden layers.
    pub hidden_dim: usize,
    /// Hidden layers of the prediction network (n_l).
    pub num_layers: usize,
    /// Hidden layers of the attention network (n_a).
    pub num_attention_layers: usize,
    /// Dropout of the prediction and attention networks while training.
    pub dropout: f32,
    /// Learning rate of AdamW.
    pub learning_rate: f32,
    /// Weight decay of AdamW.
    pub weight_decay: f32,
    /// Which rows of the embedding table a step moves.
    pub embedding_optimizer: EmbeddingOptimizer,
    /// Samples per optimizer step.
    pub batch_size: usize,
    /// Pieces a batch is cut into: the unit of the canonical sum. A power of two, at least the number of ranks.
    pub micro_batches: usize,
    /// Largest number of epochs.
    pub epochs: usize,
    /// Stop after this many epochs without a better valid AUC.
    pub patience: usize,
    /// Train samples get the representation of a CRM that has not seen them: one of this many, each
    /// trained on the rest of train. 0: all of the one CRM.
    pub folds: usize,
    /// What the gate reads: `final` (last hidden layer), `hidden` (its input) or `user`.
    pub representation: Representation,
}

/// The networks of a CRM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CrmNetwork {
    /// Attention over the history (DIN); over a retrieved one, SIM.
    #[default]
    Din,
}

/// What the CRM hands to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Representation {
    /// r, the output of the last hidden layer, width H.
    Final,
    /// z = flatten([fields; u]), the input of the prediction network.
    Hidden,
    /// `[E[user]; mean of h over the history]`.
    User,
}

/// `[prompt]`: how the text of a sample is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptConfig {
    /// Template file. Relative to the config file.
    pub template: PathBuf,
    /// Cut prompts at this many tokens (oldest history lines first). 0: the backbone's limit, at most 2048.
    pub max_tokens: usize,
}

/// `[adapter]`: the personalised LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterConfig {
    /// Number N of meta-LoRAs per adapted projection. 1 is plain LoRA, without a gate.
    pub experts: usize,
    /// Rank r of each expert.
    pub rank: usize,
    /// LoRA scale: the update is multiplied by lora_alpha / rank.
    pub lora_alpha: f32,
    /// Softmax temperature T of the gate.
    pub temperature: f32,
    /// `factor` (published code) or `product` (paper text).
    pub form: MixForm,
    /// Take the square root of the mixture weights.
    pub sqrt_alpha: bool,
    /// Experts a sample is given: those of the largest gate logits, the others get weight 0. 0 is all (soft routing).
    pub top_k: usize,
    /// What the gate reads: `sample` (the CRM's representation, once per sample), `token` (that and the module's input, for every token) or `attention` (the representation as query, each expert's weights as key).
    pub gate: GateInput,
    /// Width of the `sample` gate's hidden layer, and of the `attention` gate's queries, keys and hidden layer.
    pub gate_hidden: usize,
    /// Dropout inside the `sample` gate while tuning.
    pub gate_dropout: f32,
    /// Adapted projections.
    pub targets: Vec<Projection>,
    /// What turns the final hidden state into an answer: `lm`, `ctr2` or `ctr1`.
    pub head: Head,
    /// File of a trained plain LoRA (`adapter_model.safetensors` in the `adapter/` or `adapter/plain_lora/` of another run) that stays frozen: tuned are scales of its rank and of its outputs. Empty: none. Relative to the config file.
    pub scale_of: PathBuf,
}

/// `[tune]`: tuning of the adapters on the few-shot set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TuneConfig {
    /// Size of the few-shot set, drawn from train; smaller sets are prefixes of larger ones.
    pub few_shot: usize,
    /// How it is drawn.
    pub few_shot_sampler: FewShotSampler,
    /// Passes over the few-shot set.
    pub epochs: usize,
    /// Samples per optimizer step, over all ranks.
    pub global_batch: usize,
    /// Pieces a global batch is cut into: the unit of the canonical sum. A power of two, at least the number of ranks.
    pub micro_batches: usize,
    /// Peak learning rate of AdamW; it decays linearly to 0.
    pub learning_rate: f32,
    /// Weight decay of AdamW.
    pub weight_decay: f32,
    /// Gradients are scaled down to this norm.
    pub max_grad_norm: f32,
    /// Write a checkpoint every this many steps.
    pub checkpoint_every: u64,
    /// Valid samples scored after each epoch (0: none); the best epoch is not selected, only shown.
    pub valid_samples: usize,
    /// Which of the valid samples: `sample` draws them with the seed, `first` takes the first in time.
    pub valid_order: LimitOrder,
    /// Also tune plain LoRA (N = 1, no gate) with the same settings, as a baseline.
    pub plain_lora: bool,
}

/// `[evaluate]`: scoring of the test set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateConfig {
    /// Score only this many samples of the test split (0: all of it); smaller limits are subsets of larger ones.
    pub limit: u64,
    /// Which of the test samples: `sample` draws them with the seed, `first` takes the first in time, a handful of users.
    pub limit_order: LimitOrder,
    /// Samples per unit of work; also what a killed run loses at most per rank.
    pub chunk_size: u64,
    /// Resamples of the users for the 95 % bootstrap intervals.
    pub bootstrap: usize,
}

/// `[export]`: what is exported besides the bank of experts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportConfig {
    /// `user:item` raw ids whose mixed adapters are written as PEFT directories; empty: that of the first test sample.
    pub pairs: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "experiment".into(),
            seed: 42,
            run_dir: "runs/experiment".into(),
            data: DataConfig::default(),
            backbone: BackboneSection::default(),
            retrieve: RetrieveConfig::default(),
            crm: CrmConfig::default(),
            prompt: PromptConfig::default(),
            adapter: AdapterConfig::default(),
            tune: TuneConfig::default(),
            evaluate: EvaluateConfig::default(),
            export: ExportConfig::default(),
            runtime: RuntimeConfig::default(),
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            format: DatasetFormat::Movietweetings,
            path: "data/movietweetings-100k".into(),
            k_core: 5,
            min_history: 5,
            label: LabelRule::AtLeast(8.0),
            split: [0.8, 0.1, 0.1],
            duplicates: Duplicates::Refuse,
            memory_limit_mib: 1024,
            columns: ColumnMapping::default(),
        }
    }
}

impl Default for BackboneSection {
    fn default() -> Self {
        Self { path: "models/stories260k".into(), weights: WeightType::F32 }
    }
}

impl Default for RetrieveConfig {
    fn default() -> Self {
        Self {
            pca_dimensions: 512,
            text_k: 10,
            text_order: Order::Sequential,
            crm_k: 60,
            crm_order: Order::Sequential,
        }
    }
}

impl Default for CrmConfig {
    fn default() -> Self {
        Self {
            network: CrmNetwork::default(),
            embedding_dim: 64,
            hidden_dim: 256,
            num_layers: 3,
            num_attention_layers: 1,
            dropout: 0.1,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            embedding_optimizer: EmbeddingOptimizer::Adamw,
            batch_size: 256,
            micro_batches: 8,
            epochs: 10,
            patience: 2,
            folds: 0,
            representation: Representation::Final,
        }
    }
}

impl Default for PromptConfig {
    fn default() -> Self {
        Self { template: "prompts/movietweetings.toml".into(), max_tokens: 0 }
    }
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            experts: 8,
            rank: 8,
            lora_alpha: 16.0,
            temperature: 5.0,
            form: MixForm::Factor,
            sqrt_alpha: false,
            top_k: 0,
            gate: GateInput::Sample,
            gate_hidden: 60,
            gate_dropout: 0.1,
            targets: vec![Projection::QProj, Projection::VProj],
            head: Head::Lm,
            scale_of: PathBuf::new(),
        }
    }
}

impl Default for TuneConfig {
    fn default() -> Self {
        Self {
            few_shot: 70_000,
            few_shot_sampler: FewShotSampler::Uniform,
            epochs: 5,
            global_batch: 256,
            micro_batches: 8,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            checkpoint_every: 20,
            valid_samples: 512,
            valid_order: LimitOrder::Sample,
            plain_lora: true,
        }
    }
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        Self { limit: 0, limit_order: LimitOrder::Sample, chunk_size: 256, bootstrap: 1000 }
    }
}
