//! A walk through the noise that samples are made of.
//!
//! A deterministic sampler maps noise to a network, so a closed path of noise is
//! a closed path of networks, each of which should keep the same prompt. The
//! path is a circle through two draws `a` and `b`: `cos φ · a + sin φ · b` is
//! standard normal for every `φ`, as the noise that the model was trained on is.
//!
//! Where the start decides nearly all of a sample, the noise changes little. The
//! start can then go around a circle of its own, through two initialisations: on it
//! parameters keep the mean and variance that they are initialised with.
//!
//! Shape letters: `F` frames of the walk, `P` parameters.
//!
//! # Source
//! The latent walk of the G.pt code (`playground.py`, `latent_walk_helpers.py`),
//! which goes on great circles between many draws instead of around one circle.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize, Serializer};

use super::alignment::Request;
use super::plane::distance;
use super::scores::{condition, key, measure};
use super::{EvalError, Monitor, Scores};
use crate::gpt::{NoiseSource, SeededNoise};
use crate::layout::{Layout, Role};
use crate::metric::{Metric, Split};
use crate::tasks::{Seeds, Task};

/// Makes new networks from given noise: a [`Request`] and noise `[N, P]` to `[N, P]`.
pub type SampleFromNoise<'a, E> = dyn FnMut(Request<'_>, &[f32]) -> Result<Vec<f32>, E> + 'a;

/// Where a walk goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WalkConfig {
    /// Networks on the loop, `F`. Default 96.
    pub frames: usize,
    /// The metric asked for.
    pub prompt: f64,
    /// Whether the starting network goes around a circle too. Default false.
    pub starts: bool,
    /// The user's seed, below 2^31. Default 0.
    pub seed: u64,
}

impl WalkConfig {
    /// A walk at this prompt.
    pub fn new(prompt: f64) -> Self {
        Self { frames: 96, prompt, starts: false, seed: 0 }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), EvalError> {
        let expected = "3 to 1000";
        EvalError::check((3..=1000).contains(&self.frames), "frames", self.frames, expected)?;
        EvalError::check(self.prompt.is_finite(), "prompt", self.prompt, "a finite value")
    }
}

/// Every metric of every network of a walk, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Course(Vec<(Metric, Vec<f64>)>);

impl Course {
    /// One metric along the walk; nothing if it was not measured.
    pub fn get(&self, metric: Metric) -> &[f64] {
        self.0.iter().find(|(m, _)| *m == metric).map_or(&[], |(_, values)| values)
    }

    /// All of them, validation first.
    pub fn iter(&self) -> impl Iterator<Item = (Metric, &[f64])> {
        self.0.iter().map(|(metric, values)| (*metric, values.as_slice()))
    }
}

impl Serialize for Course {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(metric, values)| (key(*metric), values)))
    }
}

/// A closed walk through the sampling noise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Walk {
    /// Name of the task.
    pub task: String,
    /// The metric that the optimizer is conditioned on.
    pub metric: Metric,
    /// The starting network, or networks, that these are updates of.
    pub start: Scores,
    /// The metrics along the walk.
    pub course: Course,
    /// Mean distance from one network to the next.
    pub step: f64,
    /// Mean distance of networks on opposite sides of the loop.
    pub across: f64,
    /// The pictures that the first layer is made of, if there are any.
    pub filters: Option<Filters>,
    /// The networks, `[F, P]`.
    #[serde(skip)]
    pub networks: Vec<f32>,
    /// The settings.
    pub config: WalkConfig,
}

impl Walk {
    /// How far the networks are from what was asked for: the mean and the largest
    /// difference.
    pub fn deviation(&self) -> (f64, f64) {
        let values = self.course.get(self.metric);
        let differences = values.iter().map(|value| (value - self.config.prompt).abs());
        let mean = differences.clone().sum::<f64>() / values.len() as f64;
        let most = differences.fold(0.0, f64::max);
        (mean, if mean.is_finite() { most } else { mean })
    }

    /// The parameters of one network.
    pub fn network(&self, frame: usize) -> &[f32] {
        let size = self.networks.len() / self.config.frames;
        &self.networks[frame * size..][..size]
    }
}

