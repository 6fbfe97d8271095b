//! Checks that `docs/reference/http.md`, `events.md` and `definitions.md` agree with the wire types.
//! `UPDATE_EXPECT=1 cargo test -p weir-codec --test reference` regenerates them.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use expect_test::expect_file;
use serde_json::{Map, Value};
use weir_codec::{
    channels::{
        event::StreamEvent,
        publish::{Notification, Progress, WorkflowBody},
        route::{Channel, ChannelKind, SOCKET_ROUTES},
    },
    openapi::document,
    pipelines::{
        definition::{DEADLINE_MS_DEFAULT, DEFINITION_BYTES_MAX, MEMORY_BYTES_DEFAULT},
        event::to_json,
        process_request::CHUNK_SIZE_DEFAULT,
    },
};
use weir_core::{
    inference::retry::{RetryConfig, RetryPolicy},
    pipelines::{
        COMPENSATIONS_MAX, Data, Event, ID_BYTES_MAX, Json, KindName, Metadata, Method, OnError, PARALLEL_MAX_DEFAULT,
        PipelineFailure, STEPS_MAX, StepFailure, Streaming, TIMEOUT_MS_DEFAULT, bounds,
    },
};
use weir_expression::EXPRESSION_BYTES_MAX;

/// The prefix of a group of routes, its title and its introduction; the longest matching prefix applies.
const GROUPS: [(&str, &str, &str); 9] = [
    ("/generate-stream", "Generated text", "See [Generate text](../guides/generation.md)."),
    ("/v1/", "Texts", "See [Classify, tag and embed texts](../guides/texts.md)."),
    ("/process-", "Whole documents", "See the [tutorial](../tutorial.md#4-process-a-document-step-by-step)."),
    ("/v1/transcript", "Transcripts", "See [Transcript sessions](../guides/sessions.md)."),
    ("/sessions", "Stored transcript sessions", "See [Transcript sessions](../guides/sessions.md)."),
    ("/stream", "Channels", "See [Publish and follow events](../guides/channels.md)."),
    ("/tickets", "Tickets", "See [Authentication](../guides/authentication.md#tickets)."),
    ("/pipelines", "Pipelines and executions", "See [Run pipelines](../guides/pipelines.md)."),
    ("/v1/models", "The server", "See [Operate a server](../guides/operate.md)."),
];

/// Routes without a prefix of their own, and the prefix of the group that they belong to.
const MEMBERS: [(&str, &str); 19] = [
    ("/models/", "/v1/"),
    ("/predict", "/v1/"),
    ("/embed", "/v1/"),
    ("/embed_sparse", "/v1/"),
    ("/rerank", "/v1/"),
    ("/v1/chat/completions", "/generate-stream"),
    ("/v1/completions", "/generate-stream"),
    ("/v1/responses", "/generate-stream"),
    ("/v1/messages", "/generate-stream"),
    ("/v1beta/", "/generate-stream"),
    ("/v1/ui/", "/generate-stream"),
    ("/v1/generations", "/generate-stream"),
    ("/executions", "/pipelines"),
    ("/reliability", "/pipelines"),
    ("/upload", "/pipelines"),
    ("/livez", "/v1/models"),
    ("/readyz", "/v1/models"),
    ("/openapi.json", "/v1/models"),
    ("/", "/v1/models"),
];

const HTTP: &str = "\
# HTTP routes

<!-- Generated from the wire types: UPDATE_EXPECT=1 cargo test -p weir-codec --test reference -->

