//! An adapter with a format of its own: a record is `ID|TEXT`, and its result `ID|LABEL`. A record `trap` ends the instance,
//! and a record `spin` makes it compute without end.

mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        path: "../../../wit",
        world: "adapter-service",
        generate_all,
    });
}

use bindings::exports::weir::stream::adapter::{Destination, Guest, Header, ResultRecord, SourceRecord, StartFailure};
use bindings::weir::stream::infer;
use bindings::weir::stream::types::{ClassifyOptions, Item, Output, Overflow, Task, WhenFull};
use bindings::wit_stream;
use wit_bindgen::{StreamReader, StreamResult, StreamWriter};

struct BarAdapter;
bindings::export!(BarAdapter with_types_in bindings);

impl Guest for BarAdapter {
    async fn run(
        config: String,
        records: StreamReader<SourceRecord>,
    ) -> Result<StreamReader<ResultRecord>, StartFailure> {
        if !config.starts_with('{') {
            return Err(StartFailure::InvalidConfig("the configuration is not an object".to_owned()));
        }
        let (writer, results) = wit_stream::new();
        wit_bindgen::spawn(serve(records, writer));
        Ok(results)
    }
}

/// Processes records one after the other.
async fn serve(mut records: StreamReader<SourceRecord>, mut results: StreamWriter<ResultRecord>) {
    loop {
        let (status, read) = records.read(Vec::with_capacity(16)).await;
        for record in read {
            let result = process(record).await;
            if !results.write_all(vec![result]).await.is_empty() {
                return;
            }
        }
        if !matches!(status, StreamResult::Complete(_)) {
            return;
        }
    }
}

async fn process(record: SourceRecord) -> ResultRecord {
    let SourceRecord { payload, key, mut headers, origin, position } = record;
    assert!(payload != b"trap", "a record asks for a trap");
    if payload == b"spin" {
        loop {
            std::hint::spin_loop();
        }
    }
    let text = String::from_utf8_lossy(&payload).into_owned();
    let (payload, destination) = match text.split_once('|') {
        Some((id, text)) => (format!("{id}|{}", label(text).await).into_bytes(), Destination::Output),
        None => {
            let mut add = |name: &str, value: &str| {
                headers.push(Header { name: name.to_owned(), value: value.as_bytes().to_vec() });
            };
            add("weir-error-category", "client");
            add("weir-error-code", "no_bar");
            add("weir-error-reason", "the record has no `|`");
            (payload, Destination::Error)
        }
    };
    ResultRecord { payload, key, headers, destination, origin, completes: vec![position] }
}

/// The best label of a text.
async fn label(text: &str) -> String {
    let (mut writer, items) = wit_stream::new::<Item>();
    let mut outcomes = infer::run(items).await;
    let item = Item {
        id: 0,
        model: "sentiment".to_owned(),
        text: text.to_owned(),
        text_pair: None,
        overflow: Overflow::Truncate,
        deadline_ms: None,
        when_full: WhenFull::Wait,
        traceparent: None,
        task: Task::Classify(ClassifyOptions { top_k: Some(1), activation: None }),
    };
    writer.write_all(vec![item]).await;
    drop(writer);
    let (_, received) = outcomes.read(Vec::with_capacity(1)).await;
    match received.into_iter().next().map(|outcome| outcome.result) {
        Some(Ok(Output::Labels(labels))) => labels.into_iter().next().map(|best| best.label).unwrap_or_default(),
        other => format!("{other:?}"),
    }
}
