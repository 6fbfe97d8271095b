//! The operations of a decoder other than products: attention over a paged cache, root mean square normalization, rotary positions
//! and the gate of feed-forward layers. Every function reads one row, so a batch never changes a result.

mod attention;
mod cache;
mod functions;

pub use attention::PagedAttention;
pub use cache::{CachePages, PAGE_TOKENS, PageShape};
pub use functions::{exponentials, gated_silu, greatest, rms_norm, rotate};
