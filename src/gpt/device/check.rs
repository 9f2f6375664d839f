//! Compares whole models on a device with the CPU engine: output, loss and gradient, training,
//! samples.

mod samples;

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{DeviceModel, DeviceTraining, Numbers};
use crate::engine::cuda::{Backend, Check};
use crate::engine::{adamw_ema, global_norm, AdamW, DeviceError, EngineError, Math, Update};
use crate::gpt::{
    clip_scale, Conditioning, Executor, Inputs, ModelConfig, Penalty, Target, Tokenization,
    Transformer,
};
use crate::layout::{Layout, LayoutBuilder};

/// Samples of a batch: no multiple of a tile.
const SAMPLES: usize = 5;

/// A small model and a batch for it.
struct Case {
    name: &'static str,
    model: Arc<Transformer>,
    parameters: Vec<f32>,
    noised: Vec<f32>,
    start: Vec<f32>,
    wanted: Vec<f32>,
    entry_weights: Vec<f32>,
    sample_weights: Vec<f32>,
    timestep: Vec<f32>,
    metrics: [Vec<f32>; 3],
}

pub(in crate::gpt) fn failed(problem: impl ToString) -> DeviceError {
    DeviceError::Call { call: "the comparison", problem: problem.to_string() }
}

fn device_error(error: EngineError) -> DeviceError {
    match error {
        EngineError::Device(error) => error,
        other => failed(other),
    }
}

pub(in crate::gpt) fn mlp(sizes: &[usize]) -> Result<Layout, DeviceError> {
    let mut builder = LayoutBuilder::new();
    for (i, pair) in sizes.windows(2).enumerate() {
        builder.scope(&format!("fc{i}"), |b| b.linear(pair[0], pair[1], true));
    }
    builder.finish().map_err(failed)
}

/// With convolutions, blocks of columns, and units that have nothing but edges.
pub(in crate::gpt) fn graph() -> Result<Layout, DeviceError> {
    let mut builder = LayoutBuilder::new();
    builder.scope("a", |b| b.conv2d("Conv2D<2>", 1, 3, 2, 1, true));
    builder.flatten("Flatten2D");
    builder.scope("c", |b| b.linear(3 * 2, 4, false));
    builder.scope("d", |b| b.linear(4, 2, false));
    builder.scope("e", |b| b.linear(2, 2, true));
    builder.finish().map_err(failed)
}

impl Case {
    fn new(name: &'static str, config: ModelConfig, layout: &Layout) -> Result<Self, DeviceError> {
        let model = Arc::new(Transformer::new(config, layout).map_err(failed)?);
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut values = |count: usize, scale: f32| -> Vec<f32> {
            (0..count).map(|_| rng.gen_range(-scale..scale)).collect()
        };
        // Nothing is left at zero, and every part matters.
        let mut parameters = values(model.num_parameters(), 0.3);
        for spec in model.parameters() {
            if spec.name.contains("ln") && spec.name.ends_with("weight") {
                parameters[spec.range()].iter_mut().for_each(|value| *value += 1.0);
            }
        }
        let size = layout.num_parameters();
        Ok(Self {
            name,
            parameters,
            noised: values(SAMPLES * size, 1.0),
            start: values(SAMPLES * size, 1.0),
            wanted: values(SAMPLES * size, 1.0),
            entry_weights: values(size, 0.5).iter().map(|value| 1.0 + value).collect(),
            sample_weights: values(SAMPLES, 0.5).iter().map(|value| 1.0 + value).collect(),
            timestep: (0..SAMPLES).map(|i| (i * 199) as f32).collect(),
            metrics: [1.0, 2.0, 2.0].map(|scale| values(SAMPLES, scale)),
            model,
        })
    }

    fn inputs(&self) -> Inputs<'_, f32> {
        let [delta, target, current] = &self.metrics;
        Inputs {
            noised: &self.noised,
            start: &self.start,
            timestep: &self.timestep,
            delta,
            target,
            current,
        }
    }
}

