//! All gates of an adapter at once, for a batch of samples: the maths of [`crate::adapter`]'s gate as
//! batched matrix products, `[modules, samples, …]`.

use std::ops::Range;

use candle_core::{D, Tensor};

use super::ops::{softmax, softmax_grad};
use crate::adapter::{AdapterLayout, Dropout, LAYER_NORM_EPS, SampleGate};
use crate::error::Result;

/// The gates' parameters, stacked over modules.
pub(super) struct Gates {
    norm_weight: Tensor,
    norm_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    hidden: usize,
    temperature: f64,
    sqrt_alpha: bool,
}

/// What the forward computed and the backward reads.
pub(super) struct GateState {
    /// (c - mean) / std `[1, samples, |c|]`.
    x_hat: Tensor,
    normed: Tensor,
    hidden: Tensor,
    /// d hidden / d pre-activation.
    slope: Tensor,
    probability: Tensor,
    /// Mixture weights `[modules, samples, experts]`.
    pub alpha: Tensor,
}

/// Gradients of every gate's tensors, stacked over modules, with their places in the flat vector.
pub(super) type GateGradients = Vec<(Tensor, fn(&SampleGate) -> &Range<usize>)>;

impl Gates {
    /// From the adapter's flat vector on the device; `None` for plain LoRA.
    pub fn new(layout: &AdapterLayout, parameters: &Tensor) -> Result<Option<Self>> {
        let gates: Option<Vec<&SampleGate>> =
            layout.modules().iter().map(|module| module.sample_gate()).collect();
        let Some(gates) = gates else { return Ok(None) };
        let config = layout.config();
        let (width, hidden) = (layout.representation_dim(), config.gate_hidden);
        let experts = config.experts;
        let stack = |range: fn(&SampleGate) -> &Range<usize>, rows, columns| -> Result<Tensor> {
            let parts = gates.iter().map(|gate| {
                let range = range(gate);
                parameters.narrow(0, range.start, range.len())?.reshape((rows, columns))
            });
            Ok(Tensor::stack(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
        };
        Ok(Some(Self {
            norm_weight: stack(|gate| &gate.norm_weight, 1, width)?,
            norm_bias: stack(|gate| &gate.norm_bias, 1, width)?,
            fc1_weight: stack(|gate| &gate.fc1_weight, hidden, width)?,
            fc1_bias: stack(|gate| &gate.fc1_bias, 1, hidden)?,
            fc2_weight: stack(|gate| &gate.fc2_weight, experts, hidden)?,
            fc2_bias: stack(|gate| &gate.fc2_bias, 1, experts)?,
            hidden,
            temperature: f64::from(config.temperature),
            sqrt_alpha: config.sqrt_alpha,
        }))
    }

    /// Mixture weights for representations `[samples, |c|]`.
    pub fn forward(&self, c: &Tensor, dropout: &[Option<Dropout>]) -> Result<GateState> {
        let centred = c.broadcast_sub(&c.mean_keepdim(1)?)?;
        let variance = centred.sqr()?.mean_keepdim(1)?;
        let inv_std = (variance + f64::from(LAYER_NORM_EPS))?.sqrt()?.recip()?;
        let x_hat = centred.broadcast_mul(&inv_std)?.unsqueeze(0)?;
        let scale = (&self.norm_weight + 1.0)?;
        let normed = x_hat.broadcast_mul(&scale)?.broadcast_add(&self.norm_bias)?;
        let pre = normed.matmul(&self.fc1_weight.t()?)?.broadcast_add(&self.fc1_bias)?;
        let keep = self.keep(dropout, c)?;
        let open = pre.gt(0f32)?.to_dtype(pre.dtype())?;
        let slope = match &keep {
            Some(keep) => (open * keep)?,
            None => open,
        };
        let hidden = (pre * &slope)?;
        let logits = hidden.matmul(&self.fc2_weight.t()?)?.broadcast_add(&self.fc2_bias)?;
        let probability = softmax(&(logits / self.temperature)?)?;
        let alpha = if self.sqrt_alpha { probability.sqrt()? } else { probability.clone() };
        Ok(GateState { x_hat, normed, hidden, slope, probability, alpha })
    }

    /// What dropout multiplies each hidden unit by, `[modules, samples, hidden]`.
    fn keep(&self, dropout: &[Option<Dropout>], like: &Tensor) -> Result<Option<Tensor>> {
        if dropout.iter().all(Option::is_none) {
            return Ok(None);
        }
        let modules = self.fc1_weight.dim(0)?;
        let mut factors = Vec::with_capacity(modules * dropout.len() * self.hidden);
        for module in 0..modules {
            for dropout in dropout {
                let factor = |unit| dropout.map_or(1.0, |dropout| dropout.factor(module, unit));
                factors.extend((0..self.hidden).map(factor));
            }
        }
        let shape = (modules, dropout.len(), self.hidden);
        Ok(Some(Tensor::from_vec(factors, shape, like.device())?))
    }

    /// Gradients of the gates of some modules for that of their `alpha`. The representations get none:
    /// the CRM is frozen.
    pub fn backward(
        &self,
        state: &GateState,
        modules: Range<usize>,
        d_alpha: &Tensor,
    ) -> Result<GateGradients> {
        let own = |stacked: &Tensor| stacked.narrow(0, modules.start, modules.len());
        let probability = own(&state.probability)?;
        let d_logits = if self.sqrt_alpha {
            // d alpha / d p = 1 / (2 alpha), times the p of the softmax's backward: finite for p = 0.
            let weighted = ((own(&state.alpha)? * d_alpha)? * 0.5)?;
            let total = weighted.sum_keepdim(D::Minus1)?;
            (weighted - probability.broadcast_mul(&total)?)?
        } else {
            softmax_grad(&probability, d_alpha)?
        };
        let d_logits = (d_logits / self.temperature)?;
        let d_fc2 = d_logits.transpose(1, 2)?.matmul(&own(&state.hidden)?)?;
        let d_pre = (d_logits.matmul(&own(&self.fc2_weight)?)? * own(&state.slope)?)?;
        let d_fc1 = d_pre.transpose(1, 2)?.matmul(&own(&state.normed)?)?;
        let d_normed = d_pre.matmul(&own(&self.fc1_weight)?)?;
        let d_norm_weight = d_normed.broadcast_mul(&state.x_hat)?.sum(1)?;
        Ok(vec![
            (d_norm_weight, |gate| &gate.norm_weight),
            (d_normed.sum(1)?, |gate| &gate.norm_bias),
            (d_fc1, |gate| &gate.fc1_weight),
            (d_pre.sum(1)?, |gate| &gate.fc1_bias),
            (d_fc2, |gate| &gate.fc2_weight),
            (d_logits.sum(1)?, |gate| &gate.fc2_bias),
        ])
    }
}
