//! An objective of your own that has no gradient: any closure from a network to a score.
//!
//! Digits are sorted, and a missed 8 costs thirty times as much as any other mistake. What
//! mistakes cost is counted, so nothing can be trained on it: the recorded trainings lower
//! cross entropies in which 8 weighs now more, now less, and the closure says what came of
//! each. One G.pt is asked for a low loss, as usual; one for a high score.
//!
//! ```text
//! cargo run --release --example objective
//! cargo run --release --example objective -- 1500 4000    # runs, steps of G.pt
//! ```

use std::sync::Arc;

use dfdx::optim::{Momentum, Optimizer as _, Sgd, SgdConfig, WeightDecay};
use dfdx::prelude::*;
use lopt::checkpoints::{
    record_runs, Dataset, DatasetConfig, Metadata, RecordOptions, RunInfo, Store,
};
use lopt::gpt::{Gpt, GptConfig, ModelConfig, Trainer, TrainerConfig};
use lopt::metric::{Metric, Split};
use lopt::network::{flatten, unflatten, Built};
use lopt::tasks::{Digits, DigitsMlp, Seeds, Task, TaskBehavior};
use lopt::Network;
use rand::{Rng, SeedableRng};

type Model = Built<DigitsMlp, f32, Cpu>;
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Images = Tensor<(usize, Const<64>), f32, Cpu>;

/// The digit that must not be missed, and what missing it costs.
const PRECIOUS: usize = 8;
const PRICE: f64 = 30.0;
/// Steps of a recorded training, and networks that are updated in the end.
const STEPS: u64 = 200;
const NETWORKS: u64 = 64;

/// Images of a split and their digits.
struct Part {
    images: Images,
    digits: Vec<usize>,
}

impl Part {
    fn of(digits: &Digits, split: Split) -> Self {
        let set = digits.images(split);
        let images = Cpu::default().tensor_from_vec(set.rows().to_vec(), (set.len(), Const));
        Self { images, digits: set.labels().to_vec() }
    }

    /// The objective: minus the mean cost of an answer. It is a count.
    fn score(&self, model: &Model) -> f64 {
        let logits = model.forward(self.images.clone()).as_vec();
        let answers = logits
            .chunks_exact(10)
            .map(|row| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0));
        let cost = |(answer, &digit): (usize, &usize)| match answer == digit {
            true => 0.0,
            false if digit == PRECIOUS => PRICE,
            false => 1.0,
        };
        -answers.zip(&self.digits).map(cost).sum::<f64>() / self.digits.len() as f64
    }
}

/// An ordinary training, but for what a missed 8 weighs in the cross entropy.
fn train(
    model: &mut Model,
    data: &Part,
    weight: f32,
    seed: u64,
    mut observe: impl FnMut(u64, &Model) -> Result<()>,
) -> Result<()> {
    let (momentum, weight_decay) = (Some(Momentum::Nesterov(0.9)), Some(WeightDecay::L2(5e-3)));
    let mut sgd = Sgd::new(model, SgdConfig { lr: 0.1, momentum, weight_decay });
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let batch = 256;
    for step in 0..=STEPS {
        observe(step, model)?;
        let share = step as f64 / STEPS as f64;
        sgd.cfg.lr = 0.05 * (1.0 + (std::f64::consts::PI * share).cos());
        let chosen: Vec<usize> = (0..batch).map(|_| rng.gen_range(0..data.digits.len())).collect();
        let mut wanted = vec![0.0f32; batch * 10];
        for (n, &image) in chosen.iter().enumerate() {
            let digit = data.digits[image];
            wanted[10 * n + digit] = if digit == PRECIOUS { weight } else { 1.0 };
        }
        let device = data.images.device();
        let index = device.tensor_from_vec(chosen, (batch,));
        let wanted = device.tensor_from_vec(wanted, (batch, Const::<10>));
        let images: Images = data.images.clone().gather(index);
        let logits = model.forward_mut(images.traced(model.alloc_grads()));
        let loss = -(logits.log_softmax::<Axis<1>>() * wanted).sum() / batch as f32;
        sgd.update(model, &loss.backward())?;
    }
    Ok(())
}

fn new_model(digits: &Digits, seed: u64) -> Result<Model> {
    let mut model = Cpu::default().build_module::<DigitsMlp, f32>();
    unflatten(&mut model, &digits.initial(seed)?)?;
    Ok(model)
}

