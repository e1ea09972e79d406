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
            ("cost", &[]),
            ("interface", &[]),
            ("secret", &[]),
            ("tree", &[]),
            ("communicator", &[]),
            ("handshake", &["codec", "secret"]),
            ("tcp", &["codec", "communicator", "tree"]),
            ("nccl", &["communicator", "tree"]),
            ("mesh", &["handshake"]),
            ("rendezvous", &["communicator", "handshake", "mesh", "secret", "tcp"]),
            ("control", &["codec", "handshake", "rendezvous", "secret"]),
            ("fuzzing", &["codec", "control", "handshake", "rendezvous", "tcp"]),
        ],
        exceptions: &[(
            "mesh.rs",
            "rendezvous.rs",
            "connections are made as the settings of joining say, which stand where ranks meet",
        )],
        unchecked: &[],
    };
    rooms.check();
}
