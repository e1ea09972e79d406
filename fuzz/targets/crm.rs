//! CRM files: settings of any content, and tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{file, safetensors};
use reclora_trainer::config::Representation;
use reclora_trainer::crm::TrainedCrm;

fuzz_target!(|data: &[u8]| {
    let path = file("crm.safetensors", &safetensors(data));
    let _ = TrainedCrm::open(&path, Representation::Final);
});
