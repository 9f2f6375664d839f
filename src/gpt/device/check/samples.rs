//! Compares samples from a device with those of the CPU engine.

use super::{difference, distance, failed, mlp, tolerance, Add, Case, SAMPLES};
use crate::engine::cuda::Backend;
use crate::engine::{DeviceError, EngineError, Math};
use crate::gpt::device::{Conditions, DeviceModel};
use crate::gpt::sampler::{Noise, STREAM_ROWS};
use crate::gpt::{
    Executor, Inputs, ModelConfig, NoiseSource, Prediction, Sampler, SamplerConfig, SamplerKind,
    SeededNoise, Spacing, DIFFUSION_STEPS,
};

const SEED: u64 = 3;

/// Rows to sample from, as many as are asked for: those of a case, again and again.
struct Rows {
    start: Vec<f32>,
    metrics: [Vec<f32>; 3],
}

impl Rows {
    fn new(case: &Case, rows: usize) -> Self {
        let size = case.model.layout().num_parameters();
        let cycle =
            |values: &[f32], count| values.iter().copied().cycle().take(count).collect::<Vec<_>>();
        let metrics = case.metrics.each_ref().map(|metric| cycle(metric, rows));
        Self { start: cycle(&case.start, rows * size), metrics }
    }

    /// Conditions of the rows from this one on.
    fn from(&self, row: usize) -> Conditions<'_> {
        let size = self.start.len() / self.metrics[0].len();
        let [delta, target, current] = self.metrics.each_ref().map(|metric| &metric[row..]);
        Conditions { start: &self.start[row * size..], delta, target, current }
    }

    /// What the CPU engine makes of them, stream by stream.
    fn on_cpu(
        &self,
        case: &Case,
        parameters: &[f32],
        sampler: &Sampler,
        stream: u64,
    ) -> Result<Vec<f32>, EngineError> {
        let all = self.from(0);
        let (rows, size) = (all.delta.len(), case.model.layout().num_parameters());
        let mut cpu = Executor::for_inference(case.model.clone(), STREAM_ROWS, 1)?;
        let mut samples = Vec::new();
        for (i, first) in (0..rows).step_by(STREAM_ROWS).enumerate() {
            let own = first..rows.min(first + STREAM_ROWS);
            let start = &all.start[own.start * size..own.end * size];
            let timestep = &mut vec![0.0; own.len()];
            let predict = &mut |noised: &[f32], t: f32, output: &mut [f32]| {
                timestep.fill(t);
                let inputs = Inputs {
                    noised,
                    start,
                    timestep,
                    delta: &all.delta[own.clone()],
                    target: &all.target[own.clone()],
                    current: &all.current[own.clone()],
                };
                cpu.predict(parameters, &inputs, output)
            };
            let noise = &mut SeededNoise::new(SEED, stream.wrapping_add(i as u64));
            samples.extend(sampler.sample::<f32, EngineError>(noise, start.len(), predict)?);
        }
        Ok(samples)
    }
}

/// A model that takes little time for many rows.
pub(super) fn tiny() -> Result<Case, DeviceError> {
    let config = ModelConfig { width: 8, blocks: 1, heads: 2, ..ModelConfig::default() };
    let config = ModelConfig { frequencies: 3, max_frequency_log2: 3.0, ..config };
    Case::new("a tiny model", config, &mlp(&[2, 3, 1])?)
}

/// Smaller, so that a step does not blow up what the last one has made.
fn parameters(case: &Case) -> Vec<f32> {
    case.parameters.iter().map(|value| 0.5 * value).collect()
}

fn sampler(
    kind: SamplerKind,
    clip: Option<(f64, f64)>,
    prediction: Prediction,
) -> Result<Sampler, EngineError> {
    let spacing = Spacing::Trailing;
    let config = SamplerConfig { kind, steps: 4, spacing, clip, temperature: 0.7 };
    let sampler = Sampler::new(&config, DIFFUSION_STEPS, prediction);
    sampler.map_err(|error| EngineError::Device(failed(error)))
}

