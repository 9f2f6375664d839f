//! The passes of a case on a GPU.

use std::sync::Arc;

use lopt::engine::{Device, Float, Math};
use lopt::gpt::{DeviceExecutor, Inputs, Target, Transformer};

use crate::report::Outcome;

/// The GPU that `LOPT_DEVICE` names, for one model.
pub struct OnDevice {
    executor: DeviceExecutor,
}

impl OnDevice {
    /// For up to `batch` samples; none for the CPU, or if the passes are not in `f32`.
    pub fn named<F: Float>(model: &Arc<Transformer>, batch: usize) -> Outcome<Option<Self>> {
        let name = std::env::var("LOPT_DEVICE").unwrap_or_else(|_| "cpu".into());
        let device: Device = name.parse().map_err(|e| format!("LOPT_DEVICE: {e}"))?;
        let Device::Cuda { index, .. } = device else { return Ok(None) };
        if std::any::TypeId::of::<F>() != std::any::TypeId::of::<f32>() {
            return Ok(None);
        }
        // The tolerances of the cases are those of `f32`.
        let executor = DeviceExecutor::new(index, Math::F32, model.clone(), batch);
        Ok(Some(Self { executor: executor.map_err(|e| e.to_string())? }))
    }

    /// Output of a batch.
    pub fn predict<F: Float>(
        &mut self,
        parameters: &[F],
        inputs: &Inputs<'_, F>,
        output: &mut [F],
    ) -> Outcome {
        let inputs = Single::new(inputs);
        let mut found = vec![0.0; output.len()];
        let done = self.executor.predict(&single(parameters), &inputs.get(), &mut found);
        done.map_err(|e| e.to_string())?;
        widen(&found, output);
        Ok(())
    }

    /// Loss of a batch, and its gradient.
    pub fn loss_and_gradient<F: Float>(
        &mut self,
        parameters: &[F],
        inputs: &Inputs<'_, F>,
        target: &Target<'_, F>,
        gradient: &mut [F],
    ) -> Outcome<f64> {
        let (inputs, values) = (Single::new(inputs), single(target.values));
        let weights = [target.entry_weights, target.sample_weights].map(|w| w.map(single));
        let target = Target {
            entry_weights: weights[0].as_deref(),
            sample_weights: weights[1].as_deref(),
            ..Target::new(&values)
        };
        let mut found = vec![0.0; gradient.len()];
        let loss = self
            .executor
            .loss_and_gradient(&single(parameters), &inputs.get(), &target, &mut found)
            .map_err(|e| e.to_string())?;
        widen(&found, gradient);
        Ok(loss)
    }
}

/// Inputs as `f32`, which they are: only the type does not say so.
struct Single([Vec<f32>; 6]);

impl Single {
    fn new<F: Float>(inputs: &Inputs<'_, F>) -> Self {
        let Inputs { noised, start, timestep, delta, target, current } = inputs;
        Self([noised, start, timestep, delta, target, current].map(|values| single(values)))
    }

    fn get(&self) -> Inputs<'_, f32> {
        let [noised, start, timestep, delta, target, current] = &self.0;
        Inputs { noised, start, timestep, delta, target, current }
    }
}

fn single<F: Float>(values: &[F]) -> Vec<f32> {
    values.iter().map(|value| value.as_f64() as f32).collect()
}

fn widen<F: Float>(found: &[f32], values: &mut [F]) {
    for (value, &found) in values.iter_mut().zip(found) {
        *value = F::from_f64(f64::from(found));
    }
}
