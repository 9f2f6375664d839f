//! Turns noise into parameters: DDPM, DDIM and DPM-Solver++ steps.
//!
//! All three are linear in what they have at hand. With the (clipped)
//! prediction `x_0`, the one of the step before `x_0'` and fresh noise `ε`, a
//! step is
//!
//! `x_{t-1} = a x_0 + a' x_0' + b x_t + c ε`,
//!
//! so a sampler is a short table of weights, made once in `f64`, and one loop.
//! The last step of each returns the prediction itself.
//!
//! Shape letters: `N` batch, `P` parameters, `t` diffusion step.
//!
//! # Source
//! DDPM: Ho et al. 2020, arXiv:2006.11239. DDIM: Song et al. 2020,
//! arXiv:2010.02502. DPM-Solver++: Lu et al. 2022, arXiv:2211.01095.

use num_traits::Float;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use super::config::{ConfigError, Prediction};
use super::diffusion::{cast, space_timesteps, NoiseSchedule};

/// Rule of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SamplerKind {
    /// Ancestral sampling with fixed large variance. Needs many steps.
    Ddpm,
    /// Denoising diffusion implicit models; deterministic after the first
    /// noise where `eta` is 0.
    Ddim {
        /// Share of the noise of an ancestral sampler, from 0.
        eta: f64,
    },
    /// DPM-Solver++(2M): deterministic, second order, from the present and the
    /// last prediction.
    DpmSolverPlusPlus,
}

/// Which diffusion steps are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Equal intervals counted down from the noisiest step: the last steps are
    /// not spent where nearly all noise is gone.
    ///
    /// # Source
    /// Lin et al. 2023, arXiv:2305.08891, table 2, *trailing*.
    Trailing,
    /// From the noisiest to the cleanest step, both included: the reference's
    /// `"N"`, and what a single step cannot be (it then takes the noisiest).
    #[default]
    Linspace,
    /// Every step `0, s, 2s, ..`: the reference's `"ddimN"`. Does not start at
    /// the noisiest step.
    Stride,
}

/// How a sample is made.
///
/// # Examples
/// ```
/// use lopt::gpt::sampler::{SamplerConfig, SamplerKind};
///
/// let config = SamplerConfig { kind: SamplerKind::Ddim { eta: 0.0 }, steps: 2, ..Default::default() };
/// assert_eq!(config.validate(), Ok(()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplerConfig {
    /// Rule of a step. Default DDIM with `eta` 0.
    #[serde(flatten)]
    pub kind: SamplerKind,
    /// Number of steps, which is the number of calls of the model. Default 4.
    pub steps: usize,
    /// Which diffusion steps are taken. Default [`Spacing::Linspace`].
    #[serde(default)]
    pub spacing: Spacing,
    /// Limits that each prediction of `x_0` is clipped to, in normalised
    /// parameters. Default none.
    ///
    /// # Source
    /// `thresholding: static` in the G.pt code.
    #[serde(default)]
    pub clip: Option<(f64, f64)>,
    /// Standard deviation of all noise that is drawn, 0 to 1. Below 1 samples are nearer
    /// to what is most likely, and more alike. Default 1.
    ///
    /// # Source
    /// Reduced-temperature sampling: Kingma and Dhariwal 2018, arXiv:1807.03039,
    /// section 6.
    #[serde(default = "whole")]
    pub temperature: f64,
}

fn whole() -> f64 {
    1.0
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            kind: SamplerKind::Ddim { eta: 0.0 },
            steps: 4,
            spacing: Spacing::Linspace,
            clip: None,
            temperature: whole(),
        }
    }
}

