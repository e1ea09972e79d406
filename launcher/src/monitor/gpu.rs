//! GPUs, through NVML.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{
    Clock, EccCounter, MemoryError, PcieUtilCounter, TemperatureSensor,
};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::gpm::gpm_metrics_get;
use nvml_wrapper::{Device, GpmSample, Nvml};

use super::sample::{GIB, Gpu, Reading};

/// A counter of a GPU.
pub struct Counter {
    /// Its name in samples.
    pub name: &'static str,
    /// Its name in DCGM, and so in what NVIDIA's own exporter gives to Prometheus.
    pub dcgm: &'static str,
    /// What one of DCGM's units is in ours.
    pub per_unit: f64,
    /// Whether it only ever grows.
    pub is_total: bool,
    /// What it is, with DCGM's unit.
    pub help: &'static str,
    read: Read,
}

/// How a counter is read.
enum Read {
    /// By a call of its own.
    Call(fn(&Device<'_>) -> Result<f64, NvmlError>),
    /// By GPU performance monitoring, which Hopper and later have, over the time since the last look.
    Gpm(GpmMetricId),
}

/// Name of the utilisation in per cent: the share of time in which any kernel ran.
pub const UTILIZATION: &str = "gpu_utilization_percent";
/// Name of the memory in use, in bytes.
pub const MEMORY_USED: &str = "memory_used_bytes";
/// Name of the memory there is, in bytes.
pub const MEMORY_TOTAL: &str = "memory_total_bytes";
/// Name of the temperature.
pub const TEMPERATURE: &str = "temperature_celsius";
/// Name of the power.
pub const POWER: &str = "power_watts";
/// Name of the clock of the multiprocessors.
pub const SM_CLOCK: &str = "sm_clock_mhz";
/// Name of the share of time in which tensor cores work.
pub const TENSOR_ACTIVE: &str = "tensor_active_percent";
/// DCGM's name of the number of the last Xid error.
pub const XID: &str = "DCGM_FI_DEV_XID_ERRORS";

const MIB: f64 = GIB / 1024.0;

/// A counter that goes up and down, and one that only ever grows.
const GAUGE: bool = false;
const TOTAL: bool = true;

macro_rules! counters {
    ($($name:expr, $dcgm:literal, $per_unit:expr, $is_total:ident, $help:literal => $read:expr;)*) => {
        [$(Counter {
            name: $name,
            dcgm: $dcgm,
            per_unit: $per_unit,
            is_total: $is_total,
            help: $help,
            read: $read,
        }),*]
    };
}

/// All of them: name, DCGM's name, one of DCGM's units in ours, kind, help, and how it is read.
pub const COUNTERS: [Counter; 20] = counters! {
    UTILIZATION, "DCGM_FI_DEV_GPU_UTIL", 1.0, GAUGE, "GPU utilization (in %)."
        => Read::Call(|gpu| Ok(f64::from(gpu.utilization_rates()?.gpu)));
    "memory_utilization_percent", "DCGM_FI_DEV_MEM_COPY_UTIL", 1.0, GAUGE, "Memory utilization (in %)."
        => Read::Call(|gpu| Ok(f64::from(gpu.utilization_rates()?.memory)));
    MEMORY_USED, "DCGM_FI_DEV_FB_USED", MIB, GAUGE, "Framebuffer memory used (in MiB)."
        => Read::Call(|gpu| Ok(gpu.memory_info()?.used as f64));
    "memory_free_bytes", "DCGM_FI_DEV_FB_FREE", MIB, GAUGE, "Framebuffer memory free (in MiB)."
        => Read::Call(|gpu| Ok(gpu.memory_info()?.free as f64));
    MEMORY_TOTAL, "DCGM_FI_DEV_FB_TOTAL", MIB, GAUGE, "Framebuffer memory (in MiB)."
        => Read::Call(|gpu| Ok(gpu.memory_info()?.total as f64));
    TEMPERATURE, "DCGM_FI_DEV_GPU_TEMP", 1.0, GAUGE, "GPU temperature (in C)."
        => Read::Call(|gpu| Ok(f64::from(gpu.temperature(TemperatureSensor::Gpu)?)));
    POWER, "DCGM_FI_DEV_POWER_USAGE", 1.0, GAUGE, "Power draw (in W)."
        => Read::Call(|gpu| Ok(f64::from(gpu.power_usage()?) / 1e3));
    "power_limit_watts", "DCGM_FI_DEV_ENFORCED_POWER_LIMIT", 1.0, GAUGE, "Power limit in force (in W)."
        => Read::Call(|gpu| Ok(f64::from(gpu.enforced_power_limit()?) / 1e3));
    "energy_joules", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1e-3, TOTAL, "Total energy consumption since boot (in mJ)."
        => Read::Call(|gpu| Ok(gpu.total_energy_consumption()? as f64 / 1e3));
    SM_CLOCK, "DCGM_FI_DEV_SM_CLOCK", 1.0, GAUGE, "SM clock frequency (in MHz)."
        => Read::Call(|gpu| Ok(f64::from(gpu.clock_info(Clock::SM)?)));
    "memory_clock_mhz", "DCGM_FI_DEV_MEM_CLOCK", 1.0, GAUGE, "Memory clock frequency (in MHz)."
        => Read::Call(|gpu| Ok(f64::from(gpu.clock_info(Clock::Memory)?)));
    "pcie_sent_bytes_per_second", "DCGM_FI_PROF_PCIE_TX_BYTES", 1.0, GAUGE, "Rate of data sent over PCIe (in bytes per second)."
        => Read::Call(|gpu| Ok(f64::from(gpu.pcie_throughput(PcieUtilCounter::Send)?) * 1024.0));
    "pcie_received_bytes_per_second", "DCGM_FI_PROF_PCIE_RX_BYTES", 1.0, GAUGE, "Rate of data received over PCIe (in bytes per second)."
        => Read::Call(|gpu| Ok(f64::from(gpu.pcie_throughput(PcieUtilCounter::Receive)?) * 1024.0));
    "pcie_replays", "DCGM_FI_DEV_PCIE_REPLAY_COUNTER", 1.0, TOTAL, "Total number of PCIe retries."
        => Read::Call(|gpu| Ok(f64::from(gpu.pcie_replay_counter()?)));
    "ecc_uncorrected_errors", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", 1.0, TOTAL, "Total number of double-bit volatile ECC errors."
        => Read::Call(|gpu| Ok(gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)? as f64));
    "sm_active_percent", "DCGM_FI_PROF_SM_ACTIVE", 100.0, GAUGE, "Ratio of time at least one warp was active on an SM, averaged over all SMs."
        => Read::Gpm(GpmMetricId::SmUtil);
    TENSOR_ACTIVE, "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 100.0, GAUGE, "Ratio of cycles the tensor pipe is active."
        => Read::Gpm(GpmMetricId::AnyTensorUtil);
    "dram_active_percent", "DCGM_FI_PROF_DRAM_ACTIVE", 100.0, GAUGE, "Ratio of cycles the device memory interface is active sending or receiving data."
        => Read::Gpm(GpmMetricId::DramBwUtil);
    "nvlink_sent_mib_per_second", "DCGM_FI_PROF_NVLINK_TX_BYTES", 1.0 / MIB, GAUGE, "Rate of data sent over NVLink (in bytes per second)."
        => Read::Gpm(GpmMetricId::NvlinkTotalTxPerSec);
    "nvlink_received_mib_per_second", "DCGM_FI_PROF_NVLINK_RX_BYTES", 1.0 / MIB, GAUGE, "Rate of data received over NVLink (in bytes per second)."
        => Read::Gpm(GpmMetricId::NvlinkTotalRxPerSec);
};

/// Reasons for slow clocks that are no choice of whoever uses the GPU.
const HELD_BACK: [(ThrottleReasons, &str); 4] = [
    (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "temperature"),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "temperature (hardware)"),
    (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
];

/// Xid errors by the UUIDs of the GPUs: the last one, and how many there were.
type Xids = Mutex<BTreeMap<String, (u64, u64)>>;

/// The driver.
pub struct Driver {
    /// Or why there is none.
    nvml: Result<&'static Nvml, String>,
    xids: Arc<Xids>,
    /// GPUs, by their UUIDs, whose Xid errors are listened for.
    heard: Vec<String>,
    /// The performance monitors at the last look, by the GPUs' UUIDs.
    before: BTreeMap<String, GpmSample<'static>>,
}

impl Driver {
    /// Looks for the driver's library.
    pub fn open() -> Self {
        /// For the whole life of the process: what is asked of it later refers to it.
        static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();
        let nvml = NVML.get_or_init(|| {
            Nvml::init().map_err(|error| match error {
                NvmlError::LibloadingError(_) => "no NVIDIA driver (libnvidia-ml.so.1)".into(),
                error => error.to_string(),
            })
        });
        Self {
            nvml: nvml.as_ref().map_err(Clone::clone),
            xids: Arc::default(),
            heard: Vec::new(),
            before: BTreeMap::new(),
        }
    }

