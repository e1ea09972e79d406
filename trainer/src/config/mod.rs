//! The experiment: every setting of every stage, one struct per section of the TOML file.
//!
//! Each stage is a function of its own section (plus its inputs and the seed), so a section holds
//! exactly what its stage reads: changing `[tune]` must not rebuild `dataset/`.
//!
//! What is said of a setting stands once, here: its doc comment, default, choices and range are what
//! `schema` derives, which validation enforces and the reference, the commented configs and editors show.

mod adapter;
mod runtime;
mod schema;
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
pub use schema::{Problem, check, choice_name, editor_schema, range, schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smart_default::SmartDefault;
pub use training::{
    Counting, EmbeddingOptimizer, FewShotSampler, ItemVectors, LimitOrder, Prior, TuneObjective,
    TunedModel,
};

use crate::backbone::{Projection, WeightType};

/// Largest width and depth of the CRM: far more than is of use, and no product of sizes overflows.
const MAX_CRM_SIZE: usize = 1 << 14;
/// Most experts, and largest rank of one: far more than is of use, and their product does not overflow.
const MAX_ADAPTER_SIZE: usize = 1 << 16;

/// One experiment, as read from a TOML file.
#[derive(Clone, Debug, PartialEq, SmartDefault, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A short name, shown in tables and reports.
    #[default = "experiment"]
    pub name: String,
    /// Seed of every random choice. The same config and seed give the same bits.
    #[default = 42]
    pub seed: u64,
    /// Where the run is kept, unless `--run-dir` says otherwise. Relative to the working directory.
    #[default(PathBuf::from("runs/experiment"))]
    pub run_dir: PathBuf,
    /// Raw ratings, and the protocol that turns them into samples.
    pub data: DataConfig,
    /// The frozen LLM.
    pub backbone: BackboneSection,
    /// Item embeddings, and which history items are shown to the LLM and to the CRM.
    pub retrieve: RetrieveConfig,
    /// The conventional recommendation model (CRM, a DIN or SIM network), trained on all of train.
    pub crm: CrmConfig,
    /// How the text of a sample is written.
    pub prompt: PromptConfig,
    /// The personalised LoRA: a bank of experts, mixed for each user and item.
    pub adapter: AdapterConfig,
    /// Tuning of the adapters on the few-shot set.
    pub tune: TuneConfig,
    /// Scoring of the test set.
    pub evaluate: EvaluateConfig,
    /// What is exported besides the bank of experts.
    pub export: ExportConfig,
    /// Processes, threads and device. Nothing here changes a result, but for `device` (a GPU rounds
    /// differently), `reduction` and `gradient_wire`.
    pub runtime: RuntimeConfig,
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq, SmartDefault, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Layout of the raw files. `reclora-launch inspect PATH` looks at files and names theirs.
    #[default(DatasetFormat::Movietweetings)]
    pub format: DatasetFormat,
    /// Directory of the raw files (each plain or `.gz`). Relative to the config file.
    #[default(PathBuf::from("data/movietweetings-100k"))]
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// Keep users and items with at least this many ratings, repeated until stable; 0 or 1 keeps all.
    #[default = 5]
    pub k_core: u32,
    /// Drop samples with fewer earlier interactions of the user than this.
    #[default = 5]
    pub min_history: u32,
    /// When a rating counts as "like".
    #[default(LabelRule::AtLeast(8.0))]
    pub label: LabelRule,
    /// Shares of train, valid and test in global time order. They sum to 1.
    #[default([0.8, 0.1, 0.1])]
    #[schemars(inner(range(min = 0.0, max = 1.0)))]
    pub split: [f64; 3],
    /// An item that a user has rated more than once, and an id that a table of users or items has more than
    /// once.
    pub duplicates: Duplicates,
    /// Memory that ratings may take while they are prepared, in MiB; what does not fit is sorted in
    /// temporary files of the run directory. Users and items come on top. Never changes the result.
    // Less makes too many temporary runs, and no machine has more.
    #[default = 1024]
    #[schemars(range(min = 16, max = 1 << 30))]
    pub memory_limit_mib: u64,
    /// Which columns of which tables hold what: only for format = "csv" and "parquet". Other formats know
    /// theirs.
    pub columns: ColumnMapping,
}

/// `[backbone]`.
#[derive(Clone, Debug, PartialEq, SmartDefault, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BackboneSection {
    /// Hugging Face directory (config.json, model.safetensors or an index with shards, tokenizer.json), or a
    /// GGUF file, which holds all of that. Relative to the config file.
    #[default(PathBuf::from("models/stories260k"))]
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// How its matrices are kept in memory.
    #[default(WeightType::F32)]
    pub weights: WeightType,
}

