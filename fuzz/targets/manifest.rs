//! Manifests and plans: JSON of any content. Nothing outside the directory is touched.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{choice, file};
use reclora_storage::manifest::StageDir;

fuzz_target!(|data: &[u8]| {
    let (_, text) = choice(data);
    let path = file("stage/manifest.json", text);
    let stage = StageDir::new(path.parent().expect("a directory"), "prepare", "f");
    let _ = stage.is_complete();
    let _ = stage.content_hash();
    let _ = stage.verify();
});
