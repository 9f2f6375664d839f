//! Samples on a device: one diffusion step is recorded, and replayed for each.
//!
//! A seed gives the samples of the CPU engine but for rounding: the device draws the same noise,
//! see [`NoiseStreams`]. All that differs from step to step are numbers in a table on the device,
//! and a counter there says which row is next. So a recording is that of one step, about a hundred
//! kernels, which serves every step and every seed; nothing is copied or waited for in between.
//! All steps as one recording would have to be made and kept for each number of steps, over a
//! hundred thousand kernels for 1000 of them, to save one launch in a hundred: the host is far
//! ahead of the device as it is.
//!
//! All rows that are asked for are sampled at a time. Where there is no memory for them, half as
//! many are tried, in whole streams of noise, and so on down to [`STREAM_ROWS`]; later calls begin
//! with what was found.

use super::super::embedding::embed;
use super::super::sampler::{Noise, Sampler, Step, STREAM_ROWS};
use super::{plan, DeviceModel, Inputs};
use crate::engine::cuda::{arguments, parts, staged_len, Address, Backend, Cuda, NoiseStreams};
use crate::engine::{DeviceError, EngineError};

/// Numbers that a row of the table of steps begins with; as in `kernels/sampler.cu`.
const NUMBERS: usize = 7;

/// What samples are made from; see [`Inputs`].
#[derive(Clone, Copy)]
pub(in crate::gpt) struct Conditions<'a> {
    pub start: &'a [f32],
    pub delta: &'a [f32],
    pub target: &'a [f32],
    pub current: &'a [f32],
}

/// The buffers of rows that are sampled, and the recording of a step.
pub(super) struct Recorded<R> {
    rows: usize,
    sampler: Sampler,
    buffers: Buffers,
    recording: Option<R>,
}

/// Memory on the device.
#[derive(Clone, Copy)]
struct Buffers {
    /// What the others are parts of.
    memory: Address,
    /// Present parameters, `[N, P]`.
    start: Address,
    /// Embedded scalars of every row, `[N, E]`.
    embedded: Address,
    /// Numbers of every step, `[1 + steps, NUMBERS + 2 F + 1]`; the first only draws noise.
    table: Address,
    /// Values in a row of it.
    width: usize,
    /// The row of the table that is being taken.
    step: Address,
    /// The row that comes next.
    turn: Address,
    /// `x_t`, `[N, P]`.
    sample: Address,
    /// The prediction of the step before, `[N, P]`.
    previous: Address,
    /// Noise of a step, `[N, P]`, if any draws some.
    fresh: Address,
    noise: NoiseStreams,
}

impl<B: Backend> DeviceModel<B> {
    /// One sample for each row; see [`Sampler::sample`].
    pub fn sample(
        &mut self,
        sampler: &Sampler,
        noise: Noise<'_>,
        conditions: &Conditions<'_>,
    ) -> Result<Vec<f32>, EngineError> {
        let Conditions { start, delta, target, current } = *conditions;
        let (rows, size) = (delta.len(), self.model.layout().num_parameters());
        EngineError::check("start", start.len(), rows * size)?;
        EngineError::check("target", target.len(), rows)?;
        EngineError::check("current", current.len(), rows)?;
        if let Noise::Given(values) = noise {
            EngineError::check("noise", values.len(), rows * size)?;
        }
        let mut samples = vec![0f32; rows * size];
        let mut first = 0;
        while first < rows {
            let end = first + self.prepare(rows - first, sampler)?;
            let (own, values) = (first..end, first * size..end * size);
            let conditions = Conditions {
                start: &start[values.clone()],
                delta: &delta[own.clone()],
                target: &target[own.clone()],
                current: &current[own],
            };
            let noise = match noise {
                Noise::Seeded { seed, stream } => {
                    // Parts are of whole streams, but the last.
                    let stream = stream.wrapping_add((first / STREAM_ROWS) as u64);
                    Noise::Seeded { seed, stream }
                }
                Noise::Given(all) => Noise::Given(&all[values.clone()]),
            };
            self.sample_part(noise, &conditions, &mut samples[values])?;
            first = end;
        }
        Ok(samples)
    }

