//! The stored forms of weights, and the packed form of each.
//!
//! A type whose scales are f16 (`Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`) is packed without loss. The scales and minima of `Q4_K` and
//! `Q5_K` are products of an f16 and an integer of six bits: they are rounded to the eleven bits of f16, after a power of two has moved
//! the greatest one to the top of its range. The relative error of at most 2^-11 is far below the step of the integers. `Q6_K` has a
//! scale for each sixteen weights, and f32, f16 and bf16 have none: their weights are rounded to eight bits in blocks of 32, with an
//! error of at most 1/254 of the greatest weight of the block.

use weir_kernels::{BLOCK, WeightBlock, WeightForm};

use crate::gguf::TensorType;

/// Elements of a superblock.
const SUPERBLOCK: usize = 256;
/// The supported types.
const SUPPORTED: [TensorType; 11] = [
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q4_K,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q5_K,
    TensorType::Q6_K,
    TensorType::Q8_0,
    TensorType::F16,
    TensorType::BF16,
    TensorType::F32,
];

/// The names of the supported types of weights, separated by commas.
pub fn supported_types() -> String {
    SUPPORTED.map(|ty| ty.name).join(", ")
}

pub(super) fn is_supported(ty: TensorType) -> bool {
    SUPPORTED.contains(&ty)
}

/// The packed form of a type.
pub(super) fn form(ty: TensorType) -> WeightForm {
    match ty {
        TensorType::Q4_0 => WeightForm::Nibbles { center: 8 },
        TensorType::Q4_1 | TensorType::Q4_K => WeightForm::NibblesWithMinimum,
        TensorType::Q5_0 => WeightForm::Bytes { center: 16 },
        TensorType::Q5_1 | TensorType::Q5_K => WeightForm::BytesWithMinimum,
        _ => WeightForm::Bytes { center: 128 },
    }
}

/// Whether the scales of a type are f16.
fn has_f16_scales(ty: TensorType) -> bool {
    let types = [TensorType::Q4_0, TensorType::Q4_1, TensorType::Q5_0, TensorType::Q5_1, TensorType::Q8_0];
    types.contains(&ty)
}

/// The power of two by which all scales and minima of a tensor are divided, so that they are in the range of f16.
pub(super) fn factor(ty: TensorType, bytes: &[u8]) -> f32 {
    if has_f16_scales(ty) {
        return 1.0;
    }
    let size = (ty.block_bytes as usize * BLOCK).div_ceil(ty.block_elements as usize);
    let mut greatest = 0.0_f32;
    if ty.block_elements == SUPERBLOCK as u64 {
        for superblock in bytes.chunks_exact(ty.block_bytes as usize) {
            for part in 0..SUPERBLOCK / BLOCK {
                let block = block(ty, superblock, part);
                greatest = greatest.max(block.scale.abs()).max(block.minimum.abs());
            }
        }
    } else {
        for bytes in bytes.chunks_exact(size) {
            greatest = greatest.max(block(ty, bytes, 0).scale.abs());
        }
    }
    if greatest > 0.0 && greatest.is_finite() { 2_f32.powi(greatest.log2().ceil() as i32 - 15) } else { 1.0 }
}

/// Block `index` of a row: 32 weights.
pub(super) fn block(ty: TensorType, row: &[u8], index: usize) -> WeightBlock {
    let size = ty.block_bytes as usize;
    match ty {
        TensorType::Q4_0 => {
            let bytes = &row[index * size..][..size];
            WeightBlock { scale: f16(bytes), minimum: 0.0, values: nibbles(&bytes[2..]) }
        }
        TensorType::Q4_1 => {
            let bytes = &row[index * size..][..size];
            WeightBlock { scale: f16(bytes), minimum: f16(&bytes[2..]), values: nibbles(&bytes[4..]) }
        }
        TensorType::Q5_0 => {
            let bytes = &row[index * size..][..size];
            let values = with_high_bits(nibbles(&bytes[6..]), &bytes[2..6]);
            WeightBlock { scale: f16(bytes), minimum: 0.0, values }
        }
        TensorType::Q5_1 => {
            let bytes = &row[index * size..][..size];
            let values = with_high_bits(nibbles(&bytes[8..]), &bytes[4..8]);
            WeightBlock { scale: f16(bytes), minimum: f16(&bytes[2..]), values }
        }
        TensorType::Q8_0 => {
            let bytes = &row[index * size..][..size];
            let mut values = [0; BLOCK];
            values.iter_mut().zip(&bytes[2..]).for_each(|(value, byte)| *value = byte.wrapping_add(128));
            WeightBlock { scale: f16(bytes), minimum: 0.0, values }
        }
        TensorType::Q4_K | TensorType::Q5_K => {
            let (bytes, part) = superblock(row, size, index);
            let (scale, minimum) = six_bits(&bytes[4..16], part);
            let quants = if ty == TensorType::Q4_K { &bytes[16..] } else { &bytes[48..] };
            let mut values = [0; BLOCK];
            for (element, value) in values.iter_mut().enumerate() {
                *value = quants[part / 2 * BLOCK + element] >> (part % 2 * 4) & 15;
                if ty == TensorType::Q5_K {
                    *value |= (bytes[16 + element] >> part & 1) << 4;
                }
            }
            let (scale, minimum) = (f16(bytes) * f32::from(scale), -f16(&bytes[2..]) * f32::from(minimum));
            WeightBlock { scale, minimum, values }
        }
        _ => {
            let mut weights = [0.0; BLOCK];
            plain(ty, row, index, &mut weights);
            round_block(&weights)
        }
    }
}

