//! The targets. Each returns whether it accepted the input, and panics when a property is violated.

use std::sync::LazyLock;

use weir_auth::{
    api_key::ApiKeys,
    credential::Credentials,
    jwt::{TokenRules, Verifier},
    key::{Algorithm, KeySet},
    key_file,
    scope::Scopes,
    ticket::TicketKeys,
};
use weir_codec::{
    channels::{
        grip::Hold,
        hold::Terms,
        publish::{Notification, Progress, TicketBody, WorkflowBody},
        route::{Channel, ChannelRoute},
        socket::SocketMessage,
        subscribe,
    },
    http::{accept, lines::Lines, route::Route, sse::SseEvent},
    inference::{hub::HubRequest, query::Query, request, task::Task, tei::PredictRequest},
    json::tree::Node,
    pipelines::{checkpoint, definition, definition_file, process_request::ProcessRequest, route::PipelineRoute, text},
    transcripts::{
        captions::{self, Captions},
        config::SessionRequest,
        input,
    },
};
use weir_expression::{Bounds, Expression};

/// A fuzz target.
#[derive(Debug)]
pub struct Target {
    /// The name, also of its file in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// The function, which returns whether it accepted its input.
    pub function: fn(&[u8]) -> bool,
    /// Seed inputs.
    pub inputs: &'static [&'static [u8]],
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "json_requests",
        function: json_requests,
        inputs: &[
            br#"{"text":"a good day","chunk_size":200,"include_entities":true}"#,
            br#"{"inputs":["a",{"id":"1","text":"b"}],"model":"sentiment","top_k":2}"#,
            br#"{"inputs":"a","parameters":{"top_k":null,"function_to_apply":"sigmoid"}}"#,
            br#"{"step":"s","progress":0.5,"message":"m","user_id":"ann","data":{"a":[1,2.5,null]}}"#,
            br#"{"type":"subscribe","channel":"workflow:42","last_event_id":"1-1"}"#,
            br#"{"annotate":["keywords","intent"],"summary":{"every_finals":5},"idle":{"expire_ms":1000}}"#,
            br#"{"path":"/stream/user/ann","scopes":["read:workflow:*"]}"#,
        ],
    },
    Target {
        name: "ndjson",
        function: ndjson,
        inputs: &[
            b"\x03{\"text\":\"a\"}\n\r\n{\"id\":1,\"text\":\"b\"}\r\n\"c\"\n",
            b"\x07{\"start\":0,\"end\":1.5,\"text\":\"Can you send\",\"speaker_id\":\"ann\",\"seq\":1}\n{\"op\":\"end\"}\n",
        ],
    },
    Target {
        name: "captions",
        function: captions,
        inputs: &[
            b"WEBVTT\n\nNOTE a note\n\n1\n00:00:01.000 --> 00:00:02.500 line:0\n<v Ann>Hello &amp; welcome\n\n00:03.000 --> 00:04.000\nbye\n",
            b"1\r\n00:00:01,000 --> 00:00:02,000\r\nHello\r\n\r\n2\r\n00:00:03,000 --> 00:00:04,000\r\nthere\r\n",
        ],
    },
    Target { name: "sse", function: sse, inputs: &[b"7\nprogress\n{\"a\":1}\nb", b"1-1\n\ndata: x\r\rid: 2\r\n\r\n"] },
    Target {
        name: "channels",
        function: channels,
        inputs: &[
            b"workflow:42",
            b"/stream/workflow/42?last_event_id=1-1&ticket=x",
            b"/ws/user/ann@example.org",
            b"/pipelines/review",
            b"/v1/classify?top_k=2&model=a",
            b"text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
        ],
    },
    Target {
        name: "definitions",
        function: definitions,
        inputs: &[
            br#"{"name":"p","steps":[{"id":"a","kind":"map","expression":"@"},{"id":"b","kind":"sentiment","after":["a"],"on_error":"continue","retry":{"max_attempts":2}}]}"#,
            br#"{"name":"p","parallel_max":2,"streaming":{"flush_interval_ms":0},"steps":[{"id":"h","kind":"http","url":"https://example.org/x","method":"POST","headers":{"a":"b"},"body":"input","compensation":[{"id":"u","kind":"map","expression":"`1`"}]},{"id":"c","kind":"component","path":"own","config":{"k":[1]}}]}"#,
        ],
    },
    Target {
        name: "expressions",
        function: expressions,
        inputs: &[
            b"people[?age > `20`].{n: name, t: tags[]} | [0]\n{\"people\":[{\"name\":\"Ann\",\"age\":30,\"tags\":[\"x\"]}]}",
            b"sort(map(&(@ * `2`), a)) == `[2, 4.0]` || join(', ', split(b, ' '))\n{\"a\":[2,1],\"b\":\"c d\"}",
            b"merge(@, {x: sum(a), y: to_string(a), z: !b})\n{\"a\":[1,2.5,1e300],\"b\":null}",
        ],
    },
    Target {
        name: "keys",
        function: keys,
        inputs: &[
            br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"1"},{"kty":"RSA"}]}"#,
            br#"[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]"#,
            include_bytes!("../../../components/auth/tests/keys/p256.pub.pem"),
            include_bytes!("../../../components/auth/tests/keys/ed25519.pub.pem"),
            b"a shared secret that is long enough for HS256\nanother secret that is long enough\n",
            b"ann ann sha256:0c931af1becde644feaacb8c72cda351e1e5197468018114afcfb614aa558b37 read:workflow:* admin\n",
        ],
    },
    Target {
        name: "tokens",
        function: tokens,
        inputs: &[
            b"authorization: Bearer eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
            b"cookie: a=b; __Host-weir=eyJhbGciOiJIUzI1NiJ9.e30.AAAA; c=d\n?ticket=wt1.AAAA.AAAA",
        ],
    },
    Target {
        name: "grip",
        function: grip,
        inputs: &[
            b"grip-hold: stream\ngrip-channel: a; prev-id=1-1, b\ngrip-keep-alive: \\n\\n; format=cstring; timeout=20\ngrip-link: </stream/workflow/1>; rel=next",
            b"grip-hold: response\ngrip-channel: a\ngrip-timeout: 5",
            b"after=1-1; framing=sse; heartbeat-ms=15000; ends-s=1800000000; user=ann",
        ],
    },
    Target {
        name: "gguf",
        function: gguf,
        inputs: &[
            b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0k\x09\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0hi\
              \x01\0\0\0\0\0\0\0t\x01\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"GGUF\x02\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a\x04\0\0\0\x07\0\0\0\x01\0\0\0\0\0\0\0b\x07\0\0\0\x01",
        ],
    },
    Target {
        name: "checkpoints",
        function: checkpoints,
        inputs: &[br#"{"version":1,"config":"{}","state":{}}"#, b"{\"version\":1}\n{}"],
    },
    #[cfg(feature = "nn")]
    Target {
        name: "tensors",
        function: tensors,
        inputs: &[b"\x01\x02\x02\x00\x00\x00\x01\x00\x00\x00\x00\x00\x80\x3f\x00\x00\x80\x3f"],
    },
    #[cfg(feature = "nn")]
    Target {
        name: "safetensors",
        function: safetensors,
        inputs: &[
            b"\x36\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}1234",
            b"\x58\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[0,4]}}1234",
        ],
    },
];

