//! Whether drawing pairs keeps up with training steps: pairs drawn per second beside those that a
//! training takes, batch 64, with the bundled model of digits (U) and configuration S of
//! benches/peers (width 128, 4 blocks, 4 heads, 20 tokens of 100 values).
//!
//! ```text
//! lopt record digits --out FOLDER
//! cargo bench --bench loading -- FOLDER
//! ```
//!
//! Prints a table of benches/RESULTS.md, section *Loading pairs*. One thread, CPU time of the
//! process, medians over rounds by turns. A training step draws its pairs and noise itself, before
//! it forms the gradient. Without a folder, 100 runs are recorded in a temporary one.

use std::sync::Arc;
use std::time::Instant;

use lopt::checkpoints::{
    Dataset, DatasetConfig, PairBatch, PairConfig, PairSampler, Part, Precision, RecordOptions,
    Store,
};
use lopt::gpt::{ModelConfig, NoiseSchedule, Tokenization, Trainer, TrainerConfig};
use lopt::tasks::{open_store, record, Digits, RecordingConfig, Starts, Task};
use lopt::Pretrained;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use rustix::time::{clock_gettime, ClockId};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const BATCH: usize = 64;
const ROUNDS: usize = 9;
/// Training steps, and batches drawn, of a round.
const STEPS: u64 = 4;
const BATCHES: u64 = 100;

/// Draws batches as a trainer does.
struct Drawing {
    pairs: PairSampler,
    batch: PairBatch,
    schedule: NoiseSchedule,
    rng: ChaCha8Rng,
    noise: Vec<f32>,
    noised: Vec<f32>,
    step: u64,
}

impl Drawing {
    fn new(dataset: &Arc<Dataset>, config: &TrainerConfig) -> Result<Self> {
        let size = dataset.layout().num_parameters();
        let pairs = PairConfig {
            from_start: config.from_start,
            by_metric: config.by_metric,
            scale: dataset.statistics().scale(),
            ..PairConfig::default()
        };
        Ok(Self {
            pairs: PairSampler::new(dataset.clone(), Part::Train, pairs)?,
            batch: PairBatch::new(BATCH, size),
            schedule: NoiseSchedule::linear(1000)?,
            rng: ChaCha8Rng::seed_from_u64(0),
            noise: vec![0.0; size],
            noised: vec![0.0; BATCH * size],
            step: 0,
        })
    }

    fn pairs(&mut self) -> Result<()> {
        self.pairs.fill(self.step, &mut self.batch);
        self.step += 1;
        Ok(())
    }

    fn noise(&mut self) -> Result<()> {
        let size = self.noise.len();
        let ends = self.batch.end.chunks_exact(size);
        for (clean, noised) in ends.zip(self.noised.chunks_exact_mut(size)) {
            let t = self.rng.gen_range(0..self.schedule.len());
            self.noise.fill_with(|| self.rng.sample(StandardNormal));
            self.schedule.q_sample(t, clean, &self.noise, noised);
        }
        Ok(())
    }
}

fn models() -> Result<[(&'static str, ModelConfig); 2]> {
    let reference = ModelConfig::reference(Tokenization::ChunkWithinInput { length: 100 });
    let s = ModelConfig { width: 128, blocks: 4, heads: 4, frequencies: 49, ..reference };
    Ok([("U", Pretrained::Digits.weights()?.header.config), ("S", s)])
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// CPU seconds of one of `count` calls.
fn time(count: u64, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = cpu_seconds();
    for _ in 0..count {
        work()?;
    }
    Ok((cpu_seconds() - start) / count as f64)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
    let folder = tempfile::tempdir()?;
    // Cargo adds `--bench`.
    let store = match std::env::args().skip(1).find(|argument| argument != "--bench") {
        Some(path) => Store::open(path)?,
        None => {
            let digits = Digits::load()?;
            let config = RecordingConfig { runs: 100, ..digits.recording() };
            let store = open_store(&digits, folder.path(), &config, Precision::F32)?;
            record(&digits, &store, &config, &Starts::default(), &RecordOptions::default())?;
            store
        }
    };
    let start = Instant::now();
    let dataset = Arc::new(Dataset::load(&store, &DatasetConfig::default())?);
    println!(
        "{} runs, {} checkpoints of {} values ({:?}), {:.0} MB on disk, loaded in {:.2} s.\n",
        dataset.runs().len(),
        dataset.num_checkpoints(),
        dataset.layout().num_parameters(),
        store.metadata().precision,
        store.bytes()? as f64 / 1e6,
        start.elapsed().as_secs_f64(),
    );
    println!(
        "| | pairs drawn per second | with their noise | pairs trained on per second | drawing, of \
         a training step |\n|---|---|---|---|---|"
    );
    for (name, model) in models()? {
        let config = TrainerConfig { batch: BATCH, ..TrainerConfig::default() };
        let mut drawing = Drawing::new(&dataset, &config)?;
        let mut trainer = Trainer::new(dataset.clone(), model, config, 1)?;
        trainer.step()?;
        let [mut pairs, mut noise, mut steps] = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            pairs.push(time(BATCHES, || drawing.pairs())?);
            noise.push(time(BATCHES, || drawing.noise())?);
            steps.push(time(STEPS, || Ok(trainer.step().map(drop)?))?);
        }
        let [pairs, noise, step] = [pairs, noise, steps].map(median);
        let rate = |seconds: f64| BATCH as f64 / seconds;
        println!(
            "| {name} | {:.0} | {:.0} | {:.0} | {:.1} %, with noise {:.1} % |",
            rate(pairs),
            rate(pairs + noise),
            rate(step),
            100.0 * pairs / step,
            100.0 * (pairs + noise) / step,
        );
    }
    Ok(())
}
