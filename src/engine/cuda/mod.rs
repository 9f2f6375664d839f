//! The engine on NVIDIA GPUs.
//!
//! The kernels are compiled for the device that is found, by NVRTC at run time; products of
//! matrices are cuBLASLt's. Both, and the driver, are loaded when they are first needed: what is
//! missing is an error that says so. Which kernel computes what is said in `ops`, and how noise
//! is drawn in `noise`.
//!
//! The same kernels run on the CPU in tests, compiled by a C++ compiler: everything but the
//! driver's calls and cuBLASLt is tested without a GPU. On a GPU, [`self_test`] compares all of
//! it with the CPU engine.

mod backend;
mod blas;
mod buffers;
pub(crate) mod check;
mod compile;
mod driver;
#[cfg(test)]
pub(crate) mod emulator;
mod kernels;
mod noise;
mod ops;
mod probe;

pub(crate) use backend::{parts, staged_len, Address, Argument, Backend};
pub(crate) use buffers::{arguments, Cuda, Lengths};
pub(crate) use driver::Gpu;
pub(crate) use noise::NoiseStreams;

pub(crate) use probe::devices;

pub use check::{self_test, Check};
