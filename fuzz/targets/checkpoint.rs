//! Checkpoints: any bytes, and any content behind a correct hash.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_comm::Solo;
use reclora_fuzz::{choice, file, scratch};
use reclora_storage::hash::xxh3_hex;
use reclora_trainer::parameters::TableShare;
use reclora_trainer::training::checkpoint;

fuzz_target!(|data: &[u8]| {
    let (variant, rest) = choice(data);
    let mut bytes = rest.to_vec();
    if !variant.is_multiple_of(2) {
        bytes.extend_from_slice(xxh3_hex(rest).as_bytes());
    }
    file("checkpoints/step-0000000001.checkpoint", &bytes);
    let state = checkpoint::load(&scratch().join("checkpoints"), TableShare::default(), &mut Solo);
    assert!(state.is_ok(), "a checkpoint that can't be read counts as not there");
});
