//! Settings of a training.

use serde::{Deserialize, Serialize};

use super::super::{ConfigError, LearningRateSchedule};

/// How a G.pt is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainerConfig {
    /// Steps in all; the learning rate reaches zero at the last. Default 20000.
    pub steps: u64,
    /// Pairs in a step, `N`. Default 64.
    pub batch: usize,
    /// Highest learning rate. Default 2e-3 (reference: 4e-4 for MNIST).
    pub learning_rate: f64,
    /// Steps over which the learning rate rises from zero. Default 200.
    pub warmup: u64,
    /// Decay of linear weights per unit of learning rate. Default 0.1, as the reference.
    pub weight_decay: f64,
    /// Highest global norm of the gradient; `None` does not clip. Default 1.
    pub gradient_clip: Option<f64>,
    /// Decay of the moving average of the parameters. Default 0.9995.
    ///
    /// Differs from the reference (0.9999 from the first step): the decay of
    /// step `s` is at most `(1 + s) / (10 + s)`, so that short trainings do not
    /// keep their initialisation.
    pub ema_decay: f64,
    /// Share of the pairs that start at a random initialisation, beside those
    /// that do so by chance. Default 0.4.
    ///
    /// Differs from the reference (0): one update of a random initialisation is
    /// what G.pt is used for most, but one pair in ten starts at one there.
    pub from_start: f64,
    /// Share of the pairs whose later checkpoint is drawn evenly over the metric
    /// instead of over the run. Default 0.5.
    ///
    /// Differs from the reference (0): the middle of the range of prompts, which
    /// a run passes in a few steps, is hardly trained there.
    pub by_metric: f64,
    /// Weight of the behavioural loss, beside 1 of the squared error: how far answers
    /// of predicted networks are from those of the true ones, see
    /// [`Behavior`](crate::gpt::Behavior).
    /// Default 0, without it, as the reference.
    #[serde(default)]
    pub behavior: f64,
    /// Seed of initialisation, pairs and noise. Default 0.
    pub seed: u64,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            steps: 20_000,
            batch: 64,
            learning_rate: 2e-3,
            warmup: 200,
            weight_decay: 0.1,
            gradient_clip: Some(1.0),
            ema_decay: 0.9995,
            from_start: 0.4,
            by_metric: 0.5,
            behavior: 0.0,
            seed: 0,
        }
    }
}

impl TrainerConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = ConfigError::check;
        check(self.steps > 0, "steps", &self.steps, &"at least 1")?;
        let most = 1 << 20;
        check((1..=most).contains(&self.batch), "batch", &self.batch, &format!("1 to {most}"))?;
        let rate = self.learning_rate;
        check(rate.is_finite() && rate > 0.0, "learning_rate", &rate, &"a positive number")?;
        let decay = self.weight_decay;
        check(decay.is_finite() && decay >= 0.0, "weight_decay", &decay, &"zero or more")?;
        if let Some(clip) = self.gradient_clip {
            check(clip.is_finite() && clip > 0.0, "gradient_clip", &clip, &"a positive number")?;
        }
        let ema = self.ema_decay;
        check((0.0..1.0).contains(&ema), "ema_decay", &ema, &"at least 0 and below 1")?;
        let behavior = self.behavior;
        check(behavior.is_finite() && behavior >= 0.0, "behavior", &behavior, &"zero or more")?;
        Ok(())
    }

    pub(super) fn schedule(&self) -> LearningRateSchedule {
        LearningRateSchedule {
            base: self.learning_rate,
            total: self.steps as f64,
            warmup: self.warmup as f64,
            warmup_factor: 0.0,
        }
    }
}