    /// Every GPU, or why none can be looked at. One that is gone stays among them, as lost: `known` are those of
    /// the last look.
    pub fn look(&mut self, known: &[Gpu]) -> Result<Vec<Gpu>, String> {
        let nvml = self.nvml.clone()?;
        let count = nvml.device_count().map_err(|error| error.to_string())?;
        let mut gpus: Vec<Gpu> = (0..count)
            .map(|index| {
                let before = known.iter().find(|gpu| gpu.index == index);
                match nvml.device_by_index(index) {
                    Ok(device) => self.look_at(nvml, index, &device, before),
                    Err(error) => lost(index, before, &error.to_string()),
                }
            })
            .collect();
        let gone = known.iter().filter(|gpu| gpu.index >= count);
        gpus.extend(gone.map(|gpu| lost(gpu.index, Some(gpu), "the driver no longer knows it")));
        let xids = self.xids.lock().unwrap_or_else(PoisonError::into_inner);
        for gpu in &mut gpus {
            (gpu.xid, gpu.xids) = match xids.get(&gpu.uuid) {
                Some((last, count)) => (Some(*last), *count),
                None => (None, 0),
            };
        }
        Ok(gpus)
    }

    fn look_at(
        &mut self,
        nvml: &'static Nvml,
        index: u32,
        device: &Device<'static>,
        before: Option<&Gpu>,
    ) -> Gpu {
        let mut gpu = Gpu {
            index,
            name: device.name().unwrap_or_default(),
            uuid: device.uuid().unwrap_or_default(),
            ..Gpu::default()
        };
        if !gpu.uuid.is_empty() && !self.heard.contains(&gpu.uuid) {
            self.heard.push(gpu.uuid.clone());
            listen(nvml, gpu.uuid.clone(), &self.xids);
        }
        let monitors = self.monitors(nvml, device, &gpu.uuid);
        for counter in &COUNTERS {
            let read = match &counter.read {
                Read::Call(call) => call(device),
                Read::Gpm(id) => monitors.get(&id.as_c()).copied().ok_or(NvmlError::NotSupported),
            };
            let reading = match read {
                Ok(value) => Reading::Value(value),
                Err(error @ NvmlError::GpuLost) => {
                    return lost(index, before.or(Some(&gpu)), &error.to_string());
                }
                Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => {
                    Reading::Missing("not supported".into())
                }
                Err(error) => Reading::Missing(error.to_string()),
            };
            gpu.counters.insert(counter.name.to_owned(), reading);
        }
        let reasons = device.current_throttle_reasons().unwrap_or(ThrottleReasons::empty());
        let held = HELD_BACK.iter().filter(|(reason, _)| reasons.contains(*reason));
        gpu.throttled_by = held.map(|(_, name)| (*name).to_owned()).collect();
        let processes = device.running_compute_processes().unwrap_or_default();
        let bytes = |memory| match memory {
            UsedGpuMemory::Used(bytes) => bytes,
            UsedGpuMemory::Unavailable => 0,
        };
        gpu.processes = processes.into_iter().map(|p| (p.pid, bytes(p.used_gpu_memory))).collect();
        gpu
    }

