//! Pipelines end to end: events, responses, failures, cancellation, idempotency and ownership.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use weir_tests::auth::{ADMIN, ANN, request_as, start_with_auth};
use weir_tests::follow::{Event, Follower};
use weir_tests::pipelines::{
    Folder, check_contiguous, event_names, events, follow, run, start, start_execution, status, wait_until_ended,
};
use weir_tests::{Server, ndjson, until};

const TEXT: &str = "The night train to Vienna was wonderful. The staff in Salzburg were kind and the beds were soft. \
    Breakfast was terrible, and the coffee was cold. I would still travel with Nightjet again next year.";

async fn start_stub(folder: &Folder, more: &[&str]) -> Result<Server> {
    Server::start_stub(&[&folder.arguments()[..], more].concat()).await
}

#[tokio::test]
async fn pipeline_with_shipped_models_emits_every_event_type() -> Result<()> {
    let folder = Folder::new(&[
        (
            "review",
            json!([
                {"id": "chunk", "kind": "chunk", "chunk_size": 60},
                {"id": "mood", "kind": "sentiment", "after": ["chunk"]},
                {"id": "names", "kind": "entities", "after": []},
                {"id": "short", "kind": "summary", "after": ["chunk"]},
                {"id": "vectors", "kind": "embed", "after": ["chunk"]},
                {"id": "words", "kind": "annotate", "after": []},
                {"id": "broken", "kind": "map", "after": [], "expression": "`1` / `0`", "on_error": "continue"},
                {"id": "report", "kind": "map", "after": ["mood", "names", "short", "vectors", "words", "broken"],
                 "expression": "{mood: mood.overall_sentiment, names: names.entities[].text, short: short.summary, \
                               vectors: length(vectors.embeddings), words: length(words.outputs), broken: broken}"},
            ]),
        ),
        ("bad", json!([{"id": "broken", "kind": "map", "expression": "`1` / `0`"}])),
    ])?;
    let server = Server::start(&folder.arguments()).await?;
    let id = start_execution(&server, "review", &json!({"text": TEXT})).await?;
    let all = events(&server, &id).await?;
    check_contiguous(&all)?;
    for event in &all {
        let fields: BTreeSet<&str> = event.data.as_object().context("an object")?.keys().map(String::as_str).collect();
        assert_eq!(
            fields,
            BTreeSet::from(["event_type", "execution_id", "step_id", "timestamp", "data", "metadata"]),
            "{event:?}"
        );
        assert_eq!((&event.data["event_type"], &event.data["execution_id"]), (&json!(event.name), &json!(id)));
    }
    assert_eq!((all[0].name.as_str(), all[0].data["data"]["steps"].as_u64()), ("pipeline_start", Some(8)));
    let last = all.last().context("events")?;
    assert_eq!(last.name, "pipeline_complete");
    let output = &last.data["data"]["output"];
    assert_eq!(output["vectors"], 4, "{output}");
    assert_eq!((&output["broken"], &output["words"]), (&Value::Null, &json!(1)), "{output}");
    assert!(output["names"].to_string().contains("Vienna"), "{output}");
    // The output of a step equals the event of `/process-stream` for the same text.
    let body = json!({"text": TEXT, "chunk_size": 60, "include_entities": true});
    let stream = Client::new().post(server.url("/process-stream")).json(&body).send().await?.text().await?;
    for (step, status) in
        [("mood", "sentiment_complete"), ("names", "entities_complete"), ("short", "summarization_complete")]
    {
        let complete = all.iter().find(|event| event.name == "step_complete" && event.data["step_id"] == step);
        let mut output_of_step = complete.context("a step")?.data["data"]["output"].clone();
        output_of_step["status"] = json!(status);
        let stream_event = ndjson(&stream)?.into_iter().find(|event| event["status"] == status);
        assert_eq!(Some(output_of_step), stream_event, "{step}");
    }

    let failed = start_execution(&server, "bad", &json!(null)).await?;
    let failed_events = events(&server, &failed).await?;
    check_contiguous(&failed_events)?;
    assert_eq!(
        event_names(&failed_events),
        [
            "pipeline_start",
            "checkpoint_saved",
            "step_start broken",
            "step_error broken",
            "checkpoint_saved",
            "pipeline_error"
        ]
    );
    let names: BTreeSet<&str> = all.iter().chain(&failed_events).map(|event| event.name.as_str()).collect();
    let types = [
        "checkpoint_saved",
        "pipeline_complete",
        "pipeline_error",
        "pipeline_start",
        "step_complete",
        "step_error",
        "step_output",
        "step_progress",
        "step_start",
    ];
    assert_eq!(names, BTreeSet::from(types));

    // A subscriber that resumes after an event gets exactly the events after it.
    for at in [0, all.len() / 2, all.len() - 2] {
        let rest = follow(&server, &id, Some(&all[at].id)).await?.remaining_events().await?;
        assert_eq!(rest, all[at + 1..], "after {at}");
    }
    let path = server.url(&format!("/stream/pipeline/{id}"));
    let resumed_after_last = Client::new().get(path).header("last-event-id", &last.id).send().await?;
    assert_eq!(resumed_after_last.status(), 204);

    let status_at_end = status(&server, &id).await?;
    assert_eq!(
        (&status_at_end["state"], &status_at_end["output"], status_at_end["events"].as_u64()),
        (&json!("completed"), output, Some(all.len() as u64))
    );
    assert_eq!(status_at_end["steps"][6]["code"], "expression_failed", "{status_at_end}");
    let status_at_end = status(&server, &failed).await?;
    assert_eq!(
        (&status_at_end["state"], &status_at_end["failure"]["failed_step"]),
        (&json!("failed"), &json!("broken"))
    );
    let reliability: Value = reqwest::get(server.url("/reliability")).await?.json().await?;
    let total = &reliability["total"];
    assert_eq!(
        (&total["sr"], &total["executions_completed"], &total["executions_failed"]),
        (&json!(0.5), &json!(1), &json!(1))
    );
    until("in the metrics", || async { Ok(server.metric("weir_pipeline_executions_total").await? == 2.0) }).await?;
    assert_eq!(server.metric("weir_pipeline_seconds_count").await?, 1.0);
    assert!(server.metric("weir_pipeline_step_seconds_sum").await? > 0.0);
    assert!(total["tcl_ms"].as_f64().is_some_and(|ms| ms > 0.0) && total["wct_ms"].as_f64().is_some_and(|ms| ms > 0.0));
    Ok(())
}

