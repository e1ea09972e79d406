//! GGUF files: settings, weights and tokenizer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{choice, file};
use reclora_trainer::backbone::Backbone;
use reclora_trainer::config::WeightType;
use reclora_trainer::tokenizer::Tokenizer;

fuzz_target!(|data: &[u8]| {
    let (variant, bytes) = choice(data);
    let path = file("x.gguf", bytes);
    let weights = [WeightType::F32, WeightType::Bf16, WeightType::Q8_0];
    let _ = Backbone::load_as(&path, weights[usize::from(variant % 3)]);
    if let Ok(tokenizer) = Tokenizer::load(&path) {
        let _ = tokenizer.encode("Once upon a time, in 1999 ...");
    }
});
