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
        add_bias(self.bias, self.width, self.y);
        let (lanes, rest) = self.y.as_chunks_mut::<LANES>();
        for y in lanes {
            *y = gelu::<F, S, LANES>(*y).0;
        }
        for y in rest {
            *y = gelu::<F, S, 1>([*y]).0[0];
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
        add_bias(self.bias, self.width, self.y);
        let (lanes, rest) = self.y.as_chunks_mut::<LANES>();
        let (slope_lanes, slope_rest) = self.slope.as_chunks_mut::<LANES>();
        for (y, slope) in lanes.iter_mut().zip(slope_lanes) {
            (*y, *slope) = gelu::<F, S, LANES>(*y);
        }
        for (y, slope) in rest.iter_mut().zip(slope_rest) {
            let ([value], [derivative]) = gelu::<F, S, 1>([*y]);
            (*y, *slope) = (value, derivative);
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

#[inline(always)]
fn add_bias<F: Float>(bias: Option<&[F]>, width: usize, y: &mut [F]) {
    if let Some(bias) = bias {
        for row in y.chunks_exact_mut(width) {
            for (y, &bias) in row.iter_mut().zip(bias) {
                *y += bias;
            }
        }
    }
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
