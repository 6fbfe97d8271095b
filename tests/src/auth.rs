//! Servers that require authentication, and requests of users to them.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

use crate::Server;

/// The API key of the user `ann`, who has no scopes.
pub const ANN: &str = "weir_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";
/// The API key of the user `bob`, who has no scopes.
pub const BOB: &str = "weir_AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI";
/// The API key of a worker that may publish to every workflow, file and user, and read nothing.
pub const WORKER: &str = "weir_AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM";
/// The API key of a second worker, with the same scopes.
pub const CREW: &str = "weir_BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU";
/// The API key of an administrator.
pub const ADMIN: &str = "weir_BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ";
/// The contents of the file of API keys.
pub const API_KEYS: &str = "\
ann ann sha256:0c931af1becde644feaacb8c72cda351e1e5197468018114afcfb614aa558b37
bob bob sha256:4d764170b1d6528180ca8f712c94a712b1c66239c05234a4264750a7c78c656c
worker worker sha256:3706688a5d50a892bb76689237f8c9fd18f498405f442a83575d29adf3e7f80e publish:workflow:* publish:file:* publish:user:*
admin admin sha256:4d98ee4b6fb858d1b4d833871bb1178d75312507e7ea209992da34fa2f10fc21 admin
crew crew sha256:c961e0cf9e542e1d1c65f199775b22af63b5b3475421187866ec033ee07a7825 publish:workflow:* publish:file:* publish:user:*
";
/// The secret that signs tokens (HS256).
pub const SECRET: &str = "a shared secret that is long enough for HS256";

/// Starts a server with authentication and with the stand-in for the infer component. Its keys are in `dir`.
pub async fn start_with_auth(dir: &Path, more: &[&str]) -> Result<Server> {
    let settings = settings(dir)?;
    let mut arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting.as_str()]).collect();
    arguments.extend(more);
    Ok(Server::start_stub(&arguments).await?.with_token(ADMIN))
}

/// Writes key files into `dir`; the settings of a server that authenticates with them.
pub fn settings(dir: &Path) -> Result<Vec<String>> {
    std::fs::write(dir.join("api_keys"), API_KEYS)?;
    std::fs::write(dir.join("token_secrets"), SECRET)?;
    std::fs::write(dir.join("ticket_secrets"), "another secret, for tickets, also long enough\n")?;
    Ok(vec![
        "auth.mode=required".to_owned(),
        format!("auth.dir={}", dir.display()),
        "auth.issuers=[\"https://issuer.example\"]".to_owned(),
        "auth.audiences=[weir]".to_owned(),
        "auth.leeway_s=0".to_owned(),
    ])
}

/// Seconds since the Unix epoch.
pub fn now_s() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// The claims of a token of a user that expires in `ttl_s` seconds.
pub fn claims(user: &str, ttl_s: u64) -> Result<Value> {
    let exp = now_s()? + ttl_s;
    Ok(json!({"iss": "https://issuer.example", "aud": ["weir"], "sub": user, "exp": exp}))
}

/// The header of a token that is signed with HS256.
pub fn hs256_header() -> Value {
    json!({"alg": "HS256", "typ": "JWT"})
}

/// A request with an API key or a token as its bearer token.
pub fn request_as(server: &Server, method: Method, path: &str, key: &str) -> RequestBuilder {
    Client::new().request(method, server.url(path)).bearer_auth(key)
}

/// The body that publishes a progress event, with the user that it names.
pub fn progress_body(user: Option<&str>) -> Value {
    json!({"step": "s", "progress": 1, "message": "m", "user_id": user})
}

/// Sends a request; its status.
pub async fn status(request: RequestBuilder) -> Result<u16> {
    Ok(request.send().await?.status().as_u16())
}

/// Posts JSON with an API key; the status.
pub async fn publish(server: &Server, path: &str, key: &str, body: &Value) -> Result<u16> {
    status(request_as(server, Method::POST, path, key).json(body)).await
}

/// Issues a ticket of a user for the path and the scopes in `body`.
pub async fn issue_ticket(server: &Server, key: &str, body: &Value) -> Result<String> {
    let response = request_as(server, Method::POST, "/tickets", key).json(body).send().await?;
    let status = response.status();
    let body: Value = response.json().await?;
    ensure!(status == 201, "{body}");
    Ok(body["ticket"].as_str().context("a ticket")?.to_owned())
}
