//! Scales of a frozen LoRA: of its rank and of its outputs.
//!
//! y = W0 x + (lora_alpha / r) diag(1 + o) B diag(1 + s) A x, where A and B are those of a trained plain
//! LoRA. Per adapted projection only s `[r]` and o `[d_out]` are trained, zero at the start: so the model
//! begins as that of the LoRA. The same for all samples, they are one with B.

use std::ops::Range;
use std::path::Path;

use super::{Kind, MixedState, Module, ModuleTensors, Sample};
use crate::adapter::file::settings;
use crate::adapter::{Adapter, AdapterLayout};
use crate::backbone::{BackboneConfig, Projection};
use crate::config::{AdapterConfig, Head};
use crate::error::{Result, TrainerError};

/// The scales of one adapted projection, each as its offset from 1: where they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// Of the rank: `[r]`.
    pub rank: Range<usize>,
    /// Of the outputs: `[d_out]`.
    pub output: Range<usize>,
}

impl Scales {
    pub(super) fn push(tensors: &mut ModuleTensors<'_>) -> Result<Self> {
        let (rank, outputs) = (tensors.config.rank, tensors.d_out);
        Ok(Self {
            rank: tensors.zeros("rank_scale", &[rank])?,
            output: tensors.zeros("output_scale", &[outputs])?,
        })
    }
}

impl Kind for Scales {
    fn mix(&self, module: Module<'_>, _sample: Sample<'_>, mixed: &mut MixedState) {
        mixed.set_ones(1);
        mixed.mix_experts(module);
        apply(self, module.parameters, &mut mixed.b);
    }

    fn unmix(&self, module: Module<'_>, mixed: &mut MixedState, gradient: &mut [f32]) {
        backward(self, module.parameters, module.b, &mixed.d_b, gradient);
    }
}

impl Adapter {
    /// Checks the file of `scale_of`, where that is set, by its header: a plain LoRA with the settings of
    /// this config.
    ///
    /// # Errors
    /// The setting that is another, or a file whose header can't be read.
    pub fn check_scale_of(config: &AdapterConfig) -> Result<()> {
        let Some(path) = config.frozen_lora() else { return Ok(()) };
        let lora = settings(path)?;
        compare(config, path, &lora.config, lora.scales)
    }
}

/// Reads the LoRA whose scales `layout` is of.
pub(in crate::adapter) fn frozen(
    path: &Path,
    backbone: &BackboneConfig,
    config: &AdapterConfig,
    layout: &AdapterLayout,
) -> Result<Adapter> {
    let lora = Adapter::load(path, backbone)?;
    compare(config, path, lora.config(), lora.layout.is_scaled())?;
    layout
        .frozen(backbone)?
        .and_then(|layout| Adapter::from_parameters(layout, lora.parameters))
        .ok_or_else(|| TrainerError::file(path, "holds another LoRA than its settings say"))
}

/// The first setting that keeps the LoRA of a file from being scaled by a config.
fn compare(
    config: &AdapterConfig,
    path: &Path,
    lora: &AdapterConfig,
    is_scaled: bool,
) -> Result<()> {
    let file = path.display();
    let unusable = |what: String| Err(TrainerError::config("adapter.scale_of", what));
    let other = |field: &str, here: String, there: String| {
        let what = format!("is {here}, but {there} in {file} (adapter.scale_of); they must agree");
        Err(TrainerError::config(field, what))
    };
    if is_scaled {
        return unusable(format!("{file} holds scales itself; name the LoRA that they are of"));
    }
    if lora.experts != 1 {
        return unusable(format!(
            "{file} has {} experts; name a plain LoRA: that of a run with adapter.experts = 1, or the \
             adapter/plain_lora/ of a run that has \"lora\" in tune.models",
            lora.experts
        ));
    }
    if lora.head != Head::Lm {
        return unusable(format!(
            "{file} was tuned with a trained head; name a LoRA that was tuned with adapter.head = \"lm\""
        ));
    }
    if lora.rank != config.rank {
        return other("adapter.rank", config.rank.to_string(), lora.rank.to_string());
    }
    if lora.lora_alpha != config.lora_alpha {
        let (here, there) = (config.lora_alpha.to_string(), lora.lora_alpha.to_string());
        return other("adapter.lora_alpha", here, there);
    }
    let (here, there) = (targets(config), targets(lora));
    if here != there {
        return other("adapter.targets", here.join(", "), there.join(", "));
    }
    Ok(())
}

/// Names of the adapted projections, in the order of a block.
fn targets(config: &AdapterConfig) -> Vec<&'static str> {
    let adapted = Projection::ALL.into_iter().filter(|target| config.targets.contains(target));
    adapted.map(Projection::name).collect()
}

/// Makes `b` `[d_out, r]` diag(1 + o) B diag(1 + s).
fn apply(scales: &Scales, parameters: &[f32], b: &mut [f32]) {
    let (rank, output) = (&parameters[scales.rank.clone()], &parameters[scales.output.clone()]);
    for (row, o) in b.chunks_exact_mut(rank.len()).zip(output) {
        for (b, s) in row.iter_mut().zip(rank) {
            *b *= (1.0 + o) * (1.0 + s);
        }
    }
}

/// Adds the gradients of the scales, for that of what [`apply`] makes of the frozen `b`.
fn backward(scales: &Scales, parameters: &[f32], b: &[f32], d_b: &[f32], gradient: &mut [f32]) {
    let (rank, output) = (&parameters[scales.rank.clone()], &parameters[scales.output.clone()]);
    let rows = b.chunks_exact(rank.len()).zip(d_b.chunks_exact(rank.len()));
    for (i, ((b, d_b), o)) in rows.zip(output).enumerate() {
        let mut d_output = 0.0;
        for (j, ((b, d), s)) in b.iter().zip(d_b).zip(rank).enumerate() {
            d_output += d * b * (1.0 + s);
            gradient[scales.rank.start + j] += d * b * (1.0 + o);
        }
        gradient[scales.output.start + i] += d_output;
    }
}
