//! Names, shapes and places of an adapter's parameters, without the parameters.

use std::ops::Range;
use std::path::PathBuf;

use super::kinds::{ModuleKind, ModuleTensors, SampleGate};
use crate::backbone::{BackboneConfig, Projection};
use crate::config::{AdapterConfig, Head, MixForm};
use crate::error::{Result, TrainerError};
use crate::parameters::{ParameterLayout, TensorLayout};

/// One adapted projection.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleLayout {
    /// E.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Decoder block.
    pub layer: usize,
    /// Which projection of the block.
    pub projection: Projection,
    /// Inputs.
    pub d_in: usize,
    /// Outputs.
    pub d_out: usize,
    /// `lora_A` `[N, r, d_in]`; empty where the LoRA is frozen.
    pub a: Range<usize>,
    /// `lora_B` `[N, d_out, r]`; empty where the LoRA is frozen.
    pub b: Range<usize>,
    /// All its parameters.
    pub range: Range<usize>,
    /// What makes a sample's A and B of them.
    pub kind: ModuleKind,
}

impl ModuleLayout {
    /// The gate of a sample, where the projection is of this kind.
    pub fn sample_gate(&self) -> Option<&SampleGate> {
        match &self.kind {
            ModuleKind::SampleGate(gate) => Some(gate),
            _ => None,
        }
    }
}

/// A trained head.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadLayout {
    /// `[outputs, hidden]`.
    pub weight: Range<usize>,
    /// `[outputs]`.
    pub bias: Range<usize>,
}

/// Names, shapes and ranges of all parameters of an adapter. Allocates no parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterLayout {
    config: AdapterConfig,
    representation_dim: usize,
    modules: Vec<ModuleLayout>,
    head: Option<HeadLayout>,
    parameters: ParameterLayout,
}

impl AdapterLayout {
    /// The layout of an adapter for a backbone. `representation_dim` is ignored for plain LoRA
    /// (`experts = 1`), which has no gate.
    ///
    /// # Errors
    /// [`TrainerError::Config`] naming the setting that can't work.
    pub fn new(
        backbone: &BackboneConfig,
        config: &AdapterConfig,
        representation_dim: usize,
    ) -> Result<Self> {
        Self::build(backbone, config, representation_dim, config.frozen_lora().is_some())
    }

    /// The layout of an adapter, or of scales of a frozen LoRA whatever file that came from.
    pub(super) fn build(
        backbone: &BackboneConfig,
        config: &AdapterConfig,
        representation_dim: usize,
        scaled: bool,
    ) -> Result<Self> {
        check(config, representation_dim)?;
        if scaled {
            config.validate_scales()?;
        }
        let gated = config.experts > 1;
        let mut targets = config.targets.clone();
        targets.sort();
        let mut layout = Self {
            config: AdapterConfig { scale_of: PathBuf::new(), ..config.clone() },
            representation_dim: if gated { representation_dim } else { 0 },
            modules: Vec::new(),
            head: None,
            parameters: ParameterLayout::default(),
        };
        for layer in 0..backbone.num_layers() {
            for &projection in &targets {
                layout.push_module(
                    layer,
                    projection,
                    backbone.projection(layer, projection),
                    scaled,
                )?;
            }
        }
        // Last, so that the modules' ranges are the same with every head.
        if let Some(outputs) = config.head.outputs() {
            let mut tensors = layout.tensors_of("head", [outputs, backbone.hidden_size]);
            layout.head = Some(HeadLayout {
                weight: tensors.zeros("weight", &[outputs, backbone.hidden_size])?,
                bias: tensors.zeros("bias", &[outputs])?,
            });
        }
        Ok(layout)
    }

    fn push_module(
        &mut self,
        layer: usize,
        projection: Projection,
        sizes: [usize; 2],
        scaled: bool,
    ) -> Result<()> {
        let (name, start) = (projection.module(layer), self.parameters.len());
        let (a, b, kind) = ModuleKind::push(&mut self.tensors_of(&name, sizes), scaled)?;
        let ([d_out, d_in], range) = (sizes, start..self.parameters.len());
        self.modules.push(ModuleLayout { name, layer, projection, d_in, d_out, a, b, range, kind });
        Ok(())
    }

