//! WebSockets (RFC 6455) with the extension permessage-deflate (RFC 7692), for servers and clients.
//!
//! - `decoder` and `encoder`: frames and messages as bytes, without IO; `frame` has the head of a frame.
//! - `deflate`: the extension: its negotiation, a compressor and a decompressor.
//! - `handshake`: the headers of the opening handshake. The HTTP request itself is the caller's.
//! - `socket`: a connection of messages over a connection of bytes; start here.
//!
//! Other libraries lack what a public server needs: tungstenite has no permessage-deflate, and yawc checks whole frames, so it refuses a text
//! that is not UTF-8 late. As server it passes the Autobahn TestSuite without a case that is
//! `NON-STRICT` or `UNIMPLEMENTED`; as client, a short part of it (`cargo xtask conformance` runs the whole).
//!
//! What a peer can make a connection hold is bounded: a message by [`Config::message_bytes_max`], decompressed or not; a decompressor
//! by its window; and nothing is written for a peer beyond what the caller sends, besides pongs, which wait for the next write.

mod decoder;
mod deflate;
mod encoder;
mod frame;
pub mod handshake;
mod socket;

pub use deflate::negotiation::{Agreement, ContextTakeover, DeflateConfig, NegotiationError};
pub use socket::{Traffic, WebSocket};

/// The side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Its frames are masked.
    Client,
    /// Its frames are not masked.
    Server,
}

/// The bounds of a connection, and the agreement of its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Longest message of the peer, bytes, after decompression.
    pub message_bytes_max: usize,
    /// Bytes that are read at once; an idle connection keeps a buffer of this size.
    pub read_bytes: usize,
    /// The parameters of permessage-deflate; none: messages are not compressed.
    pub deflate: Option<Agreement>,
    /// Shortest message that is compressed, bytes.
    pub deflate_bytes_min: usize,
}

/// What a peer sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A text.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
    /// A ping. Its pong is written by the next write or flush.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A close frame, which is the last message. Its answer is written by the next write or flush.
    Close(Option<CloseFrame>),
}

/// The content of a close frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseFrame {
    /// The code (RFC 6455, section 7.4).
    pub code: u16,
    /// The reason, for people; at most 123 bytes.
    pub reason: String,
}

/// Codes of close frames (RFC 6455, section 7.4.1).
pub mod close {
    /// The connection has fulfilled its purpose.
    pub const NORMAL: u16 = 1000;
    /// The server is stopping, or a browser has left the page.
    pub const AWAY: u16 = 1001;
    /// The peer violates the protocol.
    pub const PROTOCOL: u16 = 1002;
    /// The kind of message is not accepted.
    pub const UNSUPPORTED: u16 = 1003;
    /// The content of a message does not match its kind, such as a text that is not UTF-8.
    pub const INVALID: u16 = 1007;
    /// The policy of the server forbids the message.
    pub const POLICY: u16 = 1008;
    /// The message is too long.
    pub const SIZE: u16 = 1009;
    /// The server has failed.
    pub const ERROR: u16 = 1011;
}

/// Why a connection ends without a close frame of the peer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer violates the protocol.
    #[error("invalid frame: {0}")]
    Protocol(&'static str),
    /// A text is not UTF-8.
    #[error("a text message is not UTF-8")]
    Utf8,
    /// Compressed data is invalid.
    #[error("the compressed data of a message is invalid")]
    Deflate,
    /// A message is longer than [`Config::message_bytes_max`].
    #[error("a message has more than {bytes_max} bytes")]
    TooLong {
        /// The bound, bytes.
        bytes_max: usize,
    },
    /// The connection fails, or ends without a close frame.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Error {
    /// The code of the close frame that answers this failure; none if the connection is lost.
    pub fn close_code(&self) -> Option<u16> {
        match self {
            Self::Protocol(_) => Some(close::PROTOCOL),
            Self::Utf8 | Self::Deflate => Some(close::INVALID),
            Self::TooLong { .. } => Some(close::SIZE),
            Self::Io(_) => None,
        }
    }
}
