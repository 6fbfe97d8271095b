//! Files of an operator, keys and pipelines: in the encodings and line ends of several editors, and with mistakes.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::pipelines::{Folder, run};
use weir_tests::tokens::token;
use weir_tests::{Server, root, until};

/// An API key whose hash is in [`API_KEYS`].
const ANN: &str = "weir_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";
const API_KEYS: &str = "ann ann sha256:0c931af1becde644feaacb8c72cda351e1e5197468018114afcfb614aa558b37\n";
const SECRET: &str = "a shared secret that is long enough for HS256";
const OPEN_SSH: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea ann@example.org\n";
const JWK: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

/// Starts a server that authenticates every request with the keys of a folder, and waits until it is ready.
async fn start_with_keys(dir: &Path) -> Result<Server> {
    let server = launch_with_keys(dir)?;
    server.ready().await?;
    Ok(server)
}

/// [`start_with_keys`] without waiting for readiness.
fn launch_with_keys(dir: &Path) -> Result<Server> {
    let keys = format!("auth.dir={}", dir.display());
    Server::launch_stub(&[
        "--set",
        "auth.mode=required",
        "--set",
        &keys,
        "--set",
        "auth.issuers=[\"https://issuer.example\"]",
        "--set",
        "auth.audiences=[weir]",
    ])
}

/// Replaces a file atomically.
fn replace(dir: &Path, name: &str, contents: &[u8]) -> Result<()> {
    let fresh = dir.join(format!("{name}.new"));
    std::fs::write(&fresh, contents)?;
    Ok(std::fs::rename(&fresh, dir.join(name))?)
}

/// A token of the user `ann`, signed with HS256.
fn signed_with(secret: &str) -> Result<String> {
    let exp = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 600;
    let claims = json!({"iss": "https://issuer.example", "aud": "weir", "sub": "ann", "exp": exp});
    token(&json!({"alg": "HS256"}), &claims, secret)
}

async fn classify(server: &Server, bearer: &str) -> Result<u16> {
    let request = Client::new().post(server.url("/v1/classify")).bearer_auth(bearer).json(&json!({"inputs": "good"}));
    Ok(request.send().await?.status().as_u16())
}

async fn readyz(server: &Server) -> Result<(u16, Value)> {
    let response = reqwest::get(server.url("/readyz")).await?;
    Ok((response.status().as_u16(), response.json().await?))
}

#[tokio::test]
async fn public_key_in_any_form_is_never_a_shared_secret() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("api_keys"), API_KEYS)?;
    let server = start_with_keys(dir.path()).await?;
    let pem = std::fs::read_to_string(root().join("components/auth/tests/keys/ed25519.pub.pem"))?;
    let utf16: Vec<u8> = pem.encode_utf16().flat_map(u16::to_le_bytes).collect();
    // Each form of the file, its contents, and whether it is accepted.
    let files: [(&str, Vec<u8>, bool); 8] = [
        ("a JWKS after a byte order mark", format!("\u{feff}{{\"keys\":[{JWK}]}}").into(), true),
        ("an array of JWKs", format!("[{JWK}]").into(), true),
        ("PEM after a comment", format!("# the issuer's key\n{pem}").into(), true),
        ("PEM after a byte order mark", format!("\u{feff}{}", pem.replace('\n', "\r\n")).into(), true),
        ("OpenSSH", OPEN_SSH.into(), false),
        ("PEM in UTF-16", utf16, false),
        (
            "base64 without its PEM lines",
            pem.lines().filter(|line| !line.starts_with('-')).collect::<String>().into(),
            false,
        ),
        ("a comment before a JWK", format!("// {JWK}").into(), false),
    ];
    for (form, contents, is_valid) in &files {
        replace(dir.path(), "token_keys", contents)?;
        let (state, status) = if *is_valid { ("ready", 401) } else { ("not ready", 503) };
        until(&format!("{state} with {form}"), || async {
            Ok((readyz(&server).await?.0 == 200) == *is_valid && classify(&server, "e.e.e").await? == status)
        })
        .await?;
        // A token that is signed with the public file, or with a line of it, is refused.
        let text = String::from_utf8_lossy(contents).replace('\0', "");
        for secret in [text.as_str(), text.trim()].into_iter().chain(text.lines()).filter(|text| !text.is_empty()) {
            assert_eq!(classify(&server, &signed_with(secret)?).await?, status, "{form}: {secret}");
        }
        // As the file of secrets, each form is refused.
        std::fs::remove_file(dir.path().join("token_keys"))?;
        replace(dir.path(), "token_secrets", contents)?;
        until(&format!("not ready with {form} as a secret"), || async {
            Ok(readyz(&server).await?.1["detail"].to_string().contains("token_secrets"))
        })
        .await?;
        assert_eq!(classify(&server, &signed_with(text.trim())?).await?, 503, "{form}");
        std::fs::remove_file(dir.path().join("token_secrets"))?;
    }
    Ok(())
}

