//! Keys and values of a layer, in pages.

use crate::aligned::Aligned;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, f32_to_f16};

/// Tokens of a page.
pub const PAGE_TOKENS: usize = 16;

/// The shape of the keys and values of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    /// Heads of keys and values.
    pub heads: usize,
    /// Elements of a head, a multiple of 16.
    pub head_size: usize,
}

impl PageShape {
    /// Elements of a token's key; its value has as many.
    pub fn token_elements(self) -> usize {
        self.heads * self.head_size
    }
}

/// The keys and values of a layer in f16. A number past the range of f16 is stored as ±65504.
#[derive(Debug)]
pub struct CachePages {
    shape: PageShape,
    /// `[page][head][element][token]`: in a product with a query, the tokens of a page are the lanes.
    keys: Aligned<u16>,
    /// `[page][head][token][element]`
    values: Aligned<u16>,
}

impl CachePages {
    /// Allocates pages. The system provides the memory when a page is first written to.
    ///
    /// # Panics
    /// If the size of a head is not a multiple of 16.
    pub fn new(shape: PageShape, pages: usize) -> Self {
        assert_eq!(shape.head_size % 16, 0, "the size of a head");
        let elements = pages * PAGE_TOKENS * shape.token_elements();
        Self { shape, keys: Aligned::zeroed(elements), values: Aligned::zeroed(elements) }
    }

    /// The shape of a token's keys and values.
    pub fn shape(&self) -> PageShape {
        self.shape
    }

    /// Writes a token's key and value, `[head][element]` each.
    ///
    /// # Panics
    /// If there is no such page or slot, or a slice has another length.
    pub fn write(&mut self, isa: Isa, page: usize, slot: usize, key: &[f32], value: &[f32]) {
        let PageShape { heads, head_size } = self.shape;
        assert!(
            slot < PAGE_TOKENS && key.len() == heads * head_size && value.len() == key.len(),
            "a token of the cache"
        );
        let elements = PAGE_TOKENS * key.len();
        let keys = &mut self.keys[page * elements..][..elements];
        for (element, key) in key.iter().enumerate() {
            keys[element * PAGE_TOKENS + slot] = f32_to_f16(key.clamp(-F16_MAX, F16_MAX));
        }
        let values = &mut self.values[page * elements..][..elements];
        isa.run(StoreValues { value, head_size, slot, values });
    }

    /// Copies the first tokens of a page to another.
    ///
    /// # Panics
    /// If there is no such page, or `tokens` is more than a page has.
    pub fn copy(&mut self, from: usize, to: usize, tokens: usize) {
        assert!(tokens <= PAGE_TOKENS, "the tokens of a page");
        let PageShape { heads, head_size } = self.shape;
        let elements = PAGE_TOKENS * heads * head_size;
        for element in 0..heads * head_size {
            let offset = element * PAGE_TOKENS;
            let source = from * elements + offset;
            self.keys.copy_within(source..source + tokens, to * elements + offset);
        }
        for head in 0..heads {
            let offset = head * PAGE_TOKENS * head_size;
            let source = from * elements + offset;
            self.values.copy_within(source..source + tokens * head_size, to * elements + offset);
        }
    }

    /// The keys of a head, `[element][token]`.
    #[inline(always)]
    pub(crate) fn keys(&self, page: u32, head: usize) -> &[u16] {
        let elements = PAGE_TOKENS * self.shape.head_size;
        &self.keys[(page as usize * self.shape.heads + head) * elements..][..elements]
    }

    /// The values of a head, `[token][element]`.
    #[inline(always)]
    pub(crate) fn values(&self, page: u32, head: usize) -> &[u16] {
        let elements = PAGE_TOKENS * self.shape.head_size;
        &self.values[(page as usize * self.shape.heads + head) * elements..][..elements]
    }
}

/// The greatest f16.
const F16_MAX: f32 = 65504.0;

struct StoreValues<'a> {
    value: &'a [f32],
    head_size: usize,
    slot: usize,
    /// The values of the page: `[head][token][element]`.
    values: &'a mut [u16],
}

impl Kernel for StoreValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (least, greatest) = (simd.splat(-F16_MAX), simd.splat(F16_MAX));
        let heads = self.values.chunks_exact_mut(PAGE_TOKENS * self.head_size);
        for (value, to) in self.value.chunks_exact(self.head_size).zip(heads) {
            let to = &mut to[self.slot * self.head_size..][..self.head_size];
            for (value, to) in value.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
                simd.store_f16(simd.min(simd.max(simd.load(value), least), greatest), to);
            }
        }
    }
}
