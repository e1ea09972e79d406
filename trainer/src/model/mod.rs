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

pub use crate::adapter::Dropout;
#[cfg(feature = "cuda")]
pub(crate) use head::softplus;
pub use workspace::Workspace;

use serde::{Deserialize, Serialize};

use crate::adapter::{Adapter, AdapterLayout, Mixture};
use crate::backbone::{Backbone, BackboneConfig};
use crate::error::{Result, TrainerError};
use crate::parameters::{GradientSink, Losses};
use crate::telemetry::measure::{Phase, processed, timed};
use forward::Pass;
use workspace::Keep;

/// One sequence and what its gates read.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Prompt tokens, plus the answer's tokens but the last.
    pub tokens: &'a [u32],
    /// CRM representation `[|c|]`; ignored by plain LoRA and by the bare backbone.
    pub representation: &'a [f32],
}

/// One supervised token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Index into the prompt's tokens whose next token is predicted.
    pub position: usize,
    /// The token that should follow.
    pub token: u32,
}

/// One sample of a training batch.
#[derive(Clone, Copy, Debug)]
pub struct TrainingSample<'a> {
    /// The prompt and the answer.
    pub prompt: Prompt<'a>,
    /// The supervised tokens.
    pub targets: &'a [Target],
    /// Whether the answer is yes: what a trained head learns.
    pub label: bool,
    /// The tokens no and yes at the first target's position, whose choice has a loss that is told apart.
    pub deciding: Option<[u32; 2]>,
    /// Dropout of the gates.
    pub dropout: Option<Dropout>,
}

/// A frozen backbone with a personalised LoRA (or none).
#[derive(Clone, Copy, Debug)]
pub struct AdaptedModel<'a> {
    backbone: &'a Backbone,
    adapter: Option<&'a Adapter>,
}

impl<'a> AdaptedModel<'a> {
    /// The backbone with an adapter. An adapter made for another backbone is an error of every call.
    pub fn new(backbone: &'a Backbone, adapter: &'a Adapter) -> Self {
        Self { backbone, adapter: Some(adapter) }
    }

    /// The backbone alone.
    pub fn bare(backbone: &'a Backbone) -> Self {
        Self { backbone, adapter: None }
    }

