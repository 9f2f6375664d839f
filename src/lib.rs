#![doc = include_str!("../README.md")]

extern crate self as lopt;

pub mod checkpoints;
pub mod engine;
pub mod error;
pub mod eval;
pub mod gpt;
pub mod layout;
pub mod metric;
pub mod network;
pub mod nn;
pub mod optimizer;
pub mod report;
pub mod symmetry;
pub mod tasks;

pub use error::{Error, Result};
pub use gpt::{Gpt, Pretrained};
pub use lopt_macros::network;
pub use network::Network;
pub use optimizer::LearnedOptimizer;

/// What the code that `#[lopt::network]` writes refers to. Not a public interface.
#[doc(hidden)]
pub mod __private {
    pub use core::fmt::Debug;
    pub use core::option::Option;
    pub use core::result::Result;

    pub use dfdx::nn::{BuildOnDevice, Module, ModuleMut, ModuleVisitor, TensorCollection};
    pub use dfdx::shapes::Dtype;
    pub use dfdx::tensor::WithEmptyTape;
    pub use dfdx::tensor_ops::Device;

    pub use crate::layout::LayoutBuilder;
    pub use crate::network::fields::{
        filled, BareTensor, BuiltTensor, ResidualOutput, SkippedField,
    };
    pub use crate::network::Layer;
    pub use crate::nn::frozen::FrozenField;
}