Every route, with its requests and responses. [Conventions of the API](conventions.md) describes what all routes have in common:
units, errors, media types and retries. A response with a status of 400 or above whose body is not in the table is a [Problem](#problem). `GET /openapi.json` serves the same description to programs. The routes
of the host itself are at the [end](#routes-of-the-native-host).

";

const EVENTS: &str = "\
# Events

<!-- Generated from the wire types: UPDATE_EXPECT=1 cargo test -p weir-codec --test reference -->

The events of every stream, with their fields. A stream is NDJSON (one object on each line) or Server-Sent Events, as the
request's `Accept` selects; the objects are the same.

";

fn group_of(path: &str) -> &'static str {
    let member = MEMBERS.iter().find(|(prefix, _)| path == *prefix || (*prefix != "/" && path.starts_with(prefix)));
    let path = member.map_or(path, |(_, group)| group);
    let groups = GROUPS.iter().filter(|(prefix, ..)| path.starts_with(prefix));
    groups.max_by_key(|(prefix, ..)| prefix.len()).map_or_else(|| panic!("{path} has no group"), |group| group.1)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A text for a cell of a table: on one line, with the cell separator escaped.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// Joins parts as sentences; empty parts are left out.
fn sentences(parts: &[String]) -> String {
    let sentence = |part: &String| {
        let mut letters = part.trim_end_matches('.').chars();
        let first = letters.next()?;
        Some(format!("{}{}.", first.to_uppercase(), letters.as_str()))
    };
    parts.iter().filter_map(sentence).collect::<Vec<_>>().join(" ")
}

/// The last part of a reference to a schema.
fn reference(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}

/// A short name of a schema: its type, or the schema that it refers to.
fn kind(schema: &Value) -> String {
    if let Some(name) = reference(schema) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(value) = schema.get("const") {
        return format!("`{value}`");
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(all) = schema[key].as_array() {
            let kinds: Vec<String> = all.iter().filter(|one| one["type"] != "null").map(kind).collect();
            return kinds.join(" or ");
        }
    }
    let names: Vec<&str> = match &schema["type"] {
        Value::Array(names) => names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect(),
        name => name.as_str().into_iter().collect(),
    };
    match names[..] {
        ["array"] => format!("array of {}", kind(&schema["items"])),
        ["object"] if schema["additionalProperties"].is_object() => {
            format!("object of {}", kind(&schema["additionalProperties"]))
        }
        [] => "any".to_owned(),
        _ => names.join(" or "),
    }
}

/// The bounds and the default of a schema.
fn bounds(schema: &Value) -> String {
    let mut parts = Vec::new();
    for (low, high, unit) in
        [("minimum", "maximum", ""), ("minLength", "maxLength", "length "), ("minItems", "maxItems", "items ")]
    {
        // The range of an integer type is not useful to readers.
        let high =
            schema.get(high).filter(|_| schema["format"].as_str().is_none_or(|format| !format.starts_with("uint")));
        match (schema.get(low).filter(|low| **low != 0 || high.is_some()), high) {
            (Some(low), Some(high)) => parts.push(format!("{unit}{low} to {high}")),
            (Some(low), None) => parts.push(format!("{unit}at least {low}")),
            (None, Some(high)) => parts.push(format!("{unit}at most {high}")),
            (None, None) => {}
        }
    }
    if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
        parts.push(format!("default `{default}`"));
    }
    parts.join(", ")
}

/// Writes the fields of an object as a table; nothing for other schemas.
fn fields(out: &mut String, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    out.push_str("| field | type | |\n|---|---|---|\n");
    for (name, field) in properties {
        let optional = if required.contains(&name.as_str()) { "" } else { "optional" };
        let about = sentences(&[optional.to_owned(), bounds(field), cell(text(field, "description"))]);
        writeln!(out, "| `{name}` | {} | {about} |", cell(&kind(field))).unwrap();
    }
    out.push('\n');
}

/// Media types and their schemas.
fn content(content: &Value) -> String {
    let all = content.as_object().into_iter().flatten().map(|(media, body)| {
        let schema = &body["schema"];
        match text(schema, "description") {
            _ if reference(schema).is_some() => format!("`{media}`: {}", kind(schema)),
            "" => format!("`{media}`"),
            about => format!("`{media}`: {about}"),
        }
    });
    all.collect::<Vec<_>>().join("; ")
}

/// Writes a heading, the summary of the route, its parameters, its body and its responses.
fn operation(out: &mut String, method: &str, path: &str, operation: &Value) {
    writeln!(out, "### {method} {path}\n\n{}.\n", text(operation, "summary")).unwrap();
    if let Some(about) = operation["description"].as_str() {
        writeln!(out, "{about}\n").unwrap();
    }
    let parameters: Vec<&Value> = operation["parameters"].as_array().into_iter().flatten().collect();
    if !parameters.is_empty() {
        out.push_str("| parameter | in | type | |\n|---|---|---|---|\n");
        for parameter in parameters {
            let schema = &parameter["schema"];
            let about = sentences(&[bounds(schema), cell(text(parameter, "description"))]);
            let (name, location) = (text(parameter, "name"), text(parameter, "in"));
            writeln!(out, "| `{name}` | {location} | {} | {about} |", cell(&kind(schema))).unwrap();
        }
        out.push('\n');
    }
    if let Some(body) = operation.get("requestBody") {
        writeln!(out, "Body: {}.\n", content(&body["content"])).unwrap();
        for body in body["content"].as_object().into_iter().flatten().map(|(_, body)| &body["schema"]) {
            for one in body["oneOf"].as_array().into_iter().flatten().chain([body]) {
                fields(out, one);
            }
        }
    }
    out.push_str("| status | | body |\n|---|---|---|\n");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let about = sentences(&[cell(text(response, "description"))]);
        // All errors have the same body, which the introduction describes.
        let body = cell(&content(&response["content"]));
        let body = if body == "`application/problem+json`: [Problem](#problem)" { "" } else { &body };
        writeln!(out, "| {status} | {about} | {body} |").unwrap();
    }
    out.push('\n');
}

