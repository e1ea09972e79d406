//! `[runtime]`: where and how a run is computed.

use reclora_comm::{Reduction, Wire};
use reclora_storage::mmap::Access;
use serde::{Deserialize, Serialize};

/// `[runtime]`: processes, threads and device. Nothing here changes a result, but for `device` (a
/// GPU rounds differently), `reduction` and `gradient_wire`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// Rank processes on this machine.
    pub nproc_per_node: usize,
    /// Compute threads per rank; 0 shares the cores among the ranks.
    pub threads_per_rank: usize,
    /// What computes the LLM: `cpu`, or `cuda` in builds that have it.
    pub device: Device,
    /// How ranks exchange data: `tcp`, or `nccl` in builds that have it.
    pub backend: CommBackend,
    /// In which order gradients are summed: `canonical` (the same bits with 1, 2, 4, 8, … ranks), or
    /// `fastest`, as NCCL likes it (only with `nccl`; the bits depend on the number of ranks).
    pub reduction: Reduction,
    /// In what gradients travel between ranks: `f32`, or `bf16` (half the bytes; added in f32, and the sum
    /// rounded; only with `tcp`; the bits depend on the number of ranks).
    pub gradient_wire: Wire,
    /// MiB of the gradient that travel together, at most: smaller buckets leave earlier, while the rest
    /// is still computed; larger ones take fewer messages.
    pub bucket_mib: usize,
    /// Where the CRM's embedding table is while it is trained: on every rank (`data_parallel`), or each row
    /// with its optimizer state on one of them (`row_wise`), for tables that are too large for one.
    pub embedding_sharding: EmbeddingSharding,
    /// Ranks compare their parameters and optimizer state, by hashes, every this many steps; 0 never. One
    /// that differs is named.
    pub replica_check_every: u64,
    /// How files are brought into memory: `mmap` (shared by all ranks, no copy), `pread` (each rank
    /// reads a copy), or `automatic`: `pread` on network file systems (NFS, SMB, Lustre, GPFS, BeeGFS,
    /// FUSE, Ceph and the like), where a file that vanishes would end the process, and `mmap` elsewhere.
    pub file_access: Access,
    /// On which address of this machine ranks reach each other: the name of an interface (`eth1`) or a
    /// subnet (`10.0.0.0/8`, `fd00::/8`). Empty is that of `--rdzv-endpoint`, or else the loopback.
    pub interface: String,
    /// Seconds a rank waits for another in one collective.
    pub collective_timeout: u64,
    /// Seconds all ranks have to come to the rendezvous.
    pub rendezvous_timeout: u64,
    /// Seconds without a sign of life after which a rank is dead: a stopped process, a machine that swaps.
    pub heartbeat_timeout: u64,
    /// Seconds without progress after which a rank is dead; 0 never. It must be longer than the longest
    /// piece of work, such as the scoring of one chunk.
    pub progress_timeout: u64,
    /// Seconds that ranks have to finish their step and save it when asked to (SIGUSR1, SIGTERM).
    pub pause_timeout: u64,
    /// Seconds that ranks have to save what they have in memory when another has died and the last checkpoint
    /// is more than 5 s old; 0 ends them at once.
    pub recovery_timeout: u64,
}

impl RuntimeConfig {
    /// Values of a bucket of the gradient.
    pub fn bucket_values(&self) -> usize {
        self.bucket_mib.saturating_mul((1 << 20) / size_of::<f32>())
    }
}

/// What computes the LLM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The CPU.
    Cpu,
    /// One NVIDIA GPU per rank: refused by builds without CUDA.
    Cuda,
}

/// How ranks exchange data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommBackend {
    /// TCP, on any machine.
    Tcp,
    /// Sums of gradients by GPUs over NCCL, all else over TCP: refused by builds without CUDA.
    Nccl,
}

/// Where an embedding table is while it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingSharding {
    /// A copy on every rank, of which the rows that a step touches are brought up to date.
    DataParallel,
    /// Each row on one rank, brought to others for the step that reads it.
    RowWise,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            nproc_per_node: 1,
            threads_per_rank: 0,
            device: Device::Cpu,
            backend: CommBackend::Tcp,
            reduction: Reduction::Canonical,
            gradient_wire: Wire::F32,
            bucket_mib: 4,
            embedding_sharding: EmbeddingSharding::DataParallel,
            replica_check_every: 100,
            file_access: Access::Automatic,
            interface: String::new(),
            collective_timeout: 120,
            rendezvous_timeout: 60,
            heartbeat_timeout: 30,
            progress_timeout: 1800,
            pause_timeout: 60,
            recovery_timeout: 10,
        }
    }
}
