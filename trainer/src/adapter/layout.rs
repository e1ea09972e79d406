//! Names, shapes and places of an adapter's parameters, without the parameters.

use std::ops::Range;
use std::path::PathBuf;

use crate::backbone::{BackboneConfig, Projection};
use crate::config::{AdapterConfig, GateInput, Head, MixForm};
use crate::error::{Result, TrainerError};
use crate::parameters::{Init, ParameterLayout, TensorLayout};

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
    /// The scales of a frozen LoRA, where they are what is trained.
    pub scales: Option<ScaleLayout>,
    /// The gate; plain LoRA has none.
    pub gate: Option<GateLayout>,
    /// The gate of every token, where the adapter has this kind instead.
    pub token_gate: Option<TokenGateLayout>,
    /// The gate that attends to the experts' weights, where the adapter has this kind instead.
    pub attention_gate: Option<AttentionGateLayout>,
}

/// The scales of one adapted projection's frozen LoRA, each as its offset from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaleLayout {
    /// Of the rank: `[r]`.
    pub rank: Range<usize>,
    /// Of the outputs: `[d_out]`.
    pub output: Range<usize>,
}

/// The gate of one adapted projection.
#[derive(Clone, Debug, PartialEq)]
pub struct GateLayout {
    /// LayerNorm weight `[|c|]`; the scale is 1 + weight.
    pub norm_weight: Range<usize>,
    /// LayerNorm bias `[|c|]`.
    pub norm_bias: Range<usize>,
    /// First layer `[hidden, |c|]`.
    pub fc1_weight: Range<usize>,
    /// First bias `[hidden]`.
    pub fc1_bias: Range<usize>,
    /// Second layer `[N, hidden]`.
    pub fc2_weight: Range<usize>,
    /// Second bias `[N]`.
    pub fc2_bias: Range<usize>,
}

/// The gate of an adapted projection that reads every token. Its tensors lie one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenGateLayout {
    /// LayerNorm weight `[d_in + |c|]`; the scale is 1 + weight.
    pub norm_weight: Range<usize>,
    /// LayerNorm bias `[d_in + |c|]`.
    pub norm_bias: Range<usize>,
    /// The layer `[N, d_in + |c|]`.
    pub fc_weight: Range<usize>,
    /// Its bias `[N]`.
    pub fc_bias: Range<usize>,
}

