//! Sums over NCCL, on one GPU per rank.
//!
//! TCP remains the control plane: it brings ranks together, carries everything but sums, and is asked
//! who is missing when NCCL can't say. No wait is unbounded: the communicator is non-blocking, and
//! whatever has not happened by the deadline is aborted. A buffer is the host's: it is copied to the GPU
//! and, summed, back.

mod link;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError};
use candle_core::op::Add;
use candle_core::{CudaDevice, CudaStorage, Device, Layout};

use crate::communicator::{Communicator, Reduction, first_nan, refuse_nan};
use crate::error::{CommError, Result};
use crate::record::Record;
use crate::tree;
use link::{Link, Step};

/// A communicator whose sums are made by GPUs. The GPU and NCCL are first touched by the first sum.
pub struct NcclCommunicator<C> {
    control: C,
    ordinal: usize,
    reduction: Reduction,
    timeout: Duration,
    sums: u64,
    /// Sums that all ranks have agreed to be the same: name and length.
    agreed: BTreeSet<(String, usize)>,
    state: State,
}

enum State {
    Unused,
    Ready(Gpu),
    /// Why NCCL can't be used any more.
    Failed(String),
}

/// What of a sum a rank needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    OwnSlice,
}

/// The slice of a buffer that a rank owns: all have one length, but for the last ones.
fn slice(rank: usize, world_size: usize, length: usize) -> Range<usize> {
    let each = length.div_ceil(world_size);
    (each * rank).min(length)..(each * (rank + 1)).min(length)
}

/// A rank's GPU and its connection to the others'.
struct Gpu {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    link: Link,
}

