//! What is recorded for a learned optimizer to learn from.

use serde::{Deserialize, Serialize};

use super::training::{Schedule, TrainingConfig};
use super::TaskError;

/// How runs are trained, and which of their moments are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordingConfig {
    /// How each network is trained.
    pub training: TrainingConfig,
    /// Runs. Default 5000.
    pub runs: u64,
    /// Checkpoints of a run, the first and the last included. Default 50.
    pub saves: usize,
    /// Checkpoint `i` of `n` is taken at step `steps * (i / (n - 1)) ^ spacing`: above 1
    /// they are dense at the start, where the loss still moves. Default 2.
    pub spacing: f64,
    /// The user's seed, below 2^31; see [`Seeds`](super::Seeds). Default 0.
    pub seed: u64,
}

impl Default for RecordingConfig {
    fn default() -> Self {
        Self {
            training: TrainingConfig { schedule: Schedule::Cosine, ..TrainingConfig::default() },
            runs: 5000,
            saves: 50,
            spacing: 2.0,
            seed: 0,
        }
    }
}

impl RecordingConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), TaskError> {
        self.training.validate()?;
        let setting = |field, found: String, expected: &str| {
            Err(TaskError::Setting { field, found, expected: expected.to_owned() })
        };
        if self.runs == 0 {
            return setting("runs", self.runs.to_string(), "at least 1");
        }
        if self.saves < 2 {
            return setting("saves", self.saves.to_string(), "at least 2");
        }
        if !(self.spacing > 0.0 && self.spacing.is_finite()) {
            return setting("spacing", self.spacing.to_string(), "a positive number");
        }
        Ok(())
    }

    /// Steps at which a checkpoint is kept, ascending. Fewer than `saves` where
    /// several fall on one step.
    pub fn steps(&self) -> Vec<usize> {
        let last = self.saves - 1;
        let mut steps: Vec<usize> = (0..=last)
            .map(|i| {
                let share = (i as f64 / last as f64).powf(self.spacing);
                (share * self.training.steps as f64).round() as usize
            })
            .collect();
        steps.dedup();
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_dense_at_the_start_and_hold_both_ends() {
        let steps = RecordingConfig::default().steps();
        assert_eq!(steps.first(), Some(&0));
        assert_eq!(steps.last(), Some(&400));
        assert!(steps.windows(2).all(|w| w[0] < w[1]));
        assert!(steps[1] - steps[0] < steps[steps.len() - 1] - steps[steps.len() - 2]);
    }
}
