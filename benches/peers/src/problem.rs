//! The file that all engines read: a model, its weights, a batch, and what lopt
//! made of it.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context};
use safetensors::tensor::{Dtype, Metadata};
use serde::{Deserialize, Serialize};

/// Key of the description among the metadata of the file.
pub const DESCRIPTION: &str = "description";

/// Tokens that share an encoder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputClass {
    /// Number of tokens.
    pub tokens: usize,
    /// Values in each.
    pub values: usize,
    /// Whether the encoder has a bias.
    pub bias: bool,
}

/// Tokens that share a decoder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutputClass {
    /// Number of tokens.
    pub tokens: usize,
    /// Values in each.
    pub values: usize,
}

/// How the batch is trained on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Training {
    /// Step size of AdamW; its betas are 0.9 and 0.999, its epsilon is 1e-8.
    pub learning_rate: f64,
    /// Decay of the weights of linear layers: of all tensors of two dimensions.
    pub weight_decay: f64,
    /// Largest norm of the gradient.
    pub clip: f64,
    /// Decay of the moving average of the parameters.
    pub average_decay: f64,
    /// Losses of the first steps.
    pub losses: Vec<f64>,
}

/// Everything about a problem but its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    /// Name of the configuration.
    pub name: String,
    /// Width `D`.
    pub width: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Attention heads.
    pub heads: usize,
    /// Samples `N`.
    pub batch: usize,
    /// Parameters `P` of a network.
    pub parameters: usize,
    /// Trainable values of the model.
    pub model_parameters: usize,
    /// What the timestep is multiplied by.
    pub timestep_scale: f64,
    /// What the metrics are multiplied by.
    pub metric_scale: f64,
    /// Whether the scalars, the last token, are also added to every token.
    pub every_token: bool,
    /// Classes of input tokens.
    pub inputs: Vec<InputClass>,
    /// Classes of output tokens, which are the first tokens.
    pub outputs: Vec<OutputClass>,
    /// Row of the position embedding of every token.
    pub positions: Vec<usize>,
    /// How the batch is trained on.
    pub training: Training,
    /// Diffusion steps of an update (DDIM, `eta` 0); none where none is measured.
    pub sampler: Vec<usize>,
    /// Scale of the normalised parameters.
    pub scale: f64,
}

impl Description {
    /// Number of tokens `T`.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// Number of tokens that are decoded.
    pub fn output_tokens(&self) -> usize {
        self.outputs.iter().map(|class| class.tokens).sum()
    }

    /// Whether whole updates are measured.
    pub fn has_update(&self) -> bool {
        !self.sampler.is_empty()
    }
}

/// A problem file.
#[derive(Debug)]
pub struct Problem {
    /// What it describes.
    pub description: Description,
    file: File,
    header: usize,
    metadata: Metadata,
}

impl Problem {
    /// Opens a file; tensors are read one by one, when they are asked for.
    ///
    /// # Errors
    /// If it is no such file.
    pub fn open(path: &str) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0)?;
        let header = 8 + usize::try_from(u64::from_le_bytes(length))?;
        let mut bytes = vec![0; header];
        file.read_exact_at(&mut bytes, 0)?;
        let metadata: Metadata = serde_json::from_slice(&bytes[8..])?;
        let entries = metadata.metadata().as_ref();
        let description = entries.and_then(|entries: &HashMap<_, _>| entries.get(DESCRIPTION));
        let description = serde_json::from_str(description.context("no description")?)?;
        Ok(Self { description, file, header, metadata })
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> anyhow::Result<&[usize]> {
        let info = self.metadata.info(name).with_context(|| format!("no tensor {name}"))?;
        Ok(&info.shape)
    }

    /// Values of a tensor.
    ///
    /// # Errors
    /// If there is no such tensor of `f32`.
    pub fn floats(&self, name: &str) -> anyhow::Result<Vec<f32>> {
        self.read(name, Dtype::F32)
    }

    /// Positions in a tensor of 64-bit integers.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub fn positions(&self, name: &str) -> anyhow::Result<Vec<usize>> {
        Ok(self.read::<i64>(name, Dtype::I64)?.into_iter().map(|i| i as usize).collect())
    }

    fn read<T: bytemuck::Pod>(&self, name: &str, dtype: Dtype) -> anyhow::Result<Vec<T>> {
        let info = self.metadata.info(name).with_context(|| format!("no tensor {name}"))?;
        ensure!(info.dtype == dtype, "{name} is of type {:?}", info.dtype);
        let mut values = vec![T::zeroed(); info.shape.iter().product()];
        let offset = (self.header + info.data_offsets.0) as u64;
        self.file.read_exact_at(bytemuck::cast_slice_mut(&mut values), offset)?;
        Ok(values)
    }
}

/// Builds the values of tokens from a batch, in plain Rust: embedding of scalars and
/// gathering need no gradients.
#[derive(Clone, Debug)]
pub struct Tokens {
    description: Description,
    frequencies: Vec<f32>,
    signal: Vec<f32>,
    table: Vec<usize>,
    output_table: Vec<usize>,
    alpha_bar: Vec<f32>,
    noised: Vec<f32>,
    /// Starting parameters, `[N, P]`.
    pub start: Vec<f32>,
    timestep: Vec<f32>,
    metrics: [Vec<f32>; 3],
}

