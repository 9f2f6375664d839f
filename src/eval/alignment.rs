//! Prompting: what is asked for, and how well it is reached.
//!
//! Networks and their scores come from closures, so that the same code runs a
//! task, a test and a stand-in. Rows are networks, columns are prompts or steps.
//!
//! Shape letters: `N` networks, `P` parameters, `K` prompts or steps.
//!
//! # Source
//! Peebles et al. 2022, arXiv:2209.12892, section 5, and the G.pt code
//! (`vis_utils.py`, `metrics.py`).

use crate::metric::Direction;

/// Mean over rows of `1 - Σ(target - prediction)² / Σ(target - mean target)²`.
///
/// Not clipped: a row of nearly equal targets can make it very negative.
///
/// # Shapes
/// `targets`, `predictions [N, K]`, with `columns` = `K`.
///
/// # Panics
/// If the lengths differ, or `columns` does not divide them.
///
/// # Source
/// `r_squared` of the G.pt code, which adds 1e-8 to the denominator.
pub fn r_squared(targets: &[f64], predictions: &[f64], columns: usize) -> f64 {
    assert_eq!(targets.len(), predictions.len());
    assert!(targets.len().is_multiple_of(columns));
    let rows = targets.chunks(columns).zip(predictions.chunks(columns));
    let score = |(targets, predictions): (&[f64], &[f64])| {
        let mean = targets.iter().sum::<f64>() / columns as f64;
        let left: f64 = targets.iter().zip(predictions).map(|(t, p)| (t - p).powi(2)).sum();
        let all: f64 = targets.iter().map(|t| (t - mean).powi(2)).sum();
        1.0 - left / (all + 1e-8)
    };
    rows.map(score).sum::<f64>() / (targets.len() / columns) as f64
}

/// How closely prompts are followed: [`r_squared`] of what was observed after
/// an update against what was asked for, 1 where they are equal.
///
/// # Shapes
/// `prompts`, `observed [N, K]`; the metric before the update is not among them.
///
/// # Panics
/// As [`r_squared`].
pub fn prompt_alignment(prompts: &[f64], observed: &[f64], columns: usize) -> f64 {
    r_squared(prompts, observed, columns)
}

/// `steps` values from `start` to `end`, both included; `start` alone for one.
pub fn linspace(start: f64, end: f64, steps: usize) -> Vec<f64> {
    let step = (end - start) / steps.saturating_sub(1).max(1) as f64;
    // From both ends, so that the last value is `end` exactly.
    let value = |i: usize| {
        if i < steps.div_ceil(2) {
            start + step * i as f64
        } else {
            end - step * (steps - 1 - i) as f64
        }
    };
    (0..steps).map(value).collect()
}

/// The prompts that a network is given, by what it starts from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PromptSweep {
    /// Best value asked for.
    pub best: f64,
    /// The worst value asked for is the network's own times this.
    pub start_coefficient: f64,
    /// Number of prompts `K`.
    pub steps: usize,
    /// Which way the metric gets better.
    pub direction: Direction,
}

impl PromptSweep {
    /// The `K` prompts of a network with this metric, in ascending order of the
    /// metric for a task that starts above (or below) its best value.
    ///
    /// # Source
    /// `one_step_prompting` of the G.pt code: from the best value to the start
    /// where the metric is minimised, the other way where it is maximised.
    pub fn prompts(&self, current: f64) -> Vec<f64> {
        let mut row = linspace(self.best, current * self.start_coefficient, self.steps);
        if self.direction == Direction::Maximize {
            row.reverse();
        }
        row
    }
}

/// Metrics that a run of checkpoints really passed through, evenly spread: for
/// `steps` values from the first to the best, the nearest recorded one.
///
/// # Source
/// `spread_losses` of the G.pt code; the first of equally near values is taken.
///
/// # Panics
/// If `losses` is empty.
pub fn spread_losses(losses: &[f64], steps: usize, direction: Direction) -> Vec<f64> {
    let better = |a: f64, b: f64| if direction.is_better(b, a) { b } else { a };
    let best = losses.iter().copied().fold(losses[0], better);
    let nearest = |ideal: f64| {
        let nearer = |a: f64, b: f64| if (b - ideal).abs() < (a - ideal).abs() { b } else { a };
        losses.iter().copied().fold(losses[0], nearer)
    };
    linspace(losses[0], best, steps).into_iter().map(nearest).collect()
}

/// What a learned optimizer is asked for: one update of each of `N` networks.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Parameters to start from, `[N, P]`.
    pub start: &'a [f32],
    /// Their metrics, `[N]`.
    pub current: &'a [f64],
    /// The metrics wanted, `[N]`.
    pub target: &'a [f64],
}

/// Scores networks: `[N, P]` to `[N]`.
pub type Measure<'a, E> = dyn FnMut(&[f32]) -> Result<Vec<f64>, E> + 'a;

/// Makes new networks: a [`Request`] to `[N, P]`.
pub type Sample<'a, E> = dyn FnMut(Request<'_>) -> Result<Vec<f32>, E> + 'a;

/// Gives every network each of its prompts, in one batch, and scores the results.
///
/// # Shapes
/// `networks [N, P]`, `current [N]`, `prompts [N, K]`; returns the observed
/// metrics `[N, K]`.
///
/// # Errors
/// Those of the closures.
///
/// # Panics
/// If `current` is empty or its length does not divide the others.
///
/// # Source
/// `one_step_prompting` of the G.pt code.
pub fn one_step<E>(
    networks: &[f32],
    current: &[f64],
    prompts: &[f64],
    sample: &mut Sample<'_, E>,
    measure: &mut Measure<'_, E>,
) -> Result<Vec<f64>, E> {
    let count = current.len();
    assert!(count > 0, "at least one network");
    assert!(networks.len().is_multiple_of(count) && prompts.len().is_multiple_of(count));
    let (size, columns) = (networks.len() / count, prompts.len() / count);
    let repeated = |row: &[f32]| row.repeat(columns);
    let start: Vec<f32> = networks.chunks(size).flat_map(repeated).collect();
    let current: Vec<f64> = current.iter().flat_map(|&c| vec![c; columns]).collect();
    measure(&sample(Request { start: &start, current: &current, target: prompts })?)
}