    /// The backbone.
    pub fn backbone(&self) -> &'a Backbone {
        self.backbone
    }

    /// Whether the adapter has a trained head.
    pub fn has_head(&self) -> bool {
        self.adapter.is_some_and(|adapter| adapter.layout().head().is_some())
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

    /// Mean cross-entropy over `targets` (softmax over the whole vocabulary); adds `weight` times its
    /// gradient to `gradient`, laid out like the adapter's parameters.
    ///
    /// # Errors
    /// [`TrainerError::Input`] as for [`Self::logits_at`], for no targets, for a gradient of another
    /// length, and for a model without adapter or with a trained head; [`TrainerError::NotFinite`] for
    /// a loss that is NaN or infinite (then `gradient` is untouched).
    pub fn loss_and_gradient<'g>(
        &self,
        ws: &mut Workspace,
        prompt: &Prompt<'_>,
        targets: &[Target],
        dropout: Option<Dropout>,
        weight: f32,
        gradient: impl Into<GradientSink<'g>>,
    ) -> Result<f32> {
        let sample =
            TrainingSample { prompt: *prompt, targets, label: false, deciding: None, dropout };
        Ok(self.token_losses(ws, &sample, weight, gradient.into())?.training)
    }

    /// The losses of a sample: of its answer where the head is trained, otherwise of its tokens, and then of
    /// the choice between its deciding tokens too. Adds `weight` times the gradient of the first to
    /// `gradient`.
    ///
    /// # Errors
    /// As for [`Self::loss_and_gradient`] and [`Self::answer_loss_and_gradient`].
    pub fn losses_and_gradient<'g>(
        &self,
        ws: &mut Workspace,
        sample: &TrainingSample<'_>,
        weight: f32,
        gradient: impl Into<GradientSink<'g>>,
    ) -> Result<Losses> {
        let TrainingSample { prompt, targets, label, dropout, .. } = *sample;
        match targets.first() {
            Some(first) if self.has_head() => {
                let position = first.position;
                let loss = self.answer_loss_and_gradient(
                    ws, &prompt, position, label, dropout, weight, gradient,
                )?;
                // Its loss is of nothing but that choice.
                Ok(Losses { training: loss, deciding: loss })
            }
            _ => self.token_losses(ws, sample, weight, gradient.into()),
        }
    }

    fn token_losses(
        &self,
        ws: &mut Workspace,
        sample: &TrainingSample<'_>,
        weight: f32,
        mut gradient: GradientSink<'_>,
    ) -> Result<Losses> {
        let TrainingSample { prompt, targets, deciding, dropout, .. } = sample;
        let adapter = self.trained(gradient.values)?;
        if adapter.layout().head().is_some() {
            let what = "the adapter has a trained head, which learns from answers, not tokens";
            return Err(TrainerError::Input(what.into()));
        }
        let positions: Vec<usize> = targets.iter().map(|t| t.position).collect();
        let tokens = targets.iter().map(|t| t.token).chain(deciding.iter().flatten().copied());
        self.check(prompt, &positions, &tokens.collect::<Vec<_>>())?;
        self.mix(ws, prompt, *dropout)?;
        let mut rows: Vec<u32> = positions.iter().map(|p| *p as u32).collect();
        rows.sort_unstable();
        rows.dedup();
        let tokens = &prompt.tokens[..=rows[rows.len() - 1] as usize];
        let pass = Pass::new(self.backbone, self.adapter);
        let keep = pass.keep(tokens.len(), ws.activation_budget);
        forward(&pass, ws, tokens, &rows, keep);
        let losses = head::losses(self.backbone, ws, &rows, sample, weight);
        check_loss(losses.training)?;
        let mut after = |layer: usize, mixture: &mut Mixture| {
            mixture.backward(adapter, layer, &mut gradient);
        };
        timed(Phase::Backward, || pass.backward(ws, tokens, &rows, keep, &mut after));
        Ok(losses)
    }

    /// Loss of a trained head for the answer after `position`: cross-entropy of `ctr2`, binary
    /// cross-entropy of `ctr1`. Adds `weight` times its gradient to `gradient`.
    ///
    /// # Errors
    /// As for [`Self::loss_and_gradient`], but for a model without a trained head.
    #[expect(clippy::too_many_arguments, reason = "those of loss_and_gradient, and a label")]
    pub fn answer_loss_and_gradient<'g>(
        &self,
        ws: &mut Workspace,
        prompt: &Prompt<'_>,
        position: usize,
        like: bool,
        dropout: Option<Dropout>,
        weight: f32,
        gradient: impl Into<GradientSink<'g>>,
    ) -> Result<f32> {
        let mut gradient = gradient.into();
        let adapter = self.trained(gradient.values)?;
        let Some(head) = adapter.layout().head() else {
            let what = "the adapter has no trained head: it learns from tokens";
            return Err(TrainerError::Input(what.into()));
        };
        self.check(prompt, &[position], &[])?;
        self.mix(ws, prompt, dropout)?;
        let rows = [position as u32];
        let tokens = &prompt.tokens[..=position];
        let pass = Pass::new(self.backbone, self.adapter);
        let keep = pass.keep(tokens.len(), ws.activation_budget);
        forward(&pass, ws, tokens, &rows, keep);
        let (loss, d_logits) = head::answer_loss(head, adapter.parameters(), ws, like);
        check_loss(loss)?;
        let d_logits: Vec<f32> = d_logits.iter().map(|d| weight * d).collect();
        head::answer_grad(head, adapter.parameters(), ws, &d_logits, gradient.values);
        let mut after = |layer: usize, mixture: &mut Mixture| {
            mixture.backward(adapter, layer, &mut gradient);
        };
        timed(Phase::Backward, || pass.backward(ws, tokens, &rows, keep, &mut after));
        Ok(loss)
    }

    /// The adapter that `gradient` is of.
    fn trained(&self, gradient: &[f32]) -> Result<&'a Adapter> {
        let Some(adapter) = self.adapter else {
            return Err(TrainerError::Input("the bare backbone has no gradient".into()));
        };
        adapter.layout().check_gradient(gradient)?;
        Ok(adapter)
    }

    /// Mean over all positions of the last hidden states (after the final norm), `[hidden]`.
    /// The representation is that of a prompt; the bare backbone takes an empty one.
    ///
    /// # Errors
    /// As for [`Self::logits_at`].
    pub fn hidden_mean(&self, ws: &mut Workspace, prompt: &Prompt<'_>) -> Result<Vec<f32>> {
        let tokens = prompt.tokens;
        let Some(last) = tokens.len().checked_sub(1) else {
            return Err(TrainerError::Input("the prompt has no tokens".into()));
        };
        self.check(prompt, &[last], &[])?;
        self.mix(ws, prompt, None)?;
        let rows: Vec<u32> = (0..tokens.len() as u32).collect();
        let pass = Pass::new(self.backbone, self.adapter);
        forward(&pass, ws, tokens, &rows, Keep::Nothing);
        let hidden = self.backbone.config.hidden_size;
        let mut sum = vec![0.0f64; hidden];
        for row in 0..tokens.len() {
            for (s, x) in sum.iter_mut().zip(ws.top.row(row)) {
                *s += f64::from(*x);
            }
        }
        Ok(sum.iter().map(|s| (s / tokens.len() as f64) as f32).collect())
    }

    fn check(&self, prompt: &Prompt<'_>, positions: &[usize], token_ids: &[u32]) -> Result<()> {
        let layout = self.adapter.map(Adapter::layout);
        check(&self.backbone.config, layout, prompt, positions, token_ids)
    }

    fn mix(&self, ws: &mut Workspace, prompt: &Prompt<'_>, dropout: Option<Dropout>) -> Result<()> {
        match self.adapter {
            Some(adapter) => ws.mixture.forward(adapter, prompt.representation, dropout),
            None => Ok(()),
        }
    }
}

