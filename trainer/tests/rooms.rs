//! The table of rooms of `trainer`: arrows run downwards only, and files use each other in no circle.
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
            ("kernels", &[]),
            ("telemetry", &[]),
            ("metrics", &[]),
            ("backbone", &["kernels"]),
            ("config", &["backbone"]),
            ("parameters", &["backbone"]),
            ("losses", &["parameters"]),
            ("adapter", &["backbone", "config", "kernels", "parameters", "telemetry"]),
            ("crm", &["backbone", "config", "kernels", "parameters", "telemetry"]),
            (
                "engine",
                &["adapter", "backbone", "config", "kernels", "losses", "parameters", "telemetry"],
            ),
            ("tokenizer", &["backbone"]),
            ("prompt", &["engine", "tokenizer"]),
            ("retriever", &["config", "kernels"]),
            ("training", &["metrics", "parameters", "telemetry"]),
            ("scoring", &["metrics", "telemetry"]),
            (
                "stages",
                &[
                    "adapter",
                    "backbone",
                    "config",
                    "crm",
                    "engine",
                    "losses",
                    "metrics",
                    "parameters",
                    "prompt",
                    "retriever",
                    "scoring",
                    "telemetry",
                    "tokenizer",
                    "training",
                ],
            ),
        ],
        exceptions: &[],
    };
    rooms.check();
}
