//! Backward pass of a packed batch: gradients of activations and of the adapter, never of a frozen
//! weight. Going back through a frozen projection is one matrix product.

use candle_core::Tensor;

use super::adapter::Gradients;
use super::batch::Rows;
use super::forward::{BlockState, Heads, Kept, Layer, Pass, Top, heads_first};
use super::ops::{attention_grad, rms_norm_grad, rope, swiglu, swiglu_grad};
use crate::backbone::Projection;
use crate::error::Result;

/// Gradients of the outputs of the query, key and value projections.
struct Attended {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Pass<'_> {
    /// From the gradient of the final norm's output to those of the adapter's modules; `after` is called
    /// with each block's, from the last to the first. The pass ends at the lowest block's projections:
    /// nothing below is trained.
    pub fn backward(
        &self,
        top: &Top,
        d_norm: &Tensor,
        kept: Kept,
        gradients: &mut Gradients,
        after: &mut dyn FnMut(usize, &mut Gradients) -> Result<()>,
    ) -> Result<()> {
        let mut d_x = rms_norm_grad(&top.x, &self.backbone.norm, &top.inv_rms, d_norm)?;
        let blocks = kept.inputs.into_iter().zip(kept.states).enumerate();
        for (index, (x, state)) in blocks.rev() {
            let layer = self.layer(index)?;
            let state = match state {
                Some(state) => state,
                None => layer.forward(&x)?.1,
            };
            let d_mid = layer.mlp_grad(&state, &d_x, gradients)?;
            let attended = layer.attend_grad(&state, &d_mid, gradients)?;
            if index > 0 {
                d_x = layer.input_grad(&x, &state, &d_mid, &attended, gradients)?;
            } else {
                layer.lowest_grad(&state, &attended, gradients)?;
            }
            after(index, gradients)?;
        }
        Ok(())
    }
}

impl Layer<'_> {
    /// What reaches the input `x` of a projection, given the gradient of its output; and, through
    /// `gradients`, its adapter.
    fn project_grad(
        &self,
        projection: Projection,
        x: &Tensor,
        dy: &Tensor,
        rows: &Rows,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let dx = dy.matmul(&self.block.projection(projection).weight)?;
        match &self.sites[projection as usize] {
            Some(site) => Ok((dx + site.backward(x, dy, rows, gradients)?)?),
            None => Ok(dx),
        }
    }

    /// From the gradient of the block's output to that of `mid`.
    fn mlp_grad(
        &self,
        state: &BlockState,
        d_out: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let BlockState { gate, up, mid_norm, .. } = state;
        let act = swiglu(gate, up)?;
        let d_act = self.project_grad(Projection::DownProj, &act, d_out, self.rows, gradients)?;
        let (d_gate, d_up) = swiglu_grad(gate, up, &d_act)?;
        let mut back = |projection, dy: &Tensor| {
            self.project_grad(projection, mid_norm, dy, self.rows, gradients)
        };
        let d_norm = (back(Projection::GateProj, &d_gate)? + back(Projection::UpProj, &d_up)?)?;
        let norm = &self.block.mlp_norm;
        Ok((d_out + rms_norm_grad(&state.mid, norm, &state.mid_inv_rms, &d_norm)?)?)
    }

    /// From the gradient of `mid` to those of the query, key and value projections' outputs.
    fn attend_grad(
        &self,
        state: &BlockState,
        d_mid: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Attended> {
        let BlockState { q, k, v, attention, .. } = state;
        let d_attention =
            self.project_grad(Projection::OProj, attention, d_mid, self.rows, gradients)?;
        let d_attention = d_attention.reshape(q.rotated.shape())?;
        let (mut d_q, mut d_k, mut d_v) = (Vec::new(), Vec::new(), Vec::new());
        for sequence in 0..self.rows.ranges.len() {
            let d_out = heads_first(&self.rows.of(&d_attention, sequence)?)?;
            let [q, k, v] = self.sequence(sequence, &q.rotated, &k.rotated, v)?;
            let (dq, dk, dv) = attention_grad(&q, &k, &v, &self.mask(sequence)?, &d_out)?;
            d_q.push(heads_first(&dq)?);
            d_k.push(heads_first(&dk)?);
            d_v.push(heads_first(&dv)?);
        }
        let [q_norm, k_norm] = &self.block.qk_norm;
        Ok(Attended {
            q: heads_grad(q, q_norm.as_ref(), &Tensor::cat(&d_q, 0)?, self.rows)?,
            k: heads_grad(k, k_norm.as_ref(), &Tensor::cat(&d_k, 0)?, self.all)?,
            v: Tensor::cat(&d_v, 0)?.flatten_from(1)?,
        })
    }

    /// From the gradients of `mid` and of the projections' outputs to that of the block's input `x`.
    fn input_grad(
        &self,
        x: &Tensor,
        state: &BlockState,
        d_mid: &Tensor,
        attended: &Attended,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let (all, rows) = (self.all, self.rows);
        let Attended { q, k, v } = attended;
        let BlockState { x_norm, x_norm_rows, .. } = state;
        let through_k = self.project_grad(Projection::KProj, x_norm, k, all, gradients)?;
        let through_v = self.project_grad(Projection::VProj, x_norm, v, all, gradients)?;
        let through_q = self.project_grad(Projection::QProj, x_norm_rows, q, rows, gradients)?;
        let d_norm = rows.add_to(&(through_k + through_v)?, &through_q)?;
        let through_norm = rms_norm_grad(x, &self.block.input_norm, &state.x_inv_rms, &d_norm)?;
        rows.add_to(&through_norm, d_mid)
    }

    /// Adapters of the lowest block's projections; nothing goes on to its input.
    fn lowest_grad(
        &self,
        state: &BlockState,
        attended: &Attended,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let projections = [
            (Projection::QProj, &state.x_norm_rows, &attended.q, self.rows),
            (Projection::KProj, &state.x_norm, &attended.k, self.all),
            (Projection::VProj, &state.x_norm, &attended.v, self.all),
        ];
        for (projection, x, dy, rows) in projections {
            if let Some(site) = &self.sites[projection as usize] {
                site.backward(x, dy, rows, gradients)?;
            }
        }
        Ok(())
    }
}

/// Backward of rotary embedding and head norm, to a projection's output `[rows, heads * dim]`.
fn heads_grad(
    heads: &Heads,
    norm: Option<&Tensor>,
    d_rotated: &Tensor,
    rows: &Rows,
) -> Result<Tensor> {
    let d_normed = rope(d_rotated, &rows.cos, &rows.sin.neg()?)?;
    let d_raw = match (&heads.raw, norm) {
        (Some((raw, inv_rms)), Some(norm)) => rms_norm_grad(raw, norm, inv_rms, &d_normed)?,
        _ => d_normed,
    };
    Ok(d_raw.flatten_from(1)?)
}