/// Models with every kind of token, edge and conditioning; with `wide`, also one of the size
/// that models have in use.
fn cases(wide: bool) -> Result<Vec<Case>, DeviceError> {
    let small = |base: ModelConfig| ModelConfig {
        width: 24,
        blocks: 2,
        heads: 3,
        frequencies: 3,
        max_frequency_log2: 3.0,
        ..base
    };
    let units = small(ModelConfig::default());
    let deep = ModelConfig { encoder_depth: 2, decoder_depth: 3, ..units.clone() };
    let chunks = small(ModelConfig::reference(Tokenization::Chunk { length: 7 }));
    let chunks = ModelConfig {
        encoder_depth: 2,
        absolute_conditioning: true,
        conditioning: Conditioning::OwnTokens,
        ..chunks
    };
    let mut cases = vec![
        Case::new("units", units, &mlp(&[3, 17, 2])?)?,
        Case::new("edges", deep, &graph()?)?,
        Case::new("chunks", chunks, &mlp(&[5, 7, 3])?)?,
    ];
    if wide {
        let config = ModelConfig { width: 256, blocks: 3, heads: 8, ..ModelConfig::default() };
        let mut case = Case::new("a wide model", config, &mlp(&[64, 40, 10])?)?;
        // The deviation that parameters begin with.
        for spec in case.model.parameters() {
            if spec.decay {
                case.parameters[spec.range()].iter_mut().for_each(|value| *value *= 0.1);
            }
        }
        cases.push(case);
    }
    Ok(cases)
}

/// Length of the difference as a share of the length of what is expected; infinite where
/// something is not a number.
pub(in crate::gpt) fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let pairs = found.iter().zip(expected);
    let error = squares(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let scale = squares(&mut expected.iter().map(|&v| f64::from(v)));
    match (error / scale).sqrt() {
        value if value.is_nan() => f64::INFINITY,
        value => value,
    }
}

fn difference(after: &[f32], before: &[f32]) -> Vec<f32> {
    after.iter().zip(before).map(|(after, before)| after - before).collect()
}

/// The squared error once more, as a penalty.
#[derive(Debug)]
struct Pull<'a> {
    wanted: &'a [f32],
    weight: f32,
}

impl Penalty<f32> for Pull<'_> {
    fn add(&self, sample: usize, output: &[f32], gradient: &mut [f32]) {
        let wanted = &self.wanted[sample * output.len()..];
        for ((sum, output), wanted) in gradient.iter_mut().zip(output).zip(wanted) {
            *sum += self.weight * (output - wanted);
        }
    }
}

/// Runs everything on devices that `open` opens.
pub(crate) fn checks<B: Backend>(
    open: impl Fn() -> Result<B, DeviceError>,
    math: Math,
    wide: bool,
) -> Result<Vec<Check>, DeviceError> {
    let mut checks = Vec::new();
    let cases = cases(wide)?;
    for case in &cases {
        let mut add = adder(&mut checks, case, math);
        passes(case, &open, math, &mut add).map_err(device_error)?;
        training(case, &open, math, &mut add).map_err(device_error)?;
        samples::rules(case, &open, math, &mut add).map_err(device_error)?;
    }
    let tiny = samples::tiny()?;
    let large = cases.last().filter(|_| wide).map(|case| (case, &[65][..]));
    for (case, rows) in [(&tiny, &[1, 64, 65, 200][..])].into_iter().chain(large) {
        let mut add = adder(&mut checks, case, math);
        samples::many(case, rows, &open, math, &mut add).map_err(device_error)?;
    }
    Ok(checks)
}

fn adder<'a>(
    checks: &'a mut Vec<Check>,
    case: &'a Case,
    math: Math,
) -> impl FnMut(&str, f64, f64) + 'a {
    move |what, error, tolerance| {
        let name = format!("{what} of {}, {}", case.name, math.name());
        checks.push(Check { name, error, tolerance });
    }
}

/// How far outputs may be apart.
fn tolerance(math: Math) -> f64 {
    match math {
        Math::F32 => 2e-5,
        Math::Tf32 => 5e-3,
        Math::Bf16 => 3e-2,
    }
}

type Add<'a> = dyn FnMut(&str, f64, f64) + 'a;

