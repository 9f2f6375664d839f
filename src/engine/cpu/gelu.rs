//! GELU, exact: `gelu(u) = u Φ(u)`, with slope `Φ(u) + u φ(u)`, where `Φ` and
//! `φ` are distribution function and density of the standard normal
//! distribution.
//!
//! # Source
//! Hendrycks and Gimpel 2016, arXiv:1606.08415.

use pulp::Simd;

use super::LANES;
use crate::engine::Float;

/// What becomes of sums of products, while they are in the first-level cache. Slopes lie as the
/// sums do.
pub(super) enum Finish<'a, F> {
    Nothing,
    /// `y = gelu(y)`.
    Gelu,
    /// The same, and `slope = gelu'(y)`.
    GeluWithSlope(&'a mut [F]),
    /// `dy *= slope`: the way back through a GELU.
    Scale(&'a [F]),
}

impl<F: Float> Finish<'_, F> {
    /// Slopes, if there are any.
    pub fn beside(&self) -> &[F] {
        match self {
            Self::Nothing | Self::Gelu => &[],
            Self::GeluWithSlope(slope) => slope,
            Self::Scale(slope) => slope,
        }
    }

    /// Finishes the values of a row, which begin at `place` of all.
    #[inline(always)]
    pub fn row<S: Simd>(&mut self, place: usize, y: &mut [F]) {
        let (lanes, rest) = y.as_chunks_mut::<LANES>();
        let places = place..place + lanes.len() * LANES + rest.len();
        match self {
            Self::Nothing => {}
            Self::Gelu => {
                for y in lanes {
                    *y = gelu::<F, S, LANES>(*y).0;
                }
                for y in rest {
                    *y = gelu::<F, S, 1>([*y]).0[0];
                }
            }
            Self::GeluWithSlope(slope) => {
                let (slopes, slope_rest) = slope[places].as_chunks_mut::<LANES>();
                for (y, slope) in lanes.iter_mut().zip(slopes) {
                    (*y, *slope) = gelu::<F, S, LANES>(*y);
                }
                for (y, slope) in rest.iter_mut().zip(slope_rest) {
                    ([*y], [*slope]) = gelu::<F, S, 1>([*y]);
                }
            }
            Self::Scale(slope) => {
                for (y, &slope) in y.iter_mut().zip(&slope[places]) {
                    *y *= slope;
                }
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
    use pulp::Scalar;

    #[test]
    fn values_and_slopes_match_double_precision() {
        let input: Vec<f32> = (0..63).map(|i| ((i * 37 % 101) as f32 - 50.0) / 10.0).collect();
        let (mut y, mut slope) = (input.clone(), vec![0.0; 2 + input.len()]);
        Finish::GeluWithSlope(&mut slope).row::<Scalar>(2, &mut y);
        let mut plain = input.clone();
        Finish::Gelu.row::<Scalar>(2, &mut plain);
        assert_eq!(plain, y);
        for i in 0..y.len() {
            let u = f64::from(input[i]);
            let cdf = 0.5 * libm::erfc(-u / 2f64.sqrt());
            let pdf = (-0.5 * u * u).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(y[i]) - u * cdf).abs() < 2e-6, "gelu({u}) = {}", y[i]);
            assert!((f64::from(slope[2 + i]) - (cdf + u * pdf)).abs() < 2e-6, "slope at {u}");
        }
        Finish::Scale(&slope).row::<Scalar>(2, &mut plain);
        assert!((0..y.len()).all(|i| plain[i] == y[i] * slope[2 + i]));
    }
}
