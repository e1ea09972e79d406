//! AdamW, gradient clipping and the learning-rate schedule, over one flat parameter vector.

use std::ops::Range;

use rayon::prelude::*;

use crate::parameters::GradientSum;

/// Values that a thread updates at a time.
const BLOCK: usize = 1 << 14;

/// AdamW with decoupled weight decay (Loshchilov & Hutter, 2019), in PyTorch's formulation.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    weight_decay: f32,
    first_moment: Vec<f32>,
    second_moment: Vec<f32>,
    step: u64,
    lazy_rows: bool,
    rates: Vec<(Range<usize>, f32)>,
}

impl AdamW {
    /// A fresh optimizer for `num_parameters` values: β = (0.9, 0.999), ε = 1e-8.
    pub fn new(num_parameters: usize, weight_decay: f32) -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay,
            first_moment: vec![0.0; num_parameters],
            second_moment: vec![0.0; num_parameters],
            step: 0,
            lazy_rows: false,
            rates: Vec::new(),
        }
    }

    /// Continues from saved state; `None` if the two moments differ in length.
    pub fn from_parts(
        weight_decay: f32,
        first_moment: Vec<f32>,
        second_moment: Vec<f32>,
        step: u64,
    ) -> Option<Self> {
        (first_moment.len() == second_moment.len()).then(|| Self {
            first_moment,
            second_moment,
            step,
            ..Self::new(0, weight_decay)
        })
    }

    /// With `lazy`, a step moves only those rows of the gradient's table that it touches: moments and
    /// weights of the others wait, without decay. (PyTorch's `SparseAdam`, here with AdamW's decay.)
    /// Without it an untouched row has a gradient of 0 and moves as its moments say, as in PyTorch's
    /// `AdamW` over a dense table.
    pub fn with_lazy_rows(self, lazy: bool) -> Self {
        Self { lazy_rows: lazy, ..self }
    }

    /// Gives some of the dense parameters, whose places count from behind the table and ascend, a learning rate of their
    /// own, as a multiple of the others'.
    pub fn with_rates(self, rates: Vec<(Range<usize>, f32)>) -> Self {
        Self { rates, ..self }
    }

    /// Running mean of the gradient, one value per parameter.
    pub fn first_moment(&self) -> &[f32] {
        &self.first_moment
    }

    /// Running mean of the squared gradient, one value per parameter.
    pub fn second_moment(&self) -> &[f32] {
        &self.second_moment
    }

    /// Exchanges the moments for `first` and `second`: lends them to who writes them, and takes them back.
    pub fn swap_moments(&mut self, first: &mut Vec<f32>, second: &mut Vec<f32>) {
        std::mem::swap(&mut self.first_moment, first);
        std::mem::swap(&mut self.second_moment, second);
    }

    /// Optimizer steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// One update of `parameters` along `gradient`.
    ///
    /// # Panics
    /// If a length differs from the number of parameters: a defect of the caller.
    pub fn step(&mut self, parameters: &mut [f32], gradient: &GradientSum, learning_rate: f32) {
        let table = gradient.table();
        assert_eq!(parameters.len(), self.first_moment.len(), "one moment per parameter");
        assert_eq!(
            table.len() + gradient.dense().len(),
            parameters.len(),
            "one gradient per parameter"
        );
        self.step += 1;
        let update = Update::new(self, learning_rate);
        let pieces = self.pieces(gradient.dense().len(), learning_rate);
        let split = |values| <[f32]>::split_at_mut(values, table.len());
        let (rows, dense) = split(parameters);
        let (rows_m, dense_m) = split(&mut self.first_moment);
        let (rows_v, dense_v) = split(&mut self.second_moment);
        if !table.is_empty() {
            // Whole rows, so that a block's touched ones are a range of the gradient's.
            let block = (BLOCK / table.width).max(1);
            let size = block * table.width;
            let blocks = rows.par_chunks_mut(size).zip(rows_m.par_chunks_mut(size));
            blocks.zip(rows_v.par_chunks_mut(size)).enumerate().for_each(|(index, ((p, m), v))| {
                update.rows([p, m, v], gradient, index * block, self.lazy_rows);
            });
        }
        for (range, update) in pieces {
            let [p, m, v] = [&mut *dense, &mut *dense_m, &mut *dense_v];
            let blocks = p[range.clone()].par_chunks_mut(BLOCK);
            let blocks = blocks.zip(m[range.clone()].par_chunks_mut(BLOCK));
            let blocks = blocks.zip(v[range.clone()].par_chunks_mut(BLOCK));
            blocks.zip(gradient.dense()[range].par_chunks(BLOCK)).for_each(|(((p, m), v), g)| {
                update.values([p, m, v], g.iter().copied());
            });
        }
    }

    /// The dense parameters in pieces of one rate.
    fn pieces(&self, count: usize, learning_rate: f32) -> Vec<(Range<usize>, Update)> {
        let mut pieces = Vec::with_capacity(2 * self.rates.len() + 1);
        let mut done = 0;
        for (range, rate) in &self.rates {
            pieces.push((done..range.start, Update::new(self, learning_rate)));
            pieces.push((range.clone(), Update::new(self, learning_rate * rate)));
            done = range.end;
        }
        pieces.push((done..count, Update::new(self, learning_rate)));
        pieces
    }
}

