//! Random architectures: how one is described to the library, and what it
//! computes.

use lopt::layout::{Flow, Layout, LayoutBuilder, LayoutError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::array::{max, mean, Array};

pub const SEQUENCE: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    Relu,
    Silu,
    Abs,
    Softmax,
    Tanh,
    Sin,
    Dropout,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv {
    pub inputs: usize,
    pub outputs: usize,
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub groups: usize,
    pub bias: bool,
}

/// One layer, with the sizes that it needs.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::enum_variant_names, reason = "dfdx calls it LayerNorm1D")]
pub enum Layer {
    Linear(usize, usize, bool),
    Conv2d(Conv),
    Embedding(usize, usize),
    Attention {
        units: usize,
        heads: usize,
        keys: usize,
        values: usize,
    },
    Activation(Activation),
    LayerNorm(usize),
    BatchNorm(usize),
    BatchNorm2d(usize),
    Bias2d(usize),
    Slopes(usize),
    MaxPool(usize),
    AvgPool(usize),
    MaxPoolGlobal,
    AvgPoolGlobal,
    Flatten,
    /// The units in the opposite order.
    Reverse,
    Residual(Vec<Layer>),
    Parallel(Vec<Layer>, Vec<Layer>),
    /// Heads side by side, then one body for each whose outputs are added.
    Split(Vec<Vec<Layer>>, Vec<Vec<Layer>>),
    Frozen(Vec<Layer>),
    /// Notes the value here, under a number.
    Note(usize),
    /// Adds the value noted under a number.
    Add(usize),
    /// Goes on with the value noted under a number, and adds what was reached.
    Branch(usize, Vec<Layer>),
}

/// What a description does with a network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Told {
    Truth,
    /// Nothing is said of skips, so units on their sides may move apart.
    NoSkips,
    /// Frozen tensors are said to be layers without tensors.
    NothingFrozen,
    /// What reverses the units is said to treat them alike.
    NothingReversed,
}

/// Tells the library about layers.
struct Describe {
    told: Told,
    notes: Vec<(usize, Flow)>,
    count: usize,
}

pub fn layout(layers: &[Layer], told: Told) -> Result<Layout, LayoutError> {
    let mut builder = LayoutBuilder::new();
    let mut describe = Describe { told, notes: Vec::new(), count: 0 };
    describe.all(layers, &mut builder);
    builder.finish()
}

impl Describe {
    fn all(&mut self, layers: &[Layer], b: &mut LayoutBuilder) {
        for layer in layers {
            self.count += 1;
            let name = format!("l{}", self.count);
            b.scope(&name, |b| self.one(layer, b));
        }
    }

    fn note(&self, number: usize) -> Flow {
        self.notes.iter().rev().find(|note| note.0 == number).unwrap().1.clone()
    }

