//! Parameters whose weights lie as products read them.

use std::collections::HashMap;

use super::matmul::{panels_len, Pack, PackedMatrix, PANEL};
use super::{simd, weight, AlignedBuffer, LANES};
use crate::engine::{EngineError, Float, Linear};

/// A copy of a model's parameters with the weights of its linear layers in panels.
#[derive(Debug)]
pub(crate) struct PackedParameters<F> {
    values: AlignedBuffer<F>,
    panels: Panels,
}

/// Where the panels of weights begin, by where the weights do.
#[derive(Debug)]
pub(crate) struct Panels(HashMap<usize, usize>);

impl Panels {
    /// The panels of the transposed weight of a layer, `[inputs, outputs]`, with all that follows
    /// them: mostly the next layer's.
    pub(super) fn of<'a, F>(&self, parameters: &'a [F], layer: &Linear) -> PackedMatrix<'a, F> {
        let &Linear { weight, inputs, outputs, .. } = layer;
        let values = &parameters[self.0[&weight]..];
        PackedMatrix { values, rows: inputs, columns: outputs }
    }
}

impl<F: Float> PackedParameters<F> {
    /// Packs the weights of `layers`: all linear layers that read these parameters.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(parameters: &[F], layers: &[Linear]) -> Result<Self, EngineError> {
        // Panels that are as long as the weight, and begin on a cache line, take its place;
        // the others follow.
        let mut end = parameters.len().next_multiple_of(LANES);
        let place = |layer: &Linear| {
            let len = panels_len(layer.inputs, layer.outputs);
            if layer.weight.is_multiple_of(LANES) && len == layer.inputs * layer.outputs {
                return (layer.weight, layer.weight);
            }
            end += len;
            (layer.weight, end - len)
        };
        let panels: HashMap<_, _> = layers.iter().map(place).collect();
        let mut values = AlignedBuffer::new(end)?;
        let all = values.values_mut();
        all[..parameters.len()].copy_from_slice(parameters);
        for layer in layers {
            let len = panels_len(layer.inputs, layer.outputs);
            let panels = &mut all[panels[&layer.weight]..][..len];
            let b = weight(parameters, layer).transposed();
            simd(Pack { b, width: PANEL, multiple: PANEL, panels });
        }
        Ok(Self { values, panels: Panels(panels) })
    }

    /// What an engine reads.
    pub fn parts(&self) -> (&[F], &Panels) {
        (self.values.values(), &self.panels)
    }
}
