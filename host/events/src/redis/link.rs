//! The connection to Redis that all commands share, and its state.
//!
//! The connection manager of the `redis` crate reconnects automatically. This module does not hide a reconnection:
//! whether a channel's sequence may continue depends on the run of the server that a command was sent to.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, RedisError, Value};

use crate::config::RedisConfig;
use crate::error::{Error, OpenError, lock};

#[derive(Debug)]
pub(crate) struct Link {
    client: Client,
    pub(crate) config: RedisConfig,
    server: tokio::sync::Mutex<Option<ServerConnection>>,
    failure: Mutex<Option<Failure>>,
}

/// A connection, and the run id of the server that it is connected to.
#[derive(Debug, Clone)]
pub(crate) struct ServerConnection {
    pub(crate) connection: MultiplexedConnection,
    pub(crate) run: Arc<str>,
}

#[derive(Debug, Clone)]
struct Failure {
    at: Instant,
    reason: String,
}

impl Link {
    pub(crate) fn new(config: RedisConfig) -> Result<Self, OpenError> {
        let client = Client::open(config.url.as_str()).map_err(OpenError::Url)?;
        Ok(Self { client, config, server: tokio::sync::Mutex::new(None), failure: Mutex::new(None) })
    }

    /// The shared connection; connects again if it was lost, but not more often than every `retry_ms`.
    pub(crate) async fn server(&self) -> Result<ServerConnection, Error> {
        let mut server = self.server.lock().await;
        if let Some(server) = server.as_ref() {
            return Ok(server.clone());
        }
        let retry = Duration::from_millis(self.config.retry_ms);
        if let Some(failure) = lock(&self.failure).as_ref().filter(|failure| failure.at.elapsed() < retry) {
            return Err(self.unavailable(&failure.reason));
        }
        let result = self.connect(Some(Duration::from_millis(self.config.timeout_ms))).await?;
        *server = Some(result.clone());
        Ok(result)
    }

    /// A new connection for the caller; each command on it may take `response_max`.
    pub(crate) async fn connect(&self, response_max: Option<Duration>) -> Result<ServerConnection, Error> {
        let timeout = Duration::from_millis(self.config.timeout_ms);
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(response_max);
        let connect = async {
            let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
            let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
            Ok::<_, RedisError>((connection, info))
        };
        let result = match tokio::time::timeout(timeout, connect).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", timeout.as_millis())),
        };
        match result {
            Ok((connection, info)) => {
                let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default();
                if lock(&self.failure).take().is_some() {
                    tracing::info!("Redis answers again");
                }
                Ok(ServerConnection { connection, run: run.trim().into() })
            }
            Err(reason) => Err(self.fail(reason)),
        }
    }

    /// Runs `request` with the shared connection, within `timeout_ms`.
    pub(crate) async fn request<T, F>(&self, request: impl FnOnce(ServerConnection) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let timeout = Duration::from_millis(self.config.timeout_ms);
        let operation = async {
            let server = self.server().await?;
            match request(server).await {
                Ok(reply) => Ok(reply),
                Err(error) => Err(self.handle_error(&error).await),
            }
        };
        match tokio::time::timeout(timeout, operation).await {
            Ok(reply) => reply,
            Err(_) => {
                if let Ok(mut server) = self.server.try_lock() {
                    *server = None;
                }
                Err(self.fail(format!("no answer within {} ms", timeout.as_millis())))
            }
        }
    }

    /// Sends one command on the shared connection.
    pub(crate) async fn command<T: FromRedisValue>(&self, command: redis::Cmd) -> Result<T, Error> {
        self.request(|mut server| async move { command.query_async(&mut server.connection).await }).await
    }

    /// Checks that the server responds; returns its run id.
    pub(crate) async fn ping(&self) -> Result<Arc<str>, Error> {
        let ping = |mut server: ServerConnection| async move {
            redis::cmd("PING").query_async::<Value>(&mut server.connection).await?;
            Ok(server.run)
        };
        self.request(ping).await
    }

    /// Converts the error of a command, and drops the shared connection if it is not usable any more.
    async fn handle_error(&self, error: &RedisError) -> Error {
        // The server responded, so the connection works. Some errors are temporary.
        if error.code().is_some() && !error.is_unrecoverable_error() {
            let reason = error.to_string();
            let temporary = [
                "LOADING",
                "BUSY",
                "OOM",
                "READONLY",
                "MASTERDOWN",
                "CLUSTERDOWN",
                "TRYAGAIN",
                "MISCONF",
                "NOREPLICAS",
            ];
            return if error.code().is_some_and(|code| temporary.contains(&code)) {
                self.unavailable(&reason)
            } else {
                Error::Other(format!("Redis refused: {reason}"))
            };
        }
        *self.server.lock().await = None;
        self.fail(error.to_string())
    }

    pub(crate) fn fail(&self, reason: String) -> Error {
        let error = self.unavailable(&reason);
        let mut failure = lock(&self.failure);
        if failure.is_none() {
            tracing::warn!(%reason, "Redis does not answer");
        }
        *failure = Some(Failure { at: Instant::now(), reason });
        error
    }

    fn unavailable(&self, reason: &str) -> Error {
        Error::unavailable(format!("Redis does not answer: {reason}"), self.config.retry_ms.max(1_000))
    }
}
