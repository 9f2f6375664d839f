//! Compares batches that a device draws with those of the host, and trainings on both.

use std::sync::Arc;

use super::{draw, Batches, OnDevice};
use crate::checkpoints::{Dataset, PairConfig, PairSampler, Part, Precision};
use crate::engine::cuda::{Backend, Check};
use crate::engine::{DeviceError, EngineError, Math};
use crate::gpt::device::{distance, failed, graph, mlp, DeviceTraining};
use crate::gpt::trainer::batch::{noise_rng, Batch};
use crate::gpt::trainer::{Runner, TrainError, Trainer, TrainerConfig};
use crate::gpt::{ModelConfig, NoiseSchedule, Prediction, Transformer, DIFFUSION_STEPS};
use crate::layout::{Layout, LayoutBuilder};
use crate::metric::Metric;

const SEED: u64 = 5;
const SAMPLES: usize = 6;

/// What batches are drawn from, and for which model.
struct Case {
    name: &'static str,
    dataset: Arc<Dataset>,
    model: ModelConfig,
    permute: bool,
}

/// Two groups, one of units that may change their signs, but not their scales.
fn signed() -> Result<Layout, DeviceError> {
    let mut builder = LayoutBuilder::new();
    builder.scope("a", |b| b.linear(3, 6, true));
    builder.scope("norm", |b| b.batch_norm("BatchNorm1D", 6));
    builder.odd("Tanh");
    builder.scope("b", |b| b.linear(6, 5, true));
    builder.unitwise("ReLU");
    builder.scope("c", |b| b.linear(5, 2, true));
    builder.finish().map_err(failed)
}

/// Runs of different lengths, the last held out. Values tell checkpoints and positions apart;
/// some are so small that half precision has no leading digit for them.
fn dataset(layout: &Layout, precision: Precision, metric: Metric) -> Arc<Dataset> {
    let metrics = [3usize, 7, 2, 5]
        .map(|count| (0..count).map(|i| 2.0 - 1.7 * (i as f64 / count as f64).sqrt()).collect());
    let size = layout.num_parameters();
    let checkpoints: usize = metrics.iter().map(Vec::len).sum();
    let value = |i: usize| {
        let value = (i as f32 * 0.618_034).fract() - 0.5 + (i / size) as f32 * 0.01;
        if i.is_multiple_of(17) {
            1e-5 * value
        } else {
            value
        }
    };
    let values: Vec<f32> = (0..checkpoints * size).map(value).collect();
    Dataset::from_values(layout.clone(), metric, precision, &values, &metrics, 1).into()
}

fn cases() -> Result<Vec<Case>, DeviceError> {
    let small = |metric: Metric, prediction| ModelConfig {
        width: 16,
        blocks: 1,
        heads: 2,
        frequencies: 4,
        prediction,
        absolute_conditioning: metric == Metric::VALIDATION_ERROR,
        ..ModelConfig::for_metric(metric.kind)
    };
    let (loss, error) = (Metric::VALIDATION_LOSS, Metric::VALIDATION_ERROR);
    let (start, noise) = (Prediction::Start, Prediction::Noise);
    let (full, half) = (Precision::F32, Precision::F16);
    let case = |name, layout: Layout, precision, metric, prediction, permute: bool| Case {
        name,
        dataset: dataset(&layout, precision, metric),
        model: small(metric, prediction),
        permute,
    };
    Ok(vec![
        // More values than a block draws.
        case("a perceptron in f32", mlp(&[64, 40, 10])?, full, loss, start, true),
        case("several groups in f16", graph()?, half, error, noise, true),
        case("changing signs in f16", signed()?, half, loss, start, true),
        case("changing signs in f32", signed()?, full, error, noise, true),
        case("unmoved units in f16", mlp(&[3, 17, 2])?, half, error, start, false),
        case("unmoved units in f32", graph()?, full, loss, noise, false),
    ])
}

fn engine_error(error: TrainError) -> EngineError {
    match error {
        TrainError::Engine(error) => error,
        other => EngineError::Device(failed(other)),
    }
}

/// Runs everything on devices that `open` opens.
pub(crate) fn checks<B: Backend<Recording: Send> + Send + 'static>(
    open: impl Fn() -> Result<B, DeviceError>,
) -> Result<Vec<Check>, DeviceError> {
    let mut checks = Vec::new();
    for case in cases()? {
        let mut add = |what: &str, error: f64, tolerance: f64| {
            let name = format!("{what} of {}", case.name);
            checks.push(Check { name, error, tolerance });
        };
        batches(&case, open()?, &mut add).map_err(failed)?;
        if case.permute {
            trainings(&case, &open, &mut add).map_err(failed)?;
        }
    }
    Ok(checks)
}

type Add<'a> = dyn FnMut(&str, f64, f64) + 'a;

