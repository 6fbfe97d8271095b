//! The requests and responses of `/v1/transcript` and `/v1/annotate`.

use schemars::JsonSchema;
use serde_json::{Value, json};

use super::schemas::{Schemas, json_of};
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

/// A chunk of a transcript; unknown fields are refused.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Chunk")]
#[allow(dead_code)]
struct ChunkDoc {
    /// Start in seconds; not before the end of the segment in flight, or with `overlap` not before its start.
    start: f64,
    /// End in seconds; not before `start`.
    end: f64,
    /// The text; it is joined to the segment in flight with a space.
    text: String,
    /// The speaker; absent is the same as null.
    #[schemars(default)]
    speaker_id: Option<String>,
    /// The sequence number of the client, in increasing order: a repeated chunk is not processed again.
    #[schemars(default)]
    seq: Option<u64>,
}

/// Makes the segment in flight final.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "End")]
#[allow(dead_code)]
struct EndDoc {
    /// `end`
    op: String,
    /// The sequence number, as in a chunk.
    #[schemars(default)]
    seq: Option<u64>,
}

/// A text, or an object with a text; also a line of an NDJSON body.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "AnnotateInput")]
#[allow(dead_code)]
enum TextDoc {
    Text(#[schemars(length(max = TEXT_BYTES_MAX))] String),
    Object(TextObject),
}

/// A text with its speaker and segment; unknown fields are refused.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "AnnotateObject")]
#[allow(dead_code)]
struct TextObject {
    /// The text.
    #[schemars(length(max = TEXT_BYTES_MAX))]
    text: String,
    /// The speaker, repeated in an action.
    #[schemars(default, length(max = SPEAKER_BYTES_MAX))]
    speaker_id: Option<String>,
    /// The segment, repeated in matches and actions; the index of the text when absent.
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

/// Texts to annotate; unknown fields are refused.
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
    /// A block for each text; null if no annotation was requested.
    outputs: Vec<Option<Semantic<'a>>>,
}

/// The description of a streamed response.
pub(super) const DESCRIPTION: &str = "As NDJSON, a line for each event or text. As server-sent events, `event` is the type, `id` the number in the stream, and \
     `data` the line. An invalid line gives an error at its position, and the stream continues.";

/// The id, the summary and the response content of an operation.
pub(super) fn operation_head(route: Route, schemas: &mut Schemas) -> (&'static str, &'static str, Value) {
    let streamed = |line: Value| {
        json!({
            "application/x-ndjson": { "schema": line.clone() },
            "text/event-stream": { "schema": line },
        })
    };
    if route == Route::Transcript {
        let line = schemas.response::<EventLine<'_>>();
        return ("transcript", "A transcript session in one request: chunks in, segments out", streamed(line));
    }
    let mut content = streamed(schemas.response::<SemanticLine<'_>>());
    content["application/json"] = json!({ "schema": schemas.response::<AnnotateAnswer<'_>>() });
    ("annotate", "Annotate texts by rules: keywords, risks, actions and intents", content)
}

/// The content of a request body.
pub(super) fn body(route: Route, schemas: &mut Schemas) -> Value {
    if route == Route::Transcript {
        let mut content = lines(schemas);
        for captions in ["text/vtt", "application/x-subrip"] {
            content[captions] = json!({ "schema": { "type": "string" } });
        }
        return content;
    }
    let mut content = json_of(schemas.request::<AnnotateRequest>());
    content["application/x-ndjson"] = json!({ "schema": schemas.request::<TextDoc>() });
    content["text/plain"] = json!({ "schema": { "type": "string" } });
    content
}

/// The content of a transcript as lines of JSON.
pub(super) fn lines(schemas: &mut Schemas) -> Value {
    let line = schemas.request::<LineDoc>();
    json!({ "application/x-ndjson": { "schema": line.clone() }, "application/json": { "schema": line } })
}

/// The query parameters of an operation.
pub(super) fn parameters(route: Route) -> Value {
    let parameter = |name: &str, schema: Value, description: &str| json!({ "name": name, "in": "query", "schema": schema, "description": description });
    let description = match route {
        Route::Annotate => "The annotations of a text, separated by commas: `keywords`, `intent`; `none` for neither",
        _ => {
            "The annotations of a final segment, separated by commas: `keywords`, `intent`, and by models `sentiment` and `entities`; `none` for none"
        }
    };
    let annotate = parameter("annotate", json!({ "type": "string", "default": "keywords,intent" }), description);
    if route == Route::Annotate {
        return json!([annotate]);
    }
    let number = |default: f64| json!({ "type": "number", "minimum": 0, "default": default });
    let integer = |min: u32, default: u32| json!({ "type": "integer", "minimum": min, "default": default });
    json!([
        parameter("max_gap_sec", number(1.0), "A pause of more than this number of seconds ends a segment"),
        parameter(
            "overlap",
            json!({ "type": "boolean", "default": false }),
            "Chunks may start before the segment in flight ends, but not before it starts; always allowed for captions",
        ),
        annotate,
        parameter("max_segments", integer(1, 10), "Maximum number of segments in the context of a summary"),
        parameter("max_time_sec", number(120.0), "Maximum duration of the context, in seconds"),
        parameter("summary_every", integer(0, 0), "Number of final segments after which a summary is due; 0: never"),
        parameter("summary_at_end", json!({ "type": "boolean", "default": false }), "A summary is due at the end"),
    ])
}
