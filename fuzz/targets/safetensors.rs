//! The weights of a Hugging Face directory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{CONFIG, file, safetensors, scratch};
use reclora_trainer::backbone::Backbone;

fuzz_target!(|data: &[u8]| {
    file("backbone/config.json", CONFIG.as_bytes());
    file("backbone/model.safetensors", &safetensors(data));
    let _ = Backbone::load(&scratch().join("backbone"));
});
