//! What a checkpoint is scored by, and on which part of the data.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// The training objective, averaged over a split. Lower is better.
    Loss,
    /// Share of wrong answers in percent, 0 to 100. Lower is better.
    Error,
    /// Sum of rewards of an episode, averaged over episodes. Higher is better.
    Return,
    /// Whatever a closure of the user's says of a network; it needs no gradient. Higher is
    /// better: a cost is a score below zero.
    Score,
}

impl MetricKind {
    /// Whether lower values are better.
    pub fn direction(self) -> Direction {
        match self {
            Self::Loss | Self::Error => Direction::Minimize,
            Self::Return | Self::Score => Direction::Maximize,
        }
    }
}

impl fmt::Display for MetricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loss => "loss",
            Self::Error => "error",
            Self::Return => "return",
            Self::Score => "score",
        })
    }
}

/// Which way a metric gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Lower is better.
    Minimize,
    /// Higher is better.
    Maximize,
}

impl Direction {
    /// Whether `a` is better than `b`. Never true of a value that is not a number.
    pub fn is_better(self, a: f64, b: f64) -> bool {
        match self {
            Self::Minimize => a < b,
            Self::Maximize => a > b,
        }
    }
}

/// Part of the data that a metric is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// What the network is trained on.
    Train,
    /// What a learned optimizer may see: it is conditioned on these metrics.
    Validation,
    /// Only reported, never seen by an optimizer.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

/// A kind of measurement on a split, such as validation loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Metric {
    /// What is measured.
    pub kind: MetricKind,
    /// On which part of the data.
    pub split: Split,
}

impl Metric {
    /// Loss on the validation split, what G.pt is conditioned on by default.
    pub const VALIDATION_LOSS: Self = Self { kind: MetricKind::Loss, split: Split::Validation };
    /// Error on the validation split.
    pub const VALIDATION_ERROR: Self = Self { kind: MetricKind::Error, split: Split::Validation };
    /// Score on the validation split.
    pub const VALIDATION_SCORE: Self = Self { kind: MetricKind::Score, split: Split::Validation };
    /// Loss on the test split.
    pub const TEST_LOSS: Self = Self { kind: MetricKind::Loss, split: Split::Test };
    /// Return of the test episodes.
    pub const TEST_RETURN: Self = Self { kind: MetricKind::Return, split: Split::Test };
    /// Error on the test split.
    pub const TEST_ERROR: Self = Self { kind: MetricKind::Error, split: Split::Test };
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.split, self.kind)
    }
}
