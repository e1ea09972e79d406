//! An adapter as engines read it.

use super::{Adapter, AdapterLayout};
use crate::config::AdapterConfig;
use crate::error::Result;

/// A layout and parameters for it, borrowed from whoever has them: an [`Adapter`], or training, whose parameters change
/// from step to step.
#[derive(Clone, Copy, Debug)]
pub struct AdapterView<'a> {
    layout: &'a AdapterLayout,
    parameters: &'a [f32],
    frozen: Option<&'a Adapter>,
}

impl<'a> AdapterView<'a> {
    /// Names, shapes and ranges of the parameters.
    pub fn layout(self) -> &'a AdapterLayout {
        self.layout
    }

    /// The settings it was made with.
    pub fn config(self) -> &'a AdapterConfig {
        self.layout.config()
    }

    /// All trained parameters, laid out like [`Self::layout`].
    pub fn parameters(self) -> &'a [f32] {
        self.parameters
    }

    /// The frozen plain LoRA whose scales it is of, if it is.
    pub fn frozen(self) -> Option<Self> {
        self.frozen.map(Adapter::view)
    }
}

impl Adapter {
    /// The adapter, borrowed.
    pub fn view(&self) -> AdapterView<'_> {
        AdapterView { layout: &self.layout, parameters: &self.parameters, frozen: self.frozen() }
    }

    /// The adapter with other parameters in place of its own.
    ///
    /// # Errors
    /// Their number is another.
    pub fn view_of<'a>(&'a self, parameters: &'a [f32]) -> Result<AdapterView<'a>> {
        self.layout.check_parameters(parameters)?;
        Ok(AdapterView { layout: &self.layout, parameters, frozen: self.frozen() })
    }
}

impl<'a> From<&'a Adapter> for AdapterView<'a> {
    fn from(adapter: &'a Adapter) -> Self {
        adapter.view()
    }
}