/// Samples networks from noise that goes once around a circle.
///
/// # Errors
/// If a setting is unusable, the task or the optimizer fails, or `monitor` ends it.
pub fn walk(
    task: &dyn Task,
    metric: Metric,
    sample: &mut SampleFromNoise<'_, EvalError>,
    config: &WalkConfig,
    monitor: &dyn Monitor,
) -> Result<Walk, EvalError> {
    config.validate()?;
    let frames = config.frames;
    let starts = starts(task, config)?;
    let size = starts.len() / frames;
    let noise = noise(size, frames, config.seed);
    let target = vec![config.prompt; frames];
    monitor.stage("networks", frames);
    let mut networks = Vec::with_capacity(noise.len());
    // In parts, so that it can be followed and ended.
    let parts = starts.chunks(size * 16).zip(noise.chunks(size * 16));
    for (start, part) in parts {
        if monitor.cancelled() {
            return Err(EvalError::Cancelled);
        }
        let current = condition(task, metric, start)?;
        let count = current.len();
        let request = Request { start, current: &current, target: &target[..count] };
        let samples = sample(request, part)?;
        let (found, expected) = (samples.len(), part.len());
        if found != expected {
            return Err(EvalError::Length { found, expected });
        }
        networks.extend(samples);
        (0..count).for_each(|_| monitor.advance());
    }
    let mut course = Vec::new();
    for split in [Split::Validation, Split::Test] {
        let rows = measure(task, &networks, split)?;
        for (index, &kind) in task.kinds().iter().enumerate() {
            let values = rows.iter().map(|row| row[index]).collect();
            course.push((Metric { kind, split }, values));
        }
    }
    let rows: Vec<&[f32]> = networks.chunks(size).collect();
    let apart = |ahead: usize| {
        let ahead = |k: usize| distance(rows[k], rows[(k + ahead) % frames]);
        (0..frames).map(ahead).sum::<f64>() / frames as f64
    };
    Ok(Walk {
        task: task.name().to_owned(),
        metric,
        start: Scores::of(task, if config.starts { &starts } else { &starts[..size] })?,
        course: Course(course),
        step: apart(1),
        across: apart(frames / 2),
        filters: task.image().and_then(|image| Filters::of(&task.layout().ok()?, image)),
        networks,
        config: config.clone(),
    })
}

/// The starting network of every frame, `[F, P]`.
fn starts(task: &dyn Task, config: &WalkConfig) -> Result<Vec<f32>, EvalError> {
    let seeds = Seeds::evaluation(config.seed)?;
    let one = task.initial(seeds.run(0)?)?;
    if !config.starts {
        return Ok(one.repeat(config.frames));
    }
    let wide = |network: Vec<f32>| network.into_iter().map(f64::from).collect::<Vec<_>>();
    Ok(circle(&wide(one), &wide(task.initial(seeds.run(1)?)?), config.frames))
}

/// The noise of every frame, `[F, P]`.
fn noise(size: usize, frames: usize, seed: u64) -> Vec<f32> {
    let (mut a, mut b) = (vec![0.0f64; size], vec![0.0f64; size]);
    let mut source = SeededNoise::new(seed, 0);
    source.fill(&mut a);
    source.fill(&mut b);
    circle(&a, &b, frames)
}

/// Vectors on the circle through two, `[F, P]`.
fn circle(a: &[f64], b: &[f64], frames: usize) -> Vec<f32> {
    let frame = |k: usize| {
        let (sine, cosine) = (TAU * k as f64 / frames as f64).sin_cos();
        a.iter().zip(b).map(move |(a, b)| (cosine * a + sine * b) as f32)
    };
    (0..frames).flat_map(frame).collect()
}

/// The weights of a layer that reads an image, one picture for each of its units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Filters {
    /// Name of the tensor.
    pub tensor: String,
    /// Position of its first value in the flat vector.
    pub offset: usize,
    /// Number of units.
    pub units: usize,
    /// Channels, height and width of each picture.
    pub shape: [usize; 3],
}

