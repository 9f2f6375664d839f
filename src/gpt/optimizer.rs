//! G.pt as an optimizer: one update is one sample written into the model.

use std::sync::Arc;

use dfdx::nn::tensor_collection::TensorCollection;
use dfdx::optim::{Optimizer, OptimizerUpdateError};
use dfdx::shapes::Dtype;
use dfdx::tensor::Gradients;
use dfdx::tensor_ops::Device;
use serde::{Deserialize, Serialize};

use super::{
    Executor, Inputs, Sampler, SamplerConfig, SeededNoise, Transformer, Weights, WeightsError,
    DIFFUSION_STEPS,
};
use crate::engine::EngineError;
use crate::network::{flatten, unflatten, Network};
use crate::optimizer::{
    AppliedPrompt, Feedback, LearnedOptimizer, Needs, OptimizerState, PromptPolicy, StateError,
    UpdateError, UpdateReport,
};

/// Most candidates that are sampled in one batch; more are cut into batches,
/// so that memory stays bounded.
const MAX_BATCH: usize = 64;
/// Name in reports and saved states.
const NAME: &str = "G.pt";

/// Why G.pt could not sample.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// Best-of-k was asked to choose from nothing.
    #[error("0 candidates were asked for, expected at least 1")]
    NoCandidates,
    /// The closure of best-of-k rated no candidate.
    #[error("none of {candidates} candidates got a finite score")]
    NoFiniteScore {
        /// Candidates sampled.
        candidates: usize,
    },
    /// The prompt is an infinity or a NaN.
    #[error("the prompt is {asked}, expected a finite value")]
    NonFinitePrompt {
        /// The prompt.
        asked: f64,
    },
    /// A parameter to start from is an infinity or a NaN.
    #[error("tensor `{tensor}` holds {value}, expected finite parameters to start from")]
    NonFiniteStart {
        /// Name of the tensor in the layout of the weights.
        tensor: String,
        /// The value.
        value: f32,
    },
    /// The buffers of a batch do not agree.
    #[error("`{buffer}` holds {found} values, expected {expected}")]
    Length {
        /// What the buffer is for.
        buffer: &'static str,
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl From<SampleError> for UpdateError {
    fn from(error: SampleError) -> Self {
        Self::Optimizer(Box::new(error))
    }
}

/// A G.pt that comes with the crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pretrained {
    /// Networks 64-10-10 with ReLU on 8x8 digits, conditioned on validation loss.
    Digits,
}

impl Pretrained {
    /// The weights.
    ///
    /// # Errors
    /// Never, unless the crate was packaged wrongly.
    pub fn weights(self) -> Result<Weights, WeightsError> {
        match self {
            Self::Digits => Weights::from_bytes(include_bytes!("../../weights/digits.safetensors")),
        }
    }
}

/// How a [`Gpt`] samples.
#[derive(Clone, Debug, PartialEq)]
pub struct GptConfig {
    /// Seed of the sampling noise. Default 0.
    pub seed: u64,
    /// Threads that a batch is split over. Default 1; a single update uses one.
    pub threads: usize,
    /// What to do with a prompt outside the trained range. Default [`PromptPolicy::Clamp`].
    pub policy: PromptPolicy,
    /// Sampler; `None`, the default, takes the one that the weights name.
    pub sampler: Option<SamplerConfig>,
}

impl Default for GptConfig {
    fn default() -> Self {
        Self { seed: 0, threads: 1, policy: PromptPolicy::default(), sampler: None }
    }
}

