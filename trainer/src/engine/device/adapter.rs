//! A personalised LoRA on a device: mixtures of a batch of samples, applied to packed rows.
//!
//! In the product form, and in plain LoRA, all samples share the stacked experts and each row of
//! `x A^T` is scaled by its sample's mixture weights: no loop over samples. In the factor form each
//! sample has matrices of its own, and its rows go through them by themselves.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::batch::Rows;
use super::gates::{GateState, Gates};
use super::weights::DeviceBackbone;
use crate::adapter::{AdapterLayout, AdapterView, Dropout, ModuleLayout};
use crate::backbone::Projection;
use crate::config::MixForm;
use crate::engine::Prompt;
use crate::error::Result;

/// An adapter's parameters on a device.
pub(super) struct DeviceAdapter {
    pub layout: AdapterLayout,
    /// The flat vector, f32.
    parameters: Tensor,
    gates: Option<Gates>,
    dtype: DType,
}

/// The mixtures of a batch: of every module and sample.
pub(super) struct Mixtures {
    /// `None`: plain LoRA.
    state: Option<GateState>,
}

/// Gradients that reached the adapter, by module.
pub(super) struct Gradients {
    modules: Vec<Option<ModuleGradients>>,
}

struct ModuleGradients {
    /// `[experts * rank * d_in]`, f32.
    a: Tensor,
    /// `[experts * d_out * rank]`, f32.
    b: Tensor,
    /// `[samples, experts]`; plain LoRA has none.
    alpha: Option<Tensor>,
}

impl Gradients {
    pub fn new(adapter: &DeviceAdapter) -> Self {
        Self { modules: adapter.layout.modules().iter().map(|_| None).collect() }
    }
}

/// One adapted projection of a block, mixed for a batch.
pub(super) struct Site<'a> {
    adapter: &'a DeviceAdapter,
    index: usize,
    mixed: Mixed,
}

enum Mixed {
    /// Stacked experts `a` `[m, d_in]` and `b` `[m, d_out]`; `alpha` `[samples, m]` where gates mix.
    Shared { a: Tensor, b: Tensor, alpha: Option<Tensor> },
    /// `a` `[samples, rank, d_in]`, `b` `[samples, d_out, rank]`, `alpha` `[samples, experts]` (f32).
    PerSample { a: Tensor, b: Tensor, alpha: Tensor },
}

impl DeviceAdapter {
    pub fn new(backbone: &DeviceBackbone, adapter: AdapterView<'_>) -> Result<Self> {
        let layout = adapter.layout().clone();
        let parameters = adapter.parameters();
        let parameters = Tensor::from_slice(parameters, parameters.len(), &backbone.device)?;
        let gates = Gates::new(&layout, &parameters)?;
        Ok(Self { layout, parameters, gates, dtype: backbone.options.precision.dtype() })
    }

    /// Runs the gates. The representations have the width that the gates read (see `check`).
    pub fn mix(&self, prompts: &[Prompt<'_>], dropout: &[Option<Dropout>]) -> Result<Mixtures> {
        let Some(gates) = &self.gates else { return Ok(Mixtures { state: None }) };
        let values: Vec<f32> =
            prompts.iter().flat_map(|prompt| prompt.representation).copied().collect();
        let shape = (prompts.len(), self.layout.representation_dim());
        let c = Tensor::from_vec(values, shape, self.parameters.device())?;
        Ok(Mixtures { state: Some(gates.forward(&c, dropout)?) })
    }

    /// The adapted projection of a block, if it is one, mixed for the batch.
    pub fn site(
        &self,
        layer: usize,
        projection: Projection,
        mixtures: &Mixtures,
    ) -> Result<Option<Site<'_>>> {
        let Some(index) = self.layout.module_index(layer, projection) else { return Ok(None) };
        let module = &self.layout.modules()[index];
        let rank = self.layout.config().rank;
        let alpha = match &mixtures.state {
            Some(state) => Some(state.alpha.get(index)?),
            None => None,
        };
        let mixed = match (self.layout.config().form, alpha) {
            (MixForm::Factor, Some(alpha)) => {
                let (a, b) = (self.experts_a(module)?, self.experts_b(module)?);
                let samples = alpha.dim(0)?;
                let a = alpha.matmul(&a)?.reshape((samples, rank, module.d_in))?;
                let b = alpha.matmul(&b)?.reshape((samples, module.d_out, rank))?;
                Mixed::PerSample { a: a.to_dtype(self.dtype)?, b: b.to_dtype(self.dtype)?, alpha }
            }
            (_, alpha) => {
                let experts = self.layout.config().experts;
                let a = self.experts_a(module)?.reshape((experts * rank, module.d_in))?;
                let b = self.experts_b(module)?.reshape((experts, module.d_out, rank))?;
                let b = b.transpose(1, 2)?.reshape((experts * rank, module.d_out))?;
                let spread = |alpha: Tensor| -> Result<Tensor> {
                    let samples = alpha.dim(0)?;
                    let alpha = alpha.unsqueeze(2)?.broadcast_as((samples, experts, rank))?;
                    Ok(alpha.reshape((samples, experts * rank))?.to_dtype(self.dtype)?)
                };
                let alpha = alpha.map(spread).transpose()?;
                Mixed::Shared { a: a.to_dtype(self.dtype)?, b: b.to_dtype(self.dtype)?, alpha }
            }
        };
        Ok(Some(Site { adapter: self, index, mixed }))
    }

