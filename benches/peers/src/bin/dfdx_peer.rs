//! The transformer in dfdx. Its modules have sizes that are fixed when they are
//! compiled, so this is written over its tensors.

use anyhow::{anyhow, Context};
use dfdx::prelude::*;
use dfdx::tensor_ops::{AdamConfig, WeightDecay};
use lopt_peers::{Description, Engine, Problem, Tokens, Training, What};

type Vector = Tensor<(usize,), f32, Cpu>;
type Matrix<T = NoneTape> = Tensor<(usize, usize), f32, Cpu, T>;
type Cube<T> = Tensor<(usize, usize, usize), f32, Cpu, T>;
type Result<T> = std::result::Result<T, CpuError>;

fn main() -> anyhow::Result<()> {
    lopt_peers::run::<Dfdx>()
}

/// All trainable tensors; layers hold positions in these lists.
#[derive(Clone, Default)]
struct Parameters {
    /// Each with whether it decays.
    matrices: Vec<(Matrix, bool)>,
    vectors: Vec<Vector>,
}

struct Linear {
    weight: usize,
    bias: Option<usize>,
}

impl Linear {
    fn forward<T: Tape<f32, Cpu>>(&self, all: &Parameters, x: Matrix<T>) -> Result<Matrix<T>> {
        let weight = all.matrices[self.weight].0.retaped::<T>();
        let y = x.try_matmul(weight.try_permute::<(usize, usize), Axes2<1, 0>>()?)?;
        let Some(bias) = self.bias else { return Ok(y) };
        let shape = *y.shape();
        y.try_add(all.vectors[bias].retaped::<T>().try_broadcast_like::<_, Axis<0>>(&shape)?)
    }
}

struct LayerNorm {
    scale: usize,
    shift: usize,
}

impl LayerNorm {
    fn forward<T: Tape<f32, Cpu>>(&self, all: &Parameters, x: Matrix<T>) -> Result<Matrix<T>> {
        let shape = *x.shape();
        let [scale, shift] = [self.scale, self.shift].map(|i| all.vectors[i].retaped::<T>());
        let x = x.try_normalize::<Axis<1>>(1e-5)?;
        let x = x.try_mul(scale.try_broadcast_like::<_, Axis<0>>(&shape)?)?;
        x.try_add(shift.try_broadcast_like::<_, Axis<0>>(&shape)?)
    }
}

struct Block {
    norms: [LayerNorm; 2],
    key: Linear,
    query: Linear,
    value: Linear,
    projection: Linear,
    expand: Linear,
    contract: Linear,
}

impl Block {
    /// `x` is `[N T, D]`.
    fn forward<T: Tape<f32, Cpu>>(
        &self,
        all: &Parameters,
        x: Matrix<T>,
        (samples, heads): (usize, usize),
    ) -> Result<Matrix<T>> {
        let &(rows, width) = x.shape();
        let (tokens, size) = (rows / samples, width / heads);
        let split = (samples, tokens, heads, size);
        let normed = self.norms[0].forward(all, x.with_empty_tape())?;
        let k = self.key.forward(all, normed.with_empty_tape())?.try_reshape_like(&split)?;
        let q = self.query.forward(all, normed.with_empty_tape())?.try_reshape_like(&split)?;
        let v = self.value.forward(all, normed)?.try_reshape_like(&split)?;
        let k = k.try_permute::<_, Axes4<0, 2, 3, 1>>()?;
        let q = q.try_permute::<_, Axes4<0, 2, 1, 3>>()?;
        let v = v.try_permute::<_, Axes4<0, 2, 1, 3>>()?;
        let scores = q.try_matmul(k)?.try_mul((size as f32).sqrt().recip())?;
        let attended = scores.try_softmax::<Axis<3>>()?.try_matmul(v)?;
        let attended = attended.try_permute::<_, Axes4<0, 2, 1, 3>>()?;
        let attended = attended.try_reshape_like(&(rows, width))?;
        let x = x.try_add(self.projection.forward(all, attended)?)?;
        let normed = self.norms[1].forward(all, x.with_empty_tape())?;
        let hidden = gelu(self.expand.forward(all, normed)?)?;
        x.try_add(self.contract.forward(all, hidden)?)
    }
}

