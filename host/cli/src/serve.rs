//! `weir serve`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use weir_adapters::status::Status;
use weir_codec::inference::models::Model;
use weir_codec::inference::readiness::StepModels;
use weir_config::AuthMode;
use weir_edge::{Listener, Observer, Server};
use weir_runtime::Runtime;
use weir_runtime::types::{ModelInfo, ModelKind};

use crate::adapters::RunningAdapters;
use crate::arguments::{Serve, add_models, set_adapters};
use crate::builtin::BUILTIN;
use crate::generation::GET_LANGUAGE_MODEL;
use crate::setup::beside_program;
use crate::start_files::NewFiles;
use crate::start_lines::StartLines;
use crate::{logs, telemetry};

pub(crate) fn main(arguments: &Serve) -> anyhow::Result<ExitCode> {
    let mut more = Vec::new();
    if let Some(listen) = &arguments.listen {
        more.push(("http.listen", listen.clone()));
    }
    let mut config = arguments.setup.load(&more)?;
    add_models(&mut config, &arguments.models)?;
    set_adapters(&mut config, &arguments.adapters)?;
    logs::start(&config.log)?;
    allow_files(&config.http);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no threads")?;
    let code = runtime.block_on(serve(config, arguments.json));
    // Without waiting for replicas, whose threads may be in the middle of a computation.
    runtime.shutdown_background();
    code
}

/// Raises the limit of open files as far as the system allows: each connection is one.
fn allow_files(http: &weir_config::Http) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files) if files < u64::from(http.connections_max) => {
            tracing::warn!(files, "the limit of open files is below http.connections_max");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

/// The problems of the models that the configuration names for the steps, as in `/readyz`.
fn unmet_steps(steps: &weir_config::Steps, models: &[ModelInfo]) -> Vec<String> {
    let kind = |kind| match kind {
        ModelKind::TextClassification => "text-classification",
        ModelKind::TokenClassification => "token-classification",
        ModelKind::FeatureExtraction => "feature-extraction",
    };
    let model = |info: &ModelInfo| Model {
        name: info.name.clone(),
        kind: kind(info.kind),
        labels: Vec::new(),
        tokens_max: info.tokens_max,
        ready: info.ready,
        reason: info.reason.clone(),
    };
    let models: Vec<Model> = models.iter().map(model).collect();
    StepModels { sentiment: &steps.sentiment, summary: &steps.summary, entities: &steps.entities }.unmet(&models)
}

/// The settings that differ from their defaults. The folder of models beside the program is a default.
fn changed(config: &weir_config::Config) -> Vec<weir_config::ChangedSetting> {
    let mut config = config.clone();
    if beside_program().is_some_and(|dir| dir == config.models.dir) {
        config.models.dir = std::path::PathBuf::new();
    }
    weir_config::changed_settings(&config)
}

async fn serve(config: weir_config::Config, json: bool) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let observer = Observer::install()?;
    let exporter = telemetry::start(&config, &observer)?;
    // Registered first, so that no signal is lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Before any file is created, since an address in use is the most likely reason of a failed start.
    let listener = Listener::bind(&config.http.listen).await?;
    let address = listener.address();
    let new_files = NewFiles::of(&config.events);
    let started = async {
        let runtime = Arc::new(Runtime::serve(&config, BUILTIN).await?);
        let adapters = RunningAdapters::start(&runtime, &config.adapter, |adapter, failure| {
            tracing::error!(adapter, %failure, "the adapter has stopped");
        })?;
        let mut server = Server::new(&config, listener, runtime.clone(), observer)?.with_settings(&changed(&config));
        let statuses = adapters.statuses();
        if !statuses.is_empty() {
            server = server.with_adapters(move || statuses.iter().map(Status::report).collect());
        }
        anyhow::Ok((runtime, adapters, server))
    };
    let (runtime, mut adapters, server) = match started.await {
        Ok(started) => started,
        Err(error) => {
            new_files.remove();
            return Err(error);
        }
    };
    {
        let mut out = std::io::stdout().lock();
        let models = runtime.models().into_iter().map(|model| model.name);
        let language_models = runtime.language_models().into_iter().map(|model| model.name);
        let names: Vec<String> = models.chain(language_models).collect();
        let lines = StartLines { address, config: &config, models: &names };
        match (json, out.is_terminal()) {
            (true, _) => writeln!(out, "{}", lines.json())?,
            (false, true) => write!(out, "{}", lines.text())?,
            (false, false) => writeln!(out, "listening on http://{address}")?,
        }
        out.flush()?;
    }
    if !address.ip().to_canonical().is_loopback() && config.auth.mode == AuthMode::None {
        tracing::warn!(
            %address,
            "other machines can reach this address and there is no authentication: channels, sessions, pipelines and \
             executions are refused (403), models answer any client; set auth.mode=required and auth.dir, or listen on 127.0.0.1"
        );
    }
    let models = runtime.models();
    let language_models = runtime.language_models();
    if models.is_empty() && language_models.is_empty() {
        let dir = &config.models.dir;
        let place = match dir.as_os_str().is_empty() {
            true => "there is no folder `models` beside the program".to_owned(),
            false => format!("{} has none", dir.display()),
        };
        tracing::warn!("no models: {place}; give a folder with --models-dir, or one model with --model NAME=DIR");
    }
    if language_models.is_empty() && config.upstream.is_empty() && !models.is_empty() {
        tracing::info!("no model generates text: {GET_LANGUAGE_MODEL}");
    }
    for unmet in unmet_steps(&config.steps, &models) {
        tracing::warn!("not ready: {unmet}");
    }
    let names = models.into_iter().map(|model| model.name);
    for model in names.chain(language_models.into_iter().map(|model| model.name)) {
        let runtime = runtime.clone();
        tokio::spawn(async move {
            match runtime.settled(&model).await {
                Ok(()) => tracing::info!(model, after_ms = start.elapsed().as_millis() as u64, "ready"),
                Err(reason) => tracing::error!(model, reason, "cannot answer"),
            }
        });
    }
    let stop = async {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping: open streams may finish, new requests are refused");
    };
    let drain_timeout = Duration::from_millis(config.http.drain_timeout_ms);
    let serve_future = async {
        let (signal, stop_received) = tokio::sync::oneshot::channel();
        let stop = async {
            stop.await;
            // An error means that the receiver, which is below, was dropped.
            let _ = signal.send(());
        };
        // Adapters write their records in flight while the streams of clients finish.
        let drain = async {
            if stop_received.await.is_err() {
                return;
            }
            adapters.stop();
            if tokio::time::timeout(drain_timeout, adapters.wait()).await.is_err() {
                tracing::warn!("adapters were aborted after http.drain_timeout_ms: their records will be read again");
            }
        };
        tokio::join!(server.serve(stop), drain).0
    };
    let second_signal = async {
        // The first signal is also received by `stop`; the second ends the process immediately.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        std::io::Result::Ok(())
    };
    tokio::select! {
        aborted = serve_future => {
            let closed = runtime.close().await;
            if let Some(exporter) = exporter {
                exporter.finish(telemetry::FINISH_TIMEOUT).await;
            }
            if let Err(error) = &closed {
                let path = config.events.path.display();
                tracing::error!(%path, %error, "the last write of the channel store failed: events may be lost");
            }
            if aborted > 0 {
                tracing::warn!(requests = aborted, "requests were aborted after http.drain_timeout_ms");
            }
            if aborted > 0 || closed.is_err() {
                return Ok(ExitCode::FAILURE);
            }
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        _ = second_signal => {
            tracing::warn!("stopped at the second signal");
            Ok(ExitCode::FAILURE)
        }
    }
}
