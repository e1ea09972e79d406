//! Thousands of schedules, and that a seed gives the same again.

use super::*;

#[test]
fn every_promise_is_kept_under_thousands_of_schedules() {
    let mut ends = BTreeMap::new();
    for seed in 0..4000 {
        let world_size = [1, 2, 4, 8][seed as usize % 4];
        match job(seed, world_size, &mut |_, _, _| {}) {
            Ok(run) => *ends.entry(run.end).or_insert(0) += 1,
            Err(what) => panic!("seed {seed}, {world_size} ranks: {what}"),
        }
    }
    // Nothing of it is a matter of course.
    assert_eq!(ends.len(), 5, "{ends:?}");
    assert!(ends.values().all(|count| *count > 40), "{ends:?}");
}

#[test]
fn a_seed_gives_the_same_again() {
    let trace = |seed| {
        let mut lines = Vec::new();
        let run = job(seed, 4, &mut |a, at, text| lines.push(format!("{a} {at:?} {text}")));
        (run.unwrap().end, lines)
    };
    assert_eq!(trace(7), trace(7));
    assert!((0..20).any(|seed| trace(seed).1.len() > 5));
}
