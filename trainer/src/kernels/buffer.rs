//! Memory that is used again and again for other lengths.

use std::any::Any;
use std::ops::{Deref, DerefMut};

/// Numbers in memory that only grows: a length that was had before costs nothing, where a `Vec` would
/// zero what it grows by. What a buffer holds after [`fit`] is to be overwritten.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Vec<f32>,
    length: usize,
}

/// Makes a buffer exactly this long; what it holds is then overwritten by the caller.
pub fn fit(buffer: &mut Buffer, length: usize) -> &mut [f32] {
    if buffer.memory.len() < length {
        // Not more than is needed: these are the large allocations of the process.
        buffer.memory.reserve_exact(length - buffer.memory.len());
        buffer.memory.resize(length, 0.0);
    }
    buffer.length = length;
    buffer
}

impl Buffer {
    /// Bytes of its memory.
    pub fn bytes(&self) -> usize {
        self.memory.capacity() * size_of::<f32>()
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[..self.length]
    }
}

/// Buffers of whichever type last asked for them.
#[derive(Debug, Default)]
pub struct Scratch(Option<Box<dyn Any + Send>>);

impl Scratch {
    /// The buffers of a type: empty ones, if another type had them last.
    pub fn of<T: Any + Default + Send>(&mut self) -> &mut T {
        if !self.0.as_ref().is_some_and(|buffers| buffers.is::<T>()) {
            self.0 = Some(Box::new(T::default()));
        }
        let buffers = self.0.as_mut().and_then(|buffers| buffers.downcast_mut());
        buffers.expect("it was made of this type")
    }
}
