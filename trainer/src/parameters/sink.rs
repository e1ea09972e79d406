//! Where a backward pass adds its gradient.

/// Told how much of a micro-batch's gradient is final: the dense part, and the first place (counted
/// from the start of the dense part) from which nothing more is added. May be told nothing at all.
pub type Ready<'a> = dyn FnMut(&[f32], usize) + 'a;

/// A gradient to be added to, and who is told which part of it is final. From a slice: nobody.
pub struct GradientSink<'a> {
    pub(crate) values: &'a mut [f32],
    finished: Option<&'a mut Ready<'a>>,
}

impl<'a> GradientSink<'a> {
    /// Calls `finished` with the gradient and the first place from which nothing more is added to it,
    /// each time that a layer's backward is done.
    pub fn observed(values: &'a mut [f32], finished: &'a mut Ready<'_>) -> Self {
        Self { values, finished: Some(finished) }
    }

    /// Whether anybody wants to know what is final before all is.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_observed(&self) -> bool {
        self.finished.is_some()
    }

    /// Nothing is added any more from `place` on.
    pub(crate) fn ready_from(&mut self, place: usize) {
        if let Some(finished) = &mut self.finished {
            finished(self.values, place);
        }
    }
}

impl<'a> From<&'a mut [f32]> for GradientSink<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        Self { values, finished: None }
    }
}

impl<'a> From<&'a mut Vec<f32>> for GradientSink<'a> {
    fn from(values: &'a mut Vec<f32>) -> Self {
        values.as_mut_slice().into()
    }
}
