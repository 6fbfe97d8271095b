//! The dialects of other servers: the client of huggingface_hub against `/models/{name}`, and the shapes and errors of
//! text-embeddings-inference on `/predict`.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};
use weir_tests::{Server, root, tool};

/// Posts JSON; the status and the response, which must be JSON.
async fn post(server: &Server, path: &str, body: &Value) -> Result<(StatusCode, Value)> {
    let response = reqwest::Client::new().post(server.url(path)).json(body).send().await?;
    ensure!(response.headers()["content-type"] == "application/json", "{:?}", response.headers());
    Ok((response.status(), response.json().await?))
}

#[tokio::test]
async fn huggingface_hub_client_understands_every_response() -> Result<()> {
    let server = Server::start(&[]).await?;
    let mut python = Command::new(tool("WEIR_TEST_PYTHON")?);
    python.arg(root().join("tests/readers/hub.py")).arg(server.url(""));
    // The client contacts no other server, and keeps no files.
    let home = tempfile::tempdir()?;
    python.env("HF_HUB_OFFLINE", "0").env("HF_HOME", home.path()).env("HF_HUB_DISABLE_TELEMETRY", "1");
    python.env_remove("HF_TOKEN");
    let output = tokio::task::spawn_blocking(move || python.output()).await??;
    ensure!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), server.log());
    let report: Value = serde_json::from_slice(&output.stdout)?;

    let all = report["all"].as_array().context("all")?;
    assert_eq!(all.len(), 3, "{report}");
    assert_eq!(report["all"][0][0], "positive");
    let sum: f64 = all.iter().filter_map(|pair| pair[1].as_f64()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    assert_eq!(report["top"], json!([all[0]]));
    assert!(report["raw"][0][1].as_f64().context("a logit")? > 1.0, "{report}");
    assert_eq!(report["groups"], json!([["PER", "Maria Schmidt"], ["LOC", "Geneva"]]));
    assert_eq!(report["tokens"], json!([["B-PER", "Maria"], ["I-PER", "Schmidt"], ["B-LOC", "Geneva"]]));
    assert_eq!(report["one"][0], json!([384]));
    assert!((report["one"][1].as_f64().context("a norm")? - 1.0).abs() < 1e-4, "{report}");
    assert_eq!(report["many"][0], json!([2, 384]));
    assert!((report["many"][1].as_f64().context("a product")? - 1.0).abs() < 1e-3, "{report}");
    assert_eq!(report["by_base_url"][0][0], "negative");
    assert_eq!(
        report["unknown"],
        json!([404, "no model named `nowhere` is served; there are embeddings, entities, sentiment"])
    );
    assert_eq!(report["invalid"][0], 400);
    assert!(report["invalid"][1].as_str().context("a text")?.contains("function_to_apply"), "{report}");
    Ok(())
}

/// `/rerank` of text-embeddings-inference with a cross-encoder, a model with one label.
#[tokio::test]
async fn texts_are_ranked_by_the_scores_of_a_cross_encoder() -> Result<()> {
    let model = format!("ranker={}", root().join("tests/models/regression-toy").display());
    let server = Server::start(&["--model", &model]).await?;
    let texts = ["The train was late.", "A wonderful evening!", "Rain."];
    let body = json!({"query": "How was it?", "texts": texts, "return_text": true, "raw_scores": true});
    let (status, ranked) = post(&server, "/rerank", &body).await?;
    assert_eq!(status, 200, "{ranked}");
    let ranked = ranked.as_array().context("a list")?;
    let score = |item: &Value| item["score"].as_f64().context("a score");
    let mut seen = Vec::new();
    for item in ranked {
        let index = usize::try_from(item["index"].as_u64().context("an index")?)?;
        assert_eq!(item["text"], texts[index]);
        let pair = json!({"inputs": {"text": "How was it?", "text_pair": texts[index]}, "model": "ranker",
            "parameters": {"function_to_apply": "none"}});
        let (_, alone) = post(&server, "/v1/classify", &pair).await?;
        let alone = alone.pointer("/outputs/0/0/score").and_then(Value::as_f64).with_context(|| alone.to_string())?;
        ensure!((alone - score(item)?).abs() < 1e-3, "{item} and {alone}");
        seen.push(index);
    }
    for pair in ranked.windows(2) {
        ensure!(score(&pair[0])? >= score(&pair[1])?, "{ranked:?}");
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2]);
    Ok(())
}

