//! Collectives between real sockets: the canonical order to the bit, and typed errors.

use std::time::{Duration, Instant};

use crate::common::Job;
use half::bf16;
use proptest::prelude::*;
use reclora_comm::rendezvous::join;
use reclora_comm::{CommError, Communicator, Wire, tree};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A value of every size, signed zeros and subnormals among them, different for each rank and index.
fn value(rank: usize, index: usize) -> f32 {
    let hash = (rank as u64 * 1_000_003 + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match hash >> 61 {
        0 => -0.0,
        1 => f32::from_bits((hash >> 40) as u32 & 0x7f_ffff),
        _ => ((hash >> 40) as f32 - 8e6) * 10f32.powi((hash >> 58 & 7) as i32 - 4),
    }
}

#[test]
fn d1_all_reduce_is_the_canonical_tree_to_the_bit() {
    for world_size in [1, 2, 3, 4, 8] {
        for length in [0, 1, 7, 1000, 300_001] {
            let leaf = |rank| (0..length).map(|i| value(rank, i)).collect::<Vec<_>>();
            let expected = bits(&tree::sum((0..world_size).map(leaf).collect()).unwrap());
            let sums = Job::new(world_size).run(|mut comm| {
                let mut buffer = leaf(comm.rank());
                comm.all_reduce_sum("gradient", &mut buffer).unwrap();
                bits(&buffer)
            });
            assert!(sums.iter().all(|sum| *sum == expected), "{world_size} ranks, {length} values");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Eight micro-batches, whichever ranks have them: zeros of both signs and subnormals among them.
    #[test]
    fn d1_random_buckets_on_1_2_4_and_8_ranks(
        leaves in prop::collection::vec(prop::collection::vec(
            prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO, 37), 8),
    ) {
        let expected = tree::sum(leaves.clone()).unwrap();
        let nan = expected.iter().position(|value| value.is_nan());
        for world_size in [1, 2, 4, 8] {
            let sums = Job::new(world_size).run(|mut comm| {
                let blocks: Vec<_> = leaves.chunks(8 / world_size).collect();
                let mut bucket = tree::sum(blocks[comm.rank()].to_vec()).unwrap();
                comm.all_reduce_sum("bucket 0", &mut bucket).map(|()| bits(&bucket))
            });
            for sum in sums {
                match (sum, nan) {
                    (Ok(sum), None) => prop_assert_eq!(sum, bits(&expected)),
                    // Two infinities of both signs.
                    (Err(CommError::NotANumber { collective, index, .. }), Some(nan)) => {
                        prop_assert_eq!((collective.as_str(), index), ("bucket 0", nan));
                    }
                    (other, nan) => prop_assert!(false, "{other:?}, {nan:?}"),
                }
            }
        }
    }
}

#[test]
fn d1_reduce_scatter_gives_each_rank_its_slice_of_the_tree() {
    for world_size in [1, 2, 3, 4] {
        for length in [0, 2, 7, 200_001] {
            let leaf = |rank| (0..length).map(|i| value(rank, i)).collect::<Vec<_>>();
            let expected = tree::sum((0..world_size).map(leaf).collect()).unwrap();
            let slices = Job::new(world_size).run(|mut comm| {
                let mut buffer = leaf(comm.rank());
                let own = comm.reduce_scatter_sum("gradient", &mut buffer).unwrap();
                assert_eq!(bits(&buffer[own.clone()]), bits(&expected[own.clone()]));
                own
            });
            let whole: Vec<usize> = slices.into_iter().flatten().collect();
            assert_eq!(whole, (0..length).collect::<Vec<_>>(), "{world_size} ranks");
        }
    }
}

/// Half the bytes: what each rank gives is rounded, added in f32 in the order of the tree, and rounded.
#[test]
fn sums_in_bf16_are_the_same_on_every_rank() {
    let round = |values: Vec<f32>| -> Vec<f32> {
        values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect()
    };
    for world_size in [1, 2, 3, 4] {
        let length = 600_001;
        let leaf = |rank| (0..length).map(|i| value(rank, i)).collect::<Vec<_>>();
        let leaves = (0..world_size).map(|rank| round(leaf(rank))).collect();
        let expected = bits(&round(tree::sum(leaves).unwrap()));
        let sums = Job::new(world_size).try_run(
            |comm| {
                let mut comm = comm.unwrap();
                let mut buffer = leaf(comm.rank());
                comm.all_reduce_sum("gradient", &mut buffer).unwrap();
                let mut odd = [1.0, f32::NAN];
                let error = comm.all_reduce_sum("odd", &mut odd).unwrap_err();
                assert!(matches!(error, CommError::NotANumber { index: 1, .. }), "{error}");
                bits(&buffer)
            },
            |config| reclora_comm::rendezvous::JoinConfig { wire: Wire::Bf16, ..config },
        );
        assert!(sums.iter().all(|sum| *sum == expected), "{world_size} ranks");
    }
}

#[test]
fn a_sum_that_is_not_a_number_is_the_same_error_on_every_rank() {
    let places = [5, 1000, 99_999, 250_000];
    for at in places {
        let errors = Job::new(4).run(|mut comm| {
            let mut buffer = vec![1.0; 300_000];
            // Not one value alone: it is their sum that is none.
            buffer[at] = if comm.rank() == 2 { f32::INFINITY } else { f32::NEG_INFINITY };
            buffer[299_999] = f32::NAN;
            buffer[0] = f32::INFINITY;
            let error = comm.all_reduce_sum("gradient bucket 3", &mut buffer).unwrap_err();
            comm.barrier("the connections are whole").unwrap();
            let scattered = comm.reduce_scatter_sum("gradient bucket 3", &mut buffer);
            assert!(matches!(scattered, Err(CommError::NotANumber { sequence: 2, .. })));
            error.to_string()
        });
        let expected = format!("gradient bucket 3 #0: the sum's value {at} is not a number");
        assert!(errors.iter().all(|error| *error == expected), "{errors:?}");
    }
}

#[test]
fn gather_broadcast_and_barrier() {
    Job::new(4).run(|mut comm| {
        let rank = comm.rank();
        let gathered = comm.all_gather("names", format!("rank {rank}").as_bytes()).unwrap();
        let expected: Vec<_> = (0..4).map(|r| format!("rank {r}").into_bytes()).collect();
        assert_eq!(gathered, expected);
        let pieces = (0..4).map(|to| vec![rank as u8; to * 1000]).collect();
        let pieces = comm.all_to_all("rows", pieces).unwrap();
        assert_eq!(pieces, (0..4).map(|from| vec![from; rank * 1000]).collect::<Vec<_>>());
        assert!(comm.all_to_all("rows", vec![Vec::new(); 3]).is_err());
        let mut bytes = vec![rank as u8; rank];
        comm.broadcast("plan", 3, &mut bytes).unwrap();
        assert_eq!(bytes, [3, 3, 3]);
        for _ in 0..50 {
            comm.barrier("step").unwrap();
        }
    });
}

#[test]
fn large_pieces_of_different_lengths_do_not_block_each_other() {
    Job::new(3).run(|mut comm| {
        let rank = comm.rank();
        let piece = |from: usize, to: usize| vec![from as u8; 5_000_000 * (from + 2 * to)];
        let pieces = (0..3).map(|to| piece(rank, to)).collect();
        let pieces = comm.all_to_all("rows", pieces).unwrap();
        assert!(pieces.into_iter().enumerate().all(|(from, got)| got == piece(from, rank)));
    });
}

#[test]
fn a_rank_may_run_ahead_of_a_broadcast() {
    Job::new(2).run(|mut comm| {
        for round in 0..200u8 {
            let mut bytes = vec![if comm.rank() == 0 { round } else { 0 }; 5000];
            comm.broadcast("weights", 0, &mut bytes).unwrap();
            assert!(bytes.iter().all(|&byte| byte == round));
        }
    });
}

#[test]
fn s2_a_rank_that_ends_is_named_at_once() {
    let errors = Job::new(3).run(|mut comm| {
        comm.barrier("start").unwrap();
        if comm.rank() == 1 {
            return None;
        }
        let begun = Instant::now();
        let error = comm.all_reduce_sum("gradient", &mut [1.0; 10]).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(error.is_peer_lost());
        Some(error)
    });
    // A survivor that saw it first ends too, but says whose fault it is.
    for error in errors.into_iter().flatten() {
        assert_eq!(error.culprits(), [1], "{error}");
        assert!(error.to_string().starts_with("gradient #1: "), "{error}");
    }
}

#[test]
fn s2_a_rank_that_hangs_is_named_at_the_deadline() {
    let job = Job::new(2);
    let (hang, release) = std::sync::mpsc::channel::<()>();
    let release = std::sync::Mutex::new(release);
    let hang = std::sync::Mutex::new(Some(hang));
    job.try_run(
        |comm| {
            let mut comm = comm.unwrap();
            if comm.rank() == 1 {
                let _ = release.lock().unwrap().recv();
                return;
            }
            let error = comm.barrier("epoch end").unwrap_err();
            assert!(
                error.to_string().starts_with("epoch end #0: waited 300ms for rank 1;"),
                "{error}"
            );
            drop(hang.lock().unwrap().take());
        },
        |config| reclora_comm::rendezvous::JoinConfig {
            timeout: Duration::from_millis(300),
            ..config
        },
    );
}

#[test]
fn ranks_in_different_collectives_are_told_so() {
    let errors = Job::new(2).run(|mut comm| {
        let result = match comm.rank() {
            0 => comm.all_reduce_sum("layer 3", &mut [0.0; 8]),
            _ => comm.all_reduce_sum("layer 3", &mut [0.0; 9]),
        };
        result.unwrap_err()
    });
    // One of them may end first; whoever compares says what both entered.
    assert!(errors.iter().any(|error| {
        let text = error.to_string();
        text.contains("\"layer 3\" #0 of 8") && text.contains("\"layer 3\" #0 of 9")
    }));
}

#[test]
fn roots_and_ranks_that_do_not_exist_are_errors() {
    let job = Job::new(2);
    let error = join(job.config(2)).unwrap_err();
    assert_eq!(error.to_string(), "rendezvous: rank 2 does not exist in a world of 2");
    job.run(|mut comm| {
        let error = comm.broadcast("plan", 2, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "plan: rank 2 does not exist in a world of 2");
    });
}
