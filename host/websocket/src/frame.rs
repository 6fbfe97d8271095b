//! The head of a frame (RFC 6455, section 5.2).

use crate::Error;

/// Most bytes in the payload of a control frame.
pub(crate) const CONTROL_BYTES_MAX: usize = 125;

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    pub(crate) fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) opcode: Opcode,
    pub(crate) is_final: bool,
    /// RSV1, which marks the first frame of a compressed message.
    pub(crate) is_compressed: bool,
    pub(crate) mask: Option<[u8; 4]>,
    /// The length of the payload, bytes.
    pub(crate) length: u64,
}

impl Head {
    /// Reads a head and its length; none if the input ends before it does. What the first two bytes violate is an error at once.
    pub(crate) fn parse(input: &[u8]) -> Result<Option<(Self, usize)>, Error> {
        let [first, second, rest @ ..] = input else { return Ok(None) };
        if first & 0x30 != 0 {
            return Err(Error::Protocol("a reserved bit is set"));
        }
        let opcode = Opcode::from_bits(first & 15).ok_or(Error::Protocol("the opcode is reserved"))?;
        let (is_final, is_compressed) = (first & 0x80 != 0, first & 0x40 != 0);
        if opcode.is_control() {
            if !is_final {
                return Err(Error::Protocol("a control frame is fragmented"));
            }
            if usize::from(second & 0x7f) > CONTROL_BYTES_MAX {
                return Err(Error::Protocol("a control frame has more than 125 bytes"));
            }
        }
        let (length, rest, length_bytes) = match second & 0x7f {
            126 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest, 2),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest, 8),
                None => return Ok(None),
            },
            length => (u64::from(length), rest, 0),
        };
        if length >> 63 != 0 {
            return Err(Error::Protocol("the length has its highest bit set"));
        }
        let (mask, mask_bytes) = match second & 0x80 != 0 {
            false => (None, 0),
            true => match rest.first_chunk() {
                Some(mask) => (Some(*mask), 4),
                None => return Ok(None),
            },
        };
        let head = Self { opcode, is_final, is_compressed, mask, length };
        Ok(Some((head, 2 + length_bytes + mask_bytes)))
    }

    /// Appends the head.
    pub(crate) fn write(&self, output: &mut impl bytes::BufMut) {
        output.put_u8(u8::from(self.is_final) << 7 | u8::from(self.is_compressed) << 6 | self.opcode.bits());
        let masked = u8::from(self.mask.is_some()) << 7;
        match self.length {
            length @ 0..126 => output.put_u8(masked | length as u8),
            length @ 126..=0xffff => {
                output.put_u8(masked | 126);
                output.put_u16(length as u16);
            }
            length => {
                output.put_u8(masked | 127);
                output.put_u64(length);
            }
        }
        if let Some(mask) = self.mask {
            output.put_slice(&mask);
        }
    }
}

/// Applies a mask to a part of a payload that begins at `offset`.
pub(crate) fn apply_mask(mask: [u8; 4], offset: usize, part: &mut [u8]) {
    let mut mask = mask;
    mask.rotate_left(offset % 4);
    let (quads, rest) = part.as_chunks_mut::<4>();
    let word = u32::from_ne_bytes(mask);
    for quad in quads {
        *quad = (u32::from_ne_bytes(*quad) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_is_parsed_as_it_is_written_at_every_length() {
        for length in [0, 1, 125, 126, 127, 0xffff, 0x10000, 1 << 40] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let head = Head { opcode: Opcode::Text, is_final: length % 2 == 0, is_compressed: true, mask, length };
                let mut bytes = Vec::new();
                head.write(&mut bytes);
                assert_eq!(Head::parse(&bytes).unwrap(), Some((head, bytes.len())));
                for end in 0..bytes.len() {
                    assert_eq!(Head::parse(&bytes[..end]).unwrap(), None, "{end} bytes of {bytes:?}");
                }
            }
        }
    }

    #[test]
    fn violations_are_found_in_the_first_two_bytes() {
        let reason = |bytes: [u8; 2]| match Head::parse(&bytes) {
            Err(Error::Protocol(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason([0xa1, 0]), "a reserved bit is set");
        assert_eq!(reason([0x83, 0]), "the opcode is reserved");
        assert_eq!(reason([0x09, 0]), "a control frame is fragmented");
        assert_eq!(reason([0x89, 126]), "a control frame has more than 125 bytes");
    }

    #[test]
    fn mask_is_the_same_for_every_split() {
        let mask = [1, 2, 3, 4];
        let payload: Vec<u8> = (0..50).collect();
        let mut whole = payload.clone();
        apply_mask(mask, 0, &mut whole);
        for split in 0..payload.len() {
            let mut parts = payload.clone();
            let (first, second) = parts.split_at_mut(split);
            apply_mask(mask, 0, first);
            apply_mask(mask, split, second);
            assert_eq!(parts, whole);
        }
        assert_eq!(whole[..6], [1, 3, 1, 7, 5, 7]);
    }
}