impl SamplerConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = ConfigError::check;
        check(self.steps > 0, "steps", &self.steps, &"at least 1")?;
        if let SamplerKind::Ddim { eta } = self.kind {
            check((0.0..=1.0).contains(&eta), "eta", &eta, &"0 to 1")?;
        }
        if let Some((low, high)) = self.clip {
            check(low <= high, "clip", &format!("{low} to {high}"), &"a range in ascending order")?;
        }
        let temperature = self.temperature;
        check((0.0..=1.0).contains(&temperature), "temperature", &temperature, &"0 to 1")?;
        Ok(())
    }

    /// The diffusion steps taken out of `diffusion_steps`, in ascending order.
    ///
    /// # Errors
    /// If there are more than `diffusion_steps`, or no stride gives the number.
    pub fn timesteps(&self, diffusion_steps: usize) -> Result<Vec<usize>, ConfigError> {
        self.validate()?;
        let expected = format!("at most {diffusion_steps}");
        ConfigError::check(self.steps <= diffusion_steps, "steps", &self.steps, &expected)?;
        match self.spacing {
            Spacing::Stride => space_timesteps(diffusion_steps, &format!("ddim{}", self.steps)),
            Spacing::Linspace if self.steps > 1 => {
                space_timesteps(diffusion_steps, &self.steps.to_string())
            }
            Spacing::Linspace | Spacing::Trailing => Ok((1..=self.steps)
                .map(|k| (k * diffusion_steps + self.steps / 2) / self.steps - 1)
                .collect()),
        }
    }
}

/// Where a sampler's Gaussian noise comes from.
///
/// Any closure that fills a slice is one, which lets a test inject noise.
pub trait NoiseSource<F> {
    /// Overwrites `output` with independent draws from the standard normal
    /// distribution.
    fn fill(&mut self, output: &mut [F]);
}

impl<F, T: FnMut(&mut [F])> NoiseSource<F> for T {
    fn fill(&mut self, output: &mut [F]) {
        self(output)
    }
}

/// Gaussian noise from a seed: the same on every machine, and in every element
/// type up to rounding.
#[derive(Clone, Debug)]
pub struct SeededNoise(ChaCha8Rng);

impl SeededNoise {
    /// One of the independent streams of noise of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }
}

impl<F: Float> NoiseSource<F> for SeededNoise {
    fn fill(&mut self, output: &mut [F]) {
        for value in output {
            *value = cast(self.0.sample::<f64, _>(StandardNormal));
        }
    }
}

/// Rows of a batch that share a stream of noise: the first so many have the first, and so on. So
/// what a row gets does not depend on how many rows an engine samples at a time.
pub(super) const STREAM_ROWS: usize = 64;

/// Where the noise of a batch comes from.
#[derive(Clone, Copy)]
pub(super) enum Noise<'a> {
    /// Streams of a seed, from this one on; see [`STREAM_ROWS`].
    Seeded { seed: u64, stream: u64 },
    /// What samples start from, `[N, P]`; nothing is drawn on the way.
    Given(&'a [f32]),
}

/// A model of one denoising step: `x_t [N, P]`, the diffusion step, and where
/// to write the model's output, `[N, P]`.
pub type Denoise<'a, F, E> = dyn FnMut(&[F], F, &mut [F]) -> Result<(), E> + 'a;

/// What a sampler has made of one step.
#[derive(Clone, Copy, Debug)]
pub struct Trace<'a, F> {
    /// Index of the step in the sampler's schedule, counted down to 0.
    pub index: usize,
    /// Clipped prediction of `x_0`, `[N, P]`.
    pub start: &'a [F],
    /// What the step returns, `[N, P]`.
    pub sample: &'a [F],
}

/// Weights of one step; see the [module](self).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) timestep: usize,
    /// Weights of `x_t` and of the output in `x_0`.
    pub(super) from_output: (f64, f64),
    pub(super) start: f64,
    pub(super) previous_start: f64,
    pub(super) noised: f64,
    pub(super) noise: f64,
}

/// Draws parameters from a model of one denoising step.
///
/// # Examples
/// A model that always predicts the same parameters:
/// ```
/// use lopt::gpt::sampler::{Sampler, SamplerConfig, SeededNoise};
/// use lopt::gpt::Prediction;
///
/// let sampler = Sampler::new(&SamplerConfig::default(), 1000, Prediction::Start)?;
/// let mut predict = |_noised: &[f32], _timestep: f32, output: &mut [f32]| {
///     output.copy_from_slice(&[0.5, -0.5]);
///     Ok::<(), std::convert::Infallible>(())
/// };
/// let sample = sampler.sample(&mut SeededNoise::new(0, 0), 2, &mut predict).unwrap();
/// assert_eq!(sample, [0.5, -0.5]);
/// # Ok::<(), lopt::gpt::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    /// In the order in which they are taken.
    pub(super) steps: Vec<Step>,
    pub(super) clip: Option<(f64, f64)>,
    pub(super) temperature: f64,
}

