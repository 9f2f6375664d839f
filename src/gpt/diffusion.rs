//! Gaussian diffusion of flat parameter vectors: how noise is added, and what
//! is known about the vector once a prediction is made.
//!
//! Everything here follows from `ᾱ_t`, the share of signal variance left after
//! step `t`. It is kept in `f64`, a long running product, and cast to the
//! element type only where it meets data.
//!
//! Shape letters: `N` batch, `P` parameters, `t` diffusion step.
//!
//! # Source
//! Ho et al. 2020, arXiv:2006.11239; the names and the respacing follow the
//! guided diffusion code that the G.pt code carries (`gaussian_diffusion.py`,
//! `respace.py`).

use num_traits::Float;

use super::config::{ConfigError, Prediction};

/// Linear noise schedule of a Gaussian diffusion process, whole or respaced.
///
/// A respaced schedule keeps some steps of another one and re-derives their
/// noise, so that every sampler can take fewer steps through the same process.
/// Steps are addressed by *index*; [`timestep`](Self::timestep) is the step of
/// the whole schedule that the network was trained on.
///
/// # Examples
/// ```
/// use lopt::gpt::diffusion::NoiseSchedule;
///
/// let schedule = NoiseSchedule::linear(1000)?;
/// assert!(schedule.alpha_bar(999) < schedule.alpha_bar(0));
///
/// let short = schedule.respaced(&[0, 499, 999])?;
/// assert_eq!(short.len(), 3);
/// assert_eq!(short.timestep(1), 499);
/// # Ok::<(), lopt::gpt::ConfigError>(())
/// ```
///
/// # Source
/// Ho et al. 2020, arXiv:2006.11239, section 4 (`β` from 1e-4 to 0.02 at 1000
/// steps, rescaled by `1000 / steps` for other lengths); respacing: Nichol and
/// Dhariwal 2021, arXiv:2102.09672, and `SpacedDiffusion` of guided diffusion.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    timesteps: Vec<usize>,
    beta: Vec<f64>,
    alpha_bar: Vec<f64>,
}

impl NoiseSchedule {
    /// The whole schedule of `steps` steps.
    ///
    /// # Errors
    /// If `steps` is below 21, where the last `β` would reach 1.
    pub fn linear(steps: usize) -> Result<Self, ConfigError> {
        ConfigError::check(steps > 20, "diffusion_steps", &steps, &"at least 21")?;
        let scale = 1000.0 / steps as f64;
        let (first, last) = (scale * 1e-4, scale * 0.02);
        let step = (last - first) / (steps - 1) as f64;
        let mut beta: Vec<f64> = (0..steps).map(|i| i as f64 * step + first).collect();
        beta[steps - 1] = last;
        Ok(Self::from_beta(beta, (0..steps).collect()))
    }

    /// The schedule that keeps only some indices of this one, in any order.
    ///
    /// # Errors
    /// If there is none, or one that this schedule does not have.
    pub fn respaced(&self, indices: &[usize]) -> Result<Self, ConfigError> {
        let mut kept = indices.to_vec();
        kept.sort_unstable();
        kept.dedup();
        let last = kept.last().copied();
        ConfigError::check(last.is_some(), "timesteps", &"empty", &"at least one")?;
        let found = last.unwrap_or_default();
        let expected = format!("below {}", self.len());
        ConfigError::check(found < self.len(), "timesteps", &found, &expected)?;
        let mut previous = 1.0;
        let beta = kept
            .iter()
            .map(|&i| {
                let beta = 1.0 - self.alpha_bar[i] / previous;
                previous = self.alpha_bar[i];
                beta
            })
            .collect();
        let timesteps = kept.iter().map(|&i| self.timesteps[i]).collect();
        Ok(Self::from_beta(beta, timesteps))
    }

    fn from_beta(beta: Vec<f64>, timesteps: Vec<usize>) -> Self {
        let mut product = 1.0;
        let alpha_bar = beta
            .iter()
            .map(|b| {
                product *= 1.0 - b;
                product
            })
            .collect();
        Self { timesteps, beta, alpha_bar }
    }

