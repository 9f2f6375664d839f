//! Draws architectures at random.

use rand::seq::SliceRandom;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::architecture::{Activation, Conv, Layer, SEQUENCE};

/// What flows between two layers, but for the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    Vector(usize),
    /// [`SEQUENCE`] vectors.
    Sequence(usize),
    /// Channels and the length of a side.
    Image(usize, usize),
}

impl Shape {
    pub fn dims(self, n: usize) -> Vec<usize> {
        match self {
            Self::Vector(units) => vec![n, units],
            Self::Sequence(units) => vec![n, SEQUENCE, units],
            Self::Image(channels, side) => vec![n, channels, side, side],
        }
    }
}

/// A network, the shape of its input, and whether that is words of a vocabulary.
#[derive(Clone, Debug)]
pub struct Architecture {
    pub input: Shape,
    pub words: Option<usize>,
    pub layers: Vec<Layer>,
}

pub const OUTPUTS: usize = 3;
const WIDTHS: [usize; 6] = [1, 2, 3, 4, 6, 8];

pub fn architecture(rng: &mut ChaCha8Rng) -> Architecture {
    let mut grammar = Grammar { notes: 0 };
    let mut layers = Vec::new();
    let (mut shape, mut words) = match rng.gen_range(0..4) {
        0 => (Shape::Vector(4), None),
        1 => (Shape::Sequence(4), None),
        2 => (Shape::Sequence(1), Some(6)),
        _ => (Shape::Image(2, 6), None),
    };
    let input = shape;
    if let Some(vocabulary) = words.take() {
        let units = width(rng);
        layers.push(Layer::Embedding(vocabulary, units));
        shape = Shape::Sequence(units);
        words = Some(vocabulary);
    }
    // Units from the start, in most cases.
    if rng.gen_bool(0.7) {
        layers.push(grammar.reader(rng, &mut shape, None));
    }
    let count = rng.gen_range(3..9);
    layers.extend(grammar.layers(rng, &mut shape, count, 2));
    if let Shape::Image(channels, side) = shape {
        let end = [Layer::Flatten, Layer::AvgPoolGlobal, Layer::MaxPoolGlobal];
        let end = end.choose(rng).unwrap().clone();
        shape =
            Shape::Vector(if end == Layer::Flatten { channels * side * side } else { channels });
        layers.push(end);
    }
    let (Shape::Vector(units) | Shape::Sequence(units) | Shape::Image(units, _)) = shape;
    layers.push(Layer::Linear(units, OUTPUTS, rng.gen()));
    // Outputs that something reads as well.
    if rng.gen_bool(0.2) {
        let tanh = Layer::Activation(Activation::Tanh);
        layers.push(Layer::Residual(vec![tanh, Layer::Linear(OUTPUTS, OUTPUTS, rng.gen())]));
    }
    Architecture { input, words, layers }
}

fn width(rng: &mut ChaCha8Rng) -> usize {
    *WIDTHS.choose(rng).unwrap()
}

struct Grammar {
    notes: usize,
}

impl Grammar {
    fn layers(
        &mut self,
        rng: &mut ChaCha8Rng,
        shape: &mut Shape,
        count: usize,
        depth: usize,
    ) -> Vec<Layer> {
        let mut layers = Vec::new();
        while layers.len() < count {
            match rng.gen_range(0..10) {
                0..=2 => layers.push(self.reader(rng, shape, None)),
                3..=4 => layers.push(activation(rng)),
                5..=6 => layers.push(self.attached(rng, *shape)),
                7..=8 if depth > 0 => layers.extend(self.nested(rng, shape, depth - 1)),
                _ => layers.extend(mover(rng, shape)),
            }
        }
        layers
    }

    /// Layers from one shape to another of the same kind.
    fn body(&mut self, rng: &mut ChaCha8Rng, from: Shape, to: Shape, depth: usize) -> Vec<Layer> {
        let count = rng.gen_range(0..3);
        let mut shape = from;
        let mut layers = Vec::new();
        while layers.len() < count {
            let mut next = shape;
            let layer = self.layers(rng, &mut next, 1, depth);
            // Images keep their size, so that outputs can be added.
            let side = |shape| if let Shape::Image(_, side) = shape { Some(side) } else { None };
            if side(next) == side(from) {
                layers.extend(layer);
                shape = next;
            }
        }
        if shape != to || rng.gen_bool(0.4) {
            layers.push(self.reader(rng, &mut shape, Some(to)));
        }
        layers
    }

