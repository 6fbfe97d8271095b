//! Records that are chunks of transcripts.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weir_tests::{Server, ndjson};

use super::{path, stub_stream};

const PARAMETERS: &str = "annotate=keywords,intent,sentiment&summary_every=2&summary_at_end=true";

fn chunks() -> String {
    let texts = ["I want to cancel", "the good contract.", "What is the price?", "I will send the bad news."];
    let line = |(number, text): (usize, &&str)| {
        let start = 2.0 * number as f64;
        format!(
            "{}\n",
            json!({"start": start, "end": start + 1.5, "text": text, "speaker_id": (number / 2).to_string()})
        )
    };
    texts.iter().enumerate().map(line).collect()
}

/// The lines of a file are the same events as those of the route.
#[tokio::test]
async fn chunks_of_a_file_have_the_events_of_the_route() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let request = reqwest::Client::new().post(server.url(&format!("/v1/transcript?{PARAMETERS}"))).body(chunks());
    let response = request.header("content-type", "application/x-ndjson").send().await?.error_for_status()?;
    let expected = ndjson(&response.text().await?)?;
    let kinds: Vec<&Value> = expected.iter().map(|event| &event["type"]).collect();
    ensure!(kinds.contains(&&json!("final_segment")) && kinds.contains(&&json!("summary_due")), "{kinds:?}");

    let dir = tempfile::tempdir()?;
    let file = |name: &str| path(dir.path(), name);
    std::fs::write(file("in.ndjson"), format!("{}{{\"start\":0}}\n", chunks()))?;
    let (input, output, errors) = (file("in.ndjson"), file("out.ndjson"), file("errors.ndjson"));
    let arguments = ["file", &input, "--task", "transcript", "--transcript", PARAMETERS, "--quiet"];
    let mut command = stub_stream(&arguments)?;
    let outputs = ["--output-file", &output, "--errors-file", &errors, "--checkpoint", &file("checkpoint")];
    let status = command.args(outputs).status()?;
    ensure!(status.code() == Some(1), "{status}");
    assert_eq!(ndjson(&std::fs::read_to_string(&output)?)?, expected);
    let errors = ndjson(&std::fs::read_to_string(&errors)?)?;
    ensure!(errors.len() == 1 && errors[0]["error"]["code"] == "missing_field", "{errors:?}");
    // The second run reads no line again and changes no output.
    let status = stub_stream(&arguments)?.args(outputs).status()?;
    ensure!(status.success(), "{status}");
    assert_eq!(ndjson(&std::fs::read_to_string(&output)?)?, expected);
    Ok(())
}

#[test]
fn captions_are_a_transcript() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let input = path(dir.path(), "call.srt");
    std::fs::write(
        &input,
        "1\n00:00:00,000 --> 00:00:01,000\nI want\n\n2\n00:00:01,000 --> 00:00:02,000\nto cancel.\n",
    )?;
    let output = stub_stream(&["file", &input, "--task", "transcript", "--quiet"])?.output()?;
    ensure!(output.status.success(), "{output:?}");
    let events = ndjson(&String::from_utf8(output.stdout)?)?;
    let last = &events[events.len() - 1];
    assert_eq!((&last["type"], &last["segment"]["text"]), (&json!("final_segment"), &json!("I want to cancel.")));
    ensure!(last["semantic"]["risk_tags"] == json!(["churn_risk"]), "{last}");

    let refused = stub_stream(&["file", &input, "--task", "transcript", "--transcript", "gap=1"])?.output()?;
    let message = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(2) && message.contains("transcript: "), "{message}");
    Ok(())
}

/// The record has more results than the bound of those of several records that wait for the sink.
#[test]
fn record_with_many_items_has_all_its_results() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let input = path(dir.path(), "in.json");
    let items: Vec<Value> = (0..1500).map(|id| json!({"text": "good", "id": id})).collect();
    std::fs::write(&input, Value::from(items).to_string())?;
    let output = stub_stream(&["file", &input, "--quiet"])?.output()?;
    ensure!(output.status.success(), "{output:?}");
    let ids: Vec<Value> =
        ndjson(&String::from_utf8(output.stdout)?)?.iter().map(|result| result["id"].clone()).collect();
    ensure!(ids.len() == 1500 && ids.iter().enumerate().all(|(at, id)| *id == at), "{} results", ids.len());
    Ok(())
}
