//! The instances in front, which come and go with the load. There are never more than the configuration says: the bound on
//! requests divided by what one instance serves, rounded up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::components::gateway::{Maker, OpenRequest, Request};
use crate::components::gateway::admission::{Answer, RequestQueue};
use crate::components::gateway::run::InstanceRun;

/// Another instance is started when a request has waited for this long: those that are there are computing.
const START_AFTER: Duration = Duration::from_millis(20);

/// Hands requests to instances, and starts as many as are needed.
#[derive(Clone)]
pub(crate) struct Front(Arc<Shared>);

struct Shared {
    maker: Arc<Maker>,
    queue: Arc<RequestQueue>,
    instances: Mutex<Instances>,
}

/// How many there are.
#[derive(Default)]
struct Instances {
    /// Those whose memory is not free yet.
    live: usize,
    /// Those of them that are being made.
    starting: usize,
}

impl Front {
    pub(crate) fn new(maker: Arc<Maker>, queue: Arc<RequestQueue>) -> Self {
        Self(Arc::new(Shared { maker, queue, instances: Mutex::default() }))
    }

    /// Answers a request.
    pub(crate) async fn handle(&self, request: Request, open: Arc<OpenRequest>, body_bytes: u64) -> Answer {
        self.0.queue.submit(request, open, body_bytes, || self.start_if_needed()).await
    }

    fn start_if_needed(&self) {
        let instances_max = self.0.maker.config().instances_max;
        {
            let mut instances = self.0.lock();
            if instances.starting > 0 || instances.live >= instances_max || !self.0.queue.wants_another(START_AFTER) {
                return;
            }
            instances.live += 1;
            instances.starting += 1;
        }
        let start = Start { shared: self.0.clone(), is_starting: true };
        tokio::spawn(start.run());
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Instances> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One instance that is counted.
struct Start {
    shared: Arc<Shared>,
    is_starting: bool,
}

impl Start {
    async fn run(mut self) {
        let shared = self.shared.clone();
        let config = shared.maker.config();
        let run = InstanceRun {
            maker: &shared.maker,
            queue: &shared.queue,
            memory_bytes_max: config.memory_bytes_max,
            variable: None,
            head_timeout: config.head_timeout,
            // The guest answers in less by itself.
            hang_timeout: config.head_timeout,
            idle_timeout: Some(config.idle_timeout),
        };
        let ended = run.run(None, || self.started()).await;
        let Err(error) = ended else { return };
        if self.is_starting {
            tracing::error!(error = format!("{error:#}"), "a gateway instance cannot be made");
            return shared.queue.fail(&error);
        }
        // The end of the process drops instances where they stand: that is no loss to report.
        if !shared.maker.is_draining() {
            tracing::error!(error = format!("{error:#}"), "a gateway instance is lost");
            metrics::counter!("weir_gateway_instances_lost_total").increment(1);
        }
    }

    fn started(&mut self) {
        metrics::counter!("weir_gateway_instances_total").increment(1);
        self.is_starting = false;
        self.shared.lock().starting -= 1;
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        let mut instances = self.shared.lock();
        instances.live -= 1;
        instances.starting -= usize::from(self.is_starting);
    }
}
