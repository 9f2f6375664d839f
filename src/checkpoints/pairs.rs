//! Draws pairs of an earlier and a later checkpoint of one run.
//!
//! Shape letters: `N` pairs in a batch, `P` parameters.
//!
//! # Source
//! `ParameterDataset` of the G.pt code (`data/gpt_dataset.py`); the options are
//! this crate's.

use std::ops::Range;
use std::sync::Arc;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{Dataset, RunSpan, StoreError};
use crate::symmetry::{Symmetry, Transformation};

/// Which runs pairs are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The runs to train on.
    Train,
    /// The runs held out.
    HeldOut,
}

/// How pairs are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct PairConfig {
    /// Share of the pairs that start at the first checkpoint of the run, beside
    /// those that do so by chance. Default: 0, as in G.pt.
    pub from_start: f64,
    /// Share of the pairs whose later checkpoint is drawn by its metric: that
    /// nearest to a value drawn uniformly from those that the rest of the run
    /// takes. Prompts of the middle of the range, which few checkpoints of a run
    /// have, are then trained as often as others. The later checkpoint of the
    /// other pairs is drawn by index. Default: 0, as in G.pt.
    pub by_metric: f64,
    /// Whether hidden units are reordered at random, and change their signs where
    /// that leaves the network's function unchanged, anew for every pair and
    /// equally in both checkpoints. Default: true.
    pub permute: bool,
    /// What parameters are multiplied by. Default: 1; to train, take
    /// [`Statistics::scale`](super::Statistics::scale).
    pub scale: f64,
    /// Seed. Default: 0.
    pub seed: u64,
}

impl Default for PairConfig {
    fn default() -> Self {
        Self { from_start: 0.0, by_metric: 0.0, permute: true, scale: 1.0, seed: 0 }
    }
}

/// Two checkpoints of one run, counted from its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// The earlier checkpoint.
    pub start: usize,
    /// The later checkpoint.
    pub end: usize,
}

impl PairConfig {
    /// Checks that the settings can be used.
    ///
    /// # Errors
    /// If `from_start` or `by_metric` is no share, or `scale` no positive finite
    /// number.
    pub fn validate(&self) -> Result<(), StoreError> {
        let shares = [("from_start", self.from_start), ("by_metric", self.by_metric)];
        for (setting, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                let expected = "a share, 0 to 1";
                return Err(StoreError::Setting { setting, found: share.to_string(), expected });
            }
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            return Err(StoreError::Setting {
                setting: "scale",
                found: self.scale.to_string(),
                expected: "a positive finite number",
            });
        }
        Ok(())
    }

    /// Draws a pair from a run whose checkpoints have these metrics.
    ///
    /// G.pt's rule draws a distance from `1..n`, then a start from those that
    /// leave room for it, where `n` is the number of checkpoints.
    ///
    /// # Panics
    /// If there are fewer than two checkpoints, or `from_start` or `by_metric` is no
    /// share.
    pub fn draw(&self, metrics: &[f64], rng: &mut impl Rng) -> Pair {
        let n = metrics.len();
        let pair = if self.from_start > 0.0 && rng.gen_bool(self.from_start) {
            Pair { start: 0, end: rng.gen_range(1..n) }
        } else {
            let distance = rng.gen_range(1..n);
            let start = rng.gen_range(0..n - distance);
            Pair { start, end: start + distance }
        };
        let (low, high) = range(&metrics[pair.start + 1..]);
        if self.by_metric > 0.0 && low < high && rng.gen_bool(self.by_metric) {
            let value = rng.gen_range(low..=high);
            return Pair { end: nearest(metrics, pair.start + 1, value), ..pair };
        }
        pair
    }

    /// Probability of every pair that [`draw`](PairConfig::draw) can return,
    /// ordered by start and end.
    ///
    /// # Panics
    /// If there are fewer than two checkpoints.
    ///
    /// # Examples
    /// ```
    /// use lopt::checkpoints::{Pair, PairConfig};
    ///
    /// let law = PairConfig::default().probabilities(&[3.0, 2.0, 1.0]);
    /// assert_eq!(law[1], (Pair { start: 0, end: 2 }, 0.5));
    /// ```
    pub fn probabilities(&self, metrics: &[f64]) -> Vec<(Pair, f64)> {
        let n = metrics.len();
        assert!(n >= 2, "a pair needs two checkpoints");
        let last = (n - 1) as f64;
        let mut law = Vec::new();
        for start in 0..n - 1 {
            let by_index: Vec<f64> = (start + 1..n)
                .map(|end| {
                    let distance = end - start;
                    let rule = 1.0 / (last * (n - distance) as f64);
                    let from_start = if start == 0 { 1.0 / last } else { 0.0 };
                    self.from_start * from_start + (1.0 - self.from_start) * rule
                })
                .collect();
            let (low, high) = range(&metrics[start + 1..]);
            let ends: Vec<f64> = if self.by_metric > 0.0 && low < high {
                let total: f64 = by_index.iter().sum();
                let shares = shares(&metrics[start + 1..]);
                let by_metric = |share: f64| self.by_metric * total * share;
                let pairs = by_index.iter().zip(shares);
                pairs.map(|(p, share)| (1.0 - self.by_metric) * p + by_metric(share)).collect()
            } else {
                // There the shares of the range are not numbers.
                by_index
            };
            let pairs = ends.into_iter().enumerate();
            law.extend(
                pairs
                    .map(|(i, p)| (Pair { start, end: start + 1 + i }, p))
                    .filter(|&(_, p)| p > 0.0),
            );
        }
        law
    }
}

