//! GGUF files: settings, weights and tokenizer. The header alone tells the same as the whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{choice, file};
use reclora_trainer::backbone::{Backbone, WeightType, check};
use reclora_trainer::tokenizer::Tokenizer;

fuzz_target!(|data: &[u8]| {
    let (variant, bytes) = choice(data);
    let path = file("x.gguf", bytes);
    let weights = [WeightType::F32, WeightType::Bf16, WeightType::Q8_0];
    let weights = weights[usize::from(variant % 3)];
    let loaded = Backbone::load_as(&path, weights).map_err(|error| error.to_string());
    if let Err(error) = check(&path, weights) {
        assert_eq!(loaded.err(), Some(error.to_string()));
    }
    if let Ok(tokenizer) = Tokenizer::load(&path) {
        let _ = tokenizer.encode("Once upon a time, in 1999 ...");
    }
});