/// `[retrieve]`.
#[derive(Clone, Debug, PartialEq, SmartDefault, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetrieveConfig {
    /// Dimensions kept by the PCA of the item embeddings (at most the backbone's hidden size).
    #[default = 512]
    #[schemars(range(min = 1))]
    pub pca_dimensions: usize,
    /// History items shown to the LLM (the paper's K).
    #[default = 10]
    pub text_k: usize,
    /// Which history items, in which order, reach the prompt.
    #[default(Order::Sequential)]
    pub text_order: Order,
    /// History items shown to the CRM (the paper's ctr_K).
    #[default = 60]
    #[schemars(range(min = 1))]
    pub crm_k: usize,
    /// Which history items reach the CRM: `sequential` is SIM, `recent` is DIN.
    #[default(Order::Sequential)]
    pub crm_order: Order,
}

/// Choice and order of history items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// `[crm]`.
#[derive(Clone, Debug, PartialEq, SmartDefault, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CrmConfig {
    /// Which network it is.
    pub network: CrmNetwork,
    /// Width e of the shared embedding table.
    #[default = 64]
    #[schemars(range(min = 1, max = MAX_CRM_SIZE))]
    pub embedding_dim: usize,
    /// Width H of the hidden layers.
    #[default = 256]
    #[schemars(range(min = 1, max = MAX_CRM_SIZE))]
    pub hidden_dim: usize,
    /// Hidden layers of the prediction network (n_l).
    #[default = 3]
    #[schemars(range(min = 1, max = MAX_CRM_SIZE))]
    pub num_layers: usize,
    /// Hidden layers of the attention network (n_a).
    #[default = 1]
    #[schemars(range(min = 1, max = MAX_CRM_SIZE))]
    pub num_attention_layers: usize,
    /// Dropout of the prediction and attention networks while training.
    #[default = 0.1]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub dropout: f32,
    /// Learning rate of AdamW.
    #[default = 1e-3]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub learning_rate: f32,
    /// Weight decay of AdamW.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f32,
    /// Which rows of the embedding table a step moves.
    pub embedding_optimizer: EmbeddingOptimizer,
    /// Samples per optimizer step.
    #[default = 256]
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Pieces a batch is cut into: the unit of the canonical sum. A power of two, at least the number of
    /// ranks.
    #[default = 8]
    pub micro_batches: usize,
    /// Largest number of epochs.
    #[default = 10]
    #[schemars(range(min = 1))]
    pub epochs: usize,
    /// Stop after this many epochs without a better valid AUC.
    #[default = 2]
    pub patience: usize,
    /// Counters of the ratings before a sample, as inputs of the prediction network.
    pub counters: Counting,
    /// What it reads of the vectors that the LLM embeds the items' texts as; several go together. Empty: nothing.
    #[schemars(extend("uniqueItems" = true))]
    pub item_vectors: Vec<ItemVectors>,
    /// Share of train, the last of it in time, that a second CRM is trained without. The few-shot set is then drawn
    /// from that part, and the gates read the second CRM everywhere: it has seen the label of no sample that it is
    /// read for, neither while tuning nor after. 0: none, and the gates read a CRM that has seen the few-shot
    /// labels.
    #[schemars(range(min = 0.0, max = 0.9))]
    pub holdout: f64,
    /// What the gate reads of the CRM.
    #[default(Representation::Final)]
    pub representation: Representation,
}

/// The networks of a CRM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CrmNetwork {
    /// Attention over the history (DIN); over a retrieved one, SIM.
    #[default]
    Din,
}

/// What the CRM hands to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Representation {
    /// r, the output of the last hidden layer, width H.
    Final,
    /// z = flatten([fields; u; counters]), the input of the prediction network.
    Hidden,
    /// `[E[user]; mean of h over the history]`.
    User,
}

/// `[prompt]`.
#[derive(Clone, Debug, PartialEq, SmartDefault, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PromptConfig {
    /// Template file. Relative to the config file.
    #[default(PathBuf::from("prompts/movietweetings.toml"))]
    #[schemars(extend("format" = "path"))]
    pub template: PathBuf,
    /// Cut prompts at this many tokens (oldest history lines first). 0: the backbone's limit, at most 2048.
    pub max_tokens: usize,
}

