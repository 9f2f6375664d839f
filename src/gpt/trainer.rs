//! Trains a G.pt on recorded checkpoints.
//!
//! A step draws pairs of checkpoints of one run, adds noise to the later one
//! and regresses on it from the earlier one, by its parameters and, with a
//! [behavioural loss](super::Behavior), by its answers. All randomness of step `s` comes
//! from `(seed, s)`, so a training that was saved and resumed gives the same
//! bits as one that was never interrupted.
//!
//! # Source
//! Peebles et al. 2022, arXiv:2209.12892, section 3 and the G.pt code (`main.py`).

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::behavior::{Behavior, BehaviorError};
use super::file::{self, Contents, Entry, FileError, Precision};
use super::{
    ConfigError, Executor, ModelConfig, NoiseSchedule, Normalizer, Prediction, PromptRange,
    SamplerConfig, Transformer, Weights, WeightsHeader, DIFFUSION_STEPS,
};
use crate::checkpoints::{Dataset, PairConfig, PairSampler, Part, Statistics, StoreError};
use crate::engine::{adamw_ema, copied, global_norm, zeros, AdamW, Device, EngineError, Update};
use crate::layout::Layout;
use crate::metric::{Direction, Metric};

mod batch;
mod config;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod feeder;
mod noise;
#[cfg(test)]
mod tests;

pub use batch::BatchSource;
pub use config::TrainerConfig;
#[cfg(feature = "cuda")]
pub(crate) use device::checks;

use batch::{penalty, target, Batch};

/// Kind of file, in its header.
const KIND: &str = "G.pt training state";

/// Why a training cannot start, go on or be saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The recorded checkpoints cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A training state could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The loss is no longer a number.
    #[error(
        "loss is {loss} and the gradient's norm {gradient_norm} at step {step}, expected finite \
         values: lower the learning rate"
    )]
    Diverged {
        /// The step, counted from 0.
        step: u64,
        /// The loss.
        loss: f64,
        /// The norm of the gradient, that of the behavioural loss included.
        gradient_norm: f64,
    },
    /// The behavioural loss has a weight, but nothing was given to compare answers with.
    #[error(
        "the behavioural loss has the weight {weight}, but there is nothing to compare answers \
         with: call `Trainer::with_behavior`, or set the weight to 0"
    )]
    NoBehavior {
        /// The weight.
        weight: f64,
    },
    /// What networks answer could not be compared.
    #[error("cannot compare what networks answer")]
    Behavior(#[source] BehaviorError),
    /// Weights to start at belong to another model.
    #[error("the weights to start at have another {what}: found {found}, expected {expected}")]
    Foreign {
        /// What differs.
        what: &'static str,
        /// In the weights.
        found: String,
        /// In this training.
        expected: String,
    },
    /// A training state belongs to another training.
    #[error("the training state was made with another {what}: found {found}, expected {expected}")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// In the file.
        found: String,
        /// In this training.
        expected: String,
    },
}

/// What one training step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The step, counted from 0.
    pub step: u64,
    /// Mean squared error of the prediction, in normalised parameters.
    pub loss: f64,
    /// How far answers of predicted networks are from those of the true ones, in the
    /// unit of the [`Behavior`], if the behavioural loss has a weight.
    pub divergence: Option<f64>,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate used.
    pub learning_rate: f64,
}

/// The part of a training that changes from step to step.
#[derive(Clone, Debug, PartialEq)]
struct State {
    step: u64,
    parameters: Vec<f32>,
    first_moment: Vec<f32>,
    second_moment: Vec<f32>,
    average: Vec<f32>,
}

/// Header of a training state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StateHeader {
    step: u64,
    model: ModelConfig,
    trainer: TrainerConfig,
    layout: Layout,
    dataset: DataId,
    /// What the behavioural loss compares networks on.
    #[serde(default)]
    behavior: String,
}