    /// What the performance monitors have counted since the last look, by NVML's numbers. Empty at the first look,
    /// and where there are none.
    fn monitors(
        &mut self,
        nvml: &'static Nvml,
        device: &Device<'static>,
        uuid: &str,
    ) -> BTreeMap<u32, f64> {
        if !device.gpm_support().unwrap_or(false) {
            return BTreeMap::new();
        }
        let Ok(now) = device.gpm_sample() else { return BTreeMap::new() };
        let ids: Vec<GpmMetricId> = COUNTERS
            .iter()
            .filter_map(|counter| match counter.read {
                Read::Gpm(id) => Some(id),
                Read::Call(_) => None,
            })
            .collect();
        let before = self.before.get(uuid);
        let results = before.map(|before| gpm_metrics_get(nvml, before, &now, &ids));
        let results = results.and_then(Result::ok).unwrap_or_default();
        let values = results.into_iter().flatten().filter(|result| result.value.is_finite());
        let values = values.map(|result| (result.metric_id.as_c(), result.value)).collect();
        self.before.insert(uuid.to_owned(), now);
        values
    }
}

fn lost(index: u32, before: Option<&Gpu>, why: &str) -> Gpu {
    let (name, uuid) = before.map(|gpu| (gpu.name.clone(), gpu.uuid.clone())).unwrap_or_default();
    Gpu { index, name, uuid, lost: Some(why.to_owned()), ..Gpu::default() }
}

/// Notes the Xid errors of a GPU for as long as somebody reads them. Where the card or the driver tells of none,
/// there are none to note.
fn listen(nvml: &'static Nvml, uuid: String, xids: &Arc<Xids>) {
    /// Between two looks whether anybody still listens, in milliseconds.
    const PATIENCE: u32 = 1000;
    let noted = Arc::downgrade(xids);
    let work = move || -> Option<()> {
        let device = nvml.device_by_uuid(uuid.as_str()).ok()?;
        let set = nvml.create_event_set().ok()?;
        let set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set).ok()?;
        loop {
            let event = set.wait(PATIENCE);
            let xids = noted.upgrade()?;
            let xid = match event {
                Ok(event) => event.event_data?,
                Err(NvmlError::Timeout) => continue,
                // Nothing more will come: the GPU or the driver is gone, which a look at it shows.
                Err(_) => return None,
            };
            let number = match xid {
                XidError::Value(number) => number,
                XidError::Unknown => 999,
            };
            let mut xids = xids.lock().unwrap_or_else(PoisonError::into_inner);
            let (last, count) = xids.entry(uuid.clone()).or_default();
            (*last, *count) = (number, *count + 1);
        }
    };
    // Without the thread, Xid errors are in the kernel's log only.
    let _ = std::thread::Builder::new().name("xid".into()).spawn(work);
}
