//! Weighted squared error and its gradient: `Σ w (o - t)²`, `w = entry sample`;
//! `do = 2 scale w (o - t)`.

use pulp::{Simd, WithSimd};

use super::{sum_lanes, LANES};
use crate::engine::Float;

/// The sum; the output becomes the gradient. Empty weights count as ones.
pub(super) struct SquaredError<'a, F> {
    pub width: usize,
    pub output: &'a mut [F],
    pub target: &'a [F],
    pub entry: &'a [F],
    pub sample: &'a [F],
    pub scale: f64,
}

impl<F: Float> WithSimd for SquaredError<'_, F> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let rows =
            self.output.chunks_exact_mut(self.width).zip(self.target.chunks_exact(self.width));
        let mut total = 0.0;
        for (row, (output, target)) in rows.enumerate() {
            let weight = self.sample.get(row).map_or(1.0, |w| w.as_f64());
            let slope = F::from_f64(2.0 * self.scale * weight);
            let sum = match self.entry {
                [] => row_sum::<F, S>(output, target, slope),
                entry => weighted_row_sum::<F>(output, target, entry, slope),
            };
            // Rows are summed in f64: there may be many.
            total += weight * sum.as_f64();
        }
        total
    }
}

#[inline(always)]
fn row_sum<F: Float, S: Simd>(output: &mut [F], target: &[F], slope: F) -> F {
    let (output, output_rest) = output.as_chunks_mut::<LANES>();
    let (target, target_rest) = target.as_chunks::<LANES>();
    let mut sums = [F::zero(); LANES];
    for (output, target) in output.iter_mut().zip(target) {
        let mut gradient = *output;
        for i in 0..LANES {
            let d = gradient[i] - target[i];
            sums[i] = d.fused::<S>(d, sums[i]);
            gradient[i] = slope * d;
        }
        *output = gradient;
    }
    let mut sum = sum_lanes(sums);
    for (output, &target) in output_rest.iter_mut().zip(target_rest) {
        let d = *output - target;
        sum += d * d;
        *output = slope * d;
    }
    sum
}

#[inline(always)]
fn weighted_row_sum<F: Float>(output: &mut [F], target: &[F], entry: &[F], slope: F) -> F {
    let mut sum = F::zero();
    for ((output, &target), &weight) in output.iter_mut().zip(target).zip(entry) {
        let d = *output - target;
        sum += weight * d * d;
        *output = slope * weight * d;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::simd;

    #[test]
    fn weights_multiply_and_missing_weights_are_ones() {
        let width = 18;
        let start: Vec<f32> = (0..2 * width).map(|i| i as f32 * 0.25).collect();
        let target = vec![1.0; 2 * width];
        let run = |entry: &[f32], sample: &[f32]| {
            let mut output = start.clone();
            let loss = SquaredError {
                width,
                output: &mut output,
                target: &target,
                entry,
                sample,
                scale: 0.5,
            };
            (simd(loss), output)
        };
        let naive: f64 = start.iter().map(|&x| f64::from(x - 1.0).powi(2)).sum();
        let (sum, gradient) = run(&[], &[]);
        assert!((sum - naive).abs() < 1e-3);
        assert!(gradient.iter().zip(&start).all(|(g, x)| (g - (x - 1.0)).abs() < 1e-6));
        assert_eq!(run(&vec![1.0; width], &[1.0, 1.0]).1, gradient);
        let (weighted, gradient) = run(&vec![3.0; width], &[0.0, 1.0]);
        let second: f64 = start[width..].iter().map(|&x| f64::from(x - 1.0).powi(2)).sum();
        assert!((weighted - 3.0 * second).abs() < 1e-2);
        assert!(gradient[..width].iter().all(|&g| g == 0.0));
    }
}
