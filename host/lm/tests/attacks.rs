//! Files that break the format: each is refused with its error, and nothing panics.

#![allow(clippy::unwrap_used)]

mod support;

use support::{GgufFile, Random, Small};
use weir_lm::Model;
use weir_lm::gguf::{GgufError, Header, TensorType};

fn parse(bytes: &[u8]) -> Result<Header, GgufError> {
    Header::parse(bytes, bytes.len() as u64)
}

fn one_tensor() -> GgufFile {
    let mut file = GgufFile::default();
    file.text("general.architecture", "llama");
    file.tensor("a", &[32, 2], TensorType::Q8_0, vec![0; 68]);
    file.tensor("b", &[4], TensorType::F32, vec![0; 16]);
    file
}

/// The offset of a part of bytes.
fn find(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).unwrap()
}

/// The file with other bytes at a distance from a name in it.
fn patched(name: &str, distance: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = one_tensor().bytes();
    let name: Vec<u8> = [&(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
    let offset = find(&file, &name) + name.len() + distance;
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn truncated_file_is_refused() {
    let file = Small::new("qwen3", TensorType::Q4_0).file().bytes();
    let header = parse(&file).unwrap();
    let data = header.tensors.values().map(|entry| entry.offset).min().unwrap() as usize;
    for length in (0..data).step_by(7).chain(data - 64..data) {
        let whole = Header::parse(&file[..length], file.len() as u64);
        // The padding before the first tensor is not read.
        assert!(whole.is_err() || length > data - 32, "{length}");
        assert!(parse(&file[..length]).is_err(), "{length}");
    }
    assert!(matches!(parse(&file[..file.len() - 1]), Err(GgufError::OutOfFile { .. })));
}

#[test]
fn counts_and_lengths_beyond_the_bounds_are_refused_before_memory_is_allocated() {
    let mut file = one_tensor().bytes();
    file[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(parse(&file), Err(GgufError::TooMany { count: u64::MAX, .. })));
    file[8..16].copy_from_slice(&65_536_u64.to_le_bytes());
    assert!(parse(&file).is_err());
    let mut file = one_tensor().bytes();
    file[16..24].copy_from_slice(&5000_u64.to_le_bytes());
    assert!(matches!(parse(&file), Err(GgufError::TooMany { count: 5000, count_max: 4096, .. })));
    let mut file = one_tensor().bytes();
    file[24..32].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
    assert!(matches!(parse(&file), Err(GgufError::TooLong { bytes_max: 256, .. })));
    // An array of the most elements, in a short file.
    for (ty, count) in [(0_u32, 4_194_304_u64), (8, 4_000_000), (12, 1 << 20), (5, u64::MAX)] {
        let mut file = GgufFile::default();
        file.integers("a", &[]);
        let mut bytes = file.bytes();
        let offset = find(&bytes, b"\x09\0\0\0\x05\0\0\0") + 4;
        bytes[offset..offset + 4].copy_from_slice(&ty.to_le_bytes());
        bytes[offset + 4..offset + 12].copy_from_slice(&count.to_le_bytes());
        assert!(matches!(parse(&bytes), Err(GgufError::Truncated { .. } | GgufError::TooMany { .. })), "{ty}");
    }
}

#[test]
fn metadata_that_breaks_the_format_is_refused() {
    assert_eq!(parse(b"GGML\x03\0\0\0").unwrap_err(), GgufError::Magic);
    assert_eq!(parse(b"GGUF\x01\0\0\0").unwrap_err(), GgufError::Version { version: 1, is_big_endian: false });
    let big = parse(b"GGUF\0\0\0\x03").unwrap_err();
    assert!(big.to_string().contains("big-endian"), "{big}");
    let nested = patched("general.architecture", 0, &[9, 0, 0, 0, 9, 0, 0, 0]);
    assert_eq!(parse(&nested).unwrap_err(), GgufError::Nested { key: "general.architecture".to_owned() });
    let ty = patched("general.architecture", 0, &[13, 0, 0, 0]);
    assert!(matches!(parse(&ty), Err(GgufError::ValueType { id: 13, .. })));
    let boolean = patched("general.architecture", 0, &[7, 0, 0, 0, 2]);
    assert!(matches!(parse(&boolean), Err(GgufError::NotBoolean { .. })));
    let text = patched("general.architecture", 12, &[0xff]);
    assert!(matches!(parse(&text), Err(GgufError::NotUtf8 { .. })));
    let mut twice = one_tensor();
    twice.text("general.architecture", "llama");
    assert!(matches!(parse(&twice.bytes()), Err(GgufError::RepeatedKey { .. })));
}

#[test]
fn tensors_that_break_the_format_are_refused() {
    // After the name: the rank, two dimensions, the type, the offset.
    assert!(matches!(parse(&patched("a", 0, &[5])), Err(GgufError::TooMany { count: 5, count_max: 4, .. })));
    for dimensions in [[0, 2], [u64::MAX, u64::MAX], [1 << 40, 1 << 30], [33, 2]] {
        let bytes: Vec<u8> = dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()).collect();
        assert!(matches!(parse(&patched("a", 4, &bytes)), Err(GgufError::Dimensions { .. })), "{dimensions:?}");
    }
    assert!(matches!(parse(&patched("a", 20, &[5])), Err(GgufError::TensorType { id: 5, .. })));
    assert!(matches!(parse(&patched("a", 24, &[1])), Err(GgufError::Unaligned { offset: 1, .. })));
    assert!(matches!(parse(&patched("b", 16, &[64])), Err(GgufError::Overlap { .. })));
    for offset in [1 << 30, u64::MAX - 31] {
        assert!(
            matches!(parse(&patched("a", 24, &offset.to_le_bytes())), Err(GgufError::OutOfFile { .. })),
            "{offset}"
        );
    }
    let mut twice = one_tensor();
    twice.tensor("a", &[4], TensorType::F32, vec![0; 16]);
    assert!(matches!(parse(&twice.bytes()), Err(GgufError::RepeatedTensor { .. })));
}

#[test]
fn changed_bytes_never_panic() {
    let small = Small { layers: 1, tokens: 20, ..Small::new("llama", TensorType::Q4_0) };
    let file = small.file().bytes();
    let data = parse(&file).unwrap().tensors.values().map(|entry| entry.offset).min().unwrap() as usize;
    let mut random = Random::new(5);
    let (mut loaded, mut refused) = (0, 0);
    for turn in 0..600 {
        let mut file = file.clone();
        for _ in 0..1 + turn % 3 {
            let offset = random.below(data);
            file[offset] = match random.below(3) {
                0 => random.next() as u8,
                1 => file[offset] ^ 1 << random.below(8),
                _ => 0xff,
            };
        }
        let path = std::env::temp_dir().join(format!("weir-lm-attack-{}.gguf", std::process::id()));
        std::fs::write(&path, &file).unwrap();
        match Model::load(&path) {
            Ok(_) => loaded += 1,
            Err(_) => refused += 1,
        }
        std::fs::remove_file(&path).unwrap();
    }
    assert!(loaded > 5 && refused > 100, "{loaded} loaded, {refused} refused");
}
