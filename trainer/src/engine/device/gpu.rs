//! The LLM on this rank's GPU: batches of limited size, one at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{DeviceBackbone, DeviceModel, DeviceOptions, Precision};
use crate::adapter::{Adapter, AdapterView};
use crate::backbone::{Backbone, BackboneConfig, WeightType};
use crate::engine::{Adapted, Engine, Prompt, Read, Told, TrainingSample};
use crate::error::Result;
use crate::losses::{Loss, groups};
use crate::parameters::{GradientSink, Losses};
use crate::telemetry::measure::{self, Phase};

/// Tokens of a batch, unless one prompt alone has more: bounds the memory of activations.
const TOKENS: usize = 16_384;

/// The backbone on this rank's GPU.
pub(in crate::engine) struct Gpu {
    backbone: DeviceBackbone,
    /// Held while a batch is computed: the memory is that of one, however many threads there are.
    turn: Mutex<()>,
}

struct AdaptedGpu<'a> {
    model: DeviceModel<'a>,
    turn: &'a Mutex<()>,
}

impl Gpu {
    /// Ranks of one machine take its GPUs in order. Memory grows with one block: the states of the
    /// others are computed again.
    pub fn new(backbone: &Backbone, weights: WeightType) -> Result<Self> {
        let rank = std::env::var("LOCAL_RANK").ok().and_then(|rank| rank.parse().ok());
        let options = DeviceOptions { precision: Precision::of(weights)?, recompute: true };
        let backbone = DeviceBackbone::on_gpu(backbone, rank.unwrap_or(0), options)?;
        Ok(Self { backbone, turn: Mutex::new(()) })
    }
}

impl Engine for Gpu {
    fn config(&self) -> &BackboneConfig {
        self.backbone.config()
    }

    fn adapted<'a>(&'a self, adapter: Option<AdapterView<'a>>) -> Result<Box<dyn Adapted + 'a>> {
        let model = match adapter {
            Some(adapter) => DeviceModel::new(&self.backbone, adapter)?,
            None => DeviceModel::bare(&self.backbone),
        };
        Ok(Box::new(AdaptedGpu { model, turn: &self.turn }))
    }

    fn start_head(&self, adapter: &mut Adapter, _deciding: [u32; 2]) -> Result<()> {
        match adapter.layout().head() {
            Some(_) => Err(super::unsupported_setting("adapter.head")),
            None => Ok(()),
        }
    }
}

impl AdaptedGpu<'_> {
    fn turn(&self) -> MutexGuard<'_, ()> {
        // The mutex guards no data that a panic could leave half-changed.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Adapted for AdaptedGpu<'_> {
    fn score(
        &self,
        prompts: &[Prompt<'_>],
        read: Read<'_>,
        told: &Told<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        counted(prompts.iter(), || {
            let mut scores = Vec::with_capacity(prompts.len());
            for batch in batches(prompts, |prompt| prompt.tokens.len()) {
                let _turn = self.turn();
                let last = |prompt: &Prompt<'_>| prompt.tokens.len().saturating_sub(1);
                let at = || batch.iter().map(|prompt| (*prompt, last(prompt))).collect::<Vec<_>>();
                scores.extend(match read {
                    Read::Logits(tokens) => self.model.logits_at(&at(), tokens)?,
                    Read::Answer(deciding) => self.model.logits_at(&at(), Some(&deciding))?,
                    Read::HiddenMean => self.model.hidden_mean(batch)?,
                });
                told(batch.len());
            }
            Ok(scores)
        })
    }

    fn train(
        &self,
        samples: &[TrainingSample<'_>],
        loss: &dyn Loss,
        weight: f32,
        mut gradient: GradientSink<'_>,
    ) -> Result<Losses> {
        // A group stays together.
        let groups: Vec<_> = groups(samples, loss)?.collect();
        let tokens = |group: &&[TrainingSample<'_>]| {
            group.iter().map(|sample| sample.prompt.tokens.len()).sum()
        };
        let batches = batches(&groups, tokens);
        counted(samples.iter().map(|sample| &sample.prompt), || {
            let mut sum = Losses::default();
            for (left, batch) in (0..batches.len()).rev().zip(batches) {
                let _turn = self.turn();
                let sink = gradient.part(left == 0);
                let losses = self.model.train(&batch.concat(), loss, weight, sink)?;
                // A batch's own sum first.
                let mut of_batch = Losses::default();
                losses.into_iter().for_each(|losses| of_batch += losses);
                sum += of_batch;
            }
            Ok(sum)
        })
    }
}

/// Work on the GPU, counted: forward and backward as one, as the host waits for both together.
fn counted<'a, T>(
    prompts: impl ExactSizeIterator<Item = &'a Prompt<'a>>,
    work: impl FnOnce() -> T,
) -> T {
    let count = prompts.len();
    measure::processed(count, prompts.map(|prompt| prompt.tokens.len()).sum());
    measure::timed(Phase::Forward, work)
}

/// Cuts a list, in order, into batches of at most [`TOKENS`].
fn batches<T>(items: &[T], tokens: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut batches, mut start, mut sum) = (Vec::new(), 0, 0);
    for (index, item) in items.iter().enumerate() {
        if index > start && sum + tokens(item) > TOKENS {
            batches.push(&items[start..index]);
            (start, sum) = (index, 0);
        }
        sum += tokens(item);
    }
    if start < items.len() {
        batches.push(&items[start..]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_item_once_within_the_limit() {
        let half = TOKENS / 2;
        let lengths = [half, half, 1, TOKENS + 5, half, half - 1, 1, 1];
        let cut: Vec<Vec<usize>> =
            batches(&lengths, |length| *length).into_iter().map(<[usize]>::to_vec).collect();
        let expected =
            [vec![half, half], vec![1], vec![TOKENS + 5], vec![half, half - 1, 1], vec![1]];
        assert_eq!(cut, expected);
        assert!(batches(&[], |length: &usize| *length).is_empty());
    }
}