impl Filters {
    /// The first weight of a network that reads an image of this shape: pictures of
    /// the whole image for a linear layer, of its kernel for a convolution. `None`
    /// if it does not read the image, as after a grouped convolution.
    ///
    /// # Shapes
    /// `image` is channels, height and width.
    pub fn of(layout: &Layout, image: [usize; 3]) -> Option<Self> {
        let [channels, height, width] = image;
        let weight = layout.tensors().iter().find(|tensor| tensor.role == Role::Weight)?;
        let shape = match weight.shape[..] {
            [_, inputs] if inputs == channels * height * width => image,
            [_, inputs, rows, columns] if inputs == channels => [channels, rows, columns],
            _ => return None,
        };
        Some(Self {
            tensor: weight.name.clone(),
            offset: weight.offset,
            units: weight.shape[0],
            shape,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LayoutBuilder;
    use crate::tasks::Digits;

    #[test]
    fn the_circle_is_closed_even_and_normal() {
        let (size, frames) = (4000, 8);
        let noise = noise(size, frames, 3);
        let row = |k: usize| &noise[(k % frames) * size..][..size];
        for k in 0..frames {
            let square: f64 = row(k).iter().map(|&v| f64::from(v).powi(2)).sum();
            assert!((square / size as f64 - 1.0).abs() < 0.1, "frame {k}: {square}");
            // A step of an eighth turn on a circle of radius √P.
            let step = distance(row(k), row(k + 1)) / (size as f64).sqrt();
            assert!((step - 2.0 * (TAU / 16.0).sin()).abs() < 0.03, "frame {k}: {step}");
            assert!(row(k).iter().zip(row(k + 4)).all(|(a, b)| (a + b).abs() < 1e-6));
        }
        assert_eq!(noise, super::noise(size, frames, 3));
        assert_ne!(noise, super::noise(size, frames, 4));
    }

    #[test]
    fn every_frame_has_its_own_noise_and_the_same_start() {
        let digits = Digits::load().unwrap();
        let config = WalkConfig { frames: 20, ..WalkConfig::new(0.2) };
        let start = digits.initial(Seeds::evaluation(0).unwrap().run(0).unwrap()).unwrap();
        let mut sample = |request: Request<'_>, noise: &[f32]| {
            assert!(request.start.chunks(start.len()).all(|row| row == start));
            assert!(request.target.iter().all(|&target| target == 0.2));
            assert_eq!(request.current.len(), noise.len() / start.len());
            Ok(request.start.iter().zip(noise).map(|(p, z)| p + 0.01 * z).collect())
        };
        let walk = walk(&digits, Metric::VALIDATION_LOSS, &mut sample, &config, &()).unwrap();
        let noise = noise(start.len(), 20, 0);
        let expected = start.iter().zip(&noise[19 * start.len()..]).map(|(p, z)| p + 0.01 * z);
        assert_eq!(walk.network(19), expected.collect::<Vec<_>>());
        assert!(walk.step > 0.0 && walk.step < 0.2 * walk.across);
        assert_eq!(walk.course.iter().count(), 4);
        assert_eq!(walk.course.get(Metric::VALIDATION_LOSS).len(), 20);
        let (mean, most) = walk.deviation();
        assert!(mean > 1.5 && most >= mean, "{mean} {most}");
        let filters = walk.filters.as_ref().unwrap();
        assert_eq!((filters.units, filters.shape), (10, [1, 8, 8]));
    }

    #[test]
    fn starts_can_go_around_too() {
        let digits = Digits::load().unwrap();
        let config = WalkConfig { frames: 4, starts: true, ..WalkConfig::new(0.2) };
        let seeds = Seeds::evaluation(0).unwrap();
        let [a, b] = [0, 1].map(|run| digits.initial(seeds.run(run).unwrap()).unwrap());
        let mut sample = |request: Request<'_>, _: &[f32]| {
            let ratio = request.current[1] / digits.measure(&b, Split::Validation).unwrap()[0];
            assert!((ratio - 1.0).abs() < 1e-6, "{ratio}");
            Ok(request.start.to_vec())
        };
        let walk = walk(&digits, Metric::VALIDATION_LOSS, &mut sample, &config, &()).unwrap();
        for (frame, sign, expected) in [(0, 1.0, &a), (1, 1.0, &b), (2, -1.0, &a), (3, -1.0, &b)] {
            for (found, p) in walk.network(frame).iter().zip(expected) {
                assert!((found - sign * p).abs() < 1e-6, "frame {frame}");
            }
        }
    }

    #[test]
    fn filters_have_the_shape_of_what_they_read() {
        let first = |shape: &[usize]| {
            let mut builder = LayoutBuilder::new();
            builder.tensor("bias", &[shape[0]], Role::Bias);
            builder.tensor("first", shape, Role::Weight);
            builder.tensor("second", &[3, 784], Role::Weight);
            Filters::of(&builder.finish().unwrap(), [1, 28, 28])
        };
        let filters = first(&[16, 1, 3, 3]).unwrap();
        assert_eq!((filters.units, filters.shape, filters.offset), (16, [1, 3, 3], 16));
        assert_eq!(first(&[10, 784]).unwrap().shape, [1, 28, 28]);
        assert_eq!(first(&[10, 783]), None);
        assert_eq!(first(&[10, 2, 3, 3]), None);
    }

    #[test]
    fn bad_settings_and_samples_are_refused() {
        let digits = Digits::load().unwrap();
        let mut sample = |request: Request<'_>, _: &[f32]| Ok(request.start[1..].to_vec());
        let mut run = |config: &WalkConfig| {
            walk(&digits, Metric::VALIDATION_LOSS, &mut sample, config, &()).unwrap_err()
        };
        let good = WalkConfig::new(0.1);
        assert!(matches!(run(&good), EvalError::Length { .. }));
        for bad in [
            WalkConfig { frames: 2, ..good.clone() },
            WalkConfig { prompt: f64::NAN, ..good.clone() },
        ] {
            assert!(matches!(run(&bad), EvalError::Setting { .. }), "{bad:?}");
        }
    }
}
