//! Fused kernels under G.pt, on flat buffers.
//!
//! dfdx has no runtime-sized parameters and runs every small operation by
//! itself, so the transformer does not run on its tensors. Instead its forward
//! and backward pass are written once over a few fused operations, `Ops`.
//! They read and write flat buffers at offsets that are fixed when a model is
//! built; nothing is allocated during a step.
//!
//! Same seed, same number of threads: the same bits.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod float;
mod ops;
mod optimize;
mod pages;
mod threads;
mod transpose;

pub(crate) use cpu::{exp_negative, linear};
pub use device::{devices, Device, DeviceError, DeviceReport, Math};
pub use float::Float;
pub(crate) use ops::{AttentionShape, EdgeShape, EdgeSlots, LayerNorm, Linear, Ops, Slot, Write};
pub use optimize::{adamw_ema, global_norm, AdamW, Update};
pub use pages::{copied, zeros};
pub use threads::Threads;

/// Why a pass could not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A buffer has the wrong length.
    #[error("`{buffer}` holds {found} values, expected {expected}")]
    Length {
        /// What the buffer is for.
        buffer: &'static str,
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// There are more samples than the executor was built for.
    #[error("the batch has {found} samples, expected 1 to {capacity}")]
    Batch {
        /// Samples found.
        found: usize,
        /// The most the executor takes.
        capacity: usize,
    },
    /// A gradient was asked of an executor that was built for inference.
    #[error("this executor was built for inference, expected one built for training")]
    InferenceOnly,
    /// Packed parameters were asked for, and there are none.
    #[error("no parameters were packed, expected a call of `pack` before")]
    NotPacked,
    /// Activations, or gradients and moments of parameters, do not fit into memory.
    #[error("cannot allocate memory for {values} values")]
    Memory {
        /// Values that are needed.
        values: usize,
    },
    /// The threads could not be started.
    #[error("cannot start {threads} threads: {problem}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        problem: String,
    },
    /// A GPU cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl EngineError {
    /// Checks the length of a buffer.
    pub(crate) fn check(
        buffer: &'static str,
        found: usize,
        expected: usize,
    ) -> Result<(), EngineError> {
        if found == expected {
            Ok(())
        } else {
            Err(Self::Length { buffer, found, expected })
        }
    }
}