#[tokio::test]
async fn failing_step_is_retried_then_the_pipeline_fails_or_continues() -> Result<()> {
    let retry = json!({"max_attempts": 3, "base_backoff_ms": 1, "policy": "fixed_delay"});
    let folder = Folder::new(&[
        (
            "fails",
            json!([{"id": "mood", "kind": "sentiment", "retry": retry}, {"id": "never", "kind": "map", "expression": "@"}]),
        ),
        (
            "continues",
            json!([
                {"id": "mood", "kind": "sentiment", "retry": retry, "on_error": "continue"},
                {"id": "then", "kind": "map", "input": "{mood: steps.mood, text: input.text}", "expression": "@"},
            ]),
        ),
    ])?;
    let server = start_stub(&folder, &["--set", "infer.circuit_breaker=off"]).await?;
    let input = json!({"text": "!down"});
    let failed = run(&server, "fails", &input).await?;
    assert_eq!(
        (&failed["state"], &failed["failure"]["code"]),
        (&json!("failed"), &json!("model_unavailable")),
        "{failed}"
    );
    let all = events(&server, failed["execution_id"].as_str().context("an id")?).await?;
    check_contiguous(&all)?;
    let errors: Vec<&Event> = all.iter().filter(|event| event.name == "step_error").collect();
    let retried: Vec<bool> = errors.iter().map(|event| event.data["data"]["retry_in_ms"].is_number()).collect();
    assert_eq!(retried, [true, true, false]);
    let attempts: Vec<&Value> = errors.iter().map(|event| &event.data["metadata"]["attempt"]).collect();
    assert_eq!(attempts, [1, 2, 3]);
    let continued = run(&server, "continues", &input).await?;
    assert_eq!(
        (&continued["state"], &continued["output"]),
        (&json!("completed"), &json!({"mood": null, "text": "!down"}))
    );
    Ok(())
}