impl Sampler {
    /// A sampler for a model trained on a linear schedule of `diffusion_steps`.
    ///
    /// # Errors
    /// If the configuration is not valid or does not fit the schedule.
    pub fn new(
        config: &SamplerConfig,
        diffusion_steps: usize,
        prediction: Prediction,
    ) -> Result<Self, ConfigError> {
        let timesteps = config.timesteps(diffusion_steps)?;
        let schedule = NoiseSchedule::linear(diffusion_steps)?.respaced(&timesteps)?;
        let sampler = Self::on(&schedule, config.kind, config.clip, prediction);
        Ok(Self { temperature: config.temperature, ..sampler })
    }

    /// A sampler of temperature 1 that takes every step of a (respaced) schedule.
    pub fn on(
        schedule: &NoiseSchedule,
        kind: SamplerKind,
        clip: Option<(f64, f64)>,
        prediction: Prediction,
    ) -> Self {
        let weights = |index: usize| {
            let (from_noised, from_noise) = schedule.start_weights(index);
            let step = Step {
                timestep: schedule.timestep(index),
                from_output: match prediction {
                    Prediction::Start => (0.0, 1.0),
                    Prediction::Noise => (from_noised, from_noise),
                },
                start: 1.0,
                previous_start: 0.0,
                noised: 0.0,
                noise: 0.0,
            };
            match kind {
                // The last step of each sampler returns the prediction.
                _ if index == 0 => step,
                SamplerKind::Ddpm => ddpm(schedule, index, step),
                SamplerKind::Ddim { eta } => ddim(schedule, index, eta, step),
                SamplerKind::DpmSolverPlusPlus => dpm_solver(schedule, index, step),
            }
        };
        let steps = (0..schedule.len()).rev().map(weights).collect();
        Self { steps, clip, temperature: whole() }
    }

    /// Diffusion steps in the order in which they are taken.
    pub fn timesteps(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.steps.iter().map(|step| step.timestep)
    }

    /// Whether the noise that it starts from decides the sample: no step draws more.
    pub fn is_deterministic(&self) -> bool {
        self.steps.iter().all(|step| step.noise == 0.0)
    }

    /// Makes `N` samples at once, from noise.
    ///
    /// `predict` gets `x_t`, the diffusion step, and where to write the model's
    /// output. `len` is `N` times `P`. Noise is drawn once for the start and
    /// then only for steps that use it. Nothing is allocated within a step.
    ///
    /// # Shapes
    /// All buffers are `[N, P]`.
    ///
    /// # Errors
    /// The first error of `predict`.
    pub fn sample<F: Float, E>(
        &self,
        noise: &mut dyn NoiseSource<F>,
        len: usize,
        predict: &mut Denoise<'_, F, E>,
    ) -> Result<Vec<F>, E> {
        self.sample_traced(noise, len, predict, &mut |_| ())
    }