/// Samples by every rule; twice of as many rows, so that recordings are both made and used.
pub(super) fn rules<B: Backend>(
    case: &Case,
    open: &impl Fn() -> Result<B, DeviceError>,
    math: Math,
    add: &mut Add<'_>,
) -> Result<(), EngineError> {
    let parameters = parameters(case);
    let mut device = DeviceModel::new(open()?, case.model.clone(), math, 1, false)?;
    device.set_parameters(&parameters)?;
    let clipped = Some((-0.9, 1.1));
    for (kind, clip, prediction) in [
        (SamplerKind::Ddpm, None, Prediction::Start),
        (SamplerKind::Ddim { eta: 0.0 }, clipped, Prediction::Start),
        (SamplerKind::Ddim { eta: 0.5 }, clipped, Prediction::Noise),
        (SamplerKind::DpmSolverPlusPlus, None, Prediction::Start),
    ] {
        let sampler = sampler(kind, clip, prediction)?;
        for (rows, stream) in [(SAMPLES, u64::MAX), (2, 7), (2, 8)] {
            let rows = Rows::new(case, rows);
            let expected = rows.on_cpu(case, &parameters, &sampler, stream)?;
            let noise = Noise::Seeded { seed: SEED, stream };
            let found = device.sample(&sampler, noise, &rows.from(0))?;
            let name = format!("{} samples by {kind:?}", rows.metrics[0].len());
            add(&name, distance(&found, &expected), 3.0 * tolerance(math));
        }
    }
    Ok(())
}

/// Samples of one row, of a stream's, and of many streams'.
pub(super) fn many<B: Backend>(
    case: &Case,
    open: &impl Fn() -> Result<B, DeviceError>,
    math: Math,
    add: &mut Add<'_>,
) -> Result<(), EngineError> {
    let parameters = parameters(case);
    let size = case.model.layout().num_parameters();
    let mut device = DeviceModel::new(open()?, case.model.clone(), math, 1, false)?;
    device.set_parameters(&parameters)?;
    for kind in [SamplerKind::Ddpm, SamplerKind::Ddim { eta: 0.0 }] {
        let sampler = sampler(kind, None, Prediction::Start)?;
        for rows in [1, STREAM_ROWS, STREAM_ROWS + 1, 200] {
            let own = Rows::new(case, rows);
            let expected = own.on_cpu(case, &parameters, &sampler, 5)?;
            let noise = Noise::Seeded { seed: SEED, stream: 5 };
            let found = device.sample(&sampler, noise, &own.from(0))?;
            let name = format!("{rows} samples by {kind:?}");
            add(&name, distance(&found, &expected), 3.0 * tolerance(math));
            // The same rows by themselves.
            if rows > STREAM_ROWS {
                let noise = Noise::Seeded { seed: SEED, stream: 6 };
                let rest = device.sample(&sampler, noise, &own.from(STREAM_ROWS))?;
                let error = distance(&rest, &found[STREAM_ROWS * size..]);
                add(&format!("the last of {name}"), error, 3.0 * tolerance(math));
            }
        }
        if sampler.is_deterministic() {
            let own = Rows::new(case, 2);
            let mut values = vec![0f32; 2 * size];
            SeededNoise::new(SEED, 5).fill(&mut values);
            let given = device.sample(&sampler, Noise::Given(&values), &own.from(0))?;
            let seeded = Noise::Seeded { seed: SEED, stream: 5 };
            let seeded = device.sample(&sampler, seeded, &own.from(0))?;
            // What a row starts from is part of the sample.
            let [given, seeded] = [&given, &seeded].map(|all| difference(all, &own.start));
            add("samples from given noise", distance(&given, &seeded), tolerance(math));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cuda::emulator::Emulator;

    #[test]
    fn too_little_memory_for_all_rows_gives_the_same_samples() {
        let case = &tiny().unwrap();
        let rows = Rows::new(case, 200);
        let sampler = sampler(SamplerKind::Ddpm, None, Prediction::Start).unwrap();
        let noise = Noise::Seeded { seed: SEED, stream: 0 };
        let sample = |kilobytes: usize| {
            let mut emulator = Emulator::fast()?;
            emulator.limit = kilobytes << 10;
            let model = case.model.clone();
            let mut device = DeviceModel::new(emulator, model, Math::F32, 1, false).unwrap();
            device.set_parameters(&parameters(case)).unwrap();
            let samples = device.sample(&sampler, noise, &rows.from(0));
            Some((samples, device.most_rows))
        };
        let Some((expected, most)) = sample(100_000) else { return };
        assert_eq!(most, usize::MAX);
        let expected = expected.unwrap();
        // What the model needs, and then what 64, 128 and all rows do.
        for (kilobytes, rows) in [(100, 64), (400, 64), (600, 128), (2000, usize::MAX)] {
            let (samples, most) = sample(kilobytes).unwrap();
            assert_eq!(most, rows, "{kilobytes} KiB");
            match samples {
                Ok(samples) => assert!(distance(&samples, &expected) < 1e-6, "{most} rows"),
                Err(problem) => {
                    assert!(kilobytes == 100 && problem.to_string().contains("memory"), "{problem}")
                }
            }
        }
    }
}
