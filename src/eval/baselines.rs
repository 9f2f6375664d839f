//! SGD and Adam on the networks that a learned optimizer is judged on.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::updates::median;
use super::{Curve, EvalError, Monitor, Networks, Scores};
use crate::metric::Metric;
use crate::tasks::{Algorithm, Task, TaskError, TrainingConfig};

/// Steps over which a step is timed, and how often; the median counts.
const TIMED_STEPS: usize = 200;
const TIMED: usize = 5;

/// How SGD and Adam are trained and tuned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaselineConfig {
    /// Networks that are trained, at most all. Default `None`: all.
    pub networks: Option<usize>,
    /// Steps of each network. Default 1500.
    pub steps: usize,
    /// Images in a step. Default 64.
    pub batch_size: usize,
    /// Learning rates that SGD may choose from. Default 0.01 to 0.5.
    pub sgd_rates: Vec<f64>,
    /// Learning rates that Adam may choose from. Default 0.001 to 0.05.
    pub adam_rates: Vec<f64>,
    /// Networks that each of these is tried on, at most all. Default 16.
    pub grid_networks: usize,
    /// Steps that each of these is tried for. Default 300.
    pub grid_steps: usize,
}

impl Default for BaselineConfig {
    fn default() -> Self {
        Self {
            networks: None,
            steps: 1500,
            batch_size: 64,
            sgd_rates: vec![0.01, 0.02, 0.05, 0.1, 0.2, 0.5],
            adam_rates: vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05],
            grid_networks: 16,
            grid_steps: 300,
        }
    }
}

impl BaselineConfig {
    /// Checks the fields that nothing else checks.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), EvalError> {
        EvalError::check(!self.sgd_rates.is_empty(), "sgd_rates", "empty", "at least one rate")?;
        EvalError::check(!self.adam_rates.is_empty(), "adam_rates", "empty", "at least one rate")?;
        let networks = self.networks.unwrap_or(1);
        EvalError::check(networks > 0, "networks", networks, "at least 1")?;
        EvalError::check(self.grid_networks > 0, "grid_networks", 0, "at least 1")?;
        EvalError::check(self.grid_steps > 0, "grid_steps", 0, "at least 1")
    }

    fn training(
        &self,
        task: &dyn Task,
        algorithm: Algorithm,
        learning_rate: f64,
        steps: usize,
    ) -> TrainingConfig {
        let batch_size = self.batch_size;
        TrainingConfig { algorithm, learning_rate, batch_size, steps, ..task.baseline() }
    }

    /// Learning rates that an algorithm may choose from.
    fn rates(&self, algorithm: Algorithm) -> &[f64] {
        match algorithm {
            Algorithm::Sgd { .. } => &self.sgd_rates,
            Algorithm::Adam => &self.adam_rates,
        }
    }

    /// Trainings that [`baselines`] makes, for a progress bar.
    pub fn trainings(&self, task: &dyn Task, networks: usize) -> usize {
        let networks = self.trained(networks);
        let of = |&algorithm: &Algorithm| {
            self.rates(algorithm).len() * self.grid_networks.min(networks) + 2 * networks
        };
        task.algorithms().iter().map(of).sum()
    }

    /// How many of these networks are trained.
    pub fn trained(&self, networks: usize) -> usize {
        self.networks.map_or(networks, |most| most.min(networks))
    }
}

/// One learning rate that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GridPoint {
    /// The learning rate.
    pub rate: f64,
    /// First step at which the mean validation metric was that of one update.
    pub steps_to_match: Option<usize>,
    /// Mean validation metric at the last step tried.
    pub last: f64,
}

/// SGD or Adam with one learning rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Baseline {
    /// `sgd_best`, say.
    pub id: &'static str,
    /// Name for people: `SGD`.
    pub title: &'static str,
    /// The same with its rate.
    pub name: String,
    /// The settings.
    pub config: TrainingConfig,
    /// At the last step.
    #[serde(flatten)]
    pub scores: Scores,
    /// First step at which the mean test metric was that of one update.
    pub equivalent_steps: Option<usize>,
    /// Wall-clock of a step of one network, without any measurement.
    pub seconds_per_step: f64,
    /// Wall-clock of all steps until then.
    pub seconds_to_match: Option<f64>,
    /// All steps.
    pub curve: Curve,
    /// What the learning rate was chosen from; empty for a default rate.
    pub grid: Vec<GridPoint>,
}

/// What the baselines have to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// Mean validation metric of one update, to count steps of the grid by.
    pub validation: (Metric, f64),
    /// Mean test metric of one update: steps are counted by it.
    pub test: (Metric, f64),
}

