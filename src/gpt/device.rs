//! Runs a transformer on a GPU: forward and backward passes.
//!
//! A batch is one pass. The input rows are put together on the device: only what differs from
//! sample to sample is copied there, and in training no parameters of networks are, if all
//! checkpoints lie there.

mod check;
mod checkpoints;
mod executor;
mod sampling;
mod training;

use std::sync::Arc;

use rayon::prelude::*;

use super::embedding::embed;
use super::executor::{Inputs, Target};
use super::transformer::{Arena, Transformer};
use crate::engine::cuda::{arguments, parts, Address, Backend, Cuda, Lengths};
use crate::engine::{DeviceError, EngineError, Math};

pub(crate) use check::checks;
pub(super) use check::{distance, failed, graph, mlp};
pub(super) use checkpoints::{Checkpoints, Draw};
pub use executor::DeviceExecutor;
pub(super) use sampling::Conditions;
pub(super) use training::{DeviceTraining, Figures, Numbers};

/// A transformer on a device, with all memory allocated in advance.
pub(crate) struct DeviceModel<B: Backend> {
    /// Dropped before the kernels that it launches.
    recorded: Option<sampling::Recorded<B::Recording>>,
    model: Arc<Transformer>,
    arena: Arena,
    ops: Cuda<B>,
    /// Loss of every sample, in `f64`; 0 at inference.
    losses: Address,
    /// Gradient of the penalty, `[N, P]`; 0 until there is one.
    penalty: Address,
    capacity: usize,
    /// Rows that are sampled at a time, at most: no more have had room.
    most_rows: usize,
}

/// A batch on the device.
#[derive(Clone, Copy)]
pub(super) struct Staged {
    place: usize,
    samples: usize,
    noised: Address,
    start: Address,
    embedded: Address,
    signals: Address,
    target: Address,
    weights: [Option<Address>; 2],
}

/// Where activations of so many samples lie.
fn plan(model: &Transformer, math: Math, batch: usize, training: bool) -> Arena {
    match math {
        Math::Bf16 => Arena::with_narrow(model, batch, training),
        _ => Arena::new(model, batch, training),
    }
}

impl<B: Backend> DeviceModel<B> {
    /// A model for up to `batch` samples. Its parameters are zeros.
    ///
    /// # Errors
    /// If the memory does not suffice, or `batch` is 0.
    pub fn new(
        backend: B,
        model: Arc<Transformer>,
        math: Math,
        batch: usize,
        training: bool,
    ) -> Result<Self, EngineError> {
        if batch == 0 {
            return Err(EngineError::Batch { found: 0, capacity: 0 });
        }
        let arena = plan(&model, math, batch, training);
        let lengths = Lengths {
            parameters: model.num_parameters(),
            arena: arena.len,
            narrow_arena: arena.narrow_len,
            training,
        };
        let mut ops = Cuda::new(backend, math, lengths)?;
        let losses = if training { ops.backend.allocate(8 * batch)? } else { 0 };
        let most_rows = usize::MAX;
        Ok(Self {
            recorded: None,
            model,
            arena,
            ops,
            losses,
            penalty: 0,
            capacity: batch,
            most_rows,
        })
    }

    /// Sets the parameters.
    pub fn set_parameters(&mut self, parameters: &[f32]) -> Result<(), EngineError> {
        EngineError::check("parameters", parameters.len(), self.model.num_parameters())?;
        self.ops.backend.upload(self.ops.parameters, bytemuck::cast_slice(parameters))?;
        self.narrow_from(self.ops.parameters)
    }

    /// Rounds parameters for products in bf16.
    fn narrow_from(&mut self, parameters: Address) -> Result<(), EngineError> {
        let count = self.model.num_parameters();
        if self.ops.narrow_parameters != 0 {
            let arguments = arguments![self.ops.narrow_parameters, parameters, count as i64];
            self.ops.by_value("narrow", count, arguments);
        }
        Ok(self.ops.check()?)
    }

    /// Values of all embedded scalars of a sample.
    fn embedding_len(&self) -> usize {
        self.arena.input.width - 2 * self.model.layout().num_parameters()
    }