/// Output, loss and gradient.
fn passes<B: Backend>(
    case: &Case,
    open: &impl Fn() -> Result<B, DeviceError>,
    math: Math,
    add: &mut Add<'_>,
) -> Result<(), EngineError> {
    let (model, inputs) = (case.model.clone(), case.inputs());
    let mut cpu = Executor::for_training(model.clone(), SAMPLES, 1)?;
    // Room for more than there is, so that slots are longer than what is in them.
    let mut device = DeviceModel::new(open()?, model.clone(), math, SAMPLES + 3, true)?;
    device.set_parameters(&case.parameters)?;
    let [mut expected, mut found] = [vec![0.0; case.start.len()], vec![0.0; case.start.len()]];
    cpu.predict(&case.parameters, &inputs, &mut expected)?;
    device.predict(&inputs, &mut found)?;
    // The starting parameters are part of the output and none of the network's work.
    let [own, other] = [&found, &expected].map(|output| difference(output, &case.start));
    add("output", distance(&own, &other), tolerance(math));
    let mut inference = DeviceModel::new(open()?, model.clone(), math, SAMPLES, false)?;
    inference.set_parameters(&case.parameters)?;
    let mut again = vec![0.0; case.start.len()];
    inference.predict(&inputs, &mut again)?;
    // The same kernels on the same rows: blocks only share their memory.
    add("output at inference", distance(&again, &found), 1e-6);

    let pull = Pull { wanted: &case.wanted, weight: 0.01 };
    let whole = Target {
        values: &case.wanted,
        entry_weights: Some(&case.entry_weights),
        sample_weights: Some(&case.sample_weights),
        penalty: Some(&pull),
    };
    for (name, target) in [("gradient", Target::new(&case.wanted)), ("weighted gradient", whole)] {
        let [mut expected, mut found] = [(); 2].map(|()| vec![f32::NAN; model.num_parameters()]);
        let on_cpu = cpu.loss_and_gradient(&case.parameters, &inputs, &target, &mut expected)?;
        let on_device = device.loss_and_gradient(&inputs, &target, &mut found)?;
        add(&format!("loss with {name}"), (on_device / on_cpu - 1.0).abs(), tolerance(math));
        add(name, distance(&found, &expected), 2.0 * tolerance(math));
        let mut again = vec![f32::NAN; found.len()];
        device.loss_and_gradient(&inputs, &target, &mut again)?;
        add(&format!("{name} once more"), distance(&again, &found), 0.0);
    }
    Ok(())
}