#[tokio::test]
async fn completed_steps_are_compensated_in_reverse() -> Result<()> {
    let compensation = |id: &str, of: &str| json!([{"id": id, "kind": "map", "input": format!("steps.{of}"), "expression": "{undone: @}"}]);
    let folder = Folder::new(&[(
        "order",
        json!([
            {"id": "a", "kind": "map", "expression": "'A'", "compensation": compensation("undo_a", "a")},
            {"id": "b", "kind": "map", "expression": "'B'", "compensation": compensation("undo_b", "b")},
            {"id": "c", "kind": "map", "expression": "`1` / `0`", "on_error": "compensate"},
        ]),
    )])?;
    let server = start_stub(&folder, &[]).await?;
    let execution = run(&server, "order", &json!({})).await?;
    assert_eq!(
        (&execution["state"], &execution["failure"]["compensated"]),
        (&json!("failed"), &json!(2)),
        "{execution}"
    );
    let all = events(&server, execution["execution_id"].as_str().context("an id")?).await?;
    check_contiguous(&all)?;
    let complete: Vec<(&Value, &Value, &Value)> = all
        .iter()
        .filter(|event| event.name == "step_complete")
        .map(|event| (&event.data["step_id"], &event.data["data"]["output"], &event.data["metadata"]["compensates"]))
        .collect();
    assert_eq!(
        complete,
        [
            (&json!("a"), &json!("A"), &Value::Null),
            (&json!("b"), &json!("B"), &Value::Null),
            (&json!("undo_b"), &json!({"undone": "B"}), &json!("b")),
            (&json!("undo_a"), &json!({"undone": "A"}), &json!("a")),
        ]
    );
    assert_eq!(all.last().map(|event| event.name.as_str()), Some("pipeline_error"));
    let reliability: Value = reqwest::get(server.url("/reliability")).await?.json().await?;
    assert_eq!((&reliability["total"]["cr"], &reliability["total"]["sr"]), (&json!(1.0), &json!(0.0)), "{reliability}");
    Ok(())
}

#[tokio::test]
async fn execution_is_cancelled_by_request_and_not_by_a_closed_connection() -> Result<()> {
    let folder = Folder::new(&[("mood", json!([{"id": "mood", "kind": "sentiment"}]))])?;
    let server = start_stub(&folder, &[]).await?;
    let id = start_execution(&server, "mood", &json!("!never")).await?;
    let mut live = follow(&server, &id, None).await?;
    while live.next_stored_event().await?.name != "step_start" {}
    drop(live);
    let waited = start(&server, "mood", &json!("!never"), &[("prefer", "wait=1")]).await?;
    assert_eq!((waited.status().as_u16(), waited.headers().get("preference-applied")), (202, None));
    assert_eq!(status(&server, &id).await?["state"], "running");
    let cancel = |id: &str| Client::new().request(Method::DELETE, server.url(&format!("/executions/{id}"))).send();
    let response = cancel(&id).await?;
    assert_eq!(response.status(), 200);
    let body: Value = response.json().await?;
    assert_eq!((&body["state"], &body["failure"]["cancelled"]), (&json!("cancelled"), &json!(true)), "{body}");
    let all = events(&server, &id).await?;
    check_contiguous(&all)?;
    let last = all.last().context("events")?;
    assert_eq!((last.name.as_str(), &last.data["data"]["cancelled"]), ("pipeline_error", &json!(true)));
    let second_cancel = cancel(&id).await?;
    assert_eq!(
        (second_cancel.status().as_u16(), second_cancel.json::<Value>().await?["code"].clone()),
        (409, json!("execution_over"))
    );
    let second: Value = waited.json().await?;
    assert_eq!(cancel(second["execution_id"].as_str().context("an id")?).await?.status(), 200);
    Ok(())
}

#[tokio::test]
async fn idempotency_key_and_prefer_wait_start_one_execution() -> Result<()> {
    let folder = Folder::new(&[("mood", json!([{"id": "mood", "kind": "sentiment"}]))])?;
    let server = start_stub(&folder, &[]).await?;
    let response = start(&server, "mood", &json!("good"), &[("prefer", "wait=20")]).await?;
    assert_eq!((response.status().as_u16(), response.headers()["preference-applied"].to_str()?), (200, "wait=20"));
    let body: Value = response.json().await?;
    assert_eq!(
        (&body["state"], &body["output"]["overall_sentiment"]),
        (&json!("completed"), &json!("POSITIVE")),
        "{body}"
    );
    let response = start(&server, "mood", &json!("good"), &[("prefer", "respond-async")]).await?;
    assert_eq!(
        (response.status().as_u16(), response.headers()["preference-applied"].to_str()?),
        (202, "respond-async")
    );

    // Eight concurrent requests with one key start one execution.
    let headers = [("idempotency-key", "order 42")];
    let together = futures::future::join_all((0..8).map(|_| async {
        let response = start(&server, "mood", &json!("bad"), &headers).await?;
        ensure!(response.status() == 202, "{response:?}");
        Ok(response.json::<Value>().await?["execution_id"].to_string())
    }));
    let ids: BTreeSet<String> = together.await.into_iter().collect::<Result<_>>()?;
    assert_eq!(ids.len(), 1, "{ids:?}");
    let waited = start(&server, "mood", &json!("bad"), &[headers[0], ("prefer", "wait")]).await?;
    let waited: Value = waited.json().await?;
    assert_eq!(
        (waited["execution_id"].to_string(), &waited["state"]),
        (ids.first().context("one")?.clone(), &json!("completed"))
    );
    let other = start(&server, "mood", &json!("another"), &headers).await?;
    assert_eq!(
        (other.status().as_u16(), other.json::<Value>().await?["code"].clone()),
        (422, json!("idempotency_key_reused"))
    );
    let more = start(&server, "mood", &json!("bad"), &[("idempotency-key", "order 43")]).await?;
    assert!(!ids.contains(&more.json::<Value>().await?["execution_id"].to_string()));
    Ok(())
}

