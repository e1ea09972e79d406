//! Where a backward pass adds its gradient.

/// Told how much of a micro-batch's gradient is final: the dense part, and the first place (counted
/// from the start of the dense part) from which nothing more is added. May be told nothing at all.
pub type Ready<'a> = dyn FnMut(&[f32], usize) + 'a;

/// A gradient to be added to, and who is told which part of it is final. From a slice: nobody.
pub struct GradientSink<'a> {
    pub(crate) values: &'a mut [f32],
    ready: Option<&'a mut Ready<'a>>,
}

impl<'a> GradientSink<'a> {
    /// Calls `ready` with the gradient and the first place from which nothing more is added to it,
    /// each time that a layer's backward is done.
    pub fn observed(values: &'a mut [f32], ready: &'a mut Ready<'_>) -> Self {
        Self { values, ready: Some(ready) }
    }

    /// Whether anybody wants to know what is final before all is.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_observed(&self) -> bool {
        self.ready.is_some()
    }

    /// Where one of several parts is added: what only the last of them makes final is told then.
    pub(crate) fn part(&mut self, is_last: bool) -> GradientSink<'_> {
        match &mut self.ready {
            Some(ready) if is_last => GradientSink::observed(self.values, ready),
            _ => GradientSink { values: self.values, ready: None },
        }
    }

    /// Nothing is added any more from `place` on.
    pub(crate) fn ready_from(&mut self, place: usize) {
        if let Some(ready) = &mut self.ready {
            ready(self.values, place);
        }
    }
}

impl<'a> From<&'a mut [f32]> for GradientSink<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        Self { values, ready: None }
    }
}

impl<'a> From<&'a mut Vec<f32>> for GradientSink<'a> {
    fn from(values: &'a mut Vec<f32>) -> Self {
        values.as_mut_slice().into()
    }
}