#[tokio::test]
async fn hub_routes_have_the_shapes_of_the_inference_api() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let label = json!({"label": "positive", "score": 0.75});
    let body = json!({"inputs": "good", "options": {"wait_for_model": true}});
    let (status, response) = post(&server, "/models/sentiment", &body).await?;
    assert_eq!((status.as_u16(), response), (200, json!([[label]])));
    let (_, response) = post(&server, "/models/sentiment", &json!({"inputs": ["good", "good"]})).await?;
    assert_eq!(response, json!([[label], [label]]));
    let entity = json!({"entity_group": "PER", "score": 0.75, "word": "Ann", "text": "Ann", "start": 0, "end": 3});
    let (_, response) = post(&server, "/models/entities", &json!({"inputs": "Ann"})).await?;
    assert_eq!(response, json!([entity]));
    let (_, response) = post(&server, "/models/entities", &json!({"inputs": ["Ann"]})).await?;
    assert_eq!(response, json!([[entity]]));
    let vector = json!([0.5, -0.5, 0.5, -0.5]);
    let (_, response) =
        post(&server, "/models/embeddings/pipeline/feature-extraction", &json!({"inputs": "a"})).await?;
    assert_eq!(response, vector);
    let (_, response) = post(&server, "/models/embeddings", &json!({"inputs": ["a", "b"]})).await?;
    assert_eq!(response, json!([vector, vector]));

    for (path, input, status, estimated) in [
        ("/models/sentiment", "!down", 503, json!(1.0)),
        ("/models/sentiment", "!overloaded", 503, Value::Null),
        ("/models/sentiment", "!fail", 500, Value::Null),
        ("/models/nowhere", "a", 404, Value::Null),
        ("/models/sentiment/pipeline/fill-mask", "a", 400, Value::Null),
    ] {
        let (got, response) = post(&server, path, &json!({"inputs": input})).await?;
        assert_eq!(got.as_u16(), status, "{path} {input}: {response}");
        assert!(response["error"].is_string(), "{response}");
        assert_eq!(response["estimated_time"], estimated, "{response}");
    }
    let response = reqwest::get(server.url("/models/sentiment")).await?;
    assert_eq!((response.status().as_u16(), response.headers()["allow"].to_str()?), (405, "POST, OPTIONS"));
    assert!(response.json::<Value>().await?["error"].is_string());
    Ok(())
}

#[tokio::test]
async fn predict_has_the_shapes_of_text_embeddings_inference() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let one = json!([{"score": 0.75, "label": "positive"}]);
    for (inputs, want) in [
        (json!("good"), one.clone()),
        (json!(["good"]), one.clone()),
        (json!(["good", "a pair"]), one.clone()),
        (json!([["good"], ["good", "a pair"]]), json!([one, one])),
    ] {
        let body = json!({"inputs": inputs, "raw_scores": false, "truncate": true, "truncation_direction": "Right"});
        let (status, response) = post(&server, "/predict", &body).await?;
        assert_eq!((status.as_u16(), response), (200, want), "{inputs}");
    }
    for (body, status, kind) in [
        (json!({"inputs": "!overloaded"}), 429, "Overloaded"),
        (json!({"inputs": "!fail"}), 424, "Backend"),
        (json!({"inputs": "!down"}), 503, "Unhealthy"),
        (json!({"inputs": ""}), 400, "Empty"),
        (json!({"inputs": ["a", "b", "c"]}), 422, "Validation"),
        (json!({}), 422, "Validation"),
    ] {
        let (got, response) = post(&server, "/predict", &body).await?;
        assert_eq!((got.as_u16(), &response["error_type"]), (status, &json!(kind)), "{body}: {response}");
        assert!(response["error"].is_string(), "{response}");
    }
    let client = reqwest::Client::new();
    let broken = client.post(server.url("/predict")).header("content-type", "application/json").body("{");
    let broken = broken.send().await?;
    assert_eq!(broken.status(), 400);
    assert_eq!(broken.json::<Value>().await?["error_type"], "Validation");
    Ok(())
}

