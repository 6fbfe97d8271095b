//! permessage-deflate (RFC 7692): each message is a raw deflate stream that ends at a byte boundary, without its last four bytes.

pub(crate) mod compress;
pub(crate) mod decompress;
pub(crate) mod negotiation;

/// The end of a flushed deflate stream, which is not sent (RFC 7692, section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::compress::Compressor;
    use super::decompress::{DecompressError, Decompressor};

    fn decompress(
        decompressor: &mut Decompressor,
        payload: &[u8],
        bytes_max: usize,
    ) -> Result<Vec<u8>, DecompressError> {
        let mut message = Vec::new();
        decompressor.push(payload, &mut message, bytes_max)?;
        decompressor.finish(&mut message, bytes_max)?;
        Ok(message)
    }

    #[test]
    fn examples_of_the_rfc_are_decompressed() {
        // Sections 7.2.3.1 to 7.2.3.5.
        let mut alone = Decompressor::new(15, false);
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(decompress(&mut alone, &hello, 5).unwrap(), b"Hello");
        let mut shared = Decompressor::new(15, true);
        assert_eq!(decompress(&mut shared, &hello, 5).unwrap(), b"Hello");
        assert_eq!(decompress(&mut shared, &[0xf2, 0x00, 0x11, 0x00, 0x00], 5).unwrap(), b"Hello");
        assert!(matches!(decompress(&mut alone, &[0xf2, 0x00, 0x11, 0x00, 0x00], 5), Err(DecompressError::Invalid)));
        let mut alone = Decompressor::new(15, false);
        let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
        assert_eq!(decompress(&mut alone, &stored, 5).unwrap(), b"Hello");
        let last_block = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
        assert_eq!(decompress(&mut alone, &last_block, 5).unwrap(), b"Hello");
        let two_blocks = [0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(decompress(&mut alone, &two_blocks, 5).unwrap(), b"Hello");
    }

    #[test]
    fn decompression_stops_at_the_bound() {
        let bomb = Compressor::new(15, false).compress(&vec![b'x'; 16 << 20]).expect("it is shorter");
        assert!(bomb.len() < 32 << 10, "{}", bomb.len());
        let mut message = Vec::new();
        let mut decompressor = Decompressor::new(15, false);
        let error = decompressor.push(&bomb, &mut message, 1 << 20).unwrap_err();
        assert_eq!(error, DecompressError::TooLong);
        assert!(message.capacity() <= 2 << 20, "{} bytes are held", message.capacity());
        // Exactly at the bound it is complete.
        assert_eq!(decompress(&mut Decompressor::new(15, false), &bomb, 16 << 20).unwrap().len(), 16 << 20);
        assert_eq!(decompress(&mut Decompressor::new(15, false), &bomb, (16 << 20) - 1), Err(DecompressError::TooLong));
    }

    #[test]
    fn incompressible_message_resets_the_context() {
        let mut compressor = Compressor::new(15, true);
        let mut decompressor = Decompressor::new(15, true);
        let text = b"The same text, several times. The same text, several times.".as_slice();
        let first = compressor.compress(text).expect("shorter");
        assert_eq!(compressor.compress(b"q"), None, "longer than the message");
        let second = compressor.compress(text).expect("shorter");
        let third = compressor.compress(text).expect("shorter");
        assert_eq!(first, second, "the context is empty after a message that was not compressed");
        assert!(third.len() < first.len());
        for payload in [first, second, third] {
            assert_eq!(decompress(&mut decompressor, &payload, 1000).unwrap(), text);
        }
    }

    proptest! {
        #[test]
        fn messages_are_decompressed_with_every_window(
            messages in prop::collection::vec(prop::collection::vec(0..4_u8, 0..3000), 1..5),
            bits in 9..=15_u8,
            takeover: bool,
            split in 1..100_usize,
        ) {
            let mut compressor = Compressor::new(bits, takeover);
            let mut decompressor = Decompressor::new(bits, takeover);
            for message in messages {
                let Some(payload) = compressor.compress(&message) else { continue };
                prop_assert!(payload.len() < message.len());
                let mut result = Vec::new();
                for part in payload.chunks(split) {
                    decompressor.push(part, &mut result, message.len()).unwrap();
                }
                decompressor.finish(&mut result, message.len()).unwrap();
                prop_assert_eq!(result, message);
            }
        }

        #[test]
        fn any_bytes_are_decompressed_within_the_bound(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut message = Vec::new();
            let mut decompressor = Decompressor::new(15, true);
            if decompressor.push(&bytes, &mut message, 10_000).is_ok() {
                let _ = decompressor.finish(&mut message, 10_000);
            }
            prop_assert!(message.len() <= 10_001);
        }
    }
}