fn range(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    (low, values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

/// Position, not before `first`, of the metric nearest to `value`; the first of
/// several.
fn nearest(metrics: &[f64], first: usize, value: f64) -> usize {
    let mut best = first;
    for i in first..metrics.len() {
        if (metrics[i] - value).abs() < (metrics[best] - value).abs() {
            best = i;
        }
    }
    best
}

/// For each value, the share of the range of all that is nearest to it.
fn shares(values: &[f64]) -> Vec<f64> {
    let (low, high) = range(values);
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]).then(a.cmp(&b)));
    order.dedup_by(|b, a| values[*a] == values[*b]);
    let mut shares = vec![0.0; values.len()];
    for (k, &i) in order.iter().enumerate() {
        let between = |j: usize| 0.5 * (values[i] + values[order[j]]);
        let from = if k == 0 { low } else { between(k - 1) };
        let to = if k + 1 == order.len() { high } else { between(k + 1) };
        shares[i] = (to - from) / (high - low);
    }
    shares
}

/// Buffers for a batch of pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct PairBatch {
    /// Earlier checkpoints, normalised, `[N, P]`.
    pub start: Vec<f32>,
    /// Later checkpoints, normalised, `[N, P]`.
    pub end: Vec<f32>,
    /// Metrics of the earlier checkpoints, `[N]`.
    pub start_metric: Vec<f64>,
    /// Metrics of the later checkpoints, `[N]`.
    pub end_metric: Vec<f64>,
}

impl PairBatch {
    /// Buffers for `size` pairs of checkpoints of `num_parameters` each.
    pub fn new(size: usize, num_parameters: usize) -> Self {
        Self {
            start: vec![0.0; size * num_parameters],
            end: vec![0.0; size * num_parameters],
            start_metric: vec![0.0; size],
            end_metric: vec![0.0; size],
        }
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.start_metric.len()
    }

    /// Whether there is room for no pair.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which checkpoints are a pair of a batch, and what is done with both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DrawnPair {
    /// Checkpoints, counted from the first of the data set.
    pub pair: Pair,
    /// How units move, as [`Symmetry::sample_moves`] draws it; none if they stay.
    pub moves: Option<Vec<i32>>,
}

