//! The adapted model: frozen backbone + one sample's mixed adapter, forward and backward.
//!
//! A call handles one sequence on the calling thread. Only what the requested positions need is
//! computed: tokens after the last of them are dropped (attention is causal), and in the last block
//! queries, output projection and MLP run on those positions alone.

mod backward;
mod forward;
mod head;
mod linear;
mod workspace;

pub use workspace::Workspace;

use std::cell::RefCell;

use rayon::prelude::*;

use super::sample::{Prompt, TrainingSample, check, check_finite};
use super::{Adapted, Engine, Read, Told};
use crate::adapter::{Adapter, AdapterView, Dropout, Mixture, Sample};
use crate::backbone::{Backbone, BackboneConfig};
use crate::error::{Result, TrainerError};
use crate::losses::{Loss, Readout, groups, of_group};
use crate::parameters::{GradientSink, Losses};
use crate::telemetry::measure::{Phase, processed, timed};
use forward::Pass;
use workspace::Keep;

/// Tokens of the prompts that go through the model at once.
const PACK_TOKENS: usize = 256;

thread_local! {
    /// Each thread's buffers.
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace::new());
}

impl Engine for Backbone {
    fn config(&self) -> &BackboneConfig {
        &self.config
    }

    fn adapted<'a>(&'a self, adapter: Option<AdapterView<'a>>) -> Result<Box<dyn Adapted + 'a>> {
        Ok(Box::new(AdaptedModel { backbone: self, adapter }))
    }

    fn start_head(&self, adapter: &mut Adapter, deciding: [u32; 2]) -> Result<()> {
        adapter.start_head(self, deciding)
    }
}

impl Adapted for AdaptedModel<'_> {
    fn score(
        &self,
        prompts: &[Prompt<'_>],
        read: Read<'_>,
        told: &Told<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        match read {
            Read::Logits(tokens) => {
                each(prompts, told, |ws, prompt, last| self.logits_at(ws, prompt, last, tokens))
            }
            Read::Answer(deciding) => each(prompts, told, |ws, prompt, last| {
                Ok(self.answer_logits(ws, prompt, last, deciding)?.to_vec())
            }),
            Read::HiddenMean => self.hidden_means(prompts, told),
        }
    }

    fn train(
        &self,
        samples: &[TrainingSample<'_>],
        loss: &dyn Loss,
        weight: f32,
        gradient: GradientSink<'_>,
    ) -> Result<Losses> {
        WORKSPACE
            .with_borrow_mut(|ws| AdaptedModel::train(self, ws, samples, loss, weight, gradient))
    }
}

/// A frozen backbone with a personalised LoRA (or none).
#[derive(Clone, Copy, Debug)]
pub struct AdaptedModel<'a> {
    backbone: &'a Backbone,
    adapter: Option<AdapterView<'a>>,
}

impl<'a> AdaptedModel<'a> {
    /// The backbone with an adapter. An adapter made for another backbone is an error of every call.
    pub fn new(backbone: &'a Backbone, adapter: impl Into<AdapterView<'a>>) -> Self {
        Self { backbone, adapter: Some(adapter.into()) }
    }

    /// The backbone alone.
    pub fn bare(backbone: &'a Backbone) -> Self {
        Self { backbone, adapter: None }
    }

    /// Logits of the answers no and yes after `position`, by the adapter's head: those of two tokens
    /// (`deciding`) from the LLM's own, the two outputs of `ctr2`, or 0 and the output of `ctr1`. So
    /// P(yes) is the sigmoid of yes − no with every head.
    ///
    /// # Errors
    /// As for [`Self::logits_at`].
    pub fn answer_logits(
        &self,
        ws: &mut Workspace,
        prompt: &Prompt<'_>,
        position: usize,
        deciding: [u32; 2],
    ) -> Result<[f32; 2]> {
        self.hidden_at(ws, prompt, position, &deciding)?;
        let head = self.adapter.and_then(|adapter| Some((adapter, adapter.layout().head()?)));
        let logits = match head {
            Some((adapter, head)) => head::answers(head, adapter.parameters(), ws),
            None => head::logits(self.backbone, ws, &deciding.map(|token| token as usize)),
        };
        match check_finite(logits)?[..] {
            [no, yes] => Ok([no, yes]),
            [yes] => Ok([0.0, yes]),
            _ => Err(TrainerError::Input("the head has neither one nor two outputs".into())),
        }
    }

    /// Logits of the token after `position`, from the LLM's own head: of `token_ids` in their order, or
    /// of the whole vocabulary. Forward only, dropout off, no activations kept.
    ///
    /// # Errors
    /// [`TrainerError::Input`] for tokens, positions or a representation the model can't take;
    /// [`TrainerError::NotFinite`] when a logit is NaN or infinite.
    pub fn logits_at(
        &self,
        ws: &mut Workspace,
        prompt: &Prompt<'_>,
        position: usize,
        token_ids: Option<&[u32]>,
    ) -> Result<Vec<f32>> {
        self.hidden_at(ws, prompt, position, token_ids.unwrap_or_default())?;
        let tokens: Vec<usize> = match token_ids {
            None => (0..self.backbone.config.vocab_size).collect(),
            Some(ids) => ids.iter().map(|id| *id as usize).collect(),
        };
        check_finite(head::logits(self.backbone, ws, &tokens))
    }

