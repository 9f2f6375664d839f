//! One training function for SGD, Adam, RMSprop and G.pt.
//!
//! ```text
//! cargo run --release --example training_loop
//! ```

use std::time::Instant;

use dfdx::prelude::*;
use lopt::metric::Split;
use lopt::network::{flatten, Built};
use lopt::optimizer::Adapter;
use lopt::tasks::{Digits, DigitsMlp, Task};
use lopt::{Gpt, LearnedOptimizer, Pretrained};

type Model = Built<DigitsMlp, f32, Cpu>;
type Optimizer = Box<dyn LearnedOptimizer<Model, f32, Cpu>>;

/// Trains with any optimizer. It asks what the optimizer needs, and computes
/// nothing else: no gradients for G.pt, no validation loss for the others.
fn train(
    model: &mut Model,
    optimizer: &mut dyn LearnedOptimizer<Model, f32, Cpu>,
    updates: usize,
    digits: &Digits,
) -> lopt::Result<()> {
    let (images, labels) = training_batch(digits);
    for _ in 0..updates {
        if optimizer.needs().feedback {
            optimizer.observe(digits.validation_loss(model)?.into());
        }
        let gradients = optimizer.needs().gradients.then(|| {
            let scores = model.forward(images.clone().traced(model.alloc_grads()));
            cross_entropy_with_logits_loss(scores, labels.clone()).backward()
        });
        // dfdx's `optimizer.update(model, &gradients)` would do as well; this
        // one says in words what went wrong, and takes no gradients for none.
        optimizer.try_update(model, gradients.as_ref())?;
    }
    Ok(())
}

fn main() -> lopt::Result<()> {
    let digits = Digits::load()?;
    // A network as it comes out of dfdx, which G.pt has never seen.
    let start = Cpu::seed_from_u64(2_000_000_000).build_module::<DigitsMlp, f32>();

    // SGD and Adam take hundreds of updates. To swap Adam for G.pt is to write
    // the last of these lines instead of the one before.
    let momentum = Some(Momentum::Nesterov(0.9));
    let sgd = Adapter::sgd(&start, SgdConfig { lr: 0.1, momentum, weight_decay: None })?;
    let rmsprop = Adapter::rmsprop(&start, RMSpropConfig { lr: 0.003, ..Default::default() })?;
    let adam = Adapter::adam(&start, AdamConfig { lr: 0.01, ..Default::default() })?;
    let gpt = Gpt::pretrained(&start, Pretrained::Digits)?;

    let mut runs: [(Optimizer, usize); 4] =
        [(Box::new(sgd), 100), (Box::new(rmsprop), 100), (Box::new(adam), 100), (Box::new(gpt), 1)];
    println!("{:<10} {:>8} {:>12} {:>12}", "", "updates", "test loss", "milliseconds");
    println!("{:<10} {:>8} {:>12.3}", "start", 0, test_loss(&start, &digits)?);
    for (optimizer, updates) in &mut runs {
        let mut model = start.clone();
        let clock = Instant::now();
        train(&mut model, &mut **optimizer, *updates, &digits)?;
        let (loss, time) = (test_loss(&model, &digits)?, 1e3 * clock.elapsed().as_secs_f64());
        println!("{:<10} {updates:>8} {loss:>12.3} {time:>12.1}", optimizer.name());
    }
    Ok(())
}

fn test_loss(model: &Model, digits: &Digits) -> lopt::Result<f64> {
    Ok(digits.measure(&flatten(model)?, Split::Test)?[0])
}

type Batch<const N: usize> = Tensor<(usize, Const<N>), f32, Cpu>;

/// All training images in one batch, and their labels as one-hot rows.
fn training_batch(digits: &Digits) -> (Batch<64>, Batch<10>) {
    let images = digits.images(Split::Train);
    let pixels: Vec<f32> = (0..images.len()).flat_map(|i| images.row(i).to_vec()).collect();
    let mut labels = vec![0.0; 10 * images.len()];
    for (row, &digit) in labels.chunks_exact_mut(10).zip(images.labels()) {
        row[digit] = 1.0;
    }
    let dev = Cpu::default();
    let batch = dev.tensor_from_vec(pixels, (images.len(), Const::<64>));
    (batch, dev.tensor_from_vec(labels, (images.len(), Const::<10>)))
}
