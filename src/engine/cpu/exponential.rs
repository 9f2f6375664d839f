//! Exponentials of many values.

use pulp::{Simd, WithSimd};

use super::{simd, LANES};
use crate::engine::Float;

/// `values = e^values`, for values of at most 0. What is not a number does not stay so.
pub(crate) fn exp_negative<F: Float>(values: &mut [F]) {
    simd(Exponential { values });
}

struct Exponential<'a, F> {
    values: &'a mut [F],
}

impl<F: Float> WithSimd for Exponential<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (lanes, rest) = self.values.as_chunks_mut::<LANES>();
        for values in lanes {
            let mut exponentials = *values;
            for value in &mut exponentials {
                *value = value.exp_negative::<S>();
            }
            *values = exponentials;
        }
        for value in rest {
            *value = value.exp_negative::<S>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_follow_the_library() {
        let mut values: Vec<f32> = (0..37).map(|i| -0.31 * i as f32).collect();
        let expected: Vec<f32> = values.iter().map(|v| v.exp()).collect();
        exp_negative(&mut values);
        assert!(values.iter().zip(&expected).all(|(a, b)| (a / b - 1.0).abs() < 1e-6));
    }
}
