//! What a store holds, in a few lines.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::{DropReason, Precision, RunStatus, Store, StoreError};
use crate::layout::Fingerprint;
use crate::metric::{Direction, Metric};

/// What a store holds: what `lopt inspect` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Folder of the store.
    pub path: PathBuf,
    /// Name of the task.
    pub task: String,
    /// Structure of the network.
    pub fingerprint: Fingerprint,
    /// Name and shape of each tensor.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Parameters of a checkpoint.
    pub num_parameters: usize,
    /// How parameters are stored.
    pub precision: Precision,
    /// Runs kept.
    pub kept: usize,
    /// Runs dropped, by reason.
    pub dropped: BTreeMap<DropReason, usize>,
    /// Checkpoints of all kept runs.
    pub checkpoints: usize,
    /// One for each metric of the store.
    pub metrics: Vec<MetricSummary>,
    /// Bytes of the data file.
    pub bytes: u64,
    /// What the recorder noted.
    pub provenance: serde_json::Value,
}

/// Values of one metric over the kept runs of a store.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetricSummary {
    /// The metric.
    pub metric: Metric,
    /// Over the first checkpoint of each run.
    pub first: Range,
    /// Over the last checkpoint of each run.
    pub last: Range,
    /// Over the best checkpoint of each run.
    pub best: Range,
}

/// Smallest, largest and mean value. Not a number if there are no values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// Smallest value.
    pub min: f64,
    /// Mean value.
    pub mean: f64,
    /// Largest value.
    pub max: f64,
}

impl Range {
    fn of(values: &[f64]) -> Self {
        Self {
            min: values.iter().copied().fold(f64::NAN, f64::min),
            mean: values.iter().sum::<f64>() / values.len() as f64,
            max: values.iter().copied().fold(f64::NAN, f64::max),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4} ({:.4} to {:.4})", self.mean, self.min, self.max)
    }
}

impl Store {
    /// Sums up what the store holds. Parameters are not read.
    ///
    /// # Errors
    /// If the store cannot be read or is damaged.
    pub fn summary(&self) -> Result<Summary, StoreError> {
        let metadata = self.metadata();
        let mut dropped = BTreeMap::new();
        let (mut kept, mut checkpoints) = (0, 0);
        let count = metadata.metrics.len();
        let mut values = vec![[const { Vec::new() }; 3]; count];
        for entry in self.runs()? {
            if let RunStatus::Dropped { reason } = entry.status {
                *dropped.entry(reason).or_default() += 1;
                continue;
            }
            let (_, scores) = self.read_into(&entry, None)?;
            kept += 1;
            checkpoints += entry.checkpoints();
            for (i, (metric, [first, last, best])) in
                metadata.metrics.iter().zip(&mut values).enumerate()
            {
                let column = || scores.iter().copied().skip(i).step_by(count);
                let better = match metric.kind.direction() {
                    Direction::Minimize => f64::min,
                    Direction::Maximize => f64::max,
                };
                first.extend(column().next());
                last.extend(column().next_back());
                best.extend(column().reduce(better));
            }
        }
        let metrics = metadata
            .metrics
            .iter()
            .zip(&values)
            .map(|(&metric, [first, last, best])| MetricSummary {
                metric,
                first: Range::of(first),
                last: Range::of(last),
                best: Range::of(best),
            })
            .collect();
        let tensors = metadata.layout.tensors();
        Ok(Summary {
            path: self.path().to_owned(),
            task: metadata.task.clone(),
            fingerprint: metadata.layout.fingerprint(),
            tensors: tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect(),
            num_parameters: metadata.layout.num_parameters(),
            precision: metadata.precision,
            kept,
            dropped,
            checkpoints,
            metrics,
            bytes: self.bytes()?,
            provenance: metadata.provenance.clone(),
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "store        {}", self.path.display())?;
        writeln!(f, "task         {}", self.task)?;
        writeln!(f, "network      {} parameters, {}", self.num_parameters, self.fingerprint)?;
        for (name, shape) in &self.tensors {
            writeln!(f, "  {name} {shape:?}")?;
        }
        writeln!(f, "precision    {}", self.precision)?;
        let dropped: usize = self.dropped.values().sum();
        writeln!(f, "runs         {} kept, {dropped} dropped", self.kept)?;
        for (reason, count) in &self.dropped {
            writeln!(f, "  {count} {reason}")?;
        }
        writeln!(f, "checkpoints  {}", self.checkpoints)?;
        if self.kept > 0 {
            writeln!(f, "metrics      mean over runs (smallest to largest)")?;
            for m in &self.metrics {
                writeln!(f, "  {}", m.metric)?;
                writeln!(f, "    first {}", m.first)?;
                writeln!(f, "    last  {}", m.last)?;
                writeln!(f, "    best  {}", m.best)?;
            }
        }
        writeln!(f, "on disk      {:.1} MB", self.bytes as f64 / 1e6)?;
        if !self.provenance.is_null() {
            writeln!(f, "provenance   {}", self.provenance)?;
        }
        Ok(())
    }
}
