//! NCCL's C interface: one communicator, non-blocking, aborted or closed exactly once.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut,
};
use candle_core::cuda_backend::cudarc::nccl::sys::{self, ncclDataType_t, ncclResult_t};

/// What names a gang of communicators.
pub type UniqueId = sys::ncclUniqueId;

/// How long the end of a healthy communicator may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Fields of NCCL's configuration that are left to it.
const UNSET: i32 = i32::MIN;

/// A communicator of NCCL. Used by one thread at a time.
pub struct Link {
    raw: sys::ncclComm_t,
    healthy: bool,
}

// SAFETY: NCCL allows any thread to use a communicator, one at a time, which `&mut` ensures.
unsafe impl Send for Link {}

/// One operation on f32 numbers of a group that happens together.
pub enum Step<'a> {
    /// To a rank.
    Send(usize, CudaView<'a, f32>),
    /// From a rank.
    Receive(usize, &'a mut CudaSlice<f32>),
    /// The sum over all ranks, in place.
    Sum(&'a mut CudaSlice<f32>),
}

/// The library's version, e.g. 22809.
pub fn version() -> Result<i32, String> {
    let mut version = 0;
    // SAFETY: the pointer is to an integer that outlives the call.
    check(unsafe { sys::ncclGetVersion(&raw mut version) })?;
    Ok(version)
}

/// A new name.
pub fn unique_id() -> Result<UniqueId, String> {
    let mut id = UniqueId { internal: [0; 128] };
    // SAFETY: the pointer is to an id that outlives the call.
    check(unsafe { sys::ncclGetUniqueId(&raw mut id) })?;
    Ok(id)
}

/// A name as bytes.
pub fn to_bytes(id: &UniqueId) -> Vec<u8> {
    id.internal.iter().flat_map(|byte| byte.to_ne_bytes()).collect()
}

/// A name of bytes; `None` where there are not as many as a name has.
pub fn from_bytes(bytes: &[u8]) -> Option<UniqueId> {
    let internal: Vec<_> =
        bytes.iter().map(|byte| std::ffi::c_char::from_ne_bytes([*byte])).collect();
    Some(UniqueId { internal: internal.try_into().ok()? })
}

impl Link {
    /// Starts joining the others of this name: it is done when the link is idle. The GPU's context
    /// must be this thread's.
    pub fn start(id: UniqueId, rank: usize, world_size: usize) -> Result<Self, String> {
        let number = |n: usize| i32::try_from(n).map_err(|_| format!("{n} ranks are too many"));
        let (rank, world_size) = (number(rank)?, number(world_size)?);
        let mut config = non_blocking();
        let mut raw = std::ptr::null_mut();
        // SAFETY: both pointers are to variables that outlive the call; NCCL copies the
        // configuration.
        let result = unsafe {
            sys::ncclCommInitRankConfig(&raw mut raw, world_size, id, rank, &raw mut config)
        };
        check(result)?;
        if raw.is_null() {
            return Err("NCCL made no communicator".to_owned());
        }
        Ok(Self { raw, healthy: true })
    }

    /// Whether nothing is in progress.
    ///
    /// # Errors
    /// What went wrong since.
    pub fn is_idle(&mut self) -> Result<bool, String> {
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is alive; the pointer is to a variable that outlives the call.
        self.note(unsafe { sys::ncclCommGetAsyncError(self.raw, &raw mut state) })?;
        self.note(state)
    }

    /// Puts the steps on the stream as one group. They have happened when the link is idle and then
    /// the stream has done its work; until then, and for ever if that never comes, their memory must
    /// not be freed.
    pub fn group(&mut self, stream: &CudaStream, steps: Vec<Step<'_>>) -> Result<(), String> {
        // SAFETY: takes nothing.
        self.note(unsafe { sys::ncclGroupStart() })?;
        // Whatever happens inside, the group is to be ended.
        let inside = steps.into_iter().try_for_each(|step| self.enqueue(stream, step));
        // SAFETY: takes nothing.
        let ended = self.note(unsafe { sys::ncclGroupEnd() });
        inside.and(ended.map(drop))
    }

    fn enqueue(&mut self, stream: &CudaStream, step: Step<'_>) -> Result<(), String> {
        let peer = |rank: usize| i32::try_from(rank).map_err(|_| format!("no rank {rank}"));
        let on = stream.cu_stream().cast();
        let f32s = ncclDataType_t::ncclFloat32;
        let result = match step {
            Step::Send(rank, from) => {
                let (pointer, _used) = from.device_ptr(stream);
                // SAFETY: the view is of as many numbers on the device. The caller keeps its memory
                // until the group has happened, and for good if it has not.
                unsafe {
                    sys::ncclSend(pointer as *const _, from.len(), f32s, peer(rank)?, self.raw, on)
                }
            }
            Step::Receive(rank, to) => {
                let length = to.len();
                let (pointer, _used) = to.device_ptr_mut(stream);
                // SAFETY: as above; the slice is borrowed mutably.
                unsafe { sys::ncclRecv(pointer as *mut _, length, f32s, peer(rank)?, self.raw, on) }
            }
            Step::Sum(of) => {
                let length = of.len();
                let (pointer, _used) = of.device_ptr_mut(stream);
                let sum = sys::ncclRedOp_t::ncclSum;
                // SAFETY: as above; NCCL sums in place where both pointers are the same.
                unsafe {
                    let (from, to) = (pointer as *const _, pointer as *mut _);
                    sys::ncclAllReduce(from, to, length, f32s, sum, self.raw, on)
                }
            }
        };
        self.note(result).map(drop)
    }

    /// Whether a call is done; an error makes the communicator one to be aborted.
    fn note(&mut self, result: ncclResult_t) -> Result<bool, String> {
        let done = check(result);
        self.healthy &= done.is_ok();
        done
    }

    /// Ends the communicator with whatever is in progress. A thread of its own does it, since the call
    /// may wait for a GPU that will never be done.
    pub fn abort(mut self) {
        self.healthy = false;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let raw = self.raw as usize;
        let healthy = self.healthy;
        let (ended, end) = std::sync::mpsc::channel();
        let end_it = move || {
            close_or_abort(raw as sys::ncclComm_t, healthy);
            let _ = ended.send(());
        };
        // Without a thread the communicator is left to the end of the process.
        if std::thread::Builder::new().name("nccl-end".into()).spawn(end_it).is_ok() && healthy {
            let _ = end.recv_timeout(CLOSE_LIMIT);
        }
    }
}

fn close_or_abort(raw: sys::ncclComm_t, healthy: bool) {
    let until = Instant::now() + CLOSE_LIMIT;
    let mut state = ncclResult_t::ncclSuccess;
    // SAFETY: the communicator is alive, and nothing uses it after this function, the last to have it.
    unsafe {
        let mut closed = healthy && check(sys::ncclCommFinalize(raw)).is_ok();
        while closed && Instant::now() < until {
            closed = check(sys::ncclCommGetAsyncError(raw, &raw mut state)).is_ok();
            if !matches!(check(state), Ok(false)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if closed && matches!(check(state), Ok(true)) {
            let _ = sys::ncclCommDestroy(raw);
        } else {
            let _ = sys::ncclCommAbort(raw);
        }
    }
}

/// Whether a call is done (or goes on in the background); what NCCL says of an error.
fn check(result: ncclResult_t) -> Result<bool, String> {
    match result {
        ncclResult_t::ncclSuccess => Ok(true),
        ncclResult_t::ncclInProgress => Ok(false),
        error => Err(describe(error)),
    }
}

fn describe(error: ncclResult_t) -> String {
    // SAFETY: both functions give static text or nothing; the last error needs no communicator.
    let texts = unsafe {
        [sys::ncclGetErrorString(error), sys::ncclGetLastError(std::ptr::null_mut())].map(|text| {
            if text.is_null() {
                String::new()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        })
    };
    let [what, last] = texts;
    if last.is_empty() { what } else { format!("{what} ({last})") }
}

/// NCCL's configuration as its header's initializer makes it, but non-blocking.
fn non_blocking() -> sys::ncclConfig_t {
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: 0xcafe_beef,
        // The version whose fields these are.
        version: 23_000,
        blocking: 0,
        cgaClusterSize: UNSET,
        minCTAs: UNSET,
        maxCTAs: UNSET,
        netName: std::ptr::null(),
        splitShare: UNSET,
        trafficClass: UNSET,
        commName: std::ptr::null(),
        collnetEnable: UNSET,
        CTAPolicy: UNSET,
        shrinkShare: UNSET,
        nvlsCTAs: UNSET,
        nChannelsPerNetPeer: UNSET,
        nvlinkCentricSched: UNSET,
        graphUsageMode: UNSET,
        numRmaCtx: UNSET,
        maxP2pPeers: UNSET,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_its_bytes() {
        let mut id = UniqueId { internal: [0; 128] };
        id.internal.iter_mut().zip(0..).for_each(|(byte, i)| *byte = i);
        assert_eq!(from_bytes(&to_bytes(&id)), Some(id));
        assert_eq!(from_bytes(&[]), None);
        assert_eq!(from_bytes(&[0; 129]), None);
    }
}