    /// The final hidden state at `position`, as the only row of `ws.top`.
    fn hidden_at(
        &self,
        ws: &mut Workspace,
        prompt: &Prompt<'_>,
        position: usize,
        token_ids: &[u32],
    ) -> Result<()> {
        self.check(prompt, &[position], token_ids)?;
        self.mix(ws, prompt, None)?;
        let rows = [position as u32];
        let tokens = &prompt.tokens[..=position];
        let pass = Pass::new(self.backbone, self.adapter);
        forward(&pass, ws, tokens, &rows, Keep::Nothing);
        Ok(())
    }

    /// Adds `weight` times the gradient of `loss` to `gradient`, laid out like the adapter's parameters, and returns
    /// the sums of the losses. Samples are computed one after the other on the calling thread; those of a group of
    /// several twice, first for what is read of them. `gradient` is told what is ready during the last sample.
    ///
    /// # Errors
    /// [`TrainerError::Input`] as for [`Self::logits_at`], for a sample without targets, for a gradient of another
    /// length, for what the loss can't be of, and for a model without adapter; [`TrainerError::NotFinite`] for a loss
    /// that is NaN or infinite. What the sample or its group would have added is then missing in `gradient`.
    pub fn train<'g>(
        &self,
        ws: &mut Workspace,
        samples: &[TrainingSample<'_>],
        loss: &dyn Loss,
        weight: f32,
        gradient: impl Into<GradientSink<'g>>,
    ) -> Result<Losses> {
        let mut gradient = gradient.into();
        let adapter = self.trained(gradient.values)?;
        let mut sum = Losses::default();
        let groups = groups(samples, loss)?;
        for (left, group) in (0..groups.len()).rev().zip(groups) {
            let mut readouts = Vec::with_capacity(group.len());
            let mut kept = None;
            for sample in group {
                let keeps = group.len() == 1;
                let (readout, pass) = self.read(ws, adapter, sample, keeps)?;
                readouts.push(readout);
                kept = keeps.then_some(pass);
            }
            let likes: Vec<bool> = group.iter().map(|sample| sample.label).collect();
            let offsets: Vec<f32> = group.iter().map(|sample| sample.offset).collect();
            let (losses, derivatives) = of_group(loss, readouts, &offsets, &likes)?;
            sum += losses;
            for (behind, (sample, derivative)) in
                (0..group.len()).rev().zip(group.iter().zip(&derivatives))
            {
                let mut sink = gradient.part(left + behind == 0);
                let pass = match kept.take() {
                    Some(pass) => pass,
                    None => self.read(ws, adapter, sample, true)?.1,
                };
                self.backward(ws, adapter, sample, &pass, derivative, weight, &mut sink);
            }
        }
        Ok(sum)
    }

