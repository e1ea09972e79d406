//! The names of the files that stages leave in their directories, for other stages and for people.

/// `embed`: the item vectors.
pub const EMBEDDINGS: &str = "embeddings.shard";
/// `pretrain`: the CRM of all of train.
pub const CRM: &str = "crm.safetensors";
/// `pretrain`: the CRM of train without the holdout.
pub const EARLY_CRM: &str = "early.safetensors";
/// `pretrain`: the CRM of all of train that reads no vectors of items, where the run's CRM does.
pub const CRM_NO_VECTORS: &str = "no_vectors.safetensors";
/// `pretrain`, `tune`: curves of the training.
pub const HISTORY: &str = "history.json";
/// `tune`: an adapter.
pub const ADAPTER: &str = "adapter_model.safetensors";
/// `tune`: how much of what the LLM adds to the CRM's logit is believed.
pub const GAIN: &str = "gain.json";
/// `tune`, `export`: directory of the plain LoRA beside the adapter.
pub const PLAIN_LORA: &str = "plain_lora";
/// `tune`, `export`: directory of the plain LoRA that starts from the CRM.
pub const PLAIN_LORA_CRM: &str = "plain_lora_crm";
/// `evaluate`: what each model says of test.
pub const TEST: &str = "test.parquet";
/// `evaluate`: what each model says of valid.
pub const VALID: &str = "valid.parquet";
/// `evaluate`: figures of every model.
pub const METRICS: &str = "metrics.json";
/// `export`: the bank of experts and its gates.
pub const BANK: &str = "bank.safetensors";
/// `export`: a trained head, which PEFT's format of a LoRA has no place for.
pub const HEAD: &str = "head.safetensors";
/// `export`: a prompt's tokens and the logits after it: what the adapter should give elsewhere. It is the first file of
/// an export, by which a directory is known as one.
pub const EXAMPLE: &str = "example.json";
