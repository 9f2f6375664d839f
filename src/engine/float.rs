//! Number types of the engine, and the elementary functions of its kernels.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{AddAssign, DivAssign, MulAssign, SubAssign};

use pulp::Simd;

use super::transpose::Transpose;

/// A number type that the engine computes in: `f32`, which is fast, or `f64`,
/// for checks of gradients and of rounding.
pub trait Float:
    num_traits::Float
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
    + Default
    + Debug
    + Display
    + Send
    + Sync
    + Elementary
    + Vector
    + Transpose
    + 'static
{
    /// The nearest value to `value`.
    fn from_f64(value: f64) -> Self;
    /// The same value in `f64`.
    fn as_f64(self) -> f64;
}

/// What kernels compute of one value. Written without branches, so that a loop
/// over lanes becomes vector instructions.
pub trait Elementary: Sized {
    /// `self * b + c`, rounded once where the instruction set `S` does that in
    /// one instruction, and twice elsewhere (a fused product in software would
    /// be slow).
    fn fused<S: Simd>(self, b: Self, c: Self) -> Self;
    /// `e^self` for `self <= 0`; values below the smallest normal number
    /// become about that number.
    fn exp_negative<S: Simd>(self) -> Self;
    /// Distribution function and density of the standard normal distribution.
    fn normal<S: Simd>(self) -> (Self, Self);
}

/// Vectors of an instruction set. Kernels that plan with registers name them; what is not
/// so tight is a loop over a few lanes.
pub trait Vector: Sized {
    /// One register of values.
    type Lanes<S: Simd>: Copy;
    /// Values in a register.
    fn lanes<S: Simd>() -> usize;
    /// The same value in all lanes.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Lanes<S>;
    /// `a + b`.
    fn add_lanes<S: Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>) -> Self::Lanes<S>;
    /// `a * b + c`, rounded as [`Elementary::fused`].
    fn fused_lanes<S: Simd>(
        simd: S,
        a: Self::Lanes<S>,
        b: Self::Lanes<S>,
        c: Self::Lanes<S>,
    ) -> Self::Lanes<S>;
    /// Values that fill less than a register, or one, and something.
    fn partial_load<S: Simd>(simd: S, values: &[Self]) -> Self::Lanes<S>;
    /// As many values of a register as fit.
    fn partial_store<S: Simd>(simd: S, values: &mut [Self], lanes: Self::Lanes<S>);
    /// The values as registers, but for those that fill none.
    fn as_lanes<S: Simd>(values: &[Self]) -> &[Self::Lanes<S>];
    /// The same, to be changed.
    fn as_mut_lanes<S: Simd>(values: &mut [Self]) -> &mut [Self::Lanes<S>];
}

macro_rules! vector {
    ($float:ty, $lanes:ident, $count:ident, $splat:ident, $add:ident, $fused:ident, $view:ident, $view_mut:ident, $load:ident, $store:ident) => {
        impl Vector for $float {
            type Lanes<S: Simd> = S::$lanes;

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$count
            }

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$lanes {
                simd.$splat(value)
            }

            #[inline(always)]
            fn add_lanes<S: Simd>(simd: S, a: S::$lanes, b: S::$lanes) -> S::$lanes {
                simd.$add(a, b)
            }

            #[inline(always)]
            fn fused_lanes<S: Simd>(
                simd: S,
                a: S::$lanes,
                b: S::$lanes,
                c: S::$lanes,
            ) -> S::$lanes {
                simd.$fused(a, b, c)
            }

            #[inline(always)]
            fn partial_load<S: Simd>(simd: S, values: &[Self]) -> S::$lanes {
                simd.$load(values)
            }

            #[inline(always)]
            fn partial_store<S: Simd>(simd: S, values: &mut [Self], lanes: S::$lanes) {
                simd.$store(values, lanes)
            }

            #[inline(always)]
            fn as_lanes<S: Simd>(values: &[Self]) -> &[S::$lanes] {
                S::$view(values).0
            }

            #[inline(always)]
            fn as_mut_lanes<S: Simd>(values: &mut [Self]) -> &mut [S::$lanes] {
                S::$view_mut(values).0
            }
        }
    };
}

vector!(
    f32,
    f32s,
    F32_LANES,
    splat_f32s,
    add_f32s,
    mul_add_e_f32s,
    as_simd_f32s,
    as_mut_simd_f32s,
    partial_load_f32s,
    partial_store_f32s
);
vector!(
    f64,
    f64s,
    F64_LANES,
    splat_f64s,
    add_f64s,
    mul_add_e_f64s,
    as_simd_f64s,
    as_mut_simd_f64s,
    partial_load_f64s,
    partial_store_f64s
);

/// Whether `S` has fused multiply-add; known when a kernel is compiled.
#[inline(always)]
fn fuses<S: Simd>() -> bool {
    let native = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
    native && std::any::TypeId::of::<S>() != std::any::TypeId::of::<pulp::Scalar>()
}

