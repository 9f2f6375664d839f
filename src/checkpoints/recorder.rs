//! Records a training run from the loop that makes it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use dfdx::nn::TensorCollection;
use dfdx::shapes::Dtype;
use dfdx::tensor_ops::Device;
use num_traits::AsPrimitive;
use serde::{Deserialize, Serialize};

use super::store::Recorded;
use super::{Parameters, RunInfo, Store, StoreError};
use crate::network::flatten;

/// Why a run is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DropReason {
    /// A parameter is infinite or not a number.
    NonFiniteParameter,
    /// A metric is infinite or not a number.
    NonFiniteMetric,
    /// A parameter exceeds [`Filter::parameter_limit`](super::Filter).
    HugeParameter,
    /// A metric exceeds [`Filter::metric_limit`](super::Filter).
    HugeMetric,
    /// A parameter is too large for half precision, in which the store keeps it.
    HalfOverflow,
    /// It has fewer checkpoints than [`Filter::min_checkpoints`](super::Filter).
    TooFewCheckpoints,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NonFiniteParameter => "non-finite parameter",
            Self::NonFiniteMetric => "non-finite metric",
            Self::HugeParameter => "huge parameter",
            Self::HugeMetric => "huge metric",
            Self::HalfOverflow => "too large for f16",
            Self::TooFewCheckpoints => "too few checkpoints",
        })
    }
}

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the store.
    Kept {
        /// Number of its checkpoints.
        checkpoints: usize,
    },
    /// The store only counts it.
    Dropped(DropReason),
}

/// A run that is being recorded.
///
/// It is held in memory; [`finish`](Run::finish) stores it. Dropping it leaves
/// nothing in the store.
///
/// # Examples
/// ```
/// use dfdx::optim::{Optimizer as _, Sgd, SgdConfig};
/// use dfdx::prelude::*;
/// use lopt::checkpoints::{Metadata, Outcome, RunInfo, Store};
/// use lopt::metric::Metric;
/// use lopt::Network;
///
/// #[lopt::network]
/// struct Line {
///     slope: Linear<1, 1>,
/// }
///
/// # let folder = tempfile::tempdir()?;
/// let metadata = Metadata::new("line", Line::layout()?, vec![Metric::VALIDATION_LOSS]);
/// let store = Store::open_or_create(folder.path(), metadata)?;
/// let mut run = store.begin_run(RunInfo::new(0, 0))?;
///
/// let dev = Cpu::default();
/// let mut model = dev.build_module::<Line, f32>();
/// let mut sgd = Sgd::new(&model, SgdConfig { lr: 0.1, ..Default::default() });
/// let mut gradients = model.alloc_grads();
/// let x: Tensor<Rank2<4, 1>, f32, _> = dev.tensor([[0.0], [1.0], [2.0], [3.0]]);
/// for iteration in 0..20 {
///     let y = model.forward_mut(x.clone().traced(gradients));
///     let loss = mse_loss(y, x.clone() * 2.0);
///     run.at(iteration).record(&model, &[f64::from(loss.array())])?;
///     if run.reason().is_some() {
///         break; // The run has diverged, and will be dropped.
///     }
///     gradients = loss.backward();
///     sgd.update(&mut model, &gradients)?;
///     model.zero_grads(&mut gradients);
/// }
/// assert_eq!(run.finish()?, Outcome::Kept { checkpoints: 20 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Run {
    store: Store,
    info: RunInfo,
    iterations: Vec<u64>,
    metrics: Vec<f64>,
    parameters: Parameters,
    next: u64,
    reason: Option<DropReason>,
    cancel: Option<Arc<AtomicBool>>,
}

impl Run {
    pub(super) fn new(store: Store, info: RunInfo) -> Self {
        let parameters = Parameters::zeros(store.metadata().precision, 0);
        Self {
            store,
            info,
            iterations: Vec::new(),
            metrics: Vec::new(),
            parameters,
            next: 0,
            reason: None,
            cancel: None,
        }
    }

    pub(super) fn cancelled_by(mut self, flag: Option<Arc<AtomicBool>>) -> Self {
        self.cancel = flag;
        self
    }

    /// What was known of the run before it started.
    pub fn info(&self) -> &RunInfo {
        &self.info
    }

    /// Why the run will be dropped, as far as is known: a loop may stop early
    /// then. Too few checkpoints only count at the end.
    pub fn reason(&self) -> Option<DropReason> {
        self.reason
    }

    /// Number of checkpoints recorded.
    pub fn checkpoints(&self) -> usize {
        self.iterations.len()
    }

