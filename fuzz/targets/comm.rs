//! Frames and messages between processes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::choice;

fuzz_target!(|data: &[u8]| {
    let (_, bytes) = choice(data);
    reclora_comm::fuzzing::messages(bytes);
});
