//! Layers that dfdx 0.13 lacks on stable Rust: convolution, pooling and flatten
//! for images, and the activation SELU.
//!
//! They are ordinary dfdx modules. They stand in tuples and in structs with
//! `#[lopt::network]`, build on a device with `f32` or `f64`, train with dfdx's
//! optimizers, and are saved to safetensors under the names `weight` and `bias`.
//!
//! ```
//! use dfdx::prelude::*;
//! use lopt::nn;
//!
//! /// The convolutional network of the G.pt paper, for grey images.
//! #[lopt::network]
//! struct Cnn {
//!     first: nn::Conv2D<1, 16, 3, 2>,
//!     first_activation: ReLU,
//!     second: nn::Conv2D<16, 32, 3>,
//!     second_activation: ReLU,
//!     pool: nn::AvgPoolGlobal,
//!     output: Linear<32, 10>,
//! }
//!
//! let dev = Cpu::default();
//! let mut model = dev.build_module::<Cnn, f32>();
//! let images = dev.sample_normal::<Rank4<8, 1, 28, 28>>();
//! let scores = model.forward_mut(images.leaky_trace());
//! let gradients = scores.square().mean().backward();
//! assert_eq!(gradients.get(&model.first.bias).shape().num_elements(), 16);
//! ```
//!
//! Stable Rust cannot compute the sizes of images in types, so after a
//! convolution or a pooling layer height and width are known at run time only
//! (`usize`); the number of channels stays in the type. [`Flatten2D`] and
//! [`AvgPoolGlobal`] lead back to sizes known at compile time. dfdx's own
//! `BatchNorm2D` takes such images as it is.
//!
//! # Threads
//! The images of a batch are shared out to the threads of the rayon pool that
//! the caller is in, or of rayon's global pool if it is in none, as dfdx does
//! with matrix products. In a pool of one thread nothing is started. Same
//! number of threads: the same bits.
//!
//! # Gradients of the input
//! dfdx does not tell whether anyone needs the gradient of the input, so it is
//! always computed, that of the first layer too.

pub(crate) mod activation;
mod conv;
mod convolution;
mod device;
#[doc(hidden)]
pub mod frozen;
mod grid;
mod kernels;
mod lanes;
mod layout;
mod parameter;
mod pool;
mod pooling;
mod shape;

pub use activation::SeLU;
pub use conv::builders::{Conv2D, UnbiasedConv2D};
pub use conv::ConvWeight;
pub use device::HostDevice;
pub use lanes::Value;
pub use parameter::Parameter;
pub use pool::{AvgPool2D, AvgPoolGlobal, Flatten2D, MaxPool2D};
pub use shape::Quotient;

/// What dfdx builds from the layers of this module.
pub mod modules {
    pub use super::conv::{Conv2D, UnbiasedConv2D};
    pub use super::pool::{AvgPool2D, AvgPoolGlobal, Flatten2D, MaxPool2D};
}
