//! Speed of recording training runs, of loading them, and of drawing pairs of their checkpoints
//! to train on: task `digits`, networks of 64-10-10 units, on one thread.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, BatchSize, Criterion};
use lopt::checkpoints::{
    Dataset, DatasetConfig, PairBatch, PairConfig, PairSampler, Part, Precision, RecordOptions,
    Store,
};
use lopt::gpt::NoiseSchedule;
use lopt::tasks::{open_store, record, Digits, RecordingConfig, Starts, Task, TrainingConfig};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

const BATCH: usize = 64;

/// Records runs of 5 epochs with 10 checkpoints each.
fn record_some(digits: &Digits, folder: &Path, runs: u64, precision: Precision) -> Store {
    let defaults = digits.recording();
    let training = TrainingConfig { steps: 20, ..defaults.training };
    let config = RecordingConfig { training, runs, saves: 10, ..defaults };
    let store = open_store(digits, folder, &config, precision).expect("a store");
    let options = RecordOptions { threads: 1, ..RecordOptions::default() };
    record(digits, &store, &config, &Starts::default(), &options).expect("recorded runs");
    store
}

fn recording(criterion: &mut Criterion) {
    let digits = Digits::load().expect("bundled data");
    criterion.bench_function("recording, 2 runs of 5 epochs", |b| {
        b.iter_batched(
            || tempfile::tempdir().expect("a folder"),
            |folder| {
                record_some(&digits, folder.path(), 2, Precision::F32);
                folder
            },
            BatchSize::PerIteration,
        )
    });
}

fn pairs(criterion: &mut Criterion) {
    let digits = Digits::load().expect("bundled data");
    for precision in [Precision::F32, Precision::F16] {
        let folder = tempfile::tempdir().expect("a folder");
        let store = record_some(&digits, folder.path(), 40, precision);
        let load = || Dataset::load(&store, &DatasetConfig::default()).expect("a data set");
        criterion.bench_function(&format!("loading 40 runs, {precision:?}"), |b| b.iter(load));

        let dataset = Arc::new(load());
        let size = dataset.layout().num_parameters();
        let scale = dataset.statistics().scale();
        let config = PairConfig { scale, from_start: 0.4, by_metric: 0.5, ..PairConfig::default() };
        let mut sampler = PairSampler::new(dataset, Part::Train, config).expect("a sampler");
        let mut batch = PairBatch::new(BATCH, size);
        let mut step = 0;
        criterion.bench_function(&format!("{BATCH} pairs, {precision:?}"), |b| {
            b.iter(|| {
                step += 1;
                sampler.fill(step, &mut batch);
            })
        });

        let schedule = NoiseSchedule::linear(1000).expect("a schedule");
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let (mut noise, mut noised) = (vec![0.0; size], vec![0.0; BATCH * size]);
        criterion.bench_function(&format!("{BATCH} pairs and their noise, {precision:?}"), |b| {
            b.iter(|| {
                step += 1;
                sampler.fill(step, &mut batch);
                let ends = batch.end.chunks_exact(size);
                for (clean, noised) in ends.zip(noised.chunks_exact_mut(size)) {
                    noise.fill_with(|| rng.sample::<f32, _>(StandardNormal));
                    schedule.q_sample(rng.gen_range(0..schedule.len()), clean, &noise, noised);
                }
            })
        });
    }
}

/// The benches, where calls of rayon go to one thread.
fn on_one_thread(criterion: &mut Criterion) {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("a thread");
    recording(criterion);
    pairs(criterion);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1));
    targets = on_one_thread
}
criterion_main!(benches);
