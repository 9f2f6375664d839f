//! What updates of a learned optimizer make of random initialisations.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::alignment::{Request, Sample};
use super::scores::condition;
use super::{EvalError, Networks, Scores};
use crate::metric::{Metric, Split};
use crate::tasks::Task;

/// How many single updates are timed; the median counts.
const TIMED: usize = 51;

/// A learned optimizer under test.
pub struct Subject<'a> {
    /// Name for people.
    pub name: &'a str,
    /// Makes new networks.
    pub sample: &'a mut Sample<'a, EvalError>,
    /// The metric that it is conditioned on.
    pub metric: Metric,
    /// Best value of the metric that it has been trained on.
    pub best_prompt: f64,
}

impl Subject<'_> {
    pub(super) fn sample(&mut self, request: Request<'_>) -> Result<Vec<f32>, EvalError> {
        let expected = request.start.len();
        let samples = (self.sample)(request)?;
        let found = samples.len();
        (found == expected).then_some(samples).ok_or(EvalError::Length { found, expected })
    }

    pub(super) fn check(&self, task: &dyn Task) -> Result<(), EvalError> {
        let known = task.kinds().contains(&self.metric.kind);
        let expected = "a metric of the task, measured on the validation split";
        EvalError::check(
            known && self.metric.split == Split::Validation,
            "metric",
            self.metric,
            expected,
        )
    }
}

/// Which updates are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// The metric asked for. Default `None`: the best value the optimizer was trained on.
    pub prompt: Option<f64>,
    /// Updates in a row, each from the last result. Default 3.
    pub recursive: usize,
    /// Candidates of which the one with the best validation metric is kept. Default 8.
    pub candidates: usize,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self { prompt: None, recursive: 3, candidates: 8 }
    }
}

impl UpdateConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), EvalError> {
        EvalError::check_prompt(self.prompt)?;
        EvalError::check(self.recursive > 0, "recursive", self.recursive, "at least 1")?;
        EvalError::check(self.candidates > 0, "candidates", self.candidates, "at least 1")
    }
}

/// One update of a random initialisation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OneStep {
    /// The metric asked for.
    pub prompt: f64,
    /// What came of it.
    #[serde(flatten)]
    pub scores: Scores,
    /// Wall-clock of one update of one network, with the measurement of its
    /// validation metric: the median of many.
    pub seconds: f64,
}

/// Several updates, each from the last result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recursive {
    /// Number of updates.
    pub updates: usize,
    /// After the last.
    #[serde(flatten)]
    pub scores: Scores,
    /// Wall-clock of all of them.
    pub seconds: f64,
    /// After each.
    pub after: Vec<Scores>,
}

/// One update with a choice of candidates.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BestOf {
    /// Number of candidates, `k`.
    pub candidates: usize,
    /// Those with the best validation metric.
    #[serde(flatten)]
    pub scores: Scores,
    /// Wall-clock of one update of one network: sampling all candidates and
    /// scoring them.
    pub seconds: f64,
}

/// Everything that is asked of a learned optimizer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Updates {
    /// Before any update.
    pub random: Scores,
    /// One update.
    pub one_step: OneStep,
    /// Several updates.
    pub recursive: Recursive,
    /// One update, the best of some.
    pub best_of_k: BestOf,
}

/// Updates fresh networks in every way and scores the results.
///
/// # Errors
/// If a setting is unusable, or the task or the optimizer fails.
pub fn updates(
    task: &dyn Task,
    subject: &mut Subject,
    networks: &Networks,
    config: &UpdateConfig,
) -> Result<Updates, EvalError> {
    config.validate()?;
    subject.check(task)?;
    let prompt = config.prompt.unwrap_or(subject.best_prompt);
    let random = Scores::of(task, &networks.parameters)?;
    let after = recursive(task, subject, networks, prompt, config.recursive)?;
    let best = best_of(task, subject, networks, prompt, config.candidates)?;
    let (_, first) = networks.iter().next().ok_or(EvalError::Length { found: 0, expected: 1 })?;
    let metric = subject.metric;
    let seconds = median_seconds(&mut || {
        let current = condition(task, metric, first)?;
        subject.sample(Request { start: first, current: &current, target: &[prompt] })?;
        Ok(())
    })?;
    let one = Networks { seeds: networks.seeds[..1].to_vec(), parameters: first.to_vec() };
    let best_seconds = median_seconds(&mut || {
        best_of(task, subject, &one, prompt, config.candidates).map(|_| ())
    })?;
    let last = after.last().unwrap_or(&random).clone();
    Ok(Updates {
        one_step: OneStep { prompt, scores: after.first().unwrap_or(&random).clone(), seconds },
        recursive: Recursive {
            updates: config.recursive,
            scores: last,
            seconds: seconds * config.recursive as f64,
            after,
        },
        best_of_k: BestOf {
            candidates: config.candidates,
            scores: Scores::of(task, &best)?,
            seconds: best_seconds,
        },
        random,
    })
}

/// Scores after each of `count` updates in a row.
fn recursive(
    task: &dyn Task,
    subject: &mut Subject,
    networks: &Networks,
    prompt: f64,
    count: usize,
) -> Result<Vec<Scores>, EvalError> {
    let mut parameters = networks.parameters.clone();
    let target = vec![prompt; networks.len()];
    let mut after = Vec::with_capacity(count);
    for _ in 0..count {
        let current = condition(task, subject.metric, &parameters)?;
        let request = Request { start: &parameters, current: &current, target: &target };
        parameters = subject.sample(request)?;
        after.push(Scores::of(task, &parameters)?);
    }
    Ok(after)
}

/// Of `candidates` updates of each network the one with the best validation metric.
fn best_of(
    task: &dyn Task,
    subject: &mut Subject,
    networks: &Networks,
    prompt: f64,
    candidates: usize,
) -> Result<Vec<f32>, EvalError> {
    let current = condition(task, subject.metric, &networks.parameters)?;
    let count = networks.len() * candidates;
    let mut start = Vec::with_capacity(networks.parameters.len() * candidates);
    networks.iter().for_each(|(_, network)| start.extend(network.repeat(candidates)));
    let current: Vec<f64> = current.iter().flat_map(|&c| vec![c; candidates]).collect();
    let request = Request { start: &start, current: &current, target: &vec![prompt; count] };
    let samples = subject.sample(request)?;
    let values = condition(task, subject.metric, &samples)?;
    let direction = subject.metric.kind.direction();
    let size = samples.len() / count;
    let mut best = Vec::with_capacity(networks.parameters.len());
    for (values, samples) in
        values.chunks_exact(candidates).zip(samples.chunks_exact(size * candidates))
    {
        let better = |best: usize, k: usize| {
            if direction.is_better(values[k], values[best]) || values[best].is_nan() {
                k
            } else {
                best
            }
        };
        let chosen = (0..candidates).reduce(better).unwrap_or(0);
        best.extend_from_slice(&samples[chosen * size..][..size]);
    }
    Ok(best)
}

/// Median wall-clock of a call, after one to warm up.
fn median_seconds(call: &mut dyn FnMut() -> Result<(), EvalError>) -> Result<f64, EvalError> {
    call()?;
    let mut seconds = Vec::with_capacity(TIMED);
    for _ in 0..TIMED {
        let start = Instant::now();
        call()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(median(seconds))
}

/// The middle value.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
