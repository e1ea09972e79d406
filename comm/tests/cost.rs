//! The cost model of the benchmark of that name: what it predicts, and what it makes of measurements.

#[path = "../benches/cost/mod.rs"]
mod model;

use model::{Link, Step};
use proptest::prelude::*;

const LINK: Link = Link { latency: 1e-5, per_byte: 1e-9 };

#[test]
fn one_rank_sends_nothing_and_two_send_half_each_way() {
    assert_eq!(LINK.all_reduce(1, 1e6), 0.0);
    assert!((LINK.all_reduce(2, 1e6) - (2e-5 + 1e-3)).abs() < 1e-12);
    // As a ring, it comes to twice the bytes with many ranks.
    assert!((LINK.all_reduce(1 << 20, 1e15) / 2e6 - 1.0).abs() < 1e-4);
}

#[test]
fn only_the_last_bucket_is_exposed_where_computing_is_long() {
    let step = Step { compute: 8.0, last_backward: 0.5, gradient: 1e8, bucket: 1e7 };
    let one = step.on(1, LINK);
    assert_eq!((one.communication, one.exposed), (0.0, 0.0));
    assert_eq!(one.efficiency(step, 1), 1.0);
    let four = step.on(4, LINK);
    assert!((four.exposed - four.communication / 10.0).abs() < 1e-9, "{four:?}");
    let short = Step { last_backward: 0.0, ..step }.on(4, LINK);
    assert_eq!(short.exposed, short.communication);
    assert!(short.efficiency(step, 4) < four.efficiency(step, 4));
}

#[test]
fn what_cannot_be_fitted_is_not() {
    assert_eq!(Link::fit(1, &[(1.0, 1.0), (2.0, 2.0)]), None);
    assert_eq!(Link::fit(2, &[]), None);
    assert_eq!(Link::fit(2, &[(8.0, 1.0), (8.0, 1.1)]), None);
}

proptest! {
    #[test]
    fn a_fit_finds_the_link_that_made_the_times(
        latency in 1e-6f64..1e-3, per_byte in 1e-11f64..1e-8, world_size in 2usize..9,
    ) {
        let link = Link { latency, per_byte };
        let times = [1e4, 1e6, 1e8].map(|bytes| (bytes, link.all_reduce(world_size, bytes)));
        let fitted = Link::fit(world_size, &times).unwrap();
        prop_assert!((fitted.latency / latency - 1.0).abs() < 1e-3, "{fitted:?}");
        prop_assert!((fitted.per_byte / per_byte - 1.0).abs() < 1e-3, "{fitted:?}");
    }
}
