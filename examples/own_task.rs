//! Your own network, data and objective: what lopt knows of the network, and a
//! choice among samples of G.pt by whatever you care for.
//!
//! ```text
//! cargo run --release --example own_task
//! ```

use std::sync::Arc;

use dfdx::optim::{Momentum, Optimizer as _, Sgd, SgdConfig, WeightDecay};
use dfdx::prelude::*;
use lopt::checkpoints::{
    record_runs, Dataset, DatasetConfig, Metadata, RecordOptions, RunInfo, Store,
};
use lopt::gpt::{Gpt, GptConfig, ModelConfig, Trainer, TrainerConfig};
use lopt::metric::Metric;
use lopt::network::{flatten, unflatten, Built};
use lopt::symmetry::Symmetry;
use lopt::Network;
use rand::SeedableRng;

/// Networks may be parts of networks, and take parameters.
#[lopt::network]
struct Block<const I: usize, const O: usize> {
    map: Linear<I, O>,
    activation: ReLU,
}

/// The price of a house, from its size, age and distance to the town.
#[lopt::network]
struct Price<const H: usize> {
    features: Block<3, H>,
    output: Linear<H, 1>,
}

type Model = Built<Price<8>, f32, Cpu>;
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn new_model(seed: u64) -> Model {
    Cpu::seed_from_u64(seed).build_module::<Price<8>, f32>()
}

type Houses = (Tensor<Rank2<128, 3>, f32, Cpu>, Tensor<Rank2<128, 1>, f32, Cpu>);

/// Standardised houses; the sea at distance 0 makes both ends of the town dear.
fn houses(seed: u64) -> Houses {
    let x: Tensor<Rank2<128, 3>, f32, _> = Cpu::seed_from_u64(seed).sample_normal();
    let price = x.array().map(|[size, age, distance]| [size - 0.5 * age + 0.7 * distance.abs()]);
    let price = x.device().tensor(price);
    (x, price)
}

/// What the networks are trained for, and G.pt is asked for.
fn loss(model: &Model, (x, price): &Houses) -> f64 {
    mse_loss(model.forward(x.clone()), price.clone()).array().into()
}

/// What we care for: the largest error. It has no useful gradient, and G.pt has
/// never heard of it.
fn largest_error(model: &Model, (x, price): &Houses) -> f64 {
    (model.forward(x.clone()) - price.clone()).abs().max::<Rank0, _>().array().into()
}

fn main() -> Result<()> {
    // What the macro has found out about the network.
    let layout = Price::<8>::layout()?;
    println!("{} parameters", layout.num_parameters());
    for tensor in layout.tensors() {
        println!("  {:<22} {:?} from {}", tensor.name, tensor.shape, tensor.offset);
    }
    for group in layout.groups() {
        println!("  the {} units of `{}` may change places", group.units, group.name);
    }

    // So they may: the outputs stay the same but for rounding.
    let (training, validation, test) = (houses(1), houses(2), houses(3));
    let (model, mut permuted) = (new_model(0), new_model(0));
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let flat: Vec<f32> = flatten(&model)?;
    let mut moved = vec![0.0; flat.len()];
    Symmetry::new(&layout).sample(&mut rng).apply(&flat, &mut moved);
    unflatten(&mut permuted, &moved)?;
    let difference = model.forward(test.0.clone()) - permuted.forward(test.0.clone());
    let difference = difference.abs().max::<Rank0, _>().array();
    println!("reordered at random, its outputs change by at most {difference:e}");
    assert!(difference < 1e-5);

    // Many short trainings, on all cores; each is an ordinary dfdx loop.
    let folder = tempfile::tempdir()?;
    let store = Store::create(
        folder.path(),
        Metadata::new("price", layout, vec![Metric::VALIDATION_LOSS]),
    )?;
    let runs = (0..300).map(|id| RunInfo::new(id, 100 + id));
    record_runs(&store, runs, &RecordOptions::default(), |run| -> Result<()> {
        let mut model = new_model(run.info().seed);
        let (momentum, weight_decay) = (Some(Momentum::Nesterov(0.9)), Some(WeightDecay::L2(3e-3)));
        let mut sgd = Sgd::new(&model, SgdConfig { lr: 0.03, momentum, weight_decay });
        for step in 0..100 {
            if step < 10 || step % 5 == 0 {
                run.at(step).record(&model, &[loss(&model, &validation)])?;
            }
            let output = model.forward(training.0.clone().traced(model.alloc_grads()));
            let gradients = mse_loss(output, training.1.clone()).backward();
            sgd.update(&mut model, &gradients)?;
        }
        Ok(())
    })?;
    let dataset = Arc::new(Dataset::load(&store, &DatasetConfig::default())?);
    let config = ModelConfig { width: 32, blocks: 2, frequencies: 16, ..Default::default() };
    let steps = TrainerConfig { steps: 1000, ema_decay: 0.99, ..Default::default() };
    let mut trainer = Trainer::new(dataset, config, steps, 0)?;
    while !trainer.is_finished() {
        trainer.step()?;
    }
    let weights = trainer.weights(Default::default(), "price", serde_json::Value::Null);

    // One update of a new network, and one that chooses among 32 samples by the
    // largest error on the validation split. The closure is ours.
    let mut gpt = Gpt::new(weights, GptConfig::default())?;
    let (mut plain, mut chosen) = (model.clone(), model.clone());
    gpt.observe(loss(&plain, &validation));
    gpt.update(&mut plain, &Gradients::leaky())?;
    gpt.observe(loss(&chosen, &validation));
    gpt.update_best_of(&mut chosen, 32, |candidate| largest_error(candidate, &validation))?;
    println!("{:<16} {:>10} {:>14}", "on test houses", "loss", "largest error");
    for (name, model) in [("random", &model), ("one update", &plain), ("best of 32", &chosen)] {
        println!("{name:<16} {:>10.4} {:>14.3}", loss(model, &test), largest_error(model, &test));
    }
    Ok(())
}
