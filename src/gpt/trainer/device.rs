//! A training on a device.
//!
//! A device that has room for the checkpoints draws its batches itself. To another one batches
//! are sent that threads of the host draw ahead; so are those of a behavioural loss, which the
//! host forms and compares with what it has drawn.
//!
//! The host waits once in a step, for its figures: a loss that is no number must not be reported
//! as a step taken, let alone saved. What it waits for ends before the batch of the next step is
//! drawn. So while figures arrive and the next pass is launched, a device that draws has work;
//! it is idle only if drawing a batch takes less time than that, some ten microseconds.

mod check;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::batch::{noise_rng, BatchSource, Scalars};
use super::feeder::{Draws, Feeder};
use super::{penalty, target, Batch, State, StepReport, TrainError, Trainer, TrainerConfig};
use crate::checkpoints::PairSampler;
use crate::engine::cuda::Backend;
use crate::engine::{AdamW, EngineError, Math};
use crate::gpt::device::{Checkpoints, DeviceTraining, Draw, Figures, Numbers};
use crate::gpt::{Inputs, NoiseSchedule, Target, Transformer};

pub(crate) use check::checks;

/// A [`DeviceTraining`] on any device.
trait Steps: Send {
    fn set_state(&mut self, state: &State) -> Result<(), EngineError>;
    fn read_state(&mut self, state: &mut State) -> Result<(), EngineError>;
    fn stage(
        &mut self,
        inputs: &Inputs<'_, f32>,
        target: &Target<'_, f32>,
    ) -> Result<(), EngineError>;
    fn draw(&mut self, from: &Checkpoints, draw: &Draw<'_>) -> Result<(), EngineError>;
    fn step(&mut self, target: &Target<'_, f32>, numbers: &Numbers) -> Result<(), EngineError>;
    fn figures(&mut self) -> Result<Figures, EngineError>;
    fn predict_with_average(
        &mut self,
        inputs: &Inputs<'_, f32>,
        output: &mut [f32],
    ) -> Result<(), EngineError>;
}

impl<B: Backend<Recording: Send> + Send> Steps for DeviceTraining<B> {
    fn set_state(&mut self, state: &State) -> Result<(), EngineError> {
        let State { parameters, first_moment, second_moment, average, .. } = state;
        Self::set_state(self, [parameters, first_moment, second_moment, average])
    }

    fn read_state(&mut self, state: &mut State) -> Result<(), EngineError> {
        let State { parameters, first_moment, second_moment, average, .. } = state;
        Ok(self.state([parameters, first_moment, second_moment, average])?)
    }

    fn stage(
        &mut self,
        inputs: &Inputs<'_, f32>,
        target: &Target<'_, f32>,
    ) -> Result<(), EngineError> {
        Self::stage(self, inputs, target)
    }

    fn draw(&mut self, from: &Checkpoints, draw: &Draw<'_>) -> Result<(), EngineError> {
        Self::draw(self, from, draw)
    }

    fn step(&mut self, target: &Target<'_, f32>, numbers: &Numbers) -> Result<(), EngineError> {
        Self::step(self, target, numbers)
    }

    fn figures(&mut self) -> Result<Figures, EngineError> {
        Self::figures(self)
    }

    fn predict_with_average(
        &mut self,
        inputs: &Inputs<'_, f32>,
        output: &mut [f32],
    ) -> Result<(), EngineError> {
        Self::predict_with_average(self, inputs, output)
    }
}

/// A training's device.
pub(super) struct OnDevice {
    steps: Mutex<Box<dyn Steps>>,
    batches: Batches,
    /// Where they are drawn, and why.
    pub source: BatchSource,
}

/// Where batches come from.
enum Batches {
    /// From threads of the host.
    Sent {
        threads: usize,
        feeder: Option<Feeder>,
        /// A batch that is on its way to the device.
        staged: Option<Batch>,
    },
    /// From the device's own checkpoints.
    Drawn {
        checkpoints: Checkpoints,
        /// The step whose batch is drawn.
        ahead: Option<u64>,
    },
}

impl OnDevice {
    /// A device for this training, with the checkpoints if they fit and the host does not need
    /// batches of them.
    pub fn new(
        backend: impl Backend<Recording: Send> + Send + 'static,
        model: Arc<Transformer>,
        math: Math,
        (config, pairs): (&TrainerConfig, &PairSampler),
        threads: usize,
    ) -> Result<Self, EngineError> {
        let mut steps = DeviceTraining::new(backend, model, math, config.batch)?;
        let sent = Batches::Sent { threads, feeder: None, staged: None };
        let (batches, source) = match config.behavior > 0.0 {
            true => (sent, BatchSource::HostForBehavior),
            false => match steps.hold(pairs, noise_rng(config.seed, 0).get_seed())? {
                (Some(checkpoints), needed) => (
                    Batches::Drawn { checkpoints, ahead: None },
                    BatchSource::Device { bytes: needed.bytes as u64 },
                ),
                (None, needed) => {
                    let (bytes, free) = (needed.bytes as u64, needed.free as u64);
                    (sent, BatchSource::HostForMemory { bytes, free })
                }
            },
        };
        Ok(Self { steps: Mutex::new(Box::new(steps)), batches, source })
    }

    fn steps(&self) -> MutexGuard<'_, Box<dyn Steps>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings a state to the device; what was drawn ahead is of no use then.
    pub fn send_state(&mut self, state: &State) -> Result<(), EngineError> {
        match &mut self.batches {
            Batches::Sent { feeder, staged, .. } => (*feeder, *staged) = (None, None),
            Batches::Drawn { ahead, .. } => *ahead = None,
        }
        self.steps().set_state(state)
    }

    /// Brings the state from the device.
    pub fn read_state(&self, state: &mut State) -> Result<(), EngineError> {
        self.steps().read_state(state)
    }

    pub fn predict_with_average(
        &mut self,
        inputs: &Inputs<'_, f32>,
        output: &mut [f32],
    ) -> Result<(), EngineError> {
        self.steps().predict_with_average(inputs, output)
    }
}

impl Trainer {
    /// Takes one step on the device: while it works, the batch of the next step is drawn; then
    /// its figures are awaited.
    pub(super) fn step_on_device(
        &mut self,
        settings: AdamW,
        average_decay: f64,
    ) -> Result<StepReport, TrainError> {
        let step = self.state.step;
        let super::Runner::Device(device) = &mut self.runner else {
            unreachable!("the step is the device's")
        };
        let numbers = Numbers {
            step: step + 1,
            settings,
            gradient_clip: self.config.gradient_clip,
            average_decay,
        };
        let next = (step + 1 < self.config.steps).then_some(step + 1);
        let (seed, samples) = (self.config.seed, self.config.batch);
        let OnDevice { steps, batches, .. } = device.as_mut();
        let steps = steps.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut();
        let (figures, divergence) = match batches {
            Batches::Drawn { checkpoints, ahead } => {
                let mut draw = |steps: &mut dyn Steps, step| {
                    let how = (&mut self.pairs, &self.schedule);
                    draw(steps, checkpoints, how, (seed, step), samples)
                };
                if ahead.take() != Some(step) {
                    draw(steps, step)?;
                }
                steps.step(&Target::new(&[]), &numbers)?;
                if let Some(next) = next {
                    draw(steps, next)?;
                    *ahead = Some(next);
                }
                (steps.figures()?, None)
            }
            Batches::Sent { threads, feeder, staged } => {
                let prediction = self.model.config().prediction;
                let (pairs, schedule, end) = (&self.pairs, &self.schedule, self.config.steps);
                let draws = Draws { pairs, schedule, seed, samples, end };
                let batch = match staged.take() {
                    Some(batch) if batch.step == step => batch,
                    _ => {
                        let batch = draws.take(feeder, *threads, step)?;
                        steps.stage(&batch.inputs(), &target(prediction, &batch, &None))?;
                        batch
                    }
                };
                let scale = self.statistics.scale();
                let penalty = penalty(&self.behavior, &self.config, scale, &batch)?;
                steps.step(&target(prediction, &batch, &penalty), &numbers)?;
                if let Some(next) = next {
                    let next = draws.take(feeder, *threads, next)?;
                    steps.stage(&next.inputs(), &target(prediction, &next, &None))?;
                    *staged = Some(next);
                }
                let figures = steps.figures()?;
                let divergence =
                    penalty.map(|p| p.mean().map_err(TrainError::Behavior)).transpose()?;
                if let Some(feeder) = feeder {
                    feeder.give_back(batch);
                }
                (figures, divergence)
            }
        };
        let Figures { loss, gradient_norm } = figures;
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(TrainError::Diverged { step, loss, gradient_norm });
        }
        self.state.step += 1;
        if self.is_finished() {
            self.synchronize()?;
        }
        let learning_rate = settings.learning_rate;
        Ok(StepReport { step, loss, divergence, gradient_norm, learning_rate })
    }
}

/// Lets the device draw the batch of a step: the one that [`Batch::draw`] draws.
fn draw(
    steps: &mut dyn Steps,
    checkpoints: &Checkpoints,
    (pairs, schedule): (&mut PairSampler, &NoiseSchedule),
    (seed, step): (u64, u64),
    samples: usize,
) -> Result<(), EngineError> {
    let drawn = pairs.draw(step, samples);
    let metrics = pairs.dataset().metrics();
    let metrics = drawn.iter().map(|drawn| (metrics[drawn.pair.start], metrics[drawn.pair.end]));
    let scalars = Scalars::draw(metrics, schedule, &mut noise_rng(seed, step));
    let weights = |&timestep: &f32| {
        let (signal, spread) = schedule.sample_weights(timestep as usize);
        [signal as f32, spread as f32]
    };
    let draw = Draw {
        pairs: drawn.iter().map(|d| [d.pair.start as i64, d.pair.end as i64]).collect(),
        moves: drawn.iter().flat_map(|d| d.moves.iter().flatten().copied()).collect(),
        weights: scalars.timestep.iter().map(weights).collect(),
        stream: step,
        inputs: scalars.inputs(&[], &[]),
    };
    steps.draw(checkpoints, &draw)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, dataset, model};
    use super::*;
    use crate::checkpoints::Dataset;
    use crate::engine::cuda::emulator::Emulator;
    use crate::gpt::trainer::{Runner, TrainerConfig};
    use crate::metric::Metric;

