//! A training on a device, and the threads that draw its batches ahead.

use std::sync::mpsc::{sync_channel, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::{penalty, target, Batch, State, StepReport, TrainError, Trainer};
use crate::checkpoints::PairSampler;
use crate::engine::cuda::Backend;
use crate::engine::{AdamW, EngineError, Math};
use crate::gpt::device::{DeviceTraining, Figures, Numbers};
use crate::gpt::{Inputs, NoiseSchedule, Target, Transformer};

/// Bytes of batches that are drawn ahead.
const AHEAD: usize = 2 << 30;

/// A [`DeviceTraining`] on any device.
trait Steps: Send {
    fn set_state(&mut self, state: &State) -> Result<(), EngineError>;
    fn read_state(&mut self, state: &mut State) -> Result<(), EngineError>;
    fn stage(
        &mut self,
        inputs: &Inputs<'_, f32>,
        target: &Target<'_, f32>,
    ) -> Result<(), EngineError>;
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
    threads: usize,
    feeder: Option<Feeder>,
    /// A batch that is on its way to the device.
    staged: Option<Batch>,
}

impl OnDevice {
    pub fn new(
        backend: impl Backend<Recording: Send> + Send + 'static,
        model: Arc<Transformer>,
        math: Math,
        batch: usize,
        threads: usize,
    ) -> Result<Self, EngineError> {
        let steps = DeviceTraining::new(backend, model, math, batch)?;
        Ok(Self { steps: Mutex::new(Box::new(steps)), threads, feeder: None, staged: None })
    }

    fn steps(&self) -> MutexGuard<'_, Box<dyn Steps>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings a state to the device; what was drawn ahead is of no use then.
    pub fn send_state(&mut self, state: &State) -> Result<(), EngineError> {
        (self.feeder, self.staged) = (None, None);
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
    /// Takes one step on the device: while it works, the batch of the next step is drawn and
    /// sent; then its figures are awaited.
    pub(super) fn step_on_device(
        &mut self,
        settings: AdamW,
        average_decay: f64,
    ) -> Result<StepReport, TrainError> {
        let step = self.state.step;
        let super::Runner::Device(device) = &mut self.runner else {
            unreachable!("the step is the device's")
        };
        let prediction = self.model.config().prediction;
        let draws = Draws {
            pairs: &self.pairs,
            schedule: &self.schedule,
            seed: self.config.seed,
            samples: self.config.batch,
            end: self.config.steps,
        };
        let OnDevice { steps, threads, feeder, staged } = device.as_mut();
        let steps = steps.get_mut().unwrap_or_else(PoisonError::into_inner);
        let batch = match staged.take() {
            Some(batch) if batch.step == step => batch,
            _ => {
                let batch = draws.take(feeder, *threads, step)?;
                steps.stage(&batch.inputs(), &target(prediction, &batch, &None))?;
                batch
            }
        };
        let penalty = penalty(&self.behavior, &self.config, self.statistics.scale(), &batch)?;
        let numbers = Numbers {
            step: step + 1,
            settings,
            gradient_clip: self.config.gradient_clip,
            average_decay,
        };
        steps.step(&target(prediction, &batch, &penalty), &numbers)?;
        if step + 1 < self.config.steps {
            let next = draws.take(feeder, *threads, step + 1)?;
            steps.stage(&next.inputs(), &target(prediction, &next, &None))?;
            *staged = Some(next);
        }
        let Figures { loss, gradient_norm } = steps.figures()?;
        let divergence = penalty.map(|p| p.mean().map_err(TrainError::Behavior)).transpose()?;
        if let Some(feeder) = feeder {
            feeder.give_back(batch);
        }
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

/// How batches are drawn.
struct Draws<'a> {
    pairs: &'a PairSampler,
    schedule: &'a NoiseSchedule,
    seed: u64,
    samples: usize,
    end: u64,
}

impl Draws<'_> {
    /// The batch of a step, from a feeder that is started anew if it is at another step.
    fn take(
        &self,
        feeder: &mut Option<Feeder>,
        threads: usize,
        step: u64,
    ) -> Result<Batch, EngineError> {
        match feeder {
            Some(feeder) if feeder.next == step => feeder.take(),
            _ => feeder.insert(Feeder::new(self, threads, step)?).take(),
        }
    }
}

/// Threads that draw the batches of the steps to come, each every so many steps.
struct Feeder {
    next: u64,
    workers: Vec<Worker>,
}

struct Worker {
    ready: Receiver<Batch>,
    /// Buffers to draw into again.
    used: Sender<Batch>,
    thread: JoinHandle<()>,
}

impl Feeder {
    fn new(draws: &Draws<'_>, threads: usize, first: u64) -> Result<Self, EngineError> {
        let size = draws.pairs.dataset().layout().num_parameters();
        // Each thread has a batch that is ready, one that it draws, and one that is used.
        let most = AHEAD / (3 * 4 * 4 * size * draws.samples).max(1);
        let count = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let count = count.clamp(1, most.max(1));
        let mut feeder = Self { next: first, workers: Vec::with_capacity(count) };
        for worker in 0..count {
            let (send, ready) = sync_channel(1);
            let (used, again) = std::sync::mpsc::channel();
            let (pairs, schedule) = (draws.pairs.clone(), draws.schedule.clone());
            // The thread `i` of `n` draws the steps `i`, `i + n`, ..
            let turns = count as u64;
            let from = first + (worker as u64 + turns - first % turns) % turns;
            let steps = (from..draws.end).step_by(count);
            let (seed, samples) = (draws.seed, draws.samples);
            let work = move || draw(steps, pairs, schedule, seed, [samples, size], send, again);
            let thread = std::thread::Builder::new()
                .name(format!("lopt-batches-{worker}"))
                .spawn(work)
                .map_err(|e| EngineError::Threads { threads: count, problem: e.to_string() })?;
            feeder.workers.push(Worker { ready, used, thread });
        }
        Ok(feeder)
    }

    fn worker(&self, step: u64) -> &Worker {
        &self.workers[(step % self.workers.len() as u64) as usize]
    }

    fn take(&mut self) -> Result<Batch, EngineError> {
        let gone = |_| EngineError::Threads {
            threads: self.workers.len(),
            problem: "a thread that draws batches has ended".into(),
        };
        let batch = self.worker(self.next).ready.recv().map_err(gone)?;
        self.next += 1;
        Ok(batch)
    }

    fn give_back(&self, batch: Batch) {
        // A thread that has drawn its last batch needs no buffers.
        let _ = self.worker(batch.step).used.send(batch);
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        for Worker { ready, thread, .. } in self.workers.drain(..) {
            // A thread ends when nobody waits for its batches.
            drop(ready);
            let _ = thread.join();
        }
    }
}

/// What a thread does.
fn draw(
    steps: impl Iterator<Item = u64>,
    mut pairs: PairSampler,
    schedule: NoiseSchedule,
    seed: u64,
    [samples, size]: [usize; 2],
    ready: SyncSender<Batch>,
    again: Receiver<Batch>,
) {
    for step in steps {
        let mut batch = again.try_recv().unwrap_or_else(|_| Batch::new(samples, size));
        batch.draw((step, step), &mut pairs, &schedule, seed);
        if ready.send(batch).is_err() {
            return;
        }
    }
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
    fn trainer(dataset: &Arc<Dataset>, config: TrainerConfig) -> Option<Trainer> {
        let emulator = Emulator::fast()?;
        let runner = |model: &Arc<Transformer>, config: &TrainerConfig| {
            let on = OnDevice::new(emulator, model.clone(), Math::F32, config.batch, 3)?;
            Ok(Runner::Device(on.into()))
        };
        Some(Trainer::with_runner(runner, dataset.clone(), model(), config).unwrap())
    }

    #[test]
    fn a_training_on_a_device_is_that_on_the_cpu() {
        let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let Some(mut device) = trainer(&dataset, config()) else { return };
        let mut cpu = Trainer::new(dataset.clone(), model(), config(), 1).unwrap();
        let mut broken = trainer(&dataset, config()).unwrap();
        for step in 0..config().steps {
            let (a, b) = (cpu.step().unwrap(), device.step().unwrap());
            assert_eq!((a.step, a.learning_rate), (b.step, b.learning_rate));
            assert!((a.loss / b.loss - 1.0).abs() < 1e-4, "{a:?} {b:?}");
            assert!((a.gradient_norm / b.gradient_norm - 1.0).abs() < 1e-3, "{a:?} {b:?}");
            // Saved and gone on with after every step, and looked at in between.
            let c = broken.step().unwrap();
            assert_eq!(b, c);
            broken.save(&path).unwrap();
            broken = trainer(&dataset, config()).unwrap();
            broken.resume(&path).unwrap();
            assert_eq!(broken.steps_done(), step + 1);
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
    fn a_state_of_the_cpu_goes_on_on_a_device() {
        let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut cpu = Trainer::new(dataset.clone(), model(), config(), 1).unwrap();
        for _ in 0..3 {
            cpu.step().unwrap();
        }
        cpu.save(&path).unwrap();
        let Some(mut device) = trainer(&dataset, config()) else { return };
        device.resume(&path).unwrap();
        let (a, b) = (cpu.step().unwrap(), device.step().unwrap());
        assert!((a.loss / b.loss - 1.0).abs() < 1e-4, "{a:?} {b:?}");
    }
}
