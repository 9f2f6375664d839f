//! The contract of every optimizer that learns, and dfdx's own optimizers
//! behind it.
//!
//! A [`LearnedOptimizer`] is a dfdx [`Optimizer`], so that it goes wherever
//! `Sgd` or `Adam` go. Beyond that it is told how the model does
//! ([`observe`](LearnedOptimizer::observe)), says what it needs, explains what
//! went wrong, and can be saved. [`Adapter`] puts dfdx's `Sgd`, `Adam` and
//! `RMSprop` behind the same trait, so that one training loop runs them all:
//!
//! ```
//! use dfdx::prelude::*;
//! use lopt::optimizer::{Adapter, LearnedOptimizer, UpdateError};
//!
//! #[lopt::network]
//! struct Line {
//!     map: Linear<2, 1>,
//! }
//! type Model = lopt::network::Built<Line, f32, Cpu>;
//!
//! fn train(
//!     model: &mut Model,
//!     optimizer: &mut dyn LearnedOptimizer<Model, f32, Cpu>,
//! ) -> Result<f32, UpdateError> {
//!     let dev = Cpu::default();
//!     let x = dev.tensor([[0.0, 1.0], [1.0, 0.5], [0.3, 0.3]]);
//!     let y = dev.tensor([[1.0], [2.0], [0.5]]);
//!     let mut gradients = model.alloc_grads();
//!     let mut last = 0.0;
//!     for _ in 0..20 {
//!         let loss = mse_loss(model.forward_mut(x.trace(gradients)), y.clone());
//!         last = loss.array();
//!         optimizer.observe(last.into());
//!         gradients = loss.backward();
//!         optimizer.try_update(model, Some(&gradients))?;
//!         model.zero_grads(&mut gradients);
//!     }
//!     Ok(last)
//! }
//!
//! let start = Cpu::seed_from_u64(0).build_module::<Line, f32>();
//! let optimizers: [Box<dyn LearnedOptimizer<Model, f32, Cpu>>; 2] = [
//!     Box::new(Adapter::sgd(&start, SgdConfig { lr: 0.2, ..Default::default() })?),
//!     Box::new(Adapter::adam(&start, AdamConfig { lr: 0.1, ..Default::default() })?),
//! ];
//! for mut optimizer in optimizers {
//!     let loss = train(&mut start.clone(), &mut *optimizer)?;
//!     assert!(loss < 1.0, "{} ends at {loss}", optimizer.name());
//! }
//! # Ok::<(), lopt::Error>(())
//! ```

mod adapter;

use dfdx::optim::{Optimizer, OptimizerUpdateError, UnusedTensors};
use dfdx::shapes::Dtype;
use dfdx::tensor::{Gradients, UniqueId};
use dfdx::tensor_ops::Device;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use adapter::{Adapter, Rule};

use crate::layout::LayoutError;
use crate::network::NetworkError;

/// What an optimizer is told about the model between updates.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Feedback {
    /// Metric of the model as it is now, the one that the optimizer was trained
    /// on: validation loss, error or return.
    pub metric: f64,
}

impl From<f64> for Feedback {
    fn from(metric: f64) -> Self {
        Self { metric }
    }
}

impl From<f32> for Feedback {
    fn from(metric: f32) -> Self {
        Self { metric: metric.into() }
    }
}

/// What an optimizer has to be given for each update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Needs {
    /// Gradients of the model.
    pub gradients: bool,
    /// A call of [`observe`](LearnedOptimizer::observe).
    pub feedback: bool,
}

impl Needs {
    /// Gradients only, as dfdx's own optimizers.
    pub const GRADIENTS: Self = Self { gradients: true, feedback: false };
    /// Feedback only, as G.pt.
    pub const FEEDBACK: Self = Self { gradients: false, feedback: true };
}

/// What to do with a prompt outside the range that the weights were trained on.
///
/// A model that is asked for more than its data shows gets worse, not better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptPolicy {
    /// Ask for the nearest value inside the range, and report it. The default.
    #[default]
    Clamp,
    /// Fail with [`UpdateError::PromptOutOfRange`].
    Reject,
    /// Ask for the value all the same.
    Extrapolate,
}

