//! The transformer in candle.

use anyhow::Context;
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var, D};
use candle_nn::ops::{layer_norm, layer_norm_slow, softmax, softmax_last_dim};
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use lopt_peers::{Description, Engine, Problem, Tokens, Training, What};

type Result<T> = candle_core::Result<T>;

fn main() -> anyhow::Result<()> {
    lopt_peers::run::<Candle>()
}

struct Linear {
    weight: Var,
    bias: Option<Var>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // One product over all rows is faster than one for each sample.
        let (rows, inputs) = (x.dims(), x.dim(D::Minus1)?);
        let y = x.reshape(((), inputs))?.matmul(&self.weight.t()?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        let mut shape = rows.to_vec();
        shape[rows.len() - 1] = self.weight.dim(0)?;
        y.reshape(shape)
    }
}

struct LayerNorm {
    scale: Var,
    shift: Var,
}

impl LayerNorm {
    /// The fused one has no gradient.
    fn forward(&self, x: &Tensor, trains: bool) -> Result<Tensor> {
        match trains {
            true => layer_norm_slow(x, &self.scale, &self.shift, 1e-5),
            false => layer_norm(x, &self.scale, &self.shift, 1e-5),
        }
    }
}

struct Block {
    norms: [LayerNorm; 2],
    /// Keys, queries, values.
    qkv: Linear,
    projection: Linear,
    expand: Linear,
    contract: Linear,
}

impl Block {
    fn forward(&self, x: &Tensor, heads: usize, trains: bool) -> Result<Tensor> {
        let (n, t, d) = x.dims3()?;
        let qkv = self.qkv.forward(&self.norms[0].forward(x, trains)?)?;
        let qkv = qkv.reshape((n, t, 3, heads, d / heads))?.permute((2, 0, 3, 1, 4))?;
        let [k, q, v] = [0, 1, 2].map(|i| qkv.get(i).and_then(|part| part.contiguous()));
        let scale = ((d / heads) as f64).sqrt().recip();
        let scores = (q?.matmul(&k?.t()?)? * scale)?;
        let shares = match trains {
            true => softmax(&scores, D::Minus1)?,
            false => softmax_last_dim(&scores)?,
        };
        let attended = shares.matmul(&v?)?.transpose(1, 2)?.reshape((n, t, d))?;
        let x = (x + self.projection.forward(&attended)?)?;
        let hidden = self.expand.forward(&self.norms[1].forward(&x, trains)?)?;
        &x + self.contract.forward(&hidden.gelu_erf()?)?
    }
}

struct Model {
    about: Description,
    encoders: Vec<Linear>,
    conditioning: Option<Linear>,
    positions: Var,
    position_rows: Tensor,
    norm_in: LayerNorm,
    blocks: Vec<Block>,
    norm_out: LayerNorm,
    decoders: Vec<Linear>,
}

/// Makes layers of the weights in a file.
struct Loader<'a> {
    problem: &'a Problem,
    weights: Vec<Var>,
    others: Vec<Var>,
}

impl Loader<'_> {
    /// Tensors one below the other; none if there are none of that name.
    fn var(&mut self, names: &[String]) -> anyhow::Result<Option<Var>> {
        let mut parts = Vec::new();
        for name in names {
            let Ok(shape) = self.problem.shape(name) else { return Ok(None) };
            parts.push(Tensor::from_vec(self.problem.floats(name)?, shape, &Device::Cpu)?);
        }
        let var = Var::from_tensor(&Tensor::cat(&parts, 0)?)?;
        let list = if var.rank() == 2 { &mut self.weights } else { &mut self.others };
        list.push(var.clone());
        Ok(Some(var))
    }

    fn linear(&mut self, names: &[String]) -> anyhow::Result<Linear> {
        let mut kind = |kind: &str| {
            self.var(&names.iter().map(|name| format!("decoder.{name}.{kind}")).collect::<Vec<_>>())
        };
        Ok(Linear { weight: kind("weight")?.context("no weight")?, bias: kind("bias")? })
    }

    fn norm(&mut self, name: &str) -> anyhow::Result<LayerNorm> {
        let Linear { weight, bias } = self.linear(&[name.into()])?;
        Ok(LayerNorm { scale: weight, shift: bias.context("no shift")? })
    }

    fn block(&mut self, i: usize) -> anyhow::Result<Block> {
        let name = |part: &str| format!("blocks.{i}.{part}");
        Ok(Block {
            norms: [self.norm(&name("ln1"))?, self.norm(&name("ln2"))?],
            qkv: self.linear(&["attn.key", "attn.query", "attn.value"].map(name))?,
            projection: self.linear(&[name("attn.proj")])?,
            expand: self.linear(&[name("mlp.0")])?,
            contract: self.linear(&[name("mlp.2")])?,
        })
    }

    fn model(&mut self) -> anyhow::Result<Model> {
        let about = self.problem.description.clone();
        let positions = self.var(&["decoder.pos_emb".into()])?.context("no positions")?;
        let rows: Vec<u32> = about.positions.iter().map(|&row| row as u32).collect();
        let projection = |side: &str, i: usize| format!("{side}_parameter_projections.{i}.0");
        let (inputs, outputs) = (0..about.inputs.len(), 0..about.outputs.len());
        let conditioning = about.every_token.then(|| self.linear(&["conditioning".into()]));
        Ok(Model {
            encoders: inputs
                .map(|i| self.linear(&[projection("input", i)]))
                .collect::<anyhow::Result<_>>()?,
            conditioning: conditioning.transpose()?,
            positions,
            position_rows: Tensor::new(rows, &Device::Cpu)?,
            norm_in: self.norm("ln_in")?,
            blocks: (0..about.blocks).map(|i| self.block(i)).collect::<anyhow::Result<_>>()?,
            norm_out: self.norm("ln_f")?,
            decoders: outputs
                .map(|i| self.linear(&[projection("output", i)]))
                .collect::<anyhow::Result<_>>()?,
            about,
        })
    }
}

