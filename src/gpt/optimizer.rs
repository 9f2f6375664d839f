//! G.pt as an optimizer: one update is one sample written into the model.

mod sampling;

use std::sync::Arc;

use dfdx::nn::tensor_collection::TensorCollection;
use dfdx::optim::{Optimizer, OptimizerUpdateError};
use dfdx::shapes::Dtype;
use dfdx::tensor::Gradients;
use dfdx::tensor_ops::Device;
use serde::{Deserialize, Serialize};

use self::sampling::{batches, Batch, Engine};
use super::sampler::Noise;
use super::{ConfigError, Sampler, SamplerConfig, Weights, WeightsError, DIFFUSION_STEPS};
use crate::engine::{self, EngineError};
use crate::network::{flatten, unflatten, Network};
use crate::optimizer::{
    AppliedPrompt, Feedback, LearnedOptimizer, Needs, OptimizerState, PromptPolicy, StateError,
    UpdateError, UpdateReport,
};

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
    /// Samples were asked for by their noise, but the sampler draws more on the way.
    #[error("the sampler draws noise at every step, expected DDIM with eta 0 or DPM-Solver++")]
    RandomSampler,
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
    /// Policies of cart-pole with Gym's physics, 4-32-32-2 with SELU, conditioned on the
    /// mean return of 20 episodes.
    #[cfg(feature = "gym")]
    CartPole,
}

impl Pretrained {
    /// The weights that are for a task, if there are any.
    pub fn for_task(task: &str) -> Option<Self> {
        match task {
            "digits" => Some(Self::Digits),
            #[cfg(feature = "gym")]
            "cartpole" => Some(Self::CartPole),
            _ => None,
        }
    }

    /// The weights.
    ///
    /// # Errors
    /// Never, unless the crate was packaged wrongly.
    pub fn weights(self) -> Result<Weights, WeightsError> {
        match self {
            Self::Digits => Weights::from_bytes(include_bytes!("../../weights/digits.safetensors")),
            #[cfg(feature = "gym")]
            Self::CartPole => {
                Weights::from_bytes(include_bytes!("../../weights/cartpole.safetensors"))
            }
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
    /// What it runs on. Default the CPU. On a GPU a seed gives the same samples, but for
    /// rounding.
    pub device: engine::Device,
    /// What to do with a prompt outside the trained range. Default [`PromptPolicy::Clamp`].
    pub policy: PromptPolicy,
    /// Sampler; `None`, the default, takes the one that the weights name.
    pub sampler: Option<SamplerConfig>,
}

impl Default for GptConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            threads: 1,
            device: engine::Device::Cpu,
            policy: PromptPolicy::default(),
            sampler: None,
        }
    }
}

impl GptConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// If the sampler cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.sampler.as_ref().map_or(Ok(()), SamplerConfig::validate)
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
    /// Streams of noise that are used up.
    draws: u64,
    last_error: Option<UpdateError>,
}

/// What [`Gpt`] saves and restores.
#[derive(Serialize, Deserialize)]
struct SavedState {
    /// The network that it belongs to.
    fingerprint: String,
    seed: u64,
    draws: u64,
    /// None if it is not finite, which JSON cannot hold.
    prompt: Option<f64>,
    feedback: Option<f64>,
}

