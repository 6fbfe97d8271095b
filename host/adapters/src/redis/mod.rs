//! Streams of Redis as sources and sinks.
//!
//! - `source`: reads as a consumer of a group: first pending entries of this consumer or of idle ones, then new entries. Entries are
//!   acknowledged after their results are written.
//! - `sink`: appends entries with the result as a field and its headers as further fields.

mod sink;
mod source;

use std::path::Path;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, IntoConnectionInfo as _, RedisError};

pub use sink::RedisSink;
#[cfg(feature = "kafka")]
pub(crate) use source::host_name;
pub use source::{RedisCommitter, RedisSource, open};

use crate::driver::DriverError;

/// The field of an entry with the key of its record.
const KEY_FIELD: &str = "key";
/// The longest password file, in bytes.
const PASSWORD_BYTES_MAX: u64 = 4096;

/// Connects to a server. `response_timeout` bounds each command.
pub(crate) async fn connect(
    url: &str,
    password_file: &Path,
    timeout: Duration,
    response_timeout: Duration,
) -> Result<MultiplexedConnection, DriverError> {
    // The error of a URL may contain its password.
    let invalid = || DriverError::Config("the URL of Redis must be redis://[user@]host:port/database".to_owned());
    let mut info = url.into_connection_info().map_err(|_| invalid())?;
    if !password_file.as_os_str().is_empty() {
        let password = secret(password_file)?;
        let settings = info.redis_settings().clone().set_password(password);
        info = info.set_redis_settings(settings);
    }
    let client = Client::open(info).map_err(|_| invalid())?;
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(response_timeout));
    client.get_multiplexed_async_connection_with_config(&config).await.map_err(|error| failure(&error))
}

/// The content of a file with a secret, without its line end.
///
/// # Errors
///
/// The file cannot be read, or has more than 4,096 bytes.
pub fn secret(path: &Path) -> Result<String, DriverError> {
    secret_within(path, PASSWORD_BYTES_MAX)
}

/// [`secret`] with another bound.
pub(crate) fn secret_within(path: &Path, bytes_max: u64) -> Result<String, DriverError> {
    let unreadable = |reason: String| DriverError::Config(format!("{} cannot be read: {reason}", path.display()));
    let meta = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if meta.len() > bytes_max {
        return Err(unreadable(format!("it has more than {bytes_max} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn failure(error: &RedisError) -> DriverError {
    match error.code() {
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => DriverError::Denied(format!("Redis refuses: {error}")),
        Some("WRONGTYPE") => DriverError::Config(format!("Redis refuses: {error}")),
        _ if error.kind() == ::redis::ErrorKind::AuthenticationFailed => {
            DriverError::Denied(format!("Redis refuses: {error}"))
        }
        _ => DriverError::transport(format!("Redis: {error}")),
    }
}
