//! The batch of a step: pairs, noise, and what their predictions are compared with.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::{TrainError, TrainerConfig};
use crate::checkpoints::{PairBatch, PairSampler};
use crate::gpt::behavior::{Behavior, BehaviorPenalty};
use crate::gpt::{Inputs, NoiseSchedule, Penalty, Prediction, Target};

/// Separates the noise of a step from its choice of pairs.
const NOISE_SEED: u64 = 0x6e6f_6973_655f_5f5f;
/// And both from the inputs that networks are compared on.
const BEHAVIOR_SEED: u64 = 0x6265_6861_7669_6f72;

/// Buffers of one batch.
pub(super) struct Batch {
    /// The step that it was drawn for.
    pub(super) step: u64,
    pub(super) pairs: PairBatch,
    pub(super) noised: Vec<f32>,
    pub(super) noise: Vec<f32>,
    pub(super) timestep: Vec<f32>,
    pub(super) delta: Vec<f32>,
    pub(super) target: Vec<f32>,
    pub(super) current: Vec<f32>,
}

impl Batch {
    pub(super) fn new(samples: usize, size: usize) -> Self {
        Self {
            step: 0,
            pairs: PairBatch::new(samples, size),
            noised: vec![0.0; samples * size],
            noise: vec![0.0; samples * size],
            timestep: vec![0.0; samples],
            delta: vec![0.0; samples],
            target: vec![0.0; samples],
            current: vec![0.0; samples],
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
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ NOISE_SEED);
        rng.set_stream(stream);
        self.noise(schedule, &mut rng);
    }

    /// Draws timesteps and noise, and noises the later checkpoints.
    fn noise(&mut self, schedule: &NoiseSchedule, rng: &mut ChaCha8Rng) {
        let size = self.noised.len() / self.timestep.len();
        for n in 0..self.timestep.len() {
            let t = rng.gen_range(0..schedule.len());
            self.timestep[n] = t as f32;
            let row = n * size..(n + 1) * size;
            self.noise[row.clone()].fill_with(|| rng.sample(StandardNormal));
            let (clean, noise) = (&self.pairs.end[row.clone()], &self.noise[row.clone()]);
            schedule.q_sample(t, clean, noise, &mut self.noised[row]);
            // The difference is formed in f64, as in the reference when it trains.
            let (from, to) = (self.pairs.start_metric[n], self.pairs.end_metric[n]);
            self.delta[n] = (to - from) as f32;
            self.target[n] = to as f32;
            self.current[n] = from as f32;
        }
    }

    pub(super) fn inputs(&self) -> Inputs<'_, f32> {
        Inputs {
            noised: &self.noised,
            start: &self.pairs.start,
            timestep: &self.timestep,
            delta: &self.delta,
            target: &self.target,
            current: &self.current,
        }
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