/// G.pt behind dfdx's `Optimizer`: give it the present metric, ask for the one
/// wanted, and one update samples parameters that reach it.
///
/// It reads no gradients. What it has observed is used up by an update, for it
/// is no longer true afterwards: observe again before the next.
///
/// # Examples
/// ```
/// use dfdx::prelude::*;
/// use lopt::tasks::digits::{Digits, DigitsMlp};
///
/// let device = Cpu::seed_from_u64(7);
/// let mut model = device.build_module::<DigitsMlp, f32>();
/// let digits = Digits::load()?;
/// let before = digits.validation_loss(&model)?;
///
/// let mut optimizer = lopt::Gpt::pretrained(&model, lopt::Pretrained::Digits)?;
/// optimizer.prompt(0.1);
/// optimizer.observe(before);
/// let gradients = Gradients::leaky();
/// optimizer.update(&mut model, &gradients)?;
/// assert!(digits.validation_loss(&model)? < 0.2 * before);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Gpt {
    weights: Weights,
    sampler: Sampler,
    config: GptConfig,
    engine: Engine,
    prompt: f64,
    feedback: Option<f64>,
    draws: u64,
    last_error: Option<UpdateError>,
}

/// What [`Gpt`] saves and restores.
#[derive(Serialize, Deserialize)]
struct SavedState {
    seed: u64,
    draws: u64,
    prompt: f64,
    feedback: Option<f64>,
}

impl Gpt {
    /// An optimizer from weights. The first prompt is the best value of the
    /// metric that the weights were trained on.
    ///
    /// # Errors
    /// If the weights or the configuration are not usable.
    pub fn new(weights: Weights, config: GptConfig) -> crate::Result<Self> {
        let sampler = config.sampler.unwrap_or(weights.header.sampler);
        let model = Arc::new(weights.model()?);
        Ok(Self {
            sampler: Sampler::new(&sampler, DIFFUSION_STEPS, model.config().prediction)?,
            engine: Engine::new(model, config.threads)?,
            prompt: weights.header.prompt_range.best,
            config,
            weights,
            feedback: None,
            draws: 0,
            last_error: None,
        })
    }