/// Batches of some steps.
fn batches<B: Backend<Recording: Send> + Send>(
    case: &Case,
    backend: B,
    add: &mut Add<'_>,
) -> Result<(), TrainError> {
    let scale = case.dataset.statistics().scale();
    let config =
        PairConfig { from_start: 0.2, by_metric: 0.5, permute: case.permute, scale, seed: SEED };
    let mut pairs = PairSampler::new(case.dataset.clone(), Part::Train, config)?;
    let schedule = NoiseSchedule::linear(DIFFUSION_STEPS)?;
    let model = Arc::new(Transformer::new(case.model.clone(), case.dataset.layout())?);
    let mut device = DeviceTraining::new(backend, model.clone(), Math::F32, SAMPLES + 1)?;
    let (checkpoints, _) = device.hold(&pairs, noise_rng(SEED, 0).get_seed())?;
    let Some(checkpoints) = checkpoints else {
        add("room for checkpoints", f64::INFINITY, 0.0);
        return Ok(());
    };
    let mut batch = Batch::new(SAMPLES, case.dataset.layout().num_parameters());
    for step in [0, 1, (1 << 40) + 3] {
        draw(&mut device, &checkpoints, (&mut pairs, &schedule), (SEED, step), SAMPLES)?;
        let [start, wanted, noised] = device.drawn(&checkpoints, SAMPLES)?;
        batch.draw((step, step), &mut pairs, &schedule, SEED);
        let prediction = case.model.prediction;
        let target = prediction.target(&batch.pairs.end, &batch.noise);
        let exact = if prediction == Prediction::Start { 0.0 } else { 1e-6 };
        add(&format!("start in step {step}"), distance(&start, &batch.pairs.start), 0.0);
        add(&format!("target in step {step}"), distance(&wanted, target), exact);
        add(&format!("noised in step {step}"), distance(&noised, &batch.noised), 1e-6);
    }
    Ok(())
}

/// Trainings with batches of the device, sent ones, and on the CPU; one is broken off.
fn trainings<B: Backend<Recording: Send> + Send + 'static>(
    case: &Case,
    open: &impl Fn() -> Result<B, DeviceError>,
    add: &mut Add<'_>,
) -> Result<(), EngineError> {
    let config = TrainerConfig { steps: 5, batch: SAMPLES, warmup: 1, ..TrainerConfig::default() };
    let trainer = |sent: bool| {
        let runner = |model: &Arc<Transformer>, from: (&TrainerConfig, &PairSampler)| {
            let mut device = OnDevice::new(open()?, model.clone(), Math::F32, from, 2)?;
            if sent {
                device.batches = Batches::Sent { threads: 2, feeder: None, staged: None };
            }
            Ok(Runner::Device(device.into()))
        };
        Trainer::with_runner(runner, case.dataset.clone(), case.model.clone(), config.clone())
            .map_err(engine_error)
    };
    let (mut drawn, mut sent) = (trainer(false)?, trainer(true)?);
    let mut cpu = Trainer::new(case.dataset.clone(), case.model.clone(), config.clone(), 1)
        .map_err(engine_error)?;
    let mut broken = trainer(false)?;
    for step in 0..config.steps {
        let [a, b, c, d] = [&mut drawn, &mut sent, &mut cpu, &mut broken]
            .map(|trainer| trainer.step().map_err(engine_error));
        let (a, b, c, d) = (a?, b?, c?, d?);
        add(&format!("loss of step {step}, sent,"), (a.loss / b.loss - 1.0).abs(), 1e-5);
        add(&format!("loss of step {step}, CPU,"), (a.loss / c.loss - 1.0).abs(), 1e-4);
        let same = if a == d { 0.0 } else { 1.0 };
        add(&format!("figures of step {step}, resumed,"), same, 0.0);
        broken.synchronize().map_err(engine_error)?;
        let state = broken.state.clone();
        broken = trainer(false)?;
        broken.state = state;
        broken.send_state().map_err(engine_error)?;
    }
    broken.synchronize().map_err(engine_error)?;
    let same = if broken.state == drawn.state { 0.0 } else { 1.0 };
    add("state in the end, resumed,", same, 0.0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cuda::emulator::Emulator;

    #[test]
    fn batches_of_an_emulated_device_are_those_of_the_host() {
        let open = || Emulator::fast().ok_or(DeviceError::NotBuilt);
        let checks = match checks(open) {
            Ok(checks) => checks,
            Err(_) if Emulator::fast().is_none() => return,
            Err(problem) => panic!("{problem}"),
        };
        let wrong: Vec<_> = checks.iter().filter(|check| !check.passes()).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(checks.len() > 100, "{}", checks.len());
    }

    #[test]
    fn threads_that_draw_do_not_depend_on_their_order() {
        let cases = cases().unwrap();
        let signs = cases.iter().find(|case| case.name == "changing signs in f16").unwrap();
        let Some(mut emulator) = Emulator::new() else { return };
        emulator.limit = 1 << 32;
        batches(signs, emulator, &mut |what, error, tolerance| {
            assert!(error <= tolerance, "{what}: {error}");
        })
        .unwrap();
    }
}
