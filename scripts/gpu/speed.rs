//! Checks the GPU engine, and measures how long lopt takes for a training step and for an update;
//! `scripts/gpu/speed.py` sets that beside PyTorch.
//!
//! ```text
//! gpu_speed self-test INDEX
//! gpu_speed describe CONFIGURATION
//! gpu_speed measure CONFIGURATION WHAT BATCH DEVICE SECONDS
//! ```
//!
//! `DEVICE` is written as everywhere in lopt: `cpu`, `cuda:bf16`. `CONFIGURATION` is `paper` (the MNIST model of the G.pt paper), `m` or `quick`; `WHAT` is
//! `train_step`, or `update_ddpm_1000` and the like. Each prints one line of JSON.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use lopt::checkpoints::{Dataset, DatasetConfig, Metadata, RunInfo, Store};
use lopt::engine::Device;
use lopt::gpt::{
    GptConfig, ModelConfig, Normalizer, PromptRange, SamplerConfig, SamplerKind, Tokenization,
    Trainer, TrainerConfig, Transformer, Weights, WeightsHeader,
};
use lopt::layout::{Layout, LayoutBuilder, Role};
use lopt::metric::Metric;
use lopt::Gpt;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;
use serde_json::{json, Value};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Fewest stretches in a median.
const FEWEST: usize = 3;
/// Shortest stretch that is timed at once, in seconds: a clock that is read after every step
/// would make the host wait for the device.
const STRETCH: f64 = 0.5;
/// Runs of the made-up data set, and checkpoints of each.
const RUNS: (u64, usize) = (16, 8);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["self-test", index] => index.parse().map_err(Into::into).and_then(self_test),
        ["describe", name] => describe(name),
        ["measure", name, what, batch, device, seconds] => batch
            .parse()
            .map_err(Into::into)
            .and_then(|batch| Ok((batch, seconds.parse()?)))
            .and_then(|(batch, seconds)| measure(name, what, batch, device, seconds)),
        _ => Err("expected `self-test INDEX`, `describe CONFIGURATION` or \
                  `measure CONFIGURATION WHAT BATCH DEVICE SECONDS`"
            .into()),
    };
    match result {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Every kernel and whole models on a GPU against the CPU engine.
#[cfg(feature = "cuda")]
fn self_test(index: usize) -> Result<Value> {
    let checks = lopt::engine::cuda::self_test(index)?;
    let failed = checks.iter().filter(|check| !check.passes()).count();
    let list = checks.iter().map(|check| {
        let (error, tolerance) = (check.error, check.tolerance);
        json!({ "name": check.name, "error": error, "tolerance": tolerance, "passes": check.passes() })
    });
    Ok(json!({ "checks": list.collect::<Vec<_>>(), "failed": failed }))
}

#[cfg(not(feature = "cuda"))]
fn self_test(_: usize) -> Result<Value> {
    Err(lopt::engine::DeviceError::NotBuilt.into())
}

/// Shape of a model, and the layout that it is for.
fn configuration(name: &str) -> Result<(ModelConfig, Layout)> {
    // `pieces` of `length` values, of two vectors; the scalars are cut into pieces as well.
    let vector = |length: usize, pieces: usize| {
        let mut builder = LayoutBuilder::new();
        builder.tensor("vector", &[length * pieces], Role::Weight);
        (Tokenization::ChunkWithinInput { length }, builder.finish())
    };
    let ((tokenization, layout), width, blocks, heads) = match name {
        "paper" => {
            let mut builder = LayoutBuilder::new();
            builder.scope("hidden", |b| b.linear(784, 10, true));
            builder.scope("output", |b| b.linear(10, 10, true));
            let tokenization = Tokenization::ChunkWithinLayer { length: 1000 };
            ((tokenization, builder.finish()), 1536, 12, 16)
        }
        "m" => (vector(384, 14), 384, 6, 6),
        "quick" => (vector(64, 4), 32, 2, 2),
        other => {
            return Err(format!("no configuration `{other}`: expected paper, m or quick").into())
        }
    };
    let config = ModelConfig { width, blocks, heads, ..ModelConfig::reference(tokenization) };
    Ok((config, layout?))
}

/// What PyTorch needs to build a model of the same size.
fn describe(name: &str) -> Result<Value> {
    let (config, layout) = configuration(name)?;
    let model = Transformer::new(config, &layout)?;
    // Every token has an encoder of its own, in order; the first ones have decoders.
    let sizes = |group: &str, axis: usize| -> Vec<usize> {
        let shape = |k: usize| {
            let name = format!("decoder.{group}_parameter_projections.{k}.0.weight");
            model.parameters().iter().find(|spec| spec.name == name).map(|spec| spec.shape[axis])
        };
        (0..).map_while(shape).collect()
    };
    let config = model.config();
    Ok(json!({
        "name": name,
        "width": config.width,
        "blocks": config.blocks,
        "heads": config.heads,
        "frequencies": model.frequencies(),
        "parameters": layout.num_parameters(),
        "model_parameters": model.num_parameters(),
        "inputs": sizes("input", 1),
        "outputs": sizes("output", 0),
        "trainer": TrainerConfig::default(),
    }))
}

/// Normally distributed checkpoints: what they hold does not change how long a step takes.
fn dataset(layout: &Layout) -> Result<Dataset> {
    let folder = tempfile::tempdir()?;
    let metadata = Metadata::new("speed", layout.clone(), vec![Metric::VALIDATION_LOSS]);
    let store = Store::create(folder.path().join("runs"), metadata)?;
    let mut rng = rand::rngs::StdRng::seed_from_u64(0);
    for id in 0..RUNS.0 {
        let mut run = store.begin_run(RunInfo::new(id, id))?;
        for checkpoint in 0..RUNS.1 {
            let mut value = || 0.1 * rng.sample::<f32, _>(StandardNormal);
            let flat: Vec<f32> = (0..layout.num_parameters()).map(|_| value()).collect();
            run.record_flat(&flat, &[2.3 / (1 + checkpoint) as f64])?;
        }
        run.finish()?;
    }
    Ok(Dataset::load(&store, &DatasetConfig { held_out: 1, ..Default::default() })?)
}

/// A fresh model, as weights.
fn weights(config: ModelConfig, layout: &Layout) -> Result<Weights> {
    let model = Transformer::new(config, layout)?;
    Ok(Weights {
        header: WeightsHeader {
            config: model.config().clone(),
            layout: layout.clone(),
            normalizer: Normalizer { scale: 1.0 },
            metric: Metric::VALIDATION_LOSS,
            prompt_range: PromptRange { best: 0.1, worst: 2.3 },
            sampler: SamplerConfig::default(),
            calibration: None,
            task: "speed".into(),
            provenance: Value::Null,
        },
        parameters: model.initialize(0),
        frequencies: model.frequencies().to_vec(),
    })
}

/// The sampler of `update_ddpm_1000`, say.
fn sampler(what: &str) -> Result<SamplerConfig> {
    let unknown = || format!("`{what}` cannot be measured");
    let (kind, steps) =
        what.strip_prefix("update_").and_then(|rest| rest.split_once('_')).ok_or_else(unknown)?;
    let kind = match kind {
        "ddpm" => SamplerKind::Ddpm,
        "ddim" => SamplerKind::Ddim { eta: 0.0 },
        _ => return Err(unknown().into()),
    };
    Ok(SamplerConfig { kind, steps: steps.parse()?, ..SamplerConfig::default() })
}

fn measure(name: &str, what: &str, batch: usize, device: &str, seconds: f64) -> Result<Value> {
    let device: Device = device.parse()?;
    let (config, layout) = configuration(name)?;
    let begin = Instant::now();
    let threads = std::thread::available_parallelism()?.get();
    let timing = if what == "train_step" {
        let training = TrainerConfig { batch, ..TrainerConfig::default() };
        let data = Arc::new(dataset(&layout)?);
        let mut trainer = Trainer::on(device, data, config, training, threads)?;
        time(seconds, || Ok(trainer.step().map(drop)?))?
    } else {
        let sampler = Some(sampler(what)?);
        let settings = GptConfig { sampler, threads, device, ..GptConfig::default() };
        let mut gpt = Gpt::new(weights(config, &layout)?, settings)?;
        let start = vec![0.1; batch * layout.num_parameters()];
        let (current, target) = (vec![2.3; batch], vec![0.5; batch]);
        time(seconds, || Ok(gpt.sample(&start, &current, &target).map(drop)?))?
    };
    Ok(json!({
        "config": name, "what": what, "batch": batch, "device": device.to_string(),
        "ms": timing.median_ms, "stretches_ms": timing.stretches_ms,
        "first_ms": timing.first_ms, "all_seconds": begin.elapsed().as_secs_f64(),
    }))
}

struct Timing {
    median_ms: f64,
    stretches_ms: Vec<f64>,
    /// The first time, with everything that is made at first use.
    first_ms: f64,
}

/// Repeats `work` for about `seconds`; times are of one repeat.
fn time(seconds: f64, mut work: impl FnMut() -> Result<()>) -> Result<Timing> {
    let mut once = || -> Result<f64> {
        let clock = Instant::now();
        work()?;
        Ok(clock.elapsed().as_secs_f64())
    };
    let first = once()?;
    let second = once()?;
    let repeats = (STRETCH.min(seconds / FEWEST as f64) / second).ceil().max(1.0);
    let mut stretches_ms = Vec::new();
    let begin = Instant::now();
    while stretches_ms.len() < FEWEST || begin.elapsed().as_secs_f64() < seconds {
        let clock = Instant::now();
        for _ in 0..repeats as usize {
            once()?;
        }
        stretches_ms.push(1e3 * clock.elapsed().as_secs_f64() / repeats);
    }
    let mut sorted = stretches_ms.clone();
    sorted.sort_by(f64::total_cmp);
    Ok(Timing { median_ms: sorted[sorted.len() / 2], stretches_ms, first_ms: 1e3 * first })
}