    /// An optimizer from bundled weights, checked against the model's layout.
    ///
    /// # Errors
    /// If the weights are for another network; the message names the difference.
    pub fn pretrained<M: Network>(_model: &M, which: Pretrained) -> crate::Result<Self> {
        let weights = which.weights()?;
        M::layout()?.check_matches(&weights.header.layout)?;
        Self::new(weights, GptConfig::default())
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Sets the value of the metric to ask for, until it is set again.
    pub fn prompt(&mut self, metric: f64) {
        self.prompt = metric;
    }

    /// Tells the present value of the metric, on the split that the weights
    /// were trained on (`self.weights().header.metric`).
    pub fn observe(&mut self, feedback: impl Into<Feedback>) {
        self.feedback = Some(feedback.into().metric);
    }

    /// An update that samples `candidates` networks in one batch and keeps the
    /// one that `score` rates best, in the direction of the metric.
    ///
    /// # Errors
    /// As [`LearnedOptimizer::try_update`], or if every score is not finite;
    /// the model is then unchanged.
    pub fn update_best_of<M, E, D>(
        &mut self,
        model: &mut M,
        candidates: usize,
        mut score: impl FnMut(&M) -> f64,
    ) -> Result<UpdateReport, UpdateError>
    where
        M: Network + TensorCollection<E, D> + Clone,
        E: Dtype,
        D: Device<E>,
    {
        let direction = self.weights.header.metric.kind.direction();
        let (samples, report) = self.propose(model, candidates)?;
        let mut best: Option<(f64, M)> = None;
        for sample in samples.chunks_exact(self.weights.header.layout.num_parameters()) {
            let mut candidate = model.clone();
            write(&mut candidate, sample)?;
            let value = score(&candidate);
            let better = best.as_ref().is_none_or(|(best, _)| direction.is_better(value, *best));
            if value.is_finite() && better {
                best = Some((value, candidate));
            }
        }
        let Some((_, best)) = best else {
            return Err(SampleError::NoFiniteScore { candidates }.into());
        };
        *model = best;
        self.feedback = None;
        Ok(report)
    }

    /// Samples one network for each row, without a model: the batch form of an
    /// update. Prompts are taken as they are.
    ///
    /// # Shapes
    /// `start [N, P]` present parameters; `current [N]` and `target [N]` present
    /// and wanted metric; the result is `[N, P]`.
    ///
    /// # Errors
    /// If the lengths do not agree or a value is not finite.
    pub fn sample(
        &mut self,
        start: &[f32],
        current: &[f64],
        target: &[f64],
    ) -> Result<Vec<f32>, UpdateError> {
        let size = self.weights.header.layout.num_parameters();
        for (buffer, found, expected) in
            [("start", start.len(), size * current.len()), ("target", target.len(), current.len())]
        {
            if found != expected {
                return Err(SampleError::Length { buffer, found, expected }.into());
            }
        }
        if let Some((tensor, value)) = self.non_finite(start) {
            return Err(SampleError::NonFiniteStart { tensor, value }.into());
        }
        let mut samples = Vec::with_capacity(start.len());
        for (chunk, rows) in start.chunks(size * MAX_BATCH).enumerate() {
            let rows_before = chunk * MAX_BATCH;
            let chosen = rows_before..rows_before + rows.len() / size;
            let batch =
                Batch { start: rows, current: &current[chosen.clone()], target: &target[chosen] };
            let noise = SeededNoise::new(self.config.seed, self.draws + chunk as u64);
            samples.extend(self.engine.sample(&self.weights, &self.sampler, noise, &batch)?);
        }
        if let Some((tensor, _)) = self.non_finite(&samples) {
            return Err(UpdateError::NonFiniteResult { tensor });
        }
        self.draws += current.len().div_ceil(MAX_BATCH) as u64;
        Ok(samples)
    }

    /// The first value of any row that is not finite, with the name of its tensor.
    fn non_finite(&self, rows: &[f32]) -> Option<(String, f32)> {
        let layout = &self.weights.header.layout;
        let index = rows.iter().position(|value| !value.is_finite())?;
        let within = index % layout.num_parameters();
        let tensor = layout.tensors().iter().find(|tensor| tensor.range().contains(&within))?;
        Some((tensor.name.clone(), rows[index]))
    }

    /// Samples `candidates` networks from a model's parameters.
    fn propose<M, E, D>(
        &mut self,
        model: &M,
        candidates: usize,
    ) -> Result<(Vec<f32>, UpdateReport), UpdateError>
    where
        M: Network + TensorCollection<E, D>,
        E: Dtype,
        D: Device<E>,
    {
        if candidates == 0 {
            return Err(SampleError::NoCandidates.into());
        }
        M::layout()?.check_matches(&self.weights.header.layout)?;
        let current = self.feedback.ok_or(UpdateError::NoFeedback)?;
        if !current.is_finite() {
            return Err(UpdateError::NonFiniteFeedback { metric: current });
        }
        let prompt = self.applied_prompt()?;
        let start = read(model)?;
        let target = vec![prompt.applied; candidates];
        let samples =
            self.sample(&start.repeat(candidates), &vec![current; candidates], &target)?;
        let evaluations = self.sampler.timesteps().len();
        let report = UpdateReport { evaluations, prompt: Some(prompt) };
        Ok((samples, report))
    }

    fn applied_prompt(&self) -> Result<AppliedPrompt, UpdateError> {
        let asked = self.prompt;
        let range = self.weights.header.prompt_range;
        let clamped = range.clamp(asked);
        if !asked.is_finite() {
            return Err(SampleError::NonFinitePrompt { asked }.into());
        }
        let applied = match self.config.policy {
            PromptPolicy::Clamp => clamped,
            PromptPolicy::Extrapolate => asked,
            PromptPolicy::Reject if clamped == asked => asked,
            PromptPolicy::Reject => {
                let (low, high) = (range.best.min(range.worst), range.best.max(range.worst));
                return Err(UpdateError::PromptOutOfRange { asked, low, high });
            }
        };
        Ok(AppliedPrompt { asked, applied })
    }
}

/// A model's parameters as `f32`.
fn read<M, E, D>(model: &M) -> Result<Vec<f32>, UpdateError>
where
    M: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    let flat = flatten::<M, E, D>(model)?;
    Ok(flat.iter().map(|value| value.to_f32().unwrap_or(f32::NAN)).collect())
}

