//! From what a model says of a group of samples to a loss and its derivatives.
//!
//! An engine reads a sample out ([`Readout`]), hands the read-outs of a group to a [`Loss`], and takes the derivatives
//! that come back through the model. So a loss knows no engine and no engine knows a loss: a new one is a file
//! here. Sums are in f64.

mod answer;
mod token;

pub use answer::AnswerCrossEntropy;
pub use token::TokenCrossEntropy;

use std::slice::Chunks;

use crate::error::{Result, TrainerError};
use crate::parameters::Losses;

/// What a model says of one sample; or the derivatives of a loss with respect to that, at the same places.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readout {
    /// Log-likelihood of each supervised token, in nats, in the order of the sample's targets. Empty where a trained
    /// head takes the place of the LLM's own.
    pub log_likelihoods: Vec<f64>,
    /// Logit of the answer yes less that of no, after the first target's position: that of a trained head, or of the
    /// two tokens where the sample names them, which samples of `tune` do.
    pub margin: Option<f64>,
}

/// A loss of groups of samples.
pub trait Loss: Sync {
    /// Samples of a group, which lie one after the other; the loss of each is its own where that is 1.
    fn group_size(&self) -> usize {
        1
    }

    /// The sums of the losses over a group, and the derivatives of [`Losses::training`] by what was read of each sample, at
    /// the same places: as many log-likelihoods (0 where one is not used), and a margin only where there was one. `likes`
    /// says of which samples the answer is yes. [`Losses::deciding`] stays the cross-entropy of yes and no, whatever is
    /// trained: curves compare it with the log loss.
    ///
    /// # Errors
    /// [`TrainerError::Input`] where what the loss is of was not read.
    fn of(&self, group: &[Readout], likes: &[bool]) -> Result<(Losses, Vec<Readout>)>;
}

/// The loss that a model with the LLM's own head learns from, or one with a trained head.
pub fn for_head(is_trained: bool) -> &'static dyn Loss {
    if is_trained { &AnswerCrossEntropy } else { &TokenCrossEntropy }
}

/// Cuts samples into groups of a loss.
///
/// # Errors
/// [`TrainerError::Input`] where the last group is not whole.
pub(crate) fn groups<'s, T>(samples: &'s [T], loss: &dyn Loss) -> Result<Chunks<'s, T>> {
    let size = loss.group_size().max(1);
    if !samples.len().is_multiple_of(size) {
        let what = format!("{} samples are no whole groups of {size}", samples.len());
        return Err(TrainerError::Input(what));
    }
    Ok(samples.chunks(size))
}

/// The losses of a group and the derivatives by what was read of each sample, as engines take them. Margins are those of
/// the scores: what the model says and the offset of each sample together.
///
/// # Errors
/// Those of the loss; a loss or a derivative that is NaN or infinite; derivatives at other places than what was read.
pub(crate) fn of_group(
    loss: &dyn Loss,
    mut group: Vec<Readout>,
    offsets: &[f32],
    likes: &[bool],
) -> Result<(Losses, Vec<Readout>)> {
    for (readout, offset) in group.iter_mut().zip(offsets) {
        readout.margin = readout.margin.map(|margin| margin + f64::from(*offset));
    }
    let (losses, derivatives) = loss.of(&group, likes)?;
    let fits = |(read, by): (&Readout, &Readout)| {
        read.log_likelihoods.len() == by.log_likelihoods.len()
            && (read.margin.is_some() || by.margin.is_none())
    };
    if derivatives.len() != group.len() || !group.iter().zip(&derivatives).all(fits) {
        let what = "the loss gave derivatives at other places than what was read of its samples";
        return Err(TrainerError::Input(what.into()));
    }
    let values = derivatives.iter().flat_map(|by| by.log_likelihoods.iter().chain(&by.margin));
    if !losses.training.is_finite() || values.into_iter().any(|value| !value.is_finite()) {
        return Err(TrainerError::NotFinite {
            what: "the loss".into(),
            hint: "lower [tune] learning_rate or max_grad_norm".into(),
        });
    }
    Ok((losses, derivatives))
}

/// ln(1 + e^x): the cross-entropy of a choice in which the wrong answer leads by x.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The margin by which the right answer leads.
fn lead(margin: f64, like: bool) -> f64 {
    if like { margin } else { -margin }
}