/// NCCL's version, as in 2.28.9.
///
/// # Errors
/// The library says that it failed.
pub fn nccl_version() -> Result<String> {
    let version = link::version().map_err(|why| CommError::system("ask NCCL's version", why))?;
    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

impl<C: Communicator> NcclCommunicator<C> {
    /// Sums by GPU `ordinal` of this machine; everything else, and finding each other, by `control`.
    /// `timeout` bounds each sum and NCCL's start.
    pub fn new(control: C, ordinal: usize, reduction: Reduction, timeout: Duration) -> Self {
        let (sums, agreed, state) = (0, BTreeSet::new(), State::Unused);
        Self { control, ordinal, reduction, timeout, sums, agreed, state }
    }

    /// Opens the GPU and joins the others. All ranks learn who could not, before anyone waits in NCCL.
    fn start(&mut self) -> Result<Gpu> {
        let opened = Device::new_cuda_with_stream(self.ordinal)
            .and_then(|device| device.as_cuda_device().cloned());
        let said = match &opened {
            Ok(_) => String::new(),
            Err(why) => format!("can't open GPU {}: {why}", self.ordinal),
        };
        let all = self.control.all_gather("readiness for NCCL", said.as_bytes())?;
        if let Some((rank, why)) = all.iter().enumerate().find(|(_, why)| !why.is_empty()) {
            let why = String::from_utf8_lossy(why);
            return Err(CommError::Nccl { what: format!("rank {rank} {why}") });
        }
        let device = opened.map_err(|why| CommError::Nccl { what: why.to_string() })?;
        let id = self.unique_id()?;
        let stream = device.cuda_stream();
        let (rank, world_size) = (self.rank(), self.world_size());
        let joined = stream
            .context()
            .bind_to_thread()
            .map_err(|why| why.to_string())
            .and_then(|()| Link::start(id, rank, world_size));
        let mut link = joined.map_err(|why| CommError::Nccl { what: format!("start: {why}") })?;
        let until = Instant::now() + self.timeout;
        match wait(&mut link, until, || Ok(true)) {
            Ok(()) => Ok(Gpu { device, stream, link }),
            Err(why) => {
                link.abort();
                Err(self.blame("NCCL's start", why))
            }
        }
    }

    /// NCCL's name for this gang, made by rank 0. Empty bytes say that it could not be made, so that
    /// nobody waits for it.
    fn unique_id(&mut self) -> Result<link::UniqueId> {
        let made = if self.rank() == 0 { Some(link::unique_id()) } else { None };
        let mut bytes = match &made {
            Some(Ok(id)) => link::to_bytes(id),
            _ => Vec::new(),
        };
        self.control.broadcast("NCCL's unique id", 0, &mut bytes)?;
        let why = match made {
            Some(Err(why)) => why,
            _ => "rank 0 could not make it".to_owned(),
        };
        let what = format!("unique id: {why}");
        link::from_bytes(&bytes).ok_or(CommError::Nccl { what })
    }

    /// The error for a failure of NCCL: whoever the control plane finds missing, or what NCCL said.
    fn blame(&mut self, name: &str, why: String) -> CommError {
        self.state = State::Failed(format!("{name} failed: {why}"));
        // NCCL need not say the same to all ranks; they must ask the same.
        let asked = format!("{name}, after NCCL failed");
        match self.control.barrier(&asked) {
            Err(error) if error.is_peer_lost() => error,
            _ => CommError::Nccl { what: format!("{name}: {why}") },
        }
    }

    /// Once per name and length: ranks that would sum different things find out before NCCL, which
    /// would hang or mix them up.
    fn agree(&mut self, name: &str, length: usize) -> Result<()> {
        if self.agreed.contains(&(name.to_owned(), length)) {
            return Ok(());
        }
        let ours = format!("all_reduce \"{name}\" #{} of {length} elements", self.sums);
        let all = self.control.all_gather("agreement on a sum", ours.as_bytes())?;
        let other = all.iter().enumerate().find(|(_, theirs)| theirs[..] != *ours.as_bytes());
        if let Some((rank, theirs)) = other {
            let theirs = String::from_utf8_lossy(theirs).into_owned();
            return Err(CommError::Mismatch { rank, ours, theirs });
        }
        self.agreed.insert((name.to_owned(), length));
        Ok(())
    }
}

impl<C: Communicator> Communicator for NcclCommunicator<C> {
    fn rank(&self) -> usize {
        self.control.rank()
    }

    fn world_size(&self) -> usize {
        self.control.world_size()
    }

    fn all_reduce_sum(&mut self, name: &str, buffer: &mut [f32]) -> Result<()> {
        self.sum(name, buffer, Wanted::All).map(drop)
    }

    fn reduce_scatter_sum(&mut self, name: &str, buffer: &mut [f32]) -> Result<Range<usize>> {
        self.sum(name, buffer, Wanted::OwnSlice)
    }

    fn all_gather(&mut self, name: &str, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.control.all_gather(name, bytes)
    }

    fn all_to_all(&mut self, name: &str, pieces: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        self.control.all_to_all(name, pieces)
    }

    fn broadcast(&mut self, name: &str, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        self.control.broadcast(name, root, bytes)
    }

    fn barrier(&mut self, name: &str) -> Result<()> {
        self.control.barrier(name)
    }

    fn records(&self) -> Vec<Record> {
        self.control.records()
    }
}

impl<C: Communicator> NcclCommunicator<C> {
    /// The sum over ranks, in the buffer; returns this rank's slice of it.
    fn sum(&mut self, name: &str, buffer: &mut [f32], wanted: Wanted) -> Result<Range<usize>> {
        if let State::Failed(why) = &self.state {
            return Err(CommError::Nccl { what: format!("{name}: {why}") });
        }
        self.agree(name, buffer.len())?;
        self.sums += 1;
        if buffer.is_empty() {
            return Ok(0..0);
        }
        let (rank, world_size) = (self.rank(), self.world_size());
        let own = slice(rank, world_size, buffer.len());
        let checked = if wanted == Wanted::All { 0..buffer.len() } else { own.clone() };
        let mut gpu = match std::mem::replace(&mut self.state, State::Unused) {
            State::Ready(gpu) => gpu,
            _ => self.start()?,
        };
        let until = Instant::now() + self.timeout;
        let summed = match self.reduction {
            Reduction::Fastest => gpu.sum(buffer, until),
            Reduction::Canonical => gpu.sum_in_order(buffer, rank, world_size, wanted, until),
        };
        match summed {
            Ok(()) => self.state = State::Ready(gpu),
            Err(why) => {
                gpu.link.abort();
                return Err(self.blame(name, why));
            }
        }
        let mut nan = first_nan(&buffer[checked.clone()]).map(|index| checked.start + index);
        if wanted == Wanted::OwnSlice {
            nan = self.first_of_all(nan)?;
        }
        refuse_nan(name, self.sums - 1, nan)?;
        Ok(own)
    }

    /// The smallest of the ranks' indices.
    fn first_of_all(&mut self, index: Option<usize>) -> Result<Option<usize>> {
        let bytes = index.map_or(Vec::new(), |index| (index as u64).to_le_bytes().to_vec());
        let all = self.control.all_gather("values that are not numbers", &bytes)?;
        let indices = all.iter().filter_map(|bytes| bytes.as_slice().try_into().ok());
        Ok(indices.map(|bytes| u64::from_le_bytes(bytes) as usize).min())
    }
}

impl Gpu {
    /// The sum as NCCL makes it.
    fn sum(&mut self, buffer: &mut [f32], until: Instant) -> Result<(), String> {
        let mut on_gpu = self.stream.clone_htod(&*buffer).map_err(text)?;
        if let Err(why) = self.run(vec![Step::Sum(&mut on_gpu)], until) {
            return Err(unfinished(on_gpu, why));
        }
        self.stream.memcpy_dtoh(&on_gpu, buffer).map_err(text)?;
        self.stream.synchronize().map_err(text)
    }

    /// Every rank owns a slice, gets the others' pieces of it, adds them in tree order, and gives the
    /// sum to all, if they want it: the bytes of a ring, in the order of the tree.
    fn sum_in_order(
        &mut self,
        buffer: &mut [f32],
        rank: usize,
        world_size: usize,
        wanted: Wanted,
        until: Instant,
    ) -> Result<(), String> {
        // Slices of one length, the last ones filled up with zeros.
        let length = buffer.len().div_ceil(world_size);
        let mut whole = self.stream.alloc_zeros::<f32>(length * world_size).map_err(text)?;
        self.stream.memcpy_htod(buffer, &mut whole.slice_mut(..buffer.len())).map_err(text)?;
        let slice = |of: usize| length * of..length * (of + 1);
        let mut pieces = self.slices(world_size, length)?;
        self.stream.memcpy_dtod(&whole.slice(slice(rank)), &mut pieces[rank]).map_err(text)?;
        let mut steps = Vec::with_capacity(2 * world_size);
        for (peer, piece) in pieces.iter_mut().enumerate().filter(|(peer, _)| *peer != rank) {
            steps.push(Step::Send(peer, whole.slice(slice(peer))));
            steps.push(Step::Receive(peer, piece));
        }
        if let Err(why) = self.run(steps, until) {
            return Err(unfinished((whole, pieces), why));
        }
        let summed = self.fold(pieces, length)?;
        let sum = summed.as_cuda_slice::<f32>().map_err(text)?;
        if wanted == Wanted::OwnSlice {
            let own = self::slice(rank, world_size, buffer.len());
            let part = &mut buffer[own.clone()];
            self.stream.memcpy_dtoh(&sum.slice(..part.len()), part).map_err(text)?;
            return self.stream.synchronize().map_err(text);
        }
        let mut sums = self.slices(world_size, length)?;
        self.stream.memcpy_dtod(sum, &mut sums[rank]).map_err(text)?;
        let mut steps = Vec::with_capacity(2 * world_size);
        for (peer, theirs) in sums.iter_mut().enumerate().filter(|(peer, _)| *peer != rank) {
            steps.push(Step::Send(peer, sum.slice(..)));
            steps.push(Step::Receive(peer, theirs));
        }
        if let Err(why) = self.run(steps, until) {
            return Err(unfinished((summed, sums), why));
        }
        for (theirs, part) in sums.iter().zip(buffer.chunks_mut(length)) {
            self.stream.memcpy_dtoh(&theirs.slice(..part.len()), part).map_err(text)?;
        }
        self.stream.synchronize().map_err(text)
    }

    fn slices(&self, count: usize, length: usize) -> Result<Vec<CudaSlice<f32>>, String> {
        (0..count).map(|_| self.stream.alloc_zeros(length).map_err(text)).collect()
    }

    /// The sum of all ranks' pieces in tree order, by candle's own addition.
    fn fold(&self, pieces: Vec<CudaSlice<f32>>, length: usize) -> Result<CudaStorage, String> {
        let layout = Layout::contiguous(length);
        let storage = |piece| Ok(CudaStorage::wrap_cuda_slice(piece, self.device.clone()));
        let sum = tree::fold(pieces.into_iter().map(storage).collect(), |left, right| {
            let added = match (&*left, right) {
                (Ok(a), Ok(b)) => CudaStorage::binary_impl::<Add>(a, &b, &layout, &layout),
                (Ok(_), Err(error)) => Err(error),
                (Err(_), _) => return,
            };
            *left = added;
        });
        sum.ok_or_else(|| "there are no ranks".to_owned())?.map_err(text)
    }

    /// Starts the steps together and waits until they have happened.
    fn run(&mut self, steps: Vec<Step<'_>>, until: Instant) -> Result<(), String> {
        self.link.group(&self.stream, steps)?;
        let (stream, mut event) = (&self.stream, None);
        wait(&mut self.link, until, || {
            // Only now is everything on the stream.
            if event.is_none() {
                event = Some(stream.record_event(None)?);
            }
            event.as_ref().map_or(Ok(false), CudaEvent::try_is_complete)
        })
    }
}

/// The error of steps that did not happen. NCCL may still use their memory until it is aborted, which
/// may take for ever: it is never freed. The process has failed and ends.
fn unfinished<M>(memory: M, why: String) -> String {
    std::mem::forget(memory);
    why
}

/// Waits until NCCL has nothing in progress and then `done`.
fn wait(
    link: &mut Link,
    until: Instant,
    mut done: impl FnMut() -> Result<bool, DriverError>,
) -> Result<(), String> {
    let mut pause = Duration::from_micros(20);
    loop {
        if link.is_idle()? && done().map_err(text)? {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err("not done by the deadline: a rank did not come, or hangs".to_owned());
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(Duration::from_millis(1));
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