    fn one(&mut self, layer: &Layer, b: &mut LayoutBuilder) {
        match layer {
            Layer::Linear(inputs, outputs, bias) => b.linear(*inputs, *outputs, *bias),
            Layer::Conv2d(conv) => {
                let kind = format!("{conv:?}");
                b.conv2d(&kind, conv.inputs, conv.outputs, conv.kernel, conv.groups, conv.bias);
            }
            Layer::Embedding(words, units) => b.embedding(*words, *units),
            Layer::Attention { units, heads, keys, values } => {
                b.attention("Attention", *units, *heads, *keys, *values);
            }
            Layer::Activation(Activation::Tanh | Activation::Sin | Activation::Dropout) => {
                b.odd("odd");
            }
            Layer::Activation(_) => b.unitwise("activation"),
            Layer::LayerNorm(units) => b.norm("LayerNorm", *units),
            Layer::BatchNorm(units) => b.batch_norm("BatchNorm", *units),
            Layer::BatchNorm2d(units) => b.batch_norm2d("BatchNorm2d", *units),
            Layer::Bias2d(units) => b.bias2d("Bias2d", *units),
            Layer::Slopes(units) => b.slopes("Slopes", *units),
            Layer::MaxPool(_) => b.pool2d("MaxPool", false),
            Layer::AvgPool(_) => b.pool2d("AvgPool", true),
            Layer::MaxPoolGlobal => b.pool_global("MaxPoolGlobal", false),
            Layer::AvgPoolGlobal => b.pool_global("AvgPoolGlobal", true),
            Layer::Flatten => b.flatten("Flatten"),
            Layer::Reverse if self.told == Told::NothingReversed => b.unitwise("Reverse"),
            Layer::Reverse => b.opaque("Reverse"),
            Layer::Residual(body) if self.told == Told::NoSkips => self.all(body, b),
            Layer::Residual(body) => b.residual(|b| self.all(body, b)),
            Layer::Parallel(left, right) => {
                let this = std::cell::RefCell::new(self);
                b.parallel(|b| this.borrow_mut().all(left, b), |b| this.borrow_mut().all(right, b));
            }
            Layer::Split(heads, tails) => {
                let this = std::cell::RefCell::new(self);
                let body = |layers: &'_ [Layer]| {
                    let (this, layers) = (&this, layers.to_vec());
                    move |b: &mut LayoutBuilder| this.borrow_mut().all(&layers, b)
                };
                let heads: Vec<_> = heads.iter().map(|layers| body(layers)).collect();
                let tails: Vec<_> = tails.iter().map(|layers| body(layers)).collect();
                let dynamic = |body| body as &dyn Fn(&mut LayoutBuilder);
                b.split(&heads.iter().map(dynamic).collect::<Vec<_>>());
                b.add_into(&tails.iter().map(dynamic).collect::<Vec<_>>());
            }
            Layer::Frozen(body) if self.told == Told::NothingFrozen => {
                b.unitwise(&format!("{body:?}"));
            }
            Layer::Frozen(body) => b.frozen(|b| self.all(body, b)),
            Layer::Note(number) => self.notes.push((*number, b.flow())),
            Layer::Add(_) if self.told == Told::NoSkips => {}
            Layer::Add(number) => b.add(&self.note(*number)),
            Layer::Branch(number, body) => {
                let reached = b.flow();
                b.resume(&self.note(*number));
                self.all(body, b);
                if self.told != Told::NoSkips {
                    b.add(&reached);
                }
            }
        }
    }
}

/// Computes the outputs of layers, with parameters from a flat vector.
struct Evaluate<'a> {
    flat: &'a [f64],
    used: usize,
    /// Values of frozen tensors: the same whenever they are asked for.
    frozen: Option<ChaCha8Rng>,
    frozen_values: ChaCha8Rng,
    notes: Vec<(usize, Array)>,
    /// Statistics of the batch norms in order, and whether to use those of the
    /// batch instead (and store them).
    statistics: Vec<Statistics>,
    training: bool,
    norms: usize,
}

/// Running statistics of a batch norm: mean and deviation, by channel.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Offsets of scale and shift in the flat vector, if they are trained.
    pub tensors: Option<[usize; 2]>,
    pub values: Vec<(f64, f64)>,
}

pub fn evaluate(
    layers: &[Layer],
    flat: &[f64],
    input: &Array,
    statistics: Option<&[Statistics]>,
) -> (Array, Vec<Statistics>) {
    let mut evaluate = Evaluate {
        flat,
        used: 0,
        frozen: None,
        frozen_values: ChaCha8Rng::seed_from_u64(7),
        notes: Vec::new(),
        statistics: statistics.unwrap_or_default().to_vec(),
        training: statistics.is_none(),
        norms: 0,
    };
    let output = evaluate.all(layers, input.clone());
    assert_eq!(evaluate.used, flat.len(), "every parameter is used");
    (output, evaluate.statistics)
}

