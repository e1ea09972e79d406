//! Adapter files: settings of any content, and tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{backbone, file, safetensors};
use reclora_trainer::adapter::Adapter;

fuzz_target!(|data: &[u8]| {
    let path = file("adapter_model.safetensors", &safetensors(data));
    let _ = Adapter::load(&path, &backbone());
});
