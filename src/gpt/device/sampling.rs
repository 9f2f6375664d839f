//! Samples on a device: all diffusion steps at once, recorded and replayed.
//!
//! Noise is drawn on the host, in the order of the CPU engine, so a seed gives the same sample
//! on both but for rounding. What differs from step to step is part of the recording.

use super::super::embedding::embed;
use super::super::sampler::{NoiseSource, Sampler, Step};
use super::DeviceModel;
use crate::engine::cuda::{arguments, Address, Backend};
use crate::engine::EngineError;

/// Bytes of noise up to which all steps are one recording. With more, batches are so large that
/// launching kernels one by one costs nothing.
const MOST_NOISE: usize = 1 << 30;

/// What samples are made from; see [`Inputs`](crate::gpt::Inputs).
#[derive(Clone, Copy)]
pub(in crate::gpt) struct Conditions<'a> {
    pub start: &'a [f32],
    pub delta: &'a [f32],
    pub target: &'a [f32],
    pub current: &'a [f32],
}

/// The buffers of a batch that is sampled, and its recording.
pub(super) struct Recorded<R> {
    samples: usize,
    sampler: Sampler,
    buffers: Buffers,
    /// None where the noise is too much to be on the device at once.
    recording: Option<R>,
}

/// Memory on the device.
#[derive(Clone, Copy)]
struct Buffers {
    /// Present parameters, `[N, P]`.
    start: Address,
    /// Embedded scalars of every sample, `[N, E]`.
    embedded: Address,
    /// Embedded timesteps of every step, `[steps, 2 F + 1]`.
    timesteps: Address,
    /// `x_t`, `[N, P]`.
    sample: Address,
    /// The prediction of the step before, `[N, P]`.
    previous: Address,
    /// Noise of one step, or of all that need any, one after the other.
    noise: Address,
}

impl<B: Backend> DeviceModel<B> {
    /// One sample for each row; see [`Sampler::sample`].
    pub fn sample(
        &mut self,
        sampler: &Sampler,
        noise: &mut dyn NoiseSource<f32>,
        conditions: &Conditions<'_>,
    ) -> Result<Vec<f32>, EngineError> {
        let (samples, length) = (conditions.delta.len(), conditions.start.len());
        let timestep = vec![0.0; samples];
        let inputs = super::Inputs {
            noised: conditions.start,
            start: conditions.start,
            timestep: &timestep,
            delta: conditions.delta,
            target: conditions.target,
            current: conditions.current,
        };
        inputs.check(&self.model, self.capacity)?;
        let embedded = self.embed(&inputs);
        let temperature = sampler.temperature as f32;
        let mut values = vec![0f32; length];
        let mut draw = |values: &mut [f32]| {
            noise.fill(values);
            values.iter_mut().for_each(|value| *value *= temperature);
        };
        draw(&mut values);

        let same = |own: &Recorded<_>| own.samples == samples && own.sampler == *sampler;
        if !self.recorded.as_ref().is_some_and(same) {
            self.record(samples, sampler)?;
        }
        let Some(own) = &self.recorded else { return Ok(values) };
        let buffers = own.buffers;
        let backend = &mut self.ops.backend;
        backend.upload(buffers.start, bytemuck::cast_slice(conditions.start))?;
        backend.upload(buffers.embedded, bytemuck::cast_slice(&embedded))?;
        backend.upload(buffers.sample, bytemuck::cast_slice(&values))?;
        backend.zero(buffers.previous, 4 * length)?;
        let random = sampler.steps.iter().filter(|step| step.noise != 0.0).count();
        match &own.recording {
            Some(recording) => {
                let mut all = vec![0f32; random * length];
                all.chunks_exact_mut(length.max(1)).for_each(&mut draw);
                backend.upload(buffers.noise, bytemuck::cast_slice(&all))?;
                backend.replay(recording)?;
            }
            None => {
                for (k, step) in sampler.steps.iter().enumerate() {
                    if step.noise != 0.0 {
                        draw(&mut values);
                        let bytes = bytemuck::cast_slice(&values);
                        self.ops.backend.upload(buffers.noise, bytes)?;
                    }
                    self.sampler_step(&buffers, sampler, k, buffers.noise, samples);
                }
            }
        }
        self.ops.check()?;
        self.read(buffers.sample, &mut values)?;
        Ok(values)
    }

