//! Scales network parameters to the spread that the diffusion process expects.

use num_traits::Float;
use serde::{Deserialize, Serialize};

use super::config::ConfigError;
use super::diffusion::cast;
use crate::checkpoints::STANDARD_DEVIATION;

/// Multiplies parameters by a constant before the model and divides after it.
///
/// # Examples
/// ```
/// use lopt::gpt::normalizer::Normalizer;
///
/// let normalizer = Normalizer::fit([-0.1f32, 0.1, -0.1, 0.1])?;
/// let mut flat = [0.1f32];
/// normalizer.normalize(&mut flat);
/// assert!((flat[0] - 0.4659).abs() < 1e-4);
/// normalizer.unnormalize(&mut flat);
/// assert!((flat[0] - 0.1).abs() < 1e-7);
/// # Ok::<(), lopt::gpt::ConfigError>(())
/// ```
///
/// # Source
/// `OpenAI` in the G.pt code (`normalizers.py`); 0.538 is the standard
/// deviation of ImageNet pixels in `-1..1`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalizer {
    /// What parameters are multiplied by.
    pub scale: f64,
}

impl Normalizer {
    /// Leaves parameters as they are.
    pub const IDENTITY: Self = Self { scale: 1.0 };

    /// The normalizer that gives these values a standard deviation of 0.538.
    ///
    /// # Errors
    /// If there are fewer than two values, or they are all equal or not finite.
    pub fn fit<F: Float>(values: impl IntoIterator<Item = F>) -> Result<Self, ConfigError> {
        // Welford's update: the values may be too many to keep or to sum twice.
        let (mut count, mut mean, mut squares) = (0u64, 0.0f64, 0.0f64);
        for value in values {
            let value = value.to_f64().unwrap_or(f64::NAN);
            count += 1;
            let difference = value - mean;
            mean += difference / count as f64;
            squares += difference * (value - mean);
        }
        let deviation = (squares / count.saturating_sub(1) as f64).sqrt();
        let scale = STANDARD_DEVIATION / deviation;
        let usable = scale.is_finite() && scale > 0.0;
        let field = "standard deviation of the parameters";
        ConfigError::check(usable, field, &deviation, &"a finite number above 0")?;
        Ok(Self { scale })
    }

    /// Checks the scale.
    ///
    /// # Errors
    /// If it is not a positive finite number.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let usable = self.scale.is_finite() && self.scale > 0.0;
        ConfigError::check(usable, "scale", &self.scale, &"a finite number above 0")
    }

    /// Raw to normalised.
    pub fn normalize<F: Float>(&self, flat: &mut [F]) {
        let scale = cast::<F>(self.scale);
        flat.iter_mut().for_each(|x| *x = *x * scale);
    }

    /// Normalised to raw.
    pub fn unnormalize<F: Float>(&self, flat: &mut [F]) {
        let scale = cast::<F>(self.scale);
        flat.iter_mut().for_each(|x| *x = *x / scale);
    }

    /// Normalised limits of raw values between `lowest` and `highest`, for
    /// clipping what the model predicts.
    pub fn range(&self, lowest: f64, highest: f64) -> (f64, f64) {
        (lowest * self.scale, highest * self.scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_the_unbiased_standard_deviation() {
        let values: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 * 0.01 + 5.0).collect();
        let scale = Normalizer::fit(values.iter().copied()).unwrap().scale;
        let mean = values.iter().map(|&v| v as f64).sum::<f64>() / 1000.0;
        let variance = values.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / 999.0;
        assert!((scale - 0.538 / variance.sqrt()).abs() < 1e-9);
        let range = Normalizer { scale: 2.0 }.range(-1.5, 3.0);
        assert_eq!(range, (-3.0, 6.0));
    }

    #[test]
    fn unusable_values_are_refused() {
        assert!(Normalizer::fit::<f32>([]).is_err());
        assert!(Normalizer::fit([1.0f32]).is_err());
        assert!(Normalizer::fit([1.0f32, 1.0]).is_err());
        assert!(Normalizer::fit([1.0f32, f32::NAN]).is_err());
        assert!(Normalizer::fit([1.0f32, f32::INFINITY]).is_err());
    }
}
