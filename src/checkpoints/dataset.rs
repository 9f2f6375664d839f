//! Recorded runs in memory.

use std::ops::Range;

use rayon::prelude::*;

use super::{Metadata, Parameters, Store, StoreError};
use crate::layout::Layout;
use crate::metric::Metric;

/// Standard deviation that parameters have after scaling: that of ImageNet pixels in
/// `-1..1`, which the diffusion process was made for.
pub(crate) const STANDARD_DEVIATION: f64 = 0.538;

/// Which runs of a store are loaded, and what they are scored by.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetConfig {
    /// What checkpoints are scored by. Default: validation loss, since G.pt may
    /// not see the test split.
    pub metric: Metric,
    /// Runs that are kept out of training: the last ones by number, whatever
    /// `train` is. Default: 0.
    pub held_out: usize,
    /// Runs to train on: the first ones by number. Default: none, all others.
    pub train: Option<usize>,
}

impl Default for DatasetConfig {
    fn default() -> Self {
        Self { metric: Metric::VALIDATION_LOSS, held_out: 0, train: None }
    }
}

/// Where a run lies in a [`Dataset`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSpan {
    /// Number of the run in its store.
    pub id: u64,
    /// Its checkpoints in the data set.
    pub checkpoints: Range<usize>,
}

/// Recorded runs in memory, in the precision that they are stored in.
///
/// # Source
/// The held-out runs are the last ones by number, as in G.pt's data set
/// (`data/gpt_dataset.py`, where run names are sorted).
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    layout: Layout,
    metric: Metric,
    parameters: Parameters,
    metrics: Vec<f64>,
    iterations: Vec<u64>,
    runs: Vec<RunSpan>,
    num_train: usize,
}

impl Dataset {
    /// Loads the kept runs of a store, in parallel.
    ///
    /// # Errors
    /// If the store cannot be read or is damaged, does not hold the metric, or
    /// has fewer runs than are asked for, or none to train on.
    pub fn load(store: &Store, config: &DatasetConfig) -> Result<Self, StoreError> {
        Self::load_all(std::slice::from_ref(store), config)
    }

    /// Loads the kept runs of several stores, recorded in different ways say: of each,
    /// the runs that [`load`](Self::load) takes.
    ///
    /// # Errors
    /// As [`load`](Self::load), and if the stores are of different tasks, networks or
    /// precisions, or there is none.
    pub fn load_all(stores: &[Store], config: &DatasetConfig) -> Result<Self, StoreError> {
        let Some(metadata) = stores.first().map(Store::metadata) else {
            let purpose = "are named, to train on";
            return Err(StoreError::TooFewRuns { found: 0, expected: 1, purpose });
        };
        if config.train == Some(0) {
            let expected = "at least 1, or none for all";
            return Err(StoreError::Setting { setting: "train", found: "0".into(), expected });
        }
        let (mut entries, mut held_out) = (Vec::new(), Vec::new());
        for store in stores {
            let own = store.metadata();
            // Of the metrics one is read, and what was dropped is not asked.
            let (metrics, filter) = (own.metrics.clone(), own.filter);
            let alike = Metadata { metrics, filter, ..metadata.clone() };
            own.check_matches(&alike, store.path())?;
            let column = own.metric_index(config.metric)?;
            let mut kept = store.runs()?;
            kept.retain(|entry| entry.checkpoints() > 0);
            let wanted = config.train.unwrap_or(1);
            let (found, expected) = (kept.len(), wanted.saturating_add(config.held_out));
            if found < expected {
                let purpose = "are in the store, to train on and to hold out";
                return Err(StoreError::TooFewRuns { found, expected, purpose });
            }
            let last = kept.split_off(found - config.held_out);
            kept.truncate(config.train.unwrap_or(kept.len()));
            let of_store = |entry| (store, column, entry);
            entries.extend(kept.into_iter().map(of_store));
            held_out.extend(last.into_iter().map(of_store));
        }
        let num_train = entries.len();
        entries.extend(held_out);

        let mut first = 0usize;
        let runs: Vec<RunSpan> = entries
            .iter()
            .map(|(_, _, entry)| {
                let checkpoints = first..first.saturating_add(entry.checkpoints());
                first = checkpoints.end;
                RunSpan { id: entry.info.id, checkpoints }
            })
            .collect();
        let num_parameters = metadata.layout.num_parameters();
        let mut len = 0;
        for (store, _, entry) in &entries {
            len += store.num_values(entry.checkpoints())?;
        }
        let mut parameters = Parameters::zeros(metadata.precision, len);
        let mut rest = parameters.bytes_mut();
        let mut slots = Vec::with_capacity(runs.len());
        for (store, column, entry) in &entries {
            let bytes = entry.checkpoints() * num_parameters * metadata.precision.bytes();
            let (slot, others) = rest.split_at_mut(bytes);
            slots.push((store, *column, entry, slot));
            rest = others;
        }
        let scores: Vec<(Vec<u64>, Vec<f64>)> = slots
            .into_par_iter()
            .map(|(store, column, entry, slot)| {
                let (iterations, all) = store.read_into(entry, Some(slot))?;
                let stride = store.metadata().metrics.len();
                let scores: Vec<f64> = all.into_iter().skip(column).step_by(stride).collect();
                // Such runs are dropped: a pair cannot be drawn from them.
                if scores.len() < 2 || scores.iter().any(|score| !score.is_finite()) {
                    let problem = format!("run {} should have been dropped", entry.info.id);
                    return Err(StoreError::Damaged { path: store.path().to_owned(), problem });
                }
                Ok((iterations, scores))
            })
            .collect::<Result<_, StoreError>>()?;
        let (iterations, metrics): (Vec<_>, Vec<_>) = scores.into_iter().unzip();
        Ok(Self {
            layout: metadata.layout.clone(),
            metric: config.metric,
            parameters,
            metrics: metrics.concat(),
            iterations: iterations.concat(),
            runs,
            num_train,
        })
    }

