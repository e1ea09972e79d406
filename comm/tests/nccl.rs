//! Sums over NCCL between real processes (`processes/`); in the simulation, where there is no GPU.

#![cfg(feature = "nccl")]
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;
#[path = "processes/numbers.rs"]
mod numbers;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{HOST, Job, identity};
use reclora_comm::tree;

/// How long the ranks have to find each other.
const MEETING: Duration = Duration::from_secs(30);
/// How long a rank waits for the others in one collective.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Runs `what` on so many ranks; what each of them said (nothing if it was killed).
fn run(what: &str, world_size: usize, environment: &[(&str, &str)]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let job = Job::with_deadline(world_size, MEETING);
    let output = |rank: usize| dir.path().join(format!("rank_{rank}"));
    let mut ranks: Vec<Child> =
        (0..world_size).map(|rank| start(what, rank, &job, &output(rank), environment)).collect();
    let until = Instant::now() + Duration::from_secs(60);
    while ranks.iter_mut().any(|rank| rank.try_wait().unwrap().is_none()) {
        // A stopped rank never ends: the others have.
        if what == "stopped" && (0..world_size).all(|rank| rank == 1 || output(rank).exists()) {
            ranks[1].kill().unwrap();
        }
        assert!(Instant::now() < until, "{what}: a rank hangs");
        std::thread::sleep(Duration::from_millis(20));
    }
    (0..world_size).map(|rank| std::fs::read_to_string(output(rank)).unwrap_or_default()).collect()
}

fn start(what: &str, rank: usize, job: &Job, output: &Path, environment: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_test-process"))
        .env("TEST_ROLE", "nccl")
        .env("TEST_WORK", what)
        .env("TEST_RANK", rank.to_string())
        .env("TEST_WORLD_SIZE", job.world_size.to_string())
        .env("TEST_STORE", job.store.address().to_string())
        .env("TEST_SECRET", job.secret.to_hex())
        .env("TEST_BUILD", identity().build_id)
        .env("TEST_HOST", HOST.to_string())
        .env("TEST_DEADLINE", MEETING.as_secs().to_string())
        .env("TEST_TIMEOUT", TIMEOUT.as_secs().to_string())
        .env("TEST_OUTPUT", output)
        .env("GPU_SIM_DEVICES", job.world_size.to_string())
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The bits of all sums, in the order of a function of the ranks' numbers.
fn expected(sum: impl Fn(Vec<Vec<f32>>) -> Vec<f32>, world_size: usize) -> String {
    let of = |length| sum((0..world_size).map(|rank| numbers::of(rank, length)).collect());
    let bits: Vec<u32> = numbers::LENGTHS.into_iter().flat_map(of).map(f32::to_bits).collect();
    format!("ok {bits:?}")
}

#[test]
fn d1_sums_have_the_bits_of_the_canonical_tree() {
    for world_size in [2, 3, 4] {
        let expected = expected(|leaves| tree::sum(leaves).unwrap(), world_size);
        for said in run("sums", world_size, &[]) {
            assert!(said == expected, "{world_size} ranks: {}", &said[..said.len().min(300)]);
        }
    }
}

#[test]
fn the_fastest_sum_is_that_of_the_library() {
    let in_turn = |leaves: Vec<Vec<f32>>| {
        let mut leaves = leaves.into_iter();
        let mut sum = leaves.next().unwrap();
        leaves.for_each(|leaf| tree::sum_into(&mut sum, &leaf));
        sum
    };
    let expected_bits = expected(in_turn, 4);
    let canonical = expected(|leaves| tree::sum(leaves).unwrap(), 4);
    assert!(expected_bits != canonical, "these numbers can't tell the orders apart");
    for said in run("fastest", 4, &[]) {
        assert!(said == expected_bits, "{}", &said[..said.len().min(300)]);
    }
}

#[test]
fn ranks_that_would_sum_different_things_are_told_before() {
    for (rank, said) in run("another length", 2, &[]).into_iter().enumerate() {
        let [ours, theirs] = if rank == 0 { [10, 11] } else { [11, 10] };
        let expected = format!(
            "error rank {} entered all_reduce \"gradient\" #5 of {theirs} elements, this rank \
             all_reduce \"gradient\" #5 of {ours} elements: the ranks do not run the same program",
            1 - rank
        );
        assert_eq!(said, expected);
    }
}

#[test]
fn survivors_name_the_rank_that_was_killed_or_hangs() {
    let silent: &[(&str, &str)] = &[("GPU_SIM_NCCL_SILENT", "1")];
    for (what, environment) in [("killed", &[][..]), ("killed", silent), ("stopped", silent)] {
        let said = run(what, 4, environment);
        for rank in [0, 2, 3] {
            let error = &said[rank];
            assert!(error.starts_with("error") && error.contains("rank 1"), "{what}: {error}");
        }
    }
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let said = run("ends early", 2, &[]);
    assert!(said[0].starts_with("error") && said[0].contains("rank 1"), "{}", said[0]);
}

#[test]
fn a_missing_gpu_is_told_to_all() {
    for said in run("sums", 2, &[("GPU_SIM_DEVICES", "1")]) {
        assert!(said.starts_with("error NCCL: rank 1 can't open GPU 1"), "{said}");
    }
}