impl Model {
    /// Decoded values in the order of the tokens, `[N, P]`.
    fn forward(&self, inputs: Vec<Vec<f32>>, trains: bool) -> Result<Tensor> {
        let mut encoded = Vec::new();
        let mut scalars = None;
        for ((class, values), encoder) in self.about.inputs.iter().zip(inputs).zip(&self.encoders) {
            let shape = ((), class.tokens, class.values);
            let values = Tensor::from_vec(values, shape, &Device::Cpu)?;
            encoded.push(encoder.forward(&values)?);
            scalars = Some(values);
        }
        let positions = self.positions.squeeze(0)?.index_select(&self.position_rows, 0)?;
        let x = self.norm_in.forward(&Tensor::cat(&encoded, 1)?, trains)?;
        let mut x = x.broadcast_add(&positions)?;
        if let (Some(layer), Some(scalars)) = (&self.conditioning, &scalars) {
            x = x.broadcast_add(&layer.forward(scalars)?)?;
        }
        for block in &self.blocks {
            x = block.forward(&x, self.about.heads, trains)?;
        }
        let x = self.norm_out.forward(&x, trains)?;
        let (mut first, mut decoded) = (0, Vec::new());
        for (class, decoder) in self.about.outputs.iter().zip(&self.decoders) {
            let tokens = x.narrow(1, first, class.tokens)?.contiguous()?;
            decoded.push(decoder.forward(&tokens)?.flatten_from(1)?);
            first += class.tokens;
        }
        Tensor::cat(&decoded, 1)
    }
}

struct Candle {
    model: Model,
    tokens: Tokens,
    training: Training,
    optimizers: [AdamW; 2],
    vars: Vec<Var>,
    average: Vec<Tensor>,
    start: Tensor,
    wanted: Tensor,
}

impl Candle {
    fn clip(&self, gradients: &mut GradStore) -> Result<()> {
        let mut squares = 0.0;
        for var in &self.vars {
            if let Some(gradient) = gradients.get(var) {
                squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
        }
        let scale = self.training.clip / (squares.sqrt() + 1e-6);
        for var in self.vars.iter().filter(|_| scale < 1.0) {
            if let Some(gradient) = gradients.remove(var) {
                gradients.insert(var, (gradient * scale)?);
            }
        }
        Ok(())
    }
}

impl Engine for Candle {
    fn new(problem: &Problem, what: What, _threads: usize) -> anyhow::Result<Self> {
        let mut loader = Loader { problem, weights: Vec::new(), others: Vec::new() };
        let model = loader.model()?;
        let (weights, others) = (loader.weights, loader.others);
        let training = problem.description.training.clone();
        let trains = what == What::TrainStep;
        let vars = [&weights[..], &others].concat();
        let optimizer = |vars: Vec<Var>, weight_decay: f64| {
            let lr = training.learning_rate;
            let settings = ParamsAdamW { lr, weight_decay, ..ParamsAdamW::default() };
            AdamW::new(if trains { vars } else { Vec::new() }, settings)
        };
        let tokens = Tokens::new(problem, what.batch(problem.description.batch))?;
        let size = problem.description.parameters;
        let in_token_order =
            |rows: &[f32]| Tensor::from_vec(tokens.in_token_order(rows), ((), size), &Device::Cpu);
        let wanted = problem.floats("in.wanted")?;
        let average = vars.iter().filter(|_| trains).map(|var| var.copy());
        Ok(Self {
            start: in_token_order(&tokens.start)?,
            wanted: in_token_order(&wanted[..tokens.start.len()])?,
            optimizers: [optimizer(weights, training.weight_decay)?, optimizer(others, 0.0)?],
            average: average.collect::<Result<_>>()?,
            model,
            tokens,
            training,
            vars,
        })
    }

    fn forward(&mut self) -> anyhow::Result<Vec<f32>> {
        let decoded = self.model.forward(self.tokens.inputs(), false)?;
        Ok(self.tokens.output(&decoded.flatten_all()?.to_vec1()?))
    }

    fn train_step(&mut self) -> anyhow::Result<f64> {
        let output = (self.model.forward(self.tokens.inputs(), true)? + &self.start)?;
        let loss = (output - &self.wanted)?.sqr()?.mean_all()?;
        let mut gradients = loss.backward()?;
        self.clip(&mut gradients)?;
        for optimizer in &mut self.optimizers {
            optimizer.step(&gradients)?;
        }
        let keep = self.training.average_decay;
        for (average, var) in self.average.iter_mut().zip(&self.vars) {
            *average = ((&*average * keep)? + (var.as_detached_tensor() * (1.0 - keep))?)?;
        }
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    fn use_average(&mut self) -> anyhow::Result<()> {
        self.vars.iter().zip(&self.average).try_for_each(|(var, average)| var.set(average))?;
        Ok(())
    }

    fn update(&mut self) -> anyhow::Result<()> {
        let model = &self.model;
        self.tokens.update(None, |inputs| decode(model, inputs)).map(drop)
    }

    fn update_from(&mut self, noise: &[f32]) -> anyhow::Result<Vec<f32>> {
        let model = &self.model;
        self.tokens.update(Some(noise), |inputs| decode(model, inputs))
    }
}

fn decode(model: &Model, inputs: Vec<Vec<f32>>) -> anyhow::Result<Vec<f32>> {
    Ok(model.forward(inputs, false)?.flatten_all()?.to_vec1()?)
}