impl Float for f32 {
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn as_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Elementary for f32 {
    #[inline(always)]
    fn fused<S: Simd>(self, b: Self, c: Self) -> Self {
        if fuses::<S>() {
            self.mul_add(b, c)
        } else {
            self * b + c
        }
    }

    /// Relative error below 2e-7: `e^x = 2^n e^r` with `|r| <= ln 2 / 2`, and a
    /// polynomial of degree 7 for `e^r` (the coefficients of Cephes `expf`).
    #[inline(always)]
    #[allow(clippy::excessive_precision)]
    fn exp_negative<S: Simd>(self) -> Self {
        /// `1.5 * 2^23`: adding it rounds to an integer, left in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let x = self.max(-87.3);
        let shifted = x.fused::<S>(std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        // ln 2 in two parts, the first exact in a few bits.
        let r = n.fused::<S>(-0.693_359_375, x);
        let r = n.fused::<S>(2.121_944_4e-4, r);
        let p = 1.987_569_15e-4_f32;
        let p = p.fused::<S>(r, 1.398_199_95e-3);
        let p = p.fused::<S>(r, 8.333_451_9e-3);
        let p = p.fused::<S>(r, 4.166_579_6e-2);
        let p = p.fused::<S>(r, 1.666_666_55e-1);
        let p = p.fused::<S>(r, 5.000_000_1e-1);
        let y = (p * r).fused::<S>(r, r) + 1.0;
        let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
        y * power
    }

    /// Absolute error of the distribution function at most 1.3e-7: `Φ(-z) = e^(-z²/2) p(z)` for
    /// `z` from 0 on, where the polynomial `p` of degree 10 differs from what it stands for by at
    /// most 6.6e-8 once multiplied (found by Lawson's iteration). A division would take longer
    /// than its ten terms.
    #[inline(always)]
    #[allow(clippy::excessive_precision)]
    fn normal<S: Simd>(self) -> (Self, Self) {
        /// From here on the exponential is all but zero, and no power may overflow.
        const FAR: f32 = 14.0;
        let e = (-0.5 * self * self).exp_negative::<S>();
        let z = self.abs();
        let z = if z > FAR { FAR } else { z };
        let p = 1.631_696_14e-6_f32;
        let p = p.fused::<S>(z, -3.520_789_38e-5);
        let p = p.fused::<S>(z, 3.397_392_60e-4);
        let p = p.fused::<S>(z, -1.974_630_67e-3);
        let p = p.fused::<S>(z, 7.939_398_51e-3);
        let p = p.fused::<S>(z, -2.431_394_16e-2);
        let p = p.fused::<S>(z, 6.115_489_66e-2);
        let p = p.fused::<S>(z, -0.132_513_804);
        let p = p.fused::<S>(z, 0.249_916_795);
        let p = p.fused::<S>(z, -0.398_936_515);
        let p = p.fused::<S>(z, 0.499_999_934);
        let tail = p * e;
        let cdf = if self < 0.0 { tail } else { 1.0 - tail };
        (cdf, e * 0.398_942_3)
    }
}

impl Float for f64 {
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn as_f64(self) -> f64 {
        self
    }
}

impl Elementary for f64 {
    #[inline(always)]
    fn fused<S: Simd>(self, b: Self, c: Self) -> Self {
        if fuses::<S>() {
            self.mul_add(b, c)
        } else {
            self * b + c
        }
    }

    #[inline(always)]
    fn exp_negative<S: Simd>(self) -> Self {
        libm::exp(self)
    }

    #[inline(always)]
    fn normal<S: Simd>(self) -> (Self, Self) {
        let cdf = 0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2);
        (cdf, libm::exp(-0.5 * self * self) * 0.398_942_280_401_432_7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::Scalar;

    #[test]
    fn single_precision_functions_stay_within_their_error() {
        for i in -4000..=4000 {
            let x = i as f32 * 0.005;
            let (cdf, pdf) = x.normal::<Scalar>();
            let (exact_cdf, exact_pdf) = f64::from(x).normal::<Scalar>();
            assert!((f64::from(cdf) - exact_cdf).abs() < 4e-7, "cdf({x}) = {cdf}");
            assert!((f64::from(pdf) - exact_pdf).abs() < 4e-7, "pdf({x}) = {pdf}");
            let y = -x.abs();
            let exp = f64::from(y).exp();
            let error = (f64::from(y.exp_negative::<Scalar>()) - exp).abs() / exp;
            assert!(error < 3e-7, "exp({y}): {error}");
        }
        assert!(f32::NEG_INFINITY.exp_negative::<Scalar>() < 1.3e-38);
        assert_eq!(0f32.exp_negative::<Scalar>(), 1.0);
        assert!(f32::NAN.normal::<Scalar>().0.is_nan() || f32::NAN.normal::<Scalar>().1.is_nan());
    }
}
