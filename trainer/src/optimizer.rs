//! AdamW, gradient clipping and the learning-rate schedule, over one flat parameter vector.

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

    /// Running mean of the gradient, one value per parameter.
    pub fn first_moment(&self) -> &[f32] {
        &self.first_moment
    }

    /// Running mean of the squared gradient, one value per parameter.
    pub fn second_moment(&self) -> &[f32] {
        &self.second_moment
    }

    /// Optimizer steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// One update of `parameters` along `gradient`.
    ///
    /// # Panics
    /// If a length differs from the number of parameters: a defect of the caller.
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32], learning_rate: f32) {
        assert_eq!(parameters.len(), self.first_moment.len(), "one moment per parameter");
        assert_eq!(gradient.len(), self.first_moment.len(), "one gradient per parameter");
        self.step += 1;
        // In f64: 0.999^t needs the digits, and it is done once per step.
        let exponent = self.step as f64;
        let correction1 = 1.0 - f64::from(self.beta1).powf(exponent);
        let correction2 = 1.0 - f64::from(self.beta2).powf(exponent);
        let step_size = (f64::from(learning_rate) / correction1) as f32;
        let root2 = correction2.sqrt() as f32;
        let decay = 1.0 - learning_rate * self.weight_decay;
        let moments = self.first_moment.iter_mut().zip(&mut self.second_moment);
        for ((p, &g), (m, v)) in parameters.iter_mut().zip(gradient).zip(moments) {
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            *p = *p * decay - step_size * *m / (v.sqrt() / root2 + self.epsilon);
        }
    }
}

/// Scales `gradient` down so that its Euclidean norm is at most `max_norm`; returns the norm it had.
///
/// The norm is added up in f64 in index order, so it is the same on every rank.
pub fn clip_gradient_norm(gradient: &mut [f32], max_norm: f32) -> f32 {
    let squares: f64 = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
    let norm = squares.sqrt() as f32;
    if norm > max_norm {
        let scale = max_norm / norm;
        gradient.iter_mut().for_each(|g| *g *= scale);
    }
    norm
}

/// The learning rate of step `step` (from 0) of `total_steps`: linear from `base` to 0, no warm-up.
pub fn linear_decay(base: f32, step: u64, total_steps: u64) -> f32 {
    let left = total_steps.saturating_sub(step) as f64 / total_steps.max(1) as f64;
    (f64::from(base) * left) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn adamw_follows_the_published_formula() {
        let gradients = [0.5, -2.0, 0.01, 3.0, 0.0];
        for weight_decay in [0.0, 0.1] {
            let mut optimizer = AdamW::new(1, weight_decay);
            let mut parameter = [1.0f32];
            for g in gradients {
                optimizer.step(&mut parameter, &[g as f32], 0.05);
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
        whole.step(&mut a, &[0.3, 0.7], 0.1);
        let mut resumed = AdamW::from_parts(
            0.01,
            whole.first_moment().to_vec(),
            whole.second_moment().to_vec(),
            whole.steps(),
        )
        .unwrap();
        let mut b = a;
        whole.step(&mut a, &[-0.2, 0.1], 0.1);
        resumed.step(&mut b, &[-0.2, 0.1], 0.1);
        assert_eq!(a.map(f32::to_bits), b.map(f32::to_bits));
        assert_eq!(whole, resumed);
        assert!(AdamW::from_parts(0.0, vec![0.0], Vec::new(), 1).is_none());
    }

    #[test]
    fn clipping_keeps_the_direction_and_small_gradients() {
        let mut long = [3.0, 4.0];
        assert_eq!(clip_gradient_norm(&mut long, 1.0), 5.0);
        assert!((long[0] - 0.6).abs() < 1e-6 && (long[1] - 0.8).abs() < 1e-6);
        let mut short = [0.3, 0.4];
        clip_gradient_norm(&mut short, 1.0);
        assert_eq!(short, [0.3, 0.4]);
    }

    #[test]
    fn the_learning_rate_ends_at_zero() {
        assert_eq!(linear_decay(1.0, 0, 4), 1.0);
        assert_eq!(linear_decay(1.0, 3, 4), 0.25);
        assert_eq!(linear_decay(1.0, 4, 4), 0.0);
        assert_eq!(linear_decay(1.0, 9, 4), 0.0);
    }
}