const TASKS: [Task; 3] = [Task::Classify, Task::Tokens, Task::Embed];

/// Bodies of every route that takes JSON.
pub fn json_requests(data: &[u8]) -> bool {
    let mut accepted = ProcessRequest::from_json(data).is_ok();
    for task in TASKS {
        accepted |= request::TaskRequest::from_json(data, task, Query::default()).is_ok();
        accepted |= HubRequest::from_json(data, task).is_ok();
    }
    accepted |= PredictRequest::from_json(data).is_ok();
    accepted |= WorkflowBody::from_json(data).is_ok() | Progress::analysis_from_json(data).is_ok();
    accepted |= Notification::from_json(data).is_ok() | TicketBody::from_json(data).is_ok();
    accepted |= SocketMessage::from_json(data).is_ok();
    if let Ok(request) = SessionRequest::from_json(data) {
        accepted = true;
        let reparsed = SessionRequest::from_json(&request.to_json()).expect("a serialized configuration parses");
        assert_eq!(reparsed.to_json(), request.to_json());
    }
    if let Ok(json) = text::read(data) {
        assert!(!json.as_str().contains('\n'), "JSON has one line");
        let reparsed = text::read(json.as_str().as_bytes()).expect("serialized JSON parses");
        assert_eq!(reparsed.as_str(), json.as_str());
    }
    let _ = Node::read(data, 1000);
    accepted
}

