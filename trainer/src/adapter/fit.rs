//! What fits a layout, and what is refused.

use super::AdapterLayout;
use crate::backbone::BackboneConfig;
use crate::error::{Result, TrainerError};

impl AdapterLayout {
    /// Refuses a representation that the gates can't read; plain LoRA takes any.
    pub(crate) fn check_representation(&self, c: &[f32]) -> Result<()> {
        let width = self.representation_dim();
        if width > 0 && c.len() != width {
            return Err(TrainerError::Input(format!(
                "the representation has {} values, the adapter's gates read {width}",
                c.len()
            )));
        }
        Ok(())
    }

    /// Refuses parameters that are not of this layout.
    pub(crate) fn check_parameters(&self, parameters: &[f32]) -> Result<()> {
        let (count, expected) = (parameters.len(), self.num_parameters());
        if count != expected {
            let what = format!("{count} parameters are not those of an adapter of {expected}");
            return Err(TrainerError::afresh(what, "tune"));
        }
        Ok(())
    }

    /// Refuses a gradient that is not one of this layout's parameters.
    pub(crate) fn check_gradient(&self, gradient: &[f32]) -> Result<()> {
        if gradient.len() != self.num_parameters() {
            return Err(TrainerError::Input(format!(
                "the gradient has {} values, the adapter {}",
                gradient.len(),
                self.num_parameters()
            )));
        }
        Ok(())
    }

    /// Whether an adapter of this layout fits a backbone.
    pub(crate) fn fits(&self, backbone: &BackboneConfig) -> bool {
        let per_layer = self.config().targets.len();
        let head = self.head();
        self.modules().len() == per_layer * backbone.num_layers()
            && head.is_none_or(|h| h.weight.len() == h.bias.len() * backbone.hidden_size)
            && self
                .modules()
                .iter()
                .all(|m| backbone.projection(m.layer, m.projection) == [m.d_out, m.d_in])
    }
}
