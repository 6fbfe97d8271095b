//! The decompressor of one direction.

use zlib_rs::{Inflate, InflateFlush, Status};

use super::TAIL;

/// Most room for output that is added at once, bytes.
const CHUNK_BYTES: usize = 16 << 10;
/// Bytes of the largest window.
const WINDOW_BYTES: usize = 32 << 10;

/// Why a message is not decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DecompressError {
    /// The data is invalid.
    Invalid,
    /// The message is longer than its bound.
    TooLong,
}

/// Decompresses the messages of one direction.
pub(crate) struct Decompressor {
    window_bits: u8,
    /// Whether a message may refer to earlier ones.
    takes_over: bool,
    /// The context; none before the first message, and between messages without takeover.
    state: Option<Box<Inflate>>,
    /// Compressed bytes of the message so far.
    read: usize,
}

impl Decompressor {
    /// With a window of `1 << window_bits` bytes, 8 to 15. `takes_over`: messages refer to earlier ones.
    pub(crate) fn new(window_bits: u8, takes_over: bool) -> Self {
        Self { window_bits: window_bits.max(9), takes_over, state: None, read: 0 }
    }

    /// Decompresses a part of a message, and appends it to `message`, which has at most one byte more than `bytes_max` then.
    pub(crate) fn push(&mut self, part: &[u8], message: &mut Vec<u8>, bytes_max: usize) -> Result<(), DecompressError> {
        // Data without output is bounded too: a sender of the longest message needs 5 bytes for each block of 64 KiB.
        self.read = self.read.saturating_add(part.len());
        if self.read > bytes_max + bytes_max / 64 + 1024 {
            return Err(DecompressError::TooLong);
        }
        self.run(part, message, bytes_max)
    }

    /// Completes a message.
    pub(crate) fn finish(&mut self, message: &mut Vec<u8>, bytes_max: usize) -> Result<(), DecompressError> {
        self.read = 0;
        self.run(&TAIL, message, bytes_max)?;
        if !self.takes_over {
            self.state = None;
        }
        Ok(())
    }

    fn run(&mut self, mut part: &[u8], message: &mut Vec<u8>, bytes_max: usize) -> Result<(), DecompressError> {
        let window_bits = self.window_bits;
        let state = self.state.get_or_insert_with(|| Box::new(Inflate::new(false, window_bits)));
        let mut chunk_bytes = part.len().saturating_mul(4) + 64;
        loop {
            if message.len() > bytes_max {
                return Err(DecompressError::TooLong);
            }
            let length = message.len();
            // One byte beyond the bound shows that the message is longer.
            let room = (bytes_max + 1 - length).min(chunk_bytes.min(CHUNK_BYTES));
            chunk_bytes = chunk_bytes.saturating_mul(2);
            message.resize(length + room, 0);
            let (read, written) = (state.total_in(), state.total_out());
            let status = state.decompress(part, &mut message[length..], InflateFlush::SyncFlush);
            let read = (state.total_in() - read) as usize;
            let written = (state.total_out() - written) as usize;
            message.truncate(length + written);
            part = &part[read..];
            match status {
                // The rest of the message is another stream, whose window has what came before (section 7.2.3.5).
                Ok(Status::StreamEnd) => {
                    let window = message.len().saturating_sub(WINDOW_BYTES.min(1 << window_bits));
                    **state = Inflate::new(false, window_bits);
                    if window < message.len() {
                        state.set_dictionary(&message[window..]).map_err(|_| DecompressError::Invalid)?;
                    }
                    if part.is_empty() {
                        return Ok(());
                    }
                }
                // All input is read, and all output fits.
                Ok(Status::Ok | Status::BufError) if part.is_empty() && written < room => return Ok(()),
                Ok(Status::Ok | Status::BufError) if read > 0 || written > 0 => {}
                _ => return Err(DecompressError::Invalid),
            }
        }
    }
}
