//! G.pt: a diffusion transformer over network checkpoints.
//!
//! # Source
//! Peebles et al. 2022, arXiv:2209.12892.

pub mod config;
pub mod diffusion;
pub mod embedding;
mod executor;
pub mod normalizer;
pub mod sampler;
pub mod schedule;
mod tokens;
mod transformer;

pub use config::{ConfigError, ModelConfig, Prediction, Tokenization};
pub use diffusion::NoiseSchedule;
pub use executor::{Executor, Inputs, Target};
pub use normalizer::Normalizer;
pub use sampler::{NoiseSource, Sampler, SamplerConfig, SamplerKind, SeededNoise, Spacing};
pub use schedule::LearningRateSchedule;
pub use transformer::{ParameterSpec, Transformer};