/// Parameters, average and figures after a few steps.
fn training<B: Backend>(
    case: &Case,
    open: &impl Fn() -> Result<B, DeviceError>,
    math: Math,
    add: &mut Add<'_>,
) -> Result<(), EngineError> {
    let model = case.model.clone();
    let (inputs, target) = (case.inputs(), Target::new(&case.wanted));
    let count = model.num_parameters();
    let mut cpu = Executor::for_training(model.clone(), SAMPLES, 1)?;
    let mut device = DeviceTraining::new(open()?, model.clone(), math, SAMPLES)?;
    let decayed = model.decayed();
    let zeros = vec![0f32; count];
    let mut state = [case.parameters.clone(), zeros.clone(), zeros, case.parameters.clone()];
    device.set_state(state.each_ref().map(Vec::as_slice))?;
    let mut gradient = vec![0f32; count];
    // The first gradient is clipped, the others are not.
    let clips = [Some(0.01), None, Some(1e6), None];
    for (i, gradient_clip) in clips.into_iter().enumerate() {
        let settings = AdamW { learning_rate: 1e-3, epsilon: 1e-3, ..AdamW::default() };
        let numbers = Numbers { step: i as u64 + 1, settings, gradient_clip, average_decay: 0.8 };
        device.stage(&inputs, &target)?;
        device.step(&target, &numbers)?;
        let figures = device.figures()?;

        let [parameters, first, second, average] = &mut state;
        let loss = cpu.loss_and_gradient(parameters, &inputs, &target, &mut gradient)?;
        let norm = global_norm(&gradient);
        let update = Update {
            step: numbers.step,
            gradient: &gradient,
            gradient_scale: gradient_clip.map_or(1.0, |limit| clip_scale(norm, limit)),
            decayed: &decayed,
            parameters,
            first,
            second,
            average,
            average_decay: numbers.average_decay,
        };
        adamw_ema(cpu.threads(), &settings, update);
        let errors = [figures.loss / loss - 1.0, figures.gradient_norm / norm - 1.0];
        add(&format!("loss of step {i}"), errors[0].abs(), 2.0 * tolerance(math));
        add(&format!("norm of step {i}"), errors[1].abs(), 2.0 * tolerance(math));
    }
    let mut found = [(); 4].map(|()| vec![0f32; count]);
    device.state(found.each_mut().map(Vec::as_mut_slice))?;
    let names = ["parameters", "first moment", "second moment", "average"];
    for (i, name) in names.into_iter().enumerate() {
        // What training changed, not what was there before.
        let before = if i % 3 == 0 { &case.parameters } else { &vec![0.0; count] };
        let [own, other] = [&found[i], &state[i]].map(|values| difference(values, before));
        add(&format!("{name} after training"), distance(&own, &other), 6.0 * tolerance(math));
    }
    let [mut expected, mut output] = [(); 2].map(|()| vec![0.0; case.start.len()]);
    cpu.predict(&state[3], &inputs, &mut expected)?;
    device.predict_with_average(&inputs, &mut output)?;
    let [own, other] = [&output, &expected].map(|output| difference(output, &case.start));
    add("output of the average", distance(&own, &other), 2.0 * tolerance(math));

    // A loss that is no number ends the training and changes nothing.
    let broken = vec![f32::NAN; case.wanted.len()];
    let settings = AdamW::default();
    let numbers = Numbers { step: 5, settings, gradient_clip: None, average_decay: 0.8 };
    for values in [&broken, &case.wanted] {
        let target = Target::new(values);
        device.stage(&inputs, &target)?;
        device.step(&target, &numbers)?;
        let ended = if device.figures()?.are_finite() { 1.0 } else { 0.0 };
        add("end by a loss that is no number", ended, 0.0);
    }
    let mut after = [(); 4].map(|()| vec![0f32; count]);
    device.state(after.each_mut().map(Vec::as_mut_slice))?;
    let kept = if after == found { 0.0 } else { 1.0 };
    add("state after that", kept, 0.0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cuda::emulator::Emulator;
    use crate::engine::cuda::{self_test, Gpu};

    fn assert_pass(checks: &[Check]) {
        let share = |check: &Check| check.error / check.tolerance.max(f64::MIN_POSITIVE);
        let nearest = checks.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
        eprintln!("{} comparisons, nearest to its tolerance: {nearest:?}", checks.len());
        assert!(!checks.is_empty());
        let wrong: Vec<_> = checks.iter().filter(|check| !check.passes()).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn models_on_an_emulated_device_equal_the_cpu_engine() {
        for math in [Math::F32, Math::Bf16] {
            // TF32 is what only a GPU has.
            let open = || Emulator::fast().ok_or(DeviceError::NotBuilt);
            match checks(open, math, false) {
                Ok(checks) => assert_pass(&checks),
                Err(DeviceError::NotBuilt) => {}
                Err(problem) => panic!("{problem}"),
            }
        }
    }

    #[test]
    #[ignore = "takes minutes"]
    fn a_wide_model_on_an_emulated_device_equals_the_cpu_engine() {
        for math in [Math::F32, Math::Bf16] {
            let open = || Emulator::fast().ok_or(DeviceError::NotBuilt);
            assert_pass(&checks(open, math, true).unwrap());
        }
    }

    #[test]
    fn a_gpu_equals_the_cpu_engine() {
        match Gpu::open(0) {
            Ok(_) => assert_pass(&self_test(0).unwrap()),
            Err(problem) => eprintln!("skipped, no GPU was compared: {problem}"),
        }
    }

    #[test]
    fn too_little_memory_is_an_error() {
        let Some(emulator) = Emulator::fast() else { return };
        let layout = mlp(&[3, 17, 2]).unwrap();
        let model = Arc::new(Transformer::new(ModelConfig::default(), &layout).unwrap());
        let error = DeviceModel::new(emulator, model, Math::F32, 1 << 20, true).err().unwrap();
        assert!(matches!(error, EngineError::Device(DeviceError::Memory { .. })), "{error}");
    }
}
