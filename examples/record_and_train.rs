//! Records the runs of your own dfdx loop, trains a G.pt on them, and lets it
//! update networks that it has never seen.
//!
//! ```text
//! cargo run --release --example record_and_train
//! ```

use dfdx::optim::{Momentum, Optimizer as _, Sgd, SgdConfig, WeightDecay};
use dfdx::prelude::*;
use lopt::checkpoints::{Dataset, DatasetConfig, Metadata, RunInfo, Store};
use lopt::gpt::{
    Gpt, GptConfig, ModelConfig, Precision, SamplerConfig, Trainer, TrainerConfig, Weights,
};
use lopt::metric::Metric;
use lopt::network::Built;
use lopt::Network;

/// To which of three clouds does a point belong?
#[lopt::network]
struct Clouds {
    hidden: Linear<4, 8>,
    activation: ReLU,
    output: Linear<8, 3>,
}

/// Runs to record, and updates of each.
const RUNS: u64 = 400;
const STEPS: u64 = 100;

type Model = Built<Clouds, f32, Cpu>;
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// 256 points, and a row for each that is 1 at its cloud.
struct Points {
    positions: Tensor<Rank2<256, 4>, f32, Cpu>,
    labels: Tensor<Rank2<256, 3>, f32, Cpu>,
}

/// Centres of the clouds, which overlap.
const CENTRES: [[f32; 4]; 3] =
    [[1.5, 0.0, 1.0, -1.0], [-1.5, 1.0, 0.0, 1.0], [0.0, -1.5, -1.0, 1.0]];

impl Points {
    fn draw(seed: u64) -> Self {
        let dev = Cpu::seed_from_u64(seed);
        let noise: Tensor<Rank2<256, 4>, f32, _> = dev.sample_normal();
        let mut positions = noise.array();
        let mut labels = [[0.0; 3]; 256];
        for (i, (position, label)) in positions.iter_mut().zip(&mut labels).enumerate() {
            position.iter_mut().zip(CENTRES[i % 3]).for_each(|(x, centre)| *x += centre);
            label[i % 3] = 1.0;
        }
        Self { positions: dev.tensor(positions), labels: dev.tensor(labels) }
    }

    fn loss(&self, model: &Model) -> f64 {
        let logits = model.forward(self.positions.clone());
        cross_entropy_with_logits_loss(logits, self.labels.clone()).array().into()
    }
}

/// An ordinary dfdx loop, and three lines that record it. Returns the network.
fn train_and_record(
    store: &Store,
    seed: u64,
    [training, validation]: [&Points; 2],
) -> Result<Model> {
    let mut model = Cpu::seed_from_u64(seed).build_module::<Clouds, f32>();
    let (momentum, weight_decay) = (Some(Momentum::Nesterov(0.9)), Some(WeightDecay::L2(3e-3)));
    let mut sgd = Sgd::new(&model, SgdConfig { lr: 0.1, momentum, weight_decay });
    let mut gradients = model.alloc_grads();
    let mut run = store.begin_run(RunInfo::new(seed, seed))?; // 1: a new run
    for step in 0..=STEPS {
        if step < 10 || step % 5 == 0 {
            // 2: a checkpoint, with the metric that G.pt will be asked for. Take
            // one on data that the network is not trained on.
            run.at(step).record(&model, &[validation.loss(&model)])?;
        }
        let scores = model.forward(training.positions.clone().traced(gradients));
        let loss = cross_entropy_with_logits_loss(scores, training.labels.clone());
        gradients = loss.backward();
        sgd.update(&mut model, &gradients)?;
        model.zero_grads(&mut gradients);
    }
    run.finish()?; // 3: now it is on disk, whole
    Ok(model)
}

fn main() -> Result<()> {
    let (training, validation, test) = (Points::draw(1), Points::draw(2), Points::draw(3));
    let folder = tempfile::tempdir()?; // keep yours: recording is what takes time
    let metadata = Metadata::new("clouds", Clouds::layout()?, vec![Metric::VALIDATION_LOSS]);
    let store = Store::create(folder.path().join("runs"), metadata)?;
    let mut trained = 0.0;
    for seed in 0..RUNS {
        let model = train_and_record(&store, seed, [&training, &validation])?;
        trained += test.loss(&model) / RUNS as f64;
    }

    // Twenty runs are held out, to see whether G.pt learns more than its data.
    let dataset = Dataset::load(&store, &DatasetConfig { held_out: 20, ..Default::default() })?;
    let model = ModelConfig { width: 64, blocks: 3, frequencies: 16, ..Default::default() };
    let config = TrainerConfig { steps: 1000, ema_decay: 0.99, ..Default::default() };
    let mut trainer = Trainer::new(dataset.into(), model, config, 0)?;
    println!("{RUNS} runs recorded; G.pt's loss on runs that it is not trained on:");
    while !trainer.is_finished() {
        if trainer.steps_done() % 250 == 0 {
            println!("  step {:>4}: {:.4}", trainer.steps_done(), trainer.held_out_loss(8)?);
        }
        trainer.step()?;
    }
    let path = folder.path().join("clouds.safetensors");
    let weights = trainer.weights(SamplerConfig::default(), "clouds", serde_json::Value::Null);
    weights.save(&path, Precision::F16)?;

    // From here on as with any weights file: networks that no run has started at.
    let mut optimizer = Gpt::new(Weights::load(&path)?, GptConfig::default())?;
    let (mut random, mut updated) = (0.0, 0.0);
    for seed in 0..16 {
        let mut model = Cpu::seed_from_u64(1_000_000 + seed).build_module::<Clouds, f32>();
        random += test.loss(&model) / 16.0;
        optimizer.observe(validation.loss(&model));
        optimizer.update(&mut model, &Gradients::leaky())?;
        updated += test.loss(&model) / 16.0;
    }
    println!("mean test loss: {random:.3} at random, {updated:.3} after one update of G.pt,");
    println!("{trained:.3} after {STEPS} steps of SGD");
    Ok(())
}