    /// A layer that reads the units and produces others, of a shape if it is given.
    fn reader(&mut self, rng: &mut ChaCha8Rng, shape: &mut Shape, to: Option<Shape>) -> Layer {
        let wanted = match to {
            Some(Shape::Vector(units) | Shape::Sequence(units) | Shape::Image(units, _)) => units,
            None => width(rng),
        };
        match shape {
            Shape::Vector(units) => {
                Layer::Linear(std::mem::replace(units, wanted), wanted, rng.gen())
            }
            Shape::Sequence(units) if *units == wanted && rng.gen() => {
                let heads = rng.gen_range(1..4);
                let (keys, values) = (heads * rng.gen_range(1..3), heads * rng.gen_range(1..3));
                Layer::Attention { units: *units, heads, keys, values }
            }
            Shape::Sequence(units) => {
                Layer::Linear(std::mem::replace(units, wanted), wanted, rng.gen())
            }
            Shape::Image(channels, side) => {
                let inputs = std::mem::replace(channels, wanted);
                let groups = *[1, 1, 1, 2, 3, 4, 6, 8].choose(rng).unwrap();
                let divides = inputs % groups == 0 && wanted % groups == 0;
                let groups = if divides { groups } else { 1 };
                // One that keeps the size, or one with a stride.
                let (kernel, stride, padding) = match rng.gen_range(0..3) {
                    0 if to.is_none() && *side >= 3 => (3, 2, 1),
                    1 => (1, 1, 0),
                    _ => (3, 1, 1),
                };
                *side = (*side + 2 * padding - kernel) / stride + 1;
                let bias = rng.gen();
                Layer::Conv2d(Conv {
                    inputs,
                    outputs: wanted,
                    kernel,
                    stride,
                    padding,
                    groups,
                    bias,
                })
            }
        }
    }

    /// A layer whose tensors are attached to the units.
    fn attached(&mut self, rng: &mut ChaCha8Rng, shape: Shape) -> Layer {
        match shape {
            Shape::Vector(units) => {
                [Layer::LayerNorm(units), Layer::BatchNorm(units), Layer::Slopes(units)]
                    .choose(rng)
                    .unwrap()
                    .clone()
            }
            // Over the vectors of a sequence, not over their units. (If there are as
            // many of both, the layout cannot tell: see `lopt::network::Layer`.)
            Shape::Sequence(units) if units != SEQUENCE && rng.gen_bool(0.3) => {
                Layer::BatchNorm(SEQUENCE)
            }
            Shape::Sequence(units) => Layer::LayerNorm(units),
            Shape::Image(channels, _) => {
                [Layer::BatchNorm2d(channels), Layer::Bias2d(channels), Layer::Slopes(channels)]
                    .choose(rng)
                    .unwrap()
                    .clone()
            }
        }
    }

    /// Layers made of others.
    fn nested(&mut self, rng: &mut ChaCha8Rng, shape: &mut Shape, depth: usize) -> Vec<Layer> {
        let from = *shape;
        let to = match from {
            Shape::Vector(_) => Shape::Vector(width(rng)),
            Shape::Sequence(_) => Shape::Sequence(width(rng)),
            Shape::Image(_, side) => Shape::Image(width(rng), side),
        };
        match rng.gen_range(0..8) {
            0..=2 => vec![Layer::Residual(self.body(rng, from, from, depth))],
            3 => {
                *shape = to;
                let left = self.body(rng, from, to, depth);
                vec![Layer::Parallel(left, self.body(rng, from, to, depth))]
            }
            4 => {
                *shape = to;
                let parts = rng.gen_range(1..4);
                let (mut heads, mut tails) = (Vec::new(), Vec::new());
                for _ in 0..parts {
                    let mut middle = from;
                    heads.push(vec![self.reader(rng, &mut middle, Some(to)), activation(rng)]);
                    tails.push(self.body(rng, middle, to, depth));
                }
                vec![Layer::Split(heads, tails)]
            }
            5 => {
                let layer = if rng.gen() {
                    self.attached(rng, from)
                } else {
                    self.reader(rng, shape, Some(to))
                };
                vec![Layer::Frozen(vec![layer])]
            }
            6 => {
                self.notes += 1;
                let number = self.notes;
                let mut layers = vec![Layer::Note(number)];
                layers.extend(self.body(rng, from, from, depth));
                layers.push(Layer::Add(number));
                layers
            }
            _ => {
                self.notes += 1;
                let number = self.notes;
                *shape = to;
                let mut layers = vec![Layer::Note(number)];
                layers.extend(self.body(rng, from, to, depth));
                layers.push(Layer::Branch(number, self.body(rng, from, to, depth)));
                layers
            }
        }
    }
}

fn activation(rng: &mut ChaCha8Rng) -> Layer {
    use Activation::{Abs, Dropout, Relu, Silu, Sin, Softmax, Tanh};
    // Odd ones more often: one other is enough to end the symmetry of signs.
    let all = [Relu, Silu, Abs, Softmax, Tanh, Tanh, Tanh, Sin, Sin, Dropout];
    Layer::Activation(*all.choose(rng).unwrap())
}

/// A layer that changes the shape only, or the order of the units (seldom).
fn mover(rng: &mut ChaCha8Rng, shape: &mut Shape) -> Option<Layer> {
    if rng.gen_bool(0.15) {
        return Some(Layer::Reverse);
    }
    let Shape::Image(channels, side) = *shape else { return None };
    let layer = match rng.gen_range(0..6) {
        0 if side > 2 => Layer::Flatten,
        1 => Layer::AvgPoolGlobal,
        2 => Layer::MaxPoolGlobal,
        3 if side > 3 => Layer::MaxPool(2),
        _ if side > 3 => Layer::AvgPool(2),
        _ => return None,
    };
    *shape = match layer {
        Layer::Flatten => Shape::Vector(channels * side * side),
        Layer::MaxPool(_) | Layer::AvgPool(_) => Shape::Image(channels, side / 2),
        _ => Shape::Vector(channels),
    };
    Some(layer)
}
