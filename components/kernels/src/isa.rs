//! Which instruction set a computation is compiled for.

use std::fmt;
use std::str::FromStr;

#[cfg(target_arch = "x86_64")]
use crate::avx2::Avx2;
use crate::portable::Portable;
use crate::simd::{Kernel, Simd};

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

/// The name of no instruction set that this processor has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa {
    name: String,
    available: String,
}

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, available } = self;
        write!(f, "instruction set {name:?} is not available; this processor has: {available}")
    }
}

impl std::error::Error for UnknownIsa {}

/// How an instruction set wants data to be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Columns of a panel of weights.
    pub(crate) columns: usize,
    /// The most rows of a block of activations.
    pub(crate) rows: usize,
    /// Elements of the inner dimension that are multiplied together in an integer product.
    pub(crate) group: usize,
}

impl Isa {
    /// Every instruction set that this processor has, the best first.
    pub fn available() -> Vec<Self> {
        let mut kinds = Vec::new();
        #[cfg(target_arch = "x86_64")]
        kinds.extend(Avx2::detect().map(Kind::Avx2));
        kinds.push(Kind::Portable(Portable));
        kinds.into_iter().map(Self).collect()
    }

    /// The fastest that this processor has.
    pub fn best() -> Self {
        Self::available().first().copied().unwrap_or(Self(Kind::Portable(Portable)))
    }

    /// Its name, as [`FromStr`] reads it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
        }
    }

    pub(crate) fn layout(self) -> Layout {
        match self.0 {
            Kind::Portable(simd) => layout_of(simd),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(simd) => layout_of(simd),
        }
    }

    /// Runs a kernel, compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Kind::Portable(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(simd) => simd.run(kernel),
        }
    }
}

fn layout_of<S: Simd>(_: S) -> Layout {
    Layout { columns: 2 * S::LANES, rows: S::ROWS, group: S::GROUP }
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
        assert!(error.contains("\"mmx\"") && error.contains("portable"), "{error}");
    }

    #[test]
    fn processor_with_avx2_prefers_it() {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            assert_eq!(Isa::best().name(), "avx2");
        }
    }
}
