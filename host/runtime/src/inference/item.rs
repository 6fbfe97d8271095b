//! Items whose texts are shared: between the queue and the instances, a text is never copied.

use std::sync::Arc;

use wasmtime::AsContextMut;
use wasmtime::component::{ComponentType, Lift, Lower, StreamReader};

use crate::types::{Item, Overflow, Task, WhenFull};

/// WIT `types.item` with shared texts. A job keeps its item for a retry while an instance has a clone of it.
#[derive(Debug, Clone, ComponentType, Lift, Lower)]
#[component(record)]
pub struct SharedItem {
    /// See `types.item`, as for the other fields.
    pub id: u64,
    /// The name of the model.
    pub model: Arc<str>,
    /// The text.
    pub text: Arc<str>,
    /// A second text.
    #[component(name = "text-pair")]
    pub text_pair: Option<Arc<str>>,
    /// What to do with a text of more tokens than the model accepts.
    pub overflow: Overflow,
    /// Remaining time, in milliseconds.
    #[component(name = "deadline-ms")]
    pub deadline_ms: Option<u32>,
    /// What to do when the model's queue is full.
    #[component(name = "when-full")]
    pub when_full: WhenFull,
    /// The span that the item belongs to.
    pub traceparent: Option<String>,
    /// The task.
    pub task: Task,
}

impl From<Item> for SharedItem {
    fn from(item: Item) -> Self {
        let Item { id, model, text, text_pair, overflow, deadline_ms, when_full, traceparent, task } = item;
        Self {
            id,
            model: model.into(),
            text: text.into(),
            text_pair: text_pair.map(Arc::from),
            overflow,
            deadline_ms,
            when_full,
            traceparent,
            task,
        }
    }
}

impl SharedItem {
    /// The bytes of the texts.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text.len() + self.text_pair.as_ref().map_or(0, |text| text.len())
    }
}

/// The items that a guest writes, read as [`SharedItem`]s: their texts are copied once, out of its memory.
pub(crate) fn shared_items(
    mut store: impl AsContextMut,
    items: StreamReader<Item>,
) -> wasmtime::Result<StreamReader<SharedItem>> {
    StreamReader::try_from_stream_any(items.try_into_stream_any(&mut store)?)
}
