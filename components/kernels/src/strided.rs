//! Rows of activations.

/// Rows for a tile: the first begins at `elements[0]`, and each begins `stride` elements after the one before.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a, T> {
    pub(crate) elements: &'a [T],
    pub(crate) stride: usize,
}

impl<'a, T> Strided<'a, T> {
    /// Drops the first `rows` rows.
    #[inline(always)]
    pub(crate) fn skip(self, rows: usize) -> Self {
        Self { elements: &self.elements[rows * self.stride..], stride: self.stride }
    }
}