impl Tokens {
    /// Reads the batch, or its first samples.
    ///
    /// # Errors
    /// If the file is not complete.
    pub fn new(problem: &Problem, batch: usize) -> anyhow::Result<Self> {
        let parameters = problem.description.parameters;
        let first = |name: &str, values: usize| {
            let mut all = problem.floats(name)?;
            all.truncate(values);
            anyhow::Ok(all)
        };
        Ok(Self {
            frequencies: problem.floats("scalar_embedder.frequencies")?,
            signal: problem.floats("in.signal")?,
            table: problem.positions("in.table")?,
            output_table: problem.positions("in.output_table")?,
            alpha_bar: problem.floats("in.alpha_bar")?,
            noised: first("in.noised", batch * parameters)?,
            start: first("in.start", batch * parameters)?,
            timestep: first("in.timestep", batch)?,
            metrics: [
                first("in.delta", batch)?,
                first("in.target", batch)?,
                first("in.current", batch)?,
            ],
            description: problem.description.clone(),
        })
    }

    /// Values of the tokens of each class, `[N, tokens, values]`.
    pub fn inputs(&self) -> Vec<Vec<f32>> {
        self.inputs_at(&self.noised, &self.timestep)
    }

    fn inputs_at(&self, noised: &[f32], timestep: &[f32]) -> Vec<Vec<f32>> {
        let Description { parameters, timestep_scale, metric_scale, .. } = self.description;
        let classes = &self.description.inputs;
        let mut inputs: Vec<Vec<f32>> = classes.iter().map(|_| Vec::new()).collect();
        let mut row = Vec::with_capacity(self.table.len());
        for (sample, &t) in timestep.iter().enumerate() {
            let own = sample * parameters..(sample + 1) * parameters;
            let signal = self.signal[t as usize];
            row.clear();
            row.extend(noised[own.clone()].iter().map(|x| x * signal));
            row.extend_from_slice(&self.start[own]);
            let metrics = self.metrics.iter().map(|metric| metric[sample] * metric_scale as f32);
            for scalar in std::iter::once(t * timestep_scale as f32).chain(metrics) {
                row.extend(self.frequencies.iter().map(|f| f64::from(f * scalar).sin() as f32));
                row.extend(self.frequencies.iter().map(|f| f64::from(f * scalar).cos() as f32));
                row.push(scalar);
            }
            let mut table = &self.table[..];
            for (class, values) in classes.iter().zip(&mut inputs) {
                let (own, rest) = table.split_at(class.tokens * class.values);
                values.extend(own.iter().map(|&i| row[i]));
                table = rest;
            }
        }
        inputs
    }

    /// Values in the order in which they are decoded.
    pub fn in_token_order(&self, rows: &[f32]) -> Vec<f32> {
        let rows = rows.chunks_exact(self.description.parameters);
        rows.flat_map(|row| self.output_table.iter().map(|&i| row[i])).collect()
    }

    /// Output of the model: decoded values in the order of the parameters, plus start.
    pub fn output(&self, decoded: &[f32]) -> Vec<f32> {
        let mut output = self.start.clone();
        let size = self.description.parameters;
        for (row, decoded) in output.chunks_exact_mut(size).zip(decoded.chunks_exact(size)) {
            for (&i, value) in self.output_table.iter().zip(decoded) {
                row[i] += value;
            }
        }
        output
    }

    /// A whole update of the first network: DDIM from noise, with a function that
    /// decodes the tokens it is given.
    ///
    /// # Errors
    /// The first of `decode`.
    pub fn update(
        &mut self,
        noise: Option<&[f32]>,
        mut decode: impl FnMut(Vec<Vec<f32>>) -> anyhow::Result<Vec<f32>>,
    ) -> anyhow::Result<Vec<f32>> {
        let mut rng = rand::thread_rng();
        let normal = rand_distr::StandardNormal;
        let fresh = || (0..self.start.len()).map(|_| rand::Rng::sample(&mut rng, normal)).collect();
        let mut sample: Vec<f32> = noise.map_or_else(fresh, <[f32]>::to_vec);
        let raw: Vec<f32> = self.start.iter().map(|x| x / self.description.scale as f32).collect();
        self.start = raw.iter().map(|x| x * self.description.scale as f32).collect();
        let steps = self.description.sampler.clone();
        for (i, &t) in steps.iter().enumerate() {
            let start = self.output(&decode(self.inputs_at(&sample, &[t as f32]))?);
            let Some(&next) = steps.get(i + 1) else {
                sample = start;
                break;
            };
            let [now, next] = [t, next].map(|t| f64::from(self.alpha_bar[t]));
            for (x, start) in sample.iter_mut().zip(start) {
                let noise = (f64::from(*x) - now.sqrt() * f64::from(start)) / (1.0 - now).sqrt();
                let mixed = next.sqrt() * f64::from(start) + (1.0 - next).sqrt() * noise;
                *x = mixed as f32;
            }
        }
        Ok(sample.iter().map(|x| x / self.description.scale as f32).collect())
    }
}