    /// Runs from memory: values of all checkpoints, and metrics of each run's.
    #[cfg(feature = "cuda")]
    pub(crate) fn from_values(
        layout: Layout,
        metric: Metric,
        precision: super::Precision,
        values: &[f32],
        metrics: &[Vec<f64>],
        held_out: usize,
    ) -> Self {
        let mut parameters = Parameters::zeros(precision, 0);
        parameters.push(values);
        let mut first = 0;
        let runs = metrics.iter().enumerate().map(|(id, metrics)| {
            let checkpoints = first..first + metrics.len();
            first = checkpoints.end;
            RunSpan { id: id as u64, checkpoints }
        });
        let runs: Vec<RunSpan> = runs.collect();
        let iterations = (0..first as u64).collect();
        let num_train = runs.len() - held_out;
        let metrics = metrics.concat();
        Self { layout, metric, parameters, metrics, iterations, runs, num_train }
    }

    /// The network.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What checkpoints are scored by.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// All runs: those to train on, then those held out, each store after store.
    pub fn runs(&self) -> &[RunSpan] {
        &self.runs
    }

    /// The runs to train on, of each store ordered by number.
    pub fn train(&self) -> &[RunSpan] {
        &self.runs[..self.num_train]
    }

    /// The runs held out, of each store ordered by number.
    pub fn held_out(&self) -> &[RunSpan] {
        &self.runs[self.num_train..]
    }

    /// Number of checkpoints of all runs.
    pub fn num_checkpoints(&self) -> usize {
        self.metrics.len()
    }

    /// Metric of every checkpoint: `&dataset.metrics()[run.checkpoints.clone()]`
    /// for one run.
    pub fn metrics(&self) -> &[f64] {
        &self.metrics
    }

    /// Training iteration of every checkpoint.
    pub fn iterations(&self) -> &[u64] {
        &self.iterations
    }

    /// Parameters of all checkpoints, `[checkpoint][parameter]`.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Writes the parameters of a checkpoint to `flat`.
    ///
    /// # Panics
    /// If there is no such checkpoint, or `flat` does not hold one.
    pub fn read(&self, checkpoint: usize, flat: &mut [f32]) {
        let num_parameters = self.layout.num_parameters();
        assert_eq!(flat.len(), num_parameters, "one value for each parameter");
        self.parameters.read(checkpoint * num_parameters, flat);
    }

