//! Batches of rows, and what samples them.

use std::sync::Arc;

use super::{GptConfig, SampleError};
use crate::engine::{self, EngineError};
#[cfg(feature = "cuda")]
use crate::gpt::device;
use crate::gpt::sampler::{Noise, STREAM_ROWS};
use crate::gpt::{Executor, Inputs, Sampler, SeededNoise, Transformer, Weights};

/// Rows that are sampled at a time on a device, at most; fewer where memory does not suffice.
#[cfg(feature = "cuda")]
const DEVICE_ROWS: usize = 64 * STREAM_ROWS;

/// Rows to sample from; see [`Gpt::sample`](super::Gpt::sample).
pub(super) struct Batch {
    pub start: Vec<f32>,
    pub current: Vec<f64>,
    pub target: Vec<f64>,
}

impl Batch {
    pub fn rows(&self) -> usize {
        self.current.len()
    }

    /// Streams of noise that its rows use.
    pub fn streams(&self) -> u64 {
        self.rows().div_ceil(STREAM_ROWS) as u64
    }
}

/// Rows in batches of at most `most`.
pub(super) fn batches<'a>(
    start: &'a [f32],
    current: &'a [f64],
    target: &'a [f64],
    most: usize,
) -> impl Iterator<Item = Batch> + 'a {
    let size = start.len() / current.len().max(1);
    let metrics = current.chunks(most).zip(target.chunks(most));
    start.chunks((size * most).max(1)).zip(metrics).map(move |(start, (current, target))| Batch {
        start: start.to_vec(),
        current: current.to_vec(),
        target: target.to_vec(),
    })
}

/// What samples are made with.
pub(super) enum Engine {
    Cpu(Box<OnCpu>),
    #[cfg(feature = "cuda")]
    Device(Box<device::DeviceModel<engine::cuda::Gpu>>),
}

/// The executor, grown when a larger batch is asked for.
pub(super) struct OnCpu {
    model: Arc<Transformer>,
    threads: usize,
    executor: Executor<f32>,
    capacity: usize,
}

impl Engine {
    /// With these parameters of the model.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    pub fn new(
        config: &GptConfig,
        model: Arc<Transformer>,
        parameters: &[f32],
    ) -> Result<Self, EngineError> {
        match config.device {
            engine::Device::Cpu => {
                let threads = config.threads;
                let executor = Executor::for_inference(model.clone(), 1, threads)?;
                Ok(Self::Cpu(OnCpu { model, threads, executor, capacity: 1 }.into()))
            }
            #[cfg(feature = "cuda")]
            engine::Device::Cuda { index, math } => {
                let gpu = engine::cuda::Gpu::open(index)?;
                let mut own = device::DeviceModel::new(gpu, model, math, 1, false)?;
                own.set_parameters(parameters)?;
                Ok(Self::Device(own.into()))
            }
            #[cfg(not(feature = "cuda"))]
            engine::Device::Cuda { .. } => Err(engine::DeviceError::NotBuilt.into()),
        }
    }

    /// Rows of a batch, at most, so that memory stays bounded: one stream on the CPU, many on a
    /// device.
    pub fn most_rows(&self) -> usize {
        match self {
            Self::Cpu(_) => STREAM_ROWS,
            #[cfg(feature = "cuda")]
            Self::Device(_) => DEVICE_ROWS,
        }
    }

    /// One sample for each row.
    pub fn sample(
        &mut self,
        weights: &Weights,
        sampler: &Sampler,
        noise: Noise<'_>,
        batch: &Batch,
    ) -> Result<Vec<f32>, SampleError> {
        let rows = batch.rows();
        let normalizer = &weights.header.normalizer;
        let mut start = batch.start.clone();
        normalizer.normalize(&mut start);
        // The difference is formed in f32 here, as in the reference; in training in f64.
        let narrow = |metrics: &[f64]| metrics.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let asked: Vec<f64> =
            batch.target.iter().map(|&wanted| weights.header.asked_for(wanted)).collect();
        let (current, target) = (narrow(&batch.current), narrow(&asked));
        let delta: Vec<f32> = target.iter().zip(&current).map(|(t, c)| t - c).collect();
        let mut sample = match self {
            Self::Cpu(own) => {
                if rows > own.capacity {
                    own.executor = Executor::for_inference(own.model.clone(), rows, own.threads)?;
                    own.capacity = rows;
                }
                let mut timestep = vec![0.0; rows];
                let executor = &mut own.executor;
                let predict = &mut |noised: &[f32], t: f32, output: &mut [f32]| {
                    timestep.fill(t);
                    let inputs = Inputs {
                        noised,
                        start: &start,
                        timestep: &timestep,
                        delta: &delta,
                        target: &target,
                        current: &current,
                    };
                    executor.predict(&weights.parameters, &inputs, output)
                };
                match noise {
                    Noise::Seeded { seed, stream } => {
                        let noise = &mut SeededNoise::new(seed, stream);
                        sampler.sample(noise, start.len(), predict)?
                    }
                    Noise::Given(values) => {
                        let noise = &mut |x: &mut [f32]| x.copy_from_slice(values);
                        sampler.sample(noise, start.len(), predict)?
                    }
                }
            }
            #[cfg(feature = "cuda")]
            Self::Device(own) => {
                let conditions = device::Conditions {
                    start: &start,
                    delta: &delta,
                    target: &target,
                    current: &current,
                };
                own.sample(sampler, noise, &conditions)?
            }
        };
        normalizer.unnormalize(&mut sample);
        Ok(sample)
    }
}