/// What tells one data set from another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct DataId {
    metric: Metric,
    training_runs: usize,
    checkpoints: usize,
    /// Over the numbers of the runs and the metrics of their checkpoints.
    hash: String,
}

impl DataId {
    fn of(dataset: &Dataset) -> Self {
        let mut hash = Sha256::new();
        for run in dataset.runs() {
            hash.update(run.id.to_le_bytes());
        }
        for metric in dataset.metrics() {
            hash.update(metric.to_le_bytes());
        }
        Self {
            metric: dataset.metric(),
            training_runs: dataset.train().len(),
            checkpoints: dataset.num_checkpoints(),
            hash: hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// What a gradient of this norm is multiplied by, so that its norm is at most `limit`.
///
/// # Source
/// `torch.nn.utils.clip_grad_norm_`.
pub fn clip_scale(norm: f64, limit: f64) -> f64 {
    (limit / (norm + 1e-6)).min(1.0)
}

/// Trains one G.pt.
pub struct Trainer {
    behavior: Option<Box<dyn Behavior>>,
    dataset: Arc<Dataset>,
    config: TrainerConfig,
    model: Arc<Transformer>,
    statistics: Statistics,
    schedule: NoiseSchedule,
    pairs: PairSampler,
    decayed: Vec<Range<usize>>,
    runner: Runner,
    /// On a GPU, as it was when last read.
    state: State,
    batch: Batch,
}

/// What takes steps.
enum Runner {
    Cpu {
        executor: Box<Executor<f32>>,
        gradient: Vec<f32>,
    },
    #[cfg(feature = "cuda")]
    Device(Box<device::OnDevice>),
}

impl Runner {
    /// Work of the host on the training's own threads, or, beside a device, on all.
    fn install(&self, work: impl FnOnce() + Send) {
        match self {
            Self::Cpu { executor, .. } => executor.threads().install(work),
            #[cfg(feature = "cuda")]
            Self::Device(_) => work(),
        }
    }
}

impl Trainer {
    /// A training from a fresh initialisation, on `threads` threads.
    ///
    /// # Errors
    /// If a configuration is not usable, or does not fit the data.
    pub fn new(
        dataset: Arc<Dataset>,
        model: ModelConfig,
        config: TrainerConfig,
        threads: usize,
    ) -> Result<Self, TrainError> {
        Self::on(Device::Cpu, dataset, model, config, threads)
    }

    /// A training on a device. On a GPU, pairs and noise are drawn there or by `threads` threads,
    /// see [`batch_source`](Self::batch_source): the same as on the CPU, but for rounding.
    ///
    /// # Errors
    /// As [`new`](Self::new), or if the device cannot be used.
    pub fn on(
        device: Device,
        dataset: Arc<Dataset>,
        model: ModelConfig,
        config: TrainerConfig,
        threads: usize,
    ) -> Result<Self, TrainError> {
        let runner = |model: &Arc<Transformer>, from: (&TrainerConfig, &PairSampler)| match device {
            Device::Cpu => Ok(Runner::Cpu {
                executor: Executor::for_training(model.clone(), from.0.batch, threads)?.into(),
                gradient: zeros(model.num_parameters())?,
            }),
            #[cfg(feature = "cuda")]
            Device::Cuda { index, math } => {
                let gpu = crate::engine::cuda::Gpu::open(index).map_err(EngineError::from)?;
                let on = device::OnDevice::new(gpu, model.clone(), math, from, threads)?;
                Ok(Runner::Device(on.into()))
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda { .. } => Err(EngineError::from(crate::engine::DeviceError::NotBuilt)),
        };
        Self::with_runner(runner, dataset, model, config)
    }

    fn with_runner(
        runner: impl FnOnce(
            &Arc<Transformer>,
            (&TrainerConfig, &PairSampler),
        ) -> Result<Runner, EngineError>,
        dataset: Arc<Dataset>,
        model: ModelConfig,
        config: TrainerConfig,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        if model.prediction != Prediction::Start {
            let expected = "0 for a model that does not predict clean parameters";
            ConfigError::check(config.behavior == 0.0, "behavior", &config.behavior, &expected)?;
        }
        let model = Arc::new(Transformer::new(model, dataset.layout())?);
        let statistics = dataset.statistics();
        Normalizer { scale: statistics.scale() }.validate()?;
        let pairs = PairConfig {
            from_start: config.from_start,
            by_metric: config.by_metric,
            scale: statistics.scale(),
            seed: config.seed,
            ..PairConfig::default()
        };
        let pairs = PairSampler::new(dataset.clone(), Part::Train, pairs)?;
        let runner = runner(&model, (&config, &pairs))?;
        let parameters: Vec<f32> = model.initialize(config.seed);
        let state = State {
            step: 0,
            average: copied(&parameters)?,
            first_moment: zeros(parameters.len())?,
            second_moment: zeros(parameters.len())?,
            parameters: copied(&parameters)?,
        };
        let mut trainer = Self {
            schedule: NoiseSchedule::linear(DIFFUSION_STEPS)?,
            batch: Batch::new(config.batch, dataset.layout().num_parameters()),
            decayed: model.decayed(),
            dataset,
            config,
            model,
            statistics,
            pairs,
            runner,
            state,
            behavior: None,
        };
        trainer.send_state()?;
        Ok(trainer)
    }

    /// Brings the state to the device; nothing to do on the CPU.
    fn send_state(&mut self) -> Result<(), TrainError> {
        #[cfg(feature = "cuda")]
        if let Runner::Device(device) = &mut self.runner {
            device.send_state(&self.state)?;
        }
        Ok(())
    }

    /// Brings the state from a GPU: [`weights`](Self::weights) takes it from here. It is also
    /// brought after the last step and by [`held_out_loss`](Self::held_out_loss). On the CPU
    /// there is nothing to do.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn synchronize(&mut self) -> Result<(), TrainError> {
        #[cfg(feature = "cuda")]
        if let Runner::Device(device) = &self.runner {
            device.read_state(&mut self.state)?;
        }
        Ok(())
    }

    /// Gives the behavioural loss what it compares answers with. Without a weight
    /// in the configuration it is not used.
    pub fn with_behavior(self, behavior: Box<dyn Behavior>) -> Self {
        Self { behavior: Some(behavior), ..self }
    }

    /// Starts at the parameters of other weights instead of a random initialisation.
    ///
    /// # Errors
    /// If they are of another layout or model, apart from the scale of the metric.
    ///
    /// # Panics
    /// If a step has been taken.
    pub fn start_at(&mut self, weights: &Weights) -> Result<(), TrainError> {
        assert_eq!(self.state.step, 0, "a training starts before its first step");
        let found = ModelConfig {
            metric_scale: self.model.config().metric_scale,
            ..weights.header.config.clone()
        };
        let foreign = |what, found: &dyn std::fmt::Debug, expected: &dyn std::fmt::Debug| {
            let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
            Err(TrainError::Foreign { what, found, expected })
        };
        let (layout, own) = (&weights.header.layout, self.model.layout());
        if layout.check_matches(own).is_err() {
            return foreign("layout", &layout.fingerprint(), &own.fingerprint());
        }
        if found != *self.model.config() {
            return foreign("model", &found, self.model.config());
        }
        self.state.parameters.copy_from_slice(&weights.parameters);
        self.state.average.copy_from_slice(&weights.parameters);
        self.send_state()
    }

    /// Steps that have been taken.
    pub fn steps_done(&self) -> u64 {
        self.state.step
    }

    /// Whether all steps have been taken.
    pub fn is_finished(&self) -> bool {
        self.state.step >= self.config.steps
    }

    /// Where batches are drawn; none on the CPU.
    pub fn batch_source(&self) -> Option<BatchSource> {
        match &self.runner {
            Runner::Cpu { .. } => None,
            #[cfg(feature = "cuda")]
            Runner::Device(device) => Some(device.source),
        }
    }

    /// The configuration of this training.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// The model that is trained.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// Takes one step.
    ///
    /// # Errors
    /// If the loss is not finite, or the behavioural loss cannot be formed; the state
    /// is then that before the step.
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        let step = self.state.step;
        let learning_rate = self.config.schedule().at(step as f64);
        let settings =
            AdamW { learning_rate, weight_decay: self.config.weight_decay, ..AdamW::default() };
        let average_decay = self.config.ema_decay.min((1.0 + step as f64) / (10.0 + step as f64));
        #[cfg(feature = "cuda")]
        if let Runner::Device(_) = self.runner {
            return self.step_on_device(settings, average_decay);
        }
        let (batch, pairs, schedule) = (&mut self.batch, &mut self.pairs, &self.schedule);
        self.runner.install(|| batch.draw((step, step), pairs, schedule, self.config.seed));
        #[cfg_attr(not(feature = "cuda"), allow(irrefutable_let_patterns))]
        let Runner::Cpu { executor, gradient } = &mut self.runner
        else {
            unreachable!("the device has taken the step")
        };
        let penalty = penalty(&self.behavior, &self.config, self.statistics.scale(), &self.batch)?;
        let target = target(self.model.config().prediction, &self.batch, &penalty);
        let loss = executor.loss_and_gradient(
            &self.state.parameters,
            &self.batch.inputs(),
            &target,
            gradient,
        )?;
        let divergence = penalty.map(|p| p.mean().map_err(TrainError::Behavior)).transpose()?;
        let gradient_norm = global_norm(gradient);
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(TrainError::Diverged { step, loss, gradient_norm });
        }
        let update = Update {
            step: step + 1,
            gradient,
            gradient_scale: self.config.gradient_clip.map_or(1.0, |c| clip_scale(gradient_norm, c)),
            decayed: &self.decayed,
            parameters: &mut self.state.parameters,
            first: &mut self.state.first_moment,
            second: &mut self.state.second_moment,
            average: &mut self.state.average,
            average_decay,
        };
        adamw_ema(executor.threads(), &settings, update);
        self.state.step += 1;
        Ok(StepReport { step, loss, divergence, gradient_norm, learning_rate })
    }

    /// Mean loss of the averaged parameters on pairs of runs that are held out
    /// of training, over `batches` batches that are always the same.
    ///
    /// # Errors
    /// If no run is held out, or `batches` is 0.
    pub fn held_out_loss(&mut self, batches: u64) -> Result<f64, TrainError> {
        ConfigError::check(batches > 0, "batches", &batches, &"at least 1")?;
        let config = self.pairs.config().clone();
        let mut pairs = PairSampler::new(self.dataset.clone(), Part::HeldOut, config)?;
        let mut output = vec![0.0; self.batch.noised.len()];
        let mut total = 0.0;
        for index in 0..batches {
            let streams = (index, u64::MAX - index);
            let (batch, pairs, schedule) = (&mut self.batch, &mut pairs, &self.schedule);
            self.runner.install(|| batch.draw(streams, pairs, schedule, self.config.seed));
            let inputs = self.batch.inputs();
            match &mut self.runner {
                Runner::Cpu { executor, .. } => {
                    executor.predict(&self.state.average, &inputs, &mut output)?;
                }
                #[cfg(feature = "cuda")]
                Runner::Device(device) => device.predict_with_average(&inputs, &mut output)?,
            }
            let prediction = self.model.config().prediction;
            let target = prediction.target(&self.batch.pairs.end, &self.batch.noise);
            let squares = output.iter().zip(target).map(|(&a, &b)| f64::from(a - b).powi(2));
            total += squares.sum::<f64>() / output.len() as f64;
        }
        self.synchronize()?;
        Ok(total / batches as f64)
    }

    /// The averaged parameters, ready to sample from or to save. On a GPU, those that were
    /// brought from it last, see [`synchronize`](Self::synchronize).
    ///
    /// `task` is the name of what the runs solve; `provenance` is kept as it is.
    pub fn weights(
        &self,
        sampler: SamplerConfig,
        task: &str,
        provenance: serde_json::Value,
    ) -> Weights {
        let metric = self.dataset.metric();
        let best = self.statistics.mean_best_metric;
        let worst = match metric.kind.direction() {
            Direction::Minimize => self.statistics.metric_max,
            Direction::Maximize => self.statistics.metric_min,
        };
        Weights {
            header: WeightsHeader {
                config: self.model.config().clone(),
                layout: self.dataset.layout().clone(),
                normalizer: Normalizer { scale: self.statistics.scale() },
                metric,
                prompt_range: PromptRange { best, worst },
                calibration: None,
                sampler,
                task: task.to_owned(),
                provenance,
            },
            parameters: self.state.average.clone(),
            frequencies: self.model.frequencies().to_vec(),
        }
    }

    fn header(&self) -> StateHeader {
        StateHeader {
            step: self.state.step,
            model: self.model.config().clone(),
            trainer: self.config.clone(),
            layout: self.dataset.layout().clone(),
            dataset: DataId::of(&self.dataset),
            behavior: self.behavior.as_ref().map_or(String::new(), |behavior| behavior.describe()),
        }
    }

    /// Saves everything that [`resume`](Self::resume) needs, whole or not at all.
    ///
    /// # Errors
    /// If the disk is full, say.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), TrainError> {
        #[cfg(not(feature = "cuda"))]
        let state = &self.state;
        #[cfg(feature = "cuda")]
        let state = &match &self.runner {
            Runner::Cpu { .. } => std::borrow::Cow::Borrowed(&self.state),
            Runner::Device(device) => {
                let mut state = self.state.clone();
                device.read_state(&mut state)?;
                std::borrow::Cow::Owned(state)
            }
        };
        let shape = [state.parameters.len()];
        let entries = [
            ("parameters", &state.parameters),
            ("first_moment", &state.first_moment),
            ("second_moment", &state.second_moment),
            ("average", &state.average),
        ]
        .map(|(name, values)| (Entry { name, shape: &shape, values }, Precision::F32));
        Ok(file::write(path.as_ref(), KIND, &self.header(), &entries)?)
    }

