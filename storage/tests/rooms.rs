//! The table of rooms of `storage`: arrows run downwards only, and files use each other in no circle.
//!
//! A new arrow is added where it is meant, and refused where a room would come to know one above it.

#[path = "../../checks/rooms.rs"]
mod check;

use check::Rooms;

#[test]
fn rooms_use_only_what_is_below_them_and_files_no_circle() {
    let rooms = Rooms {
        manifest_dir: env!("CARGO_MANIFEST_DIR"),
        ground: &["error"],
        table: &[
            ("loader", &[]),
            ("permutation", &[]),
            ("hash", &[]),
            ("codec", &[]),
            ("mmap", &[]),
            ("atomic", &[]),
            ("spill", &["atomic"]),
            ("raw", &["spill"]),
            ("protocol", &["raw", "spill"]),
            ("inspect", &["protocol", "raw"]),
            ("manifest", &["atomic", "hash"]),
            ("shard", &["atomic", "codec", "hash", "mmap"]),
            ("synth", &["atomic", "permutation"]),
            ("dataset", &["atomic", "mmap", "protocol", "shard", "spill"]),
            ("verify", &["atomic", "hash", "manifest", "mmap", "shard"]),
        ],
        exceptions: &[],
    };
    rooms.check();
}