    /// [`sample`](Self::sample), showing every step to `trace`.
    ///
    /// # Errors
    /// The first error of `predict`.
    pub fn sample_traced<F: Float, E>(
        &self,
        noise: &mut dyn NoiseSource<F>,
        len: usize,
        predict: &mut Denoise<'_, F, E>,
        trace: &mut dyn FnMut(Trace<'_, F>),
    ) -> Result<Vec<F>, E> {
        let mut sample = vec![F::zero(); len];
        let mut start = vec![F::zero(); len];
        let mut previous_start = vec![F::zero(); len];
        let mut fresh = vec![F::zero(); len];
        let temperature = cast::<F>(self.temperature);
        let mut draw = |values: &mut [F]| {
            noise.fill(values);
            values.iter_mut().for_each(|value| *value = *value * temperature);
        };
        draw(&mut sample);
        for (k, step) in self.steps.iter().enumerate() {
            predict(&sample, cast(step.timestep as f64), &mut start)?;
            self.finish_prediction(step, &sample, &mut start);
            if step.noise != 0.0 {
                draw(&mut fresh);
            }
            step.apply(&start, &previous_start, &fresh, &mut sample);
            trace(Trace { index: self.steps.len() - 1 - k, start: &start, sample: &sample });
            std::mem::swap(&mut start, &mut previous_start);
        }
        Ok(sample)
    }

    /// Turns the model's output into a clipped `x_0`, in place.
    fn finish_prediction<F: Float>(&self, step: &Step, noised: &[F], output: &mut [F]) {
        let (a, b) = step.from_output;
        if (a, b) != (0.0, 1.0) {
            let (a, b) = (cast::<F>(a), cast::<F>(b));
            output.iter_mut().zip(noised).for_each(|(o, &x)| *o = a * x + b * *o);
        }
        if let Some((low, high)) = self.clip {
            let (low, high) = (cast::<F>(low), cast::<F>(high));
            // Written so that a value that is not a number stays one, and shows.
            let clip = |x: F| if x < low { low } else { clip_above(x, high) };
            output.iter_mut().for_each(|x| *x = clip(*x));
        }
    }
}

fn clip_above<F: Float>(x: F, high: F) -> F {
    if x > high {
        high
    } else {
        x
    }
}

impl Step {
    fn apply<F: Float>(&self, start: &[F], previous: &[F], noise: &[F], sample: &mut [F]) {
        if self.noised == 0.0 && self.start == 1.0 {
            sample.copy_from_slice(start);
            return;
        }
        let (a, b) = (cast::<F>(self.start), cast::<F>(self.noised));
        for (x, &s) in sample.iter_mut().zip(start) {
            *x = a * s + b * *x;
        }
        for (weight, values) in [(self.previous_start, previous), (self.noise, noise)] {
            if weight != 0.0 {
                let weight = cast::<F>(weight);
                sample.iter_mut().zip(values).for_each(|(x, &v)| *x = *x + weight * v);
            }
        }
    }
}

fn ddpm(schedule: &NoiseSchedule, index: usize, step: Step) -> Step {
    let (start, noised) = schedule.posterior_mean_weights(index);
    Step { start, noised, noise: schedule.step_variance(index).sqrt(), ..step }
}

fn ddim(schedule: &NoiseSchedule, index: usize, eta: f64, step: Step) -> Step {
    let (now, next) = (schedule.alpha_bar(index), schedule.alpha_bar_previous(index));
    let sigma = eta * ((1.0 - next) / (1.0 - now)).sqrt() * (1.0 - now / next).sqrt();
    // The noise in x_t is (x_t - sqrt(ᾱ_t) x_0) / sqrt(1 - ᾱ_t).
    let noised = ((1.0 - next - sigma * sigma) / (1.0 - now)).sqrt();
    Step { start: next.sqrt() - noised * now.sqrt(), noised, noise: sigma, ..step }
}

fn dpm_solver(schedule: &NoiseSchedule, index: usize, step: Step) -> Step {
    // λ, half the logarithm of the signal-to-noise ratio.
    let lambda = |alpha_bar: f64| 0.5 * (alpha_bar / (1.0 - alpha_bar)).ln();
    let (now, next) = (schedule.alpha_bar(index), schedule.alpha_bar_previous(index));
    let h = lambda(next) - lambda(now);
    let start = -next.sqrt() * (-h).exp_m1();
    let noised = ((1.0 - next) / (1.0 - now)).sqrt();
    if index + 1 == schedule.len() {
        return Step { start, noised, ..step };
    }
    // D = x_0 + (x_0 - x_0') h / (2 h'), with h' the length of the step before.
    let ratio = h / (2.0 * (lambda(now) - lambda(schedule.alpha_bar(index + 1))));
    Step { start: start * (1.0 + ratio), previous_start: -start * ratio, noised, ..step }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const KINDS: [SamplerKind; 4] = [
        SamplerKind::Ddpm,
        SamplerKind::Ddim { eta: 0.0 },
        SamplerKind::Ddim { eta: 1.0 },
        SamplerKind::DpmSolverPlusPlus,
    ];

    fn config(kind: SamplerKind, steps: usize, spacing: Spacing) -> SamplerConfig {
        SamplerConfig { kind, steps, spacing, ..SamplerConfig::default() }
    }

    #[test]
    fn few_steps_start_at_the_noisiest() {
        for spacing in [Spacing::Trailing, Spacing::Linspace] {
            for steps in 1..=20 {
                let t = config(SamplerKind::Ddpm, steps, spacing).timesteps(1000).unwrap();
                assert_eq!(t.len(), steps);
                assert_eq!(t[steps - 1], 999, "{spacing:?} {t:?}");
                assert!(t.windows(2).all(|w| w[0] < w[1]), "{t:?}");
            }
        }
        let t = |spacing, steps| config(SamplerKind::Ddpm, steps, spacing).timesteps(1000);
        assert_eq!(t(Spacing::Trailing, 4).unwrap(), [249, 499, 749, 999]);
        assert_eq!(t(Spacing::Linspace, 4).unwrap(), [0, 333, 666, 999]);
        assert_eq!(t(Spacing::Stride, 4).unwrap(), [0, 250, 500, 750]);
        assert_eq!(t(Spacing::Trailing, 1000).unwrap(), (0..1000).collect::<Vec<_>>());
        assert!(t(Spacing::Stride, 999).is_err());
        assert!(t(Spacing::Trailing, 1001).is_err());
    }

    #[test]
    fn a_perfect_prediction_of_the_noise_gives_the_start() {
        let wanted = [0.4f64, -1.0, 2.0];
        for kind in KINDS {
            let config = config(kind, 7, Spacing::Trailing);
            let schedule = NoiseSchedule::linear(1000).unwrap();
            let sampler = Sampler::new(&config, 1000, Prediction::Noise).unwrap();
            let mut predict = |x: &[f64], t: f64, out: &mut [f64]| {
                schedule.noise_from_start(t as usize, x, &wanted, out);
                Ok::<_, Infallible>(())
            };
            let sample = sampler.sample(&mut SeededNoise::new(3, 0), 3, &mut predict).unwrap();
            for (a, b) in sample.iter().zip(wanted) {
                assert!((a - b).abs() < 1e-9, "{kind:?} {sample:?}");
            }
        }
    }

    #[test]
    fn deterministic_samplers_keep_a_gaussian() {
        // For data from N(0, s²) the exact prediction is linear, and the exact
        // ODE maps a standard normal x_T to s x_T.
        let (s, schedule) = (0.3f64, NoiseSchedule::linear(1000).unwrap());
        let error = |kind, steps| {
            let config = config(kind, steps, Spacing::Trailing);
            let sampler = Sampler::new(&config, 1000, Prediction::Start).unwrap();
            let mut predict = |x: &[f64], t: f64, out: &mut [f64]| {
                let a = schedule.alpha_bar(t as usize);
                let gain = a.sqrt() * s * s / (a * s * s + 1.0 - a);
                out.iter_mut().zip(x).for_each(|(o, x)| *o = gain * x);
                Ok::<_, Infallible>(())
            };
            let mut one = |x: &mut [f64]| x.fill(1.0);
            let sample = sampler.sample(&mut one, 1, &mut predict).unwrap();
            (sample[0] - s).abs()
        };
        let ddim = SamplerKind::Ddim { eta: 0.0 };
        let dpm = SamplerKind::DpmSolverPlusPlus;
        assert!(error(ddim, 1000) < 2e-3);
        assert!(error(dpm, 1000) < 2e-3);
        assert!(error(dpm, 50) < 0.25 * error(ddim, 50), "second order is better");
    }

    #[test]
    fn what_draws_noise_within_says_so() {
        let deterministic = KINDS.map(|kind| {
            let config = config(kind, 3, Spacing::Linspace);
            Sampler::new(&config, 1000, Prediction::Start).unwrap().is_deterministic()
        });
        assert_eq!(deterministic, [false, true, false, true]);
    }

    #[test]
    fn noise_is_multiplied_by_the_temperature() {
        for kind in KINDS {
            let drawn = |temperature| {
                let config = SamplerConfig { temperature, ..config(kind, 3, Spacing::Linspace) };
                let sampler = Sampler::new(&config, 1000, Prediction::Start).unwrap();
                let mut seen = Vec::new();
                let mut predict = |x: &[f64], _: f64, out: &mut [f64]| {
                    seen.extend_from_slice(x);
                    out.fill(0.0); // so that nothing but noise is left
                    Ok::<_, Infallible>(())
                };
                sampler.sample(&mut SeededNoise::new(5, 0), 2, &mut predict).unwrap();
                seen
            };
            let (whole, half) = (drawn(1.0), drawn(0.5));
            assert!(whole.iter().zip(&half).all(|(a, b)| (0.5 * a - b).abs() < 1e-12), "{kind:?}");
            assert!(whole[0] != 0.0 && drawn(0.0).iter().all(|&x| x == 0.0), "{kind:?}");
        }
    }

    #[test]
    fn predictions_are_clipped_and_not_a_number_shows() {
        let config = SamplerConfig { clip: Some((-1.0, 0.5)), ..Default::default() };
        let sampler = Sampler::new(&config, 1000, Prediction::Start).unwrap();
        let mut predict = |_: &[f32], _: f32, out: &mut [f32]| {
            out.copy_from_slice(&[-3.0, 0.2, 3.0, f32::NAN]);
            Ok::<_, Infallible>(())
        };
        let sample = sampler.sample(&mut SeededNoise::new(1, 0), 4, &mut predict).unwrap();
        assert_eq!(sample[..3], [-1.0, 0.2, 0.5]);
        assert!(sample[3].is_nan());
    }

    #[test]
    fn an_error_of_the_model_stops_the_sampler() {
        let sampler = Sampler::new(&SamplerConfig::default(), 1000, Prediction::Start).unwrap();
        let mut calls = 0;
        let mut predict = |_: &[f32], _: f32, _: &mut [f32]| {
            calls += 1;
            if calls == 3 {
                Err("no")
            } else {
                Ok(())
            }
        };
        assert_eq!(sampler.sample(&mut SeededNoise::new(1, 0), 4, &mut predict), Err("no"));
        assert_eq!(calls, 3);
    }

    #[test]
    fn seeded_noise_is_fixed_and_alike_in_both_types() {
        let (mut a, mut b) = ([0.0f32; 3], [0.0f64; 3]);
        SeededNoise::new(7, 0).fill(&mut a);
        SeededNoise::new(7, 0).fill(&mut b);
        assert_eq!(a, b.map(|x| x as f32));
        let mut mean = [0.0f64; 4096];
        SeededNoise::new(8, 0).fill(&mut mean);
        let variance = mean.iter().map(|x| x * x).sum::<f64>() / 4096.0;
        assert!((variance - 1.0).abs() < 0.1, "{variance}");
    }

    #[test]
    fn bad_configurations_are_refused() {
        let good = SamplerConfig::default();
        for bad in [
            SamplerConfig { steps: 0, ..good },
            SamplerConfig { kind: SamplerKind::Ddim { eta: -0.1 }, ..good },
            SamplerConfig { clip: Some((1.0, 0.0)), ..good },
            SamplerConfig { clip: Some((f64::NAN, 0.0)), ..good },
            SamplerConfig { temperature: 1.5, ..good },
            SamplerConfig { temperature: f64::NAN, ..good },
        ] {
            assert!(Sampler::new(&bad, 1000, Prediction::Start).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_configuration_survives_json() {
        let config = config(SamplerKind::Ddim { eta: 0.5 }, 4, Spacing::Stride);
        let mut json = serde_json::to_value(config).unwrap();
        assert_eq!(serde_json::from_value::<SamplerConfig>(json.clone()).unwrap(), config);
        json.as_object_mut().unwrap().remove("temperature"); // as it was before there was one
        assert_eq!(serde_json::from_value::<SamplerConfig>(json).unwrap(), config);
    }

    proptest::proptest! {
        #[test]
        fn a_perfect_prediction_of_the_start_is_returned(
            wanted in proptest::collection::vec(-100.0f32..100.0, 1..20),
            steps in 1usize..40,
            which in 0usize..KINDS.len(),
            trailing: bool,
            seed: u64,
        ) {
            let spacing = if trailing { Spacing::Trailing } else { Spacing::Linspace };
            let config = config(KINDS[which], steps, spacing);
            let sampler = Sampler::new(&config, 1000, Prediction::Start).unwrap();
            let mut predict = |_: &[f32], _: f32, out: &mut [f32]| {
                out.copy_from_slice(&wanted);
                Ok::<_, Infallible>(())
            };
            let sample = sampler.sample(&mut SeededNoise::new(seed, 0), wanted.len(), &mut predict);
            proptest::prop_assert_eq!(sample.unwrap(), wanted);
        }
    }
}