    /// Number of steps.
    #[allow(clippy::len_without_is_empty, reason = "a schedule has at least one step")]
    pub fn len(&self) -> usize {
        self.beta.len()
    }

    /// Step of the whole schedule at an index; what the network is given.
    pub fn timestep(&self, index: usize) -> usize {
        self.timesteps[index]
    }

    /// Share of noise variance that this step adds, `β`.
    pub fn beta(&self, index: usize) -> f64 {
        self.beta[index]
    }

    /// Share of signal variance left after this step, `ᾱ`.
    pub fn alpha_bar(&self, index: usize) -> f64 {
        self.alpha_bar[index]
    }

    /// `ᾱ` of the step before, 1 before the first.
    pub fn alpha_bar_previous(&self, index: usize) -> f64 {
        index.checked_sub(1).map_or(1.0, |i| self.alpha_bar[i])
    }

    /// Variance of `q(x_{t-1} | x_t, x_0)`, 0 at the first step.
    pub fn posterior_variance(&self, index: usize) -> f64 {
        let (before, now) = (self.alpha_bar_previous(index), self.alpha_bar(index));
        self.beta[index] * (1.0 - before) / (1.0 - now)
    }

    /// Weights of `x_0` and of `x_t` in the mean of `q(x_{t-1} | x_t, x_0)`.
    pub fn posterior_mean_weights(&self, index: usize) -> (f64, f64) {
        let (before, now) = (self.alpha_bar_previous(index), self.alpha_bar(index));
        let beta = self.beta[index];
        (beta * before.sqrt() / (1.0 - now), (1.0 - before) * (1.0 - beta).sqrt() / (1.0 - now))
    }

    /// Variance of a DDPM step: `β`, but at the first step the posterior
    /// variance of the second, which is nearer to the truth there.
    ///
    /// # Source
    /// `ModelVarType.FIXED_LARGE` of guided diffusion.
    pub fn step_variance(&self, index: usize) -> f64 {
        match index {
            0 => self.posterior_variance(1.min(self.len() - 1)),
            _ => self.beta[index],
        }
    }

    /// Weights of `x_t` and of the model's noise in `x_0`:
    /// `x_0 = x_t / sqrt(ᾱ) - sqrt(1/ᾱ - 1) ε`. The second is negative.
    pub fn start_weights(&self, index: usize) -> (f64, f64) {
        let inverse = 1.0 / self.alpha_bar[index];
        (inverse.sqrt(), -(inverse - 1.0).sqrt())
    }

    /// Weights of `x_0` and of the noise in `x_t`.
    pub fn sample_weights(&self, index: usize) -> (f64, f64) {
        (self.alpha_bar[index].sqrt(), (1.0 - self.alpha_bar[index]).sqrt())
    }

    /// `x_t` of one vector: `sqrt(ᾱ) x_0 + sqrt(1 - ᾱ) ε`.
    ///
    /// # Shapes
    /// `start`, `noise` and `noised` are `[P]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn q_sample<F: Float>(&self, index: usize, start: &[F], noise: &[F], noised: &mut [F]) {
        let (signal, spread) = self.sample_weights(index);
        combine(cast(signal), start, cast(spread), noise, noised);
    }

    /// Mean of `q(x_{t-1} | x_t, x_0)` of one vector.
    ///
    /// # Shapes
    /// `start` (`x_0`), `noised` (`x_t`) and `mean` are `[P]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn posterior_mean<F: Float>(
        &self,
        index: usize,
        start: &[F],
        noised: &[F],
        mean: &mut [F],
    ) {
        let (a, b) = self.posterior_mean_weights(index);
        combine(cast(a), start, cast(b), noised, mean);
    }

    /// `x_0` of one vector from `x_t` and its noise.
    ///
    /// # Shapes
    /// `noised`, `noise` and `start` are `[P]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn start_from_noise<F: Float>(
        &self,
        index: usize,
        noised: &[F],
        noise: &[F],
        start: &mut [F],
    ) {
        let (a, b) = self.start_weights(index);
        combine(cast(a), noised, cast(b), noise, start);
    }

    /// The noise in `x_t` of one vector, from `x_t` and `x_0`.
    ///
    /// # Shapes
    /// `noised`, `start` and `noise` are `[P]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn noise_from_start<F: Float>(
        &self,
        index: usize,
        noised: &[F],
        start: &[F],
        noise: &mut [F],
    ) {
        let (a, b) = self.start_weights(index);
        combine(cast(-a / b), noised, cast(1.0 / b), start, noise);
    }
}

