//! The passes of a model on a GPU, one by one.

use std::sync::Arc;

use super::DeviceModel;
use crate::engine::cuda::Gpu;
use crate::engine::{EngineError, Math};
use crate::gpt::{Inputs, Target, Transformer};

/// Runs passes of one [`Transformer`] on a GPU: what [`Executor`](crate::gpt::Executor) is on
/// the CPU.
///
/// Parameters are copied to the GPU for every pass, and results from it: this is for comparing
/// engines. [`Trainer::on`](crate::gpt::Trainer::on) and [`Gpt`](crate::gpt::Gpt) keep
/// everything there.
pub struct DeviceExecutor(DeviceModel<Gpu>);

impl DeviceExecutor {
    /// An executor for up to `batch` samples on the GPU of this number.
    ///
    /// # Errors
    /// If the GPU cannot be used, its memory does not suffice, or `batch` is 0.
    pub fn new(
        index: usize,
        math: Math,
        model: Arc<Transformer>,
        batch: usize,
    ) -> Result<Self, EngineError> {
        Ok(Self(DeviceModel::new(Gpu::open(index)?, model, math, batch, true)?))
    }

    /// As [`Executor::predict`](crate::gpt::Executor::predict).
    ///
    /// # Errors
    /// As there, and if the GPU fails.
    pub fn predict(
        &mut self,
        parameters: &[f32],
        inputs: &Inputs<'_, f32>,
        output: &mut [f32],
    ) -> Result<(), EngineError> {
        self.0.set_parameters(parameters)?;
        self.0.predict(inputs, output)
    }

    /// As [`Executor::loss_and_gradient`](crate::gpt::Executor::loss_and_gradient).
    ///
    /// # Errors
    /// As there, and if the GPU fails.
    pub fn loss_and_gradient(
        &mut self,
        parameters: &[f32],
        inputs: &Inputs<'_, f32>,
        target: &Target<'_, f32>,
        gradient: &mut [f32],
    ) -> Result<f64, EngineError> {
        self.0.set_parameters(parameters)?;
        self.0.loss_and_gradient(inputs, target, gradient)
    }
}
