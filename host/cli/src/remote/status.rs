//! `weir status`: the health of a running server, its models and its adapters.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use weir_core::wording::plural_unless;

use super::{ServerAddress, Watch, block_on};
use crate::logs::printable;

/// `weir status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    server: ServerAddress,
    #[command(flatten)]
    watch: Watch,
    /// Print one JSON object, with the responses of `/stream/health` and `/v1/stats`
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(arguments: &Status) -> anyhow::Result<ExitCode> {
    let is_healthy = block_on(arguments.watch.repeat(async || {
        let server = &arguments.server;
        let response = server.get("/stream/health").await?;
        let health: Value = serde_json::from_str(&response.body)
            .ok()
            .filter(|health: &Value| health.get("services").is_some())
            .ok_or_else(|| anyhow::anyhow!("{} answers {}, and is not a Weir server", server.url, response.status))?;
        let stats = server.get("/v1/stats").await?;
        let stats = match stats.status {
            200 => serde_json::from_str(&stats.body)?,
            _ => Value::Null,
        };
        let mut out = std::io::stdout().lock();
        arguments.watch.begin(&mut out, arguments.json)?;
        match arguments.json {
            true => writeln!(out, "{}", json!({"health": health, "stats": stats}))?,
            false => write!(out, "{}", printable(&page(&health, &stats)))?,
        }
        out.flush()?;
        Ok(response.status == 200 && health["status"] == "healthy")
    }))?;
    Ok(if is_healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A number of things, with the noun in the singular or in the plural.
fn counted(count: &Value, noun: &str) -> String {
    format!("{} {}", text(count), plural_unless(*count == 1, noun))
}

/// A value as plain text; `-` if it is missing.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if float.fract() != 0.0 => format!("{float:.1}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// A setting that is not the default: with its value where the server shows it.
fn setting(setting: &Value) -> String {
    let key = text(&setting["key"]);
    setting.get("value").map(|value| format!("{key}={}", text(value))).unwrap_or(key)
}

/// The status as text.
fn page(health: &Value, stats: &Value) -> String {
    let mut page = format!("status     {}\n", text(&health["status"]));
    for (name, state) in health["services"].as_object().into_iter().flatten() {
        let detail = health["details"].get(name).map(|detail| format!(": {}", text(detail))).unwrap_or_default();
        page += &format!("service    {name} {}{detail}\n", text(state));
    }
    page += &format!("streams    {}\n", text(&health["active_streams"]));
    if stats.is_null() {
        page += "models     unknown: the server requires a token (--token-file)\n";
    } else {
        let count = |key: &str| text(&stats[key]);
        page += &format!(
            "requests   {} open, {} rejected, {}, {}, up {} s\n",
            count("requests_open"),
            count("requests_rejected_total"),
            counted(&stats["connections_open"], "connection"),
            counted(&stats["websockets_open"], "WebSocket"),
            count("uptime_s"),
        );
        let settings = stats["configuration"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !settings.is_empty() {
            page += &format!("settings   {}\n", settings.iter().map(setting).collect::<Vec<_>>().join(", "));
        }
        for model in stats["models"].as_array().into_iter().flatten() {
            let count = |key: &str| text(&model[key]);
            page += &format!(
                "model      {}: {}, {} waiting, {}, {}, circuit {}, p50 {} ms, p99 {} ms\n",
                count("name"),
                counted(&model["replicas"], "replica"),
                count("queue_items"),
                counted(&model["items_total"], "item"),
                counted(&model["failures_total"], "failure"),
                count("circuit"),
                count("p50_ms"),
                count("p99_ms"),
            );
        }
    }
    for adapter in health["adapters"].as_array().into_iter().flatten() {
        let count = |key: &str| text(&adapter[key]);
        let failure = adapter.get("failure").map(|failure| format!(": {}", text(failure))).unwrap_or_default();
        page += &format!(
            "adapter    {} ({} to {}) {}, {}, {}, {}, {} in flight, {}{failure}\n",
            count("name"),
            count("source"),
            count("sink"),
            count("state"),
            counted(&adapter["records"], "record"),
            counted(&adapter["results"], "result"),
            counted(&adapter["errors"], "error"),
            count("in_flight"),
            counted(&adapter["reconnects"], "reconnect"),
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn page_has_services_models_and_adapters() {
        let health = json!({
            "status": "degraded",
            "services": {"memory": "healthy", "adapters": "unhealthy"},
            "active_streams": 2,
            "details": {"adapters": "reviews: refused"},
            "adapters": [{"name": "reviews", "source": "redis", "sink": "file", "state": "reconnecting", "failure": "refused",
                "records": 7, "results": 6, "errors": 1, "in_flight": 1, "reconnects": 3}],
        });
        let stats = json!({"requests_open": 1, "connections_open": 1, "uptime_s": 60, "configuration": [{"key": "auth.dir"},
            {"key": "http.requests_max", "value": 77}], "models": [{"name": "sentiment", "replicas": 2, "p50_ms": 1.25}]});
        expect![[r#"
            status     degraded
            service    adapters unhealthy: reviews: refused
            service    memory healthy
            streams    2
            requests   1 open, - rejected, 1 connection, - WebSockets, up 60 s
            settings   auth.dir, http.requests_max=77
            model      sentiment: 2 replicas, - waiting, - items, - failures, circuit -, p50 1.2 ms, p99 - ms
            adapter    reviews (redis to file) reconnecting, 7 records, 6 results, 1 error, 1 in flight, 3 reconnects: refused
        "#]]
        .assert_eq(&page(&health, &stats));
        assert!(page(&health, &Value::Null).contains("--token-file"));
    }
}
