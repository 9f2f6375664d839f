//! Recorded training runs: how they are stored, read, filtered and paired.
//!
//! A learned optimizer is trained on the checkpoints of many ordinary training
//! runs. A [`Store`] keeps them on disk, a [`Run`] records one of them from any
//! dfdx loop, [`record_runs`] records many in parallel, a [`Dataset`] holds
//! them in memory, and a [`PairSampler`] draws the pairs of an earlier and a
//! later checkpoint that G.pt is trained on.
//!
//! # Examples
//! ```
//! use lopt::checkpoints::{Dataset, DatasetConfig, Metadata, RunInfo, Store};
//! use lopt::layout::{LayoutBuilder, Role};
//! use lopt::metric::Metric;
//!
//! let folder = tempfile::tempdir()?;
//! let mut layout = LayoutBuilder::new();
//! layout.tensor("weight", &[2], Role::Weight);
//! let metadata = Metadata::new("slope", layout.finish()?, vec![Metric::VALIDATION_LOSS]);
//!
//! let store = Store::create(folder.path().join("runs"), metadata)?;
//! for id in 0..3 {
//!     let mut run = store.begin_run(RunInfo::new(id, id))?;
//!     run.record_flat(&[0.0, 0.0], &[1.0])?;
//!     run.record_flat(&[0.5, 1.5], &[0.1])?;
//!     run.finish()?;
//! }
//!
//! let dataset = Dataset::load(&store, &DatasetConfig { held_out: 1, ..Default::default() })?;
//! assert_eq!((dataset.train().len(), dataset.held_out().len()), (2, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod datafile;
mod dataset;
mod environment;
mod error;
mod metadata;
mod pairs;
mod parallel;
mod parameters;
mod recorder;
mod store;
mod summary;

pub(crate) use dataset::STANDARD_DEVIATION;
pub use dataset::{Dataset, DatasetConfig, RunSpan, Statistics};
pub use error::StoreError;
pub use metadata::{Filter, Metadata, Precision};
pub use pairs::{Pair, PairBatch, PairConfig, PairSampler, Part};
pub use parallel::{record_runs, FailedRun, Progress, RecordOptions, RecordReport};
pub use parameters::Parameters;
pub use recorder::{DropReason, Outcome, Run};
pub use store::{RecordedRun, RunEntry, RunInfo, RunStatus, Store};
pub use summary::{MetricSummary, Range, Summary};
