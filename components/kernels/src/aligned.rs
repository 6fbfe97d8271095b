//! Slices that begin on a cache line.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line: a vector load that crosses two lines takes twice as long.
const LINE_BYTES: usize = 64;

/// A vector whose first element lies on a cache line. Its length changes only by [`resize`](Self::resize), which does not keep
/// the content.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    storage: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut aligned = Self { storage: Vec::new(), start: 0, len: 0 };
        aligned.resize(len);
        aligned
    }

    /// Sets the length to `len`; the elements are unspecified. Allocates only when `len` exceeds the capacity.
    pub(crate) fn resize(&mut self, len: usize) {
        let slack = LINE_BYTES / size_of::<T>();
        if self.storage.len() < len + slack {
            self.storage = vec![T::default(); len + slack];
            // At most `slack`, or usize::MAX where the platform cannot compute it; the slice is then not aligned.
            let offset = self.storage.as_ptr().align_offset(LINE_BYTES);
            self.start = if offset <= slack { offset } else { 0 };
        }
        self.len = len;
    }
}

impl<T: Copy + Default> Default for Aligned<T> {
    fn default() -> Self {
        Self { storage: Vec::new(), start: 0, len: 0 }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_of_any_length_begins_on_a_cache_line() {
        for len in 0..200 {
            let floats = Aligned::<f32>::zeroed(len);
            assert_eq!(floats.len(), len);
            assert_eq!(floats.as_ptr() as usize % LINE_BYTES, 0);
            assert_eq!(Aligned::<i8>::zeroed(len).as_ptr() as usize % LINE_BYTES, 0);
        }
    }

    #[test]
    fn resize_to_less_and_back_keeps_the_allocation() {
        let mut floats = Aligned::<f32>::zeroed(100);
        let before = floats.as_ptr();
        floats.resize(7);
        assert_eq!(floats.len(), 7);
        floats.resize(100);
        assert_eq!(floats.as_ptr(), before);
    }
}