impl Gpt {
    /// An optimizer from weights. The first prompt is the best value of the
    /// metric that the weights were trained on.
    ///
    /// # Errors
    /// If the weights, the configuration or the device are not usable.
    pub fn new(weights: Weights, config: GptConfig) -> crate::Result<Self> {
        config.validate()?;
        weights.header.validate()?;
        let sampler = config.sampler.unwrap_or(weights.header.sampler);
        let model = Arc::new(weights.model()?);
        Ok(Self {
            sampler: Sampler::new(&sampler, DIFFUSION_STEPS, model.config().prediction)?,
            engine: Engine::new(&config, model, &weights.parameters)?,
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

    fn fingerprint(&self) -> String {
        self.weights.header.layout.fingerprint().to_string()
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

    /// An update that samples `candidates` networks, scores each and keeps the
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
        if candidates == 0 {
            return Err(SampleError::NoCandidates.into());
        }
        let direction = self.weights.header.metric.kind.direction();
        let request = self.request(model)?;
        let mut best: Option<(f64, M)> = None;
        let (mut left, mut streams) = (candidates, 0);
        while left > 0 {
            let batch = request.batch(left.min(self.engine.most_rows()));
            let samples = self.draw(streams, &batch)?;
            for sample in samples.chunks_exact(request.start.len()) {
                let mut candidate = model.clone();
                self.write(&mut candidate, sample)?;
                let value = score(&candidate);
                let better =
                    best.as_ref().is_none_or(|(best, _)| direction.is_better(value, *best));
                if value.is_finite() && better {
                    best = Some((value, candidate));
                }
            }
            (left, streams) = (left - batch.rows(), streams + batch.streams());
        }
        let Some((_, best)) = best else {
            return Err(SampleError::NoFiniteScore { candidates }.into());
        };
        *model = best;
        Ok(self.accept(&request, streams))
    }

    /// Samples one network for each row, without a model: the batch form of an
    /// update. Prompts are taken as they are. A row gets the same sample however
    /// many follow it.
    ///
    /// A GPU samples up to 4096 rows at a time, or half as many again and again
    /// until its memory suffices; the CPU 64.
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
        self.check_rows(start, current, target)?;
        let (mut samples, mut streams) = (Vec::with_capacity(start.len()), 0);
        for batch in batches(start, current, target, self.engine.most_rows()) {
            samples.extend(self.draw(streams, &batch)?);
            streams += batch.streams();
        }
        self.draws = self.draws.wrapping_add(streams);
        Ok(samples)
    }

    /// [`sample`](Self::sample) with noise of the caller's, which decides the
    /// result: nearby noise gives nearby networks. The seed has no part in it.
    ///
    /// # Shapes
    /// As [`sample`](Self::sample); `noise [N, P]` is from the standard normal
    /// distribution.
    ///
    /// # Errors
    /// As [`sample`](Self::sample), or if the sampler draws noise on the way.
    pub fn sample_from_noise(
        &mut self,
        noise: &[f32],
        start: &[f32],
        current: &[f64],
        target: &[f64],
    ) -> Result<Vec<f32>, UpdateError> {
        self.check_rows(start, current, target)?;
        if noise.len() != start.len() {
            let (found, expected) = (noise.len(), start.len());
            return Err(SampleError::Length { buffer: "noise", found, expected }.into());
        }
        if !self.sampler.is_deterministic() {
            return Err(SampleError::RandomSampler.into());
        }
        let mut samples = Vec::with_capacity(start.len());
        for batch in batches(start, current, target, self.engine.most_rows()) {
            let own = &noise[samples.len()..][..batch.start.len()];
            samples.extend(self.draw_from(Noise::Given(own), &batch)?);
        }
        Ok(samples)
    }

    /// Checks what is sampled from.
    fn check_rows(
        &self,
        start: &[f32],
        current: &[f64],
        target: &[f64],
    ) -> Result<(), UpdateError> {
        let size = self.weights.header.layout.num_parameters();
        for (buffer, found, expected) in
            [("start", start.len(), size * current.len()), ("target", target.len(), current.len())]
        {
            if found != expected {
                return Err(SampleError::Length { buffer, found, expected }.into());
            }
        }
        self.check_start(start)?;
        current.iter().try_for_each(|&metric| check_feedback(metric))?;
        target.iter().try_for_each(|&asked| check_prompt(asked))
    }

    /// One sample for each row, with the streams of noise that come `ahead` after
    /// those that led to an update; the same until the next update.
    fn draw(&mut self, ahead: u64, batch: &Batch) -> Result<Vec<f32>, UpdateError> {
        let stream = self.draws.wrapping_add(ahead);
        self.draw_from(Noise::Seeded { seed: self.config.seed, stream }, batch)
    }

    /// One sample for each row, all of them finite.
    fn draw_from(&mut self, noise: Noise<'_>, batch: &Batch) -> Result<Vec<f32>, UpdateError> {
        let samples = self.engine.sample(&self.weights, &self.sampler, noise, batch)?;
        match samples.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(UpdateError::NonFiniteResult { tensor: self.tensor(index) }),
            None => Ok(samples),
        }
    }

    /// Name of the tensor that a position in `[N, P]` belongs to.
    fn tensor(&self, index: usize) -> String {
        let layout = &self.weights.header.layout;
        let within = index % layout.num_parameters();
        let tensor = layout.tensors().iter().find(|tensor| tensor.range().contains(&within));
        tensor.map_or_else(String::new, |tensor| tensor.name.clone())
    }

    fn check_start(&self, start: &[f32]) -> Result<(), SampleError> {
        match start.iter().position(|value| !value.is_finite()) {
            Some(index) => {
                Err(SampleError::NonFiniteStart { tensor: self.tensor(index), value: start[index] })
            }
            None => Ok(()),
        }
    }

    /// What an update of this model has to ask for.
    fn request<M, E, D>(&self, model: &M) -> Result<Request, UpdateError>
    where
        M: Network + TensorCollection<E, D>,
        E: Dtype,
        D: Device<E>,
    {
        M::layout()?.check_matches(&self.weights.header.layout)?;
        let current = self.feedback.ok_or(UpdateError::NoFeedback)?;
        check_feedback(current)?;
        let prompt = self.applied_prompt()?;
        let flat = flatten::<M, E, D>(model)?;
        let start: Vec<f32> = flat.iter().map(|v| v.to_f32().unwrap_or(f32::NAN)).collect();
        self.check_start(&start)?;
        Ok(Request { start, current, prompt })
    }

    /// Writes a sample into a model, whole or not at all.
    fn write<M, E, D>(&self, model: &mut M, sample: &[f32]) -> Result<(), UpdateError>
    where
        M: Network + TensorCollection<E, D>,
        E: Dtype,
        D: Device<E>,
    {
        let cast = |(index, &value): (usize, &f32)| {
            // A narrow dtype makes an infinity of what it cannot hold.
            let finite = |value: &E| value.to_f64().is_some_and(f64::is_finite);
            let value = E::from_f32(value).filter(finite);
            value.ok_or_else(|| UpdateError::NonFiniteResult { tensor: self.tensor(index) })
        };
        let flat = sample.iter().enumerate().map(cast).collect::<Result<Vec<E>, _>>()?;
        Ok(unflatten::<M, E, D>(model, &flat)?)
    }

    /// Notes that the model was updated: what was observed and so many streams
    /// of noise are used up. Everything that can fail comes before.
    fn accept(&mut self, request: &Request, streams: u64) -> UpdateReport {
        self.feedback = None;
        self.draws = self.draws.wrapping_add(streams);
        let evaluations = self.sampler.timesteps().len();
        UpdateReport { evaluations, prompt: Some(request.prompt) }
    }

    fn applied_prompt(&self) -> Result<AppliedPrompt, UpdateError> {
        let asked = self.prompt;
        let range = self.weights.header.prompt_range;
        check_prompt(asked)?;
        let clamped = range.clamp(asked);
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

fn check_prompt(asked: f64) -> Result<(), UpdateError> {
    if asked.is_finite() {
        Ok(())
    } else {
        Err(SampleError::NonFinitePrompt { asked }.into())
    }
}

fn check_feedback(metric: f64) -> Result<(), UpdateError> {
    if metric.is_finite() {
        Ok(())
    } else {
        Err(UpdateError::NonFiniteFeedback { metric })
    }
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
        let request = self.request(model)?;
        let sample = self.draw(0, &request.batch(1))?;
        self.write(model, &sample)?;
        Ok(self.accept(&request, 1))
    }

    fn last_error(&self) -> Option<&UpdateError> {
        self.last_error.as_ref()
    }

    fn state(&self) -> Result<OptimizerState, StateError> {
        OptimizerState::new(
            NAME,
            &SavedState {
                fingerprint: self.fingerprint(),
                seed: self.config.seed,
                draws: self.draws,
                prompt: Some(self.prompt).filter(|prompt| prompt.is_finite()),
                feedback: self.feedback.filter(|metric| metric.is_finite()),
            },
        )
    }

    fn restore(&mut self, state: &OptimizerState) -> Result<(), StateError> {
        let saved: SavedState = state.read(NAME)?;
        let (found, expected) = (saved.fingerprint, self.fingerprint());
        if found != expected {
            return Err(StateError::Fingerprint { found, expected });
        }
        self.config.seed = saved.seed;
        self.draws = saved.draws;
        self.prompt = saved.prompt.unwrap_or(f64::NAN);
        self.feedback = saved.feedback;
        Ok(())
    }
}

/// One update, checked.
struct Request {
    start: Vec<f32>,
    current: f64,
    prompt: AppliedPrompt,
}

impl Request {
    /// As many rows of the same.
    fn batch(&self, rows: usize) -> Batch {
        Batch {
            start: self.start.repeat(rows),
            current: vec![self.current; rows],
            target: vec![self.prompt.applied; rows],
        }
    }
}

#[cfg(test)]
mod tests {
    use dfdx::nn::builders::{Linear, Tanh};
    use dfdx::nn::DeviceBuildExt;
    use dfdx::tensor::{Cpu, ZerosTensor};
    use dfdx::tensor_ops::BroadcastTo;

    use super::*;
    use crate::gpt::sampler::STREAM_ROWS;
    use crate::gpt::{ModelConfig, Normalizer, PromptRange, Transformer, WeightsHeader};
    use crate::metric::{Metric, MetricKind};
    use crate::network::Built;

    type Net = (Linear<2, 3>, Tanh, Linear<3, 1>);
    type Model = Built<Net, f32, Cpu>;

    const BEST: f64 = 0.1;
    const WORST: f64 = 2.0;

    fn model() -> Model {
        Cpu::seed_from_u64(1).build_module::<Net, f32>()
    }

    /// A G.pt that changes networks without making them better.
    fn weights(metric: Metric) -> Weights {
        let size = ModelConfig { width: 8, blocks: 1, heads: 2, ..ModelConfig::default() };
        let config = ModelConfig { frequencies: 4, ..size };
        let layout = Net::layout().unwrap();
        let model = Transformer::new(config.clone(), &layout).unwrap();
        let mut parameters: Vec<f32> = model.initialize(0);
        parameters.iter_mut().enumerate().for_each(|(i, p)| *p += 0.1 * (i as f32).sin());
        let (best, worst) = match metric.kind.direction() {
            crate::metric::Direction::Minimize => (BEST, WORST),
            crate::metric::Direction::Maximize => (WORST, BEST),
        };
        let header = WeightsHeader {
            config,
            layout,
            normalizer: Normalizer { scale: 1.0 },
            metric,
            prompt_range: PromptRange { best, worst },
            calibration: None,
            sampler: SamplerConfig { steps: 3, ..SamplerConfig::default() },
            task: "none".into(),
            provenance: serde_json::Value::Null,
        };
        Weights { header, parameters, frequencies: model.frequencies().to_vec() }
    }

    fn gpt(config: GptConfig) -> Gpt {
        Gpt::new(weights(Metric::VALIDATION_LOSS), config).unwrap()
    }

    fn bits<M: TensorCollection<f32, Cpu>>(model: &M) -> Vec<u32> {
        flatten(model).unwrap().into_iter().map(f32::to_bits).collect()
    }

    fn update(gpt: &mut Gpt, model: &mut Model) -> Result<UpdateReport, UpdateError> {
        gpt.try_update(model, None::<&Gradients<f32, Cpu>>)
    }

    /// After a failure, the next update is that of an optimizer that was never
    /// called.
    fn assert_unharmed(gpt: &mut Gpt, config: GptConfig) {
        let (mut a, mut b) = (model(), model());
        let mut twin = self::gpt(config);
        for (gpt, model) in [(gpt, &mut a), (&mut twin, &mut b)] {
            gpt.prompt(0.5);
            gpt.observe(1.0);
            update(gpt, model).unwrap();
        }
        assert_eq!(bits(&a), bits(&b));
    }

    #[test]
    fn a_prompt_outside_the_range_follows_the_policy() {
        for metric in
            [Metric::VALIDATION_LOSS, Metric { kind: MetricKind::Return, ..Metric::TEST_LOSS }]
        {
            let ask = |policy, prompt| {
                let config = GptConfig { policy, ..GptConfig::default() };
                let mut gpt = Gpt::new(weights(metric), config).unwrap();
                let mut model = model();
                gpt.prompt(prompt);
                gpt.observe(1.0);
                let result = update(&mut gpt, &mut model);
                (result.map(|report| report.prompt.unwrap()), bits(&model))
            };
            for (outside, nearest) in [(0.01, BEST), (-3.0, BEST), (9.0, WORST)] {
                let (clamped, there) = ask(PromptPolicy::Clamp, outside);
                let clamped = clamped.unwrap();
                assert_eq!((clamped.asked, clamped.applied), (outside, nearest));
                assert!(clamped.is_clamped());
                assert_eq!(there, ask(PromptPolicy::Clamp, nearest).1);

                let (extrapolated, elsewhere) = ask(PromptPolicy::Extrapolate, outside);
                assert_eq!(extrapolated.unwrap().applied, outside);
                assert_ne!(elsewhere, there);

                let (rejected, unchanged) = ask(PromptPolicy::Reject, outside);
                let error = rejected.unwrap_err();
                assert_eq!(
                    error.to_string(),
                    format!("the prompt is {outside}, expected a value from {BEST} to {WORST}")
                );
                assert_eq!(unchanged, bits(&self::model()));
            }
            for inside in [BEST, 0.7, WORST] {
                let results =
                    [PromptPolicy::Clamp, PromptPolicy::Extrapolate, PromptPolicy::Reject]
                        .map(|policy| ask(policy, inside));
                assert!(results.iter().all(|(prompt, _)| !prompt.as_ref().unwrap().is_clamped()));
                assert!(results.iter().all(|(_, bits)| *bits == results[0].1));
            }
        }
    }

    #[test]
    fn an_update_starts_from_the_last_and_uses_up_what_was_observed() {
        let (mut gpt, mut model) = (gpt(GptConfig::default()), model());
        let mut other = self::gpt(GptConfig::default());
        for metric in [2.0, 0.7, 0.3] {
            let start: Vec<f32> = flatten(&model).unwrap();
            gpt.observe(metric);
            let report = update(&mut gpt, &mut model).unwrap();
            assert_eq!(report.evaluations, 3);
            assert_eq!(flatten(&model).unwrap(), other.sample(&start, &[metric], &[BEST]).unwrap());
            let before = bits(&model);
            assert!(matches!(update(&mut gpt, &mut model), Err(UpdateError::NoFeedback)));
            assert_eq!(bits(&model), before);
        }
    }

    #[test]
    fn every_failure_leaves_model_and_optimizer_alone() {
        let config = || GptConfig::default();
        for (prompt, metric) in
            [(f64::NAN, 1.0), (f64::INFINITY, 1.0), (0.5, f64::NAN), (0.5, f64::NEG_INFINITY)]
        {
            let (mut gpt, mut model) = (gpt(config()), model());
            gpt.prompt(prompt);
            gpt.observe(metric);
            update(&mut gpt, &mut model).unwrap_err();
            gpt.update_best_of(&mut model, 2, |_| 0.0).unwrap_err();
            assert_eq!(bits(&model), bits(&self::model()));
            assert_unharmed(&mut gpt, config());
        }

        // Parameters to start from, wherever the bad one is.
        let (mut gpt, mut model) = (gpt(config()), model());
        for (position, tensor) in [(0, "0.weight"), (8, "0.bias"), (12, "2.bias")] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut flat = flatten(&self::model()).unwrap();
                flat[position] = bad;
                unflatten(&mut model, &flat).unwrap();
                let before = bits(&model);
                gpt.observe(1.0);
                let error = update(&mut gpt, &mut model).unwrap_err();
                let cause = std::error::Error::source(&error).unwrap().to_string();
                assert!(cause.starts_with(&format!("tensor `{tensor}` holds {bad}")), "{cause}");
                assert_eq!(bits(&model), before);
            }
        }
        assert_unharmed(&mut gpt, config());

        // Another network.
        let mut gpt = self::gpt(config());
        type Other = (Linear<2, 4>, Tanh, Linear<4, 1>);
        let mut other = Cpu::seed_from_u64(0).build_module::<Other, f32>();
        let before = bits(&other);
        gpt.observe(1.0);
        let error = gpt.try_update(&mut other, None::<&Gradients<f32, Cpu>>).unwrap_err();
        assert!(matches!(error, UpdateError::Layout(_)), "{error}");
        assert_eq!(bits(&other), before);
        assert_unharmed(&mut gpt, config());

        // A tensor that can be read but not written.
        let mut gpt = self::gpt(config());
        let mut broadcast = self::model();
        let zero: dfdx::tensor::Tensor<dfdx::shapes::Rank0, f32, Cpu> = Cpu::default().zeros();
        broadcast.0.bias = zero.broadcast();
        let before = bits(&broadcast);
        gpt.observe(1.0);
        let error = update(&mut gpt, &mut broadcast).unwrap_err();
        assert!(matches!(error, UpdateError::Network(_)), "{error}");
        gpt.update_best_of(&mut broadcast, 2, |_| 0.0).unwrap_err();
        assert_eq!(bits(&broadcast), before);
        assert_unharmed(&mut gpt, config());
    }