#[tokio::test]
async fn secret_in_the_file_of_public_keys_is_refused_with_the_file_it_belongs_in() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("api_keys"), API_KEYS)?;
    std::fs::write(dir.path().join("token_keys"), SECRET)?;
    let server = launch_with_keys(dir.path())?;
    // The reason is in the log before the first request, and in the response of `/readyz`.
    until("the log says where a secret belongs", async || Ok(server.log().contains("`token_secrets`"))).await?;
    let (status, body) = readyz(&server).await?;
    assert_eq!((status, &body["code"]), (503, &json!("auth_unavailable")), "{body}");
    let detail = body["detail"].as_str().context("a detail")?;
    ensure!(detail.contains("token_keys: ") && detail.contains("belongs in the file `token_secrets`"), "{detail}");
    ensure!(!server.log().contains(SECRET) && !body.to_string().contains(SECRET), "the secret is shown");
    for bearer in [ANN, &signed_with(SECRET)?] {
        assert_eq!(classify(&server, bearer).await?, 503);
    }
    std::fs::rename(dir.path().join("token_keys"), dir.path().join("token_secrets"))?;
    until("ready", || async { Ok(readyz(&server).await?.0 == 200) }).await?;
    until("accepted", || async { Ok(classify(&server, &signed_with(SECRET)?).await? == 200) }).await?;
    assert_eq!(classify(&server, ANN).await?, 200);
    Ok(())
}

#[tokio::test]
async fn key_that_is_not_understood_is_skipped_beside_a_usable_one() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let oct = r#"{"kty":"oct","k":"YSBzaGFyZWQgc2VjcmV0IHRoYXQgaXMgbG9uZyBlbm91Z2ggZm9yIEhTMjU2"}"#;
    let rsa = r#"{"kty":"RSA","n":"AQ","e":"AQAB","kid":"1"}"#;
    let weak = r#"{"kty":"OKP","crv":"Ed25519","x":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#;
    std::fs::write(dir.path().join("token_keys"), format!("{{\"keys\":[{rsa},{weak},{{}},{oct}]}}"))?;
    let server = start_with_keys(dir.path()).await?;
    assert_eq!(classify(&server, &signed_with(SECRET)?).await?, 200);
    until("the log names every key that is skipped", async || {
        let log = server.log();
        Ok((0..3).all(|key| log.contains(&format!("a key is not used: key {key} of the JWKS: "))))
    })
    .await
}

#[tokio::test]
async fn pipeline_with_byte_order_mark_and_windows_line_ends_runs() -> Result<()> {
    let folder = Folder::new(&[])?;
    let definition = "\u{feff}{\r\n  \"name\": \"windows\",\r\n  \"steps\": [{\"id\": \"a\", \"kind\": \"map\", \"expression\": \"'ok'\"}]\r\n}\r\n";
    folder.write_text("windows", definition)?;
    let server = Server::start_stub(&folder.arguments()).await?;
    assert_eq!(run(&server, "windows", &json!({})).await?["output"], "ok");
    Ok(())
}

#[tokio::test]
async fn wrong_pipeline_is_reported_at_the_start_in_the_list_and_in_the_answer() -> Result<()> {
    let folder = Folder::new(&[])?;
    folder.write_text("torn", "{\n  \"name\": \"torn\",")?;
    folder.write_text("members", r#"{"name": "members", "steps": [{"id": "a", "kind": "mop"}], "step": 1}"#)?;
    folder.write_text("has space", "{}")?;
    let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(folder.path().join("utf16.json"), utf16)?;
    let steps = format!("pipelines.steps=[\"own={}\"]", folder.path().join("missing.wasm").display());
    let server = Server::launch_stub(&[&folder.arguments()[..], &["--set", &steps]].concat())?;
    // The reports are in the log before the first request.
    for name in ["torn.json", "members.json", "has space", "utf16.json", "missing.wasm"] {
        until(&format!("the log names {name}"), || async { Ok(server.log().contains(name)) }).await?;
    }
    server.ready().await?;
    let list: Value = reqwest::get(server.url("/pipelines")).await?.json().await?;
    let list = list["pipelines"].as_array().context("a list")?;
    assert_eq!(list.len(), 3, "{list:?}");
    for pipeline in list {
        assert_eq!(pipeline["valid"], json!(false), "{pipeline}");
        let error = pipeline["error"].as_str().context("an error")?;
        let name = pipeline["name"].as_str().context("a name")?;
        let path = format!("/pipelines/{name}");
        let started = Client::new().post(server.url(&path)).json(&json!({})).send().await?;
        for response in [started, reqwest::get(server.url(&path)).await?] {
            assert_eq!(response.status(), 503, "{name}");
            let body: Value = response.json().await?;
            assert_eq!(body["code"], "pipeline_invalid", "{body}");
            ensure!(body["detail"].as_str().is_some_and(|detail| detail.contains(error)), "{error}: {body}");
            match name {
                "torn" => assert_eq!(body["line"], 2, "{body}"),
                "members" => {
                    let fields: Vec<&Value> =
                        body["errors"].as_array().context("errors")?.iter().map(|error| &error["field"]).collect();
                    assert_eq!(fields, ["steps[0].kind", "step"], "{body}");
                    assert_eq!(pipeline["errors"], body["errors"]);
                }
                _ => ensure!(error.contains("UTF-16"), "{error}"),
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn key_files_with_byte_order_mark_and_windows_line_ends_are_read() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let windows = |text: &str| format!("\u{feff}{}", text.replace('\n', "\r\n"));
    std::fs::write(dir.path().join("api_keys"), windows(&format!("# keys\n{API_KEYS}")))?;
    std::fs::write(dir.path().join("token_secrets"), windows(&format!("{SECRET}\n")))?;
    std::fs::write(dir.path().join("ticket_secrets"), windows("another secret, for tickets, also long enough\n"))?;
    let server = start_with_keys(dir.path()).await?;
    assert_eq!(classify(&server, ANN).await?, 200);
    assert_eq!(classify(&server, &signed_with(SECRET)?).await?, 200);
    Ok(())
}
