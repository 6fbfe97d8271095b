//! Gemini's `streamGenerateContent` as an upstream.

use serde_json::{Map, Value, json};
use weir_core::failure::Failure;

use super::{
    UpstreamEvent, UpstreamRequest,
    openai::{parse_json, tokens},
};
use crate::{
    generation::{
        event::{Finish, Token, ToolDelta},
        request::{Format, GenerateRequest, Prompt},
    },
    http::sse_reader::Event,
    json::to_vec,
};

pub(super) fn request(model: &str, request: &GenerateRequest) -> Result<UpstreamRequest, String> {
    let Prompt::Chat { messages, tools, tool_choice } = &request.prompt else {
        return Err("this kind of upstream supports only chats".to_owned());
    };
    if request.logprobs.is_some() {
        return Err("this kind of upstream does not support log probabilities".to_owned());
    }
    let mut body = Map::new();
    let (mut system, mut contents): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for message in parse_json(messages)?.as_array().into_iter().flatten() {
        let text = message["content"].as_str().unwrap_or_default();
        match message["role"].as_str() {
            Some("system") => system.push(json!({ "text": text })),
            Some("tool") => {
                let name = message["name"].as_str().or(message["tool_call_id"].as_str()).unwrap_or_default();
                let result =
                    parse_json(text).ok().filter(Value::is_object).unwrap_or_else(|| json!({ "result": text }));
                let part = json!({ "functionResponse": { "name": name, "response": result } });
                contents.push(json!({ "role": "user", "parts": [part] }));
            }
            Some("assistant") => {
                let mut parts = Vec::new();
                if !text.is_empty() {
                    parts.push(json!({ "text": text }));
                }
                for call in message["tool_calls"].as_array().into_iter().flatten() {
                    let function = &call["function"];
                    let args = parse_json(function["arguments"].as_str().unwrap_or("{}")).unwrap_or_else(|_| json!({}));
                    parts.push(json!({ "functionCall": { "name": function["name"], "args": args } }));
                }
                contents.push(json!({ "role": "model", "parts": parts }));
            }
            _ => contents.push(json!({ "role": "user", "parts": [{ "text": text }] })),
        }
    }
    body.insert("contents".to_owned(), contents.into());
    if !system.is_empty() {
        body.insert("systemInstruction".to_owned(), json!({ "parts": system }));
    }
    if let Some(tools) = tools {
        let function = |tool: &Value| {
            let function = &tool["function"];
            let mut value = json!({ "name": function["name"] });
            if function["description"].is_string() {
                value["description"] = function["description"].clone();
            }
            if function["parameters"].is_object() {
                value["parametersJsonSchema"] = function["parameters"].clone();
            }
            value
        };
        let functions: Vec<Value> = parse_json(tools)?.as_array().into_iter().flatten().map(function).collect();
        body.insert("tools".to_owned(), json!([{ "functionDeclarations": functions }]));
    }
    if let Some(choice) = tool_choice {
        let choice = parse_json(choice)?;
        let config = match choice.as_str() {
            Some("required") => json!({ "mode": "ANY" }),
            Some("none") => json!({ "mode": "NONE" }),
            Some(_) => json!({ "mode": "AUTO" }),
            None => json!({ "mode": "ANY", "allowedFunctionNames": [choice["function"]["name"]] }),
        };
        body.insert("toolConfig".to_owned(), json!({ "functionCallingConfig": config }));
    }
    body.insert("generationConfig".to_owned(), generation_config(request)?);
    let path = format!("/v1beta/models/{model}:streamGenerateContent?alt=sse");
    Ok(UpstreamRequest { path, headers: Vec::new(), body: to_vec(&body) })
}