    #[test]
    fn dfdx_s_update_keeps_the_error_until_it_succeeds() {
        let (mut gpt, mut model) = (gpt(GptConfig::default()), model());
        let last = |gpt: &Gpt| {
            LearnedOptimizer::<Model, f32, Cpu>::last_error(gpt).map(|error| error.to_string())
        };
        let gradients = Gradients::leaky();
        gpt.update(&mut model, &gradients).unwrap_err();
        assert_eq!(last(&gpt), Some(UpdateError::NoFeedback.to_string()));
        gpt.observe(f64::NAN);
        gpt.update(&mut model, &gradients).unwrap_err();
        assert_eq!(
            last(&gpt),
            Some(UpdateError::NonFiniteFeedback { metric: f64::NAN }.to_string())
        );
        assert_eq!(bits(&model), bits(&self::model()));
        gpt.observe(1.0);
        gpt.update(&mut model, &gradients).unwrap();
        assert_eq!(last(&gpt), None);
        assert_ne!(bits(&model), bits(&self::model()));
    }

    #[test]
    fn best_of_k_keeps_the_best_in_the_direction_of_the_metric() {
        // More than one batch, with scores that are no numbers among them.
        const CANDIDATES: usize = STREAM_ROWS + 6;
        for kind in [MetricKind::Loss, MetricKind::Return] {
            let metric = Metric { kind, ..Metric::VALIDATION_LOSS };
            let (mut gpt, mut model) =
                (Gpt::new(weights(metric), GptConfig::default()).unwrap(), model());
            let clone = model.clone();
            let mut seen: Vec<(f64, Vec<u32>)> = Vec::new();
            gpt.observe(1.0);
            gpt.update_best_of(&mut model, CANDIDATES, |candidate| {
                let bits = bits(candidate);
                assert!(seen.iter().all(|(_, other)| *other != bits), "two candidates are one");
                // Finite scores -1, 0 and 1: ties go to the first.
                let score = match seen.len() % 5 {
                    0 => f64::NAN,
                    1 => f64::NEG_INFINITY,
                    i => i as f64 - 3.0,
                };
                seen.push((score, bits));
                score
            })
            .unwrap();
            assert_eq!(seen.len(), CANDIDATES);
            let best = if kind == MetricKind::Loss { 2 } else { 4 };
            assert_eq!(bits(&model), seen[best].1);
            assert_eq!(bits(&clone), bits(&self::model()), "a clone was written to");
        }
    }

