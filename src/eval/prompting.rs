//! Does one update reach what was asked for?

use serde::{Deserialize, Serialize};

use super::alignment::{one_step, prompt_alignment, PromptSweep, Request};
use super::scores::condition;
use super::updates::{updates, Subject, UpdateConfig, Updates};
use super::{EvalError, Monitor, Networks};
use crate::metric::Metric;
use crate::tasks::{Seeds, Task};

/// What is evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationConfig {
    /// Networks. Default 64.
    pub networks: usize,
    /// Whether they are the initialisations of the first recorded runs, which
    /// the optimizer has seen, instead of unseen ones. Default false.
    pub seen: bool,
    /// Prompts for each. Default 20.
    pub prompts: usize,
    /// The worst prompt is the network's own metric times this. Default 0.9.
    pub start_coefficient: f64,
    /// Updates that are made besides.
    pub updates: UpdateConfig,
    /// The user's seed, below 2^31. Default 0.
    pub seed: u64,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            networks: 64,
            seen: false,
            prompts: 20,
            start_coefficient: 0.9,
            updates: UpdateConfig::default(),
            seed: 0,
        }
    }
}

/// How well a learned optimizer does what it is asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Name of the task.
    pub task: String,
    /// Number of networks.
    pub networks: usize,
    /// Mean over networks of R² between prompted and observed metric.
    pub prompt_alignment: f64,
    /// The metric.
    pub metric: Metric,
    /// What was asked for, one row for each network.
    pub prompts: Vec<Vec<f64>>,
    /// What came of it.
    pub observed: Vec<Vec<f64>>,
    /// Single, recursive and best-of-k updates.
    #[serde(flatten)]
    pub updates: Updates,
    /// The settings.
    pub config: EvaluationConfig,
}

/// Prompts over the whole range of the metric, from a network's own value times
/// `start_coefficient` to the best, and what came of each, `[N, K]`.
pub(super) fn prompted(
    task: &dyn Task,
    subject: &mut Subject,
    networks: &Networks,
    start_coefficient: f64,
    steps: usize,
) -> Result<[Vec<f64>; 2], EvalError> {
    let metric = subject.metric;
    let direction = metric.kind.direction();
    let sweep = PromptSweep { best: subject.best_prompt, start_coefficient, steps, direction };
    let current = condition(task, metric, &networks.parameters)?;
    let prompts: Vec<f64> = current.iter().flat_map(|&c| sweep.prompts(c)).collect();
    let sample = &mut |request: Request<'_>| subject.sample(request);
    let measure = &mut |networks: &[f32]| condition(task, metric, networks);
    let observed = one_step(&networks.parameters, &current, &prompts, sample, measure)?;
    Ok([prompts, observed])
}

/// Prompts networks over the whole range of the metric, once each.
///
/// # Errors
/// If a setting is unusable, the task or the optimizer fails, or `monitor` ends it.
///
/// # Source
/// Peebles et al. 2022, arXiv:2209.12892, section 5.
pub fn evaluate(
    task: &dyn Task,
    subject: &mut Subject,
    config: &EvaluationConfig,
    monitor: &dyn Monitor,
) -> Result<Evaluation, EvalError> {
    EvalError::check(config.prompts > 1, "prompts", config.prompts, "at least 2")?;
    let coefficient = config.start_coefficient;
    let expected = "a positive number";
    let valid = coefficient > 0.0 && coefficient.is_finite();
    EvalError::check(valid, "start_coefficient", coefficient, expected)?;
    monitor.stage("updates", 2);
    let seeds = match config.seen {
        true => Seeds::recording(config.seed)?,
        false => Seeds::evaluation(config.seed)?,
    };
    let networks = Networks::fresh(task, seeds, config.networks)?;
    let updates = updates(task, subject, &networks, &config.updates)?;
    monitor.advance();
    if monitor.cancelled() {
        return Err(EvalError::Cancelled);
    }
    let [prompts, observed] = prompted(task, subject, &networks, coefficient, config.prompts)?;
    monitor.advance();
    let rows = |values: &[f64]| values.chunks(config.prompts).map(<[f64]>::to_vec).collect();
    Ok(Evaluation {
        task: task.name().to_owned(),
        networks: networks.len(),
        prompt_alignment: prompt_alignment(&prompts, &observed, config.prompts),
        metric: subject.metric,
        prompts: rows(&prompts),
        observed: rows(&observed),
        updates,
        config: config.clone(),
    })
}