fn generation_config(request: &GenerateRequest) -> Result<Value, String> {
    let mut config = Map::new();
    let sampling = &request.sampling;
    let numbers = [
        ("temperature", sampling.temperature),
        ("topP", sampling.top_p),
        ("presencePenalty", sampling.presence_penalty),
        ("frequencyPenalty", sampling.frequency_penalty),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            config.insert(name.to_owned(), number.into());
        }
    }
    let counts = [
        ("topK", sampling.top_k),
        ("maxOutputTokens", request.tokens_max),
        ("candidateCount", (request.choices > 1).then_some(request.choices)),
    ];
    for (name, count) in counts {
        if let Some(count) = count {
            config.insert(name.to_owned(), count.into());
        }
    }
    if !request.stop.is_empty() {
        config.insert("stopSequences".to_owned(), request.stop.clone().into());
    }
    match &request.format {
        None => {}
        Some(Format::Json) => {
            config.insert("responseMimeType".to_owned(), "application/json".into());
        }
        Some(Format::JsonSchema(schema)) => {
            config.insert("responseMimeType".to_owned(), "application/json".into());
            config.insert("responseJsonSchema".to_owned(), parse_json(schema)?);
        }
        Some(Format::Grammar(_) | Format::Regex(_)) => {
            return Err("upstreams do not support grammars and regular expressions".to_owned());
        }
    }
    Ok(config.into())
}

#[derive(Debug, Default)]
pub(super) struct ChunkReader {
    /// Number of tool calls of each choice so far.
    calls: Vec<u32>,
}

impl ChunkReader {
    pub(super) fn push(&mut self, message: &Event, out: &mut Vec<UpstreamEvent>) {
        let Ok(chunk) = serde_json::from_str::<Value>(&message.data) else {
            let text = "the upstream sent a chunk that is not JSON".to_owned();
            return out.push(UpstreamEvent::Failed(Failure::Unavailable(text)));
        };
        if let Some(error) = chunk.get("error") {
            let text = error["message"].as_str().unwrap_or("the upstream has failed");
            return out.push(UpstreamEvent::Failed(Failure::Engine(text.to_owned())));
        }
        if let Some(usage) = chunk.get("usageMetadata") {
            let prompt_tokens = tokens(usage.get("promptTokenCount"));
            let cached_tokens = tokens(usage.get("cachedContentTokenCount"));
            out.push(UpstreamEvent::Begun { prompt_tokens, cached_tokens });
            out.push(UpstreamEvent::PromptTokens(prompt_tokens));
            out.push(UpstreamEvent::Tokens(tokens(usage.get("candidatesTokenCount"))));
        }
        for candidate in chunk["candidates"].as_array().into_iter().flatten() {
            let index = tokens(candidate.get("index"));
            let mut has_called = false;
            for part in candidate.pointer("/content/parts").and_then(Value::as_array).into_iter().flatten() {
                if part["thought"] == true {
                    continue;
                }
                if let Some(text) = part["text"].as_str().filter(|text| !text.is_empty()) {
                    out.push(UpstreamEvent::Piece(Token { index, text: text.to_owned(), tokens: Vec::new() }));
                }
                if let Some(call) = part.get("functionCall") {
                    has_called = true;
                    out.push(UpstreamEvent::Tool(self.call(index, call)));
                }
            }
            let called = self.calls.get(index as usize).is_some_and(|calls| *calls > 0) || has_called;
            let finish = match candidate["finishReason"].as_str() {
                None | Some("FINISH_REASON_UNSPECIFIED") => continue,
                Some("STOP") if called => Finish::ToolCalls,
                Some("STOP") => Finish::Stop,
                Some("MAX_TOKENS") => Finish::Length,
                Some(_) => Finish::Filtered,
            };
            out.push(UpstreamEvent::Done { index, finish, stop: None });
        }
    }

    fn call(&mut self, index: u32, call: &Value) -> ToolDelta {
        let at = (index as usize).min(usize::from(u8::MAX));
        if self.calls.len() <= at {
            self.calls.resize(at + 1, 0);
        }
        let number = self.calls[at];
        self.calls[at] += 1;
        let id = call["id"].as_str().map_or_else(|| format!("call_{index}_{number}"), str::to_owned);
        let name = call["name"].as_str().unwrap_or_default().to_owned();
        let arguments = call.get("args").cloned().unwrap_or_else(|| json!({})).to_string();
        ToolDelta { index, call: number, id: Some(id), name: Some(name), arguments }
    }
}