    /// Statistics of the runs to train on.
    pub fn statistics(&self) -> Statistics {
        let num_parameters = self.layout.num_parameters();
        let moments: Vec<Moments> = self
            .train()
            .par_iter()
            .map(|run| {
                let mut flat = vec![0.0; num_parameters];
                let mut moments = Moments::default();
                for checkpoint in run.checkpoints.clone() {
                    self.read(checkpoint, &mut flat);
                    moments = moments.merge(Moments::of(&flat));
                }
                moments
            })
            .collect();
        // Merged in order, so that the result does not depend on the threads.
        let all = moments.into_iter().fold(Moments::default(), Moments::merge);
        let end = self.train().last().map_or(0, |run| run.checkpoints.end);
        let metrics = &self.metrics[..end];
        let minimum = metrics.iter().copied().fold(f64::INFINITY, f64::min);
        let maximum = metrics.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let direction = self.metric.kind.direction();
        let best = |run: &RunSpan| {
            let metrics = self.metrics[run.checkpoints.clone()].iter().copied();
            let better = |a, b| if direction.is_better(b, a) { b } else { a };
            metrics.reduce(better).unwrap_or(f64::NAN)
        };
        let initial = self.train().iter().map(|run| self.metrics[run.checkpoints.start]);
        let std = (all.squares / (all.count - 1.0)).sqrt();
        Statistics {
            parameter_mean: all.mean,
            parameter_std: std,
            parameter_min: all.minimum,
            parameter_max: all.maximum,
            metric_min: minimum,
            metric_max: maximum,
            mean_best_metric: self.train().iter().map(best).sum::<f64>() / self.num_train as f64,
            initial_metric_mean: initial.sum::<f64>() / self.num_train as f64,
        }
    }
}

/// Statistics of the runs that a [`Dataset`] trains on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// Mean of all parameters of all checkpoints.
    pub parameter_mean: f64,
    /// Standard deviation of all parameters of all checkpoints (unbiased: over
    /// the count minus one).
    pub parameter_std: f64,
    /// Smallest parameter.
    pub parameter_min: f64,
    /// Largest parameter.
    pub parameter_max: f64,
    /// Smallest metric of a checkpoint.
    pub metric_min: f64,
    /// Largest metric of a checkpoint.
    pub metric_max: f64,
    /// Best metric of a run, averaged over runs.
    pub mean_best_metric: f64,
    /// Mean metric of the first checkpoints.
    pub initial_metric_mean: f64,
}

impl Statistics {
    /// What parameters are multiplied by, so that they have the standard
    /// deviation that G.pt's diffusion process is made for.
    ///
    /// # Source
    /// The normaliser `openai` of the G.pt code (`data/normalization.py`).
    pub fn scale(&self) -> f64 {
        STANDARD_DEVIATION / self.parameter_std
    }
}

/// Count, mean and sum of squared deviations, which can be merged without loss
/// (Chan et al. 1979).
#[derive(Clone, Copy)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
    minimum: f64,
    maximum: f64,
}

impl Default for Moments {
    fn default() -> Self {
        let (minimum, maximum) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { count: 0.0, mean: 0.0, squares: 0.0, minimum, maximum }
    }
}

impl Moments {
    fn of(values: &[f32]) -> Self {
        let values = || values.iter().map(|&v| f64::from(v));
        let count = values().count() as f64;
        let mean = values().sum::<f64>() / count;
        let squares = values().map(|v| (v - mean).powi(2)).sum();
        let minimum = values().fold(f64::INFINITY, f64::min);
        let maximum = values().fold(f64::NEG_INFINITY, f64::max);
        Self { count, mean, squares, minimum, maximum }
    }