/// dfdx's GELU with the right gradient: that of `accurate_gelu` in 0.13.0 lacks a
/// factor of `1/sqrt(2)` at the density of the normal distribution.
fn gelu<T: Tape<f32, Cpu>>(x: Matrix<T>) -> Result<Matrix<T>> {
    let (x, mut tape) = x.split_tape();
    let y = x.clone().try_accurate_gelu()?;
    if T::OWNS_TAPE {
        let (from, to, values) = (x.ghost(), y.ghost(), x.as_vec());
        tape.add_backward_op(move |gradients| {
            let upstream = gradients.get_or_alloc_mut(&to)?.clone();
            let gradient = gradients.get_or_alloc_mut(&from)?;
            for ((g, x), upstream) in gradient.iter_mut().zip(values).zip(upstream.iter()) {
                let share = 0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2));
                let density = (-0.5 * x * x).exp() / std::f32::consts::TAU.sqrt();
                *g += upstream * (share + x * density);
            }
            Ok(())
        });
    }
    Ok(y.put_tape(tape))
}

struct Model {
    about: Description,
    device: Cpu,
    encoders: Vec<Linear>,
    conditioning: Option<Linear>,
    /// `[positions, D]`
    positions: usize,
    norm_in: LayerNorm,
    blocks: Vec<Block>,
    norm_out: LayerNorm,
    decoders: Vec<Linear>,
}

/// Makes layers of the weights in a file.
struct Loader<'a> {
    problem: &'a Problem,
    device: Cpu,
    all: Parameters,
}

impl Loader<'_> {
    fn vector(&mut self, name: &str) -> anyhow::Result<Option<usize>> {
        let Ok(&[length]) = self.problem.shape(name).map(|shape| shape.first_chunk().unwrap())
        else {
            return Ok(None);
        };
        self.all.vectors.push(self.device.tensor_from_vec(self.problem.floats(name)?, (length,)));
        Ok(Some(self.all.vectors.len() - 1))
    }

    fn matrix(&mut self, name: &str, decays: bool) -> anyhow::Result<usize> {
        let Some(&[rows, columns]) = self.problem.shape(name)?.last_chunk() else {
            return Err(anyhow!("{name} is not a matrix"));
        };
        let values = self.problem.floats(name)?;
        self.all.matrices.push((self.device.tensor_from_vec(values, (rows, columns)), decays));
        Ok(self.all.matrices.len() - 1)
    }

    fn linear(&mut self, name: &str) -> anyhow::Result<Linear> {
        Ok(Linear {
            weight: self.matrix(&format!("decoder.{name}.weight"), true)?,
            bias: self.vector(&format!("decoder.{name}.bias"))?,
        })
    }

    fn norm(&mut self, name: &str) -> anyhow::Result<LayerNorm> {
        let mut vector = |kind: &str| {
            self.vector(&format!("decoder.{name}.{kind}"))?.context("no normalisation")
        };
        Ok(LayerNorm { scale: vector("weight")?, shift: vector("bias")? })
    }

    fn block(&mut self, i: usize) -> anyhow::Result<Block> {
        let name = |part: &str| format!("blocks.{i}.{part}");
        Ok(Block {
            norms: [self.norm(&name("ln1"))?, self.norm(&name("ln2"))?],
            key: self.linear(&name("attn.key"))?,
            query: self.linear(&name("attn.query"))?,
            value: self.linear(&name("attn.value"))?,
            projection: self.linear(&name("attn.proj"))?,
            expand: self.linear(&name("mlp.0"))?,
            contract: self.linear(&name("mlp.2"))?,
        })
    }

    fn model(&mut self) -> anyhow::Result<Model> {
        let about = self.problem.description.clone();
        let projection = |side: &str, i: usize| format!("{side}_parameter_projections.{i}.0");
        let (inputs, outputs) = (0..about.inputs.len(), 0..about.outputs.len());
        let conditioning = about.every_token.then(|| self.linear("conditioning"));
        Ok(Model {
            device: self.device.clone(),
            encoders: inputs
                .map(|i| self.linear(&projection("input", i)))
                .collect::<anyhow::Result<_>>()?,
            conditioning: conditioning.transpose()?,
            positions: self.matrix("decoder.pos_emb", false)?,
            norm_in: self.norm("ln_in")?,
            blocks: (0..about.blocks).map(|i| self.block(i)).collect::<anyhow::Result<_>>()?,
            norm_out: self.norm("ln_f")?,
            decoders: outputs
                .map(|i| self.linear(&projection("output", i)))
                .collect::<anyhow::Result<_>>()?,
            about,
        })
    }
}

