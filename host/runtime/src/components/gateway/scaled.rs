//! The stateless instances, which are started and ended with the load. Their maximum number is the bound on requests
//! divided by the requests of one instance, rounded up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::components::gateway::admission::{HandleResult, OpenRequest, Request, RequestQueue};
use crate::components::gateway::run::InstanceRun;
use crate::components::gateway::state::{GatewayFactory, Role};

/// Another instance is started when a request has waited for this long: all running instances are computing.
const START_AFTER: Duration = Duration::from_millis(20);
/// The time after which another instance is started when one could not be created beside others.
const START_AGAIN_AFTER: Duration = Duration::from_secs(1);

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
    /// When an instance could last not be created.
    failed_at: Option<Instant>,
}

impl Counts {
    /// Counts a new instance, if one may start now.
    fn start(&mut self, instances_max: usize, now: Instant) -> bool {
        let waits = self.failed_at.is_some_and(|at| now.saturating_duration_since(at) < START_AGAIN_AFTER);
        if self.starting > 0 || self.instances >= instances_max || waits {
            return false;
        }
        self.instances += 1;
        self.starting += 1;
        true
    }

    /// Records that an instance that was starting could not be created. Returns whether there is no other, so that
    /// nothing will answer the waiting requests.
    fn handle_failed(&mut self, now: Instant) -> bool {
        let is_only_one = self.instances == 1;
        // Without instances, each request tries again and gets the error.
        self.failed_at = (!is_only_one).then_some(now);
        is_only_one
    }
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
            if !self.0.queue.wants_instance(START_AFTER) || !counts.start(instances_max, Instant::now()) {
                return;
            }
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
            if shared.lock().handle_failed(Instant::now()) {
                shared.queue.fail(&error);
            }
            return;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_start_beside_another_instance_leaves_it_the_requests() {
        let (mut counts, now) = (Counts::default(), Instant::now());
        assert!(counts.start(2, now));
        counts.starting = 0;
        assert!(counts.start(2, now) && !counts.start(2, now), "one starts at a time");
        assert!(!counts.handle_failed(now), "the first instance runs");
        (counts.instances, counts.starting) = (1, 0);
        assert!(!counts.start(2, now) && counts.start(2, now + START_AGAIN_AFTER));
    }

    #[test]
    fn failed_start_of_the_only_instance_fails_the_requests() {
        let (mut counts, now) = (Counts::default(), Instant::now());
        assert!(counts.start(2, now));
        assert!(counts.handle_failed(now));
        counts = Counts { instances: 0, starting: 0, ..counts };
        assert!(counts.start(2, now), "the next request tries again");
    }
}
