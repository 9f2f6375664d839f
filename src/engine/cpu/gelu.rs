//! GELU, exact: `gelu(u) = u Φ(u)`, with slope `Φ(u) + u φ(u)`, where `Φ` and
//! `φ` are distribution function and density of the standard normal
//! distribution.
//!
//! # Source
//! Hendrycks and Gimpel 2016, arXiv:1606.08415.

use pulp::{Simd, WithSimd};

use super::LANES;
use crate::engine::Float;

/// `y = gelu(y + bias)`.
pub(super) struct Gelu<'a, F> {
    pub bias: Option<&'a [F]>,
    pub width: usize,
    pub y: &'a mut [F],
}

impl<F: Float> WithSimd for Gelu<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for y in self.y.chunks_exact_mut(self.width) {
            let (y, y_rest) = y.as_chunks_mut::<LANES>();
            for (i, y) in y.iter_mut().enumerate() {
                *y = gelu::<F, S, LANES>(add(*y, self.bias, i)).0;
            }
            for (i, y) in y_rest.iter_mut().enumerate() {
                *y = gelu::<F, S, 1>(add([*y], self.bias, rest_start(self.width) + i)).0[0];
            }
        }
    }
}

/// `slope = gelu'(y + bias)`, `y = gelu(y + bias)`.
pub(super) struct GeluWithSlope<'a, F> {
    pub bias: Option<&'a [F]>,
    pub width: usize,
    pub y: &'a mut [F],
    pub slope: &'a mut [F],
}

impl<F: Float> WithSimd for GeluWithSlope<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.width;
        let rows = self.y.chunks_exact_mut(width).zip(self.slope.chunks_exact_mut(width));
        for (y, slope) in rows {
            let (y, y_rest) = y.as_chunks_mut::<LANES>();
            let (slope, slope_rest) = slope.as_chunks_mut::<LANES>();
            for (i, (y, slope)) in y.iter_mut().zip(slope).enumerate() {
                (*y, *slope) = gelu::<F, S, LANES>(add(*y, self.bias, i));
            }
            for (i, (y, slope)) in y_rest.iter_mut().zip(slope_rest).enumerate() {
                let u = add([*y], self.bias, rest_start(width) + i);
                ([*y], [*slope]) = gelu::<F, S, 1>(u);
            }
        }
    }
}

/// `dy *= slope`.
pub(super) struct Scale<'a, F> {
    pub slope: &'a [F],
    pub dy: &'a mut [F],
}

impl<F: Float> WithSimd for Scale<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (dy, &slope) in self.dy.iter_mut().zip(self.slope) {
            *dy *= slope;
        }
    }
}

/// Adds the `i`-th `N` values of the bias.
#[inline(always)]
fn add<F: Float, const N: usize>(mut u: [F; N], bias: Option<&[F]>, i: usize) -> [F; N] {
    if let Some(bias) = bias {
        let bias = &bias.as_chunks::<N>().0[i];
        for l in 0..N {
            u[l] += bias[l];
        }
    }
    u
}

/// Where a row's values begin that fill no lanes.
#[inline(always)]
fn rest_start(width: usize) -> usize {
    width / LANES * LANES
}

#[inline(always)]
fn gelu<F: Float, S: Simd, const N: usize>(u: [F; N]) -> ([F; N], [F; N]) {
    let (mut value, mut slope) = ([F::zero(); N], [F::zero(); N]);
    for i in 0..N {
        let (cdf, pdf) = u[i].normal::<S>();
        value[i] = u[i] * cdf;
        slope[i] = u[i].fused::<S>(pdf, cdf);
    }
    (value, slope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::simd;

    #[test]
    fn values_and_slopes_match_double_precision() {
        let width = 21;
        let bias: Vec<f32> = (0..width).map(|c| 0.1 * c as f32 - 1.0).collect();
        let input: Vec<f32> =
            (0..3 * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 10.0).collect();
        let (mut y, mut slope) = (input.clone(), vec![0.0; input.len()]);
        simd(GeluWithSlope { bias: Some(&bias), width, y: &mut y, slope: &mut slope });
        let mut plain = input.clone();
        simd(Gelu { bias: Some(&bias), width, y: &mut plain });
        assert_eq!(plain, y);
        for i in 0..y.len() {
            let u = f64::from(input[i] + bias[i % width]);
            let cdf = 0.5 * libm::erfc(-u / 2f64.sqrt());
            let pdf = (-0.5 * u * u).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(y[i]) - u * cdf).abs() < 1e-6, "gelu({u})");
            assert!((f64::from(slope[i]) - (cdf + u * pdf)).abs() < 1e-6, "slope at {u}");
        }
    }
}
