//! Embeds scalars: `[sin(f s) for all f, cos(f s) for all f, s]`.
//!
//! Frequencies run from 1 to `2^max`, evenly in the exponent. The phase `f s`
//! is rounded to `f32`, as the reference does: at timestep 999 and frequency
//! 2^14 it is about 10^7, where an ulp is one radian. Sine and cosine of that
//! rounded phase are then accurate; a phase in `f64` would be another model.
//!
//! # Source
//! The G.pt code, `FrequencyEmbedder`.

use crate::engine::Float;

/// Frequencies `2^linspace(0, max_log2, count)` as PyTorch computes them: steps
/// from both ends in `f32`, rounded once, then a power in `f32`.
///
/// Entries may differ from PyTorch's by one unit in the last place, so a model
/// that was trained elsewhere brings its own.
pub fn frequencies(count: usize, max_log2: f64) -> Vec<f32> {
    let end = max_log2 as f32;
    let step = end / (count - 1) as f32;
    (0..count)
        .map(|i| {
            let exponent = if i < count / 2 {
                step * i as f32
            } else {
                (-step).mul_add((count - 1 - i) as f32, end)
            };
            libm::exp2f(exponent)
        })
        .collect()
}

/// Writes the embedding of one scalar.
///
/// # Shapes
/// `frequencies [F]`, `to [2 F + 1]`.
///
/// # Panics
/// If the lengths differ from that.
pub fn embed<F: Float>(frequencies: &[f32], scalar: F, to: &mut [F]) {
    let (sines, rest) = to.split_at_mut(frequencies.len());
    let single = scalar.as_f64() as f32;
    for ((sine, cosine), &frequency) in sines.iter_mut().zip(rest.iter_mut()).zip(frequencies) {
        let (s, c) = f64::from(frequency * single).sin_cos();
        *sine = F::from_f64(f64::from(s as f32));
        *cosine = F::from_f64(f64::from(c as f32));
    }
    rest[frequencies.len()] = scalar;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_run_from_one_to_the_highest() {
        let f = frequencies(16, 14.0);
        assert_eq!((f[0], f[15]), (1.0, 16384.0));
        for (i, f) in f.iter().enumerate() {
            let exact = 2f64.powf(14.0 / 15.0 * i as f64);
            assert!((f64::from(*f) / exact - 1.0).abs() < 2e-6);
        }
    }

    #[test]
    fn phases_are_rounded_to_single_precision() {
        let f = frequencies(3, 14.0);
        let mut out = [0f32; 7];
        embed(&f, 999.0f32, &mut out);
        assert_eq!(out[6], 999.0);
        assert_eq!(out[2], f64::from(16384.0f32 * 999.0).sin() as f32);
        assert_eq!(out[3], 999f64.cos() as f32);
    }
}