fn schema(out: &mut String, name: &str, schema: &Value) {
    writeln!(out, "### {name}\n").unwrap();
    let about = text(schema, "description");
    if !about.is_empty() {
        writeln!(out, "{about}\n").unwrap();
    }
    match schema["oneOf"].as_array() {
        // An enumeration with a description for each value.
        Some(all) if all.iter().all(|one| one.get("const").is_some()) => {
            for one in all {
                writeln!(out, "- `{}`: {}", text(one, "const"), text(one, "description")).unwrap();
            }
            out.push('\n');
        }
        Some(all) if all.iter().all(|one| one["properties"].is_object()) => {
            writeln!(out, "One of the events in [Events](events.md).\n").unwrap();
        }
        _ if schema["properties"].is_object() => fields(out, schema),
        _ => writeln!(out, "Type: {}.\n", kind(schema)).unwrap(),
    }
}

#[test]
fn http_page_agrees_with_the_wire_types() {
    let document = document(env!("CARGO_PKG_VERSION"));
    let mut out = HTTP.to_owned();
    for (_, title, about) in GROUPS {
        writeln!(out, "## {title}\n\n{about}\n").unwrap();
        for (path, methods) in document["paths"].as_object().unwrap().iter().filter(|(path, _)| group_of(path) == title)
        {
            for (method, described) in methods.as_object().unwrap() {
                operation(&mut out, &method.to_uppercase(), path, described);
            }
        }
        if title == "Channels" {
            for (method, path) in SOCKET_ROUTES {
                let about = "A WebSocket that follows channels, see [Publish and follow events](../guides/channels.md#websockets)";
                writeln!(out, "### {method} {path} (WebSocket)\n\n{about}.\n").unwrap();
            }
        }
    }
    out.push_str(
        "## Routes of the native host\n\n`weir serve` handles `GET /metrics` itself, see [Metrics](metrics.md), and `GET /v1/stats`, a \
         snapshot of the server as JSON or, with `Accept: text/event-stream`, one every second as events named `stats`. Its \
         `configuration` lists the settings that differ from their defaults (`key`, and `value` where it is a number, a switch or a choice: \
         texts, paths, addresses and lists are never shown). All other routes are those of the gateway component, under every host.\n\n## Schemas\n\n",
    );
    for (name, described) in document["components"]["schemas"].as_object().unwrap() {
        schema(&mut out, name, described);
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    expect_file!["../../../docs/reference/http.md"].assert_eq(&out);
}

/// Writes the variants of a schema of events; the name of each is the constant of its member `tag`.
fn variants(out: &mut String, schemas: &Map<String, Value>, name: &str, tag: &str) {
    for event in schemas[name]["oneOf"].as_array().unwrap_or_else(|| panic!("{name} has no variants")) {
        writeln!(out, "### {}\n\n{}\n", text(&event["properties"][tag], "const"), text(event, "description")).unwrap();
        let mut event = event.clone();
        event["properties"].as_object_mut().unwrap().remove(tag);
        // Schemas are described on the page of the routes.
        let mut table = String::new();
        fields(&mut table, &event);
        out.push_str(&table.replace("](#", "](http.md#"));
    }
}

fn channel_events(out: &mut String) {
    let workflow = Channel::new(ChannelKind::Workflow, "42").unwrap();
    let file = Channel::new(ChannelKind::File, "report.pdf").unwrap();
    let user = Channel::new(ChannelKind::User, "ann").unwrap();
    let progress = WorkflowBody::from_json(
        br#"{"step":"parse","progress":40,"message":"page 2 of 5","metadata":{"page":2},"user_id":"ann"}"#,
    );
    let temporal = WorkflowBody::from_json(br#"{"event":"temporal_status","status":"COMPLETED","run_id":"7"}"#);
    let (progress, temporal) = (progress.unwrap(), temporal.unwrap());
    let analysis = Progress::analysis_from_json(br#"{"step":"done","progress":100,"result":{"pages":5}}"#).unwrap();
    let notification = Notification::from_json(br#"{"title":"Report","message":"It is ready.","level":"success"}"#);
    let notification = notification.unwrap();
    let events = [
        (
            "The subscription is established: the first event of every connection. It has no id and is not stored.",
            &workflow,
            StreamEvent::Connected,
        ),
        ("The progress of a workflow.", &workflow, StreamEvent::from(&progress)),
        (
            "The status that a workflow engine reports, with the states of Temporal's API; one that ends the workflow finishes the channel.",
            &workflow,
            StreamEvent::from(&temporal),
        ),
        (
            "The progress of the analysis of a file; 100 percent, an `error` or `canceled` finish the channel.",
            &file,
            StreamEvent::AnalysisProgress(&analysis),
        ),
        (
            "A message for a user; `level` is `info`, `success`, `warning` or `error`.",
            &user,
            StreamEvent::Notification(&notification),
        ),
        (
            "Events are no longer stored, from `missing_from` to `missing_to`, both included. The events after the gap are complete.",
            &workflow,
            StreamEvent::Gap { missing_from: "115560384823296-3", missing_to: "115560384823296-9" },
        ),
        (
            "The subscription failed; the workflow or file that it follows is not affected.",
            &workflow,
            StreamEvent::Error { code: "unavailable", message: "the channel store cannot answer", retryable: true },
        ),
        (
            "The server ends the connection. `reason` is `finished`, `slow`, `closing` or `expired`; with `resumable` a new connection with the last id continues.",
            &workflow,
            StreamEvent::Disconnected { reason: "finished", message: "the channel is finished", resumable: false },
        ),
    ];
    for (about, channel, event) in events {
        let data = String::from_utf8(event.data(channel, 1_761_129_000_000)).unwrap();
        writeln!(out, "### {}\n\n{about}\n\n```json\n{data}\n```\n", event.name()).unwrap();
    }
}

fn execution_events(out: &mut String) {
    let failure = StepFailure::passing("upstream_status", "the service answered 503");
    let output = Json::from_checked(r#"{"label":"positive"}"#);
    let pipeline_failure = PipelineFailure {
        failure: failure.clone(),
        step_id: Some("score".into()),
        cancelled: false,
        compensated: 1,
        compensations_failed: 0,
    };
    let (kind, duration_ns) = (KindName::Http, 12_500_000);
    let retry = StepFailure { retry_after_ms: Some(200), ..failure };
    let first = Metadata { attempt: 1, ..Metadata::default() };
    let events = [
        ("The execution begins.", None, Data::PipelineStart { name: "review".into(), steps: 2 }),
        (
            "A step begins. It begins again after a crash, with a greater `run`.",
            Some("score"),
            Data::StepStart { kind },
        ),
        (
            "The progress of a step, from 0 to 1.",
            Some("score"),
            Data::StepProgress { progress: 0.5, message: "1 of 2".into() },
        ),
        (
            "A part of a step's output, as soon as it exists.",
            Some("score"),
            Data::StepOutput { index: 0, output: output.clone() },
        ),
        (
            "A step is complete; once for each step, also across crashes.",
            Some("score"),
            Data::StepComplete { kind, output: output.clone(), duration_ns },
        ),
        (
            "An attempt failed. `retry_in_ms` is null when there is no other attempt.",
            Some("score"),
            Data::StepError { kind, failure: retry, retry_in_ns: Some(200_000_000), duration_ns },
        ),
        (
            "A checkpoint is stored: the execution resumes from it after a crash.",
            None,
            Data::CheckpointSaved { checkpoint: 1, steps_completed: 1 },
        ),
        (
            "The execution is complete. An output that is too large for an event is null; `GET /executions/{execution_id}` has it.",
            None,
            Data::PipelineComplete { output, duration_ns, steps_completed: 2, steps_failed: 0 },
        ),
        (
            "The execution failed or was cancelled; steps with a compensation were undone.",
            None,
            Data::PipelineError { failure: pipeline_failure, duration_ns },
        ),
    ];
    for (about, step_id, data) in events {
        let metadata = if step_id.is_some() { first.clone() } else { Metadata::default() };
        let event = Event { step_id: step_id.map(Into::into), unix_ns: 1_761_129_000_000_000_000, data, metadata };
        let json = to_json("exec_pq3aAUvLgcYVZgTUb3oBlA", &event);
        writeln!(out, "### {}\n\n{about}\n\n```json\n{}\n```\n", event.event_type().name(), json.trim_end()).unwrap();
    }
}

#[test]
fn events_page_agrees_with_the_wire_types() {
    let document = document(env!("CARGO_PKG_VERSION"));
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut out = EVENTS.to_owned();
    out.push_str("## Lines of a stream of texts\n\n`POST /v1/classify`, `/v1/tokens` and `/v1/embed` with NDJSON. Lines without `type`.\n\n");
    for name in ["ItemLine", "Done"] {
        writeln!(out, "### {name}\n\n{}\n", text(&schemas[name], "description")).unwrap();
        let mut table = String::new();
        fields(&mut table, &schemas[name]);
        out.push_str(&table.replace("](#", "](http.md#"));
    }
    out.push_str("## Events of `/process-stream`\n\nThe member `status` names the event.\n\n");
    variants(&mut out, schemas, "ProcessEvent", "status");
    out.push_str(
        "## Events of a transcript session\n\nThe member `type` names the event, in `POST /v1/transcript`, `POST /sessions/{id}/chunks` \
         and the channel of a stored session.\n\n",
    );
    variants(&mut out, schemas, "EventLine", "type");
    out.push_str(
        "## Events of channels\n\nThe data of each event, by example. Over a WebSocket and as NDJSON, an event is the object \
         `{\"type\", \"id\", \"channel\", \"data\"}`.\n\n",
    );
    channel_events(&mut out);
    out.push_str(
        "## Events of executions\n\nThe nine events of the channel of an execution, by example; each has all six members. \
         `metadata.seq` numbers them in the channel.\n\n",
    );
    execution_events(&mut out);
    out.truncate(out.trim_end().len());
    out.push('\n');
    expect_file!["../../../docs/reference/events.md"].assert_eq(&out);
}

const DEFINITIONS: &str = "\
# Pipeline definitions

<!-- Generated from the wire types: UPDATE_EXPECT=1 cargo test -p weir-codec --test reference -->

The file `NAME.json` of the folder `pipelines.dir`, see [Run pipelines](../guides/pipelines.md). An unknown member is an error, and every
error has its path. This example, `demo/pipelines/order.json` of the repository, uses most members:

<!-- from: demo/pipelines/order.json -->

```json
ORDER```

";

/// The names of an enumeration as code spans.
fn names<T: Copy>(all: &[T], name: fn(T) -> &'static str) -> String {
    all.iter().map(|it| format!("`{}`", name(*it))).collect::<Vec<_>>().join(", ")
}

fn table(out: &mut String, title: &str, rows: &[(&str, String)]) {
    writeln!(out, "## {title}\n\n| member | |\n|---|---|").unwrap();
    for (member, about) in rows {
        writeln!(out, "| `{member}` | {about} |").unwrap();
    }
    out.push('\n');
}

#[test]
fn definitions_page_agrees_with_the_wire_types() {
    let range = |(min, max): (u64, u64), default: u64| format!("{min} to {max}, default {default}");
    let mut out = DEFINITIONS.replace("ORDER", include_str!("../../../demo/pipelines/order.json"));
    let streaming = Streaming::default();
    let buffer = range(bounds::BUFFER_SIZE, streaming.buffer_size as u64);
    let flush = range(bounds::FLUSH_INTERVAL_MS, streaming.flush_interval_ms);
    table(
        &mut out,
        "Pipeline",
        &[
            ("name", format!("The name of the file: 1 to {ID_BYTES_MAX} ASCII letters, digits, `_`, `-` and `.`.")),
            ("steps", format!("1 to {STEPS_MAX} steps. The definition has at most {DEFINITION_BYTES_MAX} bytes.")),
            (
                "parallel_max",
                format!("Steps that run at once: {}.", range(bounds::PARALLEL, PARALLEL_MAX_DEFAULT as u64)),
            ),
            (
                "streaming.enabled",
                format!(
                    "Whether all events are published, or only the first and the last; default {}.",
                    streaming.enabled
                ),
            ),
            (
                "streaming.emit_progress",
                format!("Whether `step_progress` is published; default {}.", streaming.emit_progress),
            ),
            ("streaming.buffer_size", format!("Events that may wait to be stored: {buffer}.")),
            (
                "streaming.flush_interval_ms",
                format!("How long progress and outputs may wait to be stored together: {flush}."),
            ),
        ],
    );
    let retry = RetryConfig::default();
    let timeout = range(bounds::TIMEOUT_MS, TIMEOUT_MS_DEFAULT);
    table(
        &mut out,
        "Step",
        &[
            ("id", format!("Unique in the pipeline: 1 to {ID_BYTES_MAX} ASCII letters, digits, `_`, `-` and `.`.")),
            ("kind", format!("One of {}.", names(KindName::ALL, KindName::name))),
            ("after", "The steps that must have ended before. Absent: the step before it in the list; `[]`: none.".to_owned()),
            (
                "input",
                "An [expression](#expressions) over `{\"input\": …, \"steps\": {ID: OUTPUT}}`. Absent: the output of the step that it comes \
                 after, an object of the outputs of several by id, or the input of the pipeline."
                    .to_owned(),
            ),
            ("timeout_ms", format!("The time of one attempt: {timeout}.")),
            ("retry.max_attempts", format!("{}.", range(bounds::MAX_ATTEMPTS, u64::from(retry.max_attempts)))),
            ("retry.base_backoff_ms, retry.backoff_ms_max", format!("The shortest and longest delay; default {} and {}.", retry.base_backoff_ms, retry.backoff_ms_max)),
            ("retry.policy", format!("{}; default `{}`.", names(RetryPolicy::ALL, RetryPolicy::name), retry.policy.name())),
            (
                "on_error",
                format!(
                    "{}; default `fail`: the execution ends at once. `continue`: the output is null. `compensate`: running steps end, and \
                     completed ones are undone.",
                    names(OnError::ALL, OnError::name)
                ),
            ),
            ("compensation", format!("Up to {COMPENSATIONS_MAX} steps that undo it, in order; they have `id`, `kind`, `input`, `timeout_ms` and `retry`.")),
        ],
    );
    out.push_str("## Kinds\n\n| kind | does | members |\n|---|---|---|\n");
    for kind in KindName::ALL {
        let (does, members) = match kind {
            KindName::Chunk => (
                "cuts a text into slices",
                format!("`chunk_size`, in code points: {}", range(bounds::CHUNK_SIZE, CHUNK_SIZE_DEFAULT as u64)),
            ),
            KindName::Sentiment => {
                ("labels each chunk of its input, or a text", "`model`, default that of `steps.sentiment`".to_owned())
            }
            KindName::Entities => ("finds named entities", "`model`, default that of `steps.entities`".to_owned()),
            KindName::Summary => {
                ("chooses the most central sentences", "`model`, default that of `steps.summary`; `mode`: `extractive`, or `abstractive` to let a language model rewrite them".to_owned())
            }
            KindName::Embed => ("turns each text into a vector", "`model`; `normalize`, default true".to_owned()),
            KindName::Annotate => ("finds keywords, risks, actions and the intent", String::new()),
            KindName::Generate => (
                "generates text, each piece a part of its output",
                "`template`, the message of the user, with expressions over the input in double braces; `system`; `model`, default the first that is served; `max_tokens`; `temperature`; `seed`"
                    .to_owned(),
            ),
            KindName::Map => ("computes a value", format!("`expression`, at most {EXPRESSION_BYTES_MAX} bytes")),
            KindName::Http => (
                "calls a service of `pipelines.http_allow`",
                format!(
                    "`url`; `method`, one of {}, default `POST`; `headers`; `body`, an expression, default the input",
                    names(Method::ALL, Method::name)
                ),
            ),
            KindName::Component => (
                "calls a [component of your own](../guides/steps.md)",
                format!(
                    "`path`, a name of `pipelines.steps`; `config`, any JSON; `memory_bytes_max`: {}; `deadline_ms`: {}",
                    range(bounds::MEMORY_BYTES, MEMORY_BYTES_DEFAULT),
                    range(bounds::TIMEOUT_MS, DEADLINE_MS_DEFAULT)
                ),
            ),
        };
        writeln!(out, "| `{}` | {does} | {members} |", kind.name()).unwrap();
    }
    out.push_str(EXPRESSIONS);
    expect_file!["../../../docs/reference/definitions.md"].assert_eq(&out);
}

const EXPRESSIONS: &str = "
## Expressions

A subset of [JMESPath](https://jmespath.org/specification.html): identifiers (`a`, `\"quoted-a\"`), `a.b`, `a[0]`, projections (`a[*].b`), filters, flattening
(`a[]`), pipes, lists (`[a, b]`), objects (`{x: a, y: b}`), literals, raw strings (`'text'`), `@`, comparisons, `&&`, `||`, `!`, parentheses and functions. From its
enhancement proposals: `+ - * / %` and the functions `lower`, `upper`, `trim`, `split` and `replace`. Its compliance suite is run by a test, which lists what is left
out: slices, `*` on objects (use `values(@)`), and the functions `sort_by`, `max_by` and `min_by`.

There are no loops but those over arrays, and no recursion. Each evaluation has a budget of steps and bytes.
";
