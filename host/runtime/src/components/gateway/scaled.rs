//! The stateless instances, which are started and ended with the load. Their maximum number is the bound on requests
//! divided by the requests of one instance, rounded up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::components::gateway::admission::{HandleResult, OpenRequest, Request, RequestQueue};
use crate::components::gateway::run::InstanceRun;
use crate::components::gateway::state::{GatewayFactory, Role};

/// Another instance is started when a request has waited for this long: all running instances are computing.
const START_AFTER: Duration = Duration::from_millis(20);

/// Dispatches requests to instances, and starts instances as needed.
#[derive(Clone)]
pub(crate) struct ScaledInstances(Arc<Shared>);

struct Shared {
    factory: Arc<GatewayFactory>,
    queue: Arc<RequestQueue>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Instances whose memory is not free yet.
    instances: usize,
    /// The instances that are being created.
    starting: usize,
}

impl ScaledInstances {
    pub(crate) fn new(factory: Arc<GatewayFactory>, queue: Arc<RequestQueue>) -> Self {
        Self(Arc::new(Shared { factory, queue, counts: Mutex::default() }))
    }

    pub(crate) async fn handle(&self, request: Request, open: Arc<OpenRequest>, body_bytes: u64) -> HandleResult {
        let host = self.0.factory.host();
        self.0.queue.submit(request, open, body_bytes, host, || self.start_if_needed()).await
    }

    fn start_if_needed(&self) {
        let instances_max = self.0.factory.config().instances_max;
        {
            let mut counts = self.0.lock();
            if counts.starting > 0 || counts.instances >= instances_max || !self.0.queue.wants_instance(START_AFTER) {
                return;
            }
            counts.instances += 1;
            counts.starting += 1;
        }
        let instance = CountedInstance { shared: self.0.clone(), is_starting: true };
        tokio::spawn(instance.run());
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One instance, counted until it is dropped.
struct CountedInstance {
    shared: Arc<Shared>,
    is_starting: bool,
}

impl CountedInstance {
    async fn run(mut self) {
        let shared = self.shared.clone();
        let config = shared.factory.config();
        let run = InstanceRun {
            factory: &shared.factory,
            queue: &shared.queue,
            role: Role::Stateless,
            head_timeout: config.head_timeout,
            // The time limits of the guest itself are shorter.
            hang_timeout: config.head_timeout,
            idle_timeout: Some(config.idle_timeout),
        };
        let result = run.run(None, || self.set_started()).await;
        let Err(error) = result else { return };
        if self.is_starting {
            tracing::error!(error = format!("{error:#}"), "a gateway instance cannot be created");
            return shared.queue.fail(&error);
        }
        // When the process ends, instances are dropped with open requests. That loss is expected and not reported.
        if !shared.factory.is_draining() {
            tracing::error!(error = format!("{error:#}"), "a gateway instance is lost");
            metrics::counter!("weir_gateway_instances_lost_total").increment(1);
        }
    }

    fn set_started(&mut self) {
        metrics::counter!("weir_gateway_instances_total").increment(1);
        self.is_starting = false;
        self.shared.lock().starting -= 1;
    }
}

impl Drop for CountedInstance {
    fn drop(&mut self) {
        let mut counts = self.shared.lock();
        counts.instances -= 1;
        counts.starting -= usize::from(self.is_starting);
    }
}