/// Trains the networks with the task's [algorithms](Task::algorithms), SGD and Adam
/// mostly, each at its default rate and at the best of a grid.
///
/// The best rate is the one whose mean validation metric is best at the end of
/// the grid's trainings.
///
/// # Errors
/// If a setting is unusable, dfdx fails, or `monitor` ends it.
pub fn baselines(
    task: &dyn Task,
    networks: &Networks,
    goal: &Goal,
    config: &BaselineConfig,
    monitor: &dyn Monitor,
) -> Result<Vec<Baseline>, EvalError> {
    config.validate()?;
    let networks = &networks.first(config.trained(networks.len()));
    let mut all = Vec::new();
    for &algorithm in task.algorithms() {
        let [default_id, best_id] = match algorithm {
            Algorithm::Sgd { .. } => ["sgd_default", "sgd_best"],
            Algorithm::Adam => ["adam_default", "adam_best"],
        };
        let grid = grid(task, networks, goal, config, algorithm, monitor)?;
        let default = algorithm.default_rate();
        let best = best_rate(&grid, goal.validation.0).unwrap_or(default);
        let title = task.title(algorithm);
        for (id, rate, name, grid) in [
            (default_id, default, format!("{title}, default rate {default}"), Vec::new()),
            (best_id, best, format!("{title}, best rate {best}"), grid),
        ] {
            let training = config.training(task, algorithm, rate, config.steps);
            let curve = Curve::train(task, networks, &training, monitor)?;
            let equivalent_steps = curve.first_reaching(goal.test.0, goal.test.1);
            let scores = curve.scores.last().cloned().unwrap_or_else(|| Scores::new(Vec::new()));
            let seconds_per_step = f64::NAN;
            all.push(Baseline {
                id,
                title,
                name,
                config: training,
                scores,
                equivalent_steps,
                seconds_per_step,
                seconds_to_match: None,
                curve,
                grid,
            });
        }
    }
    // Timed last, one at a time, when nothing else runs.
    for baseline in &mut all {
        baseline.seconds_per_step = seconds_per_step(task, networks, &baseline.config)?;
        baseline.seconds_to_match =
            baseline.equivalent_steps.map(|steps| steps as f64 * baseline.seconds_per_step);
    }
    Ok(all)
}

fn grid(
    task: &dyn Task,
    networks: &Networks,
    goal: &Goal,
    config: &BaselineConfig,
    algorithm: Algorithm,
    monitor: &dyn Monitor,
) -> Result<Vec<GridPoint>, EvalError> {
    let some = networks.first(config.grid_networks);
    let (metric, value) = goal.validation;
    let mut points = Vec::new();
    for &rate in config.rates(algorithm) {
        let training = config.training(task, algorithm, rate, config.grid_steps);
        let curve = Curve::train(task, &some, &training, monitor)?;
        let steps_to_match = curve.first_reaching(metric, value);
        points.push(GridPoint { rate, steps_to_match, last: curve.last(metric) });
    }
    Ok(points)
}

/// The rate that ends best.
fn best_rate(grid: &[GridPoint], metric: Metric) -> Option<f64> {
    let direction = metric.kind.direction();
    let finite = grid.iter().filter(|p| p.last.is_finite());
    let best = finite.reduce(|a, b| if direction.is_better(b.last, a.last) { b } else { a });
    best.map(|p| p.rate)
}

/// Median wall-clock of a step, the time to set a training up left out.
fn seconds_per_step(
    task: &dyn Task,
    networks: &Networks,
    config: &TrainingConfig,
) -> Result<f64, TaskError> {
    let mut seconds = Vec::new();
    let warm = 20;
    let config = TrainingConfig { steps: warm + TIMED_STEPS, ..config.clone() };
    for (seed, start) in networks.iter().take(TIMED) {
        let mut begin = Instant::now();
        task.train(start, seed, &config, &[warm, config.steps], &mut |step, _| {
            if step == warm {
                begin = Instant::now();
            } else {
                seconds.push(begin.elapsed().as_secs_f64() / TIMED_STEPS as f64);
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(median(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_rate_ends_best() {
        let point = |rate, steps_to_match, last| GridPoint { rate, steps_to_match, last };
        let choose = |grid: &[GridPoint]| best_rate(grid, Metric::VALIDATION_LOSS);
        let reached = [point(0.1, Some(9), 0.1), point(0.2, Some(5), 0.3), point(0.3, None, 0.2)];
        assert_eq!(choose(&reached), Some(0.1));
        let never = [point(0.1, None, 0.4), point(0.2, None, f64::NAN), point(0.3, None, 0.3)];
        assert_eq!(choose(&never), Some(0.3));
        assert_eq!(choose(&[]), None);
    }
}