    fn tensors_of<'a>(&'a mut self, name: &'a str, [d_out, d_in]: [usize; 2]) -> ModuleTensors<'a> {
        let Self { parameters, config, representation_dim, .. } = self;
        let representation_dim = *representation_dim;
        ModuleTensors { parameters, config, name, d_in, d_out, representation_dim }
    }

    /// The layout of the frozen LoRA whose scales this one is of, if it is.
    pub(super) fn frozen(&self, backbone: &BackboneConfig) -> Result<Option<Self>> {
        let plain = AdapterConfig { head: Head::Lm, ..self.config.clone() };
        self.is_scaled().then(|| Self::build(backbone, &plain, 0, false)).transpose()
    }

    /// The settings. Where a frozen LoRA came from is not kept: it is part of the adapter.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// Width |c| of the representation; 0 for plain LoRA.
    pub fn representation_dim(&self) -> usize {
        self.representation_dim
    }

    /// Adapted projections: those of layer 0 (in the order of [`Projection::ALL`]), of layer 1, …
    pub fn modules(&self) -> &[ModuleLayout] {
        &self.modules
    }

    /// Whether a tensor of this name belongs to a gate.
    pub fn is_of_gate(name: &str) -> bool {
        name.contains(".gate.")
    }

    /// Whether a tensor of this name belongs to the trained head.
    pub fn is_of_head(name: &str) -> bool {
        name.starts_with("head.")
    }

    /// The trained head, where the adapter has one.
    pub fn head(&self) -> Option<&HeadLayout> {
        self.head.as_ref()
    }

    /// All tensors, in the order of the flat parameter vector.
    pub fn tensors(&self) -> &[TensorLayout] {
        self.parameters.tensors()
    }

    /// Number of trained parameters.
    pub fn num_parameters(&self) -> usize {
        self.parameters.len()
    }

    /// `lora_alpha / rank`, the factor of every update.
    pub fn scale(&self) -> f32 {
        self.config.lora_alpha / self.config.rank as f32
    }

    /// Whether what is trained are scales of a frozen LoRA.
    pub fn is_scaled(&self) -> bool {
        self.modules.first().is_some_and(|module| matches!(module.kind, ModuleKind::Scales(_)))
    }

    /// Whether mixtures are made for every token.
    pub fn is_per_token(&self) -> bool {
        self.modules.first().is_some_and(|module| module.kind.is_per_token())
    }

    /// Whether a sample's adapter is that of all experts, one below the other: in the product form, and
    /// where the weights are those of tokens.
    pub(crate) fn is_stacked(&self) -> bool {
        self.config.form == MixForm::Product || self.is_per_token()
    }

    /// Rank of a sample's mixed adapter: r in the factor form, N * r in the product form and with a gate
    /// of every token.
    pub fn mixed_rank(&self) -> usize {
        let stacked = if self.is_stacked() { self.config.experts } else { 1 };
        self.config.rank * stacked
    }

    /// The first place of the flat vector that is of block `layer` or above: all of it is behind the
    /// blocks below.
    pub fn start_of_layer(&self, layer: usize) -> usize {
        let above = self.modules.iter().find(|module| module.layer >= layer);
        let head = self.head.as_ref().map(|head| &head.weight);
        above
            .map(|module| &module.range)
            .or(head)
            .map_or(self.parameters.len(), |range| range.start)
    }

    /// Name of the tensor that the flat vector has at `place`.
    pub fn tensor_at(&self, place: usize) -> Option<&str> {
        self.parameters.name_at(place)
    }

    /// The module of a projection of a block, where it is adapted.
    pub(crate) fn module_index(&self, layer: usize, projection: Projection) -> Option<usize> {
        self.modules.iter().position(|m| m.layer == layer && m.projection == projection)
    }
}

fn check(config: &AdapterConfig, representation_dim: usize) -> Result<()> {
    config.validate()?;
    if config.experts > 1 && representation_dim == 0 {
        let what = "more than 1 expert needs a CRM representation for the gate";
        return Err(TrainerError::config("adapter.experts", what));
    }
    Ok(())
}
