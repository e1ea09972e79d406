//! One projection of a block: frozen weight, bias, and LoRA beside it; forward and backward.

use super::workspace::LinearBuffers;
use crate::adapter::{AdapterLayout, Mixture};
use crate::backbone::{BlockWeights, FrozenLinear, Projection};
use crate::kernels::buffer::fit;
use crate::kernels::pointwise::add_to_rows;
use crate::kernels::{FrozenBuffers, Mat, matmul, project, project_grad};

/// An adapted projection: its module and sizes.
#[derive(Clone, Copy, Debug)]
struct Site {
    module: usize,
    rank: usize,
    scale: f32,
}

/// The adapted projections of a block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sites([Option<Site>; 7]);

impl Sites {
    /// Those of one block of a layout.
    pub fn of(layout: &AdapterLayout, layer: usize) -> Self {
        Self(Projection::ALL.map(|projection| {
            let module = layout.module_index(layer, projection)?;
            Some(Site { module, rank: layout.mixed_rank(), scale: layout.scale() })
        }))
    }

    /// Whether any of these projections is adapted.
    pub fn any(&self, projections: &[Projection]) -> bool {
        projections.iter().any(|projection| self.0[*projection as usize].is_some())
    }
}

/// A projection of a block.
#[derive(Clone, Copy)]
pub(super) struct Linear<'a> {
    frozen: &'a FrozenLinear,
    site: Option<Site>,
}

/// Rows of a matrix that is part of a wider one.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    /// Number of rows.
    pub count: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<'a> Linear<'a> {
    pub fn new(block: &'a BlockWeights, sites: &Sites, projection: Projection) -> Self {
        Self { frozen: block.projection(projection), site: sites.0[projection as usize] }
    }

    /// `y = W x + b + scale * B A x` for every row of `x` (dense); rows of `y` are `stride` apart. With
    /// `accumulate` this is added to `y`. A gate of every token stands between A and B.
    pub fn forward(
        &self,
        x: &[f32],
        y: &mut [f32],
        stride: usize,
        accumulate: bool,
        mixture: &Mixture,
        buffers: &mut LinearBuffers,
    ) {
        self.forward_frozen(x, y, stride, accumulate, &mut buffers.frozen);
        self.add_adapted(x, y, stride, mixture, buffers);
    }

    /// `y = W x + b`, or added to `y`.
    pub fn forward_frozen(
        &self,
        x: &[f32],
        y: &mut [f32],
        stride: usize,
        accumulate: bool,
        buffers: &mut FrozenBuffers,
    ) {
        let weight = self.frozen.weight.mat();
        let x = Mat::new(x, x.len() / weight.inputs(), weight.inputs());
        project(y, stride, x, weight, accumulate, buffers);
        if let Some(bias) = &self.frozen.bias {
            add_to_rows(y, stride, bias);
        }
    }

    /// `y += scale * B A x`, where the projection is adapted.
    pub fn add_adapted(
        &self,
        x: &[f32],
        y: &mut [f32],
        stride: usize,
        mixture: &Mixture,
        buffers: &mut LinearBuffers,
    ) {
        let Some(Site { module, rank, scale }) = self.site else { return };
        let weight = self.frozen.weight.mat();
        let (inputs, outputs) = (weight.inputs(), weight.outputs());
        let rows = x.len() / inputs;
        let mixed = &mixture.modules[module];
        let lora_x = fit(&mut buffers.lora_x, rows * rank);
        let a = Mat::new(&mixed.a, rank, inputs);
        matmul(lora_x, rank, Mat::new(x, rows, inputs), a.t(), 1.0, false);
        let times_b = mixed.between(x, inputs, lora_x, &mut buffers.between);
        let b = Mat::new(&mixed.b, outputs, rank);
        matmul(y, stride, Mat::new(times_b, rows, rank), b.t(), scale, true);
    }

    /// Sets the gradients of the mixed A and B where the projection is adapted; and, where asked for,
    /// the gradient of the input: `dx = dy W + scale * (dy B) A`, or added to `dx` with `accumulate`.
    /// `x` is as in the forward (not read where nothing is adapted), `dy` the gradient of the output.
    pub fn grad(
        &self,
        x: &[f32],
        dy: Rows<'_>,
        mut dx: Option<(&mut [f32], bool)>,
        mixture: &mut Mixture,
        buffers: &mut LinearBuffers,
    ) {
        let weight = self.frozen.weight.mat();
        let (inputs, outputs) = (weight.inputs(), weight.outputs());
        let rows = dy.count;
        let dy = Mat::strided(dy.data, rows, outputs, dy.stride);
        if let Some((dx, accumulate)) = &mut dx {
            project_grad(dx, dy, weight, *accumulate, &mut buffers.frozen);
        }
        let Some(Site { module, rank, scale }) = self.site else { return };
        let mixed = &mut mixture.modules[module];
        let x_rows = x;
        let x = Mat::new(x, rows, inputs);
        let lora_x = fit(&mut buffers.lora_x, rows * rank);
        matmul(lora_x, rank, x, Mat::new(&mixed.a, rank, inputs).t(), 1.0, false);
        let lora_dy = fit(&mut buffers.lora_dy, rows * rank);
        matmul(lora_dy, rank, dy, Mat::new(&mixed.b, outputs, rank), 1.0, false);
        let x_rows = &x_rows[..rows * inputs];
        let times_b = mixed.between(x_rows, inputs, lora_x, &mut buffers.between);
        let d_b = fit(&mut mixed.d_b, outputs * rank);
        matmul(d_b, rank, dy.t(), Mat::new(times_b, rows, rank), scale, false);
        let through = dx.as_mut().map(|(dx, _)| &mut **dx);
        mixed.between_grad(lora_x, lora_dy, scale, inputs, through, &mut buffers.between);
        let lora_dy = Mat::new(lora_dy, rows, rank);
        let d_a = fit(&mut mixed.d_a, rank * inputs);
        matmul(d_a, inputs, lora_dy.t(), x, scale, false);
        if let Some((dx, _)) = dx {
            matmul(dx, inputs, lora_dy, Mat::new(&mixed.a, rank, inputs), scale, true);
        }
    }
}
