//! Streams of Redis as sources and sinks.
//!
//! - `source`: reads as a consumer of a group: first pending entries of this consumer or of idle ones, then new entries. Entries are
//!   acknowledged after their results are written.
//! - `sink`: appends entries with the result as a field and its headers as further fields.

mod sink;
mod source;

use std::io::Read as _;
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
    let mut text = String::new();
    // The length of what is no regular file is not known before it is read.
    let file = std::fs::File::open(path).map_err(|error| unreadable(error.to_string()))?;
    file.take(bytes_max + 1).read_to_string(&mut text).map_err(|error| unreadable(error.to_string()))?;
    if text.len() as u64 > bytes_max {
        return Err(unreadable(format!("it has more than {bytes_max} bytes")));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_bounded_in_files_of_every_kind() {
        let path = std::env::temp_dir().join(format!("weir-secret-{}", std::process::id()));
        let with = |text: &str| {
            std::fs::write(&path, text).unwrap();
            secret_within(&path, 8).map_err(|error| error.to_string())
        };
        assert_eq!(with("12345678"), Ok("12345678".to_owned()));
        assert_eq!(with("1234567\n"), Ok("1234567".to_owned()));
        let too_long = |path: &Path| Err(format!("{} cannot be read: it has more than 8 bytes", path.display()));
        assert_eq!(with("123456789"), too_long(&path));
        std::fs::remove_file(&path).unwrap();
        // It has no end, and its length is 0.
        let zeros = Path::new("/dev/zero");
        assert_eq!(secret_within(zeros, 8).map_err(|error| error.to_string()), too_long(zeros));
    }
}
