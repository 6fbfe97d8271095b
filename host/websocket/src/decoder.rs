//! Frames of the peer to messages.

use bytes::{Buf as _, BytesMut};

use crate::deflate::decompress::{DecompressError, Decompressor};
use crate::frame::{CONTROL_BYTES_MAX, Head, Opcode, apply_mask};
use crate::{CloseFrame, Config, Error, Message, Role};

/// Most room for a payload that is reserved before its bytes have arrived.
const RESERVED_BYTES: usize = 16 << 10;

/// Reads frames of a peer. Nothing is read after an error or a close frame.
pub(crate) struct Decoder {
    peer: Role,
    bytes_max: usize,
    decompressor: Option<Decompressor>,
    /// The frame whose payload arrives.
    frame: Option<PartialFrame>,
    /// The message whose frames arrive.
    message: Option<PartialMessage>,
    /// The payload of a control frame, which may be between two frames of a message.
    control: Vec<u8>,
    /// Bytes of payloads of messages, as they were sent.
    payload_bytes: u64,
}

struct PartialFrame {
    head: Head,
    /// Bytes that have arrived.
    read: u64,
}

struct PartialMessage {
    is_text: bool,
    is_compressed: bool,
    content: Vec<u8>,
    /// The bytes of a text that are whole characters.
    validated: usize,
}

impl Decoder {
    /// For the frames that the other side than `role` sends.
    pub(crate) fn new(role: Role, config: &Config) -> Self {
        let peer = match role {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        };
        let direction = config.deflate.map(|agreement| match peer {
            Role::Client => agreement.client,
            Role::Server => agreement.server,
        });
        Self {
            peer,
            bytes_max: config.message_bytes_max,
            decompressor: direction.map(|direction| Decompressor::new(direction.window_bits, direction.takes_over)),
            frame: None,
            message: None,
            control: Vec::new(),
            payload_bytes: 0,
        }
    }

    /// Bytes of payloads of messages so far, as they were sent.
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Reads from the input until a message is complete; none if the input ends before. Violations are found as early as possible: a text
    /// that is not UTF-8, or a message that is too long, while it arrives.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Message>, Error> {
        loop {
            let Some(mut frame) = self.frame.take() else {
                let Some((head, head_bytes)) = Head::parse(input)? else { return Ok(None) };
                input.advance(head_bytes);
                self.begin(&head)?;
                self.frame = Some(PartialFrame { head, read: 0 });
                continue;
            };
            let left = frame.head.length - frame.read;
            let part_bytes = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
            if part_bytes > 0 {
                let mut part = input.split_to(part_bytes);
                if let Some(mask) = frame.head.mask {
                    apply_mask(mask, (frame.read % 4) as usize, &mut part);
                }
                frame.read += part_bytes as u64;
                self.push(&frame.head, &part)?;
            }
            if frame.read < frame.head.length {
                self.frame = Some(frame);
                return Ok(None);
            }
            if let Some(message) = self.finish(&frame.head)? {
                return Ok(Some(message));
            }
        }
    }

    /// Checks the head of a frame.
    fn begin(&mut self, head: &Head) -> Result<(), Error> {
        match (self.peer, head.mask) {
            (Role::Client, None) => return Err(Error::Protocol("a frame of a client is not masked")),
            (Role::Server, Some(_)) => return Err(Error::Protocol("a frame of a server is masked")),
            _ => {}
        }
        if head.is_compressed && (self.decompressor.is_none() || !matches!(head.opcode, Opcode::Text | Opcode::Binary))
        {
            return Err(Error::Protocol("a reserved bit is set"));
        }
        if head.opcode.is_control() {
            return Ok(());
        }
        match (head.opcode, &self.message) {
            (Opcode::Continuation, None) => return Err(Error::Protocol("a continuation without a message")),
            (Opcode::Continuation, Some(_)) => {}
            (_, Some(_)) => return Err(Error::Protocol("a message begins within another")),
            (opcode, None) => {
                self.message = Some(PartialMessage {
                    is_text: opcode == Opcode::Text,
                    is_compressed: head.is_compressed,
                    content: Vec::new(),
                    validated: 0,
                });
            }
        }
        let Some(message) = self.message.as_mut().filter(|message| !message.is_compressed) else { return Ok(()) };
        let length = usize::try_from(head.length).unwrap_or(usize::MAX);
        if length > self.bytes_max - message.content.len() {
            return Err(Error::TooLong { bytes_max: self.bytes_max });
        }
        message.content.reserve(length.min(RESERVED_BYTES));
        Ok(())
    }

    /// Takes a part of a payload.
    fn push(&mut self, head: &Head, part: &[u8]) -> Result<(), Error> {
        if head.opcode.is_control() {
            self.control.extend_from_slice(part);
            debug_assert!(self.control.len() <= CONTROL_BYTES_MAX);
            return Ok(());
        }
        let Some(message) = &mut self.message else { return Ok(()) };
        self.payload_bytes += part.len() as u64;
        match self.decompressor.as_mut().filter(|_| message.is_compressed) {
            Some(decompressor) => decompressor
                .push(part, &mut message.content, self.bytes_max)
                .map_err(|error| decompress_error(error, self.bytes_max))?,
            None => message.content.extend_from_slice(part),
        }
        message.validate()
    }

    /// Completes a frame; its message if it is the last one.
    fn finish(&mut self, head: &Head) -> Result<Option<Message>, Error> {
        match head.opcode {
            Opcode::Ping => return Ok(Some(Message::Ping(std::mem::take(&mut self.control)))),
            Opcode::Pong => return Ok(Some(Message::Pong(std::mem::take(&mut self.control)))),
            Opcode::Close => {
                return close_frame(&std::mem::take(&mut self.control)).map(|frame| Some(Message::Close(frame)));
            }
            Opcode::Continuation | Opcode::Text | Opcode::Binary if !head.is_final => return Ok(None),
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {}
        }
        let Some(mut message) = self.message.take() else { return Ok(None) };
        if let Some(decompressor) = self.decompressor.as_mut().filter(|_| message.is_compressed) {
            decompressor
                .finish(&mut message.content, self.bytes_max)
                .map_err(|error| decompress_error(error, self.bytes_max))?;
            message.validate()?;
        }
        Ok(Some(match message.is_text {
            true if message.validated < message.content.len() => return Err(Error::Utf8),
            true => Message::Text(String::from_utf8(message.content).map_err(|_| Error::Utf8)?),
            false => Message::Binary(message.content),
        }))
    }
}

