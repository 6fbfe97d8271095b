//! Requests for items.

use weir_codec::inference::{
    remote,
    request::LINE_BYTES_MAX,
    task::{Parameters, Side, Task},
};
use weir_core::failure::Failure;

use crate::bindings::weir::stream::types as wire;
use crate::convert::{activation, aggregation};

/// The overlap in tokens of the windows that stand in for sentences.
const STRIDE_TOKENS: u32 = 32;

/// The request for an item.
pub(crate) enum ItemRequest {
    /// A line of a stream with this path and query.
    Line(String),
    /// A request of its own with this path, query and body.
    Whole(String, Vec<u8>),
    /// A request for a summary, with this body.
    Summary(Vec<u8>),
}

/// The request for an item, and its line.
///
/// # Errors
/// `invalid-input` if the HTTP interface has no such request.
pub(crate) fn item_request(id: u64, item: &wire::Item) -> Result<(ItemRequest, Vec<u8>), Failure> {
    let refused = |what: &str| Failure::InvalidInput(what.to_owned());
    let mut parameters = Parameters::default();
    let task = match &item.task {
        wire::Task::Classify(options) => {
            parameters.top_k = options.top_k;
            parameters.activation = options.activation.map(activation);
            Task::Classify
        }
        wire::Task::Tokens(options) => {
            parameters.aggregation = Some(aggregation(options.aggregation));
            parameters.ignore_labels = Some(options.ignore_labels.clone());
            parameters.stride = match item.overflow {
                wire::Overflow::Split => Some(options.stride.unwrap_or(STRIDE_TOKENS)),
                _ => None,
            };
            Task::Tokens
        }
        wire::Task::Embed(options) => {
            parameters.normalize = Some(options.normalize);
            Task::Embed
        }
        wire::Task::Summarize(_) => return Ok((ItemRequest::Summary(remote::summary_body(&item.text)), Vec::new())),
    };
    match item.overflow {
        wire::Overflow::Fail => parameters.truncation = Some(false),
        wire::Overflow::Truncate => parameters.truncation = Some(true),
        wire::Overflow::TruncateLeft => {
            parameters.truncation = Some(true);
            parameters.truncation_direction = Some(Side::Left);
        }
        wire::Overflow::Split if task == Task::Tokens => {}
        wire::Overflow::Split => return Err(refused("only `tokens` and `summarize` accept `split`")),
    }
    let target = remote::target(task, &item.model, &parameters);
    let pair = item.text_pair.as_deref();
    let line = remote::line(id, &item.text, pair);
    if line.len() > LINE_BYTES_MAX {
        return Ok((ItemRequest::Whole(target, remote::body(id, &item.text, pair)), Vec::new()));
    }
    Ok((ItemRequest::Line(target), line))
}