/// Draws batches of pairs.
///
/// Every run is drawn once before any is drawn again, in a new order each time.
/// A batch depends on the configuration, the step and the size of the batch
/// only, not on the batches before it: training that is resumed sees the
/// batches that it would have seen.
///
/// # Examples
/// ```
/// # use lopt::checkpoints::{Dataset, DatasetConfig, Metadata, RunInfo, Store};
/// # use lopt::layout::{LayoutBuilder, Role};
/// # use lopt::metric::Metric;
/// use lopt::checkpoints::{PairBatch, PairConfig, PairSampler, Part};
///
/// # let folder = tempfile::tempdir()?;
/// # let mut layout = LayoutBuilder::new();
/// # layout.tensor("weight", &[2], Role::Weight);
/// # let metadata = Metadata::new("t", layout.finish()?, vec![Metric::VALIDATION_LOSS]);
/// # let store = Store::create(folder.path(), metadata)?;
/// # let mut run = store.begin_run(RunInfo::new(0, 0))?;
/// # run.record_flat(&[0.0, 1.0], &[1.0])?;
/// # run.record_flat(&[0.5, 1.5], &[0.1])?;
/// # run.finish()?;
/// let dataset = Dataset::load(&store, &DatasetConfig::default())?;
/// let scale = dataset.statistics().scale();
/// let config = PairConfig { scale, ..Default::default() };
/// let mut sampler = PairSampler::new(dataset.into(), Part::Train, config)?;
/// let mut batch = PairBatch::new(64, 2);
/// sampler.fill(0, &mut batch);
/// assert!(batch.start_metric.iter().zip(&batch.end_metric).all(|(s, e)| s > e));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PairSampler {
    dataset: Arc<Dataset>,
    part: Part,
    config: PairConfig,
    symmetry: Symmetry,
    rng: ChaCha8Rng,
    /// Order of the runs in one pass over them, and which pass.
    order: Vec<u32>,
    pass: Option<u64>,
    /// Runs of the batch.
    chosen: Vec<u32>,
}

impl PairSampler {
    /// A sampler of pairs from one part of a data set.
    ///
    /// # Errors
    /// If the configuration cannot be used, or that part has no runs.
    pub fn new(dataset: Arc<Dataset>, part: Part, config: PairConfig) -> Result<Self, StoreError> {
        config.validate()?;
        let symmetry = Symmetry::new(dataset.layout());
        let rng = ChaCha8Rng::seed_from_u64(config.seed);
        let (order, chosen) = (Vec::new(), Vec::new());
        let sampler = Self { dataset, part, config, symmetry, rng, order, pass: None, chosen };
        if sampler.runs().is_empty() {
            let purpose = match part {
                Part::Train => "to train on",
                Part::HeldOut => "held out",
            };
            return Err(StoreError::TooFewRuns { found: 0, expected: 1, purpose });
        }
        Ok(sampler)
    }

    /// The data set.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// How pairs are drawn.
    pub fn config(&self) -> &PairConfig {
        &self.config
    }

    /// The runs that pairs are drawn from.
    pub fn runs(&self) -> &[RunSpan] {
        match self.part {
            Part::Train => self.dataset.train(),
            Part::HeldOut => self.dataset.held_out(),
        }
    }

    /// Fills the batch of a step, in parallel.
    ///
    /// # Panics
    /// If the buffers are not those of a batch of this data set.
    pub fn fill(&mut self, step: u64, batch: &mut PairBatch) {
        let (size, num_parameters) = (batch.len(), self.dataset.layout().num_parameters());
        assert_eq!(batch.end_metric.len(), size, "one metric for each pair");
        assert_eq!(batch.start.len(), size * num_parameters, "earlier checkpoints, [N, P]");
        assert_eq!(batch.end.len(), size * num_parameters, "later checkpoints, [N, P]");
        self.choose_runs(step, size);
        let this = &*self;
        let rows = batch
            .start
            .par_chunks_mut(num_parameters)
            .zip(batch.end.par_chunks_mut(num_parameters))
            .zip(batch.start_metric.par_iter_mut().zip(batch.end_metric.par_iter_mut()))
            .enumerate();
        rows.for_each_init(
            || vec![0.0; num_parameters],
            |flat, (item, ((start, end), (start_metric, end_metric)))| {
                let drawn = this.draw_pair(step, item);
                let moves = drawn.moves.map(|moves| this.symmetry.apply_moves(&moves));
                let Pair { start: first, end: last } = drawn.pair;
                *start_metric = this.dataset.metrics()[first];
                *end_metric = this.dataset.metrics()[last];
                this.read(first, moves.as_ref(), flat, start);
                this.read(last, moves.as_ref(), flat, end);
            },
        );
    }

    /// The pairs that [`fill`](Self::fill) reads for a batch of this size, in parallel.
    #[cfg(feature = "cuda")]
    pub(crate) fn draw(&mut self, step: u64, size: usize) -> Vec<DrawnPair> {
        self.choose_runs(step, size);
        let this = &*self;
        (0..size).into_par_iter().map(|item| this.draw_pair(step, item)).collect()
    }

