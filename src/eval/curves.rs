//! Metrics of an optimizer from step to step, averaged over networks.

use std::ops::ControlFlow;

use rayon::prelude::*;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::scores::key;
use super::{Estimate, EvalError, Monitor, Networks, Scores};
use crate::metric::{Metric, Split};
use crate::tasks::{Task, TrainingConfig};

/// Validation and test metrics at some steps of a training.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// The steps, ascending; 0 is the random initialisation.
    pub steps: Vec<usize>,
    /// The scores at each of them.
    pub scores: Vec<Scores>,
}

impl Curve {
    /// Trains each network and averages its metrics, in parallel over networks.
    ///
    /// # Errors
    /// If a setting is unusable, dfdx fails, or `monitor` ends it.
    pub fn train(
        task: &dyn Task,
        networks: &Networks,
        config: &TrainingConfig,
        monitor: &dyn Monitor,
    ) -> Result<Self, EvalError> {
        let images = task.size(Split::Validation) + task.size(Split::Test);
        let steps = measured_steps(config.steps, images);
        let all: Vec<(u64, &[f32])> = networks.iter().collect();
        let rows = all
            .par_iter()
            .map(|&(seed, start)| {
                let row = train_one(task, seed, start, config, &steps, monitor)?;
                monitor.advance();
                Ok(row)
            })
            .collect::<Result<Vec<_>, EvalError>>()?;
        let kinds = task.kinds();
        let at = |step: usize| {
            let mut scores = Vec::new();
            for (s, split) in [Split::Validation, Split::Test].into_iter().enumerate() {
                for (k, &kind) in kinds.iter().enumerate() {
                    let index = (step * 2 + s) * kinds.len() + k;
                    let values: Vec<f64> = rows.iter().map(|row| row[index]).collect();
                    scores.push((Metric { kind, split }, Estimate::of(&values)));
                }
            }
            Scores::new(scores)
        };
        let scores = (0..steps.len()).map(at).collect();
        Ok(Self { steps, scores })
    }

    /// The mean of a metric at every step.
    pub fn means(&self, metric: Metric) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.steps.iter().zip(&self.scores).map(move |(&s, scores)| (s, scores.get(metric).mean))
    }

    /// First step at which the mean of a metric is `value` or better.
    pub fn first_reaching(&self, metric: Metric, value: f64) -> Option<usize> {
        let direction = metric.kind.direction();
        self.means(metric)
            .find(|&(_, mean)| mean == value || direction.is_better(mean, value))
            .map(|(step, _)| step)
    }

    /// The mean of a metric at the last step.
    pub fn last(&self, metric: Metric) -> f64 {
        self.scores.last().map_or(f64::NAN, |scores| scores.get(metric).mean)
    }
}

impl Serialize for Curve {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let metrics: Vec<Metric> =
            self.scores.first().map(|s| s.iter().map(|(m, _)| m).collect()).unwrap_or_default();
        let mut map = serializer.serialize_map(Some(1 + 2 * metrics.len()))?;
        map.serialize_entry("steps", &self.steps)?;
        for metric in metrics {
            let column = |f: fn(Estimate) -> f64| {
                self.scores.iter().map(|s| f(s.get(metric))).collect::<Vec<_>>()
            };
            map.serialize_entry(&key(metric), &column(|e| e.mean))?;
            map.serialize_entry(&format!("{}_se", key(metric)), &column(|e| e.standard_error))?;
        }
        map.end()
    }
}

/// Examples of validation and test splits from which on a measurement is dear.
const MANY_EXAMPLES: usize = 1000;

/// Steps at which a training of `steps` steps is measured on so many examples: every
/// one to 200, every fifth to 500, every tenth beyond, and the last; a fifth as often
/// where there are more than 1000 examples.
pub fn measured_steps(steps: usize, examples: usize) -> Vec<usize> {
    let coarse = if examples > MANY_EXAMPLES { 5 } else { 1 };
    let measured = |&step: &usize| {
        let every = coarse
            * match step {
                0..=200 => 1,
                201..=500 => 5,
                _ => 10,
            };
        step % every == 0 || step == steps
    };
    (0..=steps).filter(measured).collect()
}

/// The metrics of one training, `[step][split][kind]`.
fn train_one(
    task: &dyn Task,
    seed: u64,
    start: &[f32],
    config: &TrainingConfig,
    steps: &[usize],
    monitor: &dyn Monitor,
) -> Result<Vec<f64>, EvalError> {
    let mut row = Vec::with_capacity(steps.len() * 2 * task.kinds().len());
    let mut result = Ok(());
    task.train(start, seed, config, steps, &mut |_, parameters| {
        for split in [Split::Validation, Split::Test] {
            match task.measure(parameters, split) {
                Ok(values) => row.extend(values),
                Err(error) => result = Err(error.into()),
            }
        }
        if monitor.cancelled() {
            result = Err(EvalError::Cancelled);
        }
        if result.is_err() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    result.map(|()| row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(values: &[f64]) -> Curve {
        let score = |&mean: &f64| {
            Scores::new(vec![(Metric::TEST_LOSS, Estimate { mean, standard_error: 0.0 })])
        };
        Curve { steps: (0..values.len()).collect(), scores: values.iter().map(score).collect() }
    }

    #[test]
    fn the_first_step_at_or_below_a_loss_counts() {
        let curve = curve(&[2.0, 1.0, f64::NAN, 0.5, 0.7]);
        assert_eq!(curve.first_reaching(Metric::TEST_LOSS, 1.0), Some(1));
        assert_eq!(curve.first_reaching(Metric::TEST_LOSS, 0.6), Some(3));
        assert_eq!(curve.first_reaching(Metric::TEST_LOSS, 0.1), None);
        assert_eq!(curve.last(Metric::TEST_LOSS), 0.7);
    }

    #[test]
    fn measured_steps_hold_both_ends() {
        assert_eq!(measured_steps(3, 1000), [0, 1, 2, 3]);
        assert_eq!(measured_steps(12, 1001), [0, 5, 10, 12]);
        let steps = measured_steps(503, 10);
        assert_eq!(steps[steps.len() - 3..], [495, 500, 503]);
    }
}