    #[test]
    fn best_of_one_is_an_update() {
        let (mut a, mut b) = (model(), model());
        let (mut first, mut second) = (gpt(GptConfig::default()), gpt(GptConfig::default()));
        for _ in 0..2 {
            first.observe(1.0);
            second.observe(1.0);
            let report = first.update_best_of(&mut a, 1, |_| 3.0).unwrap();
            assert_eq!(report, update(&mut second, &mut b).unwrap());
            assert_eq!(bits(&a), bits(&b));
        }
    }

    #[test]
    fn best_of_none_and_best_of_no_score_change_nothing() {
        let (mut gpt, mut model) = (gpt(GptConfig::default()), model());
        gpt.observe(1.0);
        let error = gpt.update_best_of(&mut model, 0, |_| 0.0).unwrap_err();
        let expected = SampleError::NoCandidates;
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), expected.to_string());
        for score in [f64::NAN, f64::INFINITY] {
            let mut calls = 0;
            let error = gpt.update_best_of(&mut model, 3, |candidate| {
                assert_ne!(bits(candidate), bits(&self::model()));
                calls += 1;
                score
            });
            let error = error.unwrap_err();
            let expected = SampleError::NoFiniteScore { candidates: 3 };
            assert_eq!(
                std::error::Error::source(&error).unwrap().to_string(),
                expected.to_string()
            );
            assert_eq!(calls, 3);
        }
        assert_eq!(bits(&model), bits(&self::model()));
        assert_unharmed(&mut gpt, GptConfig::default());
    }

    #[test]
    fn models_in_double_precision_get_the_same_numbers() {
        let mut narrow = model();
        let mut wide = Cpu::default().build_module::<Net, f64>();
        let flat: Vec<f64> = flatten(&narrow).unwrap().into_iter().map(f64::from).collect();
        unflatten(&mut wide, &flat).unwrap();
        let (mut a, mut b) = (gpt(GptConfig::default()), gpt(GptConfig::default()));
        a.observe(1.0);
        b.observe(1.0);
        update(&mut a, &mut narrow).unwrap();
        b.try_update(&mut wide, None::<&Gradients<f64, Cpu>>).unwrap();
        let expected: Vec<f64> = flatten(&narrow).unwrap().into_iter().map(f64::from).collect();
        assert_eq!(flatten(&wide).unwrap(), expected);

        // Finite, but not for G.pt.
        let huge = vec![1e300; expected.len()];
        unflatten(&mut wide, &huge).unwrap();
        b.observe(1.0);
        b.try_update(&mut wide, None::<&Gradients<f64, Cpu>>).unwrap_err();
        b.update_best_of(&mut wide, 2, |_| 0.0).unwrap_err();
        assert_eq!(flatten(&wide).unwrap(), huge);
    }

    #[test]
    fn a_state_goes_to_the_same_network_only() {
        type State<'a> = &'a dyn LearnedOptimizer<Model, f32, Cpu>;
        let (mut saved, mut a) = (gpt(GptConfig { seed: 5, ..Default::default() }), model());
        saved.prompt(0.4);
        saved.observe(1.0);
        update(&mut saved, &mut a).unwrap();
        saved.observe(0.5);
        let state = (&saved as State).state().unwrap();

        let (mut restored, mut b) = (gpt(GptConfig::default()), a.clone());
        LearnedOptimizer::<Model, f32, Cpu>::restore(&mut restored, &state).unwrap();
        assert_eq!((&restored as State).state().unwrap(), state);
        update(&mut saved, &mut a).unwrap();
        update(&mut restored, &mut b).unwrap();
        assert_eq!(bits(&a), bits(&b));

        let mut foreign = weights(Metric::VALIDATION_LOSS);
        foreign.header.layout = <(Linear<2, 4>, Tanh, Linear<4, 1>)>::layout().unwrap();
        let mut foreign = Gpt::new(foreign, GptConfig::default()).unwrap();
        let error = LearnedOptimizer::<Model, f32, Cpu>::restore(&mut foreign, &state).unwrap_err();
        assert!(matches!(error, StateError::Fingerprint { .. }), "{error}");

        // Not even a prompt that is no number is lost.
        saved.prompt(f64::NAN);
        saved.observe(1.0);
        let json = serde_json::to_string(&(&saved as State).state().unwrap()).unwrap();
        let state = serde_json::from_str(&json).unwrap();
        LearnedOptimizer::<Model, f32, Cpu>::restore(&mut restored, &state).unwrap();
        update(&mut restored, &mut b).unwrap_err();
    }

    #[test]
    fn a_batch_is_checked_before_it_is_sampled() {
        let mut gpt = gpt(GptConfig::default());
        let start: Vec<f32> = flatten(&model()).unwrap();
        assert!(gpt.sample(&[], &[], &[]).unwrap().is_empty());
        gpt.sample(&start[1..], &[1.0], &[0.5]).unwrap_err();
        gpt.sample(&start, &[1.0], &[0.5, 0.5]).unwrap_err();
        gpt.sample(&start, &[f64::NAN], &[0.5]).unwrap_err();
        gpt.sample(&start, &[1.0], &[f64::INFINITY]).unwrap_err();
        assert_unharmed(&mut gpt, GptConfig::default());
    }

    #[test]
    fn given_noise_decides_the_sample() {
        use crate::gpt::{NoiseSource, SamplerKind, SeededNoise};
        let mut gpt = gpt(GptConfig::default());
        let start: Vec<f32> = flatten(&model()).unwrap();
        let (size, rows) = (start.len(), STREAM_ROWS + 2);
        let mut noise = vec![0.0f32; rows * size];
        SeededNoise::new(0, 0).fill(&mut noise);
        let many = (start.repeat(rows), vec![1.0; rows], (0..rows).map(|i| 0.1 + i as f64 / 100.0));
        let targets: Vec<f64> = many.2.collect();
        let samples = gpt.sample_from_noise(&noise, &many.0, &many.1, &targets).unwrap();
        for row in [0, 1, rows - 1] {
            let own = &noise[row * size..][..size];
            let alone = gpt.sample_from_noise(own, &start, &[1.0], &targets[row..=row]).unwrap();
            for (a, b) in alone.iter().zip(&samples[row * size..]) {
                assert!((a - b).abs() < 1e-4, "row {row}: {a} {b}");
            }
        }
        gpt.sample_from_noise(&noise[1..], &many.0, &many.1, &targets).unwrap_err();
        let seeded = gpt.sample(&many.0, &many.1, &targets).unwrap();
        assert_eq!(seeded[..STREAM_ROWS * size], samples[..STREAM_ROWS * size]);

        let random = SamplerConfig { kind: SamplerKind::Ddpm, ..SamplerConfig::default() };
        let config = GptConfig { sampler: Some(random), ..GptConfig::default() };
        let mut gpt = self::gpt(config.clone());
        let error = gpt.sample_from_noise(&noise[..size], &start, &[1.0], &[0.5]).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("expected DDIM"), "{cause}");
        assert_unharmed(&mut gpt, config);
    }

    #[test]
    #[cfg(feature = "cuda")]
    fn a_gpu_gives_the_networks_of_the_cpu() {
        use crate::gpt::SamplerKind;
        if let Err(problem) = engine::cuda::Gpu::open(0) {
            return eprintln!("skipped, no GPU was compared: {problem}");
        }
        let start: Vec<f32> = flatten(&model()).unwrap();
        let size = start.len();
        for kind in [SamplerKind::Ddim { eta: 0.0 }, SamplerKind::Ddpm] {
            let [mut cpu, mut gpu] = ["cpu", "cuda:0:f32"].map(|device| {
                let sampler = SamplerConfig { kind, temperature: 0.5, ..Default::default() };
                let device = device.parse().unwrap();
                gpt(GptConfig { sampler: Some(sampler), device, seed: 4, ..Default::default() })
            });
            let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
            for rows in [1, STREAM_ROWS, STREAM_ROWS + 1, 5000] {
                let starts = start.repeat(rows);
                let (current, target) = (vec![1.0; rows], vec![0.5; rows]);
                let [a, b] =
                    [&mut cpu, &mut gpu].map(|gpt| gpt.sample(&starts, &current, &target).unwrap());
                assert!(close(&a, &b), "{rows} rows by {kind:?}");
            }
            let [a, b] = [&mut cpu, &mut gpu].map(|gpt| {
                let (mut model, mut seen) = (model(), 0);
                gpt.observe(1.0);
                // The last but one is the best.
                let mut score = |_: &Model| -> f64 {
                    seen += 1;
                    if seen == 149 {
                        0.0
                    } else {
                        1.0
                    }
                };
                gpt.update_best_of(&mut model, 150, &mut score).unwrap();
                flatten::<Model, f32, Cpu>(&model).unwrap()
            });
            assert!(close(&a, &b) && a.len() == size, "best of 150 by {kind:?}");
        }
    }

    #[test]
    fn weights_that_cannot_be_used_are_refused() {
        let refused = |change: fn(&mut Weights)| {
            let mut weights = weights(Metric::VALIDATION_LOSS);
            change(&mut weights);
            format!("{:?}", Gpt::new(weights, GptConfig::default()).err().unwrap())
        };
        let nan = PromptRange { best: f64::NAN, worst: f64::NAN };
        let turned = PromptRange { best: WORST, worst: BEST };
        for range in [nan, turned] {
            let mut weights = weights(Metric::VALIDATION_LOSS);
            weights.header.prompt_range = range;
            assert!(Gpt::new(weights, GptConfig::default()).is_err());
        }
        assert!(refused(|w| w.header.normalizer.scale = 0.0).contains("scale"));
        assert!(refused(|w| w.header.sampler.steps = 0).contains("steps"));
        assert!(refused(|w| w.header.config.width = 7).contains("heads"));
        let none = SamplerConfig { steps: 0, ..SamplerConfig::default() };
        let config = GptConfig { sampler: Some(none), ..GptConfig::default() };
        assert!(Gpt::new(weights(Metric::VALIDATION_LOSS), config).is_err());
    }
}
