//! What `/v1/transcript` and `/v1/annotate` take and answer.

use schemars::JsonSchema;
use serde_json::{Value, json};

use super::{Schemas, json_of};
use crate::{
    http::route::Route,
    transcripts::{
        annotate_stream::TEXTS_MAX,
        event::EventLine,
        semantic::{SPEAKER_BYTES_MAX, Semantic, SemanticLine, TEXT_BYTES_MAX},
    },
};

/// A line of a transcript.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "TranscriptLine")]
#[allow(dead_code)]
enum LineDoc {
    Chunk(ChunkDoc),
    End(EndDoc),
}

/// A piece of a transcript; other fields are refused.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Chunk")]
#[allow(dead_code)]
struct ChunkDoc {
    /// In seconds; not before the end of the segment in flight, or with `overlap` not before its start.
    start: f64,
    /// In seconds; not before `start`.
    end: f64,
    /// Joined to the segment in flight with a space.
    text: String,
    /// Who speaks; absent is the same as null.
    #[schemars(default)]
    speaker_id: Option<String>,
    /// The client's sequence number, each above the one before: a chunk that had come is not taken again.
    #[schemars(default)]
    seq: Option<u64>,
}

/// The segment in flight is final.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "End")]
#[allow(dead_code)]
struct EndDoc {
    /// `end`
    op: String,
    /// As of a chunk.
    #[schemars(default)]
    seq: Option<u64>,
}

/// A text, or an object with one. A line of an NDJSON body is one of these too.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "AnnotateInput")]
#[allow(dead_code)]
enum TextDoc {
    Text(#[schemars(length(max = TEXT_BYTES_MAX))] String),
    Object(TextObject),
}

/// A text and what belongs to it; other fields are refused.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "AnnotateObject")]
#[allow(dead_code)]
struct TextObject {
    /// The text.
    #[schemars(length(max = TEXT_BYTES_MAX))]
    text: String,
    /// Comes back with an action.
    #[schemars(default, length(max = SPEAKER_BYTES_MAX))]
    speaker_id: Option<String>,
    /// Repeated with matches and actions; the index of the text when absent.
    #[schemars(default)]
    segment_id: Option<u64>,
}

/// One text or several.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "AnnotateInputs")]
#[allow(dead_code)]
enum TextsDoc {
    One(TextDoc),
    Many(#[schemars(length(max = TEXTS_MAX))] Vec<TextDoc>),
}

/// Texts to annotate; other fields are refused.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "AnnotateRequest")]
#[allow(dead_code)]
struct AnnotateRequest {
    /// The texts.
    inputs: TextsDoc,
}

/// The semantic blocks, in the order of the texts.
#[derive(JsonSchema)]
#[schemars(rename = "AnnotateAnswer")]
#[allow(dead_code)]
struct AnnotateAnswer<'a> {
    /// None of a text where nothing was asked for.
    outputs: Vec<Option<Semantic<'a>>>,
}

/// Of the answer.
pub(super) const DESCRIPTION: &str = "As NDJSON a line for each event or text. As server-sent events each has its kind as `event`, its place in the stream as \
     `id`, and itself as `data`. A line that is wrong is answered in its place, and the stream goes on.";

/// Name, summary and answers of a path.
pub(super) fn described(route: Route, schemas: &mut Schemas) -> (&'static str, &'static str, Value) {
    let streamed = |line: Value| {
        json!({
            "application/x-ndjson": { "schema": line.clone() },
            "text/event-stream": { "schema": line },
        })
    };
    if route == Route::Transcript {
        let line = schemas.answered::<EventLine<'_>>();
        return ("transcript", "A transcript session in one request: chunks in, segments out", streamed(line));
    }
    let mut content = streamed(schemas.answered::<SemanticLine<'_>>());
    content["application/json"] = json!({ "schema": schemas.answered::<AnnotateAnswer<'_>>() });
    ("annotate", "What texts say by their words: keywords, risks, actions and intents", content)
}

/// What a path takes.
pub(super) fn body(route: Route, schemas: &mut Schemas) -> Value {
    if route == Route::Transcript {
        let mut content = lines(schemas);
        for captions in ["text/vtt", "application/x-subrip"] {
            content[captions] = json!({ "schema": { "type": "string" } });
        }
        return content;
    }
    let mut content = json_of(schemas.sent::<AnnotateRequest>());
    content["application/x-ndjson"] = json!({ "schema": schemas.sent::<TextDoc>() });
    content["text/plain"] = json!({ "schema": { "type": "string" } });
    content
}

/// Lines of a transcript.
pub(super) fn lines(schemas: &mut Schemas) -> Value {
    let line = schemas.sent::<LineDoc>();
    json!({ "application/x-ndjson": { "schema": line.clone() }, "application/json": { "schema": line } })
}

/// The query parameters of a path.
pub(super) fn parameters(route: Route) -> Value {
    let parameter = |name: &str, schema: Value, description: &str| json!({ "name": name, "in": "query", "schema": schema, "description": description });
    let told = match route {
        Route::Annotate => "What is told of a text, separated by commas: `keywords`, `intent`; `none` for neither",
        _ => {
            "What is told of a final segment, separated by commas: `keywords`, `intent`, and `sentiment` and `entities`, for which models are asked; `none` for nothing"
        }
    };
    let annotate = parameter("annotate", json!({ "type": "string", "default": "keywords,intent" }), told);
    if route == Route::Annotate {
        return json!([annotate]);
    }
    let number = |default: f64| json!({ "type": "number", "minimum": 0, "default": default });
    let whole = |min: u32, default: u32| json!({ "type": "integer", "minimum": min, "default": default });
    json!([
        parameter("max_gap_sec", number(1.0), "A pause of more seconds ends a segment"),
        parameter(
            "overlap",
            json!({ "type": "boolean", "default": false }),
            "Chunks may start while the segment in flight lasts, not before it starts; captions may in any case",
        ),
        annotate,
        parameter("max_segments", whole(1, 10), "Most segments in the context of a summary"),
        parameter("max_time_sec", number(120.0), "Most seconds that the context spans"),
        parameter("summary_every", whole(0, 0), "A summary is due after so many final segments; 0 for never"),
        parameter("summary_at_end", json!({ "type": "boolean", "default": false }), "A summary is due at the end"),
    ])
}
