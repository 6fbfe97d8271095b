//! A proxy before a Kafka broker, which admits clients that authenticate with SASL, and clients that connect with TLS: the broker of the
//! tests offers neither PLAIN and SCRAM nor TLS with them.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::scram::{Exchange, Scram};

/// The keys of requests, and error codes.
const SASL_HANDSHAKE: i16 = 17;
const API_VERSIONS: i16 = 18;
const SASL_AUTHENTICATE: i16 = 36;
const UNSUPPORTED_SASL_MECHANISM: i16 = 33;
const SASL_AUTHENTICATION_FAILED: i16 = 58;
/// The longest request before a client is authenticated, in bytes.
const REQUEST_BYTES_MAX: usize = 1 << 16;
/// The first byte of a connection with TLS: the type of a record of the handshake. A request of Kafka begins with its length.
const TLS_HANDSHAKE: u8 = 22;
const PLAIN: &str = "PLAIN";

/// What the clients of a connection have to do.
#[derive(Debug, Clone, Copy)]
enum Mechanism {
    Plain,
    Scram(Scram),
}

/// The clients that a proxy admits.
pub(crate) struct Clients {
    pub(crate) user: String,
    pub(crate) password: String,
    /// TLS, and the mechanism of the clients that use it; `None`: their certificate is not asked for, and they do not authenticate.
    pub(crate) tls: Option<(TlsAcceptor, Option<Scram>)>,
}

/// A running proxy.
pub(crate) struct KafkaProxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl KafkaProxy {
    /// Starts a proxy for a broker. Clients without TLS authenticate with PLAIN.
    pub(crate) async fn start(broker: SocketAddr, clients: Clients) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, clients) = (listener.local_addr()?, Arc::new(clients));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let clients = clients.clone();
                // A client that disconnects ends its task.
                tokio::spawn(async move { drop(accept(client, broker, &clients).await) });
            }
        });
        Ok(Self { address, task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for KafkaProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// TLS with the certificate `NAME.pem` and the key `NAME.key` of a folder.
pub(crate) fn tls_acceptor(folder: &Path, name: &str) -> io::Result<TlsAcceptor> {
    let certificate = CertificateDer::from_pem_file(folder.join(format!("{name}.pem"))).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key"))).map_err(io::Error::other)?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(vec![certificate], key))
        .map_err(io::Error::other)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(mut client: TcpStream, broker: SocketAddr, clients: &Clients) -> io::Result<()> {
    let mut first = [0];
    let is_tls = client.peek(&mut first).await? > 0 && first[0] == TLS_HANDSHAKE;
    match &clients.tls {
        Some((acceptor, mechanism)) if is_tls => {
            let mut client = acceptor.accept(client).await?;
            match mechanism {
                Some(scram) => serve(&mut client, broker, clients, Mechanism::Scram(*scram)).await,
                None => connect(&mut client, &mut TcpStream::connect(broker).await?).await,
            }
        }
        _ => serve(&mut client, broker, clients, Mechanism::Plain).await,
    }
}

/// Passes on everything.
async fn connect<C: AsyncRead + AsyncWrite + Unpin>(client: &mut C, upstream: &mut TcpStream) -> io::Result<()> {
    tokio::io::copy_bidirectional(client, upstream).await.map(drop)
}

async fn serve<C: AsyncRead + AsyncWrite + Unpin>(
    client: &mut C,
    broker: SocketAddr,
    clients: &Clients,
    mechanism: Mechanism,
) -> io::Result<()> {
    let Clients { user, password, .. } = clients;
    let mut upstream = TcpStream::connect(broker).await?;
    let mut exchange = match mechanism {
        Mechanism::Plain => None,
        Mechanism::Scram(scram) => Some(Exchange::new(scram, user, password)),
    };
    let name = match mechanism {
        Mechanism::Plain => PLAIN,
        Mechanism::Scram(scram) => scram.name(),
    };
    loop {
        let request = frame(client).await?;
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
                write_frame(client, &response).await?;
            }
            SASL_HANDSHAKE => {
                let code = if body.get(2..) == Some(name.as_bytes()) { 0 } else { UNSUPPORTED_SASL_MECHANISM };
                let length = i16::try_from(name.len()).map_err(io::Error::other)?;
                let mechanisms = [&1_i32.to_be_bytes()[..], &length.to_be_bytes(), name.as_bytes()].concat();
                write_frame(client, &[&id[..], &i16::to_be_bytes(code), &mechanisms].concat()).await?;
            }
            SASL_AUTHENTICATE => {
                let message = body.get(4..).unwrap_or_default();
                let (answer, is_authenticated) = match &mut exchange {
                    Some(exchange) => (exchange.answer(message), exchange.is_authenticated()),
                    None => {
                        let is_right = message == format!("\0{user}\0{password}").as_bytes();
                        (is_right.then(String::new), is_right)
                    }
                };
                let code = if answer.is_some() { 0 } else { SASL_AUTHENTICATION_FAILED };
                let answer = answer.unwrap_or_default();
                let length = i32::try_from(answer.len()).map_err(io::Error::other)?;
                // There is no message of an error; later versions have the lifetime of the session, without a bound.
                let lifetime = if version > 0 { &[0; 8][..] } else { &[] };
                let rest = [&(-1_i16).to_be_bytes()[..], &length.to_be_bytes(), answer.as_bytes(), lifetime].concat();
                write_frame(client, &[&id[..], &i16::to_be_bytes(code), &rest].concat()).await?;
                if is_authenticated {
                    return connect(client, &mut upstream).await;
                }
            }
            _ => return Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

async fn frame<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let length = usize::try_from(stream.read_i32().await?).unwrap_or(usize::MAX);
    if length > REQUEST_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut content = vec![0; length];
    stream.read_exact(&mut content).await?;
    Ok(content)
}

async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, content: &[u8]) -> io::Result<()> {
    let length = i32::try_from(content.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], content].concat()).await?;
    stream.flush().await
}