    /// Begins to copy a batch to the device.
    fn stage(
        &mut self,
        place: usize,
        inputs: &Inputs<'_, f32>,
        target: Option<&Target<'_, f32>>,
    ) -> Result<Staged, EngineError> {
        let samples = inputs.check(&self.model, self.capacity)?;
        let size = self.model.layout().num_parameters();
        let mut weights = [None; 2];
        if let Some(target) = target {
            EngineError::check("target values", target.values.len(), samples * size)?;
            weights = [target.entry_weights, target.sample_weights];
            for (name, weights, expected) in
                [("entry weights", weights[0], size), ("sample weights", weights[1], samples)]
            {
                EngineError::check(name, weights.map_or(expected, <[f32]>::len), expected)?;
            }
        }
        let (embedded, signals) = (self.embed(inputs), self.signals(inputs));
        let values = target.map_or(&[][..], |target| target.values);
        let [noised, start, embedded, signals, target, entry, sample] = self.stage_parts(
            place,
            [
                inputs.noised,
                inputs.start,
                &embedded,
                &signals,
                values,
                weights[0].unwrap_or_default(),
                weights[1].unwrap_or_default(),
            ]
            .map(bytemuck::cast_slice),
        )?;
        let weights = [weights[0].map(|_| entry), weights[1].map(|_| sample)];
        Ok(Staged { place, samples, noised, start, embedded, signals, target, weights })
    }

    /// Begins to copy parts to the device; where they will be.
    fn stage_parts<const N: usize>(
        &mut self,
        place: usize,
        bytes: [&[u8]; N],
    ) -> Result<[Address; N], DeviceError> {
        Ok(parts(self.ops.backend.stage(place, &bytes)?, bytes.map(<[u8]>::len)))
    }

    /// What the noised parameters of every sample are multiplied by, `[N]`.
    fn signals(&self, inputs: &Inputs<'_, f32>) -> Vec<f32> {
        inputs.timestep.iter().map(|&t| self.model.signal_scale(f64::from(t)) as f32).collect()
    }

    /// Embedded scalars of every sample, `[N, E]`.
    fn embed(&self, inputs: &Inputs<'_, f32>) -> Vec<f32> {
        let config = self.model.config();
        let frequencies = self.model.frequencies();
        let metric = config.metric_scale as f32;
        let mut embedded = vec![0.0; inputs.timestep.len() * self.embedding_len()];
        let rows = embedded.par_chunks_exact_mut(self.embedding_len()).enumerate();
        rows.for_each(|(i, row)| {
            let own = |values: &[f32]| values.get(i).map_or(0.0, |value| value * metric);
            let scalars = [
                inputs.timestep[i] * config.timestep_scale as f32,
                own(inputs.delta),
                own(inputs.target),
                own(inputs.current),
            ];
            let parts = row.chunks_exact_mut(2 * frequencies.len() + 1);
            scalars.into_iter().zip(parts).for_each(|(s, part)| embed(frequencies, s, part));
        });
        embedded
    }

    /// Output of a batch that was staged, in the arena.
    fn forward(&mut self, batch: &Staged) {
        self.ops.attempt(|backend| backend.await_staged(batch.place));
        let width = self.arena.input.width;
        let arguments = arguments![
            self.ops.at(self.arena.input),
            batch.noised,
            batch.start,
            batch.embedded,
            batch.signals,
            0u64,
            0i32,
            self.model.layout().num_parameters() as i64,
            self.embedding_len() as i64,
            width as i64
        ];
        self.ops.by_row("assemble", batch.samples, width, arguments);
        self.model.forward(&self.arena, batch.samples, &mut self.ops);
    }

    /// The output of the last pass.
    fn output(&mut self, samples: usize) -> Result<Vec<f32>, EngineError> {
        let mut output = vec![0f32; samples * self.arena.output.width];
        let at = self.ops.at(self.arena.output);
        self.ops.attempt(|backend| backend.download(at, bytemuck::cast_slice_mut(&mut output)));
        self.ops.check()?;
        Ok(output)
    }

