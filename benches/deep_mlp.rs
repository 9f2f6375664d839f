//! G.pt on a network of two hidden layers, 64-16-16-10 on the bundled digits:
//! how well one update of networks that it has never seen does.
//!
//! ```text
//! cargo bench --bench deep_mlp -- FOLDER [STEPS] [SEED] [BEHAVIOR]
//! ```
//!
//! Records into FOLDER (once, a minute), trains a small G.pt on one thread (a
//! minute), and prints a row of a table in benches/RESULTS.md. STEPS (default
//! 2000), SEED (default 0) and BEHAVIOR (default 0), the weight of the behavioural
//! loss, are the training's.

use std::sync::Arc;
use std::time::Instant;

use dfdx::optim::{Momentum, Optimizer as _, Sgd, SgdConfig, WeightDecay};
use dfdx::prelude::*;
use lopt::checkpoints::{
    record_runs, Dataset, DatasetConfig, Metadata, Precision, RecordOptions, RunInfo, Store,
};
use lopt::eval::alignment::{linspace, prompt_alignment};
use lopt::eval::Estimate;
use lopt::gpt::{
    Behavior, BehaviorError, Gpt, GptConfig, ModelConfig, Trainer, TrainerConfig, Weights,
};
use lopt::metric::{Metric, Split};
use lopt::network::{flatten, flatten_gradients, unflatten, Built};
use lopt::tasks::{Digits, Seeds};
use lopt::Network;
use rand::{Rng, SeedableRng};

#[lopt::network]
struct DeepMlp {
    first: Linear<64, 16>,
    first_activation: ReLU,
    second: Linear<16, 16>,
    second_activation: ReLU,
    output: Linear<16, 10>,
}

/// Runs to record, and updates of each.
const RUNS: u64 = 2000;
const UPDATES: usize = 200;
/// Images in an update.
const BATCH: usize = 256;
/// Images that predicted networks are compared on.
const QUERIES: usize = 128;
/// Networks to judge on, and prompts for each.
const NETWORKS: u64 = 64;
const PROMPTS: usize = 20;

type Model = Built<DeepMlp, f32, Cpu>;
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Images of a split, and which digits they are.
struct Images {
    pixels: Tensor<(usize, Const<64>), f32, Cpu>,
    digits: Tensor<(usize, Const<10>), f32, Cpu>,
    labels: Vec<usize>,
}

impl Images {
    fn choose(digits: &Digits, split: Split, chosen: impl Iterator<Item = usize>) -> Self {
        let (images, device) = (digits.images(split), Cpu::default());
        let (mut pixels, mut hot, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for index in chosen {
            let label = images.labels()[index];
            pixels.extend_from_slice(images.row(index));
            hot.extend((0..10).map(|digit| f32::from(u8::from(digit == label))));
            labels.push(label);
        }
        let count = labels.len();
        let pixels = device.tensor_from_vec(pixels, (count, Const));
        Self { pixels, digits: device.tensor_from_vec(hot, (count, Const)), labels }
    }

    fn all(digits: &Digits, split: Split) -> Self {
        Self::choose(digits, split, 0..digits.images(split).len())
    }

    /// Loss, and error in percent.
    fn score(&self, model: &Model) -> [f64; 2] {
        let logits = model.forward(self.pixels.clone());
        let rows = logits.as_vec();
        let best =
            |row: &[f32]| (0..10).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        let answers = rows.chunks_exact(10).zip(&self.labels);
        let wrong = answers.filter(|(row, &label)| best(row) != label).count();
        let loss = cross_entropy_with_logits_loss(logits, self.digits.clone()).array();
        [loss.into(), 100.0 * wrong as f64 / self.labels.len() as f64]
    }
}

fn new_model(seed: u64) -> Model {
    Cpu::seed_from_u64(seed).build_module::<DeepMlp, f32>()
}

/// Ordinary trainings: SGD with Nesterov momentum and a cosine.
fn record(store: &Store, digits: &Digits) -> Result<()> {
    let (validation, test) =
        (Images::all(digits, Split::Validation), Images::all(digits, Split::Test));
    let seeds = Seeds::recording(0)?;
    let infos =
        (0..RUNS).map(|id| Ok(RunInfo::new(id, seeds.run(id)?))).collect::<Result<Vec<_>>>()?;
    let options = RecordOptions { threads: 1, ..RecordOptions::default() };
    let report = record_runs(store, infos, &options, |run| -> Result<()> {
        let seed = run.info().seed;
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut model = new_model(seed);
        let (momentum, weight_decay) = (Some(Momentum::Nesterov(0.9)), Some(WeightDecay::L2(5e-3)));
        let mut sgd = Sgd::new(&model, SgdConfig { lr: 0.1, momentum, weight_decay });
        for step in 0..=UPDATES {
            if step < 10 || step % 10 == 0 {
                let [loss, error] = test.score(&model);
                run.at(step as u64).record(&model, &[validation.score(&model)[0], loss, error])?;
            }
            let turn = std::f64::consts::PI * step as f64 / UPDATES as f64;
            sgd.cfg.lr = 0.05 * (1.0 + turn.cos());
            let count = digits.images(Split::Train).len();
            let chosen = (0..BATCH).map(|_| rng.gen_range(0..count));
            let batch = Images::choose(digits, Split::Train, chosen);
            let logits = model.forward(batch.pixels.traced(model.alloc_grads()));
            let gradients = cross_entropy_with_logits_loss(logits, batch.digits).backward();
            sgd.update(&mut model, &gradients)?;
        }
        Ok(())
    })?;
    match report.failures.into_iter().next() {
        Some(failed) => Err(failed.error),
        None => Ok(()),
    }
}

/// Images that networks are compared on.
struct Answers(Digits);

impl Behavior for Answers {
    fn divergence(
        &self,
        seed: u64,
        predicted: &[f32],
        target: &[f32],
        gradient: &mut [f32],
    ) -> std::result::Result<f64, BehaviorError> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let count = self.0.images(Split::Train).len();
        let chosen = (0..QUERIES).map(|_| rng.gen_range(0..count));
        let images = Images::choose(&self.0, Split::Train, chosen).pixels;
        let mut model = new_model(0);
        unflatten(&mut model, target)?;
        let logits = model.forward(images.clone());
        let wanted = logits.clone().softmax::<Axis<1>>();
        let entropy = cross_entropy_with_logits_loss(logits, wanted.clone());
        unflatten(&mut model, predicted)?;
        let answers = model.forward(images.traced(model.alloc_grads()));
        let loss = cross_entropy_with_logits_loss(answers, wanted);
        let value = loss.array() - entropy.array();
        gradient.copy_from_slice(&flatten_gradients(&model, &loss.backward())?);
        Ok(value.into())
    }
}