    /// What hidden units are reordered by.
    #[cfg(feature = "cuda")]
    pub(crate) fn symmetry(&self) -> &Symmetry {
        &self.symmetry
    }

    /// One pair of the batch whose runs were chosen last.
    fn draw_pair(&self, step: u64, item: usize) -> DrawnPair {
        let mut rng = self.rng.clone();
        rng.set_stream(step);
        // Room for 2^32 numbers for each pair, whatever the others draw.
        rng.set_word_pos((item as u128) << 32);
        let Range { start: first, end } = self.runs()[self.chosen[item] as usize].checkpoints;
        let Pair { start, end } = self.config.draw(&self.dataset.metrics()[first..end], &mut rng);
        let moves = self.config.permute.then(|| self.symmetry.sample_moves(|_| true, &mut rng));
        DrawnPair { pair: Pair { start: first + start, end: first + end }, moves }
    }

    /// Writes a checkpoint to `row`: first normalised, then reordered.
    fn read(
        &self,
        checkpoint: usize,
        moves: Option<&Transformation>,
        flat: &mut [f32],
        row: &mut [f32],
    ) {
        match moves {
            Some(moves) => {
                self.dataset.read(checkpoint, flat);
                moves.apply(flat, row);
            }
            None => self.dataset.read(checkpoint, row),
        }
        let scale = self.config.scale as f32;
        for value in row {
            *value *= scale;
        }
    }