/// The numbers of one step.
struct Update {
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    step_size: f32,
    root2: f32,
    decay: f32,
}

impl Update {
    fn new(optimizer: &AdamW, learning_rate: f32) -> Self {
        let AdamW { beta1, beta2, epsilon, weight_decay, step, .. } = *optimizer;
        // In f64: 0.999^t needs the digits, and it is done once per step.
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(step as f64);
        Self {
            beta1,
            beta2,
            epsilon,
            step_size: (f64::from(learning_rate) / correction(beta1)) as f32,
            root2: correction(beta2).sqrt() as f32,
            decay: 1.0 - learning_rate * weight_decay,
        }
    }

    /// Parameters and their two moments, along a gradient.
    fn values(&self, [p, m, v]: [&mut [f32]; 3], gradient: impl Iterator<Item = f32>) {
        for ((p, g), (m, v)) in p.iter_mut().zip(gradient).zip(m.iter_mut().zip(v)) {
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            *p = *p * self.decay - self.step_size * *m / (v.sqrt() / self.root2 + self.epsilon);
        }
    }

    /// Rows of the table from `first` on.
    fn rows(&self, [p, m, v]: [&mut [f32]; 3], gradient: &GradientSum, first: usize, lazy: bool) {
        let width = gradient.table().width;
        let place = |row: usize| gradient.rows().partition_point(|r| (*r as usize) < row);
        let touched = place(first)..place(first + p.len() / width);
        // What is untouched between two touched rows.
        let mut done = 0;
        let mut rest = |values: [&mut [f32]; 3], until: usize| {
            let [p, m, v] = values.map(|values| &mut values[done..until]);
            if !lazy {
                self.values([p, m, v], std::iter::repeat(0.0));
            }
            done = until + width;
        };
        for place in touched {
            let start = (gradient.rows()[place] as usize - first) * width;
            rest([&mut *p, &mut *m, &mut *v], start);
            let here = start..start + width;
            let row = [&mut p[here.clone()], &mut m[here.clone()], &mut v[here]];
            let values = &gradient.values()[place * width..(place + 1) * width];
            self.values(row, values.iter().copied());
        }
        let end = p.len();
        rest([p, m, v], end);
    }
}

/// Scales `gradient`, whose Euclidean norm is `norm`, down to `max_norm` where it is longer.
pub fn clip_gradient_norm(gradient: &mut GradientSum, norm: f32, max_norm: f32) {
    if norm > max_norm {
        gradient.scale(max_norm / norm);
    }
}

