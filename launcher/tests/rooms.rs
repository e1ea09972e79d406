//! The table of rooms of `launcher`: arrows run downwards only, and files use each other in no circle.
//!
//! A new arrow is added where it is meant, and refused where a room would come to know one above it.

#[path = "../../checks/rooms.rs"]
mod rooms;

use rooms::Rooms;

#[test]
fn rooms_use_only_what_is_below_them_and_files_no_circle() {
    let rooms = Rooms {
        manifest_dir: env!("CARGO_MANIFEST_DIR"),
        ground: &["error", "output"],
        table: &[
            ("hints", &[]),
            ("exit", &["hints"]),
            ("signals", &["exit"]),
            ("cli", &[]),
            ("config", &[]),
            ("progress", &[]),
            ("monitor", &["signals"]),
            ("report", &["monitor"]),
            ("preflight", &["hints"]),
            ("run_dir", &["config", "exit", "hints"]),
            ("resolve", &["cli", "config"]),
            ("workers", &["cli", "config", "exit", "monitor", "progress", "run_dir", "signals"]),
            ("cluster", &["exit", "monitor", "signals", "workers"]),
            (
                "pipeline",
                &[
                    "cli",
                    "cluster",
                    "monitor",
                    "preflight",
                    "progress",
                    "run_dir",
                    "signals",
                    "workers",
                ],
            ),
            ("slurm", &["cli", "exit", "preflight", "progress", "resolve", "run_dir"]),
            (
                "commands",
                &[
                    "cli",
                    "cluster",
                    "config",
                    "exit",
                    "hints",
                    "monitor",
                    "pipeline",
                    "preflight",
                    "report",
                    "resolve",
                    "run_dir",
                    "signals",
                    "slurm",
                    "workers",
                ],
            ),
        ],
        exceptions: &[],
    };
    rooms.check();
}
