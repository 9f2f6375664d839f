//! Steps of training on a device: gradient, clipping, AdamW and the moving average, with one
//! report to the host in the end.

use std::ops::Range;
use std::sync::Arc;

use super::{DeviceModel, Inputs, Staged, Target};
use crate::engine::cuda::{arguments, Address, Backend};
use crate::engine::{AdamW, DeviceError, EngineError, Math};
use crate::gpt::Transformer;

/// Values of the gradient that one block squares.
const PIECE: usize = 1 << 14;

/// What decides a step beside its batch.
#[derive(Clone, Copy, Debug)]
pub(in crate::gpt) struct Numbers {
    /// From 1.
    pub step: u64,
    pub settings: AdamW,
    pub gradient_clip: Option<f64>,
    pub average_decay: f64,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::gpt) struct Figures {
    pub loss: f64,
    /// Before clipping.
    pub gradient_norm: f64,
}

impl Figures {
    /// Whether the step was taken: one with other figures changes nothing.
    pub fn are_finite(&self) -> bool {
        self.loss.is_finite() && self.gradient_norm.is_finite()
    }
}

/// A model and the state of its training on a device.
pub(in crate::gpt) struct DeviceTraining<B: Backend> {
    pub model: DeviceModel<B>,
    /// First moment, second moment and average.
    state: [Address; 3],
    /// For each parameter, whether it decays.
    decayed: Address,
    /// Loss, norm, what clips the gradient, and whether the training has ended.
    figures: Address,
    squares: Address,
    /// What was staged for the next step.
    pub(super) next: Option<Staged>,
    /// Where it was staged.
    pub(super) place: usize,
}

impl<B: Backend> DeviceTraining<B> {
    /// A training with batches of up to `batch` samples. All state is zeros.
    ///
    /// # Errors
    /// As [`DeviceModel::new`].
    pub fn new(
        backend: B,
        model: Arc<Transformer>,
        math: Math,
        batch: usize,
    ) -> Result<Self, EngineError> {
        let count = model.num_parameters();
        let decayed = flags(count, &model.decayed());
        let mut model = DeviceModel::new(backend, model, math, batch, true)?;
        let backend = &mut model.ops.backend;
        let mut state = [0; 3];
        for at in &mut state {
            *at = backend.allocate(4 * count)?;
        }
        let mask = backend.allocate(count)?;
        backend.upload(mask, &decayed)?;
        let figures = backend.allocate(8 * 4)?;
        let squares = backend.allocate(8 * count.div_ceil(PIECE))?;
        Ok(Self { model, state, decayed: mask, figures, squares, next: None, place: 0 })
    }

    /// Sets parameters, moments and average.
    pub fn set_state(&mut self, state: [&[f32]; 4]) -> Result<(), EngineError> {
        let [parameters, rest @ ..] = state;
        self.model.set_parameters(parameters)?;
        let backend = &mut self.model.ops.backend;
        for (at, values) in self.state.into_iter().zip(rest) {
            EngineError::check("state", values.len(), parameters.len())?;
            backend.upload(at, bytemuck::cast_slice(values))?;
        }
        // What was staged belongs to another step.
        self.next = None;
        Ok(backend.zero(self.figures, 8 * 4)?)
    }

    /// Reads parameters, moments and average.
    pub fn state(&mut self, to: [&mut [f32]; 4]) -> Result<(), DeviceError> {
        let places = [self.model.ops.parameters, self.state[0], self.state[1], self.state[2]];
        places.into_iter().zip(to).try_for_each(|(from, to)| self.model.read(from, to))
    }

    /// Begins to copy the batch of the next step, while this one goes on.
    pub fn stage(
        &mut self,
        inputs: &Inputs<'_, f32>,
        target: &Target<'_, f32>,
    ) -> Result<(), EngineError> {
        self.place = 1 - self.place;
        self.next = Some(self.model.stage(self.place, inputs, Some(target))?);
        Ok(())
    }

    /// Takes a step on the batch that was staged, without waiting for it: see
    /// [`figures`](Self::figures). Of `target` only the penalty is read. Nothing is changed if
    /// figures are not finite.
    pub fn step(&mut self, target: &Target<'_, f32>, numbers: &Numbers) -> Result<(), EngineError> {
        let Some(batch) = self.next.take() else { return Ok(()) };
        self.model.differentiate(&batch, target)?;
        let count = self.model.model.num_parameters();
        let (samples, losses) = (batch.samples, self.model.losses);
        let ops = &mut self.model.ops;
        let gradient = ops.gradient;
        let pieces = count.div_ceil(PIECE);
        let arguments = arguments![self.squares, gradient, count as i64, PIECE as i64];
        ops.attempt(|backend| backend.launch("squares", [pieces, 1], 256, arguments));
        let arguments = arguments![
            self.figures,
            losses,
            samples as i64,
            1.0 / (samples * self.model.arena.output.width) as f64,
            self.squares,
            pieces as i64,
            numbers.gradient_clip.unwrap_or(f64::INFINITY)
        ];
        ops.attempt(|backend| backend.launch("finish_step", [1, 1], 256, arguments));
        let AdamW { learning_rate, beta1, beta2, epsilon, weight_decay } = numbers.settings;
        let steps = numbers.step as f64;
        let [first, second, average] = self.state;
        let arguments = arguments![
            ops.parameters,
            first,
            second,
            average,
            ops.narrow_parameters,
            gradient,
            self.decayed,
            self.figures,
            beta1 as f32,
            beta2 as f32,
            epsilon as f32,
            (learning_rate / (1.0 - beta1.powf(steps))) as f32,
            (1.0 - beta2.powf(steps)).sqrt().recip() as f32,
            (1.0 - learning_rate * weight_decay) as f32,
            numbers.average_decay as f32,
            count as i64
        ];
        ops.by_value("adamw", count, arguments);
        let figures = self.figures;
        ops.attempt(|backend| backend.post(0, figures, 8 * 4));
        Ok(ops.check()?)
    }

    /// What the last step came to, once it has ended.
    pub fn figures(&mut self) -> Result<Figures, EngineError> {
        let mut values = [0f64; 4];
        let backend = &mut self.model.ops.backend;
        backend.collect(0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(Figures { loss: values[0], gradient_norm: values[1] })
    }

    /// Output of the network with the averaged parameters.
    pub fn predict_with_average(
        &mut self,
        inputs: &Inputs<'_, f32>,
        output: &mut [f32],
    ) -> Result<(), EngineError> {
        let own = self.model.ops.parameters;
        self.model.narrow_from(self.state[2])?;
        self.model.ops.parameters = self.state[2];
        // Staging takes the place that the next step's batch does not have.
        let result = self.model.predict_at(1 - self.place, inputs, output);
        self.model.ops.parameters = own;
        result.and(self.model.narrow_from(own))
    }
}

/// A byte for each parameter, 1 where it decays.
fn flags(count: usize, decayed: &[Range<usize>]) -> Vec<u8> {
    let mut flags = vec![0; count];
    decayed.iter().for_each(|range| flags[range.clone()].fill(1));
    flags
}