    /// `[experts, rank * d_in]`.
    fn experts_a(&self, module: &ModuleLayout) -> Result<Tensor> {
        self.experts(&module.a)
    }

    /// `[experts, d_out * rank]`.
    fn experts_b(&self, module: &ModuleLayout) -> Result<Tensor> {
        self.experts(&module.b)
    }

    fn experts(&self, range: &std::ops::Range<usize>) -> Result<Tensor> {
        let experts = self.layout.config().experts;
        let values = self.parameters.narrow(0, range.start, range.len())?;
        Ok(values.reshape((experts, range.len() / experts))?)
    }

    /// The gradient of those parts of the flat vector that are of some blocks, from what reached their
    /// modules.
    pub fn gradient(
        &self,
        layers: Range<usize>,
        mixtures: &Mixtures,
        gradients: &mut Gradients,
    ) -> Result<Vec<f32>> {
        let modules = self.layout.modules();
        let first = modules.partition_point(|module| module.layer < layers.start);
        let end = modules.partition_point(|module| module.layer < layers.end);
        let own = first..end;
        if own.is_empty() {
            return Ok(Vec::new());
        }
        let mut parts: Vec<(usize, Tensor)> = Vec::new();
        let mut alphas = Vec::new();
        for (module, reached) in
            modules[own.clone()].iter().zip(&mut gradients.modules[own.clone()])
        {
            let Some(ModuleGradients { a, b, alpha }) = reached.take() else { continue };
            parts.extend([(module.a.start, a.flatten_all()?), (module.b.start, b.flatten_all()?)]);
            alphas.extend(alpha);
        }
        if let (Some(gates), Some(state)) = (&self.gates, &mixtures.state) {
            let d_alpha = Tensor::stack(&alphas, 0)?;
            for (stacked, range) in gates.backward(state, own.clone(), &d_alpha)? {
                for (index, module) in modules[own.clone()].iter().enumerate() {
                    let Some(gate) = module.sample_gate() else { continue };
                    parts.push((range(gate).start, stacked.get(index)?.flatten_all()?));
                }
            }
        }
        parts.sort_by_key(|(start, _)| *start);
        let parts: Vec<Tensor> = parts.into_iter().map(|(_, part)| part).collect();
        Ok(Tensor::cat(&parts, 0)?.to_vec1()?)
    }
}