    /// A training on a device that is emulated, if there is a C++ compiler.
    fn trainer(dataset: &Arc<Dataset>, config: TrainerConfig, limit: usize) -> Option<Trainer> {
        let mut emulator = Emulator::fast()?;
        emulator.limit = limit;
        let runner = |model: &Arc<Transformer>, from: (&TrainerConfig, &PairSampler)| {
            let on = OnDevice::new(emulator, model.clone(), Math::F32, from, 3)?;
            Ok(Runner::Device(on.into()))
        };
        Some(Trainer::with_runner(runner, dataset.clone(), model(), config).unwrap())
    }

    /// Room for checkpoints, and too little.
    const LIMITS: [usize; 2] = [1 << 30, 1 << 26];

    #[test]
    fn batches_are_drawn_where_there_is_room_for_them() {
        let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
        let source = |config, limit| trainer(&dataset, config, limit)?.batch_source();
        let Some(drawn) = source(config(), LIMITS[0]) else { return };
        // 6 runs of 5 checkpoints of 13 values, a batch of 5 three times, 13 places of units.
        assert_eq!(drawn, BatchSource::Device { bytes: 4 * 13 * (6 * 5 + 3 * 5 + 2) });
        let sent = source(config(), LIMITS[1]).unwrap();
        assert_eq!(sent, BatchSource::HostForMemory { bytes: 4 * 13 * 47, free: 0 });
        let line = "batches are drawn on the host and sent: checkpoints take 1 MiB, the GPU has 0 \
                    MiB left";
        assert_eq!(sent.to_string(), line);
        let config = TrainerConfig { behavior: 0.5, ..config() };
        assert_eq!(source(config, LIMITS[0]), Some(BatchSource::HostForBehavior));
        assert_eq!(
            Trainer::new(dataset.clone(), model(), self::config(), 1).unwrap().batch_source(),
            None
        );
    }

