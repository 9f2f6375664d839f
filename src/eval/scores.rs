//! Networks to judge on, and their metrics with standard errors.

use rayon::prelude::*;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::EvalError;
use crate::metric::{Metric, Split};
use crate::tasks::{Seeds, Task};

/// A mean over networks and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Standard deviation over networks divided by the root of their number; not
    /// a number for a single one.
    pub standard_error: f64,
}

impl Estimate {
    /// Mean and standard error of one value for each network.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Self { mean, standard_error: (squares / (count - 1.0) / count).sqrt() }
    }
}

/// Key of a metric in JSON: `test_loss`.
pub(super) fn key(metric: Metric) -> String {
    format!("{}_{}", metric.split, metric.kind)
}

/// Validation and test metrics, averaged over networks.
///
/// In JSON each metric is one number under its name (`test_loss`), with its
/// standard error beside it (`test_loss_se`). Of policies, the test return is
/// `mean_return` with `standard_error` as well, and the share of them that reach a
/// return of 450, say, is `share_at_least_450`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    estimates: Vec<(Metric, Estimate)>,
    good: Option<Share>,
}

/// How many networks are good on the test split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Value of the task's first metric from which on they are.
    pub from: f64,
    /// Share of them, 0 to 1.
    pub share: f64,
}

impl Scores {
    /// Scores networks on the validation and test splits, in parallel.
    ///
    /// # Errors
    /// If the task cannot score them.
    pub fn of(task: &dyn Task, networks: &[f32]) -> Result<Self, EvalError> {
        let mut scores = Self::new(Vec::new());
        for split in [Split::Validation, Split::Test] {
            let rows = measure(task, networks, split)?;
            for (index, &kind) in task.kinds().iter().enumerate() {
                let values: Vec<f64> = rows.iter().map(|row| row[index]).collect();
                scores.estimates.push((Metric { kind, split }, Estimate::of(&values)));
                if let (0, Split::Test, Some(from)) = (index, split, task.good()) {
                    let reaches =
                        |value: f64| value == from || kind.direction().is_better(value, from);
                    let count = values.iter().filter(|&&value| reaches(value)).count();
                    scores.good = Some(Share { from, share: count as f64 / values.len() as f64 });
                }
            }
        }
        Ok(scores)
    }

    /// Scores that were measured elsewhere.
    pub(super) fn new(estimates: Vec<(Metric, Estimate)>) -> Self {
        Self { estimates, good: None }
    }

    /// How many networks are good, where the task says from when on they are.
    pub fn good(&self) -> Option<Share> {
        self.good
    }

    /// One metric; not a number if it was not measured.
    pub fn get(&self, metric: Metric) -> Estimate {
        let missing = Estimate { mean: f64::NAN, standard_error: f64::NAN };
        self.estimates.iter().find(|(m, _)| *m == metric).map_or(missing, |(_, estimate)| *estimate)
    }

    /// All of them, validation first.
    pub fn iter(&self) -> impl Iterator<Item = (Metric, Estimate)> + '_ {
        self.estimates.iter().copied()
    }
}

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (metric, estimate) in &self.estimates {
            map.serialize_entry(&key(*metric), &estimate.mean)?;
            map.serialize_entry(&format!("{}_se", key(*metric)), &estimate.standard_error)?;
            if *metric == Metric::TEST_RETURN {
                map.serialize_entry("mean_return", &estimate.mean)?;
                map.serialize_entry("standard_error", &estimate.standard_error)?;
            }
        }
        if let Some(Share { from, share }) = self.good {
            map.serialize_entry(&format!("share_at_least_{from}"), &share)?;
        }
        map.end()
    }
}

/// All metrics of each network on a split, in parallel.
pub(super) fn measure(
    task: &dyn Task,
    networks: &[f32],
    split: Split,
) -> Result<Vec<Vec<f64>>, EvalError> {
    let size = task.layout()?.num_parameters();
    let rows: Result<_, _> =
        networks.par_chunks(size).map(|network| task.measure(network, split)).collect();
    Ok(rows?)
}

/// The metric of each network that an optimizer may see.
pub(super) fn condition(
    task: &dyn Task,
    metric: Metric,
    networks: &[f32],
) -> Result<Vec<f64>, EvalError> {
    let index = task.kinds().iter().position(|&kind| kind == metric.kind).unwrap_or(0);
    Ok(measure(task, networks, metric.split)?.into_iter().map(|row| row[index]).collect())
}

/// Freshly initialised networks to judge an optimizer on.
#[derive(Clone, Debug, PartialEq)]
pub struct Networks {
    /// Seed of each; it decides the initialisation and, when it is trained, the
    /// order of the examples.
    pub seeds: Vec<u64>,
    /// Parameters, `[N, P]`.
    pub parameters: Vec<f32>,
}

impl Networks {
    /// The first `count` networks of these seeds.
    ///
    /// # Errors
    /// If `count` is 0, or a network cannot be built.
    pub fn fresh(task: &dyn Task, space: Seeds, count: usize) -> Result<Self, EvalError> {
        EvalError::check(count > 0, "networks", count, "at least 1")?;
        let seeds = (0..count as u64).map(|run| space.run(run)).collect::<Result<Vec<_>, _>>()?;
        let mut parameters = Vec::new();
        for &seed in &seeds {
            parameters.extend(task.initial(seed)?);
        }
        Ok(Self { seeds, parameters })
    }

    /// The first of these, at most `count`.
    pub fn first(&self, count: usize) -> Self {
        let count = count.min(self.len());
        let size = self.parameters.len() / self.len().max(1);
        Self {
            seeds: self.seeds[..count].to_vec(),
            parameters: self.parameters[..count * size].to_vec(),
        }
    }

    /// Number of networks.
    pub fn len(&self) -> usize {
        self.seeds.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.seeds.is_empty()
    }

    /// Each network with its seed.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, &[f32])> {
        let size = self.parameters.len() / self.len().max(1);
        self.seeds.iter().copied().zip(self.parameters.chunks_exact(size.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_error_is_that_of_the_mean() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(estimate.mean, 2.5);
        assert!((estimate.standard_error - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert!(Estimate::of(&[1.0]).standard_error.is_nan());
    }

    #[test]
    fn scores_are_numbers_under_their_names() {
        let estimate = Estimate { mean: 0.25, standard_error: 0.5 };
        let json = serde_json::to_value(Scores::new(vec![(Metric::TEST_LOSS, estimate)])).unwrap();
        assert_eq!(json, serde_json::json!({ "test_loss": 0.25, "test_loss_se": 0.5 }));
        let estimates = vec![(Metric::TEST_RETURN, Estimate { mean: 480.0, ..estimate })];
        let good = Some(Share { from: 450.0, share: 0.75 });
        let json = serde_json::to_value(Scores { estimates, good }).unwrap();
        let expected = serde_json::json!({
            "test_return": 480.0,
            "test_return_se": 0.5,
            "mean_return": 480.0,
            "standard_error": 0.5,
            "share_at_least_450": 0.75
        });
        assert_eq!(json, expected);
    }
}