/// The learning rate of step `step` (from 0) of `total_steps`: linear up to `peak` in the first `warmup` steps, then
/// linear to 0.
pub fn schedule(peak: f32, step: u64, total_steps: u64, warmup: u64) -> f32 {
    let of_peak = if step < warmup {
        (step + 1) as f64 / (warmup + 1) as f64
    } else {
        total_steps.saturating_sub(step) as f64
            / (total_steps - warmup.min(total_steps)).max(1) as f64
    };
    (f64::from(peak) * of_peak) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{Gradient, Table};

    /// The published update, in f64.
    fn reference(gradients: &[f64], learning_rate: f64, weight_decay: f64) -> f64 {
        let (mut p, mut m, mut v) = (1.0, 0.0, 0.0);
        for (index, g) in gradients.iter().enumerate() {
            let t = index as i32 + 1;
            p *= 1.0 - learning_rate * weight_decay;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
            p -= learning_rate * m_hat / (v_hat.sqrt() + 1e-8);
        }
        p
    }

    fn dense(values: &[f32]) -> GradientSum {
        GradientSum::of_dense(values.to_vec())
    }

    /// A table of 5 rows and one dense parameter, of which steps touch rows 1 and 3, then only 3.
    #[test]
    fn rows_that_are_not_touched_move_as_with_a_gradient_of_zero_or_wait() {
        let table = Table { rows: 5, width: 2 };
        let start: Vec<f32> = (0..11).map(|i| i as f32 * 0.1 - 0.4).collect();
        let (mut lazy, mut eager, mut flat) = (start.clone(), start.clone(), start.clone());
        let mut optimizers =
            [true, false, false].map(|lazy| AdamW::new(start.len(), 0.01).with_lazy_rows(lazy));
        for rows in [[1, 3].as_slice(), &[3]] {
            let mut gradient = Gradient::zero(table, 1);
            let mut values = vec![0.0; start.len()];
            for row in rows {
                gradient.row(*row).copy_from_slice(&[0.5, -1.0]);
                values[*row as usize * 2..][..2].copy_from_slice(&[0.5, -1.0]);
            }
            gradient.all_dense()[0] = 2.0;
            values[10] = 2.0;
            let gradient = gradient.sum(0.0.into());
            let [of_lazy, of_eager, of_flat] = &mut optimizers;
            of_lazy.step(&mut lazy, &gradient, 0.1);
            of_eager.step(&mut eager, &gradient, 0.1);
            of_flat.step(&mut flat, &dense(&values), 0.1);
        }
        assert_eq!(eager, flat);
        assert_eq!(lazy[6..8], flat[6..8], "a row that every step touches");
        assert_eq!(lazy[10], flat[10]);
        assert_eq!((&lazy[..2], &lazy[4..6]), (&start[..2], &start[4..6]));
        assert_ne!(lazy[2..4], flat[2..4], "the second step moved row 1 by its moments");
        assert_eq!(optimizers[1].first_moment(), optimizers[2].first_moment());
    }

    #[test]
    fn adamw_follows_the_published_formula() {
        let gradients = [0.5, -2.0, 0.01, 3.0, 0.0];
        for weight_decay in [0.0, 0.1] {
            let mut optimizer = AdamW::new(1, weight_decay);
            let mut parameter = [1.0f32];
            for g in gradients {
                optimizer.step(&mut parameter, &dense(&[g as f32]), 0.05);
            }
            let expected = reference(&gradients, 0.05, f64::from(weight_decay));
            assert!((f64::from(parameter[0]) - expected).abs() < 1e-6, "{parameter:?} {expected}");
            assert_eq!(optimizer.steps(), 5);
        }
    }

    #[test]
    fn adamw_continues_from_saved_state_to_the_bit() {
        let mut whole = AdamW::new(2, 0.01);
        let mut a = [1.0, -1.0];
        whole.step(&mut a, &dense(&[0.3, 0.7]), 0.1);
        let mut resumed = AdamW::from_parts(
            0.01,
            whole.first_moment().to_vec(),
            whole.second_moment().to_vec(),
            whole.steps(),
        )
        .unwrap();
        let mut b = a;
        whole.step(&mut a, &dense(&[-0.2, 0.1]), 0.1);
        resumed.step(&mut b, &dense(&[-0.2, 0.1]), 0.1);
        assert_eq!(a.map(f32::to_bits), b.map(f32::to_bits));
        assert_eq!(whole, resumed);
        assert!(AdamW::from_parts(0.0, vec![0.0], Vec::new(), 1).is_none());
    }

    #[test]
    fn clipping_keeps_the_direction_and_small_gradients() {
        let mut long = dense(&[3.0, 4.0]);
        clip_gradient_norm(&mut long, 5.0, 1.0);
        assert!((long.dense()[0] - 0.6).abs() < 1e-6 && (long.dense()[1] - 0.8).abs() < 1e-6);
        let mut short = dense(&[0.3, 0.4]);
        clip_gradient_norm(&mut short, 0.5, 1.0);
        assert_eq!(short, dense(&[0.3, 0.4]));
    }

    #[test]
    fn the_learning_rate_ends_at_zero() {
        assert_eq!([0, 3, 4, 9].map(|step| schedule(1.0, step, 4, 0)), [1.0, 0.25, 0.0, 0.0]);
        let warm = [0, 1, 2, 3, 5, 6].map(|step| schedule(1.0, step, 6, 2));
        assert_eq!(warm.map(|rate| (rate * 12.0).round()), [4.0, 8.0, 12.0, 9.0, 3.0, 0.0]);
        assert!(schedule(1.0, 0, 0, 0) == 0.0 && schedule(1.0, 5, 5, 9) < 1.0);
    }

    #[test]
    fn some_parameters_have_a_rate_of_their_own() {
        let count = 3 * BLOCK;
        let gradient: Vec<f32> = (0..count).map(|place| 0.1 + (place % 7) as f32).collect();
        let step = |rate: f32, rates: Vec<(Range<usize>, f32)>| {
            let (mut optimizer, mut values) =
                (AdamW::new(count, 0.1).with_rates(rates), vec![1.0; count]);
            (0..2).for_each(|_| optimizer.step(&mut values, &dense(&gradient), rate));
            values
        };
        let own = BLOCK / 2..2 * BLOCK + 5;
        let mixed = step(0.1, vec![(own.clone(), 2.0), (count - 1..count, 0.5)]);
        let (one, two, half) = (step(0.1, vec![]), step(0.2, vec![]), step(0.05, vec![]));
        assert_eq!(mixed[..own.start], one[..own.start]);
        assert_eq!(mixed[own.clone()], two[own.clone()]);
        assert_eq!(mixed[own.end..count - 1], one[own.end..count - 1]);
        assert_eq!(mixed[count - 1], half[count - 1]);
    }
}
