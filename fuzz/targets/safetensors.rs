//! The weights of a Hugging Face directory. Their header alone tells the same as the whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{CONFIG, file, safetensors, scratch};
use reclora_trainer::backbone::{Backbone, WeightType, check};

fuzz_target!(|data: &[u8]| {
    file("backbone/config.json", CONFIG.as_bytes());
    file("backbone/model.safetensors", &safetensors(data));
    let path = scratch().join("backbone");
    assert_eq!(check(&path, WeightType::F32).is_ok(), Backbone::load(&path).is_ok());
});
