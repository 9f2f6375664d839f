//! How much samples from one starting network and one prompt differ.
//!
//! A G.pt is a distribution over networks: other noise gives another network
//! that keeps the same prompt. How far these lie apart, in parameters and in
//! what they answer, is compared with what else makes networks differ: trainings
//! of the same starting network that see the examples in another order, as
//! recorded runs do, and updates of other starting networks.
//!
//! Networks are compared as they are: nothing is done about units that could be
//! reordered, which samples from one start have no reason to be.
//!
//! Shape letters: `N` networks, `P` parameters.
//!
//! # Source
//! Peebles et al. 2022, arXiv:2209.12892, figure 8. Disagreement of answers: Fort
//! et al. 2019, arXiv:1912.02757.

use std::ops::ControlFlow;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::alignment::Request;
use super::plane::{distance, Plane};
use super::scores::condition;
use super::{Estimate, EvalError, Monitor, Networks, Scores, Subject};
use crate::metric::{Metric, Split};
use crate::tasks::{Seeds, Task};

/// What is sampled and compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiversityConfig {
    /// Samples from one starting network, and other starting networks. Default 16.
    pub samples: usize,
    /// Trainings of the starting network, as the task's runs are recorded; 0 leaves
    /// them out. Default 16.
    pub trainings: usize,
    /// The metric asked for. Default `None`: the best value the optimizer was trained on.
    pub prompt: Option<f64>,
    /// Points on each side of the square where the metric is measured. Default 25.
    pub landscape: usize,
    /// The user's seed, below 2^31. Default 0.
    pub seed: u64,
}

impl Default for DiversityConfig {
    fn default() -> Self {
        Self { samples: 16, trainings: 16, prompt: None, landscape: 25, seed: 0 }
    }
}

impl DiversityConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), EvalError> {
        EvalError::check(self.samples > 1, "samples", self.samples, "at least 2")?;
        EvalError::check(self.trainings != 1, "trainings", self.trainings, "0, or at least 2")?;
        EvalError::check(self.landscape > 1, "landscape", self.landscape, "at least 2")?;
        EvalError::check_prompt(self.prompt)
    }
}

/// What makes the networks of a group differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The sampling noise: updates of one starting network.
    Noise,
    /// The order of the examples: trainings of the same starting network.
    Order,
    /// The start: an update of each of as many other starting networks.
    Start,
}

/// Two networks of a group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// Distance of their parameters.
    pub distance: f64,
    /// Test examples that they answer differently, in percent.
    pub disagreement: f64,
}

/// Networks that one thing makes differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// What makes them differ.
    pub cause: Cause,
    /// The metric that the optimizer is conditioned on, of each network.
    pub values: Vec<f64>,
    /// Its standard deviation over the networks.
    pub deviation: f64,
    /// All metrics.
    #[serde(flatten)]
    pub scores: Scores,
    /// Mean distance from the starting network.
    pub from_start: f64,
    /// Mean distance of two networks.
    pub apart: f64,
    /// Mean share of test examples that two networks answer differently, in percent.
    pub disagreement: f64,
    /// Every two networks.
    pub pairs: Vec<Pair>,
    /// Where each network lies in the plane; empty where the group has no part in it.
    pub places: Vec<[f64; 2]>,
}

impl Group {
    /// Distance of two networks as a multiple of their distance from the start: 0
    /// where all went the same way, √2 where they went ways at right angles.
    pub fn spread(&self) -> f64 {
        self.apart / self.from_start
    }
}

/// A metric on a square of the plane in which samples and trainings differ most.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Landscape {
    /// Share of the variance of samples and trainings that lies along each axis.
    pub shares: [f64; 2],
    /// Corner of the square with the smallest coordinates.
    pub corner: [f64; 2],
    /// Length of its sides.
    pub side: f64,
    /// Points on each side.
    pub points: usize,
    /// The metric that the optimizer is conditioned on at each point, the first
    /// coordinate running fastest.
    pub values: Vec<f64>,
}

impl Landscape {
    /// The point of this column and row.
    pub fn point(&self, column: usize, row: usize) -> [f64; 2] {
        let step = self.side / (self.points - 1) as f64;
        [self.corner[0] + step * column as f64, self.corner[1] + step * row as f64]
    }
}

/// How much samples from one starting network and one prompt differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diversity {
    /// Name of the task.
    pub task: String,
    /// The metric that the optimizer is conditioned on.
    pub metric: Metric,
    /// What was asked for.
    pub prompt: f64,
    /// The starting network.
    pub start: Scores,
    /// The samples first.
    pub groups: Vec<Group>,
    /// The plane of samples and trainings.
    pub landscape: Landscape,
    /// The settings.
    pub config: DiversityConfig,
}

impl Diversity {
    /// The group of a cause.
    pub fn group(&self, cause: Cause) -> Option<&Group> {
        self.groups.iter().find(|group| group.cause == cause)
    }
}