/// Trains a G.pt on the recorded runs; with its loss on runs held out.
fn train(store: &Store, steps: u64, seed: u64, behavior: f64) -> Result<(Weights, f64)> {
    let config = DatasetConfig { held_out: 100, ..DatasetConfig::default() };
    let dataset = Arc::new(Dataset::load(store, &config)?);
    let config = ModelConfig { width: 64, blocks: 3, ..ModelConfig::default() };
    let defaults = TrainerConfig::default();
    let training = TrainerConfig { steps, batch: 32, ema_decay: 0.998, behavior, seed, ..defaults };
    let mut trainer = Trainer::new(dataset, config, training, 1)?
        .with_behavior(Box::new(Answers(Digits::load()?)));
    while !trainer.is_finished() {
        trainer.step()?;
    }
    let held_out = trainer.held_out_loss(32)?;
    Ok((trainer.weights(Default::default(), "deep-mlp", serde_json::Value::Null), held_out))
}

/// Scores of networks that lie one after the other.
fn scores(networks: &[f32], images: &Images) -> Result<Vec<[f64; 2]>> {
    let mut model = new_model(0);
    let score = |network| {
        unflatten(&mut model, network)?;
        Ok(images.score(&model))
    };
    networks.chunks_exact(DeepMlp::NUM_PARAMETERS).map(score).collect()
}

fn column(scores: &[[f64; 2]], i: usize) -> Vec<f64> {
    scores.iter().map(|score| score[i]).collect()
}

fn main() -> Result<()> {
    // Cargo adds an argument for benches.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let folder = arguments.first().ok_or("expected a folder for the recorded runs")?;
    let number = |i: usize, default| arguments.get(i).map_or(Ok(default), |text| text.parse());
    let (steps, seed) = (number(1, 2000)?, number(2, 0)?);
    let behavior = arguments.get(3).map_or(Ok(0.0), |text| text.parse())?;

    let digits = Digits::load()?;
    let metrics = vec![Metric::VALIDATION_LOSS, Metric::TEST_LOSS, Metric::TEST_ERROR];
    let metadata = Metadata::new("deep-mlp", DeepMlp::layout()?, metrics);
    let metadata = Metadata { precision: Precision::F16, ..metadata };
    let store = Store::open_or_create(folder, metadata)?;
    record(&store, &digits)?;
    let start = Instant::now();
    let (weights, held_out) = train(&store, steps, seed, behavior)?;
    let seconds = start.elapsed().as_secs_f64();

    let best = weights.header.prompt_range.best;
    let mut gpt = Gpt::new(weights, GptConfig::default())?;
    let [validation, test] =
        [Split::Validation, Split::Test].map(|split| Images::all(&digits, split));
    let seeds = Seeds::evaluation(0)?;
    let mut fresh = Vec::new();
    for network in 0..NETWORKS {
        fresh.extend(flatten::<_, f32, _>(&new_model(seeds.run(network)?))?);
    }
    let mut cells = vec![format!("| {steps} | {seconds:.0} | {held_out:.4}")];
    let mut networks = fresh.clone();
    for _ in 0..3 {
        let current = column(&scores(&networks, &validation)?, 0);
        networks = gpt.sample(&networks, &current, &vec![best; current.len()])?;
        let test = scores(&networks, &test)?;
        let (loss, error) = (Estimate::of(&column(&test, 0)), Estimate::of(&column(&test, 1)));
        cells.push(format!("{:.2} ± {:.2}", loss.mean, loss.standard_error));
        cells.push(format!("{:.0} ± {:.0} %", error.mean, error.standard_error));
    }
    let (mut starts, mut currents, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
    let losses = column(&scores(&fresh, &validation)?, 0);
    for (network, loss) in fresh.chunks_exact(DeepMlp::NUM_PARAMETERS).zip(losses) {
        starts.extend(network.repeat(PROMPTS));
        currents.extend([loss; PROMPTS]);
        prompts.extend(linspace(best, 0.9 * loss, PROMPTS));
    }
    let sampled = gpt.sample(&starts, &currents, &prompts)?;
    let observed = column(&scores(&sampled, &validation)?, 0);
    cells.push(format!("{:.2} |", prompt_alignment(&prompts, &observed, PROMPTS)));
    println!("{}", cells.join(" | "));
    Ok(())
}
