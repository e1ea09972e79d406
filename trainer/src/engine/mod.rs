//! The door to the LLM: what an engine promises, whichever hardware is behind it.
//!
//! On the CPU a prompt is computed by one thread, and many at a time by many; a GPU takes batches. So whoever has
//! prompts hands over all of them.

mod cpu;
#[cfg(feature = "cuda")]
pub mod device;
mod sample;

pub use cpu::{AdaptedModel, Workspace};
pub use sample::{Prompt, Target, TrainingSample};

use crate::adapter::{Adapter, AdapterView};
use crate::backbone::{self, Backbone, BackboneConfig};
use crate::config::{Config, Device};
use crate::error::{Result, TrainerError};
use crate::losses::Loss;
use crate::parameters::{GradientSink, Losses};

/// Told how many prompts went through the LLM, by whichever thread.
pub type Told<'a> = dyn Fn(usize) + Sync + 'a;

/// A frozen LLM on the hardware that computes it.
pub trait Engine: Send + Sync {
    /// What the LLM is.
    fn config(&self) -> &BackboneConfig;

    /// The LLM with an adapter, or alone.
    ///
    /// # Errors
    /// An adapter that the engine can't take, or no room for it.
    fn adapted<'a>(&'a self, adapter: Option<AdapterView<'a>>) -> Result<Box<dyn Adapted + 'a>>;

    /// Sets the trained head of a new adapter, where it has one, to the LLM's rows of the tokens no and yes.
    ///
    /// # Errors
    /// A token that is not in the vocabulary; an engine without trained heads.
    fn start_head(&self, adapter: &mut Adapter, deciding: [u32; 2]) -> Result<()>;
}

/// What is read of a prompt that is scored.
#[derive(Clone, Copy, Debug)]
pub enum Read<'a> {
    /// Logits of the token after the last, by the LLM's own head: of these tokens in their order, or of all.
    Logits(Option<&'a [u32]>),
    /// Logits of the answers no and yes after the last token, by the adapter's head; with the LLM's own those of these
    /// two tokens.
    Answer([u32; 2]),
    /// The mean over all tokens of the final hidden states, `[hidden]`.
    HiddenMean,
}

/// An LLM with an adapter, or alone.
pub trait Adapted: Sync {
    /// What is read of each prompt, in the order of `prompts`.
    ///
    /// # Errors
    /// [`TrainerError::Input`] for a prompt that the model can't take, [`TrainerError::NotFinite`] for a value that is
    /// NaN or infinite, and what goes wrong on a device.
    fn score(
        &self,
        prompts: &[Prompt<'_>],
        read: Read<'_>,
        told: &Told<'_>,
    ) -> Result<Vec<Vec<f32>>>;

    /// Adds `weight` times the gradient of `loss` to `gradient`, and returns the sums of the losses. `gradient` is told
    /// what is ready during the last samples. On the CPU sample by sample on the calling thread.
    ///
    /// # Errors
    /// As for [`Self::score`], and for a loss that is not of what this model says.
    fn train(
        &self,
        samples: &[TrainingSample<'_>],
        loss: &dyn Loss,
        weight: f32,
        gradient: GradientSink<'_>,
    ) -> Result<Losses>;

    /// Logits of no and yes after each prompt ([`Read::Answer`]).
    ///
    /// # Errors
    /// As for [`Self::score`].
    fn answers(
        &self,
        prompts: &[Prompt<'_>],
        deciding: [u32; 2],
        told: &Told<'_>,
    ) -> Result<Vec<[f32; 2]>> {
        let pair = |logits: Vec<f32>| match logits[..] {
            [no, yes] => Ok([no, yes]),
            _ => Err(TrainerError::Input("the model gave no logits for the answers".into())),
        };
        self.score(prompts, Read::Answer(deciding), told)?.into_iter().map(pair).collect()
    }
}

/// Loads the LLM of a config onto its device.
///
/// # Errors
/// Files that are missing or no LLM this program reads; a device that is not there, or has no room.
pub fn load(config: &Config) -> Result<Box<dyn Engine>> {
    on_device(Backbone::load_as(&config.backbone.path, config.backbone.weights)?, config)
}

/// The LLM, and what its user should know that the headers of its files did not tell: it was not said before the run.
///
/// # Errors
/// As for [`load`].
pub fn load_with_notes(config: &Config) -> Result<(Box<dyn Engine>, Vec<String>)> {
    let section = &config.backbone;
    let told = backbone::check(&section.path, section.weights)?.notes;
    let backbone = Backbone::load_as(&section.path, section.weights)?;
    let notes = backbone.notes().iter().filter(|note| !told.contains(note)).cloned().collect();
    Ok((on_device(backbone, config)?, notes))
}

/// Refuses a config whose adapter the engine of its device can't compute.
///
/// # Errors
/// [`TrainerError::Config`] with the first such setting.
pub fn supports(config: &Config) -> Result<()> {
    match config.runtime.device {
        Device::Cpu => Ok(()),
        #[cfg(feature = "cuda")]
        Device::Cuda => device::supports(&config.adapter, config.backbone.weights),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda => Err(crate::config::no_cuda()),
    }
}

fn on_device(backbone: Backbone, config: &Config) -> Result<Box<dyn Engine>> {
    supports(config)?;
    match config.runtime.device {
        Device::Cpu => Ok(Box::new(backbone)),
        #[cfg(feature = "cuda")]
        Device::Cuda => Ok(Box::new(device::Gpu::new(&backbone, config.backbone.weights)?)),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda => Err(crate::config::no_cuda()),
    }
}
