//! Learned optimizers for dfdx.

extern crate self as lopt;

pub mod engine;
pub mod error;
pub mod gpt;
pub mod layout;
pub mod metric;
pub mod symmetry;

pub use error::{Error, Result};
