//! A learned optimizer beside SGD and Adam, on the same unseen networks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::alignment::Request;
use super::baselines::{baselines, Goal};
use super::scores::condition;
use super::updates::{updates, Subject, UpdateConfig, Updates};
use super::{Baseline, BaselineConfig, EvalError, Monitor, Networks, Scores};
use crate::metric::{Metric, MetricKind, Split};
use crate::tasks::{Course, Seeds, StepUnit, Task};

/// What is compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparisonConfig {
    /// Unseen networks. Default 64.
    pub networks: usize,
    /// Updates of the learned optimizer.
    pub updates: UpdateConfig,
    /// SGD and Adam.
    pub baselines: BaselineConfig,
    /// The user's seed, below 2^31. Default 0.
    pub seed: u64,
}

impl Default for ComparisonConfig {
    fn default() -> Self {
        Self {
            networks: 64,
            updates: UpdateConfig::default(),
            baselines: BaselineConfig::default(),
            seed: 0,
        }
    }
}

/// First step at which the mean test metric of each baseline is that of one update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EquivalentSteps {
    /// By the baseline's name: `sgd_best`, say. `None` if it never is within the steps
    /// that were run.
    #[serde(flatten)]
    pub steps: BTreeMap<&'static str, Option<usize>>,
    /// Steps that were run.
    pub steps_run: usize,
}

/// What a learned optimizer is worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Name of the task.
    pub task: String,
    /// Name of the learned optimizer.
    pub optimizer: String,
    /// Number of unseen networks.
    pub networks: usize,
    /// Examples, or episodes, that a network's validation metric is the mean of.
    pub validation_size: usize,
    /// The metric that the optimizer is conditioned on.
    pub metric: Metric,
    /// Single, recursive and best-of-k updates.
    #[serde(flatten)]
    pub updates: Updates,
    /// Steps that one update replaces.
    pub equivalent_steps: EquivalentSteps,
    /// What the steps of the baselines are told in.
    pub unit: StepUnit,
    /// Names of the baselines: `SGD and Adam`.
    pub trainers: String,
    /// SGD and Adam, or what else trains such networks.
    pub baselines: Vec<Baseline>,
    /// An episode of the first network before and after one update, where a task has them.
    #[serde(skip)]
    pub courses: Option<[Course; 2]>,
    /// The settings.
    pub config: ComparisonConfig,
}

impl Comparison {
    /// What measuring networks of these scores once costs, in steps of [`Self::unit`]: the
    /// episodes' own, of which every one is worth 1 of the return. Nothing where examples
    /// can be used again.
    fn measuring(&self, scores: &Scores) -> f64 {
        match self.metric.kind {
            MetricKind::Return => scores.get(self.metric).mean.abs() * self.validation_size as f64,
            _ => 0.0,
        }
    }

    /// Where updates in a row stand among the steps of the baselines: behind the steps that
    /// the networks have been measured with so far, or, where that costs none, behind as
    /// many steps as there were updates.
    pub fn update_positions(&self) -> Vec<f64> {
        let updates = &self.updates;
        let before = std::iter::once(&updates.random).chain(&updates.recursive.after);
        let mut spent = 0.0;
        before
            .take(updates.recursive.updates)
            .map(|scores| {
                spent += self.measuring(scores).max(1.0);
                spent
            })
            .collect()
    }

    /// Where the choice among candidates stands: every one of them is measured.
    pub fn best_position(&self) -> f64 {
        let first = self.update_positions().first().copied().unwrap_or(1.0);
        let candidates = self.updates.best_of_k.candidates as f64;
        first + candidates * self.measuring(&self.updates.one_step.scores)
    }

    /// The metric that steps are counted by: that of the condition, on the test split.
    pub fn test_metric(&self) -> Metric {
        Metric { split: Split::Test, ..self.metric }
    }
}

/// Compares a learned optimizer with SGD and Adam.
///
/// # Errors
/// If a setting is unusable, the task or the optimizer fails, or `monitor` ends it.
pub fn compare(
    task: &dyn Task,
    subject: &mut Subject,
    config: &ComparisonConfig,
    monitor: &dyn Monitor,
) -> Result<Comparison, EvalError> {
    config.baselines.validate()?;
    let networks = Networks::fresh(task, Seeds::evaluation(config.seed)?, config.networks)?;
    monitor.stage(&format!("updates of {} networks", networks.len()), 1);
    let updates = updates(task, subject, &networks, &config.updates)?;
    let courses = courses(task, subject, &networks, updates.one_step.prompt)?;
    monitor.advance();
    let metric = subject.metric;
    let test = Metric { split: Split::Test, ..metric };
    let reached = |metric: Metric| (metric, updates.one_step.scores.get(metric).mean);
    let goal = Goal { validation: reached(metric), test: reached(test) };
    let trainings = config.baselines.trainings(task, networks.len());
    let titles: Vec<_> = task.algorithms().iter().map(|&a| task.title(a)).collect();
    let trainers = titles.join(" and ");
    monitor.stage(&format!("training with {trainers}"), trainings);
    let baselines = baselines(task, &networks, &goal, &config.baselines, monitor)?;
    let unit = baselines.first().map_or(StepUnit::default(), |b| task.unit(&b.config));
    Ok(Comparison {
        task: task.name().to_owned(),
        optimizer: subject.name.to_owned(),
        networks: networks.len(),
        validation_size: task.size(Split::Validation),
        metric,
        updates,
        equivalent_steps: EquivalentSteps {
            steps: baselines.iter().map(|b| (b.id, b.equivalent_steps)).collect(),
            steps_run: config.baselines.steps,
        },
        unit,
        trainers,
        baselines,
        courses,
        config: config.clone(),
    })
}