#[tokio::test]
async fn definition_that_changes_is_read_again() -> Result<()> {
    let folder = Folder::new(&[("one", json!([{"id": "a", "kind": "map", "expression": "'old'"}]))])?;
    folder.write_text("torn", "{\"name\": \"torn\", \"steps\": [")?;
    folder.write_text("misnamed", r#"{"name": "other", "steps": [{"id": "a", "kind": "map", "expression": "@"}]}"#)?;
    let server = start_stub(&folder, &[]).await?;
    let list: Value = reqwest::get(server.url("/pipelines")).await?.json().await?;
    let names: Vec<(&Value, &Value)> =
        list["pipelines"].as_array().context("a list")?.iter().map(|p| (&p["name"], &p["valid"])).collect();
    assert_eq!(
        names,
        [(&json!("misnamed"), &json!(false)), (&json!("one"), &json!(true)), (&json!("torn"), &json!(false))]
    );
    let shown: Value = reqwest::get(server.url("/pipelines/one")).await?.json().await?;
    assert_eq!((&shown["name"], &shown["steps"][0]["expression"]), (&json!("one"), &json!("'old'")));
    let torn = start(&server, "torn", &json!({}), &[]).await?;
    assert_eq!((torn.status().as_u16(), torn.json::<Value>().await?["code"].clone()), (503, json!("pipeline_invalid")));
    until("in the log", || async { Ok(server.log().contains("torn.json is not a pipeline")) }).await?;
    assert_eq!(run(&server, "one", &json!({})).await?["output"], "old");
    folder.write("one", &json!([{"id": "a", "kind": "map", "expression": "'newer'"}]))?;
    until("the definition is read again", || async { Ok(run(&server, "one", &json!({})).await?["output"] == "newer") })
        .await?;
    folder.write("two", &json!([{"id": "a", "kind": "map", "expression": "@"}]))?;
    until("the new definition is found", || async {
        Ok(reqwest::get(server.url("/pipelines/two")).await?.status() == 200)
    })
    .await
}

#[tokio::test]
async fn invalid_pipeline_request_is_refused_with_its_reasons() -> Result<()> {
    let folder = Folder::new(&[
        ("echo", json!([{"id": "a", "kind": "map", "expression": "@"}])),
        ("mood", json!([{"id": "mood", "kind": "sentiment"}])),
        ("large", json!([{"id": "a", "kind": "map", "expression": "[@, @, @, @]"}])),
    ])?;
    let limits = [
        "--set",
        "pipelines.executions_max=2",
        "--set",
        "pipelines.input_bytes_max=1000",
        "--set",
        "pipelines.output_bytes_max=2000",
    ];
    let server = start_stub(&folder, &limits).await?;
    let check = async |response: reqwest::Response, status: u16, code: &str| -> Result<()> {
        let (got, body) = (response.status().as_u16(), response.json::<Value>().await?);
        ensure!((got, &body["code"]) == (status, &json!(code)), "{got} {body}");
        Ok(())
    };
    check(start(&server, "none", &json!({}), &[]).await?, 404, "not_found").await?;
    check(start(&server, ".echo", &json!({}), &[]).await?, 404, "not_found").await?;
    check(start(&server, "echo", &json!("x".repeat(2000)), &[]).await?, 413, "input_too_large").await?;
    let bad_key = [("idempotency-key", "")];
    check(start(&server, "echo", &json!({}), &bad_key).await?, 422, "invalid_request").await?;
    let url = server.url("/pipelines/echo");
    let text = Client::new().post(&url).header("content-type", "application/json").body("{");
    check(text.send().await?, 400, "malformed_json").await?;
    check(
        Client::new().post(&url).header("content-type", "text/plain").body("x").send().await?,
        415,
        "unsupported_media_type",
    )
    .await?;
    let put_response = Client::new().put(&url).send().await?;
    assert_eq!(put_response.headers()["allow"], "GET, HEAD, POST, OPTIONS");
    check(put_response, 405, "method_not_allowed").await?;
    for id in ["exec_AAAAAAAAAAAAAAAAAAAAAA", "exec_x", "1"] {
        check(reqwest::get(server.url(&format!("/executions/{id}"))).await?, 404, "not_found").await?;
        let deleted = Client::new().delete(server.url(&format!("/executions/{id}"))).send().await?;
        check(deleted, 404, "not_found").await?;
    }
    let large = run(&server, "large", &json!("x".repeat(900))).await?;
    assert_eq!(large["failure"]["code"], "expression_failed", "{large}");
    let wrong = run(&server, "mood", &json!({"no": "text"})).await?;
    assert_eq!(wrong["failure"]["code"], "invalid_input", "{wrong}");

    // At most two executions run at once; when one has ended, another may start.
    let running_ids = [
        start_execution(&server, "mood", &json!("!never")).await?,
        start_execution(&server, "mood", &json!("!never")).await?,
    ];
    let refused = start(&server, "echo", &json!({}), &[]).await?;
    assert!(refused.headers().contains_key("retry-after"));
    check(refused, 503, "executions_full").await?;
    let listed: Value = reqwest::get(server.url("/executions")).await?.json().await?;
    let running = listed["executions"].as_array().context("a list")?.iter().filter(|e| e["state"] == "running").count();
    assert_eq!(running, 2, "{listed}");
    Client::new().delete(server.url(&format!("/executions/{}", running_ids[0]))).send().await?.error_for_status()?;
    assert_eq!(run(&server, "echo", &json!([1, 2.50])).await?["output"].to_string(), "[1,2.5]");
    Client::new().delete(server.url(&format!("/executions/{}", running_ids[1]))).send().await?.error_for_status()?;
    Ok(())
}

const BOB: &str = "weir_AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI";
const WORKER: &str = "weir_AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM";
const API_KEYS: &str = "\
ann ann sha256:0c931af1becde644feaacb8c72cda351e1e5197468018114afcfb614aa558b37 start:pipeline:*
bob bob sha256:4d764170b1d6528180ca8f712c94a712b1c66239c05234a4264750a7c78c656c start:pipeline:mood
worker worker sha256:3706688a5d50a892bb76689237f8c9fd18f498405f442a83575d29adf3e7f80e
";

#[tokio::test]
async fn execution_belongs_to_the_user_that_started_it() -> Result<()> {
    let folder = Folder::new(&[
        ("mood", json!([{"id": "mood", "kind": "sentiment"}])),
        ("other", json!([{"id": "a", "kind": "map", "expression": "@"}])),
    ])?;
    let keys = tempfile::tempdir()?;
    std::fs::write(keys.path().join("api_keys"), API_KEYS)?;
    let dir = format!("auth.dir={}", keys.path().display());
    let server = start_stub(
        &folder,
        &["--set", "auth.mode=required", "--set", &dir, "--set", "pipelines.user_executions_max=1"],
    )
    .await?;
    let request_as =
        |method: Method, path: &str, key: &str| Client::new().request(method, server.url(path)).bearer_auth(key);
    let start_execution = async |name: &str, key: &str, text: &str| -> Result<(u16, Value)> {
        let response = request_as(Method::POST, &format!("/pipelines/{name}"), key).json(&json!(text)).send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    };
    assert_eq!(start(&server, "mood", &json!("good"), &[]).await?.status(), 401);
    // A pipeline that a user may not start reads as missing.
    assert_eq!((start_execution("other", BOB, "x").await?.0, start_execution("none", BOB, "x").await?.0), (404, 404));
    assert_eq!(start_execution("mood", WORKER, "x").await?.0, 404);
    let names = async |key: &str| -> Result<Value> {
        let list: Value = request_as(Method::GET, "/pipelines", key).send().await?.json().await?;
        Ok(list["pipelines"].as_array().context("a list")?.iter().map(|pipeline| pipeline["name"].clone()).collect())
    };
    assert_eq!((names(ANN).await?, names(BOB).await?), (json!(["mood", "other"]), json!(["mood"])));

    let (code, body) = start_execution("mood", ANN, "!never").await?;
    assert_eq!(code, 202, "{body}");
    let id = body["execution_id"].as_str().context("an id")?.to_owned();
    let missing = "exec_AAAAAAAAAAAAAAAAAAAAAA";
    for key in [BOB, WORKER] {
        for method in [Method::GET, Method::DELETE] {
            let mut responses = Vec::new();
            for id in [&id, missing] {
                let response = request_as(method.clone(), &format!("/executions/{id}"), key).send().await?;
                let (status, mut body) = (response.status(), response.json::<Value>().await?);
                body["detail"] = json!(body["detail"].to_string().replace(id, "ID"));
                body["request_id"] = Value::Null;
                responses.push((status, body));
            }
            assert_eq!(responses[0], responses[1]);
            assert_eq!(responses[0].0, 404);
        }
        assert_eq!(request_as(Method::GET, &format!("/stream/pipeline/{id}"), key).send().await?.status(), 404);
        let list: Value = request_as(Method::GET, "/executions", key).send().await?.json().await?;
        assert_eq!(list["executions"], json!([]));
    }
    let response = request_as(Method::GET, &format!("/stream/pipeline/{id}"), ANN).send().await?;
    assert_eq!(Follower::from_response(response, None)?.next_stored_event().await?.name, "pipeline_start");
    let list: Value = request_as(Method::GET, "/executions", ANN).send().await?.json().await?;
    assert_eq!(list["executions"][0]["execution_id"], json!(id), "{list}");
    // Each user may run one execution at a time.
    let (code, body) = start_execution("mood", ANN, "good").await?;
    assert_eq!((code, &body["code"]), (429, &json!("too_many_executions")));
    assert_eq!(start_execution("mood", BOB, "good").await?.0, 202);
    assert_eq!(request_as(Method::DELETE, &format!("/executions/{id}"), ANN).send().await?.status(), 200);
    let execution: Value = request_as(Method::GET, &format!("/executions/{id}"), ANN).send().await?.json().await?;
    assert_eq!(execution["state"], "cancelled");
    assert_eq!(request_as(Method::GET, &format!("/executions/{id}"), BOB).send().await?.status(), 404);
    Ok(())
}

#[tokio::test]
async fn concurrent_executions_complete() -> Result<()> {
    let folder = Folder::new(&[(
        "mood",
        json!([{"id": "chunk", "kind": "chunk", "chunk_size": 5}, {"id": "mood", "kind": "sentiment"}]),
    )])?;
    let server = start_stub(&folder, &[]).await?;
    let ids = futures::future::try_join_all((0..100).map(|n| {
        let server = &server;
        async move { start_execution(server, "mood", &json!(format!("good {n} bad good"))).await }
    }))
    .await?;
    for id in &ids {
        assert_eq!(wait_until_ended(&server, id).await?["state"], "completed");
        let all = events(&server, id).await?;
        check_contiguous(&all)?;
        assert_eq!(all.last().map(|event| event.name.as_str()), Some("pipeline_complete"));
    }
    Ok(())
}

#[tokio::test]
async fn unknown_pipeline_suggests_the_nearest_that_the_user_may_start() -> Result<()> {
    let folder = Folder::new(&[("review", json!([{"id": "a", "kind": "map", "expression": "@"}]))])?;
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(dir.path(), &folder.arguments()).await?;
    let detail = async |method: Method, name: &str, key: &str| {
        let response = request_as(&server, method, &format!("/pipelines/{name}"), key).json(&json!({})).send().await?;
        ensure!(response.status() == 404, "{name}: {}", response.status());
        let problem: Value = response.json().await?;
        Ok(problem["detail"].as_str().context("a detail")?.to_owned())
    };
    for method in [Method::GET, Method::POST] {
        let known = detail(method.clone(), "reviw", ADMIN).await?;
        assert!(known.contains("`/pipelines/reviw`") && known.contains("(did you mean `review`?)"), "{known}");
        // To a user who may start no pipeline, an existing one reads as missing.
        let [hidden, missing] = [detail(method.clone(), "review", ANN).await?, detail(method, "reviw", ANN).await?];
        assert_eq!(hidden.replace("review", "x"), missing.replace("reviw", "x"));
    }
    Ok(())
}
