//! GPUs, through NVML.

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{
    Clock, EccCounter, MemoryError, PcieUtilCounter, TemperatureSensor,
};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::sample::{Gpu, Reading};

/// A counter of a GPU.
pub struct Counter {
    /// Its name in samples.
    pub name: &'static str,
    read: fn(&Device<'_>) -> Result<f64, NvmlError>,
}

const fn counter(name: &'static str, read: fn(&Device<'_>) -> Result<f64, NvmlError>) -> Counter {
    Counter { name, read }
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

/// All of them.
pub const COUNTERS: [Counter; 14] = [
    counter(UTILIZATION, |gpu| Ok(f64::from(gpu.utilization_rates()?.gpu))),
    counter("memory_utilization_percent", |gpu| Ok(f64::from(gpu.utilization_rates()?.memory))),
    counter(MEMORY_USED, |gpu| Ok(gpu.memory_info()?.used as f64)),
    counter(MEMORY_TOTAL, |gpu| Ok(gpu.memory_info()?.total as f64)),
    counter(TEMPERATURE, |gpu| Ok(f64::from(gpu.temperature(TemperatureSensor::Gpu)?))),
    counter(POWER, |gpu| Ok(f64::from(gpu.power_usage()?) / 1e3)),
    counter("power_limit_watts", |gpu| Ok(f64::from(gpu.enforced_power_limit()?) / 1e3)),
    counter("energy_joules", |gpu| Ok(gpu.total_energy_consumption()? as f64 / 1e3)),
    counter(SM_CLOCK, |gpu| Ok(f64::from(gpu.clock_info(Clock::SM)?))),
    counter("memory_clock_mhz", |gpu| Ok(f64::from(gpu.clock_info(Clock::Memory)?))),
    counter("pcie_sent_bytes_per_second", |gpu| {
        Ok(f64::from(gpu.pcie_throughput(PcieUtilCounter::Send)?) * 1024.0)
    }),
    counter("pcie_received_bytes_per_second", |gpu| {
        Ok(f64::from(gpu.pcie_throughput(PcieUtilCounter::Receive)?) * 1024.0)
    }),
    counter("pcie_replays", |gpu| Ok(f64::from(gpu.pcie_replay_counter()?))),
    counter("ecc_uncorrected_errors", |gpu| {
        let kind = (MemoryError::Uncorrected, EccCounter::Volatile);
        Ok(gpu.total_ecc_errors(kind.0, kind.1)? as f64)
    }),
];

/// Reasons for slow clocks that are no choice of whoever uses the GPU.
const HELD_BACK: [(ThrottleReasons, &str); 4] = [
    (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "temperature"),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "temperature (hardware)"),
    (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
];

/// The driver, or why there is none.
pub struct Driver(Result<Nvml, String>);

impl Driver {
    /// Looks for the driver's library.
    pub fn open() -> Self {
        Self(Nvml::init().map_err(|error| match error {
            NvmlError::LibloadingError(_) => "no NVIDIA driver (libnvidia-ml.so.1)".into(),
            error => error.to_string(),
        }))
    }

    /// Every GPU, or why none can be looked at. One that is gone stays among them, as lost: `known` are those of
    /// the last look.
    pub fn look(&self, known: &[Gpu]) -> Result<Vec<Gpu>, String> {
        let nvml = self.0.as_ref().map_err(Clone::clone)?;
        let count = nvml.device_count().map_err(|error| error.to_string())?;
        let mut gpus: Vec<Gpu> = (0..count)
            .map(|index| {
                let before = known.iter().find(|gpu| gpu.index == index);
                match nvml.device_by_index(index) {
                    Ok(device) => look_at(index, &device, before),
                    Err(error) => lost(index, before, &error.to_string()),
                }
            })
            .collect();
        let gone = known.iter().filter(|gpu| gpu.index >= count);
        gpus.extend(gone.map(|gpu| lost(gpu.index, Some(gpu), "the driver no longer knows it")));
        Ok(gpus)
    }
}

fn lost(index: u32, before: Option<&Gpu>, why: &str) -> Gpu {
    let (name, uuid) = before.map(|gpu| (gpu.name.clone(), gpu.uuid.clone())).unwrap_or_default();
    Gpu { index, name, uuid, lost: Some(why.to_owned()), ..Gpu::default() }
}

fn look_at(index: u32, device: &Device<'_>, before: Option<&Gpu>) -> Gpu {
    let mut gpu = Gpu {
        index,
        name: device.name().unwrap_or_default(),
        uuid: device.uuid().unwrap_or_default(),
        ..Gpu::default()
    };
    for counter in &COUNTERS {
        let reading = match (counter.read)(device) {
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
