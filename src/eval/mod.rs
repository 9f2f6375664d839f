//! How well a learned optimizer does what it is asked, and what it is worth
//! beside SGD and Adam.
//!
//! Everything is measured on freshly initialised networks whose seeds no
//! recording can have (see [`Seeds`](crate::tasks::Seeds)). What is judged comes
//! as a closure (see [`Sample`](alignment::Sample)), so that an optimizer, a test
//! and a stand-in are judged by the same code. An optimizer sees validation
//! metrics only; learning rates, candidates and prompts are chosen by them, and
//! test metrics are only reported.

pub mod alignment;
pub mod baselines;
pub mod calibration;
pub mod comparison;
pub mod curves;
pub mod diversity;
pub mod initialisations;
pub mod plane;
pub mod prompting;
pub mod scores;
pub mod updates;
pub mod walk;

pub use baselines::{Baseline, BaselineConfig, GridPoint};
pub use calibration::{calibrate, Calibrated, CalibrationConfig};
pub use comparison::{compare, Comparison, ComparisonConfig};
pub use curves::Curve;
pub use diversity::{diversity, Diversity, DiversityConfig};
pub use initialisations::{initialisations, Initialisation, InitialisationConfig, Initialisations};
pub use prompting::{evaluate, Evaluation, EvaluationConfig};
pub use scores::{Estimate, Networks, Scores, Share};
pub use updates::{Subject, UpdateConfig};
pub use walk::{walk, Walk, WalkConfig};

use crate::metric::Metric;
use crate::optimizer::UpdateError;
use crate::tasks::{SeedError, TaskError};

/// Why an evaluation could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The task failed.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The learned optimizer failed.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// A seed is too large.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// A setting is outside its range.
    #[error("`{field}` is {found}, expected {expected}")]
    Setting {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// The learned optimizer returned too few or too many values.
    #[error("the optimizer returned {found} values, expected {expected}")]
    Length {
        /// Values returned.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// All prompts lead to one value, which leaves nothing to calibrate.
    #[error("all prompts lead to a {metric} of about {found:.4}, expected it to follow them")]
    Flat {
        /// The metric.
        metric: Metric,
        /// The value.
        found: f64,
    },
    /// It was cancelled.
    #[error("the evaluation was cancelled")]
    Cancelled,
}

impl EvalError {
    fn check_prompt(prompt: Option<f64>) -> Result<(), Self> {
        let finite = prompt.is_none_or(f64::is_finite);
        Self::check(finite, "prompt", prompt.unwrap_or(0.0), "a finite value")
    }

    fn check(
        ok: bool,
        field: &'static str,
        found: impl ToString,
        expected: &'static str,
    ) -> Result<(), Self> {
        if ok {
            Ok(())
        } else {
            Err(Self::Setting { field, found: found.to_string(), expected })
        }
    }
}

/// Follows a long evaluation, and may end it.
pub trait Monitor: Sync {
    /// A stage of `total` parts begins.
    fn stage(&self, _name: &str, _total: usize) {}

    /// One part of the stage is done.
    fn advance(&self) {}

    /// Whether the evaluation shall end.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Follows nothing.
impl Monitor for () {}
