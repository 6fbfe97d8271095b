//! The HTTP listener: accepts connections, bounds them, and drains them when the server stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use weir_codec::adapter::health::AdapterReport;
use weir_config::{ChangedSetting, Config};
use weir_runtime::Runtime;

use crate::connection;
use crate::error::ServeError;
use crate::observe::Observer;
use crate::state::EdgeState;
use crate::stats;

/// A listening socket. Connections wait in the kernel until a [`Server`] serves them.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens on an address, `http.listen`.
    ///
    /// # Errors
    ///
    /// The address is in use, not one of this machine, or not permitted for this user.
    pub async fn bind(listen: &str) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen { address: listen.to_owned(), source };
        let socket = TcpListener::bind(listen).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address })
    }

    /// The address, with the port that was chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A server that is not yet serving.
pub struct Server {
    listener: TcpListener,
    state: Arc<EdgeState>,
}

impl Server {
    /// Creates a server from its parts.
    ///
    /// # Errors
    ///
    /// The runtime has no gateway, or a setting is invalid.
    pub fn new(
        config: &Config,
        listener: Listener,
        runtime: Arc<Runtime>,
        observer: Observer,
    ) -> Result<Self, ServeError> {
        let is_loopback = listener.address.ip().to_canonical().is_loopback();
        let state = EdgeState::new(config, is_loopback, runtime, observer)?;
        Ok(Self { listener: listener.socket, state: Arc::new(state) })
    }

    /// The same server, which adds adapters to its health. `reports` gives their state at the time of the call.
    pub fn with_adapters(self, reports: impl Fn() -> Vec<AdapterReport> + Send + Sync + 'static) -> Self {
        // It cannot be set already: only this method sets it, and the server is not shared yet.
        let _ = self.state.adapters.set(Box::new(reports));
        self
    }

    /// The same server, which shows settings in `/v1/stats`: those that differ from their defaults.
    pub fn with_settings(self, changed: &[ChangedSetting]) -> Self {
        // As above.
        let _ = self.state.configuration.set(stats::configuration(changed));
        self
    }

    /// Serves until `stop` resolves. Then reports not ready, answers only probes, waits up to `http.drain_timeout_ms`
    /// for open requests, and aborts the remaining ones. Returns the number of aborted requests, including held
    /// connections of subscribers.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> usize {
        let Self { listener, state } = self;
        let _upkeep = state.observer.start_upkeep();
        let connections = Arc::new(Semaphore::new(state.config.connections_max as usize));
        let (stopping, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        accept_until(stop, &listener, &connections, &state, &stopped, &mut tasks).await;

        state.drain();
        state.runtime.drain();
        let deadline = Instant::now() + Duration::from_millis(state.config.drain_timeout_ms);
        let drained = async {
            state.requests.wait_idle().await;
            state.subscribers.wait_idle().await;
        };
        let drained = async { drop(tokio::time::timeout_at(deadline.into(), drained).await) };
        accept_until(drained, &listener, &connections, &state, &stopped, &mut tasks).await;
        drop(listener);

        let cut_count = state.requests.taken() + state.subscribers.held();
        // Connections send the last bytes of their responses; idle ones are closed.
        let flush = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
        let _ = stopping.send(true);
        let _ = tokio::time::timeout(flush, async { while tasks.join_next().await.is_some() {} }).await;
        tasks.shutdown().await;
        cut_count
    }
}

/// Accepts and serves connections until `end` resolves.
async fn accept_until(
    end: impl Future<Output = ()>,
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
    state: &Arc<EdgeState>,
    stopped: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) {
    tokio::pin!(end);
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = tokio::select! {
            biased;
            () = &mut end => return,
            accepted = accept(listener, connections) => accepted,
        };
        let Some((stream, accept_permit)) = accepted else { continue };
        let client = stream.peer_addr().map_or(0, |address| connection::client_number(address.ip()));
        // The connection is closed without a response: to answer, the server would have to read a request.
        let Ok(permit) = state.connections.try_take(client) else {
            counter!("weir_http_connections_refused_total").increment(1);
            continue;
        };
        let state = state.clone();
        let stopped = stopped.clone();
        tasks.spawn(async move {
            gauge!("weir_http_connections_open").increment(1);
            connection::serve(state, stream, client, stopped).await;
            gauge!("weir_http_connections_open").decrement(1);
            drop((accept_permit, permit));
        });
    }
}

/// The next connection, once there is a permit for it.
async fn accept(listener: &TcpListener, connections: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            // For example out of file descriptors, or the peer disconnected early. The server continues.
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(10)).await;
            None
        }
    }
}
