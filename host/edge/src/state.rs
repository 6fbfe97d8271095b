//! The state that all connections share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;
use weir_codec::adapter::health::AdapterReport;
use weir_config::{AuthMode, Config, Http, Switch, WebSocketCompression};
use weir_events::Store;
use weir_runtime::Runtime;
use weir_runtime::gateway::Gateway;
use weir_websocket::{ContextTakeover, DeflateConfig};

use crate::error::ServeError;
use crate::head_checks::HeadChecks;
use crate::observe::Observer;
use crate::share::SharedPool;
use crate::shedding::Shedder;
use crate::sse::subscribers::Subscribers;
use crate::stats::{self, SharedSnapshot, StatsSource};

/// Most concurrent requests to `/livez` and `/readyz`: more than any prober sends.
const PROBES_MAX: u32 = 64;
/// Most responses of `/metrics` and `/v1/stats` that are not sent yet.
const SCRAPES_MAX: u32 = 16;
/// Most concurrent streams of `/v1/stats`.
const WATCHERS_MAX: u32 = 256;
/// One of this many connections may linger.
const LINGERING_DIVISOR: u32 = 4;

/// Gives the state of adapters.
pub(crate) type AdapterReports = Box<dyn Fn() -> Vec<AdapterReport> + Send + Sync>;

pub(crate) struct EdgeState {
    pub(crate) config: Http,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) gateway: Gateway,
    pub(crate) events: Store,
    pub(crate) observer: Observer,
    pub(crate) head_checks: HeadChecks,
    /// Whether `auth.mode` is `required`.
    pub(crate) needs_token: bool,
    pub(crate) connections: Arc<SharedPool>,
    /// Connections that discard what their client sends after its last response.
    pub(crate) lingering: Arc<SharedPool>,
    pub(crate) requests: Arc<SharedPool>,
    pub(crate) shedder: Shedder,
    pub(crate) probes: Arc<SharedPool>,
    pub(crate) scrapes: Arc<SharedPool>,
    /// Streams of `/v1/stats`.
    pub(crate) watchers: Arc<SharedPool>,
    /// The last snapshot of these streams.
    pub(crate) shared_stats: SharedSnapshot,
    /// When the server was created.
    pub(crate) start_time: Instant,
    pub(crate) subscribers: Subscribers,
    /// Whether events are compressed for clients that accept gzip.
    pub(crate) gzip: bool,
    /// How messages of WebSockets are compressed; none: they are not.
    pub(crate) deflate: Option<DeflateConfig>,
    /// Gives the state of the adapters that run beside the server; empty where there are none.
    pub(crate) adapters: OnceLock<AdapterReports>,
    /// The settings that `/v1/stats` shows.
    pub(crate) configuration: OnceLock<Value>,
    next_id: AtomicU64,
    /// Asking the system for it takes a system call.
    process_id: u32,
    draining: AtomicBool,
    /// Set to true to close WebSockets, which do not end by themselves.
    pub(crate) closing: watch::Sender<bool>,
}

impl EdgeState {
    /// `is_loopback` is true if the listener can be reached from this machine only.
    pub(crate) fn new(
        config: &Config,
        is_loopback: bool,
        runtime: Arc<Runtime>,
        observer: Observer,
    ) -> Result<Self, ServeError> {
        let http = &config.http;
        let share = http.client_share_percent;
        Ok(Self {
            gateway: runtime.gateway().cloned().ok_or(ServeError::NoGateway)?,
            events: runtime.events().cloned().ok_or(ServeError::NoGateway)?,
            runtime,
            observer,
            head_checks: HeadChecks::new(config, is_loopback)?,
            needs_token: config.auth.mode == AuthMode::Required,
            connections: SharedPool::new(http.connections_max, share),
            lingering: SharedPool::new((http.connections_max / LINGERING_DIVISOR).max(1), share),
            requests: SharedPool::new(http.requests_max, share),
            shedder: Shedder::new(http),
            probes: SharedPool::new(PROBES_MAX, share),
            scrapes: SharedPool::new(SCRAPES_MAX, share),
            watchers: SharedPool::new(WATCHERS_MAX, share),
            shared_stats: SharedSnapshot::default(),
            start_time: Instant::now(),
            subscribers: Subscribers::new(config.events.subscribers_max, share, config.auth.connections_max),
            gzip: config.events.gzip == Switch::On,
            deflate: deflate(http),
            config: http.clone(),
            adapters: OnceLock::new(),
            configuration: OnceLock::new(),
            next_id: AtomicU64::new(0),
            process_id: std::process::id(),
            draining: AtomicBool::new(false),
            closing: watch::Sender::new(false),
        })
    }

    /// Accepts no new request from now on, and closes WebSockets.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.closing.send_replace(true);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The body of `/v1/stats`.
    pub(crate) fn stats(&self) -> Bytes {
        self.runtime.report();
        stats::body(&self.observer.render(), self.configuration.get(), self.start_time.elapsed())
    }

    /// A request id that is unique in this process.
    pub(crate) fn new_request_id(&self) -> String {
        format!("edge-{:x}-{:x}", self.process_id, self.next_id.fetch_add(1, Ordering::Relaxed))
    }
}

impl StatsSource for EdgeState {
    fn recent_stats(&self) -> Bytes {
        self.shared_stats.get(Instant::now(), || self.stats())
    }

    fn is_draining(&self) -> bool {
        Self::is_draining(self)
    }
}

/// How messages of WebSockets are compressed.
fn deflate(http: &Http) -> Option<DeflateConfig> {
    let takeover = match http.websocket_compression {
        WebSocketCompression::Off => return None,
        WebSocketCompression::Message => ContextTakeover::Never,
        WebSocketCompression::Connection => ContextTakeover::Allowed,
    };
    Some(DeflateConfig { takeover, window_bits: http.websocket_window_bits })
}
