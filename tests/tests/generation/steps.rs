//! Pipeline steps that generate text, and the dialects of embeddings, moderation and reranking.

use anyhow::Result;
use serde_json::{Value, json};
use weir_tests::Server;
use weir_tests::pipelines::{Folder, events, run, start_execution};

use crate::send;

#[tokio::test]
async fn generate_step_renders_its_template_and_streams_its_pieces() -> Result<()> {
    let step = |template: &str| {
        json!([{ "id": "draft", "kind": "generate", "template": template, "system": "Be brief.", "max_tokens": 3,
                 "retry": { "max_attempts": 1 } }])
    };
    let folder = Folder::new(&[("draft", step("Say of {{name}}: {{n}}")), ("fails", step("{{@}}"))])?;
    let server = Server::start_generate_stub(&folder.arguments()).await?;
    let execution = run(&server, "draft", &json!({ "name": "Ann", "n": 1 })).await?;
    assert_eq!(execution["output"]["text"], "One two three", "{execution}");
    assert_eq!(
        (&execution["output"]["finish_reason"], &execution["output"]["usage"]["completion_tokens"]),
        (&json!("length"), &json!(3))
    );
    let id = start_execution(&server, "draft", &json!({ "name": "Ann", "n": 1 })).await?;
    let parts: String = events(&server, &id)
        .await?
        .iter()
        .filter(|event| event.name == "step_output")
        .filter_map(|event| event.data.pointer("/data/output/text").or(event.data.pointer("/output/text"))?.as_str())
        .collect();
    assert_eq!(parts, "One two three");
    for (input, code) in [("!template", "invalid_input"), ("!down", "model_unavailable"), ("!overloaded", "overloaded")]
    {
        let execution = run(&server, "fails", &json!(input)).await?;
        assert_eq!(
            (&execution["state"], &execution["failure"]["code"]),
            (&json!("failed"), &json!(code)),
            "{execution}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn embeddings_and_moderations_have_the_shapes_of_openai() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let body = json!({ "model": "embeddings", "input": ["a", "b"] });
    let response: Value = send(&server, "/v1/embeddings", &body).await?.json().await?;
    assert_eq!((&response["object"], &response["model"]), (&json!("list"), &json!("embeddings")));
    assert_eq!(response["data"][1], json!({ "object": "embedding", "index": 1, "embedding": [0.5, -0.5, 0.5, -0.5] }));
    let body = json!({ "model": "embeddings", "input": "a", "encoding_format": "base64" });
    let response: Value = send(&server, "/v1/embeddings", &body).await?.json().await?;
    assert_eq!(response["data"][0]["embedding"], "AAAAPwAAAL8AAAA/AAAAvw==");
    for (body, status, code) in [
        (json!({ "input": [1, 2] }), 400, "invalid_request"),
        (json!({ "input": "a", "model": "nowhere" }), 404, "model_not_found"),
    ] {
        let response = send(&server, "/v1/embeddings", &body).await?;
        assert_eq!(response.status(), status, "{body}");
        assert_eq!(response.json::<Value>().await?["error"]["code"], code, "{body}");
    }
    let body = json!({ "model": "sentiment", "input": "good" });
    let response: Value = send(&server, "/v1/moderations", &body).await?.json().await?;
    assert_eq!(response["results"][0]["category_scores"], json!({ "positive": 0.75 }));
    assert_eq!(response["results"][0]["flagged"], true);
    assert_eq!(send(&server, "/v1/moderations", &json!({ "input": "good" })).await?.status(), 400);
    Ok(())
}

#[tokio::test]
async fn tei_embed_has_its_shape_and_unsupported_tasks_are_424() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let response: Value = send(&server, "/embed", &json!({ "inputs": ["a"] })).await?.json().await?;
    assert_eq!(response, json!([[0.5, -0.5, 0.5, -0.5]]));
    for (path, body, status) in [
        ("/embed", json!({ "inputs": "" }), 400),
        ("/embed_sparse", json!({ "inputs": "a" }), 424),
        ("/rerank", json!({ "query": "q", "texts": ["a"] }), 424),
    ] {
        let response = send(&server, path, &body).await?;
        assert_eq!(response.status(), status, "{path}");
        assert!(response.json::<Value>().await?["error_type"].is_string(), "{path}");
    }
    Ok(())
}
