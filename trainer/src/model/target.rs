//! Where a backward pass adds its gradient.

use crate::distributed::buckets::Finished;

/// A gradient to be added to, and who is told which part of it is final. From a slice: nobody.
pub struct GradientTarget<'a> {
    pub(crate) values: &'a mut [f32],
    finished: Option<&'a mut Finished<'a>>,
}

impl<'a> GradientTarget<'a> {
    /// Calls `finished` with the gradient and the first place from which nothing more is added to it,
    /// each time that a layer's backward is done.
    pub fn watched(values: &'a mut [f32], finished: &'a mut Finished<'_>) -> Self {
        Self { values, finished: Some(finished) }
    }

    /// Whether anybody wants to know what is final before all is.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_watched(&self) -> bool {
        self.finished.is_some()
    }

    /// Nothing is added any more from `place` on.
    pub(crate) fn finished_from(&mut self, place: usize) {
        if let Some(finished) = &mut self.finished {
            finished(self.values, place);
        }
    }
}

impl<'a> From<&'a mut [f32]> for GradientTarget<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        Self { values, finished: None }
    }
}

impl<'a> From<&'a mut Vec<f32>> for GradientTarget<'a> {
    fn from(values: &'a mut Vec<f32>) -> Self {
        values.as_mut_slice().into()
    }
}
