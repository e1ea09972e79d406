//! The LLM as the stages use it: on the CPU or on this rank's GPU, as `[runtime] device` says.
//!
//! On the CPU a prompt is computed by one thread, and many at a time by many; a GPU takes batches. So
//! stages hand over all the prompts they have.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::adapter::Adapter;
use crate::backbone::{self, Backbone, BackboneConfig};
use crate::config::{Config, Device};
use crate::error::Result;
use crate::losses::Loss;
use crate::model::{AdaptedModel, Prompt, TrainingSample, Workspace};
use crate::parameters::{GradientSink, Losses};
#[cfg(feature = "cuda")]
use crate::telemetry::measure;

/// Told how many prompts went through the LLM, by whichever thread.
pub type Told<'a> = dyn Fn(usize) + Sync + 'a;

thread_local! {
    /// Each thread's buffers of the LLM.
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace::new());
}

/// The frozen LLM.
pub enum Llm {
    Cpu(Box<Backbone>),
    #[cfg(feature = "cuda")]
    Gpu(Box<gpu::Gpu>),
}

/// The LLM with an adapter, or without.
pub enum AdaptedLlm<'a> {
    Cpu(AdaptedModel<'a>),
    #[cfg(feature = "cuda")]
    Gpu(Box<gpu::AdaptedGpu<'a>>),
}

impl Llm {
    pub fn load(config: &Config) -> Result<Self> {
        let backbone = Backbone::load_as(&config.backbone.path, config.backbone.weights)?;
        Self::on_device(backbone, config)
    }

    /// The LLM, and what its user should know that the headers of its files did not tell: it was not said
    /// before the run.
    pub fn load_with_notes(config: &Config) -> Result<(Self, Vec<String>)> {
        let section = &config.backbone;
        let told = backbone::check(&section.path, section.weights)?.notes;
        let backbone = Backbone::load_as(&section.path, section.weights)?;
        let notes = backbone.notes().iter().filter(|note| !told.contains(note)).cloned().collect();
        Ok((Self::on_device(backbone, config)?, notes))
    }

    fn on_device(backbone: Backbone, config: &Config) -> Result<Self> {
        match config.runtime.device {
            Device::Cpu => Ok(Self::Cpu(Box::new(backbone))),
            #[cfg(feature = "cuda")]
            Device::Cuda => {
                Ok(Self::Gpu(Box::new(gpu::Gpu::new(&backbone, config.backbone.weights)?)))
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda => Err(crate::config::no_cuda()),
        }
    }

    pub fn config(&self) -> &BackboneConfig {
        match self {
            Self::Cpu(backbone) => backbone.config(),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => gpu.config(),
        }
    }

    pub fn adapted<'a>(&'a self, adapter: &'a Adapter) -> Result<AdaptedLlm<'a>> {
        Ok(match self {
            Self::Cpu(backbone) => AdaptedLlm::Cpu(AdaptedModel::new(backbone, adapter)),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => AdaptedLlm::Gpu(Box::new(gpu.adapted(adapter)?)),
        })
    }

    /// Sets the trained head of a new adapter, where it has one, to the rows of no and yes.
    pub fn start_head(&self, adapter: &mut Adapter, deciding: [u32; 2]) -> Result<()> {
        match self {
            Self::Cpu(backbone) => adapter.start_head(backbone, deciding),
            // Trained heads were refused with the config.
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => Ok(()),
        }
    }

    pub fn bare(&self) -> AdaptedLlm<'_> {
        match self {
            Self::Cpu(backbone) => AdaptedLlm::Cpu(AdaptedModel::bare(backbone)),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => AdaptedLlm::Gpu(Box::new(gpu.bare())),
        }
    }
}

impl AdaptedLlm<'_> {
    /// Logits of the token after each prompt's last: of `token_ids` in their order, or of all tokens.
    pub fn logits(
        &self,
        prompts: &[Prompt<'_>],
        token_ids: Option<&[u32]>,
    ) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Cpu(model) => on_threads(prompts, &|_| (), |ws, prompt| {
                let last = prompt.tokens.len().saturating_sub(1);
                model.logits_at(ws, prompt, last, token_ids)
            }),
            #[cfg(feature = "cuda")]
            Self::Gpu(model) => {
                on_gpu(prompts.iter(), || model.logits(prompts, token_ids, &|_| ()))
            }
        }
    }

    /// Logits of no and yes after each prompt, by the adapter's head.
    pub fn answer_logits(
        &self,
        prompts: &[Prompt<'_>],
        deciding: [u32; 2],
        told: &Told<'_>,
    ) -> Result<Vec<[f32; 2]>> {
        match self {
            Self::Cpu(model) => on_threads(prompts, told, |ws, prompt| {
                let last = prompt.tokens.len().saturating_sub(1);
                model.answer_logits(ws, prompt, last, deciding)
            }),
            #[cfg(feature = "cuda")]
            Self::Gpu(model) => {
                on_gpu(prompts.iter(), || model.answer_logits(prompts, deciding, told))
            }
        }
    }

    /// Each prompt's mean last hidden state.
    pub fn hidden_means(&self, prompts: &[Prompt<'_>], told: &Told<'_>) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Cpu(model) => {
                on_threads(prompts, told, |ws, prompt| model.hidden_mean(ws, prompt))
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(model) => on_gpu(prompts.iter(), || model.hidden_means(prompts, told)),
        }
    }

    /// Adds `weight` times the gradient of `loss` to `gradient`; returns the sums of the losses, and tells
    /// `gradient` during the last samples what is ready. On the CPU sample by sample on the calling thread.
    pub fn train(
        &self,
        samples: &[TrainingSample<'_>],
        loss: &dyn Loss,
        weight: f32,
        gradient: GradientSink<'_>,
    ) -> Result<Losses> {
        match self {
            Self::Cpu(model) => {
                WORKSPACE.with_borrow_mut(|ws| model.train(ws, samples, loss, weight, gradient))
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(model) => on_gpu(samples.iter().map(|sample| &sample.prompt), || {
                model.train(samples, loss, weight, gradient)
            }),
        }
    }
}

/// Work on the GPU, counted: forward and backward as one, as the host waits for both together.
#[cfg(feature = "cuda")]
fn on_gpu<'a, T>(
    prompts: impl ExactSizeIterator<Item = &'a Prompt<'a>>,
    work: impl FnOnce() -> T,
) -> T {
    let count = prompts.len();
    measure::processed(count, prompts.map(|prompt| prompt.tokens.len()).sum());
    measure::timed(measure::Phase::Forward, work)
}

fn on_threads<T: Send>(
    prompts: &[Prompt<'_>],
    told: &Told<'_>,
    compute: impl Fn(&mut Workspace, &Prompt<'_>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let prompts = prompts.par_iter();
    let computed = prompts.map(|prompt| {
        let computed = WORKSPACE.with_borrow_mut(|ws| compute(ws, prompt));
        told(1);
        computed
    });
    computed.collect()
}

#[cfg(feature = "cuda")]
mod gpu {
    //! Batches of limited size, one at a time.

    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::Told;
    use crate::adapter::Adapter;
    use crate::backbone::WeightType;
    use crate::backbone::{Backbone, BackboneConfig};
    use crate::cuda::{DeviceBackbone, DeviceModel, DeviceOptions, Precision};
    use crate::error::{Result, TrainerError};
    use crate::model::{Prompt, TrainingSample};
    use crate::parameters::Losses;
    use crate::parameters::Ready;

    /// Tokens of a batch, unless one prompt alone has more: bounds the memory of activations.
    const TOKENS: usize = 16_384;

    /// The backbone on this rank's GPU.
    pub struct Gpu {
        backbone: DeviceBackbone,
        /// Held while a batch is computed: the memory is that of one, however many threads there are.
        turn: Mutex<()>,
    }

    pub struct AdaptedGpu<'a> {
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

        pub fn config(&self) -> &BackboneConfig {
            self.backbone.config()
        }

        pub fn adapted(&self, adapter: &Adapter) -> Result<AdaptedGpu<'_>> {
            Ok(AdaptedGpu { model: DeviceModel::new(&self.backbone, adapter)?, turn: &self.turn })
        }

        pub fn bare(&self) -> AdaptedGpu<'_> {
            AdaptedGpu { model: DeviceModel::bare(&self.backbone), turn: &self.turn }
        }
    }

    impl AdaptedGpu<'_> {
        fn turn(&self) -> MutexGuard<'_, ()> {
            // The mutex guards no data that a panic could leave half-changed.
            self.turn.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub fn logits(
            &self,
            prompts: &[Prompt<'_>],
            token_ids: Option<&[u32]>,
            told: &Told<'_>,
        ) -> Result<Vec<Vec<f32>>> {
            let mut logits = Vec::with_capacity(prompts.len());
            for batch in batches(prompts, |prompt| prompt.tokens.len()) {
                let at =
                    batch.iter().map(|prompt| (*prompt, prompt.tokens.len().saturating_sub(1)));
                let _turn = self.turn();
                logits.extend(self.model.logits_at(&at.collect::<Vec<_>>(), token_ids)?);
                told(batch.len());
            }
            Ok(logits)
        }

        pub fn answer_logits(
            &self,
            prompts: &[Prompt<'_>],
            deciding: [u32; 2],
            told: &Told<'_>,
        ) -> Result<Vec<[f32; 2]>> {
            let logits = self.logits(prompts, Some(deciding.as_slice()), told)?;
            let pair = |logits: Vec<f32>| match logits[..] {
                [no, yes] => Ok([no, yes]),
                _ => Err(TrainerError::Input("the model gave no logits for the answers".into())),
            };
            logits.into_iter().map(pair).collect()
        }

        pub fn hidden_means(
            &self,
            prompts: &[Prompt<'_>],
            told: &Told<'_>,
        ) -> Result<Vec<Vec<f32>>> {
            let mut means = Vec::with_capacity(prompts.len());
            for batch in batches(prompts, |prompt| prompt.tokens.len()) {
                let _turn = self.turn();
                means.extend(self.model.hidden_mean(batch)?);
                told(batch.len());
            }
            Ok(means)
        }

        pub fn train(
            &self,
            samples: &[TrainingSample<'_>],
            loss: &dyn Loss,
            weight: f32,
            mut gradient: GradientSink<'_>,
        ) -> Result<Losses> {
            let mut sum = Losses::default();
            // A group stays together.
            let groups: Vec<_> = samples.chunks(loss.group_size().max(1)).collect();
            let tokens = |group: &&[TrainingSample<'_>]| {
                group.iter().map(|sample| sample.prompt.tokens.len()).sum()
            };
            let batches = batches(&groups, tokens);
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
        }
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
}