/// The forward pass of one sequence, counted.
fn forward(pass: &Pass<'_>, ws: &mut Workspace, tokens: &[u32], rows: &[u32], keep: Keep) {
    processed(1, tokens.len());
    timed(Phase::Forward, || pass.forward(ws, tokens, rows, keep));
}

/// Everything about the inputs that later code relies on.
pub(crate) fn check(
    config: &BackboneConfig,
    layout: Option<&AdapterLayout>,
    prompt: &Prompt<'_>,
    positions: &[usize],
    token_ids: &[u32],
) -> Result<()> {
    let fail = |what: String| Err(TrainerError::Input(what));
    if layout.is_some_and(|layout| !layout.fits(config)) {
        return fail("the adapter was made for another backbone".into());
    }
    let length = prompt.tokens.len();
    if length > config.max_position_embeddings {
        let limit = config.max_position_embeddings;
        return fail(format!("the prompt has {length} tokens, the backbone takes {limit}"));
    }
    if positions.is_empty() {
        return fail("no position to predict at".into());
    }
    if let Some(p) = positions.iter().find(|p| **p >= length) {
        return fail(format!("position {p} is not in the prompt of {length} tokens"));
    }
    let ids = prompt.tokens.iter().chain(token_ids);
    if let Some(id) = ids.into_iter().find(|id| **id as usize >= config.vocab_size) {
        let vocab = config.vocab_size;
        return fail(format!(
            "token {id} is not in the backbone's vocabulary of {vocab}: is the tokenizer another \
                 model's?"
        ));
    }
    Ok(())
}

pub(crate) fn check_finite(logits: Vec<f32>) -> Result<Vec<f32>> {
    if logits.iter().all(|x| x.is_finite()) {
        return Ok(logits);
    }
    Err(TrainerError::NotFinite {
        what: "a logit".into(),
        hint:
            "the adapter or the backbone's weights overflow; was it tuned with too high a learning \
               rate?"
                .into(),
    })
}

pub(crate) fn check_loss(loss: f32) -> Result<f32> {
    if loss.is_finite() {
        return Ok(loss);
    }
    Err(TrainerError::NotFinite {
        what: "the loss".into(),
        hint: "lower [tune] learning_rate or max_grad_norm".into(),
    })
}
