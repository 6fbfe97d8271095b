//! The resource limits of an instance.

use wasmtime::{StoreLimits, StoreLimitsBuilder};

/// Limits of a store with one component instance. Passing the memory bound makes `memory.grow` fail, which the guest's
/// allocator turns into a trap of that instance alone.
pub(crate) fn limits(memory_bytes_max: u64) -> StoreLimits {
    StoreLimitsBuilder::new()
        .memory_size(usize::try_from(memory_bytes_max).unwrap_or(usize::MAX))
        .table_elements(100_000)
        .build()
}
