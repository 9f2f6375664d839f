//! The ordinary way: a dfdx training loop with SGD or Adam.
//!
//! Recording and the baselines of a comparison run this same loop, so that a
//! recorded run and the optimizer it is compared with differ only in settings.

use std::ops::ControlFlow;

use dfdx::optim::{Adam, Sgd};
use dfdx::prelude::*;
use rand::seq::SliceRandom;
use rand_chacha::rand_core::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::classifier::{ImageNetwork, CLASSES};
use super::images::Images;
use super::TaskError;
use crate::network::{flatten_gradients, unflatten};

/// Which of dfdx's optimizers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Algorithm {
    /// Stochastic gradient descent with Nesterov momentum.
    Sgd {
        /// Share of the velocity that is kept, usually 0.9.
        momentum: f64,
    },
    /// Adam with dfdx's `betas` and `eps`.
    Adam,
}

impl Algorithm {
    /// SGD with Nesterov momentum 0.9.
    pub const SGD: Self = Self::Sgd { momentum: 0.9 };

    /// Name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Sgd { .. } => "SGD",
            Self::Adam => "Adam",
        }
    }

    /// The rate that dfdx's configuration has when nothing is set.
    pub fn default_rate(self) -> f64 {
        match self {
            Self::Sgd { .. } => SgdConfig::default().lr,
            Self::Adam => AdamConfig::default().lr,
        }
    }
}

/// How the learning rate changes over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It does not.
    #[default]
    Constant,
    /// Half a cosine, from the learning rate to zero at the last step.
    Cosine,
    /// The same, but it changes every `steps` steps only, once an epoch say.
    Staircase {
        /// Steps with one rate.
        steps: usize,
    },
}

/// How one network is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    /// Optimizer. Default SGD with Nesterov momentum 0.9.
    pub algorithm: Algorithm,
    /// Learning rate, at first. Default 0.05.
    pub learning_rate: f64,
    /// How it changes. Default constant.
    pub schedule: Schedule,
    /// L2 penalty on all parameters, as PyTorch's `weight_decay`. Default 0.
    pub weight_decay: f64,
    /// Images in a step; every image once before any comes again. Default 64.
    pub batch_size: usize,
    /// Steps. Default 400.
    pub steps: usize,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::SGD,
            learning_rate: 0.05,
            schedule: Schedule::Constant,
            weight_decay: 0.0,
            batch_size: 64,
            steps: 400,
        }
    }
}

impl TrainingConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), TaskError> {
        let check = |ok: bool, field, found: &dyn std::fmt::Display, expected: &str| {
            let error = || TaskError::Setting {
                field,
                found: found.to_string(),
                expected: expected.to_owned(),
            };
            ok.then_some(()).ok_or_else(error)
        };
        let rate = self.learning_rate;
        check(rate > 0.0 && rate.is_finite(), "learning_rate", &rate, "a positive number")?;
        let decay = self.weight_decay;
        check(decay >= 0.0 && decay.is_finite(), "weight_decay", &decay, "0 or more")?;
        if let Algorithm::Sgd { momentum } = self.algorithm {
            check((0.0..1.0).contains(&momentum), "momentum", &momentum, "0 or more, below 1")?;
        }
        check(self.batch_size > 0, "batch_size", &self.batch_size, "at least 1")?;
        check(self.steps > 0, "steps", &self.steps, "at least 1")
    }

    fn cosine(&self, step: usize) -> f64 {
        let share = step as f64 / self.steps as f64;
        0.5 * self.learning_rate * (1.0 + (std::f64::consts::PI * share).cos())
    }

    /// The learning rate of a step, counted from 0.
    pub fn rate(&self, step: usize) -> f64 {
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Cosine => self.cosine(step),
            Schedule::Staircase { steps } => self.cosine(step - step % steps.max(1)),
        }
    }
}

/// An optimizer of dfdx whose rate can be set between steps.
pub(super) trait Rated {
    /// Sets the learning rate.
    fn set_rate(&mut self, rate: f64);
}

impl<M> Rated for Sgd<M, f32, Cpu> {
    fn set_rate(&mut self, rate: f64) {
        self.cfg.lr = rate;
    }
}

impl<M> Rated for Adam<M, f32, Cpu> {
    fn set_rate(&mut self, rate: f64) {
        self.cfg.lr = rate;
    }
}

/// dfdx's configuration of SGD for these settings.
pub(super) fn sgd_config(config: &TrainingConfig, momentum: f64) -> SgdConfig {
    SgdConfig {
        lr: config.learning_rate,
        momentum: Some(Momentum::Nesterov(momentum)),
        weight_decay: weight_decay(config),
    }
}

/// dfdx's configuration of Adam for these settings.
pub(super) fn adam_config(config: &TrainingConfig) -> AdamConfig {
    AdamConfig {
        lr: config.learning_rate,
        weight_decay: weight_decay(config),
        ..AdamConfig::default()
    }
}

fn weight_decay(config: &TrainingConfig) -> Option<WeightDecay> {
    (config.weight_decay > 0.0).then_some(WeightDecay::L2(config.weight_decay))
}

/// Sees a model at a step, and may end the training.
pub(super) type Observe<'a, M> = dyn FnMut(usize, &M) -> Result<ControlFlow<()>, TaskError> + 'a;

