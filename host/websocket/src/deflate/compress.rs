//! The compressor of one direction.

use std::cell::RefCell;

use zlib_rs::{Deflate, DeflateFlush, Status};

use super::TAIL;

/// The level: messages are short, so higher ones gain little.
const LEVEL: i32 = 4;
/// Room for output that is added at once, bytes.
const CHUNK_BYTES: usize = 4096;

thread_local! {
    /// A state for messages without context takeover, with its window bits: its allocation takes longer than a short message.
    static SPARE: RefCell<Option<(u8, Box<Deflate>)>> = const { RefCell::new(None) };
}

/// Compresses the messages of one direction.
pub(crate) struct Compressor {
    window_bits: u8,
    /// Whether a message may refer to earlier ones.
    takes_over: bool,
    /// The context; none before the first message, and always without takeover.
    state: Option<Box<Deflate>>,
}

impl Compressor {
    /// With a window of `1 << window_bits` bytes, 9 to 15. `takes_over`: messages refer to earlier ones.
    pub(crate) fn new(window_bits: u8, takes_over: bool) -> Self {
        Self { window_bits, takes_over, state: None }
    }

    /// The payload of a message; none if it would not be shorter than the message, which is sent uncompressed then.
    pub(crate) fn compress(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let mut state = self.state.take().unwrap_or_else(|| self.new_state());
        let payload = run(&mut state, message);
        // A message that the peer does not decompress is not in its window: the next one must not refer to it.
        if self.takes_over && payload.is_some() {
            self.state = Some(state);
        } else {
            state.reset();
            SPARE.set(Some((self.window_bits, state)));
        }
        payload
    }

    /// Drops the context: the next message refers to no earlier one, and the connection holds no memory for it.
    pub(crate) fn release(&mut self) {
        self.state = None;
    }

    fn new_state(&self) -> Box<Deflate> {
        match SPARE.take() {
            Some((bits, state)) if bits == self.window_bits => state,
            _ => {
                let config = zlib_rs::DeflateConfig {
                    level: LEVEL,
                    window_bits: -i32::from(self.window_bits),
                    // A small window needs a small hash table: together about 8 times the window.
                    mem_level: (i32::from(self.window_bits) - 7).clamp(3, 8),
                    ..zlib_rs::DeflateConfig::default()
                };
                Box::new(Deflate::new_with_config(config))
            }
        }
    }
}

/// Compresses a message; none if the result is not shorter.
fn run(state: &mut Deflate, message: &[u8]) -> Option<Vec<u8>> {
    let mut payload = Vec::new();
    let mut input = message;
    loop {
        if payload.len() >= message.len() + TAIL.len() {
            return None;
        }
        let length = payload.len();
        payload.resize(length + CHUNK_BYTES.min(message.len() + 16), 0);
        let (read, written) = (state.total_in(), state.total_out());
        let status = state.compress(input, &mut payload[length..], DeflateFlush::SyncFlush);
        input = &input[(state.total_in() - read) as usize..];
        let is_full = (state.total_out() - written) as usize == payload.len() - length;
        payload.truncate(length + (state.total_out() - written) as usize);
        match status {
            Ok(Status::Ok | Status::BufError) if input.is_empty() && !is_full => break,
            Ok(Status::Ok) => {}
            _ => return None,
        }
    }
    let length = payload.len().checked_sub(TAIL.len()).filter(|length| payload[*length..] == TAIL)?;
    payload.truncate(length);
    (length < message.len()).then_some(payload)
}