/// What is asked for at each step of recursive prompting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The same value at every step.
    Fixed(f64),
    /// The present value improved by this much.
    Improve {
        /// How much better, above 0.
        by: f64,
        /// Which way the metric gets better.
        direction: Direction,
    },
}

impl Goal {
    /// The prompt for a network that is at `current`.
    pub fn prompt(self, current: f64) -> f64 {
        match self {
            Self::Fixed(goal) => goal,
            Self::Improve { by, direction: Direction::Minimize } => current - by,
            Self::Improve { by, direction: Direction::Maximize } => current + by,
        }
    }
}

/// What recursive prompting did.
#[derive(Clone, Debug, PartialEq)]
pub struct Recursion {
    /// What was asked for, `[K, N]`: one row for each step.
    pub prompts: Vec<Vec<f64>>,
    /// Metrics before the first and after every step, `[K + 1, N]`.
    pub observed: Vec<Vec<f64>>,
    /// The networks after the last step, `[N, P]`.
    pub networks: Vec<f32>,
}

/// Updates networks several times, each time from the last result, whose metric
/// is measured anew.
///
/// # Shapes
/// `networks [N, P]`.
///
/// # Errors
/// Those of the closures.
///
/// # Source
/// `recursive_prompting` of the G.pt code.
pub fn recursive<E>(
    networks: &[f32],
    goal: Goal,
    steps: usize,
    sample: &mut Sample<'_, E>,
    measure: &mut Measure<'_, E>,
) -> Result<Recursion, E> {
    let mut networks = networks.to_vec();
    let mut current = measure(&networks)?;
    let mut recursion = Recursion { prompts: Vec::new(), observed: Vec::new(), networks: vec![] };
    for _ in 0..steps {
        let target: Vec<f64> = current.iter().map(|&c| goal.prompt(c)).collect();
        networks = sample(Request { start: &networks, current: &current, target: &target })?;
        let reached = measure(&networks)?;
        recursion.observed.push(std::mem::replace(&mut current, reached));
        recursion.prompts.push(target);
    }
    recursion.observed.push(current);
    recursion.networks = networks;
    Ok(recursion)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn alignment_is_one_for_obedience_and_not_clipped() {
        let prompts = [0.1, 0.2, 0.3, 1.0, 2.0, 3.0];
        assert_eq!(prompt_alignment(&prompts, &prompts, 3), 1.0);
        let flat = [0.2, 0.2, 0.2, 2.0, 2.0, 2.0];
        assert!(prompt_alignment(&prompts, &flat, 3).abs() < 1e-5);
        assert!(r_squared(&flat, &prompts, 3) < -1e5);
    }

    #[test]
    fn prompts_run_from_the_best_to_the_start() {
        let mut sweep = PromptSweep {
            best: 0.0,
            start_coefficient: 0.5,
            steps: 3,
            direction: Direction::Minimize,
        };
        assert_eq!(sweep.prompts(4.0), [0.0, 1.0, 2.0]);
        sweep.direction = Direction::Maximize;
        assert_eq!(sweep.prompts(4.0), [2.0, 1.0, 0.0]);
        assert_eq!(linspace(1.0, 9.0, 1), [1.0]);
        assert_eq!(linspace(0.1, 0.7, 4)[3], 0.7);
    }

    #[test]
    fn spread_losses_were_all_recorded() {
        let losses = [2.0, 1.9, 0.4, 0.9, 0.5];
        assert_eq!(spread_losses(&losses, 3, Direction::Minimize), [2.0, 0.9, 0.4]);
        assert_eq!(spread_losses(&losses, 2, Direction::Maximize), [2.0, 2.0]);
    }

    #[test]
    fn prompting_passes_the_present_metric() {
        // The stand-in moves every network's only parameter to the prompt.
        let mut measure =
            |w: &[f32]| Ok::<_, Infallible>(w.iter().map(|&x| x as f64).collect::<Vec<_>>());
        let mut seen = Vec::new();
        let mut sample = |r: Request<'_>| {
            seen.push((r.start.to_vec(), r.current.to_vec(), r.target.to_vec()));
            Ok(r.target.iter().map(|&t| t as f32).collect())
        };
        let observed =
            one_step(&[5.0, 6.0], &[5.0, 6.0], &[1.0, 2.0, 3.0, 4.0], &mut sample, &mut measure);
        assert_eq!(observed, Ok(vec![1.0, 2.0, 3.0, 4.0]));
        let goal = Goal::Improve { by: 1.0, direction: Direction::Minimize };
        let recursion = recursive(&[5.0, 6.0], goal, 2, &mut sample, &mut measure).unwrap();
        assert_eq!(recursion.prompts, [[4.0, 5.0], [3.0, 4.0]]);
        assert_eq!(recursion.observed, [[5.0, 6.0], [4.0, 5.0], [3.0, 4.0]]);
        assert_eq!(recursion.networks, [3.0, 4.0]);
        assert_eq!(seen[0].0, [5.0, 5.0, 6.0, 6.0]);
        assert_eq!(seen[0].1, [5.0, 5.0, 6.0, 6.0]);
        assert_eq!(seen[2].1, [4.0, 5.0]);
    }
}
