//! `[runtime]`: where and how a run is computed.

use reclora_comm::{Reduction, Wire};
use reclora_storage::mmap::Access;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smart_default::SmartDefault;

/// `[runtime]`.
#[derive(Clone, Debug, PartialEq, SmartDefault, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// Rank processes on this machine (or `--nproc-per-node`).
    #[default = 1]
    #[schemars(range(min = 1))]
    pub nproc_per_node: usize,
    /// Compute threads per rank; 0 shares the cores among the ranks.
    pub threads_per_rank: usize,
    /// What computes the LLM.
    #[default(Device::Cpu)]
    pub device: Device,
    /// How ranks exchange data.
    #[default(CommBackend::Tcp)]
    pub backend: CommBackend,
    /// In which order gradients are summed.
    #[default(Reduction::Canonical)]
    pub reduction: Reduction,
    /// In what gradients travel between ranks.
    pub gradient_wire: Wire,
    /// MiB of the gradient that travel together, at most: smaller buckets leave earlier, while the rest
    /// is still computed; larger ones take fewer messages.
    #[default = 4]
    #[schemars(range(min = 1))]
    pub bucket_mib: usize,
    /// Where the CRM's embedding table is while it is trained; the bits are the same.
    #[default(EmbeddingSharding::DataParallel)]
    pub embedding_sharding: EmbeddingSharding,
    /// Ranks compare their parameters and optimizer state, by hashes, every this many steps; 0 never. One
    /// that differs is named.
    #[default = 100]
    pub replica_check_every: u64,
    /// How files are brought into memory.
    pub file_access: Access,
    /// On which address of this machine ranks reach each other: the name of an interface (`eth1`) or a
    /// subnet (`10.0.0.0/8`, `fd00::/8`). Empty is that of `--rdzv-endpoint`, or else the loopback.
    pub interface: String,
    /// Seconds a rank waits for another in one collective.
    #[default = 120]
    #[schemars(range(min = 1))]
    pub collective_timeout: u64,
    /// Seconds all ranks have to come to the rendezvous, where they find each other as a stage starts.
    #[default = 60]
    #[schemars(range(min = 1))]
    pub rendezvous_timeout: u64,
    /// Seconds without a sign of life after which a rank is dead: a stopped process, a machine that swaps.
    #[default = 30]
    #[schemars(range(min = 1))]
    pub heartbeat_timeout: u64,
    /// Seconds without progress after which a rank is dead; 0 never. It must be longer than the longest
    /// piece of work, such as the scoring of one chunk.
    #[default = 1800]
    pub progress_timeout: u64,
    /// Seconds that ranks have to finish their step and save it when asked to (SIGUSR1, SIGTERM).
    #[default = 60]
    #[schemars(range(min = 1))]
    pub pause_timeout: u64,
    /// Seconds that ranks have to save what they have in memory when another has died and the last checkpoint
    /// is more than 5 s old; 0 ends them at once.
    #[default = 10]
    pub recovery_timeout: u64,
}

impl RuntimeConfig {
    /// Values of a bucket of the gradient.
    pub fn bucket_values(&self) -> usize {
        self.bucket_mib.saturating_mul((1 << 20) / size_of::<f32>())
    }
}

/// What computes the LLM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The CPU.
    Cpu,
    /// One NVIDIA GPU per rank: refused by builds without CUDA.
    Cuda,
}

/// How ranks exchange data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommBackend {
    /// TCP, on any machine.
    Tcp,
    /// Sums of gradients by GPUs over NCCL, all else over TCP: refused by builds without CUDA.
    Nccl,
}

/// Where an embedding table is while it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingSharding {
    /// A copy on every rank, of which the rows that a step touches are brought up to date.
    DataParallel,
    /// Each row with its optimizer state on one rank, brought to others for the step that reads it: for tables
    /// that are too large for one rank.
    RowWise,
}
