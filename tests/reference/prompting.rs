//! One-step and recursive prompting: with stand-ins for task and model, and
//! from end to end.

use std::cell::RefCell;
use std::convert::Infallible;

use lopt::eval::alignment::{
    one_step, prompt_alignment, recursive, Goal, PromptSweep, Recursion, Request,
};
use lopt::gpt::{Normalizer, Sampler, SamplerKind};
use lopt::metric::Direction;
use serde_json::Value;

use crate::case::{count, flag, named_shapes, number, text, widen, Case};
use crate::metrics::columns;
use crate::model::{Conditions, Model};
use crate::network::{cross_entropy, Network};
use crate::report::{Bound, Outcome, Report, DEFAULT};
use crate::schedules::noise_schedule;

/// The stand-ins run in f32, here and there.
const F32: Bound = Bound::Relative(2e-6);

/// What a model was asked, and what it answered.
struct Call {
    start: Vec<f64>,
    current: Vec<f64>,
    target: Vec<f64>,
    made: Vec<f64>,
}

/// `0.5*sum(w^2)+0.1`.
fn measure(size: usize) -> impl FnMut(&[f32]) -> Result<Vec<f64>, Infallible> {
    move |networks| {
        let score = |w: &[f32]| f64::from(0.5 * w.iter().map(|x| x * x).sum::<f32>() + 0.1);
        Ok(networks.chunks(size).map(score).collect())
    }
}

