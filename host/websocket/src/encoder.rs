//! Messages to frames.

use bytes::{BufMut as _, BytesMut};

use crate::deflate::compress::Compressor;
use crate::frame::{CONTROL_BYTES_MAX, Head, Opcode, apply_mask};
use crate::{Config, Role};

/// Writes each message as one frame.
pub(crate) struct Encoder {
    role: Role,
    compressor: Option<Compressor>,
    bytes_min: usize,
    /// Bytes of payloads of messages, as they are sent.
    payload_bytes: u64,
}

impl Encoder {
    /// For the frames of a role.
    pub(crate) fn new(role: Role, config: &Config) -> Self {
        let direction = config.deflate.map(|agreement| match role {
            Role::Client => agreement.client,
            Role::Server => agreement.server,
        });
        Self {
            role,
            compressor: direction.map(|direction| Compressor::new(direction.window_bits, direction.takes_over)),
            bytes_min: config.deflate_bytes_min,
            payload_bytes: 0,
        }
    }

    /// Bytes of payloads of messages so far, as they are sent.
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Drops the context of the compressor.
    pub(crate) fn release(&mut self) {
        if let Some(compressor) = &mut self.compressor {
            compressor.release();
        }
    }

    /// Appends a text or binary message.
    pub(crate) fn message(&mut self, is_text: bool, content: &[u8], output: &mut BytesMut) {
        let opcode = if is_text { Opcode::Text } else { Opcode::Binary };
        let compressed = match &mut self.compressor {
            Some(compressor) if content.len() >= self.bytes_min.max(1) => compressor.compress(content),
            _ => None,
        };
        let payload = compressed.as_deref().unwrap_or(content);
        self.payload_bytes += payload.len() as u64;
        self.frame(opcode, compressed.is_some(), payload, output);
    }

    /// Appends a control frame. Its payload is cut to the longest one.
    pub(crate) fn control(&mut self, opcode: Opcode, payload: &[u8], output: &mut BytesMut) {
        self.frame(opcode, false, &payload[..payload.len().min(CONTROL_BYTES_MAX)], output);
    }

    fn frame(&mut self, opcode: Opcode, is_compressed: bool, payload: &[u8], output: &mut BytesMut) {
        let mask = (self.role == Role::Client).then(new_mask);
        let head = Head { opcode, is_final: true, is_compressed, mask, length: payload.len() as u64 };
        output.reserve(14 + payload.len());
        head.write(output);
        let begin = output.len();
        output.put_slice(payload);
        if let Some(mask) = mask {
            apply_mask(mask, 0, &mut output[begin..]);
        }
    }
}

/// A mask that scripts cannot predict (RFC 6455, section 10.3).
fn new_mask() -> [u8; 4] {
    let mut mask = [0; 4];
    getrandom::fill(&mut mask).expect("the system has random numbers");
    mask
}