    #[test]
    fn a_training_on_a_device_is_that_on_the_cpu() {
        LIMITS.into_iter().for_each(compare_with_the_cpu);
    }

    fn compare_with_the_cpu(limit: usize) {
        let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let Some(mut device) = trainer(&dataset, config(), limit) else { return };
        let mut cpu = Trainer::new(dataset.clone(), model(), config(), 1).unwrap();
        let mut broken = trainer(&dataset, config(), limit).unwrap();
        for step in 0..config().steps {
            let (a, b) = (cpu.step().unwrap(), device.step().unwrap());
            assert_eq!((a.step, a.learning_rate), (b.step, b.learning_rate));
            assert!((a.loss / b.loss - 1.0).abs() < 1e-4, "{a:?} {b:?}");
            assert!((a.gradient_norm / b.gradient_norm - 1.0).abs() < 1e-3, "{a:?} {b:?}");
            // Saved and gone on with after every step, and looked at in between.
            let c = broken.step().unwrap();
            assert_eq!(b, c);
            broken.save(&path).unwrap();
            broken = trainer(&dataset, config(), limit).unwrap();
            broken.resume(&path).unwrap();
            assert_eq!(broken.steps_done(), step + 1);
            // Where the batch of the next step lies already, and where none does.
            let held_out = [&mut device, &mut broken].map(|t| t.held_out_loss(2).unwrap());
            assert_eq!(held_out[0], held_out[1]);
            let losses = [&mut cpu, &mut broken].map(|t| t.held_out_loss(2).unwrap());
            assert!((losses[0] / losses[1] - 1.0).abs() < 1e-3, "{losses:?}");
        }
        broken.synchronize().unwrap();
        assert_eq!(device.state, broken.state);
        let far =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        let weights = |t: &Trainer| {
            t.weights(Default::default(), "shrink", serde_json::Value::Null).parameters
        };
        assert!(far(&weights(&cpu), &weights(&device)) < 1e-3);
        assert!(far(&cpu.state.average, &model_start(&cpu)) > 1e-3, "it has learned something");
    }