    /// Samples rows that there is a recording for.
    fn sample_part(
        &mut self,
        noise: Noise<'_>,
        conditions: &Conditions<'_>,
        samples: &mut [f32],
    ) -> Result<(), EngineError> {
        let inputs = Inputs {
            noised: conditions.start,
            start: conditions.start,
            timestep: &vec![0.0; conditions.delta.len()],
            delta: conditions.delta,
            target: conditions.target,
            current: conditions.current,
        };
        let embedded = self.embed(&inputs);
        let Some(Recorded { buffers, sampler, recording: Some(recording), .. }) = &self.recorded
        else {
            return Ok(());
        };
        let (ops, temperature) = (&mut self.ops, sampler.temperature as f32);
        let backend = &mut ops.backend;
        backend.upload(buffers.start, bytemuck::cast_slice(conditions.start))?;
        backend.upload(buffers.embedded, bytemuck::cast_slice(&embedded))?;
        backend.zero(buffers.previous, 4 * samples.len())?;
        match noise {
            Noise::Seeded { seed, stream } => {
                backend.upload(buffers.turn, bytemuck::bytes_of(&0u32))?;
                buffers.noise.seed(backend, seed, stream)?;
                buffers.take_step(ops);
                buffers.noise.draw(ops, buffers.sample, buffers.step, temperature, samples.len());
                ops.check()?;
            }
            Noise::Given(values) => {
                backend.upload(buffers.turn, bytemuck::bytes_of(&1u32))?;
                let values: Vec<f32> = values.iter().map(|value| value * temperature).collect();
                backend.upload(buffers.sample, bytemuck::cast_slice(&values))?;
            }
        }
        for _ in &sampler.steps {
            self.ops.backend.replay(recording)?;
        }
        let sample = buffers.sample;
        Ok(self.read(sample, samples)?)
    }

    /// Makes a recording for as many of these rows as there is memory for; how many those are.
    fn prepare(&mut self, rows: usize, sampler: &Sampler) -> Result<usize, EngineError> {
        let mut rows = rows.min(self.most_rows);
        loop {
            match self.record(rows, sampler) {
                Err(EngineError::Device(DeviceError::Memory { .. })) if rows > STREAM_ROWS => {
                    rows = (rows / 2).next_multiple_of(STREAM_ROWS);
                    self.most_rows = rows;
                    // The arenas may be as long as was asked for: fewer rows have shorter ones.
                    self.capacity = 0;
                }
                result => return result.map(|()| rows),
            }
        }
    }

    /// Makes room for so many rows, and records what a step does with them.
    fn record(&mut self, rows: usize, sampler: &Sampler) -> Result<(), EngineError> {
        if let Some(own) = &self.recorded {
            if own.rows == rows && own.sampler == *sampler && own.recording.is_some() {
                return Ok(());
            }
        }
        if let Some(Recorded { buffers, recording, .. }) = self.recorded.take() {
            drop(recording);
            self.ops.backend.free(buffers.memory)?;
        }
        if rows > self.capacity {
            self.grow(rows)?;
        }
        let buffers = self.buffers(rows, sampler)?;
        // Held from here on, so that it is freed whatever happens.
        let own = Recorded { rows, sampler: sampler.clone(), buffers, recording: None };
        self.recorded = Some(own);
        // Once without recording, so that tables are there, and products' algorithms are chosen.
        self.step(rows, sampler, &buffers);
        self.ops.check()?;
        self.ops.backend.begin_recording()?;
        self.step(rows, sampler, &buffers);
        // The recording is ended whatever happened, but what happened first is told.
        let recording = self.ops.backend.end_recording();
        self.ops.check()?;
        if let Some(own) = &mut self.recorded {
            own.recording = Some(recording?);
        }
        Ok(())
    }

    /// Makes room for passes over more samples.
    fn grow(&mut self, samples: usize) -> Result<(), EngineError> {
        if self.arena.training.is_some() {
            return Err(EngineError::Batch { found: samples, capacity: self.capacity });
        }
        self.capacity = 0;
        let arena = plan(&self.model, self.ops.math, samples, false);
        self.ops.set_arenas(arena.len, arena.narrow_len)?;
        (self.arena, self.capacity) = (arena, samples);
        Ok(())
    }

