//! Records the runs of your own dfdx loop, trains a G.pt on them, and lets it
//! update networks that it has never seen.
//!
//! ```text
//! cargo run --release --example record_and_train
//! ```

use dfdx::optim::{Momentum, Optimizer as _, Sgd, SgdConfig, WeightDecay};
use dfdx::prelude::*;
use lopt::checkpoints::{Dataset, DatasetConfig, Metadata, RunInfo, Store};
use lopt::gpt::{Gpt, GptConfig, ModelConfig, Precision, Trainer, TrainerConfig, Weights};
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

type Model = Built<Clouds, f32, Cpu>;
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// 256 points, and 1 for those inside the ring.
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

/// An ordinary dfdx loop. The lines that record it are marked.
fn train_and_record(
    store: &Store,
    seed: u64,
    training: &Points,
    validation: &Points,
) -> Result<()> {
    let mut model = Cpu::seed_from_u64(seed).build_module::<Clouds, f32>();
    let mut adam = Sgd::new(
        &model,
        SgdConfig {
            lr: knob("SLR", 0.1),
            momentum: Some(Momentum::Nesterov(0.9)),
            weight_decay: Some(WeightDecay::L2(knob("WD", 3e-3))),
        },
    );
    let mut gradients = model.alloc_grads();
    let mut run = store.begin_run(RunInfo::new(seed, seed))?; // recorded
    for step in 0..knob("INNER", 100) {
        if step < 10 || step % 5 == 0 {
            run.at(step).record(&model, &[validation.loss(&model)])?; // recorded
        }
        let logits = model.forward(training.positions.clone().traced(gradients));
        let loss = cross_entropy_with_logits_loss(logits, training.labels.clone());
        gradients = loss.backward();
        adam.update(&mut model, &gradients)?;
        model.zero_grads(&mut gradients);
    }
    run.finish()?; // recorded: now it is on disk
    Ok(())
}

fn knob<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn main() -> Result<()> {
    let clock = std::time::Instant::now();
    let (training, validation, test) = (Points::draw(1), Points::draw(2), Points::draw(3));
    let folder = tempfile::tempdir()?;
    let metadata = Metadata::new("clouds", Clouds::layout()?, vec![Metric::VALIDATION_LOSS]);
    let store = Store::create(folder.path().join("runs"), metadata)?;
    for seed in 0..knob("RUNS", 400) {
        train_and_record(&store, seed, &training, &validation)?;
    }
    println!("recorded after {:.1} s", clock.elapsed().as_secs_f64());

    let dataset = Dataset::load(&store, &DatasetConfig { held_out: 20, ..Default::default() })?;
    let model = ModelConfig {
        width: knob("WIDTH", 64),
        blocks: knob("BLOCKS", 3),
        frequencies: 16,
        ..Default::default()
    };
    let config = TrainerConfig {
        steps: knob("STEPS", 1500),
        learning_rate: knob("LR", 2e-3),
        batch: knob("BATCH", 64),
        from_start: knob("START", 0.4),
        ema_decay: 0.99,
        ..Default::default()
    };
    let mut trainer = Trainer::new(dataset.into(), model, config, 2)?;
    while !trainer.is_finished() {
        trainer.step()?;
        if trainer.steps_done() % 500 == 0 {
            println!(
                "step {}: held-out loss {:.4} after {:.1} s",
                trainer.steps_done(),
                trainer.held_out_loss(8)?,
                clock.elapsed().as_secs_f64()
            );
        }
    }
    let path = folder.path().join("ring.safetensors");
    trainer
        .weights(Default::default(), "clouds", serde_json::json!({}))
        .save(&path, Precision::F16)?;

    let mut optimizer = Gpt::new(Weights::load(&path)?, GptConfig::default())?;
    let mut sums = [0.0; 4];
    for seed in 0..16 {
        let mut model = Cpu::seed_from_u64(1_000_000 + seed).build_module::<Clouds, f32>();
        sums[0] += test.loss(&model) / 16.0;
        for update in 1..=3 {
            optimizer.observe(validation.loss(&model));
            optimizer.update(&mut model, &Gradients::leaky())?;
            sums[update] += test.loss(&model) / 16.0;
        }
    }
    println!(
        "{sums:?} best recorded {:?} {:.1} s",
        optimizer.weights().header.prompt_range,
        clock.elapsed().as_secs_f64()
    );
    Ok(())
}
