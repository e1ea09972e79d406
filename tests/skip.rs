//! A test that can't run on this machine says so and why, and is counted: it is not one that passed.
//!
//! `scripts/test.sh` names a file in `RECLORA_SKIPPED`, to which every skipped test adds a line, and says at its
//! end which there were. Where `RECLORA_REQUIRE_ALL` is 1, as in `.ci/run`, a skipped test fails; but not for
//! what the processor lacks, since machines differ in that and nothing can be installed.
#![allow(dead_code, reason = "each crate has tests of one of the two kinds")]

use std::io::Write;

/// Says that the test can't run here, for want of a right or a program: `needs root: ...`.
#[track_caller]
pub fn skip(reason: &str) {
    let all = std::env::var_os("RECLORA_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!all, "skipped, while RECLORA_REQUIRE_ALL is set: {reason}");
    note(reason);
}

/// Says that the test can't run here, because the processor has not these instructions.
pub fn skip_without_instructions(which: &str) {
    note(&format!("this processor has no {which}"));
}

fn note(reason: &str) {
    println!("skipped: {reason}");
    let Some(path) = std::env::var_os("RECLORA_SKIPPED") else { return };
    let thread = std::thread::current();
    let test = std::env::var("NEXTEST_TEST_NAME");
    let test = test.unwrap_or_else(|_| thread.name().unwrap_or("a test").to_owned());
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    // In one piece, beside other processes that write.
    let written =
        file.and_then(|mut file| file.write_all(format!("{reason}\t{test}\n").as_bytes()));
    assert!(written.is_ok(), "RECLORA_SKIPPED names {path:?}: {written:?}");
}