/// The prompt of an update, and what was made of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AppliedPrompt {
    /// Value that the user asked for.
    pub asked: f64,
    /// Value that the model was given.
    pub applied: f64,
}

impl AppliedPrompt {
    /// Whether the prompt was moved into the trained range.
    pub fn is_clamped(&self) -> bool {
        self.asked != self.applied
    }
}

/// What an update did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct UpdateReport {
    /// Evaluations of the learned model; 0 for an optimizer without one.
    pub evaluations: usize,
    /// The prompt, for an optimizer that has one.
    pub prompt: Option<AppliedPrompt>,
}

/// Why an update was not made. The model is unchanged, bit for bit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The optimizer needs gradients and was called without.
    #[error("the optimizer needs gradients, found none")]
    NoGradients,
    /// Some tensors took no part in the backward pass.
    #[error("{} found no gradient, expected one for every trainable tensor", list(tensors))]
    MissingGradient {
        /// Dotted field paths of the tensors.
        tensors: Vec<String>,
        /// dfdx's identifiers of the tensors, in the same order.
        ids: Vec<UniqueId>,
    },
    /// A gradient holds an infinity or a NaN.
    #[error("the gradient of tensor `{tensor}` is not finite")]
    NonFiniteGradient {
        /// Dotted field path of the tensor.
        tensor: String,
    },
    /// The update would have led to an infinity or a NaN.
    #[error("the update of tensor `{tensor}` is not finite")]
    NonFiniteResult {
        /// Dotted field path of the tensor.
        tensor: String,
    },
    /// The optimizer needs to know how the model does.
    #[error("nothing was observed since the last update, expected a metric of the model")]
    NoFeedback,
    /// What was observed is an infinity or a NaN.
    #[error("the observed metric is {metric}, expected a finite value")]
    NonFiniteFeedback {
        /// The metric.
        metric: f64,
    },
    /// The prompt lies outside the trained range, and the policy is
    /// [`PromptPolicy::Reject`].
    #[error("the prompt is {asked}, expected a value from {low} to {high}")]
    PromptOutOfRange {
        /// Value that was asked for.
        asked: f64,
        /// Lowest value of the range.
        low: f64,
        /// Highest value of the range.
        high: f64,
    },
    /// The model is not the network that the optimizer was made for.
    #[error("the model is not the one that the optimizer was made for")]
    Layout(#[from] LayoutError),
    /// The parameters could not be read or written.
    #[error("the parameters could not be read or written")]
    Network(#[from] NetworkError),
    /// The optimizer failed for a reason of its own.
    #[error("the optimizer failed")]
    Optimizer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn list(names: &[String]) -> String {
    let kind = if names.len() == 1 { "tensor" } else { "tensors" };
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    format!("{kind} {}", names.join(", "))
}

impl UpdateError {
    /// The nearest that dfdx's optimizers can report: unused tensors, none of
    /// them unless gradients were missing.
    pub fn to_dfdx<Err>(&self) -> OptimizerUpdateError<Err> {
        let ids = match self {
            Self::MissingGradient { ids, .. } => ids.clone(),
            _ => Vec::new(),
        };
        OptimizerUpdateError::UnusedParams(UnusedTensors { ids })
    }
}

/// Why the state of an optimizer could not be saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The optimizer cannot save its state.
    #[error("the state of `{optimizer}` cannot be saved: {reason}")]
    Unsupported {
        /// Name of the optimizer.
        optimizer: String,
        /// Why not.
        reason: &'static str,
    },
    /// The state belongs to another optimizer.
    #[error("this is a state of `{found}`, expected one of `{expected}`")]
    Optimizer {
        /// Name in the state.
        found: String,
        /// Name of the optimizer.
        expected: String,
    },
    /// The state belongs to another model.
    #[error("the state of tensor {index} is `{found}`, expected `{expected}`")]
    Tensor {
        /// Position of the tensor.
        index: usize,
        /// Tensor in the state, with its number of values.
        found: String,
        /// Tensor of the model, with its number of values.
        expected: String,
    },
    /// The state belongs to an optimizer of another network.
    #[error("this is a state for the network {found}, expected one for {expected}")]
    Fingerprint {
        /// Fingerprint of the network in the state.
        found: String,
        /// Fingerprint of the network that the optimizer is for.
        expected: String,
    },
    /// The state holds a value that the model's dtype does not.
    #[error("the state of tensor `{tensor}` is not finite")]
    NonFinite {
        /// Dotted field path of the tensor.
        tensor: String,
    },
    /// The state does not hold what the optimizer saves.
    #[error("the state is not readable")]
    Malformed(#[from] serde_json::Error),
    /// The model's device failed.
    #[error("the state could not be copied")]
    Network(#[from] NetworkError),
}

/// What an optimizer has to remember between updates, to be stored as JSON.
///
/// Hyperparameters are not part of it: restore it into an optimizer made with
/// the same ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerState {
    optimizer: String,
    state: serde_json::Value,
}

impl OptimizerState {
    /// The state of the optimizer called `optimizer`.
    ///
    /// # Errors
    /// If `state` cannot be written as JSON.
    pub fn new(optimizer: &str, state: &impl Serialize) -> Result<Self, StateError> {
        Ok(Self { optimizer: optimizer.to_owned(), state: serde_json::to_value(state)? })
    }

    /// Name of the optimizer that saved it.
    pub fn optimizer(&self) -> &str {
        &self.optimizer
    }

    /// What the optimizer called `optimizer` saved.
    ///
    /// # Errors
    /// If another optimizer saved it, or if it does not hold a `T`.
    pub fn read<T: DeserializeOwned>(&self, optimizer: &str) -> Result<T, StateError> {
        if self.optimizer != optimizer {
            let (found, expected) = (self.optimizer.clone(), optimizer.to_owned());
            return Err(StateError::Optimizer { found, expected });
        }
        Ok(T::deserialize(&self.state)?)
    }
}

/// An optimizer of the model `M` that can be fed more than gradients.
///
/// It fits optimizers that replace the parameters as a whole from what they are
/// told about the model, such as G.pt, and optimizers that follow gradients
/// with a rule, given or learned, and a state for every parameter.
///
/// # Contract
/// - An update succeeds whole, or fails and leaves the model unchanged, bit for
///   bit, and the optimizer as if it had not been called.
/// - What is missing or not finite is an error that says which.
/// - Two optimizers made alike and fed alike do the same.
/// - An optimizer into which a state is restored continues like the one that
///   saved it, or saving is [`StateError::Unsupported`].
///
/// `tests/contract.rs` holds every optimizer of this crate to it.
pub trait LearnedOptimizer<M, E: Dtype, D: Device<E>>: Optimizer<M, D, E> {
    /// Short name, for tables and files.
    fn name(&self) -> &str;

    /// What an update has to be given.
    fn needs(&self) -> Needs;

    /// Tells how the model does now. Holds for the next update; optimizers that
    /// need no feedback ignore it.
    fn observe(&mut self, feedback: Feedback);

    /// One update, as dfdx's `update`, but with an error that says what went
    /// wrong, and without gradients for optimizers that need none.
    ///
    /// # Errors
    /// If something that the optimizer [needs](Self::needs) is missing or not
    /// finite, or the result would not be finite. The model is unchanged then.
    fn try_update(
        &mut self,
        model: &mut M,
        gradients: Option<&Gradients<E, D>>,
    ) -> Result<UpdateReport, UpdateError>;

    /// Why the last call of dfdx's `update` failed, whose own error can only
    /// name unused tensors; `None` if it did not.
    fn last_error(&self) -> Option<&UpdateError>;

    /// What has to be saved to continue later.
    ///
    /// # Errors
    /// [`StateError::Unsupported`] if the optimizer cannot be saved.
    fn state(&self) -> Result<OptimizerState, StateError>;

    /// Continues from a saved state.
    ///
    /// # Errors
    /// If the state belongs to another optimizer or another model. The
    /// optimizer is unchanged then.
    fn restore(&mut self, state: &OptimizerState) -> Result<(), StateError>;
}
