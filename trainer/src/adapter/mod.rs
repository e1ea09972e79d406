//! Personalised LoRA: a bank of experts per adapted projection, mixed per sample by a gate.
//!
//! All trained numbers are one flat vector, so that optimizer, gradient reduction and checkpoints
//! need no structure; [`AdapterLayout`] gives names, shapes and ranges.

mod file;
mod fit;
mod head;
mod kinds;
mod layout;
mod mixture;
mod peft;
mod routing;
mod view;

use std::sync::Arc;

pub use kinds::{AttentionGate, Lora, ModuleKind, SampleGate, Scales, TokenGate};
pub(crate) use kinds::{Sample, TokenBuffers};
pub use layout::{AdapterLayout, HeadLayout, ModuleLayout};
pub(crate) use mixture::Mixture;
pub(crate) use peft::{PEFT_CONFIG, PEFT_MODEL};
pub use routing::Dropout;
#[cfg(feature = "cuda")]
pub(crate) use routing::LAYER_NORM_EPS;
pub use view::AdapterView;

use crate::backbone::BackboneConfig;
use crate::config::AdapterConfig;
use crate::error::{Result, TrainerError};

/// Every trained parameter of a personalised LoRA, or of scales of a frozen one together with that.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    layout: AdapterLayout,
    parameters: Vec<f32>,
    frozen: Option<Arc<Self>>,
}

/// One projection's mixed adapter: an ordinary LoRA, `y += scale * (x lora_a^T) lora_b^T`.
#[derive(Clone, Debug, PartialEq)]
pub struct MixedModule {
    /// The projection, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Rank: r in the factor form, N * r in the product form.
    pub rank: usize,
    /// `[rank, d_in]`.
    pub lora_a: Vec<f32>,
    /// `[d_out, rank]`; the product form's mixture weights are in here.
    pub lora_b: Vec<f32>,
    /// Inputs of the projection.
    pub d_in: usize,
    /// Outputs of the projection.
    pub d_out: usize,
    /// `lora_alpha / r` of the config (r of one expert in both forms).
    pub scale: f32,
}

impl Adapter {
    /// A new adapter: each expert's A uniform in ±1/√d_in, B zero, gates Kaiming uniform with zero
    /// biases. So the adapted model is the backbone. Each tensor is a pure function of (seed, name).
    /// A trained head is zero until [`Self::start_head`].
    ///
    /// With `scale_of` the LoRA in that file is read and stays as it is, and its scales begin at 1: the
    /// adapted model is that of the file.
    ///
    /// # Errors
    /// A setting that can't work (see [`AdapterLayout::new`]); a file of `scale_of` that can't be read,
    /// or whose LoRA has other settings.
    pub fn new(
        backbone: &BackboneConfig,
        config: &AdapterConfig,
        representation_dim: usize,
        seed: u64,
    ) -> Result<Self> {
        let layout = AdapterLayout::new(backbone, config, representation_dim)?;
        let frozen = match config.frozen_lora() {
            Some(path) => Some(Arc::new(kinds::scales::frozen(path, backbone, config, &layout)?)),
            None => None,
        };
        let mut parameters = vec![0.0; layout.num_parameters()];
        for tensor in layout.tensors() {
            tensor.fill(seed, 0, &mut parameters[tensor.range.clone()]);
        }
        Ok(Self { layout, parameters, frozen })
    }

    /// An adapter of this layout with these parameters; `None` when their number is another, or when the
    /// layout is of scales, which need their LoRA (see [`Self::with_parameters`]).
    pub fn from_parameters(layout: AdapterLayout, parameters: Vec<f32>) -> Option<Self> {
        let fits = parameters.len() == layout.num_parameters() && !layout.is_scaled();
        fits.then_some(Self { layout, parameters, frozen: None })
    }

    /// This adapter with other parameters; `None` when their number is another.
    pub fn with_parameters(&self, parameters: Vec<f32>) -> Option<Self> {
        let (layout, frozen) = (self.layout.clone(), self.frozen.clone());
        let fits = parameters.len() == layout.num_parameters();
        fits.then_some(Self { layout, parameters, frozen })
    }

    /// The frozen plain LoRA whose scales this adapter trains, if it does.
    pub fn frozen(&self) -> Option<&Self> {
        self.frozen.as_deref()
    }

    /// Names, shapes and ranges of the parameters.
    pub fn layout(&self) -> &AdapterLayout {
        &self.layout
    }

    /// The settings it was made with.
    pub fn config(&self) -> &AdapterConfig {
        self.layout.config()
    }

    /// Width |c| of the representation the gates read.
    pub fn representation_dim(&self) -> usize {
        self.layout.representation_dim()
    }

    /// All trained parameters, in the order of [`Self::tensors`].
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// All parameters, to be updated in place.
    pub fn parameters_mut(&mut self) -> &mut [f32] {
        &mut self.parameters
    }

    /// Number of trained parameters.
    pub fn num_parameters(&self) -> usize {
        self.parameters.len()
    }

    /// Every trained tensor: name, shape, values.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> + Clone {
        let tensors = self.layout.tensors().iter();
        tensors.map(|t| (t.name.as_str(), t.shape.as_slice(), &self.parameters[t.range.clone()]))
    }

    /// Adapted projections, e.g. `model.layers.0.self_attn.q_proj`, in the order of the layout's modules.
    pub fn module_names(&self) -> Vec<String> {
        self.layout.modules().iter().map(|m| m.name.clone()).collect()
    }

    /// Mixture weights `[modules][experts]` for a representation, dropout off.
    ///
    /// # Errors
    /// The representation has another width than the adapter's, or each token has its own mixture.
    pub fn alpha(&self, representation: &[f32]) -> Result<Vec<Vec<f32>>> {
        let mixture = self.mixture_of_sample(representation)?;
        Ok(mixture.modules.iter().map(|m| m.alpha.clone()).collect())
    }

    /// The ordinary LoRA that equals this adapter for one representation.
    ///
    /// # Errors
    /// The representation has another width than the adapter's, or each token has its own mixture.
    pub fn mixed(&self, representation: &[f32]) -> Result<Vec<MixedModule>> {
        let mixture = self.mixture_of_sample(representation)?;
        let modules = self.layout.modules().iter().zip(mixture.modules);
        Ok(modules
            .map(|(module, mixed)| MixedModule {
                name: module.name.clone(),
                rank: self.layout.mixed_rank(),
                lora_a: mixed.a,
                lora_b: mixed.b,
                d_in: module.d_in,
                d_out: module.d_out,
                scale: self.layout.scale(),
            })
            .collect())
    }

    /// Refuses an adapter of which no sample has one mixture.
    pub(crate) fn refuse_per_token(&self) -> Result<()> {
        if self.layout.is_per_token() {
            let what =
                "is \"token\": each token has its own mixture, which no ordinary LoRA equals";
            return Err(TrainerError::config("adapter.gate", what));
        }
        Ok(())
    }

    fn mixture_of_sample(&self, representation: &[f32]) -> Result<Mixture> {
        self.refuse_per_token()?;
        let mut mixture = Mixture::default();
        mixture.forward(self.view(), Sample { representation, dropout: None })?;
        Ok(mixture)
    }
}