/// `[adapter]`.
#[derive(Clone, Debug, PartialEq, SmartDefault, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterConfig {
    /// Number N of experts (meta-LoRAs) per adapted projection. 1 is plain LoRA, without a gate.
    #[default = 8]
    #[schemars(range(min = 1, max = MAX_ADAPTER_SIZE))]
    pub experts: usize,
    /// Rank r of each expert.
    #[default = 8]
    #[schemars(range(min = 1, max = MAX_ADAPTER_SIZE))]
    pub rank: usize,
    /// LoRA scale: the update is multiplied by lora_alpha / rank.
    #[default = 16.0]
    pub lora_alpha: f32,
    /// Softmax temperature T of the gate: higher mixes more evenly.
    #[default = 5.0]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub temperature: f32,
    /// How the experts are mixed.
    #[default(MixForm::Factor)]
    pub form: MixForm,
    /// Take the square root of the mixture weights.
    pub sqrt_alpha: bool,
    /// Experts a sample is given: those of the largest gate logits, the others get weight 0. 0 is all (soft
    /// routing).
    pub top_k: usize,
    /// What the gate reads.
    pub gate: GateInput,
    /// Width of the `sample` gate's hidden layer, and of the `attention` gate's queries, keys and hidden
    /// layer.
    #[default = 60]
    #[schemars(range(min = 1))]
    pub gate_hidden: usize,
    /// Dropout inside the `sample` gate while tuning.
    #[default = 0.1]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub gate_dropout: f32,
    /// Adapted projections, each once.
    #[default(vec![Projection::QProj, Projection::VProj])]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub targets: Vec<Projection>,
    /// What turns the last hidden state before the answer into P(like).
    pub head: Head,
    /// File of a trained plain LoRA that stays frozen: instead of experts, scales of its rank and of its
    /// outputs are tuned. It is the adapter_model.safetensors in another run's adapter/plain_lora/ (or
    /// adapter/, if that run has experts = 1). experts must then be 1, and rank, lora_alpha and targets as in
    /// that run. Empty: none. Relative to the config file.
    #[schemars(extend("format" = "path"))]
    pub scale_of: PathBuf,
}

/// `[tune]`.
#[derive(Clone, Debug, PartialEq, SmartDefault, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TuneConfig {
    /// Size of the few-shot set, drawn from train; smaller sets are prefixes of larger ones.
    #[default = 70_000]
    #[schemars(range(min = 1))]
    pub few_shot: usize,
    /// How it is drawn.
    pub few_shot_sampler: FewShotSampler,
    /// Passes over the few-shot set.
    #[default = 5]
    #[schemars(range(min = 1))]
    pub epochs: usize,
    /// Samples per optimizer step, over all ranks.
    #[default = 256]
    #[schemars(range(min = 1))]
    pub global_batch: usize,
    /// Pieces a global batch is cut into: the unit of the canonical sum. A power of two, at least the number
    /// of ranks.
    #[default = 8]
    pub micro_batches: usize,
    /// Peak learning rate of AdamW; it decays linearly to 0.
    #[default = 1e-3]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub learning_rate: f32,
    /// That of the gates. 0: learning_rate.
    #[schemars(range(min = 0.0))]
    pub gate_learning_rate: f32,
    /// That of a trained head. 0: learning_rate.
    #[schemars(range(min = 0.0))]
    pub head_learning_rate: f32,
    /// Share of the steps in which the learning rates rise from 0 to their peaks.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup: f32,
    /// Weight decay of AdamW.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f32,
    /// Gradients are scaled down to this norm.
    #[default = 1.0]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub max_grad_norm: f32,
    /// Write a checkpoint every this many steps.
    #[default = 20]
    #[schemars(range(min = 1))]
    pub checkpoint_every: u64,
    /// Valid samples scored after each epoch (0: none). Without a prior the best epoch is not selected, only shown.
    #[default = 512]
    pub valid_samples: usize,
    /// Which of the valid samples.
    pub valid_order: LimitOrder,
    /// What the score of a sample starts from.
    pub prior: Prior,
    /// What is learnt of a sample, where the LLM's own head answers; a trained head learns the answer.
    pub objective: TuneObjective,
    /// What is tuned, with the same settings: plain LoRA is a baseline.
    #[default(vec![TunedModel::Reclora, TunedModel::Lora])]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub models: Vec<TunedModel>,
}

/// `[evaluate]`.
#[derive(Clone, Debug, PartialEq, SmartDefault, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateConfig {
    /// Score only this many samples of the test split (0: all of it); smaller limits are subsets of larger
    /// ones.
    pub limit: u64,
    /// Which of the test samples.
    pub limit_order: LimitOrder,
    /// Samples per unit of work; also what a killed run loses at most per rank.
    #[default = 256]
    #[schemars(range(min = 1))]
    pub chunk_size: u64,
    /// Resamples of the users for the 95 % bootstrap intervals.
    #[default = 1000]
    pub bootstrap: usize,
}

/// `[export]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExportConfig {
    /// "user:item" raw ids whose mixed adapters are written as PEFT directories; empty: that of the first test
    /// sample.
    pub pairs: Vec<String>,
}
