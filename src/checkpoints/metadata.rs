//! What all checkpoints of a store have in common.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::layout::Layout;
use crate::metric::Metric;

/// How parameters are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As they are, four bytes each.
    #[default]
    F32,
    /// Rounded to half precision, two bytes each.
    F16,
}

impl Precision {
    /// Bytes that one parameter takes.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        })
    }
}

/// Which runs are dropped, because they would spoil the training of a learned
/// optimizer: diverged ones, above all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// A run with a parameter of a larger absolute value is dropped.
    /// Default: 1000.
    pub parameter_limit: f64,
    /// A run with a metric of a larger absolute value is dropped.
    /// Default: 1 million.
    pub metric_limit: f64,
    /// A run with fewer checkpoints is dropped. Default: 2, which one pair needs.
    pub min_checkpoints: usize,
}

impl Default for Filter {
    fn default() -> Self {
        Self { parameter_limit: 1e3, metric_limit: 1e6, min_checkpoints: 2 }
    }
}

impl Filter {
    /// Checks that the limits can be used.
    ///
    /// # Errors
    /// If a limit is not a positive finite number, or `min_checkpoints` is
    /// below 2.
    pub fn validate(&self) -> Result<(), StoreError> {
        for (setting, limit) in
            [("parameter_limit", self.parameter_limit), ("metric_limit", self.metric_limit)]
        {
            if !(limit > 0.0 && limit.is_finite()) {
                let expected = "a positive finite number";
                return Err(StoreError::Setting { setting, found: limit.to_string(), expected });
            }
        }
        if self.min_checkpoints < 2 {
            return Err(StoreError::Setting {
                setting: "min_checkpoints",
                found: self.min_checkpoints.to_string(),
                expected: "at least 2, one pair",
            });
        }
        Ok(())
    }
}

/// What all checkpoints of a store have in common.
///
/// # Examples
/// ```
/// use lopt::checkpoints::{Metadata, Precision};
/// use lopt::layout::{LayoutBuilder, Role};
/// use lopt::metric::Metric;
///
/// let mut layout = LayoutBuilder::new();
/// layout.tensor("weight", &[10, 64], Role::Weight);
/// let metadata = Metadata {
///     precision: Precision::F16,
///     provenance: serde_json::json!({ "data": "digits.csv.gz", "split": [1257, 270, 270] }),
///     ..Metadata::new("digits", layout.finish()?, vec![Metric::VALIDATION_LOSS])
/// };
/// assert_eq!(metadata.layout.num_parameters(), 640);
/// # Ok::<(), lopt::layout::LayoutError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Name of the task that the networks solve.
    pub task: String,
    /// The network.
    pub layout: Layout,
    /// What every checkpoint is scored by, in the order in which a checkpoint
    /// lists its values.
    pub metrics: Vec<Metric>,
    /// How parameters are stored. Default: `f32`.
    pub precision: Precision,
    /// Which runs are dropped.
    pub filter: Filter,
    /// Anything that a reader may want to know: where the data is from, how
    /// many samples each split has, which version of which program recorded.
    /// Default: null.
    pub provenance: serde_json::Value,
}

impl Metadata {
    /// Metadata with the defaults of the other fields.
    pub fn new(task: impl Into<String>, layout: Layout, metrics: Vec<Metric>) -> Self {
        Self {
            task: task.into(),
            layout,
            metrics,
            precision: Precision::default(),
            filter: Filter::default(),
            provenance: serde_json::Value::Null,
        }
    }

    /// Position of a metric in the values of a checkpoint.
    ///
    /// # Errors
    /// If checkpoints are not scored by it.
    pub fn metric_index(&self, metric: Metric) -> Result<usize, StoreError> {
        self.metrics
            .iter()
            .position(|&m| m == metric)
            .ok_or_else(|| StoreError::MetricMissing { metric, available: self.metric_names() })
    }

    /// Checks that the fields can be used.
    ///
    /// # Errors
    /// If the layout is empty or has 2^32 parameters or more, there is no metric or
    /// one twice, or the filter cannot be used.
    pub fn validate(&self) -> Result<(), StoreError> {
        let parameters = self.layout.num_parameters();
        if parameters == 0 || u32::try_from(parameters).is_err() {
            return Err(StoreError::Setting {
                setting: "layout",
                found: format!("one of {parameters} parameters"),
                expected: "1 to 2^32 - 1 parameters",
            });
        }
        let distinct: std::collections::HashSet<_> = self.metrics.iter().collect();
        if self.metrics.is_empty() || distinct.len() < self.metrics.len() {
            return Err(StoreError::Setting {
                setting: "metrics",
                found: format!("[{}]", self.metric_names()),
                expected: "at least one, and each of them once",
            });
        }
        self.filter.validate()
    }

    /// Checks that `self`, found in the store at `path`, is what is expected.
    /// Provenance may differ.
    pub(super) fn check_matches(&self, expected: &Self, path: &Path) -> Result<(), StoreError> {
        self.layout
            .check_matches(&expected.layout)
            .map_err(|e| StoreError::Layout { path: path.to_owned(), source: Box::new(e) })?;
        let filter = |m: &Self| format!("{:?}", m.filter);
        for (what, found, expected) in [
            ("task", self.task.clone(), expected.task.clone()),
            ("metrics", self.metric_names(), expected.metric_names()),
            ("precision", self.precision.to_string(), expected.precision.to_string()),
            ("filter", filter(self), filter(expected)),
        ] {
            if found != expected {
                return Err(StoreError::Mismatch { path: path.to_owned(), what, found, expected });
            }
        }
        Ok(())
    }

    pub(super) fn metric_names(&self) -> String {
        self.metrics.iter().map(Metric::to_string).collect::<Vec<_>>().join(", ")
    }
}