impl Site<'_> {
    fn scale(&self) -> f64 {
        f64::from(self.adapter.layout.scale())
    }

    /// What LoRA adds to the projection of `x` `[rows, d_in]`.
    pub fn forward(&self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        match &self.mixed {
            Mixed::Shared { a, b, alpha } => {
                let mut reduced = x.matmul(&a.t()?)?;
                if let Some(alpha) = alpha {
                    reduced = (reduced * alpha.index_select(&rows.sequence, 0)?)?;
                }
                Ok((reduced.matmul(b)? * self.scale())?)
            }
            Mixed::PerSample { a, b, .. } => {
                let parts = (0..rows.ranges.len()).map(|sample| {
                    let reduced = rows.of(x, sample)?.matmul(&a.get(sample)?.t()?)?;
                    Ok(reduced.matmul(&b.get(sample)?.t()?)?)
                });
                let parts: Vec<Tensor> = parts.collect::<Result<_>>()?;
                Ok((Tensor::cat(&parts, 0)? * self.scale())?)
            }
        }
    }

    /// Gradients of the adapter for that of the projection's output, `dy` `[rows, d_out]`; returns
    /// what reaches `x` through LoRA.
    pub fn backward(
        &self,
        x: &Tensor,
        dy: &Tensor,
        rows: &Rows,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let dy = (dy * self.scale())?;
        let (reached, dx) = match &self.mixed {
            Mixed::Shared { a, b, alpha } => {
                self.shared_grad((a, b, alpha.as_ref()), x, &dy, rows)?
            }
            Mixed::PerSample { a, b, alpha } => {
                self.per_sample_grad((a, b, alpha), x, &dy, rows)?
            }
        };
        gradients.modules[self.index] = Some(reached);
        Ok(dx)
    }

    fn shared_grad(
        &self,
        (a, b, alpha): (&Tensor, &Tensor, Option<&Tensor>),
        x: &Tensor,
        dy: &Tensor,
        rows: &Rows,
    ) -> Result<(ModuleGradients, Tensor)> {
        let config = self.adapter.layout.config();
        let (experts, rank) = (config.experts, config.rank);
        let reduced = x.matmul(&a.t()?)?;
        let d_mixed = dy.matmul(&b.t()?)?;
        let (mixed, d_reduced, d_alpha) = match alpha {
            None => (reduced, d_mixed, None),
            Some(alpha) => {
                let of_row = alpha.index_select(&rows.sequence, 0)?;
                let samples = alpha.dim(0)?;
                let by_row = (&d_mixed * &reduced)?.to_dtype(DType::F32)?;
                let zero = Tensor::zeros((samples, experts * rank), DType::F32, x.device())?;
                let d_alpha = zero.index_add(&rows.sequence, &by_row, 0)?;
                let d_alpha = d_alpha.reshape((samples, experts, rank))?.sum(2)?;
                ((reduced * &of_row)?, (d_mixed * of_row)?, Some(d_alpha))
            }
        };
        let d_a = d_reduced.t()?.matmul(x)?.to_dtype(DType::F32)?;
        let d_b = mixed.t()?.matmul(dy)?.to_dtype(DType::F32)?;
        let d_out = dy.dim(1)?;
        let d_b = d_b.reshape((experts, rank, d_out))?.transpose(1, 2)?.contiguous()?;
        let dx = d_reduced.matmul(a)?;
        Ok((ModuleGradients { a: d_a, b: d_b, alpha: d_alpha }, dx))
    }

    fn per_sample_grad(
        &self,
        (a, b, alpha): (&Tensor, &Tensor, &Tensor),
        x: &Tensor,
        dy: &Tensor,
        rows: &Rows,
    ) -> Result<(ModuleGradients, Tensor)> {
        let (mut d_a, mut d_b, mut dx) = (Vec::new(), Vec::new(), Vec::new());
        for sample in 0..rows.ranges.len() {
            let (x, dy) = (rows.of(x, sample)?, rows.of(dy, sample)?);
            let (a, b) = (a.get(sample)?, b.get(sample)?);
            let d_reduced = dy.matmul(&b)?;
            d_a.push(d_reduced.t()?.matmul(&x)?.flatten_all()?);
            d_b.push(dy.t()?.matmul(&x.matmul(&a.t()?)?)?.flatten_all()?);
            dx.push(d_reduced.matmul(&a)?);
        }
        let d_a = Tensor::stack(&d_a, 0)?.to_dtype(DType::F32)?;
        let d_b = Tensor::stack(&d_b, 0)?.to_dtype(DType::F32)?;
        let module = &self.adapter.layout.modules()[self.index];
        let (experts_a, experts_b) =
            (self.adapter.experts_a(module)?, self.adapter.experts_b(module)?);
        let d_alpha = (d_a.matmul(&experts_a.t()?)? + d_b.matmul(&experts_b.t()?)?)?;
        let reached = ModuleGradients {
            a: alpha.t()?.matmul(&d_a)?,
            b: alpha.t()?.matmul(&d_b)?,
            alpha: Some(d_alpha),
        };
        Ok((reached, Tensor::cat(&dx, 0)?))
    }
}