    fn choose_runs(&mut self, step: u64, size: usize) {
        let count = self.runs().len() as u64;
        self.chosen.clear();
        for item in 0..size as u64 {
            let position = step.wrapping_mul(size as u64).wrapping_add(item);
            let pass = position / count;
            if self.pass != Some(pass) {
                let mut rng = self.rng.clone();
                // Streams of passes count down from the top, those of steps up.
                rng.set_stream(!pass);
                self.order.clear();
                self.order.extend(0..count as u32);
                self.order.shuffle(&mut rng);
                self.pass = Some(pass);
            }
            self.chosen.push(self.order[(position % count) as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::checkpoints::{DatasetConfig, Metadata, Precision, RunInfo, Store};
    use crate::layout::{Layout, LayoutBuilder};
    use crate::metric::Metric;

    fn mlp(inputs: usize, hidden: usize, outputs: usize) -> Layout {
        let mut builder = LayoutBuilder::new();
        builder.scope("hidden", |b| b.linear(inputs, hidden, true));
        builder.unitwise("ReLU");
        builder.scope("output", |b| b.linear(hidden, outputs, true));
        builder.finish().unwrap()
    }

    /// Runs of different lengths; values tell run, checkpoint and parameter apart.
    fn dataset(layout: Layout, lengths: &[usize], precision: Precision) -> Arc<Dataset> {
        let folder = tempfile::tempdir().unwrap();
        let len = layout.num_parameters();
        let metadata =
            Metadata { precision, ..Metadata::new("t", layout, vec![Metric::TEST_LOSS]) };
        let store = Store::create(folder.path(), metadata).unwrap();
        for (id, &count) in lengths.iter().enumerate() {
            let mut run = store.begin_run(RunInfo::new(id as u64, 0)).unwrap();
            for i in 0..count {
                let flat: Vec<f32> =
                    (0..len).map(|p| (id * 100 + i) as f32 + p as f32 / 64.0).collect();
                run.record_flat(&flat, &[(id * 100 + count - i) as f64]).unwrap();
            }
            run.finish().unwrap();
        }
        let config = DatasetConfig { metric: Metric::TEST_LOSS, held_out: 1, train: None };
        Dataset::load(&store, &config).unwrap().into()
    }

    #[test]
    fn the_rule_has_the_probabilities_of_the_reference() {
        // tests/golden/metrics/dataset_pairs.json, exact_pair_probability
        let law = PairConfig::default().probabilities(&[0.0; 6]);
        for (pair, p) in &law {
            let expected = [0.04, 0.05, 0.2 / 3.0, 0.1, 0.2][pair.end - pair.start - 1];
            assert!((p - expected).abs() < 1e-15, "{pair:?} {p}");
        }
        assert_eq!(law.len(), 15);
    }

    #[test]
    fn draws_follow_their_probabilities() {
        let metrics = [5.0, 4.0, 2.5, 2.5, 1.0, 2.0, 0.25];
        for by_metric in [0.0, 0.5, 1.0] {
            for from_start in [0.0, 0.3, 1.0] {
                for metrics in [&metrics[..], &metrics[..2], &[1.0; 4]] {
                    let config = PairConfig { from_start, by_metric, ..Default::default() };
                    let law = config.probabilities(metrics);
                    let total: f64 = law.iter().map(|(_, p)| p).sum();
                    assert!((total - 1.0).abs() < 1e-12, "{config:?} {total}");
                    let mut counts = HashMap::new();
                    let mut rng = ChaCha8Rng::seed_from_u64(5);
                    let draws = 40_000;
                    for _ in 0..draws {
                        *counts.entry(config.draw(metrics, &mut rng)).or_insert(0) += 1;
                    }
                    let mut chi2 = 0.0;
                    for (pair, p) in &law {
                        let expected = p * draws as f64;
                        let found = f64::from(counts.remove(pair).unwrap_or(0));
                        chi2 += (found - expected).powi(2) / expected;
                    }
                    assert!(counts.is_empty(), "{config:?}: {counts:?}");
                    // Mean and standard deviation of chi-square, six of the latter.
                    let freedom = (law.len() - 1) as f64;
                    assert!(chi2 <= freedom + 6.0 * (2.0 * freedom).sqrt(), "{config:?} {chi2}");
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn probabilities_are_a_law_of_forward_pairs(
            metrics in proptest::collection::vec(-10i32..10, 2..12),
            from_start in 0.0..=1.0,
            by_metric in 0.0..=1.0,
        ) {
            let metrics: Vec<f64> = metrics.into_iter().map(f64::from).collect();
            let config = PairConfig { from_start, by_metric, ..Default::default() };
            let law = config.probabilities(&metrics);
            let total: f64 = law.iter().map(|(_, p)| p).sum();
            assert!((total - 1.0).abs() < 1e-12);
            assert!(law.iter().all(|(pair, p)| {
                pair.start < pair.end && pair.end < metrics.len() && *p > 0.0
            }));
            let starts: f64 = law.iter().filter(|(pair, _)| pair.start == 0).map(|(_, p)| p).sum();
            assert!(starts >= from_start - 1e-12);
        }
    }

    #[test]
    fn metric_targets_are_uniform_over_the_metric() {
        // Nine checkpoints near the end, one half way: it gets about half.
        let mut metrics = vec![2.0, 1.0];
        metrics.extend((0..9).map(|i| 0.01 * f64::from(i)));
        let by_metric = 1.0;
        let config = PairConfig { from_start: 1.0, by_metric, ..Default::default() };
        let law = config.probabilities(&metrics);
        let (_, p) = law.iter().find(|(pair, _)| pair.end == 1).unwrap();
        assert!((p - 0.46).abs() < 1e-12, "{p}");
    }

    #[test]
    fn a_batch_depends_on_seed_and_step_only() {
        let data = dataset(mlp(3, 4, 2), &[2, 7, 5, 9, 3], Precision::F32);
        let config = PairConfig { seed: 9, ..Default::default() };
        let sampler = || PairSampler::new(data.clone(), Part::Train, config.clone()).unwrap();
        let len = data.layout().num_parameters();
        let batch_at = |sampler: &mut PairSampler, step| {
            let mut batch = PairBatch::new(6, len);
            sampler.fill(step, &mut batch);
            batch
        };
        let mut all = sampler();
        let batches: Vec<PairBatch> = (0..20).map(|step| batch_at(&mut all, step)).collect();
        for step in [19, 3, 4, 0] {
            assert_eq!(batch_at(&mut sampler(), step), batches[step as usize]);
        }
        assert_ne!(batches[0], batches[1]);
        let other = PairConfig { seed: 8, ..config.clone() };
        let mut other = PairSampler::new(data.clone(), Part::Train, other).unwrap();
        assert_ne!(batch_at(&mut other, 0), batches[0]);
        // Every run once before any is drawn again: four runs, six a batch.
        let runs: Vec<u32> =
            batches.iter().flat_map(|b| &b.start_metric).map(|m| *m as u32 / 100).collect();
        for pass in runs.chunks_exact(4) {
            let mut pass = pass.to_vec();
            pass.sort_unstable();
            assert_eq!(pass, [0, 1, 2, 3]);
        }
    }

    #[test]
    fn both_checkpoints_are_normalised_and_reordered_alike() {
        for precision in [Precision::F32, Precision::F16] {
            let data = dataset(mlp(3, 4, 2), &[6, 7, 5], precision);
            let len = data.layout().num_parameters();
            for permute in [false, true] {
                let config = PairConfig { permute, scale: 0.5, ..Default::default() };
                for part in [Part::Train, Part::HeldOut] {
                    let mut sampler = PairSampler::new(data.clone(), part, config.clone()).unwrap();
                    let mut batch = PairBatch::new(32, len);
                    sampler.fill(0, &mut batch);
                    let mut moved = 0;
                    for item in 0..32 {
                        let row = item * len..(item + 1) * len;
                        let (start, end) = (&batch.start[row.clone()], &batch.end[row]);
                        // The metric tells which checkpoint it is.
                        let id = (batch.start_metric[item] / 100.0) as usize;
                        assert_eq!(id == 2, part == Part::HeldOut);
                        let span = &data.runs()[id].checkpoints;
                        let position = |metric: f64| {
                            span.clone().find(|&c| data.metrics()[c] == metric).unwrap()
                        };
                        let first = position(batch.start_metric[item]);
                        let last = position(batch.end_metric[item]);
                        assert!(first < last);
                        let read = |checkpoint| {
                            let mut flat = vec![0.0; len];
                            data.read(checkpoint, &mut flat);
                            flat.iter_mut().for_each(|v| *v *= 0.5);
                            flat
                        };
                        let (a, b) = (read(first), read(last));
                        let found = |row: &[f32], value| row.iter().position(|&v| v == value);
                        let order: Vec<_> = a.iter().map(|&v| found(start, v).unwrap()).collect();
                        let other: Vec<_> = b.iter().map(|&v| found(end, v).unwrap()).collect();
                        if precision == Precision::F32 {
                            assert_eq!(order, other);
                        }
                        moved += usize::from(start != a);
                    }
                    assert_eq!(moved > 20, permute, "{moved} of 32 are reordered");
                }
            }
        }
    }

    #[test]
    fn both_checkpoints_change_the_same_signs() {
        let mut builder = LayoutBuilder::new();
        builder.scope("hidden", |b| b.linear(3, 4, true));
        builder.odd("Tanh");
        builder.scope("output", |b| b.linear(4, 2, true));
        let data = dataset(builder.finish().unwrap(), &[6, 7, 5], Precision::F32);
        let len = data.layout().num_parameters();
        let mut sampler = PairSampler::new(data, Part::Train, PairConfig::default()).unwrap();
        let mut batch = PairBatch::new(32, len);
        sampler.fill(0, &mut batch);
        // All recorded values are positive, but for the first, which is zero.
        let negative = |values: &[f32]| values.iter().map(|&v| v < 0.0).collect::<Vec<_>>();
        let mut changed = 0;
        for item in 0..32 {
            let row = item * len..(item + 1) * len;
            let (start, end) = (negative(&batch.start[row.clone()]), negative(&batch.end[row]));
            assert!(start.iter().zip(&end).filter(|(a, b)| a != b).count() <= 1);
            // The row of a unit, its bias and its columns; never an output bias.
            for unit in 0..4 {
                let sign = end[12 + unit];
                changed += usize::from(sign);
                assert!(end[3 * unit..3 * unit + 3].iter().all(|&s| s == sign));
                assert!([16 + unit, 20 + unit].iter().all(|&i| end[i] == sign));
            }
            assert_eq!(end[24..], [false, false]);
        }
        assert!((32..96).contains(&changed), "{changed} of 128 units");
    }

    #[test]
    fn settings_that_cannot_be_used_are_errors() {
        let data = dataset(mlp(1, 2, 1), &[2, 2], Precision::F32);
        for config in [
            PairConfig { from_start: 1.5, ..Default::default() },
            PairConfig { from_start: f64::NAN, ..Default::default() },
            PairConfig { by_metric: -0.1, ..Default::default() },
            PairConfig { scale: 0.0, ..Default::default() },
        ] {
            let result = PairSampler::new(data.clone(), Part::Train, config);
            assert!(matches!(result, Err(StoreError::Setting { .. })));
        }
    }
}