/// Samples many updates of one unseen network, and compares them with each other.
///
/// # Errors
/// If a setting is unusable, the task or the optimizer fails, or `monitor` ends it.
pub fn diversity(
    task: &dyn Task,
    subject: &mut Subject,
    config: &DiversityConfig,
    monitor: &dyn Monitor,
) -> Result<Diversity, EvalError> {
    config.validate()?;
    subject.check(task)?;
    let prompt = config.prompt.unwrap_or(subject.best_prompt);
    let metric = subject.metric;
    let seeds = Seeds::evaluation(config.seed)?;
    let fresh = Networks::fresh(task, seeds, config.samples + 1)?;
    let size = fresh.parameters.len() / fresh.len();
    let (start, others) = fresh.parameters.split_at(size);
    let mut update = |start: &[f32]| {
        let current = condition(task, metric, start)?;
        let target = vec![prompt; current.len()];
        subject.sample(Request { start, current: &current, target: &target })
    };
    let starts = start.repeat(config.samples);
    let samples = update(&starts)?;
    let elsewhere = update(others)?;
    monitor.stage("trainings", config.trainings);
    let order = (1..=config.trainings as u64).map(|k| seeds.run(k)).collect::<Result<Vec<_>, _>>();
    let trained = trainings(task, start, &order?, monitor)?;
    let plane = Plane::of(&[samples.as_slice(), &trained].concat(), size);
    let places = |networks: &[f32]| networks.chunks(size).map(|n| plane.project(n)).collect();
    let mut groups = vec![Group {
        places: places(&samples),
        ..group(task, (metric, Cause::Noise), &samples, start)?
    }];
    if config.trainings > 0 {
        let places = places(&trained);
        groups.push(Group { places, ..group(task, (metric, Cause::Order), &trained, start)? });
    }
    groups.push(group(task, (metric, Cause::Start), &elsewhere, others)?);
    let shown = groups.iter().flat_map(|group| group.places.iter().copied());
    let frame = frame(&plane, &shown.collect::<Vec<_>>(), config.landscape);
    let landscape = landscape(task, metric, &plane, frame, monitor)?;
    Ok(Diversity {
        task: task.name().to_owned(),
        metric,
        prompt,
        start: Scores::of(task, start)?,
        groups,
        landscape,
        config: config.clone(),
    })
}

/// Trains the network once for each seed, which decides the order of the examples,
/// with the settings of the task's recorded runs. Returns `[N, P]`.
fn trainings(
    task: &dyn Task,
    start: &[f32],
    seeds: &[u64],
    monitor: &dyn Monitor,
) -> Result<Vec<f32>, EvalError> {
    let config = task.recording().training;
    // Looked at now and then, so that it can be ended.
    let at: Vec<usize> = (1..config.steps).filter(|s| s % 50 == 0).chain([config.steps]).collect();
    let train = |&seed: &u64| {
        let mut last = Vec::new();
        task.train(start, seed, &config, &at, &mut |step, parameters| {
            if step == config.steps {
                last = parameters.to_vec();
            }
            match monitor.cancelled() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        monitor.advance();
        match last.is_empty() {
            true => Err(EvalError::Cancelled),
            false => Ok(last),
        }
    };
    Ok(seeds.par_iter().map(train).collect::<Result<Vec<_>, _>>()?.concat())
}

/// How networks that begin at `starts`, one for all or one for each, differ.
fn group(
    task: &dyn Task,
    (metric, cause): (Metric, Cause),
    networks: &[f32],
    starts: &[f32],
) -> Result<Group, EvalError> {
    let size = task.layout()?.num_parameters();
    let rows: Vec<&[f32]> = networks.chunks(size).collect();
    let answers = rows
        .par_iter()
        .map(|row| task.predictions(row, Split::Test))
        .collect::<Result<Vec<_>, _>>()?;
    let mut pairs = Vec::new();
    for i in 0..rows.len() {
        for j in i + 1..rows.len() {
            let differ = answers[i].iter().zip(&answers[j]).filter(|(a, b)| a != b).count();
            let disagreement = 100.0 * differ as f64 / answers[i].len() as f64;
            pairs.push(Pair { distance: distance(rows[i], rows[j]), disagreement });
        }
    }
    let mean =
        |values: &mut dyn Iterator<Item = f64>, count: usize| values.sum::<f64>() / count as f64;
    let starts = starts.chunks(size).cycle();
    let from_start = mean(&mut rows.iter().zip(starts).map(|(a, b)| distance(a, b)), rows.len());
    let values = condition(task, metric, networks)?;
    let Estimate { standard_error, .. } = Estimate::of(&values);
    Ok(Group {
        cause,
        deviation: standard_error * (values.len() as f64).sqrt(),
        values,
        scores: Scores::of(task, networks)?,
        from_start,
        apart: mean(&mut pairs.iter().map(|pair| pair.distance), pairs.len()),
        disagreement: mean(&mut pairs.iter().map(|pair| pair.disagreement), pairs.len()),
        pairs,
        places: Vec::new(),
    })
}

/// The square of the plane that holds all that is shown, not measured.
fn frame(plane: &Plane, shown: &[[f64; 2]], points: usize) -> Landscape {
    let ends = |axis: usize| {
        let values = shown.iter().map(|place| place[axis]);
        values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)))
    };
    let [x, y] = [ends(0), ends(1)];
    let side = 1.3 * (x.1 - x.0).max(y.1 - y.0).max(1e-6);
    let corner = [x, y].map(|(low, high)| 0.5 * (low + high - side));
    Landscape { shares: plane.shares, corner, side, points, values: Vec::new() }
}

