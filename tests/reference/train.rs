//! Training: loss, gradient, clipping, AdamW, moving average.

use lopt::engine::{adamw_ema, global_norm, AdamW, Float, Threads, Update};
use lopt::gpt::{clip_scale, Inputs, Target, Transformer};
use serde_json::Value;

use crate::case::{count, list, number, widen, Case};
use crate::model::{flat, Model};
use crate::report::{Bound, Outcome, Report, DEFAULT};
use crate::schedules::{learning_rate_schedule, noise_schedule};

/// What a run of a few steps leaves behind.
struct Run<F> {
    losses: Vec<f64>,
    norms: Vec<f64>,
    norms_clipped: Vec<f64>,
    rates: Vec<f64>,
    first_gradient: Vec<F>,
    after_first: Vec<F>,
    parameters: Vec<F>,
    average: Vec<F>,
}

/// A few steps of training on given batches.
pub fn steps(case: &Case, report: &mut Report) -> Outcome {
    let batch = case.shape("parameters_0")?[1];
    let model = Model::<f32>::load(case, "init.", "frequencies", batch)?;
    let plan = model.plan.clone();
    crate::model::compare_names(case, report, &plan, "init.");
    decay(case, report, &plan)?;
    let single = run(case, model)?;
    let double = run(case, Model::<f64>::load(case, "init.", "frequencies", batch)?)?;

    let loss = case.suggested("loss_rel", DEFAULT);
    let norm = case.suggested("grad_norm_rel", DEFAULT);
    let parameters = case.suggested("params_max_abs", DEFAULT);
    let average = case.suggested("ema_max_abs", DEFAULT);
    let series = [
        ("loss", &single.losses, loss),
        ("loss_f64", &double.losses, Bound::Relative(1e-6)),
        ("grad_norm", &single.norms, norm),
        ("grad_norm_f64", &double.norms, Bound::Relative(1e-6)),
        ("grad_norm_after_clip", &single.norms_clipped, norm),
        ("lr", &single.rates, Bound::Relative(1e-12)),
    ];
    for (name, found, bound) in series {
        if case.has(name) {
            report.compare(name, found, case.values(name)?, bound);
        }
    }

    let excluded = match case.field("ill_conditioned") {
        Ok(json) => list(json, "names")?.iter().filter_map(Value::as_str).collect(),
        Err(_) => Vec::new(),
    };
    // Adam turns a gradient of nothing but rounding into steps of its rate.
    let moved = single.rates.iter().sum::<f64>() * 1.5;
    let start: Vec<f64> = flat(case, &plan, "init.")?;
    let tensors: [(&str, Vec<f64>, Bound); 5] = [
        ("grad_step0.", widen(&single.first_gradient), DEFAULT),
        ("after_step0.", widen(&single.after_first), parameters),
        ("after.", widen(&single.parameters), parameters),
        ("ema_after.", widen(&single.average), average),
        ("after_f64.", double.parameters, parameters),
    ];
    for (prefix, found, bound) in tensors {
        if !case.names().any(|name| name.starts_with(prefix)) {
            continue;
        }
        let largest = flat::<f64>(case, &plan, prefix)?.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for spec in plan.parameters() {
            let name = format!("{prefix}{}", spec.name);
            let (found, expected) = (&found[spec.range()], case.values(&name)?);
            if prefix == "grad_step0." {
                // Relative to the whole gradient: some tensors have none.
                let bound = Bound::Absolute(largest * 2e-5);
                report.compare(&name, found, expected, bound);
            } else if excluded.contains(&&spec.name[..]) {
                let name = format!("{name} stays near its start");
                report.compare(&name, found, &start[spec.range()], Bound::Absolute(moved));
            } else {
                report.compare(&name, found, expected, bound);
            }
        }
    }
    Ok(())
}

/// Which parameters decay.
fn decay(case: &Case, report: &mut Report, plan: &Transformer) -> Outcome {
    let Ok(groups) = list(case.json(), "param_groups") else { return Ok(()) };
    for group in groups {
        let decays = number(group, "weight_decay")? > 0.0;
        let mut expected: Vec<&str> =
            list(group, "names")?.iter().filter_map(Value::as_str).collect();
        let specs = plan.parameters().iter().filter(|spec| spec.decay == decays);
        let mut found: Vec<&str> = specs.map(|spec| &spec.name[..]).collect();
        expected.sort_unstable();
        found.sort_unstable();
        report.same(if decays { "decays" } else { "does not decay" }, &found, &expected);
    }
    Ok(())
}

