//! Learning rate over the course of training.

use serde::{Deserialize, Serialize};

use super::config::ConfigError;

/// Cosine decay to zero with a linear warm-up.
///
/// Time is in any unit, as long as `warmup`, `total` and the argument of
/// [`at`](Self::at) agree: epochs in the reference, steps in [`crate::gpt`].
///
/// # Examples
/// ```
/// use lopt::gpt::schedule::LearningRateSchedule;
///
/// let schedule = LearningRateSchedule { base: 1e-3, warmup: 10.0, total: 1000.0, ..Default::default() };
/// assert_eq!(schedule.at(0.0), 0.0);
/// assert!(schedule.at(10.0) > 0.99e-3);
/// assert!(schedule.at(1000.0) < 1e-12);
/// ```
///
/// # Source
/// `adjust_learning_rate` of the G.pt code.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearningRateSchedule {
    /// Highest rate. Default 4e-4, as the reference for MNIST.
    pub base: f64,
    /// How long the warm-up lasts; 0 for none. Default 0.
    pub warmup: f64,
    /// Time at which the rate reaches 0. Default 1.
    pub total: f64,
    /// Share of the rate at the very start of the warm-up. Default 0: the first
    /// step changes nothing but the moments of Adam.
    pub warmup_factor: f64,
}

impl Default for LearningRateSchedule {
    fn default() -> Self {
        Self { base: 4e-4, warmup: 0.0, total: 1.0, warmup_factor: 0.0 }
    }
}

impl LearningRateSchedule {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = ConfigError::check;
        let ok = |x: f64| x.is_finite() && x >= 0.0;
        check(ok(self.base), "base", &self.base, &"a finite number from 0")?;
        check(ok(self.warmup), "warmup", &self.warmup, &"a finite number from 0")?;
        let total = ok(self.total) && self.total > 0.0;
        check(total, "total", &self.total, &"a finite number above 0")?;
        let factor = self.warmup_factor;
        check((0.0..=1.0).contains(&factor), "warmup_factor", &factor, &"0 to 1")
    }

    /// Learning rate at a time.
    ///
    /// The warm-up multiplies the cosine, which starts at time 0 regardless.
    pub fn at(&self, time: f64) -> f64 {
        let rate = 0.5 * self.base * (1.0 + (std::f64::consts::PI * time / self.total).cos());
        if time < self.warmup {
            let share = time / self.warmup;
            rate * (self.warmup_factor * (1.0 - share) + share)
        } else {
            rate
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_and_decays() {
        let schedule =
            LearningRateSchedule { base: 2.0, warmup: 4.0, total: 8.0, warmup_factor: 0.5 };
        assert_eq!(schedule.at(0.0), 1.0);
        assert!((schedule.at(4.0) - 1.0).abs() < 1e-15);
        assert!(schedule.at(8.0).abs() < 1e-15);
        assert_eq!(schedule.validate(), Ok(()));
    }

    #[test]
    fn bad_fields_are_refused() {
        let good = LearningRateSchedule::default();
        for bad in [
            LearningRateSchedule { base: f64::NAN, ..good },
            LearningRateSchedule { warmup: -1.0, ..good },
            LearningRateSchedule { total: 0.0, ..good },
            LearningRateSchedule { warmup_factor: 1.5, ..good },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
