//! The adapted model on a GPU, composed of stock candle operations: what the CPU computes,
//! for a batch of prompts at a time.
//!
//! Sequences are packed, `[tokens of all, hidden]`, so no padding reaches a frozen weight; only
//! attention (and LoRA in the factor form) goes sequence by sequence. Forward and backward are
//! written out block by block, without automatic differentiation, which would compute the gradients
//! of frozen weights too. Everything runs on whichever device candle has, its CPU included.

mod adapter;
mod backward;
mod batch;
mod forward;
mod gates;
mod gpu;
mod head;
pub mod ops;
mod weights;

pub(super) use gpu::Gpu;
pub use weights::{DeviceBackbone, DeviceOptions, Precision, require_gpu};

use std::ops::Range;

use super::sample::{Prompt, TrainingSample, check, check_finite};
use crate::adapter::{AdapterLayout, AdapterView, Dropout};
use crate::backbone::WeightType;
use crate::config::{AdapterConfig, GateInput, Head};
use crate::error::{Result, TrainerError};
use crate::losses::{Loss, groups, of_group};
use crate::parameters::{GradientSink, Losses};
use adapter::{DeviceAdapter, Gradients, Mixtures};
use batch::Batch;
use forward::{Kept, Pass, Top};
use head::RowTarget;

/// Refuses what an adapter on a device can't do.
///
/// # Errors
/// [`TrainerError::Config`] with the first such setting.
pub fn supports(adapter: &AdapterConfig, weights: WeightType) -> Result<()> {
    Precision::of(weights)?;
    let AdapterConfig { top_k, gate, head, .. } = adapter;
    let unsupported = [
        ("adapter.top_k", *top_k != 0),
        ("adapter.gate", *gate != GateInput::Sample),
        ("adapter.head", *head != Head::Lm),
        ("adapter.scale_of", adapter.frozen_lora().is_some()),
    ];
    match unsupported.iter().find(|(_, is)| *is) {
        Some((field, _)) => Err(unsupported_setting(field)),
        None => Ok(()),
    }
}

fn unsupported_setting(field: &str) -> TrainerError {
    TrainerError::config(field, "runtime.device = \"cuda\" has the default only; use \"cpu\"")
}

/// A frozen backbone on a device with a personalised LoRA (or none). The counterpart of
/// [`AdaptedModel`](crate::engine::AdaptedModel), which computes one prompt at a time on the CPU.
pub struct DeviceModel<'a> {
    backbone: &'a DeviceBackbone,
    adapter: Option<DeviceAdapter>,
}

