//! G.pt: a diffusion transformer over network checkpoints.
//!
//! # Source
//! Peebles et al. 2022, arXiv:2209.12892.

pub mod config;

pub use config::{ConfigError, ModelConfig, Prediction, Tokenization};
