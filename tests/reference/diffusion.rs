//! Diffusion: single steps, and samplers with injected noise.

use lopt::engine::Float;
use lopt::gpt::diffusion::sample_losses;
use lopt::gpt::{NoiseSchedule, Prediction, Sampler, SamplerKind};
use serde_json::Value;

use crate::case::{counts, flag, number, text, widen, Case};
use crate::model::{Conditions, Model};
use crate::report::{Bound, Outcome, Report, DEFAULT};
use crate::schedules::{clipped_log_variance, noise_schedule};

const FREQUENCIES: &str = "model.scalar_embedder.frequencies";

/// A sampler and every state it passes through.
pub fn sampler(case: &Case, report: &mut Report) -> Outcome {
    let bound = case.suggested("max_abs", DEFAULT);
    run(case, report, Model::<f32>::load(case, "model.", FREQUENCIES, batch(case)?)?, "", bound)?;
    if case.has("sample_f64") {
        let model = Model::<f64>::load(case, "model.", FREQUENCIES, batch(case)?)?;
        run(case, report, model, "_f64", bound)?;
    }
    Ok(())
}

fn batch(case: &Case) -> Outcome<usize> {
    Ok(case.shape("x_prev")?[0])
}

/// Rule, clipping and schedule of a case.
fn sampler_of(case: &Case) -> Outcome<(Sampler, NoiseSchedule)> {
    let (json, diffusion) = (case.field("sampler")?, case.field("diffusion")?);
    let kind = match text(json, "kind")? {
        "ddpm" => SamplerKind::Ddpm,
        "ddim" => SamplerKind::Ddim { eta: number(json, "eta")? },
        other => return Err(format!("no sampler `{other}`")),
    };
    let schedule = noise_schedule(diffusion)?;
    let prediction = prediction(flag(diffusion, "predict_xstart")?);
    let sampler = Sampler::on(&schedule, kind, clip(json)?, prediction);
    Ok((sampler, schedule))
}

fn prediction(start: bool) -> Prediction {
    if start {
        Prediction::Start
    } else {
        Prediction::Noise
    }
}

/// The limits that `denoised_fn` and then `clip_denoised` set.
fn clip(json: &Value) -> Outcome<Option<(f64, f64)>> {
    let mut limits = None;
    if let Some(function) = json.get("denoised_fn").and_then(Value::as_str) {
        let inside = function.strip_prefix("clamp(").and_then(|f| f.strip_suffix(')'));
        let parts = inside.and_then(|inside| inside.split_once(','));
        let parse = |s: &str| s.trim().parse::<f64>().ok();
        let pair = parts.and_then(|(low, high)| parse(low).zip(parse(high)));
        limits = Some(pair.ok_or_else(|| format!("no function `{function}`"))?);
    }
    if flag(json, "clip_denoised")? {
        let (low, high) = limits.unwrap_or((-1.0, 1.0));
        limits = Some((low.clamp(-1.0, 1.0), high.clamp(-1.0, 1.0)));
    }
    Ok(limits)
}

fn run<F: Float>(
    case: &Case,
    report: &mut Report,
    mut model: Model<F>,
    suffix: &str,
    bound: Bound,
) -> Outcome {
    let (sampler, schedule) = sampler_of(case)?;
    let steps = schedule.len();
    if case.field("timestep_map")?.is_array() {
        let mut found: Vec<usize> = sampler.timesteps().collect();
        found.reverse();
        report.same("timestep_map", &found, &counts(case.json(), "timestep_map")?);
    }
    let (latent, noise): (Vec<F>, Vec<F>) = (case.cast("x_T")?, case.cast("noise")?);
    let (start, target): (Vec<F>, Vec<F>) = (case.cast("x_prev")?, case.cast("loss_target")?);
    let current: Vec<F> = case.cast("loss_prev")?;
    let given = Conditions { start: &start, target: &target, current: &current };

    let mut draws = std::iter::once(&latent[..]).chain(noise.chunks(latent.len()));
    let mut draw = |output: &mut [F]| {
        if let Some(draw) = draws.next() {
            output.copy_from_slice(draw);
        }
    };
    let mut predict = |noised: &[F], timestep: F, output: &mut [F]| {
        let timestep = vec![timestep; target.len()];
        model.predict_into(noised, &timestep, &given, output)
    };
    let kept = counts(case.json(), "kept_steps")?;
    let (mut states, mut predictions) = (Vec::new(), Vec::new());
    let sample = sampler.sample_traced(&mut draw, latent.len(), &mut predict, &mut |trace| {
        if kept.contains(&(steps - 1 - trace.index)) {
            states.extend(widen(trace.sample));
            predictions.extend(widen(trace.start));
        }
    })?;
    let found = [
        ("sample", widen(&sample)),
        ("x_after_step", states),
        ("pred_xstart_at_step", predictions),
    ];
    for (name, found) in found {
        let name = format!("{name}{suffix}");
        if case.has(&name) {
            report.compare(&name, &found, case.values(&name)?, bound);
        }
    }
    Ok(())
}