impl Evaluate<'_> {
    fn all(&mut self, layers: &[Layer], input: Array) -> Array {
        layers.iter().fold(input, |x, layer| self.one(layer, x))
    }

    /// The values of the next tensor.
    fn tensor(&mut self, length: usize) -> Vec<f64> {
        if let Some(values) = &mut self.frozen {
            return (0..length).map(|_| values.gen_range(-1.0..1.0)).collect();
        }
        self.used += length;
        self.flat[self.used - length..self.used].to_vec()
    }

    fn linear(&mut self, x: Array, outputs: usize, bias: bool) -> Array {
        let weight = self.tensor(x.last() * outputs);
        let bias = bias.then(|| self.tensor(outputs));
        x.linear(outputs, &weight, bias.as_deref())
    }

    fn batch_norm(&mut self, x: Array, units: usize) -> Array {
        let start = self.used;
        let (scale, shift) = (self.tensor(units), self.tensor(units));
        let tensors = self.frozen.is_none().then_some([start, start + units]);
        if self.training {
            self.statistics.push(Statistics { tensors, values: x.statistics() });
        }
        let statistics = self.statistics[self.norms].values.clone();
        self.norms += 1;
        x.along(1, |c, v| (v - statistics[c].0) / statistics[c].1 * scale[c] + shift[c])
    }

    fn note(&self, number: usize) -> Array {
        self.notes.iter().rev().find(|note| note.0 == number).unwrap().1.clone()
    }

    fn one(&mut self, layer: &Layer, x: Array) -> Array {
        match layer {
            Layer::Linear(inputs, outputs, bias) => {
                assert_eq!(x.last(), *inputs);
                self.linear(x, *outputs, *bias)
            }
            Layer::Conv2d(conv) => {
                assert_eq!(x.shape[1], conv.inputs);
                let read = conv.inputs / conv.groups;
                let weight = self.tensor(conv.outputs * read * conv.kernel * conv.kernel);
                let bias = conv.bias.then(|| self.tensor(conv.outputs));
                let Conv { outputs, kernel, stride, padding, groups, .. } = *conv;
                let sizes = [outputs, kernel, stride, padding, groups];
                x.conv2d(sizes, &weight, bias.as_deref())
            }
            Layer::Embedding(words, units) => {
                let table = self.tensor(words * units);
                let words = x.data.iter().map(|&word| word as usize);
                let rows = words.flat_map(|word| table[word * units..][..*units].to_vec());
                Array::new(&[x.shape[0], x.shape[1], *units], rows.collect())
            }
            Layer::Attention { units, heads, keys, values } => {
                let q = self.linear(x.clone(), *keys, true);
                let k = self.linear(x.clone(), *keys, true);
                let v = self.linear(x, *values, true);
                self.linear(q.attend(&k, &v, *heads), *units, true)
            }
            Layer::Activation(activation) => match activation {
                Activation::Relu => x.map(|v| v.max(0.0)),
                Activation::Silu => x.map(|v| v / (1.0 + (-v).exp())),
                Activation::Abs => x.map(f64::abs),
                Activation::Softmax => x.softmax(),
                Activation::Tanh => x.map(f64::tanh),
                Activation::Sin => x.map(f64::sin),
                Activation::Dropout => x,
            },
            Layer::LayerNorm(units) => {
                let (scale, shift) = (self.tensor(*units), self.tensor(*units));
                x.layer_norm(&scale, &shift)
            }
            Layer::BatchNorm(units) | Layer::BatchNorm2d(units) => self.batch_norm(x, *units),
            Layer::Bias2d(units) => {
                let bias = self.tensor(*units);
                x.along(1, |c, v| v + bias[c])
            }
            Layer::Slopes(units) => {
                let slopes = self.tensor(*units);
                x.along(1, |c, v| if v < 0.0 { slopes[c] * v } else { v })
            }
            Layer::MaxPool(kernel) => x.pool2d(*kernel, max),
            Layer::AvgPool(kernel) => x.pool2d(*kernel, mean),
            Layer::MaxPoolGlobal => x.pool_global(max),
            Layer::AvgPoolGlobal => x.pool_global(mean),
            Layer::Flatten => x.flatten(),
            Layer::Reverse => {
                let axis = if x.shape.len() == 4 { 1 } else { x.shape.len() - 1 };
                let inner: usize = x.shape[axis + 1..].iter().product();
                let data = x.data.chunks(inner * x.shape[axis]);
                let data = data.flat_map(|plane| plane.rchunks(inner).flatten().copied());
                Array::new(&x.shape, data.collect())
            }
            Layer::Residual(body) => self.all(body, x.clone()).plus(&x),
            Layer::Parallel(left, right) => {
                let output = self.all(left, x.clone());
                self.all(right, x).plus(&output)
            }
            Layer::Split(heads, tails) => {
                let values: Vec<Array> =
                    heads.iter().map(|head| self.all(head, x.clone())).collect();
                let outputs = tails.iter().zip(values).map(|(tail, value)| self.all(tail, value));
                outputs.reduce(|a, b| a.plus(&b)).unwrap()
            }
            Layer::Frozen(body) => {
                let values = self.frozen_values.clone();
                let outer = self.frozen.replace(values);
                let output = self.all(body, x);
                self.frozen_values = self.frozen.take().unwrap();
                self.frozen = outer;
                output
            }
            Layer::Note(number) => {
                self.notes.push((*number, x.clone()));
                x
            }
            Layer::Add(number) => x.plus(&self.note(*number)),
            Layer::Branch(number, body) => {
                let noted = self.note(*number);
                self.all(body, noted).plus(&x)
            }
        }
    }
}