#[tokio::test]
async fn long_text_is_cut_at_the_side_that_the_request_names() -> Result<()> {
    let server = Server::start(&[]).await?;
    let text = format!("I love this so much, it is wonderful! {} I hate this, it is awful!", "word ".repeat(2000));
    let label = |response: &Value| -> Option<Value> {
        let best = response.pointer("/outputs/0/0").or(response.pointer("/0/0")).or(response.pointer("/0"))?;
        best.get("label").cloned()
    };
    for (path, truncation_key) in
        [("/v1/classify", "truncation"), ("/models/sentiment", "truncation"), ("/predict", "truncate")]
    {
        let mut labels = Vec::new();
        for side in ["left", "Right"] {
            let parameters = json!({truncation_key: true, "truncation_direction": side});
            let body = match path {
                "/predict" => json!({"inputs": text, "truncate": true, "truncation_direction": side}),
                _ => json!({"inputs": text, "parameters": parameters}),
            };
            let (status, response) = post(&server, path, &body).await?;
            assert_eq!(status, 200, "{path}: {response}");
            labels.push(response);
        }
        assert_ne!(label(&labels[0]).context("a label")?, Value::Null, "{path}");
        assert_ne!(labels[0], labels[1], "{path}: both sides give the same");
        let body = json!({"inputs": "a", "parameters": {"truncation_direction": "up"}, "truncation_direction": "up"});
        let response = reqwest::Client::new().post(server.url(path)).json(&body).send().await?;
        assert!([400, 422].contains(&response.status().as_u16()), "{path}");
        assert!(response.text().await?.contains("must be one of left, right"), "{path}");
    }
    let (_, left) =
        post(&server, "/models/embeddings", &json!({"inputs": text, "truncate": true, "truncation_direction": "left"}))
            .await?;
    let (_, right) = post(&server, "/models/embeddings", &json!({"inputs": text, "truncate": true})).await?;
    assert_ne!(left, right);
    let talk = "so we went there and we had some tea and talked about the weather and ";
    let names = format!("Angela Merkel came to Berlin {}", talk.repeat(60));
    let entities = async |parameters: Value| {
        post(&server, "/models/entities", &json!({"inputs": names, "parameters": parameters})).await
    };
    assert_eq!(entities(json!({"truncation_direction": "left"})).await?.1, json!([]));
    assert_eq!(entities(json!({})).await?.1[0]["text"], "Angela Merkel");
    // With a stride, the whole text is processed in windows.
    let names = format!("{}then Angela Merkel from Berlin came and said hello {}", talk.repeat(40), talk.repeat(30));
    let (status, response) =
        post(&server, "/models/entities", &json!({"inputs": names, "parameters": {"stride": 64}})).await?;
    assert_eq!(status, 200, "{response}");
    assert_eq!(response[0]["text"], "Angela Merkel", "{response}");
    Ok(())
}

#[tokio::test]
async fn predict_refuses_long_text_without_truncation() -> Result<()> {
    let server = Server::start(&[]).await?;
    let long = "word ".repeat(2000);
    let (status, response) = post(&server, "/predict", &json!({"inputs": long})).await?;
    assert_eq!((status.as_u16(), &response["error_type"]), (413, &json!("Validation")), "{response}");
    let (status, response) = post(&server, "/predict", &json!({"inputs": long, "truncate": true})).await?;
    assert_eq!(status, 200, "{response}");
    let (status, response) = post(&server, "/predict", &json!({"inputs": "a day", "raw_scores": true})).await?;
    assert_eq!(status, 200, "{response}");
    let sum: f64 = response.as_array().context("a list")?.iter().filter_map(|label| label["score"].as_f64()).sum();
    assert!((sum - 1.0).abs() > 1e-3, "the scores are probabilities: {response}");
    Ok(())
}