/// One step of everything: noising, posterior, predictions and losses.
pub fn single_step(case: &Case, report: &mut Report) -> Outcome {
    let schedule = noise_schedule(case.field("diffusion")?)?;
    let shape = case.shape("x_start")?.to_vec();
    let step = Step { schedule, t: case.indices("t")?, size: shape[1] };
    let (start, noise): (Vec<f32>, Vec<f32>) = (case.cast("x_start")?, case.cast("noise")?);

    let mut noised = vec![0.0f32; start.len()];
    step.each(&mut noised, |s, t, at, out| s.q_sample(t, &start[at.clone()], &noise[at], out));
    report.compare("q_sample", &widen(&noised), case.values("q_sample")?, DEFAULT);
    if case.has("q_sample_f64") {
        let (start, noise): (Vec<f64>, Vec<f64>) = (case.cast("x_start")?, case.cast("noise")?);
        let mut found = vec![0.0f64; start.len()];
        step.each(&mut found, |s, t, at, out| s.q_sample(t, &start[at.clone()], &noise[at], out));
        report.compare("q_sample_f64", &found, case.values("q_sample_f64")?, f64_bound());
    }
    // What the reference's formulas are given is its own x_t.
    let noised: Vec<f32> = case.cast("q_sample")?;
    let mut mean = vec![0.0f32; start.len()];
    step.each(&mut mean, |s, t, at, out| s.posterior_mean(t, &start[at.clone()], &noised[at], out));
    report.compare("posterior.mean", &widen(&mean), case.values("posterior.mean")?, DEFAULT);
    let mut signal = vec![0.0f32; start.len()];
    let none = vec![0.0f32; start.len()];
    step.each(&mut signal, |s, t, at, out| s.q_sample(t, &start[at.clone()], &none[at], out));
    if case.has("q_mean_variance.mean") {
        report.compare(
            "q_mean_variance.mean",
            &widen(&signal),
            case.values("q_mean_variance.mean")?,
            DEFAULT,
        );
    }
    type Table = fn(&NoiseSchedule, usize) -> f64;
    let tables: [(&str, Table); 10] = [
        ("posterior.variance", NoiseSchedule::posterior_variance),
        ("posterior.log_variance_clipped", clipped_log_variance),
        ("q_mean_variance.variance", |s, t| 1.0 - s.alpha_bar(t)),
        ("q_mean_variance.log_variance", |s, t| (1.0 - s.alpha_bar(t)).ln()),
        ("xstart.p.variance", NoiseSchedule::step_variance),
        ("xstart.p.log_variance", |s, t| s.step_variance(t).ln()),
        ("eps.p.variance", NoiseSchedule::step_variance),
        ("eps.p.log_variance", |s, t| s.step_variance(t).ln()),
        ("sigma_small.variance", NoiseSchedule::posterior_variance),
        ("sigma_small.log_variance", clipped_log_variance),
    ];
    for (name, table) in tables {
        if case.has(name) {
            let rows = step.t.iter().flat_map(|&t| vec![table(&step.schedule, t); step.size]);
            // Stored in f32.
            let found: Vec<f64> = rows.collect();
            report.compare(name, &found, case.values(name)?, Bound::Elementwise(2e-7));
        }
    }
    if case.has("prior_bpd") {
        let found = prior_bits(&step.schedule, &widen(&start), step.size);
        // The reference's f32 cancels: 1 - 1 + small.
        report.compare("prior_bpd", &found, case.values("prior_bpd")?, Bound::Relative(2e-2));
    }
    predictions::<f32>(case, report, &step, "", DEFAULT)?;
    predictions::<f64>(case, report, &step, "_f64", f64_bound())
}

