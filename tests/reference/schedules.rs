//! Noise schedules, kept steps, and learning rates.

use lopt::gpt::diffusion::space_timesteps;
use lopt::gpt::{LearningRateSchedule, NoiseSchedule};
use serde_json::Value;

use crate::case::{count, counts, number, numbers, text, Case};
use crate::report::{Bound, Outcome, Report};

/// The schedule that a case describes: linear, respaced as the reference does
/// even where every step is kept.
pub fn noise_schedule(json: &Value) -> Outcome<NoiseSchedule> {
    let kind = text(json, "noise_schedule")?;
    if kind != "linear" {
        return Err(format!("no noise schedule `{kind}`"));
    }
    let steps = count(json, "steps")?;
    if json.get("learn_sigma").and_then(Value::as_bool) == Some(true) {
        return Err("the case learns the variance, which lopt does not".into());
    }
    let kept = space_timesteps(steps, &respacing(json.get("timestep_respacing")))
        .map_err(|e| e.to_string())?;
    let schedule = NoiseSchedule::linear(steps).and_then(|s| s.respaced(&kept));
    schedule.map_err(|e| e.to_string())
}

/// Text, or a list of counts, as text.
fn respacing(json: Option<&Value>) -> String {
    match json {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(counts)) => {
            counts.iter().map(Value::to_string).collect::<Vec<_>>().join(",")
        }
        _ => String::new(),
    }
}

/// Every table of every schedule.
pub fn tables(case: &Case, report: &mut Report) -> Outcome {
    let tolerance = case.field("suggested_rel_tolerance")?.as_f64().unwrap_or(1e-12);
    let schedules = case.field("cases")?.as_array().ok_or("`cases` is not a list")?;
    for json in schedules {
        let (key, s) = (text(json, "key")?, noise_schedule(json)?);
        let steps: Vec<usize> = (0..s.len()).map(|i| s.timestep(i)).collect();
        report.same(&format!("{key} steps"), &s.len(), &count(json, "num_timesteps")?);
        if json.get("timestep_map").is_some_and(Value::is_array) {
            report.same(&format!("{key} timestep_map"), &steps, &counts(json, "timestep_map")?);
        }
        let prefix = format!("{key}.");
        let names: Vec<String> =
            case.names().filter(|n| n.starts_with(&prefix)).map(str::to_owned).collect();
        for name in names {
            let expected = case.values(&name)?;
            let found: Vec<f64> = (0..s.len())
                .map(|i| table(&s, &name[prefix.len()..], i))
                .collect::<Outcome<_>>()?;
            report.compare(&name, &found, expected, Bound::Elementwise(tolerance));
        }
    }
    for json in list_or_empty(case, "space_timesteps") {
        let (steps, text) = (count(json, "num_timesteps")?, respacing(json.get("section_counts")));
        let name = format!("space_timesteps {steps} {text}");
        match (space_timesteps(steps, &text), json.get("error")) {
            (found, Some(_)) => report.holds(&name, found.is_err()),
            (Ok(found), None) => report.same(&name, &found, &counts(json, "use_timesteps")?),
            (Err(error), None) => report.holds(&format!("{name}: {error}"), false),
        }
    }
    Ok(())
}

fn list_or_empty<'a>(case: &'a Case, name: &str) -> &'a [Value] {
    case.field(name).ok().and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// One entry of a table of the reference.
fn table(s: &NoiseSchedule, name: &str, i: usize) -> Outcome<f64> {
    let alpha_bar = s.alpha_bar(i);
    let (from_noised, from_noise) = s.start_weights(i);
    Ok(match name {
        "betas" => s.beta(i),
        "alphas_cumprod" => alpha_bar,
        "alphas_cumprod_prev" => s.alpha_bar_previous(i),
        "alphas_cumprod_next" if i + 1 == s.len() => 0.0,
        "alphas_cumprod_next" => s.alpha_bar(i + 1),
        "sqrt_alphas_cumprod" => alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod" => (1.0 - alpha_bar).sqrt(),
        "log_one_minus_alphas_cumprod" => (1.0 - alpha_bar).ln(),
        "sqrt_recip_alphas_cumprod" => from_noised,
        "sqrt_recipm1_alphas_cumprod" => -from_noise,
        "posterior_variance" => s.posterior_variance(i),
        "posterior_log_variance_clipped" => clipped_log_variance(s, i),
        "posterior_mean_coef1" => s.posterior_mean_weights(i).0,
        "posterior_mean_coef2" => s.posterior_mean_weights(i).1,
        "fixed_large_variance" => s.step_variance(i),
        "timestep_map" => s.timestep(i) as f64,
        other => return Err(format!("no table `{other}`")),
    })
}

/// Logarithm of the posterior variance; the first, which is 0, is replaced by
/// the second.
pub fn clipped_log_variance(s: &NoiseSchedule, index: usize) -> f64 {
    s.posterior_variance(index.max(1).min(s.len() - 1)).ln()
}

/// Learning rates at given times.
pub fn learning_rate(case: &Case, report: &mut Report) -> Outcome {
    for (i, json) in list_or_empty(case, "schedules").iter().enumerate() {
        let schedule = learning_rate_schedule(json)?;
        let found: Vec<f64> = numbers(json, "epochs")?.iter().map(|&e| schedule.at(e)).collect();
        // Relative to the base rate: the cosine cancels near the end.
        let bound = Bound::Absolute(schedule.base * 1e-12);
        report.compare(&format!("schedule {i}"), &found, &numbers(json, "lr")?, bound);
    }
    Ok(())
}

/// The schedule that `base_lr`, `num_ep` and the fields beside them describe.
pub fn learning_rate_schedule(json: &Value) -> Outcome<LearningRateSchedule> {
    match json.get("lr_sch").and_then(Value::as_str) {
        None | Some("cos") => Ok(LearningRateSchedule {
            base: number(json, "base_lr")?,
            warmup: number(json, "warmup_epochs")?,
            total: number(json, "num_ep")?,
            warmup_factor: number(json, "warmup_factor")?,
        }),
        Some(other) => Err(format!("no learning rate schedule `{other}`")),
    }
}