    /// The forward of a sample, and what is read of it.
    fn read<'s>(
        &self,
        ws: &mut Workspace,
        adapter: AdapterView<'_>,
        sample: &TrainingSample<'s>,
        keeps: bool,
    ) -> Result<(Readout, Forward<'s>)> {
        let TrainingSample { prompt, targets, deciding, dropout, .. } = *sample;
        let head = adapter.layout().head();
        let targets = if head.is_some() { &targets[..targets.len().min(1)] } else { targets };
        let positions: Vec<usize> = targets.iter().map(|t| t.position).collect();
        let tokens = targets.iter().map(|t| t.token).chain(deciding.iter().flatten().copied());
        let tokens: Vec<u32> = if head.is_some() { Vec::new() } else { tokens.collect() };
        self.check(&prompt, &positions, &tokens)?;
        self.mix(ws, &prompt, dropout)?;
        let mut rows: Vec<u32> = positions.iter().map(|p| *p as u32).collect();
        rows.sort_unstable();
        rows.dedup();
        let tokens = &prompt.tokens[..=rows[rows.len() - 1] as usize];
        let pass = Pass::new(self.backbone, self.adapter);
        let keep =
            if keeps { pass.keep(tokens.len(), ws.activation_budget) } else { Keep::Nothing };
        forward(&pass, ws, tokens, &rows, keep);
        let readout = match head {
            Some(head) => head::read_answer(head, adapter.parameters(), ws),
            None => head::read_tokens(self.backbone, ws, &rows, sample),
        };
        Ok((readout, Forward { tokens, rows, keep }))
    }

    /// The backward of the sample that was read last.
    #[expect(
        clippy::too_many_arguments,
        reason = "a sample, its forward, and where its gradient goes"
    )]
    fn backward(
        &self,
        ws: &mut Workspace,
        adapter: AdapterView<'_>,
        sample: &TrainingSample<'_>,
        forward: &Forward<'_>,
        derivative: &Readout,
        weight: f32,
        gradient: &mut GradientSink<'_>,
    ) {
        let Forward { tokens, rows, keep } = forward;
        match adapter.layout().head() {
            Some(head) => {
                let d_margin = derivative.margin.unwrap_or_default();
                head::answer_grad(head, adapter, ws, d_margin, weight, gradient.values);
            }
            None => head::tokens_grad(self.backbone, ws, rows, sample, derivative, weight),
        }
        let pass = Pass::new(self.backbone, self.adapter);
        let mut after = |layer: usize, mixture: &mut Mixture| {
            mixture.backward(adapter, layer, gradient);
        };
        timed(Phase::Backward, || pass.backward(ws, tokens, rows, *keep, &mut after));
    }

    /// The adapter that `gradient` is of.
    fn trained(&self, gradient: &[f32]) -> Result<AdapterView<'a>> {
        let Some(adapter) = self.adapter else {
            return Err(TrainerError::Input("the bare backbone has no gradient".into()));
        };
        adapter.layout().check_gradient(gradient)?;
        Ok(adapter)
    }

    /// Mean over all positions of the last hidden states (after the final norm), `[hidden]`, of each prompt.
    /// The representation is that of a prompt; the bare backbone takes an empty one.
    ///
    /// # Errors
    /// As for [`Self::logits_at`].
    pub fn hidden_means(&self, prompts: &[Prompt<'_>], told: &Told<'_>) -> Result<Vec<Vec<f32>>> {
        let packs = packs(prompts, self.adapter.is_none()).into_par_iter().map(|prompts| {
            let means = WORKSPACE.with_borrow_mut(|ws| self.means_of_pack(ws, prompts));
            told(prompts.len());
            means
        });
        Ok(packs.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Those of prompts that share an adapter.
    fn means_of_pack(&self, ws: &mut Workspace, prompts: &[Prompt<'_>]) -> Result<Vec<Vec<f32>>> {
        let (mut tokens, mut ends) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let Some(last) = prompt.tokens.len().checked_sub(1) else {
                return Err(TrainerError::Input("the prompt has no tokens".into()));
            };
            self.check(prompt, &[last], &[])?;
            self.mix(ws, prompt, None)?;
            tokens.extend_from_slice(prompt.tokens);
            ends.push(tokens.len());
        }
        processed(prompts.len(), tokens.len());
        let pass = Pass::new(self.backbone, self.adapter);
        timed(Phase::Forward, || pass.forward_all(ws, &tokens, &ends));
        let mut start = 0;
        let means = ends.iter().map(|&end| {
            let rows = std::mem::replace(&mut start, end)..end;
            let mut sum = vec![0.0f64; self.backbone.config.hidden_size];
            for row in rows.clone() {
                for (s, x) in sum.iter_mut().zip(ws.top.row(row)) {
                    *s += f64::from(*x);
                }
            }
            sum.iter().map(|s| (s / rows.len() as f64) as f32).collect()
        });
        Ok(means.collect())
    }

    fn check(&self, prompt: &Prompt<'_>, positions: &[usize], token_ids: &[u32]) -> Result<()> {
        let layout = self.adapter.map(AdapterView::layout);
        check(&self.backbone.config, layout, prompt, positions, token_ids)
    }

    fn mix(&self, ws: &mut Workspace, prompt: &Prompt<'_>, dropout: Option<Dropout>) -> Result<()> {
        match self.adapter {
            Some(adapter) => ws
                .mixture
                .forward(adapter, Sample { representation: prompt.representation, dropout }),
            None => Ok(()),
        }
    }
}

/// What a sample's forward ran on, and what it kept.
struct Forward<'s> {
    tokens: &'s [u32],
    rows: Vec<u32>,
    keep: Keep,
}

/// What `score` says of each prompt, given the place of its last token.
fn each(
    prompts: &[Prompt<'_>],
    told: &Told<'_>,
    score: impl Fn(&mut Workspace, &Prompt<'_>, usize) -> Result<Vec<f32>> + Sync,
) -> Result<Vec<Vec<f32>>> {
    let scores = prompts.par_iter().map(|prompt| {
        let last = prompt.tokens.len().saturating_sub(1);
        let scores = WORKSPACE.with_borrow_mut(|ws| score(ws, prompt, last));
        told(1);
        scores
    });
    scores.collect()
}

/// Prompts in the groups that go through the model at once: each alone, or where they share an adapter as many as make
/// matrices large enough to read the weights for.
fn packs<'p, 'a>(prompts: &'p [Prompt<'a>], share: bool) -> Vec<&'p [Prompt<'a>]> {
    let (mut packs, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (index, prompt) in prompts.iter().enumerate() {
        if index > start && (!share || tokens + prompt.tokens.len() > PACK_TOKENS) {
            packs.push(&prompts[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += prompt.tokens.len();
    }
    packs.push(&prompts[start..]);
    packs.retain(|pack| !pack.is_empty());
    packs
}

/// The forward pass of one sequence, counted.
fn forward(pass: &Pass<'_>, ws: &mut Workspace, tokens: &[u32], rows: &[u32], keep: Keep) {
    processed(1, tokens.len());
    timed(Phase::Forward, || pass.forward(ws, tokens, rows, keep));
}
