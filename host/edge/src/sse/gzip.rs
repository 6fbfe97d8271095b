//! A gzip stream (RFC 1952) that can be decompressed event by event, and needs twelve bytes of state for each
//! connection.
//!
//! A compressor with a window takes hundreds of kilobytes for each connection. Here every piece is compressed
//! independently (RFC 1951: blocks without references to earlier ones that end at a byte boundary), so an event is
//! compressed once for all subscribers, and a connection sends a sequence of such pieces. The compression ratio is
//! worse than that of one long stream.

use std::cell::RefCell;

use crc32fast::Hasher;
use flate2::{Compress, Compression, FlushCompress};
use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

/// The head of a stream: deflate, no name, no time, unknown system.
const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// The last block, which is empty.
const LAST_BLOCK: [u8; 2] = [3, 0];
/// Most bytes in an uncompressed block.
const STORED_BYTES_MAX: usize = 0xffff;
/// Pieces of fewer bytes are not compressed.
const SHORT_BYTES: usize = 48;

/// Whether a client accepts gzip (RFC 9110, section 12.5.3). Invalid items are ignored.
pub(crate) fn is_accepted(headers: &HeaderMap) -> bool {
    let (mut named, mut any) = (None, None);
    let lists = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|list| list.to_str().ok());
    for coding in lists.flat_map(|list| list.split(',')) {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let refused = parts.any(|part| {
            let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            weight.is_some_and(|weight| !weight.parse::<f32>().is_ok_and(|weight| weight > 0.0))
        });
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            named = Some(!refused);
        } else if name == "*" {
            any = Some(!refused);
        }
    }
    named.or(any).unwrap_or(false)
}

/// The state of a stream: the checksum and the length of what was written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gzip {
    checksum: Hasher,
    /// Bytes, modulo 2^32.
    written: u32,
}

impl Gzip {
    /// Appends the head of a stream.
    pub(crate) fn push_head(out: &mut Vec<u8>) {
        out.extend_from_slice(&HEAD);
    }

    /// Appends a piece.
    pub(crate) fn push(&mut self, out: &mut Vec<u8>, piece: &[u8]) {
        self.push_packed(out, piece, &pack(piece));
    }

    /// Appends a piece that [`pack`] has packed.
    pub(crate) fn push_packed(&mut self, out: &mut Vec<u8>, piece: &[u8], packed: &[u8]) {
        self.checksum.update(piece);
        // A piece has far less than 2^32 bytes, and the length counts modulo that.
        self.written = self.written.wrapping_add(piece.len() as u32);
        out.extend_from_slice(packed);
    }

    /// Appends the end of the stream.
    pub(crate) fn push_end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&LAST_BLOCK);
        out.extend_from_slice(&self.checksum.clone().finalize().to_le_bytes());
        out.extend_from_slice(&self.written.to_le_bytes());
    }
}

/// Compresses a piece into blocks that end at a byte boundary and have no references to earlier ones.
pub(crate) fn pack(piece: &[u8]) -> Vec<u8> {
    thread_local! {
        /// One compressor for each thread, since it is large; it is reset for each piece.
        static COMPRESS: RefCell<Compress> = RefCell::new(Compress::new(Compression::default(), false));
    }
    let stored_bytes = piece.len() + piece.len().div_ceil(STORED_BYTES_MAX) * 5;
    if piece.len() >= SHORT_BYTES {
        let packed = COMPRESS.with_borrow_mut(|compress| {
            compress.reset();
            let mut packed = Vec::with_capacity(stored_bytes + 64);
            let whole = compress.compress_vec(piece, &mut packed, FlushCompress::Sync).is_ok();
            // With room left in the output, all of the input was compressed.
            (whole && compress.total_in() == piece.len() as u64 && packed.len() < packed.capacity()).then_some(packed)
        });
        if let Some(packed) = packed.filter(|packed| packed.len() < stored_bytes) {
            return packed;
        }
    }
    let mut stored = Vec::with_capacity(stored_bytes);
    for block in piece.chunks(STORED_BYTES_MAX) {
        let length = block.len() as u16;
        stored.push(0);
        stored.extend_from_slice(&length.to_le_bytes());
        stored.extend_from_slice(&(!length).to_le_bytes());
        stored.extend_from_slice(block);
    }
    stored
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use flate2::{Decompress, FlushDecompress};
    use http::HeaderValue;

    use super::*;

    fn accepted(lists: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for list in lists {
            headers.append(ACCEPT_ENCODING, HeaderValue::from_str(list).unwrap());
        }
        is_accepted(&headers)
    }

    #[test]
    fn accept_encoding_with_a_weight_above_zero_accepts_gzip() {
        for lists in
            [&["gzip"][..], &["br, GZIP;q=0.5"], &["deflate", "x-gzip"], &["*"], &["br, *;q=0.1"], &["gzip ; q=1.000"]]
        {
            assert!(accepted(lists), "{lists:?}");
        }
        for lists in [
            &[][..],
            &[""],
            &["identity"],
            &["gzip;q=0"],
            &["gzip;q=0.000, *"],
            &["gzip;q=x"],
            &["*;q=0"],
            &["gzipped"],
        ] {
            assert!(!accepted(lists), "{lists:?}");
        }
    }

    fn pieces() -> Vec<Vec<u8>> {
        let event = |n: usize| {
            format!("id: 1-{n}\nevent: workflow_progress\ndata: {{\"step\":\"work\",\"progress\":{n}}}\n\n")
                .into_bytes()
        };
        let mut noise: u32 = 1;
        let mut random = |bytes: usize| -> Vec<u8> {
            (0..bytes)
                .map(|_| {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (noise >> 24) as u8
                })
                .collect()
        };
        vec![
            event(1),
            b":\n\n".to_vec(),
            event(2),
            event(2),
            Vec::new(),
            random(47),
            random(200_000),
            vec![b'x'; 300_000],
            event(3),
        ]
    }

    #[test]
    fn each_piece_is_readable_at_once_and_the_stream_as_a_whole() {
        let (mut gzip, mut all) = (Gzip::default(), Vec::new());
        Gzip::push_head(&mut all);
        // After the head it is deflate, read with the bytes so far.
        let mut reader = Decompress::new(false);
        for piece in pieces() {
            let before = all.len();
            gzip.push(&mut all, &piece);
            let mut read = Vec::with_capacity(piece.len() + 1);
            reader.decompress_vec(&all[before..], &mut read, FlushDecompress::Sync).unwrap();
            assert!(read == piece, "{} bytes", piece.len());
        }
        gzip.push_end(&mut all);
        let mut whole = Vec::new();
        GzDecoder::new(&all[..]).read_to_end(&mut whole).unwrap();
        assert!(whole == pieces().concat());
    }

    #[test]
    fn packed_piece_is_at_most_a_few_bytes_longer() {
        for piece in pieces() {
            let packed = pack(&piece);
            assert!(packed.len() <= piece.len() + 5 * piece.len().div_ceil(STORED_BYTES_MAX), "{}", piece.len());
        }
        let event = &pieces()[0].repeat(4);
        assert!(pack(event).len() * 2 < event.len());
    }
}
