//! One module's mixed adapter: how experts are put together, and the backward of that.

use super::Module;
use super::token_router::{TokenBuffers, TokenRouter};
use crate::kernels::buffer::{Buffer, Scratch};
use crate::kernels::pointwise::{axpy, dot};

/// One module's mixed adapter and the gradients that reached it.
#[derive(Debug, Default)]
pub(crate) struct MixedState {
    /// Weights of the experts `[N]`.
    pub alpha: Vec<f32>,
    /// What gives every token weights of its own, where the kind does: it stands between A and B, which are then
    /// all experts with weight 1.
    pub router: Option<TokenRouter>,
    /// `[rank', d_in]`, rank' = r (factor) or N * r (product).
    pub a: Vec<f32>,
    /// `[d_out, rank']`.
    pub b: Vec<f32>,
    /// Gradients of `a` and `b`, set by the block's backward.
    pub d_a: Buffer,
    /// See `d_a`.
    pub d_b: Buffer,
    /// Gradient of `alpha`, set by [`Self::unmix_experts`].
    pub d_alpha: Vec<f32>,
    /// What the kind keeps from forward to backward.
    pub buffers: Scratch,
}

impl MixedState {
    /// Every expert has weight 1.
    pub fn set_ones(&mut self, experts: usize) {
        self.alpha.clear();
        self.alpha.resize(experts, 1.0);
    }

    /// What B multiplies, of what A made of the rows of `x` `[rows, d_in]` (`lora_x` `[rows, rank']`).
    pub fn between<'b>(
        &self,
        x: &[f32],
        d_in: usize,
        lora_x: &'b [f32],
        buffers: &'b mut TokenBuffers,
    ) -> &'b [f32] {
        let Some(router) = &self.router else { return lora_x };
        router.forward(x, d_in, lora_x, buffers);
        &buffers.routed
    }

    /// Backward of [`Self::between`], whose buffers these are: `d_lora`, the gradient of what B multiplies over
    /// `scale`, becomes that of `lora_x`; what reaches the rows of `x` on the way is added to `dx`.
    pub fn between_grad(
        &mut self,
        lora_x: &[f32],
        d_lora: &mut [f32],
        scale: f32,
        d_in: usize,
        dx: Option<&mut [f32]>,
        buffers: &mut TokenBuffers,
    ) {
        if let Some(router) = &mut self.router {
            router.backward(lora_x, d_lora, scale, d_in, dx, buffers);
        }
    }

    /// A and B of the experts, mixed with their weights.
    pub fn mix_experts(&mut self, module: Module<'_>) {
        let (a, b, rank) = (module.a, module.b, module.config.rank);
        let a_experts = a.chunks_exact(rank * module.d_in);
        let b_experts = b.chunks_exact(module.d_out * rank);
        self.a.clear();
        self.b.clear();
        if module.is_stacked {
            // The experts' A stacked; their B side by side, each scaled by its weight.
            self.a.extend_from_slice(a);
            let stacked = self.alpha.len() * rank;
            self.b.resize(module.d_out * stacked, 0.0);
            for (k, (b, alpha)) in b_experts.zip(&self.alpha).enumerate() {
                let rows = self.b.chunks_exact_mut(stacked).zip(b.chunks_exact(rank));
                for (dst, src) in rows {
                    for (d, s) in dst[k * rank..(k + 1) * rank].iter_mut().zip(src) {
                        *d = alpha * s;
                    }
                }
            }
        } else {
            self.a.resize(rank * module.d_in, 0.0);
            self.b.resize(module.d_out * rank, 0.0);
            for ((a, b), alpha) in a_experts.zip(b_experts).zip(&self.alpha) {
                axpy(&mut self.a, *alpha, a);
                axpy(&mut self.b, *alpha, b);
            }
        }
    }

    /// Backward of [`Self::mix_experts`]: gradients of the experts, and of their weights.
    pub fn unmix_experts(&mut self, module: Module<'_>, gradient: &mut [f32]) {
        let rank = module.config.rank;
        let (a_len, b_len) = (rank * module.d_in, module.d_out * rank);
        let stacked = self.alpha.len() * rank;
        self.d_alpha.clear();
        for (k, alpha) in self.alpha.iter().enumerate() {
            let a = module.a_start + k * a_len..module.a_start + (k + 1) * a_len;
            let b = module.b_start + k * b_len..module.b_start + (k + 1) * b_len;
            if module.is_stacked {
                axpy(&mut gradient[a], 1.0, &self.d_a[k * a_len..(k + 1) * a_len]);
                let mut sum = 0.0;
                let expert = module.parameters[b.clone()].chunks_exact(rank);
                let rows = gradient[b].chunks_exact_mut(rank).zip(expert);
                for ((g, b), d) in rows.zip(self.d_b.chunks_exact(stacked)) {
                    let d = &d[k * rank..(k + 1) * rank];
                    for ((g, b), d) in g.iter_mut().zip(b).zip(d) {
                        *g += alpha * d;
                        sum += b * d;
                    }
                }
                self.d_alpha.push(sum);
            } else {
                axpy(&mut gradient[a.clone()], *alpha, &self.d_a);
                axpy(&mut gradient[b.clone()], *alpha, &self.d_b);
                let parameters = module.parameters;
                self.d_alpha.push(dot(&self.d_a, &parameters[a]) + dot(&self.d_b, &parameters[b]));
            }
        }
    }
}