/// Measures a landscape, row by row.
fn landscape(
    task: &dyn Task,
    metric: Metric,
    plane: &Plane,
    mut landscape: Landscape,
    monitor: &dyn Monitor,
) -> Result<Landscape, EvalError> {
    let points = landscape.points;
    monitor.stage("landscape", points);
    for row in 0..points {
        if monitor.cancelled() {
            return Err(EvalError::Cancelled);
        }
        let at = |column: usize| plane.at(landscape.point(column, row));
        let networks: Vec<f32> = (0..points).flat_map(at).collect();
        landscape.values.extend(condition(task, metric, &networks)?);
        monitor.advance();
    }
    Ok(landscape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Digits;

    fn small() -> DiversityConfig {
        DiversityConfig { samples: 3, trainings: 2, landscape: 3, ..DiversityConfig::default() }
    }

    fn judge(
        config: &DiversityConfig,
        mut sample: impl FnMut(Request<'_>) -> Result<Vec<f32>, EvalError>,
    ) -> Result<Diversity, EvalError> {
        let metric = Metric::VALIDATION_LOSS;
        let mut subject =
            Subject { name: "stand-in", sample: &mut sample, metric, best_prompt: 0.1 };
        diversity(&Digits::load().unwrap(), &mut subject, config, &())
    }

    #[test]
    fn equal_samples_do_not_differ_and_trainings_do() {
        let result = judge(&small(), |request| Ok(request.start.iter().map(|p| p + 0.1).collect()));
        let result = result.unwrap();
        let [noise, order, start] =
            [Cause::Noise, Cause::Order, Cause::Start].map(|cause| result.group(cause).unwrap());
        assert_eq!((noise.apart, noise.disagreement, noise.pairs.len()), (0.0, 0.0, 3));
        assert!(noise.deviation == 0.0 && noise.spread() == 0.0);
        // Every one of 760 parameters moved by 0.1.
        assert!((noise.from_start - 0.1 * 760f64.sqrt()).abs() < 1e-4, "{}", noise.from_start);
        assert!((start.from_start - noise.from_start).abs() < 1e-4);
        assert!(order.apart > 0.1 && order.deviation > 0.0, "{order:?}");
        assert!(order.spread() < std::f64::consts::SQRT_2);
        assert!(start.apart > 1.0 && start.disagreement > 10.0);
        assert!(order.scores.get(Metric::TEST_LOSS).mean < 0.5);
    }

    #[test]
    fn the_landscape_holds_what_is_shown() {
        let mut calls = 0.0f32;
        let result = judge(&small(), |request| {
            calls += 1.0;
            let shift = |(k, p): (usize, &f32)| p + calls * ((k / 760) as f32) * (k as f32).sin();
            Ok(request.start.iter().enumerate().map(shift).collect())
        });
        let landscape = &result.as_ref().unwrap().landscape;
        let groups = &result.as_ref().unwrap().groups;
        assert_eq!(groups.iter().map(|g| g.places.len()).collect::<Vec<_>>(), [3, 2, 0]);
        let (low, high) = (landscape.point(0, 0), landscape.point(2, 2));
        for place in groups.iter().flat_map(|g| &g.places) {
            for axis in [0, 1] {
                assert!(place[axis] > low[axis] && place[axis] < high[axis], "{place:?}");
            }
        }
        assert_eq!(landscape.values.len(), 9);
        assert!(landscape.values.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn bad_settings_are_refused_and_trainings_can_be_left_out() {
        let same = |request: Request<'_>| Ok(request.start.to_vec());
        for bad in [
            DiversityConfig { samples: 1, ..small() },
            DiversityConfig { trainings: 1, ..small() },
            DiversityConfig { landscape: 1, ..small() },
            DiversityConfig { prompt: Some(f64::NAN), ..small() },
        ] {
            assert!(matches!(judge(&bad, same), Err(EvalError::Setting { .. })), "{bad:?}");
        }
        let result = judge(&DiversityConfig { trainings: 0, ..small() }, same).unwrap();
        assert!(result.group(Cause::Order).is_none());
        assert_eq!(result.landscape.shares, [0.0, 0.0]);
    }
}