/// NDJSON, split into pieces. The first byte is the length of the pieces.
pub fn ndjson(data: &[u8]) -> bool {
    const LINE_BYTES_MAX: usize = 256;
    let Some((&piece, data)) = data.split_first() else { return false };
    type OwnedLines = Vec<(u64, Option<Vec<u8>>)>;
    let split = |piece: usize| -> OwnedLines {
        let (mut splitter, mut lines) = (Lines::new(LINE_BYTES_MAX), Vec::new());
        for mut bytes in data.chunks(piece) {
            while let Some(line) = splitter.next_line(&mut bytes) {
                lines.push((line.number, line.content.map(<[u8]>::to_vec)));
            }
        }
        lines.extend(splitter.last_line().map(|line| (line.number, line.content.map(<[u8]>::to_vec))));
        lines
    };
    let lines = split(usize::from(piece).max(1));
    assert_eq!(lines, split(data.len().max(1)), "lines depend on how the bytes are split");
    let mut accepted = false;
    for (number, content) in &lines {
        assert!(content.as_ref().is_none_or(|content| content.len() <= LINE_BYTES_MAX));
        let line = || weir_codec::http::lines::Line { number: *number, content: content.as_deref() };
        for task in TASKS {
            accepted |= request::LineRules::stream(task).read(&line()).is_ok();
            let _ = request::LineRules::file(task, LINE_BYTES_MAX).read(&line());
        }
        accepted |= input::read_line(&line()).is_ok();
    }
    accepted
}

/// Captions in every encoding and in both formats.
pub fn captions(data: &[u8]) -> bool {
    let (first_format, decoded) = (captions::sniff(data, true), captions::decode(data));
    let _ = (first_format, captions::sniff(data, false));
    let Ok(text) = decoded else { return false };
    let mut accepted = false;
    for format in [Captions::of_text(&text), Captions::WebVtt, Captions::Srt] {
        let cues = captions::read(&text, format);
        assert!(cues.len() <= text.len() + 1, "more cues than bytes");
        accepted |= cues.iter().any(Result::is_ok);
    }
    accepted
}

