//! Faults of a Kafka broker: a stand-in that answers every request with one, and a proxy that puts them in the place of responses of a
//! broker.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The longest frame that is read, in bytes.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// The key of requests to join a group.
pub const JOIN_GROUP: i16 = 11;
/// The proxy replaces one of this many responses.
const FAULT_INTERVAL: usize = 4;

/// A fault in the place of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Bytes without a meaning.
    Garbage,
    /// The beginning of a response that is longer than any may be.
    Oversized,
    /// The beginning of a response, and then the end of the connection.
    Half,
    /// A response to a request that was not sent.
    Unasked,
    /// A response without content.
    Empty,
    /// A response to the request whose content has counts of 2^31 - 1.
    HugeCounts,
    /// Nothing.
    Silence,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Garbage, Self::Oversized, Self::Half, Self::Unasked, Self::Empty, Self::HugeCounts, Self::Silence];

    /// Writes the fault instead of the response to the request with this correlation id. Returns whether the connection stays open.
    async fn write(self, client: &mut TcpStream, id: [u8; 4]) -> io::Result<bool> {
        match self {
            Self::Garbage => {
                let bytes: Vec<u8> = (0..4096_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
                client.write_all(&bytes).await?;
            }
            Self::Oversized => {
                client.write_all(&i32::MAX.to_be_bytes()).await?;
                client.write_all(&vec![0; 4 << 20]).await?;
            }
            Self::Half => {
                client.write_all(&[&4096_i32.to_be_bytes()[..], &id, &[0; 100]].concat()).await?;
                client.shutdown().await?;
                return Ok(false);
            }
            Self::Unasked => {
                let other = i32::from_be_bytes(id).wrapping_add(1000);
                write_frame(client, &[&other.to_be_bytes()[..], &[0; 64]].concat()).await?;
            }
            Self::Empty => write_frame(client, &[]).await?,
            Self::HugeCounts => {
                let counts = i32::MAX.to_be_bytes().repeat(16);
                write_frame(client, &[&id[..], &[0, 0], &counts].concat()).await?;
            }
            Self::Silence => {
                // Until the client ends the connection.
                tokio::io::copy(client, &mut tokio::io::sink()).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A stand-in for a broker, which answers every request with a fault.
pub struct FaultyBroker {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl FaultyBroker {
    /// Starts it on a free port.
    pub async fn start(fault: Fault) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, requests) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let count = requests.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let count = count.clone();
                // A client that disconnects ends its task.
                tokio::spawn(async move {
                    loop {
                        let request = read_frame(&mut client).await?;
                        count.fetch_add(1, Ordering::Relaxed);
                        if !fault.write(&mut client, id_of(&request, 4)?).await? {
                            return io::Result::Ok(());
                        }
                    }
                });
            }
        });
        Ok(Self { address, requests, task })
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The requests so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for FaultyBroker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A proxy before a broker. While it is faulty, it puts faults in the place of some responses to clients whose id is `weir`.
pub struct FaultyProxy {
    address: SocketAddr,
    state: Arc<ProxyState>,
    task: JoinHandle<()>,
}

struct ProxyState {
    is_faulty: AtomicBool,
    /// The key of the request whose next response is replaced, also while the proxy is not faulty.
    lost: Mutex<Option<i16>>,
    /// The responses while it is faulty.
    responses: AtomicUsize,
    /// The faults so far, each with the key of the request (0: Produce, 1: Fetch, 11: JoinGroup, ...).
    faults: Mutex<Vec<(i16, Fault)>>,
}

impl FaultyProxy {
    /// Starts it on a free port. It is faulty.
    pub async fn start(broker: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = ProxyState {
            is_faulty: AtomicBool::new(true),
            lost: Mutex::new(None),
            responses: AtomicUsize::new(0),
            faults: Mutex::new(Vec::new()),
        };
        let state = Arc::new(state);
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = shared.clone();
                // A client that disconnects ends its task.
                tokio::spawn(async move { relay(client, broker, &state).await });
            }
        });
        Ok(Self { address, state, task })
    }

    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether there are faults from now on.
    pub fn set_faulty(&self, is_faulty: bool) {
        self.state.is_faulty.store(is_faulty, Ordering::Relaxed);
    }

    /// Replaces the response to the next request with this key by one to a request that was not sent.
    pub fn lose_next(&self, key: i16) {
        *self.state.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }

    /// The faults so far, each with the key of the request whose response it replaced.
    pub fn faults(&self) -> Vec<(i16, Fault)> {
        self.state.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Relays a connection, one request and its response after another. Each request has a response: producers wait for acknowledgements.
async fn relay(mut client: TcpStream, broker: SocketAddr, state: &ProxyState) -> io::Result<()> {
    let mut broker = TcpStream::connect(broker).await?;
    loop {
        let request = read_frame(&mut client).await?;
        write_frame(&mut broker, &request).await?;
        let response = read_frame(&mut broker).await?;
        match state.fault_for(&request) {
            None => write_frame(&mut client, &response).await?,
            Some(fault) => {
                if !fault.write(&mut client, id_of(&response, 0)?).await? {
                    return Ok(());
                }
            }
        }
    }
}

impl ProxyState {
    /// The fault in the place of the response to a request, if there is one.
    fn fault_for(&self, request: &[u8]) -> Option<Fault> {
        // The key, the version and the id precede the client's name and its length.
        let is_weir = request.get(10..14) == Some(b"weir");
        if !is_weir {
            return None;
        }
        let key = i16::from_be_bytes([request[0], request[1]]);
        if self.lost.lock().unwrap_or_else(PoisonError::into_inner).take_if(|lost| *lost == key).is_some() {
            return Some(self.record(key, Fault::Unasked));
        }
        if !self.is_faulty.load(Ordering::Relaxed) {
            return None;
        }
        let number = self.responses.fetch_add(1, Ordering::Relaxed) + 1;
        if !number.is_multiple_of(FAULT_INTERVAL) {
            return None;
        }
        Some(self.record(key, Fault::ALL[number / FAULT_INTERVAL % Fault::ALL.len()]))
    }

    fn record(&self, key: i16, fault: Fault) -> Fault {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push((key, fault));
        fault
    }
}

fn id_of(frame: &[u8], at: usize) -> io::Result<[u8; 4]> {
    frame.get(at..at + 4).and_then(|id| id.try_into().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

async fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::try_from(stream.read_i32().await?).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
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