/// The reference casts its tables to f32 even when it runs in f64.
fn f64_bound() -> Bound {
    Bound::Relative(1e-6)
}

/// A schedule, the step of each sample, and their size.
struct Step {
    schedule: NoiseSchedule,
    t: Vec<usize>,
    size: usize,
}

impl Step {
    /// Runs `change` on each sample.
    fn each<F>(
        &self,
        output: &mut [F],
        mut change: impl FnMut(&NoiseSchedule, usize, std::ops::Range<usize>, &mut [F]),
    ) {
        for (i, (row, &t)) in output.chunks_mut(self.size).zip(&self.t).enumerate() {
            change(&self.schedule, t, i * self.size..(i + 1) * self.size, row);
        }
    }
}

/// What the network says of `x_t`, read as `x_0` and read as noise.
fn predictions<F: Float>(
    case: &Case,
    report: &mut Report,
    step: &Step,
    suffix: &str,
    bound: Bound,
) -> Outcome {
    let mut model = Model::<F>::load(case, "model.", FREQUENCIES, step.t.len())?;
    let (start, noise): (Vec<F>, Vec<F>) = (case.cast("x_start")?, case.cast("noise")?);
    let stored = format!("q_sample{suffix}");
    let noised: Vec<F> = case.cast(&stored)?;
    let (from, target): (Vec<F>, Vec<F>) = (case.cast("x_prev")?, case.cast("loss_target")?);
    let current: Vec<F> = case.cast("loss_prev")?;
    let given = Conditions { start: &from, target: &target, current: &current };
    let output = model.predict(&noised, &case.cast::<F>("t")?, &given)?;

    for (prefix, prediction) in [("xstart", Prediction::Start), ("eps", Prediction::Noise)] {
        let mut compare = |name: &str, found: &[F]| {
            let name = format!("{prefix}.{name}{suffix}");
            if let Ok(expected) = case.values(&name) {
                report.compare(&name, &widen(found), expected, bound);
            }
        };
        let losses = sample_losses(&output, prediction.target(&start, &noise), step.size);
        let losses: Vec<F> = losses.into_iter().map(F::from_f64).collect();
        compare("mse", &losses);
        compare("loss", &losses);

        let mut predicted = output.clone();
        if prediction == Prediction::Noise {
            step.each(&mut predicted, |s, t, at, out| {
                s.start_from_noise(t, &noised[at.clone()], &output[at], out)
            });
        }
        let mut found = vec![F::zero(); output.len()];
        for (name, clipped) in [("p", false), ("p_clipped", true)] {
            if clipped {
                let one = F::one();
                predicted.iter_mut().for_each(|v| *v = v.max(-one).min(one));
            } else {
                step.each(&mut found, |s, t, at, out| {
                    s.noise_from_start(t, &noised[at.clone()], &predicted[at], out)
                });
                compare("pred_eps_from_xstart", &found);
            }
            compare(&format!("{name}.pred_xstart"), &predicted);
            step.each(&mut found, |s, t, at, out| {
                s.posterior_mean(t, &predicted[at.clone()], &noised[at], out)
            });
            compare(&format!("{name}.mean"), &found);
        }
    }
    Ok(())
}

/// Divergence of `q(x_T | x_0)` from the standard normal, in bits for each
/// parameter.
fn prior_bits(schedule: &NoiseSchedule, start: &[f64], size: usize) -> Vec<f64> {
    let alpha_bar = schedule.alpha_bar(schedule.len() - 1);
    let variance = 1.0 - alpha_bar;
    let divergence = |x: &f64| 0.5 * (variance - 1.0 - variance.ln() + alpha_bar * x * x);
    let bits = |row: &[f64]| {
        row.iter().map(divergence).sum::<f64>() / size as f64 / std::f64::consts::LN_2
    };
    start.chunks(size).map(bits).collect()
}
