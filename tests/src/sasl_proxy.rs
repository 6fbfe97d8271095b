//! A proxy before a Kafka broker, which admits clients that authenticate with SASL PLAIN: the broker of the tests offers no PLAIN.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The keys of requests, and error codes.
const SASL_HANDSHAKE: i16 = 17;
const API_VERSIONS: i16 = 18;
const SASL_AUTHENTICATE: i16 = 36;
const UNSUPPORTED_SASL_MECHANISM: i16 = 33;
const SASL_AUTHENTICATION_FAILED: i16 = 58;
/// The longest request before a client is authenticated, in bytes.
const REQUEST_BYTES_MAX: usize = 1 << 16;

/// A running proxy.
pub(crate) struct SaslProxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl SaslProxy {
    /// Starts a proxy for a broker. It accepts one user and password.
    pub(crate) async fn start(broker: SocketAddr, user: &str, password: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let token: Arc<[u8]> = format!("\0{user}\0{password}").into_bytes().into();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let token = token.clone();
                // A client that disconnects ends its task.
                tokio::spawn(async move { drop(serve(client, broker, &token).await) });
            }
        });
        Ok(Self { address, task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for SaslProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, broker: SocketAddr, token: &[u8]) -> io::Result<()> {
    let mut upstream = TcpStream::connect(broker).await?;
    loop {
        let request = frame(&mut client).await?;
        let field = |from: usize| request.get(from..from + 2).map(|bytes| i16::from_be_bytes([bytes[0], bytes[1]]));
        let (key, version, id) = match (field(0), field(2), request.get(4..8)) {
            (Some(key), Some(version), Some(id)) => (key, version, id.to_vec()),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        // The client id follows, and then the body.
        let body = 10 + usize::try_from(field(8).unwrap_or(-1)).unwrap_or(0);
        let body = request.get(body..).unwrap_or_default();
        match key {
            API_VERSIONS => {
                write_frame(&mut upstream, &request).await?;
                let response = frame(&mut upstream).await?;
                write_frame(&mut client, &response).await?;
            }
            SASL_HANDSHAKE => {
                let code = if body.ends_with(b"PLAIN") { 0 } else { UNSUPPORTED_SASL_MECHANISM };
                let mechanisms = [&1_i32.to_be_bytes()[..], &5_i16.to_be_bytes(), b"PLAIN"].concat();
                write_frame(&mut client, &[&id[..], &i16::to_be_bytes(code), &mechanisms].concat()).await?;
            }
            SASL_AUTHENTICATE => {
                let is_accepted = body.get(4..) == Some(token);
                let code = if is_accepted { 0 } else { SASL_AUTHENTICATION_FAILED };
                // No message and no bytes; later versions have the lifetime of the session, without a bound.
                let lifetime = if version > 0 { &[0; 8][..] } else { &[] };
                let rest = [&(-1_i16).to_be_bytes()[..], &0_i32.to_be_bytes(), lifetime].concat();
                write_frame(&mut client, &[&id[..], &i16::to_be_bytes(code), &rest].concat()).await?;
                if is_accepted {
                    tokio::io::copy_bidirectional(&mut client, &mut upstream).await?;
                    return Ok(());
                }
            }
            _ => return Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

async fn frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::try_from(stream.read_i32().await?).unwrap_or(usize::MAX);
    if length > REQUEST_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut content = vec![0; length];
    stream.read_exact(&mut content).await?;
    Ok(content)
}

async fn write_frame(stream: &mut TcpStream, content: &[u8]) -> io::Result<()> {
    let length = i32::try_from(content.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], content].concat()).await
}