    /// Makes room for batches of so many samples, and records what is done with them.
    fn record(&mut self, samples: usize, sampler: &Sampler) -> Result<(), EngineError> {
        if let Some(Recorded { buffers, .. }) = self.recorded.take() {
            let Buffers { start, embedded, timesteps, sample, previous, noise } = buffers;
            for at in [start, embedded, timesteps, sample, previous, noise] {
                self.ops.backend.free(at)?;
            }
        }
        let length = samples * self.model.layout().num_parameters();
        let embedding = samples * self.embedding_len();
        let random = sampler.steps.iter().filter(|step| step.noise != 0.0).count();
        let whole = 4 * random * length <= MOST_NOISE;
        let timesteps = self.timesteps(&sampler.steps);
        let mut room = |values: usize| self.ops.backend.allocate(4 * values.max(1));
        let buffers = Buffers {
            start: room(length)?,
            embedded: room(embedding)?,
            timesteps: room(timesteps.len())?,
            sample: room(length)?,
            previous: room(length)?,
            noise: room(if whole { random * length } else { length })?,
        };
        self.ops.backend.upload(buffers.timesteps, bytemuck::cast_slice(&timesteps))?;
        // Once without recording, so that tables and scratch memory are there.
        self.sampler_step(&buffers, sampler, 0, buffers.noise, samples);
        self.ops.check()?;
        let recording = match whole {
            false => None,
            true => {
                self.ops.backend.begin_recording()?;
                let mut noise = buffers.noise;
                for (k, step) in sampler.steps.iter().enumerate() {
                    self.sampler_step(&buffers, sampler, k, noise, samples);
                    if step.noise != 0.0 {
                        noise += 4 * length as u64;
                    }
                }
                // The recording is ended whatever happened, but what happened first is told.
                let recording = self.ops.backend.end_recording();
                self.ops.check()?;
                Some(recording?)
            }
        };
        let sampler = sampler.clone();
        self.recorded = Some(Recorded { samples, sampler, buffers, recording });
        Ok(())
    }

    /// Embedded timesteps of all steps.
    fn timesteps(&self, steps: &[Step]) -> Vec<f32> {
        let frequencies = self.model.frequencies();
        let scale = self.model.config().timestep_scale as f32;
        let mut embedded = vec![0.0; steps.len() * (2 * frequencies.len() + 1)];
        let rows = embedded.chunks_exact_mut(2 * frequencies.len() + 1);
        rows.zip(steps)
            .for_each(|(row, step)| embed(frequencies, step.timestep as f32 * scale, row));
        embedded
    }

    /// One step from `x_t` to `x_{t-1}`.
    fn sampler_step(
        &mut self,
        buffers: &Buffers,
        sampler: &Sampler,
        k: usize,
        noise: Address,
        samples: usize,
    ) {
        let step = &sampler.steps[k];
        let (width, parameters) = (self.arena.input.width, self.model.layout().num_parameters());
        let embedding = 2 * self.model.frequencies().len() + 1;
        let arguments = arguments![
            self.ops.at(self.arena.input),
            buffers.sample,
            buffers.start,
            buffers.embedded,
            0u64,
            self.model.signal_scale(step.timestep as f64) as f32,
            buffers.timesteps + (4 * k * embedding) as u64,
            embedding as i32,
            parameters as i64,
            self.embedding_len() as i64,
            width as i64
        ];
        self.ops.by_row("assemble", samples, width, arguments);
        self.model.forward(&self.arena, samples, &mut self.ops);
        let (low, high) = sampler.clip.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
        let count = samples * parameters;
        let arguments = arguments![
            buffers.sample,
            buffers.previous,
            self.ops.at(self.arena.output),
            noise,
            step.from_output.0 as f32,
            step.from_output.1 as f32,
            low as f32,
            high as f32,
            step.start as f32,
            step.previous_start as f32,
            step.noised as f32,
            step.noise as f32,
            count as i64
        ];
        self.ops.by_value("sampler_step", count, arguments);
    }
}