    /// Sets the iteration of the next checkpoint. Without, it is one more than
    /// that of the last one, 0 for the first.
    pub fn at(&mut self, iteration: u64) -> &mut Self {
        self.next = iteration;
        self
    }

    /// Records a checkpoint: the trainable parameters of a model, and one value
    /// for each metric of the store.
    ///
    /// A bad value is no error: the run goes on, and is dropped in the end.
    ///
    /// # Errors
    /// As [`record_flat`](Run::record_flat), and if the model cannot be read.
    pub fn record<M, E, D>(&mut self, model: &M, metrics: &[f64]) -> Result<(), StoreError>
    where
        M: TensorCollection<E, D>,
        E: Dtype + AsPrimitive<f32>,
        D: Device<E>,
    {
        let flat = flatten(model)
            .map_err(|e| StoreError::Network { id: self.info.id, source: Box::new(e) })?;
        let flat: Vec<f32> = flat.into_iter().map(|value: E| value.as_()).collect();
        self.record_flat(&flat, metrics)
    }

    /// Records a checkpoint: a flat parameter vector, and one value for each
    /// metric of the store.
    ///
    /// A bad value is no error: the run goes on, and is dropped in the end.
    ///
    /// # Errors
    /// If there are not as many values as the layout or the list of metrics
    /// asks for, the iteration is not later than the last one, or the recording
    /// is cancelled. The run is then as it was.
    pub fn record_flat(&mut self, parameters: &[f32], metrics: &[f64]) -> Result<(), StoreError> {
        let id = self.info.id;
        if self.cancel.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            return Err(StoreError::Cancelled { id });
        }
        let metadata = self.store.metadata();
        let (found, expected) = (parameters.len(), metadata.layout.num_parameters());
        if found != expected {
            return Err(StoreError::ParameterCount { id, found, expected });
        }
        let (found, expected) = (metrics.len(), metadata.metrics.len());
        if found != expected {
            let names = metadata.metric_names();
            return Err(StoreError::MetricCount { id, found, expected, names });
        }
        if let Some(&previous) = self.iterations.last().filter(|&&last| self.next <= last) {
            return Err(StoreError::Iteration { id, found: self.next, previous });
        }
        self.reason = self.reason.or_else(|| self.judge(parameters, metrics));
        self.iterations.push(self.next);
        self.next = self.next.saturating_add(1);
        if self.reason.is_none() {
            self.metrics.extend_from_slice(metrics);
            self.parameters.push(parameters);
        }
        Ok(())
    }

    /// What is wrong with a checkpoint.
    fn judge(&self, parameters: &[f32], metrics: &[f64]) -> Option<DropReason> {
        let metadata = self.store.metadata();
        let filter = &metadata.filter;
        // A maximum would pass over values that are not a number; their sum
        // with anything is none either.
        let largest = parameters.iter().fold(0.0f32, |m, p| m.max(p.abs()));
        let finite = parameters.iter().fold(0.0f32, |sum, p| sum + p * 0.0) == 0.0;
        if !finite {
            return Some(DropReason::NonFiniteParameter);
        }
        if metrics.iter().any(|m| !m.is_finite()) {
            return Some(DropReason::NonFiniteMetric);
        }
        if f64::from(largest) > filter.parameter_limit {
            return Some(DropReason::HugeParameter);
        }
        if metrics.iter().any(|m| m.abs() > filter.metric_limit) {
            return Some(DropReason::HugeMetric);
        }
        let half = metadata.precision == super::Precision::F16;
        if half && half::f16::from_f32(largest).is_infinite() {
            return Some(DropReason::HalfOverflow);
        }
        None
    }

    /// Ends the run, and stores it, or notes that it was dropped and why.
    ///
    /// When this returns, the run is on the disk.
    ///
    /// # Errors
    /// If the store cannot be written to (a full disk, above all), or has a run
    /// of that number by now. The store is then as it was.
    pub fn finish(self) -> Result<Outcome, StoreError> {
        let checkpoints = self.iterations.len();
        let too_few = (checkpoints < self.store.metadata().filter.min_checkpoints)
            .then_some(DropReason::TooFewCheckpoints);
        if let Some(reason) = self.reason.or(too_few) {
            self.store.write_dropped(self.info, reason)?;
            return Ok(Outcome::Dropped(reason));
        }
        let Self { store, info, iterations, metrics, parameters, .. } = self;
        store.write_kept(info, &Recorded { iterations, metrics, parameters })?;
        Ok(Outcome::Kept { checkpoints })
    }
}
