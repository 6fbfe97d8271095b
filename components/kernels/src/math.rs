//! Elementary functions by lane.

use crate::simd::Simd;

/// An activation function of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x/2 (1 + erf(x / sqrt 2))`: `gelu` in `config.json`.
    Gelu,
    /// The approximation by tanh: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `x / (1 + exp(-x))`: `silu`, `swish`.
    Silu,
}

impl Activation {
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, simd: S, x: S::F32) -> S::F32 {
        match self {
            Self::Gelu => gelu(simd, x),
            Self::GeluTanh => gelu_tanh(simd, x),
            Self::Relu => simd.max(x, simd.splat(0.0)),
            Self::Silu => simd.mul(x, logistic(simd, x)),
        }
    }
}

/// `exp(x)`, relative error below 2^-22, for x from -87.3 to 88.3; beyond it the value at that bound. Cody and Waite's reduction by
/// ln 2 in two parts, then a polynomial of degree six (the coefficients of the Cephes library's `expf`).
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const COEFFICIENTS: [f32; 5] = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5];
    let x = simd.min(simd.max(x, simd.splat(-87.3)), simd.splat(88.3));
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    let r = simd.mul_add(n, simd.splat(-LN_2_HIGH), x);
    let r = simd.mul_add(n, simd.splat(-LN_2_LOW), r);
    let mut p = simd.splat(1.987_569_1e-4);
    for coefficient in COEFFICIENTS {
        p = simd.mul_add(p, r, simd.splat(coefficient));
    }
    let square = simd.mul(r, r);
    let p = simd.add(simd.mul_add(p, square, r), simd.splat(1.0));
    simd.mul(p, simd.pow2(n))
}

/// The exact GELU.
#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let half = simd.mul(x, simd.splat(0.5));
    simd.mul_add(half, erf(simd, simd.mul(x, simd.splat(std::f32::consts::FRAC_1_SQRT_2))), half)
}

/// The error function, absolute error below 4e-7: a rational function of `x^2`, times x, up to 4, where `1 - erf` is 1.5e-8 (the
/// coefficients of the Eigen library's `erf`).
#[inline(always)]
fn erf<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    const NUMERATOR: [f32; 6] =
        [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2];
    const DENOMINATOR: [f32; 4] = [-2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2];
    let x = simd.min(simd.max(x, simd.splat(-4.0)), simd.splat(4.0));
    let square = simd.mul(x, x);
    let mut p = simd.splat(-2.726_142_3e-10);
    for coefficient in NUMERATOR {
        p = simd.mul_add(p, square, simd.splat(coefficient));
    }
    let mut q = simd.splat(-1.456_607_2e-5);
    for coefficient in DENOMINATOR {
        q = simd.mul_add(q, square, simd.splat(coefficient));
    }
    simd.div(simd.mul(x, p), q)
}

/// `x/2 (1 + tanh(u)) = x / (1 + exp(-2 u))` with `u = sqrt(2/pi) (x + 0.044715 x^3)`.
#[inline(always)]
fn gelu_tanh<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let cube = simd.mul(simd.mul(x, x), x);
    let u = simd.mul(simd.splat(SQRT_2_OVER_PI), simd.mul_add(cube, simd.splat(0.044_715), x));
    simd.mul(x, logistic(simd, simd.add(u, u)))
}

/// `1 / (1 + exp(-x))`
#[inline(always)]
fn logistic<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let one = simd.splat(1.0);
    simd.div(one, simd.add(one, exp(simd, simd.sub(simd.splat(0.0), x))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::{Kernel, LANES_MAX};

    /// Miri takes a thousand times as long.
    const STRIDE: usize = if cfg!(miri) { 1009 } else { 1 };

    struct Apply<F>(F, f32);

    trait Function {
        fn at<S: Simd>(&self, simd: S, x: S::F32) -> S::F32;
    }

    struct Exp;

    struct Erf;

    impl Function for Erf {
        #[inline(always)]
        fn at<S: Simd>(&self, simd: S, x: S::F32) -> S::F32 {
            super::erf(simd, x)
        }
    }

    impl Function for Exp {
        #[inline(always)]
        fn at<S: Simd>(&self, simd: S, x: S::F32) -> S::F32 {
            exp(simd, x)
        }
    }

    impl Function for Activation {
        #[inline(always)]
        fn at<S: Simd>(&self, simd: S, x: S::F32) -> S::F32 {
            self.apply(simd, x)
        }
    }

    impl<F: Function> Kernel for Apply<F> {
        type Output = f32;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> f32 {
            let mut lanes = [0.0; LANES_MAX];
            simd.store(self.0.at(simd, simd.splat(self.1)), &mut lanes);
            assert!(lanes[..S::LANES].iter().all(|lane| lane.to_bits() == lanes[0].to_bits()));
            lanes[0]
        }
    }

    /// In f64, from its series.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        if x.abs() > 4.5 {
            return x.signum();
        }
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn exp_is_within_half_a_millionth_of_f64() {
        for isa in Isa::available() {
            for step in (-87_000..=88_000).step_by(STRIDE) {
                let x = step as f32 / 1000.0;
                let (value, exact) = (f64::from(isa.run(Apply(Exp, x))), f64::from(x).exp());
                assert!(((value - exact) / exact).abs() < 5e-7, "{isa} exp({x}) = {value}, not {exact}");
            }
        }
    }

    #[test]
    fn exp_beyond_its_range_is_finite() {
        for isa in Isa::available() {
            assert!(isa.run(Apply(Exp, -1e30)) < 1.5e-38);
            assert!(isa.run(Apply(Exp, f32::NEG_INFINITY)) < 1.5e-38);
            assert!(isa.run(Apply(Exp, 1e30)).is_finite());
        }
    }

    #[test]
    fn erf_is_within_4e7_of_f64() {
        for isa in Isa::available() {
            for step in (-10_000..=10_000).step_by(STRIDE) {
                let x = step as f32 / 1000.0;
                let (value, exact) = (f64::from(isa.run(Apply(Erf, x))), erf(f64::from(x)));
                assert!((value - exact).abs() < 4e-7, "{isa} erf({x}) = {value}, not {exact}");
            }
        }
    }

    #[test]
    fn activations_agree_with_f64() {
        type Exact = fn(f64) -> f64;
        let functions: [(Activation, Exact); 4] = [
            (Activation::Gelu, |x| x / 2.0 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))),
            (Activation::GeluTanh, |x| {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                x / 2.0 * (1.0 + u.tanh())
            }),
            (Activation::Relu, |x| x.max(0.0)),
            (Activation::Silu, |x| x / (1.0 + (-x).exp())),
        ];
        for isa in Isa::available() {
            for (activation, exact) in functions {
                for step in (-10_000..=10_000).step_by(STRIDE) {
                    let x = step as f32 / 1000.0;
                    let (value, exact) = (f64::from(isa.run(Apply(activation, x))), exact(f64::from(x)));
                    assert!((value - exact).abs() < 3e-6, "{isa} {activation:?}({x}) = {value}, not {exact}");
                }
            }
        }
    }
}