impl Prediction {
    /// What the network is trained to return, given what it might be.
    pub fn target<'a, F>(self, start: &'a [F], noise: &'a [F]) -> &'a [F] {
        match self {
            Self::Start => start,
            Self::Noise => noise,
        }
    }
}

/// Training loss of each sample: the mean over `P` of the squared difference.
///
/// The loss of a batch is the mean of these, and every step weighs the same.
///
/// # Shapes
/// `output`, `target [N, P]`, with `size` = `P`; returns `[N]`.
///
/// # Panics
/// If the lengths differ, or `size` is 0.
///
/// # Source
/// `training_losses` with `LossType.MSE` of guided diffusion.
pub fn sample_losses<F: Float>(output: &[F], target: &[F], size: usize) -> Vec<f64> {
    assert_eq!(output.len(), target.len());
    let square = |(&a, &b): (&F, &F)| (a - b).to_f64().map_or(f64::NAN, |d| d * d);
    output
        .chunks(size)
        .zip(target.chunks(size))
        .map(|(a, b)| a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64)
        .collect()
}

/// The steps that guided diffusion keeps for a description such as `"20"`,
/// `"10,15,20"` or `"ddim25"`, in ascending order; all of them for `""`.
///
/// Numbers are how many steps to keep of each equal section of the schedule,
/// spread from its first to its last. `ddimN` keeps every step `0, s, 2s, ..`
/// for the stride `s` that gives exactly `N`.
///
/// # Errors
/// If the text is not of that form, a section is too short, or no stride fits.
///
/// # Examples
/// ```
/// use lopt::gpt::diffusion::space_timesteps;
///
/// assert_eq!(space_timesteps(1000, "4")?, [0, 333, 666, 999]);
/// assert_eq!(space_timesteps(1000, "ddim4")?, [0, 250, 500, 750]);
/// # Ok::<(), lopt::gpt::ConfigError>(())
/// ```
///
/// # Source
/// `space_timesteps` of guided diffusion, with Python's rounding of halves to
/// the even neighbour.
pub fn space_timesteps(steps: usize, description: &str) -> Result<Vec<usize>, ConfigError> {
    let wrong = |expected: String| ConfigError::Field {
        field: "timestep_respacing",
        found: description.to_owned(),
        expected,
    };
    let number = |text: &str| {
        let number = text.trim().parse::<usize>();
        number.map_err(|_| wrong("counts separated by commas, or `ddimN`".into()))
    };
    if description.is_empty() {
        return Ok((0..steps).collect());
    }
    if let Some(wanted) = description.strip_prefix("ddim") {
        let wanted = number(wanted)?;
        let stride = (1..steps).find(|stride| steps.div_ceil(*stride) == wanted);
        let stride = stride.ok_or_else(|| {
            wrong(format!("a number of steps that an integer stride through {steps} gives"))
        })?;
        return Ok((0..steps).step_by(stride).collect());
    }
    let counts = description.split(',').map(number).collect::<Result<Vec<_>, _>>()?;
    let (size, longer) = (steps / counts.len(), steps % counts.len());
    let mut kept = Vec::new();
    let mut start = 0;
    for (section, &count) in counts.iter().enumerate() {
        let size = size + usize::from(section < longer);
        if count > size {
            return Err(wrong(format!("at most {size} steps of a section of {size}")));
        }
        let stride = if count <= 1 { 1.0 } else { (size - 1) as f64 / (count - 1) as f64 };
        // Adding up, as the reference does, so that halves round alike.
        let mut position = 0.0f64;
        for _ in 0..count {
            kept.push(start + position.round_ties_even() as usize);
            position += stride;
        }
        start += size;
    }
    kept.dedup();
    Ok(kept)
}

