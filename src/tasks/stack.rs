//! Logits of plain stacks of linear layers, straight from a flat vector.
//!
//! Evaluation scores hundreds of thousands of networks. Building each in dfdx
//! costs more than its answers do, so stacks of `Linear`, `ReLU` and `SeLU`
//! do not go through dfdx. A test holds them against it.
//!
//! Shape letters: `N` images, `I` inputs and `O` outputs of a layer.

use crate::engine::linear;
use crate::layout::Layout;
use crate::nn::activation::selu;

/// Layers of a network that is nothing but `Linear`, `ReLU` and `SeLU`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack(Vec<Layer>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Layer {
    /// `weight [O, I]` and `bias [O]`, one after the other in the flat vector.
    Linear {
        inputs: usize,
        outputs: usize,
        offset: usize,
    },
    Relu,
    Selu,
}

impl Stack {
    /// The layers of a layout, if it has no others.
    pub fn of(layout: &Layout) -> Option<Self> {
        let mut tensors = layout.tensors().iter();
        let mut layers = Vec::new();
        for kind in layout.layers() {
            layers.push(match kind.as_str() {
                "Linear" => {
                    let (weight, bias) = (tensors.next()?, tensors.next()?);
                    let [outputs, inputs] = weight.shape[..] else { return None };
                    (bias.shape == [outputs]).then_some(())?;
                    Layer::Linear { inputs, outputs, offset: weight.offset }
                }
                "ReLU" => Layer::Relu,
                "SeLU" => Layer::Selu,
                _ => return None,
            });
        }
        (tensors.next().is_none() && !layers.is_empty()).then_some(Self(layers))
    }

    /// Values that go into the first linear layer, and that come out of each.
    #[cfg(feature = "gym")]
    pub fn widths(&self) -> Vec<usize> {
        let mut widths = Vec::new();
        for layer in &self.0 {
            if let Layer::Linear { inputs, outputs, .. } = *layer {
                if widths.is_empty() {
                    widths.push(inputs);
                }
                widths.push(outputs);
            }
        }
        widths
    }

    /// What the network makes of rows of inputs.
    ///
    /// # Shapes
    /// `rows [N, I]`; the result is `[N, O]` of the last layer.
    ///
    /// # Panics
    /// If `parameters` or `rows` is too short.
    pub fn logits(&self, parameters: &[f32], rows: &[f32], count: usize) -> Vec<f32> {
        let mut values = Vec::new();
        for (index, layer) in self.0.iter().enumerate() {
            match *layer {
                Layer::Linear { inputs, outputs, offset } => {
                    let (weight, rest) = parameters[offset..].split_at(inputs * outputs);
                    let input = if index == 0 { rows } else { &values };
                    let mut out = vec![0.0; count * outputs];
                    linear(&mut out, input, weight, &rest[..outputs]);
                    values = out;
                }
                Layer::Relu | Layer::Selu => {
                    if index == 0 {
                        values = rows.to_vec();
                    }
                    let activation = match layer {
                        Layer::Selu => selu,
                        _ => |value: f32| value.max(0.0),
                    };
                    values.iter_mut().for_each(|value| *value = activation(*value));
                }
            }
        }
        values
    }
}