/// Trains a classifier with cross entropy.
///
/// `observe` sees the model at each of `at` and ends the training with `Break`.
pub(super) fn train_classifier<N: ImageNetwork, O>(
    device: &Cpu,
    model: &mut N::Model,
    optimizer: &mut O,
    (images, seed): (&Images, u64),
    config: &TrainingConfig,
    at: &[usize],
    observe: &mut Observe<'_, N::Model>,
) -> Result<(), TaskError>
where
    O: Optimizer<N::Model, Cpu, f32> + Rated,
{
    let inputs = images.inputs();
    let batch = config.batch_size.min(images.len());
    let mut order: Vec<usize> = (0..images.len()).collect();
    let mut position = images.len();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows = vec![0.0f32; batch * inputs];
    let mut targets = vec![0.0f32; batch * CLASSES];
    let shape = N::input(batch, images.image());
    let mut input = device.try_zeros_like(&shape).map_err(dfdx_error)?;
    let mut target = device.try_zeros_like(&(batch, Const::<CLASSES>)).map_err(dfdx_error)?;
    let mut gradients = model.try_alloc_grads().map_err(dfdx_error)?;
    let mut at = at.iter().copied().peekable();
    for step in 0..=config.steps {
        while at.next_if_eq(&step).is_some() {
            if observe(step, model)?.is_break() {
                return Ok(());
            }
        }
        if step == config.steps || at.peek().is_none() {
            break;
        }
        // The whole split at once needs no order.
        if batch < images.len() || step == 0 {
            if position + batch > images.len() {
                order.shuffle(&mut rng);
                position = 0;
            }
            targets.fill(0.0);
            for (n, &image) in order[position..position + batch].iter().enumerate() {
                rows[n * inputs..][..inputs].copy_from_slice(images.row(image));
                targets[n * CLASSES + images.labels()[image]] = 1.0;
            }
            position += batch;
            input.copy_from(&rows);
            target.copy_from(&targets);
        }
        let traced = input.clone().traced(gradients);
        let logits = model.try_forward_mut(traced).map_err(dfdx_error)?;
        let loss = cross_entropy(logits, target.clone()).map_err(dfdx_error)?;
        gradients = loss.try_backward().map_err(dfdx_error)?;
        optimizer.set_rate(config.rate(step));
        optimizer.update(model, &gradients).map_err(dfdx_error)?;
        model.try_zero_grads(&mut gradients).map_err(dfdx_error)?;
    }
    Ok(())
}

/// Mean cross entropy with probabilities; dfdx's own function panics where this
/// returns an error.
fn cross_entropy<const C: usize, T: Tape<f32, Cpu>>(
    logits: Tensor<(usize, Const<C>), f32, Cpu, T>,
    target: Tensor<(usize, Const<C>), f32, Cpu>,
) -> Result<Tensor<Rank0, f32, Cpu, T>, CpuError> {
    let batch = logits.shape().0 as f64;
    logits
        .try_log_softmax::<Axis<1>>()?
        .try_mul(target)?
        .try_sum::<Rank0, _>()?
        .try_div(-batch as f32)
}

/// Mean Kullback-Leibler divergence, in nats, of the answers of a network with the
/// parameters `predicted` from those with `target`; its gradient with respect to
/// `predicted` replaces `gradient`.
pub(super) fn divergence<M, S, const C: usize>(
    model: &mut M,
    input: &Tensor<S, f32, Cpu>,
    predicted: &[f32],
    target: &[f32],
    gradient: &mut [f32],
) -> Result<f64, TaskError>
where
    S: Shape,
    M: TensorCollection<f32, Cpu>
        + ModuleMut<
            Tensor<S, f32, Cpu, OwnedTape<f32, Cpu>>,
            Output = Tensor<(usize, Const<C>), f32, Cpu, OwnedTape<f32, Cpu>>,
            Error = CpuError,
        >,
{
    let mut answers = |parameters: &[f32]| {
        unflatten(model, parameters)?;
        let gradients = model.try_alloc_grads().map_err(dfdx_error)?;
        model.try_forward_mut(input.clone().traced(gradients)).map_err(dfdx_error)
    };
    let (logits, _) = answers(target)?.split_tape();
    let wanted = logits.clone().try_softmax::<Axis<1>>().map_err(dfdx_error)?;
    let entropy = cross_entropy(logits, wanted.clone()).map_err(dfdx_error)?;
    let loss = cross_entropy(answers(predicted)?, wanted).map_err(dfdx_error)?;
    let value = f64::from(loss.array() - entropy.array());
    let gradients = loss.try_backward().map_err(dfdx_error)?;
    gradient.copy_from_slice(&flatten_gradients(model, &gradients)?);
    Ok(value)
}

pub(super) fn dfdx_error(error: impl std::fmt::Debug) -> TaskError {
    TaskError::Dfdx(format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_its_schedule() {
        let constant = TrainingConfig::default();
        assert_eq!(constant.rate(399), 0.05);
        let cosine = TrainingConfig { schedule: Schedule::Cosine, ..constant };
        assert_eq!(cosine.rate(0), 0.05);
        assert!((cosine.rate(200) - 0.025).abs() < 1e-12);
        assert!(cosine.rate(400).abs() < 1e-12);
        let stairs =
            TrainingConfig { schedule: Schedule::Staircase { steps: 100 }, ..cosine.clone() };
        assert_eq!((stairs.rate(299), stairs.rate(300)), (cosine.rate(200), cosine.rate(300)));
    }

    #[test]
    fn settings_outside_their_range_are_named() {
        let broken = TrainingConfig { learning_rate: -1.0, ..TrainingConfig::default() };
        let message = broken.validate().unwrap_err().to_string();
        assert_eq!(message, "`learning_rate` is -1, expected a positive number");
        assert!(TrainingConfig { batch_size: 0, ..TrainingConfig::default() }.validate().is_err());
    }
}