impl Model {
    /// Decoded values in the order of the tokens, `[N, P]`.
    fn forward<T: Tape<f32, Cpu>>(
        &self,
        all: &Parameters,
        inputs: Vec<Vec<f32>>,
    ) -> Result<Matrix<T>> {
        let (about, device) = (&self.about, &self.device);
        let (tokens, width) = (about.tokens(), about.width);
        let samples = inputs[0].len() / (about.inputs[0].tokens * about.inputs[0].values);
        let mut encoded = Vec::new();
        let mut scalars = None;
        for ((class, values), encoder) in about.inputs.iter().zip(inputs).zip(&self.encoders) {
            let shape = (samples * class.tokens, class.values);
            let values: Matrix = device.try_tensor_from_vec(values, shape)?;
            encoded.push(encoder.forward(all, values.clone().put_tape(T::default()))?);
            scalars = Some(values);
        }
        let x: Cube<T> = match about.inputs.iter().all(|class| class.tokens == 1) {
            true => encoded.try_stack()?.try_permute::<_, Axes3<1, 0, 2>>()?,
            false => {
                let encoded = encoded.into_iter().zip(&about.inputs);
                let mut parts = encoded
                    .map(|(part, class)| part.try_reshape_like(&(samples, class.tokens, width)));
                let first = parts.next().expect("a class of tokens")?;
                parts.try_fold(first, |x, part| (x, part?).try_concat_along(Axis::<1>))?
            }
        };
        let x = self.norm_in.forward(all, x.try_reshape_like(&(samples * tokens, width))?)?;
        let rows: Tensor<(usize,), usize, Cpu> =
            device.try_tensor_from_vec(about.positions.clone(), (tokens,))?;
        let positions = all.matrices[self.positions].0.retaped::<T>().try_gather(rows)?;
        let shape = (samples, tokens, width);
        let x = x.try_reshape_like(&shape)?;
        let mut x = x.try_add(positions.try_broadcast_like::<_, Axis<0>>(&shape)?)?;
        if let (Some(layer), Some(scalars)) = (&self.conditioning, scalars) {
            let added = layer.forward(all, scalars.put_tape(T::default()))?;
            x = x.try_add(added.try_broadcast_like::<_, Axis<1>>(&shape)?)?;
        }
        let mut x = x.try_reshape_like(&(samples * tokens, width))?;
        for block in &self.blocks {
            x = block.forward(all, x, (samples, about.heads))?;
        }
        let x: Cube<T> = self.norm_out.forward(all, x)?.try_reshape_like(&shape)?;
        let (mut first, mut decoded) = (0, None);
        for (class, decoder) in about.outputs.iter().zip(&self.decoders) {
            let own = x.with_empty_tape().try_slice((.., first..first + class.tokens, ..))?;
            let own =
                decoder.forward(all, own.try_reshape_like(&(samples * class.tokens, width))?)?;
            let own = own.try_reshape_like(&(samples, class.tokens * class.values))?;
            decoded = Some(match decoded {
                None => own,
                Some(before) => (before, own).try_concat_along(Axis::<1>)?,
            });
            first += class.tokens;
        }
        // The way back goes through `x`, whose tape has not been used yet.
        let (_, tape) = x.split_tape();
        let (decoded, own) = decoded.expect("a class of tokens").split_tape();
        Ok(decoded.put_tape(own.merge(tape)))
    }
}

struct Dfdx {
    model: Model,
    all: Parameters,
    average: Option<Parameters>,
    moments: [Gradients<f32, Cpu>; 2],
    step: i32,
    tokens: Tokens,
    training: Training,
    start: Matrix,
    wanted: Matrix,
}

impl Dfdx {
    fn clip(&self, gradients: &mut Gradients<f32, Cpu>) -> Result<()> {
        let mut squares = 0.0;
        let mut square = |values: &[f32]| {
            let pieces = values.chunks(1024).map(|piece| piece.iter().map(|g| g * g).sum::<f32>());
            squares += pieces.map(f64::from).sum::<f64>();
        };
        for (matrix, _) in &self.all.matrices {
            square(gradients.get_or_alloc_mut(matrix)?);
        }
        for vector in &self.all.vectors {
            square(gradients.get_or_alloc_mut(vector)?);
        }
        let scale = (self.training.clip / (squares.sqrt() + 1e-6)).min(1.0) as f32;
        for (matrix, _) in &self.all.matrices {
            gradients.get_or_alloc_mut(matrix)?.iter_mut().for_each(|g| *g *= scale);
        }
        for vector in &self.all.vectors {
            gradients.get_or_alloc_mut(vector)?.iter_mut().for_each(|g| *g *= scale);
        }
        Ok(())
    }