/// The gate of an adapted projection that compares the representation with every expert.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionGateLayout {
    /// Representation to query `[hidden, |c|]`.
    pub query_weight: Range<usize>,
    /// Its bias `[hidden]`.
    pub query_bias: Range<usize>,
    /// An expert's A, then its B, to its key `[hidden, r (d_in + d_out)]`.
    pub key_weight: Range<usize>,
    /// Its bias `[hidden]`.
    pub key_bias: Range<usize>,
    /// `[q, k, q - k, q * k]` to the hidden layer `[hidden, 4 hidden]`.
    pub fc1_weight: Range<usize>,
    /// Its bias `[hidden]`.
    pub fc1_bias: Range<usize>,
    /// Hidden layer to the expert's logit `[1, hidden]`; a bias would be the same for all experts.
    pub fc2_weight: Range<usize>,
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
    scaled: bool,
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
            scaled,
            modules: Vec::new(),
            head: None,
            parameters: ParameterLayout::default(),
        };
        for layer in 0..backbone.num_layers {
            for &projection in &targets {
                layout.push_module(layer, projection, backbone.projection(projection))?;
            }
        }
        // Last, so that the modules' ranges are the same with every head.
        if let Some(outputs) = config.head.outputs() {
            layout.head = Some(HeadLayout {
                weight: layout.zeros("head", "weight", &[outputs, backbone.hidden_size])?,
                bias: layout.zeros("head", "bias", &[outputs])?,
            });
        }
        Ok(layout)
    }

    fn push_module(
        &mut self,
        layer: usize,
        projection: Projection,
        [d_out, d_in]: [usize; 2],
    ) -> Result<()> {
        let name = projection.module(layer);
        let AdapterConfig { experts, rank, gate_hidden, .. } = self.config;
        let width = self.representation_dim;
        let (a, b, scales) = if self.scaled {
            let scales = ScaleLayout {
                rank: self.zeros(&name, "rank_scale", &[rank])?,
                output: self.zeros(&name, "output_scale", &[d_out])?,
            };
            (0..0, 0..0, Some(scales))
        } else {
            let a = self.weight(&name, "lora_A", &[experts, rank, d_in])?;
            (a, self.zeros(&name, "lora_B", &[experts, d_out, rank])?, None)
        };
        let kind = (experts > 1).then_some(self.config.gate);
        let gate = if kind == Some(GateInput::Sample) {
            Some(GateLayout {
                norm_weight: self.zeros(&name, "gate.norm.weight", &[width])?,
                norm_bias: self.zeros(&name, "gate.norm.bias", &[width])?,
                fc1_weight: self.weight(&name, "gate.fc1.weight", &[gate_hidden, width])?,
                fc1_bias: self.zeros(&name, "gate.fc1.bias", &[gate_hidden])?,
                fc2_weight: self.weight(&name, "gate.fc2.weight", &[experts, gate_hidden])?,
                fc2_bias: self.zeros(&name, "gate.fc2.bias", &[experts])?,
            })
        } else {
            None
        };
        let token_gate = if kind == Some(GateInput::Token) {
            let width = d_in + width;
            Some(TokenGateLayout {
                norm_weight: self.zeros(&name, "gate.norm.weight", &[width])?,
                norm_bias: self.zeros(&name, "gate.norm.bias", &[width])?,
                fc_weight: self.weight(&name, "gate.fc.weight", &[experts, width])?,
                fc_bias: self.zeros(&name, "gate.fc.bias", &[experts])?,
            })
        } else {
            None
        };
        let attention_gate = if kind == Some(GateInput::Attention) {
            Some(self.push_attention_gate(&name, gate_hidden, rank * (d_in + d_out))?)
        } else {
            None
        };
        self.modules.push(ModuleLayout {
            name,
            layer,
            projection,
            d_in,
            d_out,
            a,
            b,
            scales,
            gate,
            token_gate,
            attention_gate,
        });
        Ok(())
    }

    fn push_attention_gate(
        &mut self,
        module: &str,
        hidden: usize,
        expert: usize,
    ) -> Result<AttentionGateLayout> {
        let width = self.representation_dim;
        Ok(AttentionGateLayout {
            query_weight: self.weight(module, "gate.query.weight", &[hidden, width])?,
            query_bias: self.zeros(module, "gate.query.bias", &[hidden])?,
            key_weight: self.weight(module, "gate.key.weight", &[hidden, expert])?,
            key_bias: self.zeros(module, "gate.key.bias", &[hidden])?,
            fc1_weight: self.weight(module, "gate.mlp.fc1.weight", &[hidden, 4 * hidden])?,
            fc1_bias: self.zeros(module, "gate.mlp.fc1.bias", &[hidden])?,
            fc2_weight: self.weight(module, "gate.mlp.fc2.weight", &[1, hidden])?,
        })
    }

    /// A tensor whose values begin uniform in ±1/√inputs.
    fn weight(&mut self, module: &str, tensor: &str, shape: &[usize]) -> Result<Range<usize>> {
        self.push(module, tensor, shape, Init::Uniform)
    }

    /// A tensor whose values begin as 0, some of them as offsets from 1.
    fn zeros(&mut self, module: &str, tensor: &str, shape: &[usize]) -> Result<Range<usize>> {
        self.push(module, tensor, shape, Init::Zero)
    }

    fn push(
        &mut self,
        module: &str,
        tensor: &str,
        shape: &[usize],
        init: Init,
    ) -> Result<Range<usize>> {
        let name = format!("{module}.{tensor}");
        self.parameters.push(name, shape, init).map_err(|error| {
            TrainerError::config("adapter", format!("{error}; lower experts or rank"))
        })
    }

    /// The layout of the frozen LoRA whose scales this one is of, if it is.
    pub(super) fn frozen(&self, backbone: &BackboneConfig) -> Result<Option<Self>> {
        let plain = AdapterConfig { head: Head::Lm, ..self.config.clone() };
        self.scaled.then(|| Self::build(backbone, &plain, 0, false)).transpose()
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
        self.scaled
    }

    /// Whether mixtures are made for every token.
    pub fn is_per_token(&self) -> bool {
        self.config.experts > 1 && self.config.gate == GateInput::Token
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
        let first = above.map(|module| module.scales.as_ref().map_or(&module.a, |s| &s.rank));
        first.or(head).map_or(self.parameters.len(), |range| range.start)
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