/// The sum over a group of losses that each sample has for itself.
fn each(
    group: &[Readout],
    likes: &[bool],
    of: impl Fn(&Readout, bool) -> Result<(Losses, Readout)>,
) -> Result<(Losses, Vec<Readout>)> {
    let mut sum = Losses::default();
    let mut derivatives = Vec::with_capacity(group.len());
    for (readout, like) in group.iter().zip(likes) {
        let (losses, derivative) = of(readout, *like)?;
        sum += losses;
        derivatives.push(derivative);
    }
    Ok((sum, derivatives))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every derivative against differences of the loss.
    fn check(loss: &dyn Loss, readout: &Readout, like: bool) {
        let (at, derivatives) = loss.of(std::slice::from_ref(readout), &[like]).unwrap();
        // Losses are f32: of 40, differences of less would be rounding.
        let step = 1e-2;
        let near = |derivative: f64, change: &dyn Fn(&mut Readout, f64)| {
            let ends = [step, -step].map(|by| {
                let mut moved = readout.clone();
                change(&mut moved, by);
                f64::from(loss.of(&[moved], &[like]).unwrap().0.training)
            });
            let slope = (ends[0] - ends[1]) / (2.0 * step);
            assert!((derivative - slope).abs() < 1e-3, "{derivative} {slope}");
        };
        let [derivative] = &derivatives[..] else { panic!("one sample") };
        for (place, d) in derivative.log_likelihoods.iter().enumerate() {
            near(*d, &|moved, by| moved.log_likelihoods[place] += by);
        }
        near(derivative.margin.unwrap_or(0.0), &|moved, by| {
            moved.margin = moved.margin.map(|margin| margin + by);
        });
        assert!(at.training.is_finite() && at.deciding.is_finite());
    }

    #[test]
    fn derivatives_at_other_places_or_without_a_value_are_refused() {
        struct Wrong(fn(&mut Vec<Readout>));
        impl Loss for Wrong {
            fn of(&self, group: &[Readout], _likes: &[bool]) -> Result<(Losses, Vec<Readout>)> {
                let mut derivatives = group.to_vec();
                (self.0)(&mut derivatives);
                Ok((Losses::default(), derivatives))
            }
        }
        let read = Readout { log_likelihoods: vec![-1.0, -2.0], margin: None };
        let wrong: [fn(&mut Vec<Readout>); 4] = [
            |by| by.truncate(1),
            |by| by[1].log_likelihoods.truncate(1),
            |by| by[0].margin = Some(1.0),
            |by| by[1].log_likelihoods[0] = f64::NAN,
        ];
        let group = [read.clone(), read];
        for wrong in wrong {
            let error = of_group(&Wrong(wrong), group.to_vec(), &[], &[true, false])
                .unwrap_err()
                .to_string();
            assert!(error.contains("the loss"), "{error}");
        }
        assert!(of_group(&Wrong(|_| ()), group.to_vec(), &[0.5, 0.0], &[true, false]).is_ok());
    }

    #[test]
    fn derivatives_are_those_of_the_loss() {
        for margin in [-40.0, -1.5, 0.0, 0.3, 40.0] {
            for like in [false, true] {
                let log_likelihoods = vec![-0.7, -2.5, -1e-3];
                let readout = Readout { log_likelihoods, margin: Some(margin) };
                check(&TokenCrossEntropy, &readout, like);
                check(&AnswerCrossEntropy, &readout, like);
            }
        }
    }

    #[test]
    fn losses_have_their_values() {
        let readout = Readout { log_likelihoods: vec![-1.0, -2.0], margin: Some(0.5) };
        let of =
            |loss: &dyn Loss, like| loss.of(std::slice::from_ref(&readout), &[like]).unwrap().0;
        let liked = (1.0f64 + (-0.5f64).exp()).ln() as f32;
        let not = (1.0f64 + 0.5f64.exp()).ln() as f32;
        let token = Losses { training: 1.5, deciding: liked };
        assert_eq!(of(&TokenCrossEntropy, true), token);
        assert_eq!(of(&TokenCrossEntropy, false), Losses { deciding: not, ..token });
        assert_eq!(of(&AnswerCrossEntropy, true), Losses { training: liked, deciding: liked });
        assert_eq!(of(&AnswerCrossEntropy, false), Losses { training: not, deciding: not });
        // A group is summed.
        let group = [readout.clone(), readout.clone()];
        let (sum, derivatives) = AnswerCrossEntropy.of(&group, &[true, false]).unwrap();
        assert_eq!((sum.training, derivatives.len()), (liked + not, 2));
    }

    #[test]
    fn what_was_not_read_has_no_loss() {
        let error = TokenCrossEntropy.of(&[Readout::default()], &[true]).unwrap_err();
        assert!(error.to_string().contains("trained head"), "{error}");
        let error = AnswerCrossEntropy.of(&[Readout::default()], &[true]).unwrap_err();
        assert!(error.to_string().contains("no and yes"), "{error}");
    }
}
