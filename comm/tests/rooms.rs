//! The table of rooms of `comm`: arrows run downwards only, and files use each other in no circle.
//!
//! A new arrow is added where it is meant, and refused where a room would come to know one above it.

#[path = "../../checks/rooms.rs"]
mod check;

use check::Rooms;

#[test]
fn rooms_use_only_what_is_below_them_and_files_no_circle() {
    let rooms = Rooms {
        manifest_dir: env!("CARGO_MANIFEST_DIR"),
        ground: &["record", "error"],
        table: &[
            ("codec", &[]),
            ("service", &[]),
            ("interface", &[]),
            ("secret", &[]),
            ("tree", &[]),
            ("communicator", &[]),
            ("handshake", &["codec", "secret"]),
            ("tcp", &["codec", "communicator", "tree"]),
            ("nccl", &["communicator", "tree"]),
            ("config", &["communicator", "handshake", "secret"]),
            ("mesh", &["config", "handshake"]),
            ("rendezvous", &["config", "handshake", "mesh", "service", "tcp"]),
            ("control", &["codec", "handshake", "secret", "service"]),
            ("fuzzing", &["codec", "control", "handshake", "rendezvous", "tcp"]),
        ],
        exceptions: &[],
    };
    rooms.check();
}