/// A server-sent event: its id, its name, and its data, separated by newlines.
pub fn sse(data: &[u8]) -> bool {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let (Some(id), Some(name), Some(data)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let (Ok(id), Ok(name), Ok(data)) = (std::str::from_utf8(id), std::str::from_utf8(name), std::str::from_utf8(data))
    else {
        return false;
    };
    let Ok(event) = SseEvent::new(data.as_bytes()).with_id(id).and_then(|event| event.with_name(name)) else {
        return false;
    };
    let mut out = Vec::new();
    event.push(&mut out);
    // A reader has to parse one event with this data (HTML, section 9.2.6).
    let text = std::str::from_utf8(&out).expect("an event is UTF-8");
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (mut events, mut data_lines) = (0, Vec::new());
    for line in text.split('\n') {
        match line.split_once(':') {
            _ if line.is_empty() => {
                events += usize::from(!data_lines.is_empty());
                if events == 1 && !data_lines.is_empty() {
                    assert_eq!(data_lines.join("\n"), data.replace("\r\n", "\n").replace('\r', "\n"));
                    data_lines.clear();
                }
            }
            Some(("data", value)) => data_lines.push(value.strip_prefix(' ').unwrap_or(value)),
            Some(("id", value)) => assert_eq!(value.strip_prefix(' ').unwrap_or(value), id),
            Some(("event", value)) => assert_eq!(value.strip_prefix(' ').unwrap_or(value), name),
            other => panic!("a line is not a field: {other:?}"),
        }
    }
    assert_eq!(events, 1, "{text:?}");
    true
}

/// Names of channels, paths, queries and content negotiation.
pub fn channels(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let mut accepted = false;
    if let Some(channel) = Channel::from_name(text) {
        accepted = true;
        assert_eq!(channel.to_string(), text);
        assert_eq!(Channel::from_name(&channel.to_string()), Some(channel));
    }
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    if let Ok(Some(route)) = ChannelRoute::find(path) {
        accepted = true;
        if let Some(channel) = route.channel() {
            assert_eq!(Channel::from_name(&channel.to_string()).as_ref(), Some(channel));
        }
    }
    accepted |= PipelineRoute::find(path).is_some() | Route::find(path).is_some();
    for task in TASKS {
        accepted |= !query.is_empty() && Query::read(query, task).is_ok();
    }
    let _ = subscribe::cursor(None, query);
    assert!(subscribe::cursor(Some(data), query).is_ok(), "an id of another server is an error");
    let _ = (SessionRequest::from_query(query), SessionRequest::annotate_from_query(query));
    let _ = (accept::framing(Some(text)), accept::json(Some(text)), accept::response_mode(Some(text)));
    accepted
}

/// Definitions of pipelines.
pub fn definitions(data: &[u8]) -> bool {
    let _ = definition_file::read(data, "p");
    let Ok(parsed) = definition::read(data) else { return false };
    let json = definition::to_json(&parsed);
    let reparsed = definition::read(json.as_bytes()).expect("a serialized definition parses");
    assert_eq!(definition::to_json(&reparsed), json);
    true
}

/// An expression on the first line, and its input on the others.
pub fn expressions(data: &[u8]) -> bool {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (expression, input) = data.split_at(end);
    let Ok(Ok(expression)) = std::str::from_utf8(expression).map(Expression::parse) else { return false };
    let Ok(input) = text::read(input) else { return false };
    let bounds = Bounds { steps_max: 20_000, memory_bytes_max: 1 << 18, output_bytes_max: 1 << 14 };
    let Ok(result) = expression.evaluate(&input, bounds) else { return false };
    assert!(result.bytes() <= bounds.output_bytes_max);
    let reparsed = text::read(result.as_str().as_bytes()).expect("a result is JSON");
    serde_json::from_str::<serde_json::Value>(reparsed.as_str()).expect("a result is JSON");
    true
}

/// Key files.
pub fn keys(data: &[u8]) -> bool {
    let mut accepted = false;
    if let Ok(file) = key_file::read_keys(data) {
        accepted = true;
        assert!(!file.keys.is_empty());
        let is_declared = String::from_utf8_lossy(data).contains("oct");
        let has_secret = file.keys.iter().any(|key| key.algorithm() == Algorithm::Hs256);
        // JSON can spell `oct` with escapes.
        assert!(!has_secret || is_declared || data.contains(&b'\\'), "a secret without the key type `oct`");
        let _ = KeySet::new(file.keys);
    }
    accepted |= key_file::read_secrets(data).is_ok();
    accepted |= ApiKeys::from_file(data).is_ok_and(|keys| !keys.is_empty());
    accepted |= TicketKeys::from_file(data, 30).is_ok();
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Scopes::read(text.split_whitespace());
    }
    accepted
}

/// Credentials in headers, one in each line, and in a query after `?`; their tokens are verified with keys that signed none of them.
pub fn tokens(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let (headers, query) = text.split_once('?').unwrap_or((text, ""));
    let headers = headers.lines().filter_map(|line| line.split_once(": "));
    let headers: Vec<(&str, &[u8])> = headers.map(|(name, value)| (name, value.as_bytes())).collect();
    let credentials = Credentials::find(headers.iter().copied(), query);
    static VERIFIER: LazyLock<Verifier> = LazyLock::new(verifier);
    for word in text.split([' ', '\n', ';', '=', '&', '?']) {
        assert!(VERIFIER.verify(word, 1_800_000_000).is_err(), "a token without a valid signature is accepted");
    }
    credentials.is_ok_and(|credentials| !credentials.is_empty())
}

/// A verifier of public keys whose private keys signed no input.
fn verifier() -> Verifier {
    let keys = br#"[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]"#;
    let keys = key_file::read_keys(keys).expect("two public keys").keys;
    let rules = TokenRules { issuers: vec!["joe".to_owned()], audiences: vec!["weir".to_owned()], leeway_s: 30 };
    Verifier::new(KeySet::new(keys).expect("a set"), rules).expect("rules")
}