fn run<F: Float>(case: &Case, mut model: Model<F>) -> Outcome<Run<F>> {
    let json = case.json();
    let hyper = case.field("hyper")?;
    let schedule = noise_schedule(case.field("diffusion")?)?;
    let rate = learning_rate_schedule(hyper)?;
    let (epoch, iterations) = (number(hyper, "epoch")?, number(json, "iterations_per_epoch")?);
    let clip = number(hyper, "grad_clip")?;
    let threads = Threads::new(2).map_err(|e| e.to_string())?;
    let decayed = model.plan.decayed();

    let batch = case.shape("parameters_0")?[1];
    let size = model.plan.layout().num_parameters();
    let all = |name: &str| case.cast::<F>(name);
    let (starts, futures, noises) = (all("parameters_0")?, all("parameters_1")?, all("noise")?);
    let (t, timesteps) = (case.indices("t")?, all("t")?);
    // Metrics are f64, and so is their difference before it is cast.
    let (current, target) = (case.values("metric_0")?, case.values("metric_1")?);
    let deltas: Vec<F> =
        target.iter().zip(current).map(|(t, c)| F::from_f64(single(t - c))).collect();
    let narrow = |values: &[f64]| values.iter().map(|&v| F::from_f64(single(v))).collect();
    let (current, target): (Vec<F>, Vec<F>) = (narrow(current), narrow(target));

    let n = model.parameters.len();
    let (mut gradient, mut first, mut second) =
        (vec![F::zero(); n], vec![F::zero(); n], vec![F::zero(); n]);
    let mut average = model.parameters.clone();
    let mut run = Run {
        losses: vec![],
        norms: vec![],
        norms_clipped: vec![],
        rates: vec![],
        first_gradient: vec![],
        after_first: vec![],
        parameters: vec![],
        average: vec![],
    };
    for step in 0..count(json, "steps")? {
        let (rows, vectors) =
            (step * batch..(step + 1) * batch, step * batch * size..(step + 1) * batch * size);
        let (future, noise) = (&futures[vectors.clone()], &noises[vectors.clone()]);
        let mut noised = vec![F::zero(); batch * size];
        for (i, noised) in noised.chunks_mut(size).enumerate() {
            let at = i * size..(i + 1) * size;
            schedule.q_sample(t[rows.clone()][i], &future[at.clone()], &noise[at], noised);
        }
        let inputs = Inputs {
            noised: &noised,
            start: &starts[vectors],
            timestep: &timesteps[rows.clone()],
            delta: &deltas[rows.clone()],
            target: &target[rows.clone()],
            current: &current[rows],
        };
        let wanted = model.plan.config().prediction.target(future, noise);
        let loss = model.loss_and_gradient(&inputs, &Target::new(wanted), &mut gradient)?;
        let norm = global_norm(&gradient);
        let scale = if clip > 0.0 { clip_scale(norm, clip) } else { 1.0 };
        let learning_rate = rate.at(epoch + step as f64 / iterations);
        let settings = AdamW {
            learning_rate,
            beta1: number(hyper, "beta1")?,
            beta2: number(hyper, "beta2")?,
            epsilon: number(hyper, "adam_eps")?,
            weight_decay: number(hyper, "wd")?,
        };
        let update = Update {
            step: step as u64 + 1,
            gradient: &gradient,
            gradient_scale: scale,
            decayed: &decayed,
            parameters: &mut model.parameters,
            first: &mut first,
            second: &mut second,
            average: &mut average,
            average_decay: number(hyper, "ema_decay")?,
        };
        adamw_ema(&threads, &settings, update);
        run.losses.push(loss);
        run.norms.push(norm);
        run.norms_clipped.push(norm * scale);
        run.rates.push(learning_rate);
        if step == 0 {
            run.first_gradient = gradient.clone();
            run.after_first = model.parameters.clone();
        }
    }
    run.parameters = model.parameters;
    run.average = average;
    Ok(run)
}

fn single(value: f64) -> f64 {
    f64::from(value as f32)
}

/// The moving average of parameters that do not move.
pub fn moving_average(case: &Case, report: &mut Report) -> Outcome {
    let decay = number(case.json(), "decay")?;
    let mut parameters: Vec<f32> = case.cast("param")?;
    let mut average: Vec<f32> = case.cast("ema_before")?;
    let threads = Threads::new(1).map_err(|e| e.to_string())?;
    let zeros = vec![0.0; parameters.len()];
    let (mut first, mut second) = (zeros.clone(), zeros.clone());
    let settings = AdamW { learning_rate: 0.0, ..AdamW::default() };
    for step in 1.. {
        let name = format!("ema_after{step}");
        if !case.has(&name) {
            break;
        }
        let update = Update {
            step,
            gradient: &zeros,
            gradient_scale: 1.0,
            decayed: &[],
            parameters: &mut parameters,
            first: &mut first,
            second: &mut second,
            average: &mut average,
            average_decay: decay,
        };
        adamw_ema(&threads, &settings, update);
        // Two roundings in f32.
        report.compare(&name, &widen(&average), case.values(&name)?, Bound::Relative(2.5e-7));
    }
    Ok(())
}
