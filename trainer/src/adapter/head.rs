//! The trained head: one or two outputs on the final hidden state before the answer.

use std::path::Path;

use reclora_storage::atomic::write_bytes_atomic;

use super::Adapter;
use crate::backbone::Backbone;
use crate::error::{Result, TrainerError};
use crate::parameters::serialize;

impl Adapter {
    /// Sets a trained head to what the LLM's own says of the tokens no and yes: their rows, or for one
    /// output their difference, with zero biases. So at the first step P(yes) is the backbone's. Without
    /// a trained head nothing is done.
    ///
    /// # Errors
    /// [`TrainerError::Input`] for a backbone of another width or a token it does not have.
    pub fn start_head(&mut self, backbone: &Backbone, [no, yes]: [u32; 2]) -> Result<()> {
        let Some(head) = self.layout.head().cloned() else { return Ok(()) };
        let rows = backbone.head().mat();
        let width = rows.inputs();
        if head.weight.len() != head.bias.len() * width {
            return Err(TrainerError::Input("the adapter was made for another backbone".into()));
        }
        if let Some(token) = [no, yes].into_iter().find(|token| *token as usize >= rows.outputs()) {
            return Err(TrainerError::Input(format!(
                "answer token {token} is not in the backbone's vocabulary of {}",
                rows.outputs()
            )));
        }
        let weight = &mut self.parameters[head.weight];
        if head.bias.len() == 1 {
            let mut of_no = vec![0.0; width];
            rows.widen(no as usize, &mut of_no);
            rows.widen(yes as usize, weight);
            for (yes, no) in weight.iter_mut().zip(&of_no) {
                *yes -= no;
            }
        } else {
            for (token, row) in [no, yes].into_iter().zip(weight.chunks_exact_mut(width)) {
                rows.widen(token as usize, row);
            }
        }
        self.parameters[head.bias].fill(0.0);
        Ok(())
    }

    /// Writes a trained head as a safetensors file of `head.weight` `[outputs, hidden]` and `head.bias`
    /// `[outputs]`; false, and no file, without one.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save_head(&self, path: &Path) -> Result<bool> {
        let Some(head) = self.layout.head() else { return Ok(false) };
        let parts = [&head.weight, &head.bias];
        let tensors = self.layout.tensors().iter().filter(|t| parts.contains(&&t.range));
        let tensors = tensors
            .map(|t| (t.name.as_str(), t.shape.as_slice(), &self.parameters[t.range.clone()]));
        write_bytes_atomic(path, &serialize(path, tensors, ("format", "pt".into()))?)?;
        Ok(true)
    }
}