    fn buffers(&mut self, rows: usize, sampler: &Sampler) -> Result<Buffers, DeviceError> {
        let size = self.model.layout().num_parameters();
        let values = rows * size;
        let drawn = if sampler.is_deterministic() { 0 } else { values };
        let table = self.table(&sampler.steps);
        let width = table.len() / (sampler.steps.len() + 1);
        let (streams, each) = (rows.div_ceil(STREAM_ROWS), size * rows.min(STREAM_ROWS));
        let embedded = rows * self.embedding_len();
        let lengths = [values, embedded, table.len(), width, 1, values, values, drawn];
        let [a, b, c, d, e, f, g, h] = lengths.map(|values| 4 * values);
        let bytes = [a, b, c, d, e, f, g, h, NoiseStreams::bytes(streams, each)];
        let backend = &mut self.ops.backend;
        let memory = backend.allocate(bytes.map(staged_len).iter().sum())?;
        let [start, embedded, table_at, step, turn, sample, previous, fresh, noise] =
            parts(memory, bytes);
        let noise = NoiseStreams::new(backend, noise, streams, each)?;
        backend.upload(table_at, bytemuck::cast_slice(&table))?;
        Ok(Buffers {
            memory,
            start,
            embedded,
            table: table_at,
            width,
            step,
            turn,
            sample,
            previous,
            fresh,
            noise,
        })
    }

    /// The table of steps; see [`Buffers`].
    fn table(&self, steps: &[Step]) -> Vec<f32> {
        let frequencies = self.model.frequencies();
        let scale = self.model.config().timestep_scale as f32;
        let width = NUMBERS + 2 * frequencies.len() + 1;
        let mut table = vec![0.0; (1 + steps.len()) * width];
        let (draw, rest) = table.split_at_mut(width);
        draw[NUMBERS - 1] = 1.0;
        for (row, step) in rest.chunks_exact_mut(width).zip(steps) {
            let (numbers, timestep) = row.split_at_mut(NUMBERS);
            let signal = self.model.signal_scale(step.timestep as f64);
            let (from_noised, from_output) = step.from_output;
            let Step { start, previous_start, noised, noise, .. } = *step;
            let own = [signal, from_noised, from_output, start, previous_start, noised, noise];
            numbers.copy_from_slice(&own.map(|value| value as f32));
            embed(frequencies, step.timestep as f32 * scale, timestep);
        }
        table
    }

    /// One step from `x_t` to `x_{t-1}`, whichever it is.
    fn step(&mut self, rows: usize, sampler: &Sampler, buffers: &Buffers) {
        let (width, parameters) = (self.arena.input.width, self.model.layout().num_parameters());
        let count = rows * parameters;
        buffers.take_step(&mut self.ops);
        if !sampler.is_deterministic() {
            let temperature = sampler.temperature as f32;
            buffers.noise.draw(&mut self.ops, buffers.fresh, buffers.step, temperature, count);
        }
        let arguments = arguments![
            self.ops.at(self.arena.input),
            buffers.sample,
            buffers.start,
            buffers.embedded,
            buffers.step,
            buffers.step + 4 * NUMBERS as u64,
            (buffers.width - NUMBERS) as i32,
            parameters as i64,
            self.embedding_len() as i64,
            width as i64
        ];
        self.ops.by_row("assemble", rows, width, arguments);
        self.model.forward(&self.arena, rows, &mut self.ops);
        let (low, high) = sampler.clip.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
        let arguments = arguments![
            buffers.sample,
            buffers.previous,
            self.ops.at(self.arena.output),
            buffers.fresh,
            buffers.step,
            low as f32,
            high as f32,
            count as i64
        ];
        self.ops.by_value("sampler_step", count, arguments);
    }
}

impl Buffers {
    /// Takes the row of the table that comes next.
    fn take_step<B: Backend>(&self, ops: &mut Cuda<B>) {
        let NoiseStreams { positions, next, streams, .. } = self.noise;
        let arguments = arguments![
            self.step,
            self.turn,
            positions,
            self.table,
            next,
            self.width as i32,
            streams as i32
        ];
        ops.attempt(|backend| backend.launch("take_step", [1, 1], 256, arguments));
    }
}