/// `value` in the element type.
pub(crate) fn cast<F: Float>(value: f64) -> F {
    // f32 and f64 hold every f64, rounded: the fallback is never taken.
    F::from(value).unwrap_or_else(F::nan)
}

/// `output = a * x + b * y`.
fn combine<F: Float>(a: F, x: &[F], b: F, y: &[F], output: &mut [F]) {
    assert_eq!(x.len(), output.len());
    assert_eq!(y.len(), output.len());
    for ((o, &x), &y) in output.iter_mut().zip(x).zip(y) {
        *o = a * x + b * y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeping_every_step_changes_nothing() {
        let schedule = NoiseSchedule::linear(1000).unwrap();
        let all: Vec<usize> = (0..1000).collect();
        let respaced = schedule.respaced(&all).unwrap();
        for i in 0..1000 {
            let (a, b) = (schedule.alpha_bar(i), respaced.alpha_bar(i));
            assert!((a - b).abs() < 1e-14, "{i}: {a} {b}");
        }
        assert_eq!(schedule.beta(0), 1e-4);
        assert_eq!(schedule.beta(999), 0.02);
        assert!(schedule.alpha_bar(999) < 5e-5);
    }

    #[test]
    fn a_respaced_schedule_keeps_the_noise_levels() {
        let schedule = NoiseSchedule::linear(1000).unwrap();
        let short = schedule.respaced(&[999, 10, 500, 10]).unwrap();
        assert_eq!(short.len(), 3);
        for (i, t) in [10, 500, 999].into_iter().enumerate() {
            assert_eq!(short.timestep(i), t);
            assert!((short.alpha_bar(i) - schedule.alpha_bar(t)).abs() < 1e-14);
        }
        let again = short.respaced(&[1]).unwrap();
        assert_eq!(again.timestep(0), 500, "timesteps are those of the whole schedule");
    }

    #[test]
    fn bad_schedules_are_refused() {
        assert!(NoiseSchedule::linear(20).is_err());
        let schedule = NoiseSchedule::linear(100).unwrap();
        assert!(schedule.respaced(&[]).is_err());
        assert!(schedule.respaced(&[100]).is_err());
        for bad in ["x", "ddim", "ddim0", "ddim99", "101", "60,41", "-1", "1,,2"] {
            assert!(space_timesteps(100, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn halves_round_to_even_as_in_python() {
        // Stride (10 - 1) / (7 - 1) = 1.5: 0, 1.5, 3, 4.5, 6, 7.5, 9.
        assert_eq!(space_timesteps(10, "7").unwrap(), [0, 2, 3, 4, 6, 8, 9]);
        assert_eq!(space_timesteps(10, "2,3").unwrap(), [0, 4, 5, 7, 9]);
        assert_eq!(space_timesteps(10, "1").unwrap(), [0]);
        assert_eq!(space_timesteps(7, "").unwrap(), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn start_and_noise_are_recovered_from_the_noised_vector() {
        let schedule = NoiseSchedule::linear(1000).unwrap();
        let (start, noise) = ([0.3f64, -1.2, 2.0], [1.0f64, 0.1, -0.7]);
        for t in [0, 1, 500, 999] {
            let mut noised = [0.0; 3];
            schedule.q_sample(t, &start, &noise, &mut noised);
            let (mut x, mut e) = ([0.0; 3], [0.0; 3]);
            schedule.start_from_noise(t, &noised, &noise, &mut x);
            schedule.noise_from_start(t, &noised, &start, &mut e);
            for i in 0..3 {
                assert!((x[i] - start[i]).abs() < 1e-10, "{t}: {x:?}");
                assert!((e[i] - noise[i]).abs() < 1e-10, "{t}: {e:?}");
            }
        }
    }

    #[test]
    fn losses_are_means_over_the_parameters() {
        let losses = sample_losses(&[1.0f32, 2.0, 0.0, 0.0], &[0.0, 0.0, 3.0, 4.0], 2);
        assert_eq!(losses, [2.5, 12.5]);
    }
}
