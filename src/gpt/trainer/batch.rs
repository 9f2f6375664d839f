//! The batch of a step: pairs, noise, and what their predictions are compared with.

use std::fmt;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::noise::fill_normal;
use super::{TrainError, TrainerConfig};
use crate::checkpoints::{PairBatch, PairSampler};
use crate::gpt::behavior::{Behavior, BehaviorPenalty};
use crate::gpt::{Inputs, NoiseSchedule, Penalty, Prediction, Target};

/// Separates the noise of a step from its choice of pairs.
const NOISE_SEED: u64 = 0x6e6f_6973_655f_5f5f;
/// And both from the inputs that networks are compared on.
const BEHAVIOR_SEED: u64 = 0x6265_6861_7669_6f72;

/// Where a training on a GPU draws its batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BatchSource {
    /// On the GPU, which has the checkpoints.
    Device {
        /// Memory that they take there, with a batch of them.
        bytes: u64,
    },
    /// On the host, for the GPU has no room for the checkpoints.
    HostForMemory {
        /// Memory that they would take.
        bytes: u64,
        /// Memory that a training leaves.
        free: u64,
    },
    /// On the host, where the behavioural loss is formed.
    HostForBehavior,
}

impl fmt::Display for BatchSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: &u64| bytes.div_ceil(1 << 20);
        match self {
            Self::Device { bytes } => {
                write!(f, "batches are drawn on the GPU, from {} MiB of checkpoints", mib(bytes))
            }
            Self::HostForMemory { bytes, free } => write!(
                f,
                "batches are drawn on the host and sent: checkpoints take {} MiB, the GPU has {} \
                 MiB left",
                mib(bytes),
                mib(free)
            ),
            Self::HostForBehavior => f.write_str(
                "batches are drawn on the host and sent: the behavioural loss is formed there",
            ),
        }
    }
}

/// What samples of a batch are conditioned on, `[N]` each.
#[derive(Clone, Debug, Default)]
pub(super) struct Scalars {
    pub(super) timestep: Vec<f32>,
    pub(super) delta: Vec<f32>,
    pub(super) target: Vec<f32>,
    pub(super) current: Vec<f32>,
}

impl Scalars {
    /// Draws timesteps, for samples of these metrics of the earlier and the later checkpoint.
    pub(super) fn draw(
        metrics: impl Iterator<Item = (f64, f64)>,
        schedule: &NoiseSchedule,
        rng: &mut ChaCha8Rng,
    ) -> Self {
        let mut scalars = Self::default();
        for (from, to) in metrics {
            scalars.timestep.push(rng.gen_range(0..schedule.len()) as f32);
            // The difference is formed in f64, as in the reference when it trains.
            scalars.delta.push((to - from) as f32);
            scalars.target.push(to as f32);
            scalars.current.push(from as f32);
        }
        scalars
    }

    /// With the parameters, what the network is given.
    pub(super) fn inputs<'a>(&'a self, noised: &'a [f32], start: &'a [f32]) -> Inputs<'a, f32> {
        let Self { timestep, delta, target, current } = self;
        Inputs { noised, start, timestep, delta, target, current }
    }
}

/// What timesteps and noise are drawn from.
pub(super) fn noise_rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ NOISE_SEED);
    rng.set_stream(stream);
    rng
}

/// Buffers of one batch.
pub(super) struct Batch {
    /// The step that it was drawn for.
    pub(super) step: u64,
    pub(super) pairs: PairBatch,
    pub(super) noised: Vec<f32>,
    pub(super) noise: Vec<f32>,
    pub(super) scalars: Scalars,
}

impl Batch {
    pub(super) fn new(samples: usize, size: usize) -> Self {
        Self {
            step: 0,
            pairs: PairBatch::new(samples, size),
            noised: vec![0.0; samples * size],
            noise: vec![0.0; samples * size],
            scalars: Scalars::default(),
        }
    }

    /// Draws the pairs of a step, and their noise from this stream.
    pub(super) fn draw(
        &mut self,
        (step, stream): (u64, u64),
        pairs: &mut PairSampler,
        schedule: &NoiseSchedule,
        seed: u64,
    ) {
        self.step = step;
        pairs.fill(step, &mut self.pairs);
        self.noise(schedule, noise_rng(seed, stream));
    }

    /// Draws timesteps and noise, and noises the later checkpoints.
    fn noise(&mut self, schedule: &NoiseSchedule, mut rng: ChaCha8Rng) {
        let PairBatch { end, start_metric, end_metric, .. } = &self.pairs;
        let metrics = start_metric.iter().copied().zip(end_metric.iter().copied());
        self.scalars = Scalars::draw(metrics, schedule, &mut rng);
        let size = self.noised.len() / self.pairs.len();
        let rows = self.noise.par_chunks_mut(size).zip(self.noised.par_chunks_mut(size));
        rows.zip(end.par_chunks(size)).enumerate().for_each(|(n, ((noise, noised), clean))| {
            let mut rng = rng.clone();
            // Room for 2^32 words for each sample, behind those of the timesteps.
            rng.set_word_pos((n as u128 + 1) << 32);
            fill_normal(&mut rng, noise);
            schedule.q_sample(self.scalars.timestep[n] as usize, clean, noise, noised);
        });
    }

    pub(super) fn inputs(&self) -> Inputs<'_, f32> {
        self.scalars.inputs(&self.noised, &self.pairs.start)
    }
}

/// The behavioural loss of a batch, if it has a weight.
pub(super) fn penalty<'a>(
    behavior: &'a Option<Box<dyn Behavior>>,
    config: &TrainerConfig,
    scale: f64,
    batch: &'a Batch,
) -> Result<Option<BehaviorPenalty<'a>>, TrainError> {
    let weight = config.behavior;
    if weight == 0.0 {
        return Ok(None);
    }
    let Some(behavior) = behavior else { return Err(TrainError::NoBehavior { weight }) };
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed ^ BEHAVIOR_SEED);
    rng.set_stream(batch.step);
    let settings = (scale, weight, rng.gen());
    let ends = &batch.pairs.end;
    Ok(Some(BehaviorPenalty::new(behavior.as_ref(), ends, config.batch, settings)))
}

/// What the output of a batch is compared with.
pub(super) fn target<'a>(
    prediction: Prediction,
    batch: &'a Batch,
    penalty: &'a Option<BehaviorPenalty<'a>>,
) -> Target<'a, f32> {
    Target {
        penalty: penalty.as_ref().map(|penalty| penalty as &dyn Penalty<f32>),
        ..Target::new(prediction.target(&batch.pairs.end, &batch.noise))
    }
}