    fn adam<S: Shape>(
        &self,
        moments: &mut [Gradients<f32, Cpu>; 2],
        gradients: &mut Gradients<f32, Cpu>,
        parameter: &mut Tensor<S, f32, Cpu>,
        decays: bool,
    ) -> Result<()> {
        let decay = decays.then_some(WeightDecay::Decoupled(self.training.weight_decay));
        let lr = self.training.learning_rate;
        let settings = AdamConfig { lr, weight_decay: decay, ..AdamConfig::default() };
        let [first, second] = moments;
        let first = first.get_or_alloc_mut(parameter)?;
        let second = second.get_or_alloc_mut(parameter)?;
        let gradient = gradients.get_or_alloc_mut(parameter)?;
        settings.try_update(self.step, parameter, first, second, gradient)
    }

    fn step(&mut self) -> Result<f64> {
        let output = self.model.forward::<OwnedTape<f32, Cpu>>(&self.all, self.tokens.inputs())?;
        let difference = output.try_add(self.start.clone())?.try_sub(self.wanted.clone())?;
        let loss = difference.try_square()?.try_mean::<Rank0, Axes2<0, 1>>()?;
        let value = f64::from(loss.array());
        let mut gradients = loss.try_backward()?;
        self.clip(&mut gradients)?;
        self.step += 1;
        let mut all = std::mem::take(&mut self.all);
        let mut moments =
            std::mem::replace(&mut self.moments, [Gradients::leaky(), Gradients::leaky()]);
        for (matrix, decays) in &mut all.matrices {
            self.adam(&mut moments, &mut gradients, matrix, *decays)?;
        }
        for vector in &mut all.vectors {
            self.adam(&mut moments, &mut gradients, vector, false)?;
        }
        let keep = self.training.average_decay;
        if let Some(average) = &mut self.average {
            for ((average, _), (matrix, _)) in average.matrices.iter_mut().zip(&all.matrices) {
                average.try_axpy(keep, matrix, 1.0 - keep)?;
            }
            for (average, vector) in average.vectors.iter_mut().zip(&all.vectors) {
                average.try_axpy(keep, vector, 1.0 - keep)?;
            }
        }
        (self.all, self.moments) = (all, moments);
        Ok(value)
    }
}

impl Engine for Dfdx {
    fn new(problem: &Problem, what: What, _threads: usize) -> anyhow::Result<Self> {
        let device = Cpu::default();
        device.enable_cache();
        let mut loader = Loader { problem, device: device.clone(), all: Parameters::default() };
        let (model, all) = (loader.model()?, loader.all);
        let tokens = Tokens::new(problem, what.batch(problem.description.batch))?;
        let shape =
            (tokens.start.len() / problem.description.parameters, problem.description.parameters);
        let wanted = problem.floats("in.wanted")?;
        let wanted = tokens.in_token_order(&wanted[..tokens.start.len()]);
        Ok(Self {
            model,
            average: (what == What::TrainStep).then(|| all.clone()),
            all,
            moments: [Gradients::leaky(), Gradients::leaky()],
            step: 0,
            training: problem.description.training.clone(),
            start: device.tensor_from_vec(tokens.in_token_order(&tokens.start), shape),
            wanted: device.tensor_from_vec(wanted, shape),
            tokens,
        })
    }

    fn forward(&mut self) -> anyhow::Result<Vec<f32>> {
        let decoded = decode(&self.model, &self.all, self.tokens.inputs())?;
        Ok(self.tokens.output(&decoded))
    }

    fn train_step(&mut self) -> anyhow::Result<f64> {
        self.step().map_err(failed)
    }

    fn use_average(&mut self) -> anyhow::Result<()> {
        self.all = self.average.clone().context("no average")?;
        Ok(())
    }

    fn update(&mut self) -> anyhow::Result<()> {
        let (model, all) = (&self.model, &self.all);
        self.tokens.update(None, |inputs| decode(model, all, inputs)).map(drop)
    }

    fn update_from(&mut self, noise: &[f32]) -> anyhow::Result<Vec<f32>> {
        let (model, all) = (&self.model, &self.all);
        self.tokens.update(Some(noise), |inputs| decode(model, all, inputs))
    }
}

fn decode(model: &Model, all: &Parameters, inputs: Vec<Vec<f32>>) -> anyhow::Result<Vec<f32>> {
    Ok(model.forward::<NoneTape>(all, inputs).map_err(failed)?.as_vec())
}

fn failed(error: CpuError) -> anyhow::Error {
    anyhow!("dfdx: {error:?}")
}