/// GRIP headers and hold terms.
pub fn grip(data: &[u8]) -> bool {
    let mut accepted = false;
    let lines = data.split(|byte| *byte == b'\n');
    let headers: Vec<(&str, &[u8])> = lines
        .filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b':')?;
            Some((std::str::from_utf8(&line[..at]).ok()?, line[at + 1..].trim_ascii()))
        })
        .collect();
    if let Ok(Some(hold)) = Hold::from_headers(headers.iter().copied()) {
        accepted = true;
        if let Ok(written) = hold.to_headers() {
            let written: Vec<(&str, &[u8])> = written.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
            let reparsed = Hold::from_headers(written.iter().copied());
            assert_eq!(reparsed, Ok(Some(hold)), "a serialized hold parses as another");
        }
    }
    if let Ok(terms) = Terms::from_header(data) {
        accepted = true;
        assert_eq!(Terms::from_header(terms.to_header().as_bytes()), Ok(terms));
    }
    accepted
}

/// Checkpoints of sessions and executions.
pub fn checkpoints(data: &[u8]) -> bool {
    use weir_codec::transcripts::checkpoint as session;
    let _ = session::decode(data, session::own_rules, 0);
    if let Ok((definition, checkpoint_state)) = checkpoint::decode(data) {
        let bytes = checkpoint::encode(&checkpoint_state, &definition);
        assert!(checkpoint::decode(&bytes).is_ok(), "a serialized checkpoint parses");
    }
    // No short input is a complete checkpoint, so that every input counts as accepted.
    true
}

/// The header of a GGUF file: each tensor is within the file, and no two overlap.
pub fn gguf(data: &[u8]) -> bool {
    use weir_lm::gguf::Header;
    let Ok(header) = Header::parse(data, data.len() as u64) else { return false };
    let ranges = header.tensors.values().map(|entry| (entry.offset, entry.offset + entry.bytes));
    let mut ranges: Vec<(u64, u64)> = ranges.collect();
    ranges.sort_unstable();
    assert!(ranges.last().is_none_or(|range| range.1 <= data.len() as u64));
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    true
}

/// The header of a safetensors file: each tensor is within the file, and no two overlap.
#[cfg(feature = "nn")]
pub fn safetensors(data: &[u8]) -> bool {
    use weir_nn::safetensors::Header;
    let Ok(header) = Header::parse(data) else { return false };
    let mut ranges = Vec::new();
    for entry in header.tensors.values() {
        let elements = entry.shape.iter().try_fold(1_usize, |n, size| n.checked_mul(*size));
        let bytes = data.get(entry.range.clone()).map(<[u8]>::len);
        assert_eq!(elements.map(|n| n * entry.dtype.size_bytes()), bytes);
        ranges.push((entry.range.start, entry.range.end));
    }
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0));
    true
}

/// Tensors of a guest: the type, the rank, the dimensions, and the data.
#[cfg(feature = "nn")]
pub fn tensors(data: &[u8]) -> bool {
    use weir_nn::{Tensor, TensorType};
    const BYTES_MAX: usize = 1 << 20;
    let [ty, rank, rest @ ..] = data else { return false };
    let ty = TensorType::ALL[usize::from(*ty) % TensorType::ALL.len()];
    let rank = usize::from(*rank).min(rest.len() / 4);
    let (dimensions, data) = rest.split_at(rank * 4);
    let dimensions: Vec<u32> =
        dimensions.chunks_exact(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect();
    let tensor = Tensor { dimensions, ty, data: data.to_vec() };
    let checked = tensor.check(&"the tensor", BYTES_MAX);
    if checked.is_ok() {
        let elements = tensor.dimensions.iter().try_fold(1_usize, |n, d| n.checked_mul(*d as usize));
        assert_eq!(elements.map(|n| n * ty.size_bytes()), Some(data.len()));
        assert!(data.len() <= BYTES_MAX);
    }
    let _ = tensor.to_f32();
    checked.is_ok()
}