/// `w*sqrt(max(target/prev,0.01)) + 0.05`.
fn sample(
    calls: &RefCell<Vec<Call>>,
    size: usize,
) -> impl FnMut(Request<'_>) -> Result<Vec<f32>, Infallible> + '_ {
    move |request| {
        let rows = request.start.chunks(size).zip(request.target).zip(request.current);
        let made: Vec<f32> = rows
            .flat_map(|((row, &target), &current)| {
                let gain = (target as f32 / current as f32).max(0.01).sqrt();
                row.iter().map(move |w| w * gain + 0.05)
            })
            .collect();
        calls.borrow_mut().push(Call {
            start: widen(request.start),
            current: request.current.to_vec(),
            target: request.target.to_vec(),
            made: widen(&made),
        });
        Ok(made)
    }
}

/// Every task of a case of stand-ins, and prompts given by hand.
pub fn stand_ins(case: &Case, report: &mut Report) -> Outcome {
    let stand_ins = case.field("stand_ins")?;
    let known =
        [("test_fn", "0.5*sum(w^2)+0.1"), ("synth", "w*sqrt(max(target/prev,0.01)) + 0.05")];
    for (name, formula) in known {
        if text(stand_ins, name)? != formula {
            return Err(format!("stand-in `{name}` is not `{formula}`"));
        }
    }
    let networks: Vec<f32> = case.cast("task_nets")?;
    let size = columns(case, "task_nets")?;
    let Ok(base) = measure(size)(&networks);
    for (key, json) in case.field("cases")?.as_object().ok_or("`cases` is not an object")? {
        let task = Task::read(json)?;
        let sweep = task.sweep;
        let prompts: Vec<f64> = base.iter().flat_map(|&b| sweep.prompts(b)).collect();
        let calls = RefCell::default();
        let Ok(observed) =
            one_step(&networks, &base, &prompts, &mut sample(&calls, size), &mut measure(size));
        let prefix = format!("{key}.one");
        compare_one_step(case, report, &prefix, &base, &prompts, &observed)?;
        compare_calls(case, report, &calls.into_inner(), |_, what| {
            format!("{prefix}.synth_{what}")
        })?;
        let found = prompt_alignment(&prompts, &observed, sweep.steps);
        report.compare_one("prompt_alignment", found, number(json, "prompt_alignment")?, F32);

        let steps = count(json, "recursive_max_steps")?;
        let by = task.sweep.best / number(json, "step_divider")?;
        let direction = task.sweep.direction;
        for (prefix, goal) in [
            (format!("{key}.rec_zero"), Goal::Fixed(task.recursive_prompt)),
            (format!("{key}.rec_step"), Goal::Improve { by, direction }),
        ] {
            let calls = RefCell::default();
            let Ok(recursion) =
                recursive(&networks, goal, steps, &mut sample(&calls, size), &mut measure(size));
            compare_recursion(case, report, &prefix, &recursion, F32)?;
            let name = |k: usize, what: &str| format!("{prefix}.step{k}.{what}");
            compare_calls(case, report, &calls.into_inner(), name)?;
        }
    }
    match case.field("manual") {
        Ok(manual) => by_hand(case, report, manual, &networks, &base, size),
        Err(_) => Ok(()),
    }
}

/// Prompts that are given rather than made.
fn by_hand(
    case: &Case,
    report: &mut Report,
    json: &Value,
    networks: &[f32],
    base: &[f64],
    size: usize,
) -> Outcome {
    let all = "manual.desired_losses_all";
    let (first, steps) = (count(json, "tasknet_index")?, count(json, "dvo_steps")?);
    let rows = case.values(all)?.chunks(columns(case, all)?).skip(first).take(base.len());
    let rows: Vec<&[f64]> = rows.collect();
    let current: Vec<f64> = rows.iter().map(|row| row[0]).collect();
    let prompts: Vec<f64> = rows.iter().flat_map(|row| &row[..steps]).copied().collect();
    let calls = RefCell::default();
    let Ok(observed) =
        one_step(networks, &current, &prompts, &mut sample(&calls, size), &mut measure(size));
    compare_one_step(case, report, "manual", base, &prompts, &observed)?;
    compare_calls(case, report, &calls.into_inner(), |_, what| format!("manual.synth_{what}"))
}

/// What a task prompts with.
pub struct Task {
    /// Prompts of one-step prompting.
    pub sweep: PromptSweep,
    /// What is asked for at every step of recursive prompting.
    pub recursive_prompt: f64,
}

impl Task {
    fn read(json: &Value) -> Outcome<Self> {
        let part = |name: &str| json.get(name).ok_or_else(|| format!("no `{name}`"));
        Self::from_parts(part("metadata")?, part("kwargs")?)
    }

    /// From what the task says, and how it is prompted.
    pub fn from_parts(task: &Value, prompting: &Value) -> Outcome<Self> {
        let direction =
            if flag(task, "minimize")? { Direction::Minimize } else { Direction::Maximize };
        let sweep = PromptSweep {
            best: number(task, "best_prompt")?,
            start_coefficient: number(prompting, "prompt_start_coeff")?,
            steps: count(prompting, "dvo_steps")?,
            direction,
        };
        Ok(Self { sweep, recursive_prompt: number(task, "recursive_prompt")? })
    }
}

/// Prompts, and the metrics before and after.
pub fn compare_one_step(
    case: &Case,
    report: &mut Report,
    prefix: &str,
    base: &[f64],
    prompts: &[f64],
    observed: &[f64],
) -> Outcome {
    let bound = case.suggested("max_abs", F32);
    let name = format!("{prefix}.desired");
    report.compare(&name, prompts, case.values(&name)?, bound);
    let name = format!("{prefix}.observed");
    let rows = base.iter().zip(observed.chunks(prompts.len() / base.len()));
    let found: Vec<f64> = rows.flat_map(|(b, row)| [&[*b], row].concat()).collect();
    report.compare(&name, &found, case.values(&name)?, bound);
    Ok(())
}

/// Prompts, and the metrics before the first and after every step.
pub fn compare_recursion(
    case: &Case,
    report: &mut Report,
    prefix: &str,
    recursion: &Recursion,
    bound: Bound,
) -> Outcome {
    for (what, rows) in [("desired", &recursion.prompts), ("observed", &recursion.observed)] {
        let name = format!("{prefix}.{what}");
        let networks = rows.first().map_or(0, Vec::len);
        let by_network: Vec<f64> =
            (0..networks).flat_map(|n| rows.iter().map(move |row| row[n])).collect();
        report.compare(&name, &by_network, case.values(&name)?, bound);
    }
    Ok(())
}

/// What the model was given and made, where the case holds it.
fn compare_calls(
    case: &Case,
    report: &mut Report,
    calls: &[Call],
    name: impl Fn(usize, &str) -> String,
) -> Outcome {
    for (k, call) in calls.iter().enumerate() {
        let parts = [
            ("target", &call.target),
            ("prev", &call.current),
            ("w", &call.start),
            ("out", &call.made),
        ];
        for (what, found) in parts {
            let name = name(k, what);
            if case.has(&name) {
                report.compare(&name, found, case.values(&name)?, F32);
            }
        }
    }
    Ok(())
}

/// Prompting a small G.pt from end to end, with injected noise.
pub fn end_to_end(case: &Case, report: &mut Report) -> Outcome {
    let (task, prompting) = (case.field("task")?, case.field("prompting")?);
    let (diffusion, threshold) = (case.field("diffusion")?, case.field("thresholding")?);
    let normalizer = Normalizer { scale: number(task, "openai_coeff")? };
    let kind = text(threshold, "kind")?;
    let clip = match kind {
        "none" => None,
        "static" => match crate::case::numbers(threshold, "param_range")?[..] {
            // Of normalised parameters.
            [low, high] => Some((low, high)),
            _ => return Err("`param_range` is not a pair".into()),
        },
        other => return Err(format!("no thresholding `{other}`")),
    };
    let schedule = noise_schedule(diffusion)?;
    let sampler = Sampler::on(&schedule, SamplerKind::Ddpm, clip, case.model_config()?.prediction);
    let settings = Task::from_parts(task, prompting)?;
    let network = Network::new(&named_shapes(case.field("parameter_layout")?)?, "")?;
    let (data, labels) = (case.values("data_x")?, case.indices("data_y")?);
    let features = case.shape("data_x")?[1..].to_vec();

    let networks: Vec<f32> = case.cast("task_nets")?;
    let size = columns(case, "task_nets")?;
    let frequencies = "model.scalar_embedder.frequencies";
    let most = networks.len() / size * settings.sweep.steps;
    let model = Model::<f32>::load(case, "model.", frequencies, most)?;
    let model = RefCell::new(model);

    let measure = |networks: &[f32]| -> Outcome<Vec<f64>> {
        let mut raw = networks.to_vec();
        normalizer.unnormalize(&mut raw);
        let score = |w: &[f32]| {
            let losses = cross_entropy(&network.forward(&widen(w), data, &features), &labels);
            // Metrics are f32 when the reference prompts.
            f64::from((losses.iter().sum::<f64>() / losses.len() as f64) as f32)
        };
        Ok(raw.chunks(size).map(score).collect())
    };
    let sample = |draws: &mut dyn Iterator<Item = &[f32]>, request: Request<'_>| {
        let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let (target, current) = (narrow(request.target), narrow(request.current));
        let given = Conditions { start: request.start, target: &target, current: &current };
        let mut predict = |noised: &[f32], timestep: f32, output: &mut [f32]| {
            let timestep = vec![timestep; target.len()];
            model.borrow_mut().predict_into(noised, &timestep, &given, output)
        };
        let mut draw = |output: &mut [f32]| {
            if let Some(draw) = draws.next() {
                output.copy_from_slice(draw);
            }
        };
        sampler.sample(&mut draw, request.start.len(), &mut predict)
    };

    let base = measure(&networks)?;
    let prompts: Vec<f64> = base.iter().flat_map(|&b| settings.sweep.prompts(b)).collect();
    let noise: Vec<f32> = case.cast("noise_one_step")?;
    let mut draws = noise.chunks(networks.len() * settings.sweep.steps);
    let observed = one_step(
        &networks,
        &base,
        &prompts,
        &mut |request| sample(&mut draws, request),
        &mut |networks| measure(networks),
    )?;
    compare_one_step(case, report, "one", &base, &prompts, &observed)?;
    if let Ok(expected) = number(case.json(), "prompt_alignment") {
        let found = prompt_alignment(&prompts, &observed, settings.sweep.steps);
        let bound = case.suggested("max_abs", DEFAULT);
        report.compare_one("prompt_alignment", found, expected, bound);
    }

    // A last step draws noise that it does not use: every recursion has a
    // block of its own.
    let noise: Vec<f32> = case.cast("noise_recursive")?;
    let mut blocks = noise.chunks(networks.len() * (schedule.len() + 1));
    let recursion = recursive(
        &networks,
        Goal::Fixed(settings.recursive_prompt),
        count(case.json(), "recursive_max_steps")?,
        &mut |request| {
            let block = blocks.next().ok_or("no noise left")?;
            sample(&mut block.chunks(request.start.len()), request)
        },
        &mut |networks| measure(networks),
    )?;
    compare_recursion(case, report, "rec", &recursion, case.suggested("max_abs", DEFAULT))
}