/// Mean and standard error.
fn estimate(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    (mean, (squares / (count - 1.0) / count).sqrt())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|n| n.parse::<u64>());
    let runs = arguments.next().transpose()?.unwrap_or(300);
    let steps = arguments.next().transpose()?.unwrap_or(800);
    let digits = Digits::load()?;
    let [training, validation, test] =
        [Split::Train, Split::Validation, Split::Test].map(|split| Part::of(&digits, split));

    // Both metrics of every checkpoint are recorded: the loss, and what the closure says.
    let folder = tempfile::tempdir()?;
    let metrics = vec![Metric::VALIDATION_LOSS, Metric::VALIDATION_SCORE];
    let store =
        Store::create(folder.path(), Metadata::new("costs", DigitsMlp::layout()?, metrics))?;
    let seeds = Seeds::recording(0)?;
    let infos = (0..runs).map(|id| Ok(RunInfo::new(id, seeds.run(id)?)));
    let infos = infos.collect::<Result<Vec<_>>>()?;
    record_runs(&store, infos, &RecordOptions::default(), |run| -> Result<()> {
        let seed = run.info().seed;
        // From a fifth to sixty times the weight of other digits.
        let weight = 300f32.powf(rand_chacha::ChaCha8Rng::seed_from_u64(seed).gen()) / 5.0;
        train(&mut new_model(&digits, seed)?, &training, weight, seed, |step, model| {
            if step < 10 || step % 10 == 0 {
                let loss = digits.validation_loss(model)?;
                run.at(step).record(model, &[loss, validation.score(model)])?;
            }
            Ok(())
        })
    })?;

    let seeds = Seeds::evaluation(0)?;
    let starts = (0..NETWORKS).map(|n| new_model(&digits, seeds.run(n)?));
    let starts = starts.collect::<Result<Vec<Model>>>()?;
    let scores: Vec<f64> = starts.iter().map(|model| test.score(model)).collect();
    println!("{:<28} {:>7} {:>17} {:>7}", "test, one update of 64", "prompt", "score", "loss");
    let (mean, error) = estimate(&scores);
    println!("{:<28} {:>7} {mean:>9.3} ± {error:.3}", "random initialisations", "");
    let mut reached = Vec::new();
    for (metric, name) in [
        (Metric::VALIDATION_LOSS, "asked for the lowest loss"),
        (Metric::VALIDATION_SCORE, "asked for the highest score"),
    ] {
        let dataset =
            Arc::new(Dataset::load(&store, &DatasetConfig { metric, ..Default::default() })?);
        let config = ModelConfig { width: 64, blocks: 3, ..ModelConfig::for_metric(metric.kind) };
        let settings =
            TrainerConfig { steps, ema_decay: 0.998, behavior: 0.3, ..Default::default() };
        let answers = TaskBehavior::new(Box::new(digits.clone()), 128);
        let mut trainer =
            Trainer::new(dataset, config, settings, 0)?.with_behavior(Box::new(answers));
        while !trainer.is_finished() {
            trainer.step()?;
        }
        let weights = trainer.weights(Default::default(), "costs", serde_json::Value::Null);
        // Until it is told otherwise, it is asked for the best that it has been shown.
        let prompt = weights.header.prompt_range.best;
        let mut gpt = Gpt::new(weights, GptConfig::default())?;
        let mut scores = Vec::new();
        let mut losses = Vec::new();
        for start in &starts {
            let mut model = start.clone();
            gpt.observe(match metric {
                Metric::VALIDATION_SCORE => validation.score(&model),
                _ => digits.validation_loss(&model)?,
            });
            gpt.update(&mut model, &Gradients::leaky())?;
            scores.push(test.score(&model));
            losses.push(digits.measure(&flatten(&model)?, Split::Test)?[0]);
        }
        let ((mean, error), (loss, _)) = (estimate(&scores), estimate(&losses));
        println!("{name:<28} {prompt:>7.3} {mean:>9.3} ± {error:.3} {loss:>7.3}");
        reached.push(scores);
    }
    let gains: Vec<f64> = reached[1].iter().zip(&reached[0]).map(|(b, a)| b - a).collect();
    let (mean, error) = estimate(&gains);
    println!("{:<28} {:>7} {mean:>+9.3} ± {error:.3}", "gain, network by network", "");
    Ok(())
}
