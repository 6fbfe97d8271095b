//! Connections to other systems as streams of bytes: TCP, with or without TLS.

use std::path::Path;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use weir_tls::Roots;

use crate::driver::DriverError;

/// A connection as bytes, with or without TLS.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for T {}

/// Connects to a port of a host.
pub(crate) async fn connect(host: &str, port: u16) -> Result<TcpStream, DriverError> {
    let stream = TcpStream::connect((host, port)).await;
    let stream = stream.map_err(|error| DriverError::transport(format!("{host}:{port}: {error}")))?;
    // Best effort: without it, requests are only slower.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Begins TLS on a connection. The certificate of the host is verified with the root certificates of a file (PEM), or with those of
/// Mozilla if the path is empty.
pub(crate) async fn secure(
    host: &str,
    stream: impl ByteStream + 'static,
    ca_file: &Path,
) -> Result<Box<dyn ByteStream>, DriverError> {
    let name = weir_tls::server_name(host)
        .map_err(|_| DriverError::Config(format!("`{host}` is not the name of a server")))?;
    let secured = if ca_file.as_os_str().is_empty() {
        weir_tls::connect(name, stream).await
    } else {
        let unusable = |error| DriverError::Config(format!("{}: {error}", ca_file.display()));
        Roots::read(ca_file).map_err(unusable)?.connect(name, stream).await
    };
    Ok(Box::new(secured.map_err(|error| DriverError::transport(format!("TLS with {host}: {error}")))?))
}
