//! Selection of the instruction set at run time.

use std::fmt;
use std::str::FromStr;

#[cfg(target_arch = "x86_64")]
use crate::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use crate::avx512::Avx512;
#[cfg(target_arch = "aarch64")]
use crate::neon::Neon;
use crate::portable::Portable;
use crate::simd::{Kernel, Simd};
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
use crate::wasm::Wasm;

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2<false>),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Avx2<true>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512<true>),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon<false, false>),
    #[cfg(target_arch = "aarch64")]
    NeonDot(Neon<true, false>),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(Neon<true, true>),
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Wasm(Wasm),
}

impl PartialEq for Isa {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Isa {}

/// Evaluates an expression with the instruction set in scope.
macro_rules! with_simd {
    ($kind:expr, $simd:ident => $value:expr) => {
        match $kind {
            Kind::Portable($simd) => $value,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2($simd) => $value,
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni($simd) => $value,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512($simd) => $value,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16($simd) => $value,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon($simd) => $value,
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot($simd) => $value,
            #[cfg(target_arch = "aarch64")]
            Kind::NeonI8mm($simd) => $value,
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Kind::Wasm($simd) => $value,
        }
    };
}

/// A name that is not that of an available instruction set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa {
    name: String,
    available: String,
}

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, available } = self;
        write!(f, "instruction set `{name}` is not available; this processor has: {available}")
    }
}

impl std::error::Error for UnknownIsa {}

/// The layout of packed weights for an instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Columns of a panel of weights.
    pub(crate) columns: usize,
    /// Elements of the inner dimension that are multiplied together in an integer product.
    pub(crate) group: usize,
}

impl Isa {
    /// Every instruction set that this processor has, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut kinds = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            kinds.extend(Avx512::detect().map(Kind::Avx512Bf16));
            kinds.extend(Avx512::detect().map(Kind::Avx512));
            kinds.extend(Avx2::detect().map(Kind::AvxVnni));
            kinds.extend(Avx2::detect().map(Kind::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            kinds.extend(Neon::detect().map(Kind::NeonI8mm));
            kinds.extend(Neon::detect().map(Kind::NeonDot));
            kinds.extend(Neon::detect().map(Kind::Neon));
        }
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        kinds.extend([Kind::Wasm(Wasm)]);
        kinds.extend([Kind::Portable(Portable)]);
        kinds.into_iter().map(Self).collect()
    }

    /// The fastest instruction set that this processor has.
    pub fn best() -> Self {
        Self::available().first().copied().unwrap_or(Self(Kind::Portable(Portable)))
    }

    /// The name, as [`FromStr`] reads it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni(_) => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16(_) => "avx512bf16",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot(_) => "neondot",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonI8mm(_) => "neoni8mm",
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Kind::Wasm(_) => "simd128",
        }
    }

    /// Whether it has an instruction for products of bf16, which makes them faster than those of f32.
    pub fn has_bf16_products(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16(_) => true,
            _ => false,
        }
    }

    pub(crate) fn layout(self) -> Layout {
        with_simd!(self.0, simd => layout_of(simd))
    }

    /// The number that is subtracted from the byte weights of a quantized matrix when they are packed.
    pub(crate) fn byte_shift(self) -> u8 {
        with_simd!(self.0, simd => byte_shift_of(simd))
    }

    /// Runs a kernel, compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        with_simd!(self.0, simd => simd.run(kernel))
    }
}

fn layout_of<S: Simd>(_: S) -> Layout {
    Layout { columns: 2 * S::LANES, group: S::INT8_GROUP }
}

fn byte_shift_of<S: Simd>(_: S) -> u8 {
    S::BYTE_SHIFT
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        let available = Self::available();
        available.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| UnknownIsa {
            name: name.to_owned(),
            available: available.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_every_available_isa_reads_back() {
        for isa in Isa::available() {
            assert_eq!(isa.name().parse::<Isa>().unwrap().name(), isa.name());
        }
    }

    #[test]
    fn unknown_name_is_refused_with_the_available_ones() {
        let error = "mmx".parse::<Isa>().unwrap_err().to_string();
        assert!(error.contains("`mmx`") && error.contains("portable"), "{error}");
    }

    #[test]
    fn best_isa_is_the_widest_that_the_processor_has() {
        let best = Isa::best().name();
        // Set where a processor is emulated.
        if let Ok(expected) = std::env::var("WEIR_TEST_KERNELS_BEST") {
            assert_eq!(best, expected);
        }
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512vnni") && std::is_x86_feature_detected!("avx512vl") {
                assert!(best.starts_with("avx512"), "{best}");
            } else if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                assert!(best.starts_with("avx"), "{best}");
            }
        }
    }
}