impl<'a> DeviceModel<'a> {
    /// The backbone with an adapter, whose parameters are copied to the device.
    ///
    /// # Errors
    /// [`TrainerError::Input`] for an adapter made for another backbone; [`TrainerError::Device`].
    pub fn new<'v>(
        backbone: &'a DeviceBackbone,
        adapter: impl Into<AdapterView<'v>>,
    ) -> Result<Self> {
        let adapter = adapter.into();
        if !adapter.layout().fits(backbone.config()) {
            return Err(TrainerError::Input("the adapter was made for another backbone".into()));
        }
        Ok(Self { backbone, adapter: Some(DeviceAdapter::new(backbone, adapter)?) })
    }

    /// The backbone alone.
    pub fn bare(backbone: &'a DeviceBackbone) -> Self {
        Self { backbone, adapter: None }
    }

    /// Logits of the token after each prompt's position: of `token_ids` in their order, or of the
    /// whole vocabulary.
    ///
    /// # Errors
    /// [`TrainerError::Input`] for tokens, positions or a representation the model can't take;
    /// [`TrainerError::NotFinite`] when a logit is NaN or infinite; [`TrainerError::Device`].
    pub fn logits_at(
        &self,
        prompts: &[(Prompt<'_>, usize)],
        token_ids: Option<&[u32]>,
    ) -> Result<Vec<Vec<f32>>> {
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let mut sequences = Vec::with_capacity(prompts.len());
        for (prompt, position) in prompts {
            self.check(prompt, &[*position], token_ids.unwrap_or_default())?;
            sequences.push((&prompt.tokens[..=*position], vec![*position as u32]));
        }
        let prompts: Vec<Prompt<'_>> = prompts.iter().map(|(prompt, _)| *prompt).collect();
        let batch = Batch::new(self.backbone.config(), &sequences, &self.backbone.device)?;
        let top = self.forward(&prompts, &batch)?;
        let logits: Vec<Vec<f32>> = head::logits(self.backbone, &top.norm, token_ids)?.to_vec2()?;
        logits.into_iter().map(check_finite).collect()
    }

    /// Each prompt's mean over all positions of the last hidden states (after the final norm).
    ///
    /// # Errors
    /// As for [`Self::logits_at`].
    pub fn hidden_mean(&self, prompts: &[Prompt<'_>]) -> Result<Vec<Vec<f32>>> {
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let mut sequences = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            self.check(prompt, &[prompt.tokens.len().saturating_sub(1)], &[])?;
            sequences.push((prompt.tokens, (0..prompt.tokens.len() as u32).collect()));
        }
        let batch = Batch::new(self.backbone.config(), &sequences, &self.backbone.device)?;
        let top = self.forward(prompts, &batch)?;
        let norm = top.norm.to_dtype(candle_core::DType::F32)?;
        let means = (0..prompts.len())
            .map(|sequence| Ok(batch.all.of(&norm, sequence)?.mean(0)?.to_vec1::<f32>()?));
        means.collect()
    }

    /// Adds `weight` times the gradient of `loss` to `gradient`, laid out like the adapter's parameters, and returns
    /// the losses of every group.
    ///
    /// # Errors
    /// [`TrainerError::Input`] as for [`Self::logits_at`], for a sample without targets, for a gradient of another
    /// length, for what the loss can't be of, and for a model without adapter; [`TrainerError::NotFinite`] for a loss
    /// that is NaN or infinite; [`TrainerError::Device`], and then alone may a part of `gradient` have been added to.
    pub fn train<'g>(
        &self,
        samples: &[TrainingSample<'_>],
        loss: &dyn Loss,
        weight: f32,
        gradient: impl Into<GradientSink<'g>>,
    ) -> Result<Vec<Losses>> {
        let mut gradient = gradient.into();
        let Some(adapter) = &self.adapter else {
            return Err(TrainerError::Input("the bare backbone has no gradient".into()));
        };
        adapter.layout.check_gradient(gradient.values)?;
        if samples.is_empty() {
            return Ok(Vec::new());
        }
        let watched = gradient.is_observed();
        let (mut sequences, mut targets) = (Vec::new(), Vec::new());
        for (number, sample) in samples.iter().enumerate() {
            let tokens = sample.targets.iter().map(|target| target.token);
            let tokens: Vec<u32> = tokens.chain(sample.deciding.into_iter().flatten()).collect();
            let positions: Vec<usize> =
                sample.targets.iter().map(|target| target.position).collect();
            self.check(&sample.prompt, &positions, &tokens)?;
            let first = sequences.iter().map(|(_, rows): &(_, Vec<u32>)| rows.len()).sum();
            sequences.push(rows_and_targets(number, first, sample, &mut targets));
        }
        let config = self.backbone.config();
        let batch = Batch::new(config, &sequences, &self.backbone.device)?;
        let prompts: Vec<Prompt<'_>> = samples.iter().map(|sample| sample.prompt).collect();
        let dropout: Vec<Option<Dropout>> = samples.iter().map(|sample| sample.dropout).collect();
        let mixtures = adapter.mix(&prompts, &dropout)?;
        let pass = self.pass(Some((adapter, &mixtures)), &batch);
        let mut kept = Kept::default();
        let top = pass.forward(Some(&mut kept))?;
        let counts: Vec<usize> = samples.iter().map(|sample| sample.targets.len()).collect();
        let readouts = head::read(self.backbone, &top.norm, &counts, &targets)?;
        let (mut losses, mut derivatives) = (Vec::new(), Vec::with_capacity(samples.len()));
        for (readouts, group) in groups(&readouts, loss)?.zip(groups(samples, loss)?) {
            let likes: Vec<bool> = group.iter().map(|sample| sample.label).collect();
            let offsets: Vec<f32> = group.iter().map(|sample| sample.offset).collect();
            let (losses_of_group, by_group) = of_group(loss, readouts.to_vec(), &offsets, &likes)?;
            losses.push(losses_of_group);
            derivatives.extend(by_group);
        }
        let d_norm = head::gradient(self.backbone, &top.norm, &targets, &derivatives, weight)?;
        let mut add = |layers: Range<usize>, gradients: &mut Gradients| {
            let start = adapter.layout.start_of_layer(layers.start);
            let values = adapter.gradient(layers, &mixtures, gradients)?;
            for (sum, value) in gradient.values[start..].iter_mut().zip(values) {
                *sum += value;
            }
            gradient.ready_from(start);
            Ok(())
        };
        // Reading from the GPU waits for it: block by block only where somebody waits for blocks.
        let mut gradients = Gradients::new(adapter);
        if watched {
            let mut after = |layer, gradients: &mut Gradients| add(layer..layer + 1, gradients);
            pass.backward(&top, &d_norm, kept, &mut gradients, &mut after)?;
        } else {
            pass.backward(&top, &d_norm, kept, &mut gradients, &mut |_, _| Ok(()))?;
            add(0..config.num_layers(), &mut gradients)?;
        }
        Ok(losses)
    }

    fn pass<'p>(
        &'p self,
        adapter: Option<(&'p DeviceAdapter, &'p Mixtures)>,
        batch: &'p Batch,
    ) -> Pass<'p> {
        Pass { backbone: self.backbone, adapter, batch }
    }

    /// Forward only, dropout off, nothing kept.
    fn forward(&self, prompts: &[Prompt<'_>], batch: &Batch) -> Result<Top> {
        let mixtures = match &self.adapter {
            Some(adapter) => Some(adapter.mix(prompts, &vec![None; prompts.len()])?),
            None => None,
        };
        self.pass(self.adapter.as_ref().zip(mixtures.as_ref()), batch).forward(None)
    }

    fn layout(&self) -> Option<&AdapterLayout> {
        self.adapter.as_ref().map(|adapter| &adapter.layout)
    }

    fn check(&self, prompt: &Prompt<'_>, positions: &[usize], token_ids: &[u32]) -> Result<()> {
        check(self.backbone.config(), self.layout(), prompt, positions, token_ids)?;
        match self.layout() {
            Some(layout) => layout.check_representation(prompt.representation),
            None => Ok(()),
        }
    }
}

/// The tokens that a sample's loss needs and the rows it is read from; adds its targets, whose rows
/// begin at `first`.
fn rows_and_targets<'s>(
    number: usize,
    first: usize,
    sample: &TrainingSample<'s>,
    targets: &mut Vec<RowTarget>,
) -> (&'s [u32], Vec<u32>) {
    let mut rows: Vec<u32> = sample.targets.iter().map(|target| target.position as u32).collect();
    rows.sort_unstable();
    rows.dedup();
    targets.extend(sample.targets.iter().enumerate().map(|(index, target)| RowTarget {
        row: first + rows.partition_point(|row| (*row as usize) < target.position),
        token: target.token,
        sample: number,
        index,
        deciding: sample.deciding.filter(|_| index == 0),
    }));
    let length = rows.last().map_or(0, |last| *last as usize + 1);
    (&sample.prompt.tokens[..length], rows)
}