/// Writes the weights of a row in f32, exactly as the type defines them.
///
/// # Panics
/// If the row is shorter than `out`, or the type is not supported.
pub fn decode_row(ty: TensorType, row: &[u8], out: &mut [f32]) {
    assert!(is_supported(ty), "a type that is not supported");
    let form = form(ty);
    for (index, out) in out.chunks_mut(BLOCK).enumerate() {
        if matches!(ty, TensorType::Q6_K | TensorType::F16 | TensorType::BF16 | TensorType::F32) {
            plain(ty, row, index, out);
            continue;
        }
        let block = block(ty, row, index);
        let center = match form {
            WeightForm::Nibbles { center } | WeightForm::Bytes { center } => f32::from(center),
            WeightForm::NibblesWithMinimum | WeightForm::BytesWithMinimum => 0.0,
        };
        for (value, out) in block.values.iter().zip(out) {
            *out = block.scale * (f32::from(*value) - center) + block.minimum;
        }
    }
}

/// Decodes 32 weights of a type that has no scale for each 32.
fn plain(ty: TensorType, row: &[u8], index: usize, out: &mut [f32]) {
    let size = ty.block_bytes as usize;
    for (element, out) in out.iter_mut().enumerate() {
        let position = index * BLOCK + element;
        *out = match ty {
            TensorType::Q6_K => {
                let (bytes, part) = superblock(row, size, index);
                let (half, quarter) = (part / 4, part % 4);
                let low = bytes[half * 64 + quarter % 2 * 32 + element] >> (quarter / 2 * 4) & 15;
                let high = bytes[128 + half * 32 + element] >> (2 * quarter) & 3;
                let scale = bytes[192 + half * 8 + 2 * quarter + element / 16] as i8;
                f16(&bytes[208..]) * f32::from(scale) * (f32::from(low | high << 4) - 32.0)
            }
            TensorType::F16 => f16(&row[2 * position..]),
            TensorType::BF16 => {
                f32::from_bits(u32::from(u16::from_le_bytes([row[2 * position], row[2 * position + 1]])) << 16)
            }
            _ => {
                let bytes = &row[4 * position..][..4];
                f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
        };
    }
}

/// Rounds weights to eight bits.
fn round_block(weights: &[f32; BLOCK]) -> WeightBlock {
    let greatest = weights.iter().fold(0.0_f32, |greatest, weight| {
        // Not `max`, which ignores NaN: the scale must be NaN too, so that the tensor is refused.
        if weight.abs() <= greatest { greatest } else { weight.abs() }
    });
    let scale = greatest / 127.0;
    let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    let values = weights.map(|weight| ((weight * inverse).round_ties_even().clamp(-127.0, 127.0) as i32 + 128) as u8);
    WeightBlock { scale, minimum: 0.0, values }
}

/// The superblock of a block of 32, and the index of the block in it.
fn superblock(row: &[u8], size: usize, index: usize) -> (&[u8], usize) {
    let parts = SUPERBLOCK / BLOCK;
    (&row[index / parts * size..][..size], index % parts)
}

/// The scale and minimum of a part, six bits each.
fn six_bits(bytes: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        return (bytes[part] & 63, bytes[part + 4] & 63);
    }
    let scale = bytes[part + 4] & 15 | (bytes[part - 4] >> 6) << 4;
    (scale, bytes[part + 4] >> 4 | (bytes[part] >> 6) << 4)
}

/// The low nibbles of sixteen bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    let mut values = [0; BLOCK];
    for (index, byte) in bytes[..BLOCK / 2].iter().enumerate() {
        (values[index], values[index + BLOCK / 2]) = (byte & 15, byte >> 4);
    }
    values
}

/// Sets the fifth bit of each value from a bit field.
fn with_high_bits(mut values: [u8; BLOCK], field: &[u8]) -> [u8; BLOCK] {
    for (index, value) in values.iter_mut().enumerate() {
        *value |= (field[index / 8] >> (index % 8) & 1) << 4;
    }
    values
}

/// Reads an f16 from the first two bytes, including infinities and NaN.
fn f16(bytes: &[u8]) -> f32 {
    let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    if magnitude >= 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | (magnitude & 0x3ff) << 13);
    }
    let value = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(sign | value.to_bits())
}