    fn model_start(trainer: &Trainer) -> Vec<f32> {
        trainer.model().initialize(trainer.config().seed)
    }

    #[test]
    fn a_diverging_loss_is_an_error_that_changes_nothing() {
        let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
        let config =
            TrainerConfig { learning_rate: 1e30, warmup: 0, gradient_clip: None, ..config() };
        for limit in LIMITS {
            let Some(mut trainer) = trainer(&dataset, config.clone(), limit) else { return };
            let error = loop {
                trainer.synchronize().unwrap();
                let before = trainer.state.clone();
                if let Err(error) = trainer.step() {
                    trainer.synchronize().unwrap();
                    assert_eq!(trainer.state, before);
                    break error;
                }
                assert!(!trainer.is_finished(), "it does not diverge");
            };
            let step = trainer.steps_done();
            assert!(matches!(error, TrainError::Diverged { step: s, .. } if s == step), "{error}");
            assert!(trainer.step().is_err(), "and again");
        }
    }

    #[test]
    fn a_state_of_the_cpu_goes_on_on_a_device() {
        let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut cpu = Trainer::new(dataset.clone(), model(), config(), 1).unwrap();
        for _ in 0..3 {
            cpu.step().unwrap();
        }
        cpu.save(&path).unwrap();
        let Some(mut device) = trainer(&dataset, config(), LIMITS[0]) else { return };
        device.resume(&path).unwrap();
        let (a, b) = (cpu.step().unwrap(), device.step().unwrap());
        assert!((a.loss / b.loss - 1.0).abs() < 1e-4, "{a:?} {b:?}");
    }
}
