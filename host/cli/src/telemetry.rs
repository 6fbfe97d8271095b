//! The export of traces and metrics, as configured.

use std::time::Duration;

use anyhow::Context as _;
use weir_config::Config;
use weir_edge::Observer;
use weir_telemetry::{Exporter, Settings};

/// Time for what waits when the program ends.
pub(crate) const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts the export; none if no receiver is configured.
pub(crate) fn start(config: &Config, observer: &Observer) -> anyhow::Result<Option<Exporter>> {
    let log = &config.log;
    if log.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let instance = match std::env::var("WEIR_INSTANCE") {
        Ok(instance) if !instance.is_empty() => instance,
        _ => format!("{}-{}", config.http.listen, std::process::id()),
    };
    let settings = Settings {
        endpoint: log.otlp_endpoint.parse().context("log.otlp_endpoint")?,
        metrics_interval: Duration::from_millis(log.otlp_metrics_interval_ms),
        sample_percent: log.otlp_sample_percent,
        service: "weir".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        instance,
    };
    let observer = observer.clone();
    Ok(Some(weir_telemetry::start(settings, move || observer.render())))
}