    /// Output of the network; see [`Executor::predict`](super::Executor::predict).
    pub fn predict(
        &mut self,
        inputs: &Inputs<'_, f32>,
        output: &mut [f32],
    ) -> Result<(), EngineError> {
        self.predict_at(0, inputs, output)
    }

    /// The same, with one of the two places that a batch is staged in.
    fn predict_at(
        &mut self,
        place: usize,
        inputs: &Inputs<'_, f32>,
        output: &mut [f32],
    ) -> Result<(), EngineError> {
        let batch = self.stage(place, inputs, None)?;
        let size = self.model.layout().num_parameters();
        EngineError::check("output", output.len(), batch.samples * size)?;
        self.forward(&batch);
        self.ops.attempt(|backend| backend.release(batch.place));
        output.copy_from_slice(&self.output(batch.samples)?);
        Ok(())
    }

    /// The gradient of the loss replaces that on the device, and losses of samples those there.
    /// Does not wait for the device, but for a penalty, which is formed on the host.
    fn differentiate(
        &mut self,
        batch: &Staged,
        target: &Target<'_, f32>,
    ) -> Result<(), EngineError> {
        let Some(training) = &self.arena.training else { return Err(EngineError::InferenceOnly) };
        let (samples, output) = (batch.samples, self.arena.output);
        let scale = 1.0 / (samples * output.width) as f64;
        let (gradient, bytes) = (self.ops.gradient, 4 * self.model.num_parameters());
        self.ops.attempt(|backend| backend.zero(gradient, bytes));
        let training = training.clone();
        self.forward(batch);
        let penalty = self.penalty(samples, target)?;
        let (ops, losses) = (&mut self.ops, self.losses);
        ops.squared_errors(samples, output, batch.target, batch.weights, scale, losses);
        ops.attempt(|backend| backend.release(batch.place));
        if let Some(penalty) = penalty {
            let width = output.width as i32;
            let arguments = arguments![ops.at(output), penalty, samples as i32, width];
            ops.by_row("add_to_tokens", samples, output.width, arguments);
        }
        self.model.backward(&self.arena, &training, samples, false, &mut self.ops);
        Ok(self.ops.check()?)
    }

    /// Gradient of the penalty on the device, if there is one.
    fn penalty(
        &mut self,
        samples: usize,
        target: &Target<'_, f32>,
    ) -> Result<Option<Address>, EngineError> {
        let Some(penalty) = target.penalty else { return Ok(None) };
        let output = self.output(samples)?;
        let size = self.arena.output.width;
        let mut gradient = vec![0f32; output.len()];
        let rows = output.par_chunks_exact(size).zip(gradient.par_chunks_exact_mut(size));
        rows.enumerate().for_each(|(i, (output, gradient))| penalty.add(i, output, gradient));
        if self.penalty == 0 {
            self.penalty = self.ops.backend.allocate(4 * self.capacity * size)?;
        }
        self.ops.backend.upload(self.penalty, bytemuck::cast_slice(&gradient))?;
        Ok(Some(self.penalty))
    }

    /// Mean loss, and its gradient; see
    /// [`Executor::loss_and_gradient`](super::Executor::loss_and_gradient).
    pub fn loss_and_gradient(
        &mut self,
        inputs: &Inputs<'_, f32>,
        target: &Target<'_, f32>,
        gradient: &mut [f32],
    ) -> Result<f64, EngineError> {
        EngineError::check("gradient", gradient.len(), self.model.num_parameters())?;
        let batch = self.stage(0, inputs, Some(target))?;
        self.differentiate(&batch, target)?;
        let mut losses = vec![0f64; batch.samples];
        let backend = &mut self.ops.backend;
        backend.download(self.losses, bytemuck::cast_slice_mut(&mut losses))?;
        backend.download(self.ops.gradient, bytemuck::cast_slice_mut(gradient))?;
        Ok(losses.iter().sum::<f64>() / (batch.samples * self.arena.output.width) as f64)
    }

    /// Copies values from the device.
    fn read(&mut self, from: Address, values: &mut [f32]) -> Result<(), DeviceError> {
        self.ops.backend.download(from, bytemuck::cast_slice_mut(values))
    }
}
