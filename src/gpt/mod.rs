//! G.pt: a diffusion transformer over network checkpoints.
//!
//! # Source
//! Peebles et al. 2022, arXiv:2209.12892.

pub mod config;
mod embedding;
mod executor;
mod tokens;
mod transformer;

pub use config::{ConfigError, ModelConfig, Prediction, Tokenization};
pub use executor::{Executor, Inputs, Target};
pub use transformer::{ParameterSpec, Transformer};
