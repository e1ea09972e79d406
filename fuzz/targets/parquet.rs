//! Parquet: files of any content, read by the default mapping.
//!
//! On some damaged files the decoder panics; the reader makes errors of that. Such a panic is no finding, as
//! is none that gets out.
#![no_main]

use std::sync::Once;

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{file, scratch};
use reclora_storage::raw::{self, ColumnMapping, DatasetFormat};

static HOOK: Once = Once::new();

fuzz_target!(|data: &[u8]| {
    // The fuzzer's own hook ends the process at any panic.
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !raw::is_decoding() {
                hook(info);
            }
        }));
    });
    file("parquet/ratings.parquet", data);
    let dir = scratch().join("parquet");
    let _ = raw::read(DatasetFormat::Parquet, &dir, &ColumnMapping::default());
    // Every column of it, of any type.
    let path = dir.join("ratings.parquet");
    let _ = raw::sample(DatasetFormat::Parquet, &path, &ColumnMapping::default());
});
