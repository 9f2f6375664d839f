//! Behavioural loss: what predicted networks answer, beside what their parameters are.
//!
//! The squared error counts every parameter alike, but a network is used for its
//! answers, and these follow some directions of parameter space far more than
//! others. So the prediction of the clean parameters is also run on a few inputs,
//! and its answers are compared with those of the true network.
//!
//! # Source
//! The behavioural loss of Meynent et al. 2025, arXiv:2503.17138, section 3, there
//! for autoencoders of networks. That it is formed on the prediction of a diffusion
//! model, whatever the timestep, is this crate's.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::Penalty;

/// Why answers could not be compared.
pub type BehaviorError = Box<dyn std::error::Error + Send + Sync>;

/// Compares what networks answer.
///
/// # Examples
/// A network that solves a regression, compared by the mean square of the
/// difference of its answers to `inputs`:
/// ```
/// use dfdx::prelude::*;
/// use lopt::gpt::{Behavior, BehaviorError};
/// use lopt::network::{flatten_gradients, unflatten};
///
/// struct Answers {
///     inputs: Tensor<Rank2<16, 1>, f32, Cpu>,
/// }
///
/// impl Behavior for Answers {
///     fn divergence(
///         &self,
///         _seed: u64,
///         predicted: &[f32],
///         target: &[f32],
///         gradient: &mut [f32],
///     ) -> Result<f64, BehaviorError> {
///         let mut model = Cpu::default().build_module::<Linear<1, 1>, f32>();
///         unflatten(&mut model, target)?;
///         let wanted = model.forward(self.inputs.clone());
///         unflatten(&mut model, predicted)?;
///         let answers = model.forward(self.inputs.leaky_trace());
///         let loss = (answers - wanted).square().mean();
///         let value = f64::from(loss.array());
///         gradient.copy_from_slice(&flatten_gradients(&model, &loss.backward())?);
///         Ok(value)
///     }
/// }
///
/// let answers = Answers { inputs: Cpu::default().ones() };
/// let mut gradient = [0.0; 2];
/// assert_eq!(answers.divergence(0, &[3.0, 1.0], &[1.0, 0.0], &mut gradient)?, 9.0);
/// assert_eq!(gradient, [6.0; 2]);
/// # Ok::<(), BehaviorError>(())
/// ```
pub trait Behavior: Send + Sync {
    /// How far the answers of `predicted` are from those of `target`, 0 where they are
    /// the same. Its gradient with respect to `predicted` replaces `gradient`.
    ///
    /// Inputs that are drawn at random are drawn from `seed` alone, so that a training
    /// that was saved and resumed sees the same.
    ///
    /// # Shapes
    /// `predicted`, `target`, `gradient [P]`: parameters of networks, not normalised.
    ///
    /// # Errors
    /// If a network cannot be run.
    fn divergence(
        &self,
        seed: u64,
        predicted: &[f32],
        target: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64, BehaviorError>;

    /// What networks are compared on, in words. A training that was saved goes on with the
    /// same only. Default: nothing is said.
    fn describe(&self) -> String {
        String::new()
    }
}

/// The behavioural loss of one batch.
pub(super) struct BehaviorPenalty<'a> {
    behavior: &'a dyn Behavior,
    /// True networks, normalised, `[N, P]`.
    ends: &'a [f32],
    /// What parameters are multiplied by to normalise them.
    scale: f32,
    /// Weight of one sample.
    weight: f32,
    seed: u64,
    /// What each sample came to.
    found: Mutex<Vec<Result<f64, BehaviorError>>>,
}

impl<'a> BehaviorPenalty<'a> {
    /// The mean over `samples` times `weight`.
    pub fn new(
        behavior: &'a dyn Behavior,
        ends: &'a [f32],
        samples: usize,
        (scale, weight, seed): (f64, f64, u64),
    ) -> Self {
        Self {
            behavior,
            ends,
            scale: scale as f32,
            weight: (weight / samples as f64) as f32,
            seed,
            found: Mutex::new((0..samples).map(|_| Ok(0.0)).collect()),
        }
    }

    /// Mean divergence of the samples.
    pub fn mean(self) -> Result<f64, BehaviorError> {
        let found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let samples = found.len() as f64;
        // In the order of the samples, whichever thread was first.
        Ok(found.into_iter().sum::<Result<f64, _>>()? / samples)
    }
}

impl fmt::Debug for BehaviorPenalty<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BehaviorPenalty").field("weight", &self.weight).finish_non_exhaustive()
    }
}

impl Penalty<f32> for BehaviorPenalty<'_> {
    fn add(&self, sample: usize, output: &[f32], gradient: &mut [f32]) {
        let parameters = |values: &[f32]| -> Vec<f32> {
            values.iter().map(|value| value / self.scale).collect()
        };
        let end = parameters(&self.ends[sample * output.len()..][..output.len()]);
        let mut own = vec![0.0; output.len()];
        let seed = self.seed.wrapping_add(sample as u64);
        let found = self.behavior.divergence(seed, &parameters(output), &end, &mut own);
        let weight = self.weight / self.scale;
        gradient.iter_mut().zip(own).for_each(|(sum, g)| *sum += weight * g);
        self.found.lock().unwrap_or_else(PoisonError::into_inner)[sample] = found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half the squared distance of the parameters, times the seed.
    struct Distance;

    impl Behavior for Distance {
        fn divergence(
            &self,
            seed: u64,
            predicted: &[f32],
            target: &[f32],
            gradient: &mut [f32],
        ) -> Result<f64, BehaviorError> {
            if predicted[0].is_nan() {
                return Err("not a number".into());
            }
            let mut sum = 0.0;
            for ((gradient, &a), &b) in gradient.iter_mut().zip(predicted).zip(target) {
                *gradient = seed as f32 * (a - b);
                sum += 0.5 * f64::from(seed as f32 * (a - b).powi(2));
            }
            Ok(sum)
        }
    }

    /// Two samples of two parameters, normalised by a factor of 4, weight 3.
    #[test]
    fn gradients_are_those_of_normalised_parameters() {
        let ends = [4.0, 8.0, 0.0, -4.0];
        let new = || BehaviorPenalty::new(&Distance, &ends, 2, (4.0, 3.0, 10));
        let penalty = new();
        let mut gradient = [100.0, 0.0];
        // In other threads samples come in another order.
        penalty.add(1, &[4.0, -4.0], &mut gradient);
        // Seed 11, a distance of 1, a sample's weight of 3/2, a factor of 1/4.
        assert_eq!(gradient, [100.0 + 11.0 * 1.5 / 4.0, 0.0]);
        penalty.add(0, &[4.0, 0.0], &mut [0.0; 2]);
        assert_eq!(penalty.mean().unwrap(), (10.0 * 2.0 + 11.0 * 0.5) / 2.0);

        let penalty = new();
        penalty.add(0, &[f32::NAN, 0.0], &mut [0.0; 2]);
        penalty.add(1, &[0.0, 0.0], &mut [0.0; 2]);
        assert_eq!(penalty.mean().unwrap_err().to_string(), "not a number");
    }
}
