//! The adapters of `[[adapter]]` tables, which run beside the server, and the one of `weir stream`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use weir_adapters::build::Plan;
use weir_adapters::driver::BoxFuture;
use weir_adapters::status::Status;
use weir_adapters::supervisor::{AdapterFailure, Component, ComponentCall, ComponentError, Supervisor};
use weir_config::Adapter;
use weir_runtime::Runtime;
use weir_runtime::components::adapter::{AdapterCall, AdapterComponent, AdapterError};

use crate::pipeline_adapter::PipelineComponent;

/// How often the counters of adapters are published as metrics.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);

/// The running adapters. Dropping this ends them without writing the records in flight.
pub(crate) struct RunningAdapters {
    stop: watch::Sender<bool>,
    adapters: Vec<RunningAdapter>,
    metrics: Option<JoinHandle<()>>,
}

struct RunningAdapter {
    status: Status,
    task: JoinHandle<Result<(), AdapterFailure>>,
}

impl RunningAdapters {
    /// Checks all adapters, then starts them. `on_failure` is called with the name of each one that fails for good, at that time.
    pub(crate) fn start(
        runtime: &Arc<Runtime>,
        adapters: &[Adapter],
        on_failure: fn(&str, &AdapterFailure),
    ) -> anyhow::Result<Self> {
        let mut prepared = Vec::new();
        for adapter in adapters {
            // A random seed, so that two adapters do not retry at the same times.
            let seed = std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), &adapter.name);
            let plan = Plan::with_store(adapter, seed, runtime.events().cloned()).map_err(anyhow::Error::msg)?;
            let component: Arc<dyn Component> = match plan.pipeline.clone() {
                Some(pipeline) => Arc::new(PipelineComponent::new(runtime.clone(), &plan.name, pipeline)?),
                None => Arc::new(RuntimeComponent {
                    component: runtime.adapters().load(&plan.component)?,
                    runtime: runtime.clone(),
                    name: plan.name.clone(),
                    models: plan.models.clone(),
                    settings: plan.settings.clone(),
                }),
            };
            prepared.push((plan, component));
        }
        let (stop, stopped) = watch::channel(false);
        let running = prepared.into_iter().map(|(plan, component)| {
            let status = Status::new(&plan.name, plan.source, plan.sink);
            let supervisor = Supervisor::new(plan.driver, component, plan.bounds, status.clone());
            let (name, stopped) = (plan.name, stopped.clone());
            let task = tokio::spawn(async move {
                let result = supervisor.run(stopped).await;
                result.inspect_err(|failure| on_failure(&name, failure))
            });
            RunningAdapter { status, task }
        });
        let adapters: Vec<RunningAdapter> = running.collect();
        let statuses: Vec<Status> = adapters.iter().map(|adapter| adapter.status.clone()).collect();
        let metrics = (!statuses.is_empty()).then(|| tokio::spawn(publish(statuses)));
        Ok(Self { stop, adapters, metrics })
    }

    /// The status of each adapter.
    pub(crate) fn statuses(&self) -> Vec<Status> {
        self.adapters.iter().map(|adapter| adapter.status.clone()).collect()
    }

    /// Makes the adapters stop reading; they write the records in flight and end.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until every adapter has ended. Returns the failures, as (adapter, reason).
    pub(crate) async fn wait(&mut self) -> Vec<(String, String)> {
        let mut failures = Vec::new();
        for adapter in &mut self.adapters {
            let result = match (&mut adapter.task).await {
                Ok(result) => result.map_err(|failure| failure.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(failure) = result {
                failures.push((adapter.status.name().to_owned(), failure));
            }
        }
        failures
    }
}

impl Drop for RunningAdapters {
    fn drop(&mut self) {
        if let Some(metrics) = &self.metrics {
            metrics.abort();
        }
        for adapter in &self.adapters {
            adapter.task.abort();
        }
    }
}

async fn publish(statuses: Vec<Status>) {
    let mut interval = tokio::time::interval(METRICS_INTERVAL);
    loop {
        interval.tick().await;
        statuses.iter().for_each(Status::publish);
    }
}

/// Opens calls of the runtime's adapter component.
struct RuntimeComponent {
    component: AdapterComponent,
    runtime: Arc<Runtime>,
    name: String,
    models: Vec<String>,
    settings: String,
}

impl Component for RuntimeComponent {
    fn open(&self) -> BoxFuture<'_, Result<ComponentCall, ComponentError>> {
        Box::pin(async move {
            for name in &self.models {
                if !self.runtime.models().iter().any(|model| model.name == *name) {
                    return Err(ComponentError::Config(format!("no model named `{name}` is served")));
                }
                // Texts for a model that is still loading would exhaust their attempts.
                self.runtime.settled(name).await.map_err(ComponentError::Ended)?;
            }
            let opened = self.component.open(&self.name, self.settings.clone()).await;
            let AdapterCall { records, results, instance } = opened.map_err(|error| match error {
                AdapterError::Ended(reason) => ComponentError::Ended(reason),
                other => ComponentError::Config(other.to_string()),
            })?;
            Ok(ComponentCall { records, results, end: Box::pin(instance.ended()) })
        })
    }
}
