//! The angles of rotary positions.

use super::parameters::Parameters;

/// The frequency of each pair of elements.
#[derive(Debug)]
pub(crate) struct Rotary {
    frequencies: Vec<f64>,
}

impl Rotary {
    /// `divisors` divide the frequencies: `rope_freqs.weight`, which files of Llama 3 have.
    pub(super) fn new(parameters: &Parameters, divisors: Option<&[f32]>) -> Self {
        let pairs = parameters.rope_elements / 2;
        let frequencies = (0..pairs).map(|pair| {
            let exponent = -2.0 * pair as f64 / parameters.rope_elements as f64;
            let divisor = divisors.map_or(1.0, |divisors| f64::from(divisors[pair]));
            f64::from(parameters.rope_base).powf(exponent) / divisor / f64::from(parameters.rope_divisor)
        });
        Self { frequencies: frequencies.collect() }
    }

    /// Pairs of elements of a head.
    pub(crate) fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Writes the cosines and sines of a position's angles.
    pub(crate) fn angles(&self, position: usize, cosines: &mut [f32], sines: &mut [f32]) {
        for ((frequency, cosine), sine) in self.frequencies.iter().zip(cosines).zip(sines) {
            let (s, c) = (position as f64 * frequency).sin_cos();
            (*cosine, *sine) = (c as f32, s as f32);
        }
    }
}