/// Writes a sample into a model.
fn write<M, E, D>(model: &mut M, sample: &[f32]) -> Result<(), UpdateError>
where
    M: Network + TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    let flat: Vec<E> = sample.iter().filter_map(|&value| E::from_f32(value)).collect();
    // A value that `E` cannot hold is missing here, which `unflatten` refuses.
    Ok(unflatten::<M, E, D>(model, &flat)?)
}

impl<M, E, D> Optimizer<M, D, E> for Gpt
where
    M: Network + TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    fn update(
        &mut self,
        model: &mut M,
        gradients: &Gradients<E, D>,
    ) -> Result<(), OptimizerUpdateError<D::Err>> {
        let result = self.try_update(model, Some(gradients));
        self.last_error = None;
        result.map(|_| ()).map_err(|error| self.last_error.insert(error).to_dfdx())
    }
}

impl<M, E, D> LearnedOptimizer<M, E, D> for Gpt
where
    M: Network + TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    fn name(&self) -> &str {
        NAME
    }

    fn needs(&self) -> Needs {
        Needs::FEEDBACK
    }

    fn observe(&mut self, feedback: Feedback) {
        Gpt::observe(self, feedback);
    }

    fn try_update(
        &mut self,
        model: &mut M,
        _gradients: Option<&Gradients<E, D>>,
    ) -> Result<UpdateReport, UpdateError> {
        let (sample, report) = self.propose(model, 1)?;
        write(model, &sample)?;
        self.feedback = None;
        Ok(report)
    }

    fn last_error(&self) -> Option<&UpdateError> {
        self.last_error.as_ref()
    }

    fn state(&self) -> Result<OptimizerState, StateError> {
        OptimizerState::new(
            NAME,
            &SavedState {
                seed: self.config.seed,
                draws: self.draws,
                prompt: self.prompt,
                feedback: self.feedback,
            },
        )
    }

    fn restore(&mut self, state: &OptimizerState) -> Result<(), StateError> {
        let saved: SavedState = state.read(NAME)?;
        self.config.seed = saved.seed;
        self.draws = saved.draws;
        self.prompt = saved.prompt;
        self.feedback = saved.feedback;
        Ok(())
    }
}

/// Rows to sample from; see [`Gpt::sample`].
struct Batch<'a> {
    start: &'a [f32],
    current: &'a [f64],
    target: &'a [f64],
}

/// The executor, grown when a larger batch is asked for.
struct Engine {
    model: Arc<Transformer>,
    threads: usize,
    executor: Executor<f32>,
    capacity: usize,
}

impl Engine {
    fn new(model: Arc<Transformer>, threads: usize) -> Result<Self, EngineError> {
        let executor = Executor::for_inference(model.clone(), 1, threads)?;
        Ok(Self { model, threads, executor, capacity: 1 })
    }

    /// One sample for each row.
    fn sample(
        &mut self,
        weights: &Weights,
        sampler: &Sampler,
        mut noise: SeededNoise,
        batch: &Batch<'_>,
    ) -> Result<Vec<f32>, SampleError> {
        let rows = batch.current.len();
        if rows > self.capacity {
            self.executor = Executor::for_inference(self.model.clone(), rows, self.threads)?;
            self.capacity = rows;
        }
        let normalizer = &weights.header.normalizer;
        let mut start = batch.start.to_vec();
        normalizer.normalize(&mut start);
        // The difference is formed in f32 here, as in the reference (NOTES 6).
        let narrow = |metrics: &[f64]| metrics.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let (current, target) = (narrow(batch.current), narrow(batch.target));
        let delta: Vec<f32> = target.iter().zip(&current).map(|(t, c)| t - c).collect();
        let mut timestep = vec![0.0; rows];
        let executor = &mut self.executor;
        let predict = &mut |noised: &[f32], t: f32, output: &mut [f32]| {
            timestep.fill(t);
            let inputs = Inputs {
                noised,
                start: &start,
                timestep: &timestep,
                delta: &delta,
                target: &target,
                current: &current,
            };
            executor.predict(&weights.parameters, &inputs, output)
        };
        let mut sample = sampler.sample(&mut noise, start.len(), predict)?;
        normalizer.unnormalize(&mut sample);
        Ok(sample)
    }
}
