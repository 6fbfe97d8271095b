//! The imports of the gateway from Weir's own packages, generated from `wit/`. Records that core or codec defines are
//! mapped to its types.

#![allow(missing_docs, clippy::all, unreachable_pub)]

wit_bindgen::generate!({
    world: "gateway-imports",
    path: "../../wit",
    with: {
        "weir:stream/events@0.1.0/cursor": weir_core::channels::Cursor,
        "weir:stream/session@0.1.0/chunk": weir_core::transcripts::Chunk,
        "weir:stream/session@0.1.0/segment": weir_core::transcripts::Segment,
        "weir:stream/types@0.1.0/label-score": weir_codec::inference::output::LabelScore,
    },
});