impl PartialMessage {
    /// Checks what has arrived of a text, but for a character whose end is missing.
    fn validate(&mut self) -> Result<(), Error> {
        if !self.is_text {
            return Ok(());
        }
        match std::str::from_utf8(&self.content[self.validated..]) {
            Ok(text) => self.validated += text.len(),
            Err(error) if error.error_len().is_none() => self.validated += error.valid_up_to(),
            Err(_) => return Err(Error::Utf8),
        }
        Ok(())
    }
}

fn decompress_error(error: DecompressError, bytes_max: usize) -> Error {
    match error {
        DecompressError::Invalid => Error::Deflate,
        DecompressError::TooLong => Error::TooLong { bytes_max },
    }
}

/// The content of a close frame (RFC 6455, sections 5.5.1 and 7.4).
fn close_frame(payload: &[u8]) -> Result<Option<CloseFrame>, Error> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload.is_empty() {
            true => Ok(None),
            false => Err(Error::Protocol("a close frame has half a code")),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Error::Protocol("a close frame has a code that may not be sent"));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| Error::Utf8)?;
    Ok(Some(CloseFrame { code, reason: reason.to_owned() }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ContextTakeover, DeflateConfig};

    fn config(bytes_max: usize, deflate: bool) -> Config {
        let both = DeflateConfig { takeover: ContextTakeover::Allowed, window_bits: 15 };
        let deflate = deflate.then(|| both.accept(["permessage-deflate"]).expect("an agreement").0);
        Config { message_bytes_max: bytes_max, read_bytes: 4096, deflate, deflate_bytes_min: 0 }
    }

    fn decode_all(input: &[u8], part_bytes: usize, config: &Config) -> (Vec<Message>, Option<Error>) {
        // Frames of a server, which are not masked.
        let mut decoder = Decoder::new(Role::Client, config);
        let mut messages = Vec::new();
        let mut buffer = BytesMut::new();
        for part in input.chunks(part_bytes) {
            buffer.extend_from_slice(part);
            loop {
                match decoder.decode(&mut buffer) {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(error) => return (messages, Some(error)),
                }
            }
        }
        (messages, None)
    }

    fn error(input: &[u8], config: &Config) -> String {
        decode_all(input, input.len(), config).1.expect("an error").to_string()
    }

    #[test]
    fn fragments_and_control_frames_between_them_are_read_at_every_split() {
        let input = [
            &[0x01, 2, b'H', b'e'][..],
            &[0x89, 1, b'p'],
            &[0x00, 2, b'l', b'l'],
            &[0x8a, 0],
            &[0x80, 1, b'o'],
            &[0x82, 2, 0xff, 0],
            &[0x81, 0],
            &[0x88, 4, 3, 0xe8, b'o', b'k'],
        ]
        .concat();
        let expected = vec![
            Message::Ping(b"p".to_vec()),
            Message::Pong(Vec::new()),
            Message::Text("Hello".into()),
            Message::Binary(vec![0xff, 0]),
            Message::Text(String::new()),
            Message::Close(Some(CloseFrame { code: 1000, reason: "ok".into() })),
        ];
        for part_bytes in 1..input.len() {
            let (messages, error) = decode_all(&input, part_bytes, &config(100, false));
            assert!(error.is_none());
            assert_eq!(messages, expected, "parts of {part_bytes} bytes");
        }
    }

    #[test]
    fn violations_are_named() {
        let config = config(100, false);
        assert_eq!(error(&[0x80, 0], &config), "invalid frame: a continuation without a message");
        assert_eq!(error(&[0x01, 0, 0x81, 0], &config), "invalid frame: a message begins within another");
        assert_eq!(error(&[0xc1, 0], &config), "invalid frame: a reserved bit is set");
        assert_eq!(error(&[0x81, 0x80, 0, 0, 0, 0], &config), "invalid frame: a frame of a server is masked");
        assert_eq!(error(&[0x88, 1, 3], &config), "invalid frame: a close frame has half a code");
        for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
            let [high, low] = code.to_be_bytes();
            assert_eq!(
                error(&[0x88, 2, high, low], &config),
                "invalid frame: a close frame has a code that may not be sent"
            );
        }
        assert_eq!(error(&[0x88, 3, 3, 0xe8, 0xff], &config), "a text message is not UTF-8");
        let mut server = Decoder::new(Role::Server, &config);
        let unmasked = server.decode(&mut BytesMut::from(&[0x81, 0][..])).unwrap_err();
        assert_eq!(unmasked.to_string(), "invalid frame: a frame of a client is not masked");
    }

    #[test]
    fn compressed_frames_of_other_kinds_are_refused() {
        let config = config(100, true);
        assert_eq!(error(&[0xc9, 0], &config), "invalid frame: a reserved bit is set");
        assert_eq!(error(&[0x01, 0, 0xc0, 0], &config), "invalid frame: a reserved bit is set");
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_before_its_end() {
        // A surrogate, and a character above U+10FFFF, in a frame of which more is to come.
        assert_eq!(error(&[0x01, 100, 0xed, 0xa0], &config(100, false)), "a text message is not UTF-8");
        assert_eq!(error(&[0x01, 100, 0xf4, 0x90], &config(100, false)), "a text message is not UTF-8");
        // Half a character at the end.
        assert_eq!(error(&[0x81, 1, 0xc3], &config(100, false)), "a text message is not UTF-8");
        // A character in two frames.
        let (messages, error) = decode_all(&[0x01, 1, 0xc3, 0x80, 1, 0xa4], 6, &config(100, false));
        assert!(error.is_none());
        assert_eq!(messages, [Message::Text("ä".into())]);
    }

    #[test]
    fn long_message_is_refused_by_its_announced_length() {
        let config = config(10, false);
        assert_eq!(error(&[0x82, 11], &config), "a message has more than 10 bytes");
        assert_eq!(error(&[0x02, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 2], &config), "a message has more than 10 bytes");
        assert_eq!(
            error(&[0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &config),
            "a message has more than 10 bytes"
        );
    }

    #[test]
    fn decompressed_message_has_the_same_bound() {
        let mut compressor = crate::deflate::compress::Compressor::new(15, false);
        let payload = compressor.compress(&[b'x'; 100]).expect("shorter");
        let frame = [&[0xc1, payload.len() as u8][..], &payload].concat();
        let (messages, _) = decode_all(&frame, 3, &config(100, true));
        assert_eq!(messages, [Message::Text("x".repeat(100))]);
        assert_eq!(error(&frame, &config(99, true)), "a message has more than 99 bytes");
        assert_eq!(error(&[0xc1, 1, 0xff], &config(99, true)), "the compressed data of a message is invalid");
    }

    proptest! {
        #[test]
        fn any_bytes_give_messages_within_the_bound(bytes in prop::collection::vec(any::<u8>(), 0..300), part_bytes in 1..50_usize) {
            for deflate in [false, true] {
                let (messages, _) = decode_all(&bytes, part_bytes, &config(50, deflate));
                for message in messages {
                    match message {
                        Message::Text(text) => prop_assert!(text.len() <= 50),
                        Message::Binary(content) => prop_assert!(content.len() <= 50),
                        _ => {}
                    }
                }
            }
        }
    }
}
