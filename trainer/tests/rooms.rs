//! Which rooms of this crate may use which: arrows run downwards only, so there is no circle.
//!
//! A room is a directory or a file right under `src`. A new arrow is added to the table where it is meant, and refused
//! where a room would come to know one above it.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Every room, from the ground up, with the rooms below that it uses. `error` is used by all.
const ROOMS: [(&str, &[&str]); 17] = [
    ("kernels", &[]),
    ("telemetry", &[]),
    ("metrics", &[]),
    ("backbone", &["kernels"]),
    ("config", &["backbone"]),
    // The file of parameters is read as a backbone's are: where they lie.
    ("parameters", &["backbone"]),
    ("losses", &["parameters"]),
    ("adapter", &["backbone", "config", "kernels", "parameters", "telemetry"]),
    ("crm", &["backbone", "config", "kernels", "parameters", "telemetry"]),
    ("engine", &["adapter", "backbone", "config", "kernels", "losses", "parameters", "telemetry"]),
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
    ("error", &[]),
];

/// The rooms that the code of each uses, tests beside the code left out, with a file that does.
fn arrows() -> BTreeMap<String, BTreeMap<String, String>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut arrows = BTreeMap::<String, BTreeMap<String, String>>::new();
    let mut open = vec![src.clone()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let file = path.strip_prefix(&src).unwrap().display().to_string();
        if !file.ends_with(".rs") || file == "lib.rs" {
            continue;
        }
        let room = file.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let of_room = arrows.entry(room.clone()).or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let end = used.find(|c: char| !(c.is_alphanumeric() || c == '_'));
                let used = &used[..end.unwrap_or(used.len())];
                if used != room && used != "error" && !used.is_empty() {
                    of_room.entry(used.to_owned()).or_insert_with(|| file.clone());
                }
            }
        }
    }
    arrows
}

#[test]
fn rooms_use_only_what_is_below_them() {
    let arrows = arrows();
    let known: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    let there: BTreeSet<&str> = arrows.keys().map(String::as_str).collect();
    assert_eq!(known, there, "the table of rooms and src");
    for (place, (room, allowed)) in ROOMS.iter().enumerate() {
        let below: BTreeSet<&str> = ROOMS[..place].iter().map(|(room, _)| *room).collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        assert!(allowed.is_subset(&below), "{room} may use what is not below it: {allowed:?}");
        for (used, file) in &arrows[*room] {
            assert!(
                allowed.contains(used.as_str()),
                "{file}: {room} uses {used}, which the table of rooms does not allow"
            );
        }
        let unused: Vec<&&str> =
            allowed.iter().filter(|used| !arrows[*room].contains_key(**used)).collect();
        assert!(unused.is_empty(), "{room} no longer uses {unused:?}: take it out of the table");
    }
}
