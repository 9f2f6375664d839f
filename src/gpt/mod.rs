//! G.pt: a diffusion transformer over network checkpoints.
//!
//! # Source
//! Peebles et al. 2022, arXiv:2209.12892.

mod behavior;
mod calibration;
pub mod config;
#[cfg(feature = "cuda")]
mod device;
pub mod diffusion;
mod edges;
pub mod embedding;
mod executor;
mod file;
pub mod normalizer;
mod optimizer;
pub mod sampler;
pub mod schedule;
mod tokens;
mod trainer;
mod transformer;
mod weights;

pub use behavior::{Behavior, BehaviorError};
pub use calibration::Calibration;
pub use config::{Conditioning, ConfigError, ModelConfig, Prediction, Tokenization};
#[cfg(feature = "cuda")]
pub(crate) use device::checks as device_checks;
#[cfg(feature = "cuda")]
pub use device::DeviceExecutor;
pub use diffusion::NoiseSchedule;
pub use executor::{Executor, Inputs, Penalty, Target};
pub use file::{FileError, Precision};
pub use normalizer::Normalizer;
pub use optimizer::{Gpt, GptConfig, Pretrained, SampleError};
pub use sampler::{NoiseSource, Sampler, SamplerConfig, SamplerKind, SeededNoise, Spacing};
pub use schedule::LearningRateSchedule;
#[cfg(feature = "cuda")]
pub(crate) use trainer::checks as trainer_checks;
pub use trainer::{clip_scale, BatchSource, StepReport, TrainError, Trainer, TrainerConfig};
pub use transformer::{ParameterSpec, Transformer};
pub use weights::{PromptRange, Weights, WeightsError, WeightsHeader};

/// Steps of the diffusion process that models are trained on.
pub const DIFFUSION_STEPS: usize = 1000;