/// Episodes of the first network before and after an update.
fn courses(
    task: &dyn Task,
    subject: &mut Subject,
    networks: &Networks,
    prompt: f64,
) -> Result<Option<[Course; 2]>, EvalError> {
    let first = networks.first(1).parameters;
    let Some(before) = task.course(&first)? else { return Ok(None) };
    let current = condition(task, subject.metric, &first)?;
    let updated =
        subject.sample(Request { start: &first, current: &current, target: &[prompt] })?;
    Ok(task.course(&updated)?.map(|after| [before, after]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::alignment::Request;
    use crate::eval::{evaluate, EvaluationConfig};
    use crate::tasks::Digits;

    /// Stand-in: mixes the start with one trained network, so that an update helps.
    fn mixing(trained: Vec<f32>) -> impl FnMut(Request<'_>) -> Result<Vec<f32>, EvalError> {
        move |request| {
            let share = |target: f64, current: f64| (1.0 - target / current).clamp(0.0, 1.0) as f32;
            let rows =
                request.start.chunks(trained.len()).zip(request.current.iter().zip(request.target));
            Ok(rows
                .flat_map(|(row, (&current, &target))| {
                    let share = share(target, current);
                    row.iter()
                        .zip(&trained)
                        .map(move |(a, b)| a + share * (b - a))
                        .collect::<Vec<_>>()
                })
                .collect())
        }
    }

    fn trained(digits: &Digits) -> Vec<f32> {
        let config = crate::tasks::TrainingConfig { steps: 30, ..Default::default() };
        let mut last = Vec::new();
        let start = digits.initial(77).unwrap();
        digits
            .train(&start, 77, &config, &[30], &mut |_, p| {
                last = p.to_vec();
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        last
    }

    #[test]
    fn a_stand_in_is_compared_and_evaluated() {
        let digits = Digits::load().unwrap();
        let mut sample = mixing(trained(&digits));
        let mut subject = Subject {
            name: "stand-in",
            sample: &mut sample,
            metric: Metric::VALIDATION_LOSS,
            best_prompt: 0.1,
        };
        let config = EvaluationConfig { networks: 3, prompts: 4, ..Default::default() };
        let evaluation = evaluate(&digits, &mut subject, &config, &()).unwrap();
        assert_eq!(evaluation.observed.len(), 3);
        assert!(evaluation.observed.iter().all(|row| row.len() == 4));
        assert!(evaluation.prompt_alignment > 0.0, "{}", evaluation.prompt_alignment);

        let config = ComparisonConfig {
            networks: 3,
            baselines: BaselineConfig {
                steps: 60,
                sgd_rates: vec![0.02, 0.05],
                adam_rates: vec![0.01],
                grid_networks: 2,
                grid_steps: 40,
                ..Default::default()
            },
            ..Default::default()
        };
        let comparison = compare(&digits, &mut subject, &config, &()).unwrap();
        let json = serde_json::to_value(&comparison).unwrap();
        for key in [
            "/networks",
            "/one_step/test_loss",
            "/one_step/test_error",
            "/one_step/seconds",
            "/recursive/test_loss",
            "/best_of_k/test_loss",
            "/equivalent_steps/steps_run",
        ] {
            assert!(json.pointer(key).is_some_and(|v| v.is_number()), "{key} in {json}");
        }
        for key in ["sgd_best", "adam_best", "adam_default", "sgd_default"] {
            assert!(json["equivalent_steps"].get(key).is_some(), "{key}");
        }
        let sgd = comparison.equivalent_steps.steps["sgd_best"].unwrap();
        assert!((5..60).contains(&sgd), "{sgd}");
        assert!(comparison.updates.recursive.after.len() == 3);
        assert_eq!(comparison.update_positions(), [1.0, 2.0, 3.0]);
        assert_eq!(comparison.best_position(), 1.0);
        assert!(comparison.courses.is_none() && comparison.trainers == "SGD and Adam");
        let loss = |scores: &crate::eval::Scores| scores.get(Metric::VALIDATION_LOSS).mean;
        let updates = &comparison.updates;
        assert!(loss(&updates.best_of_k.scores) <= loss(&updates.one_step.scores));
    }

    #[test]
    fn a_cancelled_comparison_says_so() {
        struct Cancelled;
        impl Monitor for Cancelled {
            fn cancelled(&self) -> bool {
                true
            }
        }
        let digits = Digits::load().unwrap();
        let mut sample = |request: Request<'_>| Ok(request.start.to_vec());
        let mut subject = Subject {
            name: "copy",
            sample: &mut sample,
            metric: Metric::VALIDATION_LOSS,
            best_prompt: 0.1,
        };
        let config = ComparisonConfig { networks: 2, ..Default::default() };
        let result = compare(&digits, &mut subject, &config, &Cancelled);
        assert!(matches!(result, Err(EvalError::Cancelled)));
    }
}