    fn merge(self, other: Self) -> Self {
        if self.count == 0.0 {
            return other;
        }
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + delta * other.count / count,
            squares: self.squares
                + other.squares
                + delta * delta * self.count * other.count / count,
            minimum: self.minimum.min(other.minimum),
            maximum: self.maximum.max(other.maximum),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoints::{Metadata, RunInfo};
    use crate::layout::{LayoutBuilder, Role};

    fn store(folder: &std::path::Path) -> Store {
        let mut layout = LayoutBuilder::new();
        layout.tensor("weight", &[2], Role::Weight);
        let metrics = vec![Metric::VALIDATION_LOSS, Metric::TEST_ERROR];
        let metadata = Metadata::new("t", layout.finish().unwrap(), metrics);
        let store = Store::create(folder, metadata).unwrap();
        // Not in order, and run 3 is dropped.
        for id in [4, 0, 3, 1, 2] {
            let mut run = store.begin_run(RunInfo::new(id, id)).unwrap();
            for i in 0..2 + id {
                let value = if id == 3 { f32::NAN } else { (10 * id + i) as f32 };
                let metrics = [f64::from(value), 100.0 - f64::from(value)];
                run.at(i * i).record_flat(&[value, -value], &metrics).unwrap();
            }
            run.finish().unwrap();
        }
        store
    }

    #[test]
    fn the_last_runs_are_held_out_whatever_the_number_to_train_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let ids = |runs: &[RunSpan]| runs.iter().map(|run| run.id).collect::<Vec<_>>();
        let load = |config| Dataset::load(&store, &config);
        let all = load(DatasetConfig::default()).unwrap();
        assert_eq!((ids(all.train()), ids(all.held_out())), (vec![0, 1, 2, 4], vec![]));
        for (train, expected) in [(None, vec![0, 1]), (Some(1), vec![0])] {
            let metric = Metric::TEST_ERROR;
            let data = load(DatasetConfig { held_out: 2, train, metric }).unwrap();
            assert_eq!((ids(data.train()), ids(data.held_out())), (expected, vec![2, 4]));
            for run in data.runs() {
                for (i, checkpoint) in run.checkpoints.clone().enumerate() {
                    let mut flat = [0.0; 2];
                    data.read(checkpoint, &mut flat);
                    let value = (10 * run.id) as f32 + i as f32;
                    assert_eq!(flat, [value, -value]);
                    assert_eq!(data.metrics()[checkpoint], 100.0 - f64::from(value));
                    assert_eq!(data.iterations()[checkpoint], (i * i) as u64);
                }
            }
        }
        let e = load(DatasetConfig { held_out: 4, ..Default::default() }).unwrap_err();
        assert!(matches!(e, StoreError::TooFewRuns { found: 4, expected: 5, .. }), "{e}");
        let e = load(DatasetConfig { metric: Metric::TEST_LOSS, ..Default::default() });
        let e = e.unwrap_err().to_string();
        assert!(e.contains("test loss, expected one of: validation loss, test error"), "{e}");
    }

    #[test]
    fn runs_of_several_stores_come_one_after_the_other() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let stores = [store(one.path()), store(two.path())];
        let config = DatasetConfig { held_out: 1, ..Default::default() };
        let data = Dataset::load_all(&stores, &config).unwrap();
        let ids = |runs: &[RunSpan]| runs.iter().map(|run| run.id).collect::<Vec<_>>();
        assert_eq!((ids(data.train()), ids(data.held_out())), (vec![0, 1, 2, 0, 1, 2], vec![4, 4]));
        for run in data.runs() {
            let mut flat = [0.0; 2];
            data.read(run.checkpoints.end - 1, &mut flat);
            assert_eq!(flat[0], (10 * run.id + run.id + 1) as f32);
        }
        let single = Dataset::load(&stores[0], &config).unwrap().statistics();
        let both = data.statistics();
        assert_eq!((both.metric_max, both.mean_best_metric), (single.metric_max, 10.0));

        let other = tempfile::tempdir().unwrap();
        let mut layout = LayoutBuilder::new();
        layout.tensor("weight", &[3], Role::Weight);
        let metadata = Metadata::new("t", layout.finish().unwrap(), vec![Metric::VALIDATION_LOSS]);
        let [first, _] = stores;
        let foreign = Store::create(other.path(), metadata).unwrap();
        let error = Dataset::load_all(&[first, foreign], &config).unwrap_err();
        assert!(matches!(error, StoreError::Layout { .. }), "{error}");
        assert!(matches!(Dataset::load_all(&[], &config), Err(StoreError::TooFewRuns { .. })));
    }

    #[test]
    fn statistics_are_those_of_the_runs_to_train_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let data =
            Dataset::load(&store, &DatasetConfig { held_out: 2, ..Default::default() }).unwrap();
        let values: Vec<f64> = [0.0, 1.0, 10.0, 11.0, 12.0].iter().flat_map(|&v| [v, -v]).collect();
        let variance = values.iter().map(|v| v * v).sum::<f64>() / (values.len() - 1) as f64;
        let found = data.statistics();
        assert!((found.parameter_std - variance.sqrt()).abs() < 1e-12);
        assert!((found.scale() - 0.538 / variance.sqrt()).abs() < 1e-12);
        assert!(found.parameter_mean.abs() < 1e-12);
        assert_eq!((found.parameter_min, found.parameter_max), (-12.0, 12.0));
        assert_eq!((found.metric_min, found.metric_max, found.mean_best_metric), (0.0, 12.0, 5.0));
        assert_eq!(found.initial_metric_mean, 5.0);
    }
}