    /// Goes on from a saved state, to the same result as if never interrupted, if
    /// there are as many threads.
    ///
    /// # Errors
    /// If the file is damaged or belongs to another model, configuration or
    /// data set; the training is then unchanged.
    pub fn resume(&mut self, path: impl AsRef<Path>) -> Result<(), TrainError> {
        let bytes = file::read(path.as_ref())?;
        let contents = Contents::<StateHeader>::parse(&bytes, KIND)?;
        let (found, expected) = (&contents.header, self.header());
        let mismatch = |what, found: &dyn std::fmt::Debug, expected: &dyn std::fmt::Debug| {
            let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
            Err(TrainError::Mismatch { what, found, expected })
        };
        if found.layout != expected.layout {
            return mismatch("layout", &found.layout.fingerprint(), &expected.layout.fingerprint());
        }
        if found.model != expected.model {
            return mismatch("model", &found.model, &expected.model);
        }
        if found.trainer != expected.trainer {
            return mismatch("configuration", &found.trainer, &expected.trainer);
        }
        if found.dataset != expected.dataset {
            return mismatch("data set", &found.dataset, &expected.dataset);
        }
        if found.behavior != expected.behavior {
            return mismatch("behavioural loss", &found.behavior, &expected.behavior);
        }
        let shape = [self.state.parameters.len()];
        self.state = State {
            step: found.step,
            parameters: copied(&contents.tensor("parameters", &shape)?)?,
            first_moment: copied(&contents.tensor("first_moment", &shape)?)?,
            second_moment: copied(&contents.tensor("second_moment", &shape)?)?,
            average: copied(&contents.tensor("average", &shape)?)?,
        };
        self.send_state()
    }
}
