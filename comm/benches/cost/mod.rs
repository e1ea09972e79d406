//! What a step of data-parallel training costs: a model of time, not a measurement.
//!
//! A message of n bytes takes α + β n: a latency and the time of its bytes. In a sum by direct exchange
//! each of W ranks gives and gets W − 1 pieces of n / W bytes, and as many sums; a rank's messages leave
//! one after the other, and all ranks work at the same time. So a sum takes
//! 2 ((W − 1) α + (W − 1) / W · β n): the bytes of a ring, whose latency it has too, without its chain.

/// What a rank has to the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// α: seconds of a message.
    pub latency: f64,
    /// β: seconds of a byte.
    pub per_byte: f64,
}

impl Link {
    /// Seconds of a sum of `bytes` over `world_size` ranks.
    pub fn all_reduce(self, world_size: usize, bytes: f64) -> f64 {
        let others = world_size.saturating_sub(1) as f64;
        2.0 * (others * self.latency + others / world_size.max(1) as f64 * self.per_byte * bytes)
    }

    /// The link with which [`Self::all_reduce`] fits measurements (bytes, seconds) on `world_size` ranks
    /// best: least squares of the relative errors. `None` for fewer than two sizes or a single rank.
    pub fn fit(world_size: usize, measured: &[(f64, f64)]) -> Option<Self> {
        // Seconds = a + b bytes; each line divided by its seconds: 1 = a / s + b bytes / s.
        let (mut ss, mut sb, mut bb, mut s, mut b) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (bytes, seconds) in measured {
            let (x, y) = (1.0 / seconds, bytes / seconds);
            (ss, sb, bb, s, b) = (ss + x * x, sb + x * y, bb + y * y, s + x, b + y);
        }
        let determinant = ss * bb - sb * sb;
        if world_size < 2 || determinant.is_nan() || determinant <= 1e-12 * ss * bb {
            return None;
        }
        let constant = ((s * bb - b * sb) / determinant).max(0.0);
        let slope = ((b * ss - s * sb) / determinant).max(0.0);
        let others = (world_size - 1) as f64;
        let per_byte = slope * world_size as f64 / (2.0 * others);
        Some(Self { latency: constant / (2.0 * others), per_byte })
    }
}

/// One optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Seconds in which one rank alone computes the global batch.
    pub compute: f64,
    /// Seconds of the backward pass of one micro-batch: what can hide the sums of all buckets but the last.
    pub last_backward: f64,
    /// Bytes of the gradient.
    pub gradient: f64,
    /// Bytes of a bucket.
    pub bucket: f64,
}

/// How long a step takes on some ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Seconds of computing.
    pub compute: f64,
    /// Seconds of sums.
    pub communication: f64,
    /// The part of them that computing does not hide.
    pub exposed: f64,
}

impl Prediction {
    /// Seconds of the whole step.
    pub fn seconds(self) -> f64 {
        self.compute + self.exposed
    }

    /// How much faster than one rank, divided by the number of ranks: 1 at best.
    pub fn efficiency(self, step: Step, world_size: usize) -> f64 {
        step.compute / (self.seconds() * world_size.max(1) as f64)
    }
}

impl Step {
    /// A step of the same global batch, shared by `world_size` ranks.
    pub fn on(self, world_size: usize, link: Link) -> Prediction {
        let compute = self.compute / world_size.max(1) as f64;
        let bucket = self.bucket.min(self.gradient).max(1.0);
        let buckets = (self.gradient / bucket).ceil().max(1.0);
        let of_one = link.all_reduce(world_size, self.gradient / buckets);
        let communication = buckets * of_one;
        // The last bucket is complete only when nothing is left to compute.
        let hidden = (communication - of_one).min(self.last_backward.min(compute));
        Prediction { compute, communication, exposed: communication - hidden }
    }
}
