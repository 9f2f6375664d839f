//! Forward and backward pass of whole networks.

use std::sync::Arc;

use rand::{Rng, SeedableRng};

use super::*;
use crate::gpt::{Conditioning, Executor, Inputs, Penalty, Target, Tokenization};
use crate::layout::LayoutBuilder;
use crate::symmetry::{gather, Symmetry};

fn mlp(sizes: &[usize]) -> Layout {
    let mut builder = LayoutBuilder::new();
    for (i, pair) in sizes.windows(2).enumerate() {
        builder.scope(&format!("fc{i}"), |b| b.linear(pair[0], pair[1], true));
    }
    builder.finish().unwrap()
}

/// A small network: odd widths, a head size that fills no register, and tokens
/// that straddle the parts of the input under `Chunk`.
fn config(tokenization: Tokenization) -> ModelConfig {
    let base = match tokenization {
        Tokenization::Units => ModelConfig::default(),
        other => ModelConfig::reference(other),
    };
    ModelConfig {
        width: 18,
        blocks: 2,
        heads: 3,
        encoder_depth: 2,
        decoder_depth: 3,
        frequencies: 3,
        max_frequency_log2: 3.0,
        ..base
    }
}

const TOKENIZATIONS: [Tokenization; 5] = [
    Tokenization::Chunk { length: 7 },
    Tokenization::LayerByLayer,
    Tokenization::ChunkWithinLayer { length: 5 },
    Tokenization::ChunkWithinInput { length: 9 },
    Tokenization::Units,
];

/// A network of several groups, with convolutions, a residual, blocks of columns, and units
/// that have nothing but edges.
fn graph() -> Layout {
    let mut builder = LayoutBuilder::new();
    builder.scope("a", |b| b.conv2d("Conv2D<2>", 1, 3, 2, 1, true));
    builder.residual(|b| b.scope("b", |b| b.conv2d("Conv2D<1>", 3, 3, 1, 1, true)));
    builder.flatten("Flatten2D");
    builder.scope("c", |b| b.linear(3 * 2, 4, false));
    builder.scope("d", |b| b.linear(4, 2, false));
    builder.scope("e", |b| b.linear(2, 2, true));
    builder.finish().unwrap()
}

/// Every tokenization of a network with one group, and the graph.
fn networks(sizes: &[usize]) -> impl Iterator<Item = (Tokenization, Layout)> + '_ {
    let one_group = TOKENIZATIONS.into_iter().map(|tokenization| (tokenization, mlp(sizes)));
    one_group.chain([(Tokenization::Units, graph())])
}

/// A batch of random inputs.
struct Batch<F> {
    noised: Vec<F>,
    start: Vec<F>,
    wanted: Vec<F>,
    timestep: Vec<F>,
    delta: Vec<F>,
    target: Vec<F>,
    current: Vec<F>,
}

impl<F: Float> Batch<F> {
    fn random(samples: usize, size: usize, seed: u64) -> Self {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut values = |count: usize, scale: f64| -> Vec<F> {
            (0..count).map(|_| F::from_f64(rng.gen_range(-scale..scale))).collect()
        };
        Self {
            noised: values(samples * size, 1.0),
            start: values(samples * size, 1.0),
            wanted: values(samples * size, 1.0),
            timestep: values(samples, 9.0),
            delta: values(samples, 1.0),
            target: values(samples, 2.0),
            current: values(samples, 2.0),
        }
    }

    fn inputs(&self) -> Inputs<'_, F> {
        Inputs {
            noised: &self.noised,
            start: &self.start,
            timestep: &self.timestep,
            delta: &self.delta,
            target: &self.target,
            current: &self.current,
        }
    }
}

/// Parameters with nothing left at zero, large enough for every part to matter.
fn parameters<F: Float>(model: &Transformer, seed: u64) -> Vec<F> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut parameters = vec![F::zero(); model.num_parameters()];
    for (spec, initial) in model.specs.iter().zip(&model.initial) {
        let middle = if *initial == Initial::One { 1.0 } else { 0.0 };
        for value in &mut parameters[spec.range()] {
            *value = F::from_f64(middle + rng.gen_range(-0.4..0.4));
        }
    }
    parameters
}

#[test]
fn gradients_match_central_differences() {
    for (tokenization, layout) in networks(&[3, 4, 2]) {
        for absolute_conditioning in [false, true] {
            let mut config = ModelConfig { absolute_conditioning, ..config(tokenization) };
            if !absolute_conditioning {
                config.conditioning = Conditioning::OwnTokens;
            }
            let model = Arc::new(Transformer::new(config, &layout).unwrap());
            let size = layout.num_parameters();
            let batch = Batch::<f64>::random(3, size, 1);
            let mut parameters = parameters::<f64>(&model, 2);
            let entry_weights: Vec<f64> = (0..size).map(|i| 0.5 + 0.1 * i as f64).collect();
            let target = Target {
                values: &batch.wanted,
                entry_weights: Some(&entry_weights),
                sample_weights: Some(&[1.0, 0.25, 2.0]),
                penalty: None,
            };
            let mut executor = Executor::for_training(model.clone(), 3, 2).unwrap();
            let mut gradient = vec![f64::NAN; model.num_parameters()];
            let loss = executor
                .loss_and_gradient(&parameters, &batch.inputs(), &target, &mut gradient)
                .unwrap();
            assert!(loss > 0.0);
            let mut scratch = gradient.clone();
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
            let largest = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
            for spec in model.parameters() {
                for _ in 0..3 {
                    let i = rng.gen_range(spec.range());
                    let (h, before) = (1e-4, parameters[i]);
                    let mut at = |value: f64| {
                        parameters[i] = value;
                        executor
                            .loss_and_gradient(&parameters, &batch.inputs(), &target, &mut scratch)
                            .unwrap()
                    };
                    // Fourth order: the error is far below the tolerance.
                    let (one, two) = (
                        at(before + h) - at(before - h),
                        at(before + 2.0 * h) - at(before - 2.0 * h),
                    );
                    let difference = (8.0 * one - two) / (12.0 * h);
                    at(before);
                    let error = (gradient[i] - difference).abs() / largest;
                    assert!(error < 1e-8, "{tokenization:?} {}: {error}", spec.name);
                }
            }
        }
    }
}

#[test]
fn instruction_sets_agree() {
    // Rows for tiles and for few, and widths, heads and tokens that fill no register.
    for (samples, width, heads) in [(1, 18, 3), (9, 40, 2), (9, 128, 4)] {
        let config = ModelConfig { width, heads, ..config(Tokenization::Units) };
        let model = Arc::new(Transformer::new(config, &mlp(&[9, 21, 4])).unwrap());
        let batch = Batch::<f32>::random(samples, model.layout().num_parameters(), 1);
        let parameters = parameters::<f32>(&model, 2);
        let mut executor = Executor::for_training(model.clone(), samples, 1).unwrap();
        let mut first: Option<Vec<f32>> = None;
        crate::engine::cpu::on_each_instruction_set(|set| {
            let mut gradient = vec![f32::NAN; model.num_parameters()];
            let target = Target::new(&batch.wanted);
            executor
                .loss_and_gradient(&parameters, &batch.inputs(), &target, &mut gradient)
                .unwrap();
            let first = first.get_or_insert_with(|| gradient.clone());
            let largest = first.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            for (a, b) in first.iter().zip(&gradient) {
                // A few hundred roundings of numbers as large as the largest.
                assert!((a - b).abs() <= 2e-5 * largest, "{set:?}, width {width}: {a} {b}");
            }
        });
    }
}

/// The squared error, written as a penalty.
#[derive(Debug)]
struct SquaredError<'a>(&'a [f64], f64);

impl Penalty<f64> for SquaredError<'_> {
    fn add(&self, sample: usize, output: &[f64], gradient: &mut [f64]) {
        let wanted = &self.0[sample * output.len()..];
        for ((sum, output), wanted) in gradient.iter_mut().zip(output).zip(wanted) {
            *sum += 2.0 * self.1 * (output - wanted);
        }
    }
}

#[test]
fn a_penalty_is_minimised_beside_the_squared_error() {
    let layout = mlp(&[3, 4, 2]);
    let model = Arc::new(Transformer::new(config(Tokenization::Units), &layout).unwrap());
    // Several passes on each of two threads.
    let (samples, size) = (200, layout.num_parameters());
    let batch = Batch::<f64>::random(samples, size, 1);
    let parameters = parameters::<f64>(&model, 2);
    let mut executor = Executor::for_training(model.clone(), samples, 2).unwrap();
    let mut gradient_of = |target: Target<'_, f64>| {
        let mut gradient = vec![0.0; model.num_parameters()];
        let loss = executor
            .loss_and_gradient(&parameters, &batch.inputs(), &target, &mut gradient)
            .unwrap();
        (loss, gradient)
    };
    let alone = Target::new(&batch.wanted);
    let penalty = SquaredError(&batch.wanted, 2.0 / (samples * size) as f64);
    let (loss, gradient) = gradient_of(alone);
    let (same, three) = gradient_of(Target { penalty: Some(&penalty), ..alone });
    assert_eq!(same, loss);
    for (three, one) in three.iter().zip(gradient) {
        assert!((three - 3.0 * one).abs() < 1e-14, "{three} {one}");
    }
}

#[test]
fn gradient_of_the_input_matches_central_differences() {
    let deep = (Tokenization::Units, mlp(&[3, 4, 3, 2]));
    for (tokenization, layout) in
        TOKENIZATIONS.map(|t| (t, mlp(&[3, 4, 2]))).into_iter().chain([deep])
    {
        let model = Arc::new(Transformer::new(config(tokenization), &layout).unwrap());
        let size = layout.num_parameters();
        let mut batch = Batch::<f64>::random(3, size, 1);
        let parameters = parameters::<f64>(&model, 2);
        let mut executor = Executor::for_training(model.clone(), 3, 2).unwrap();
        let mut gradient = vec![0.0; model.num_parameters()];
        let mut noised_gradient = vec![0.0; 3 * size];
        let cotangent = batch.wanted.clone();
        executor
            .pull_back(
                &parameters,
                &batch.inputs(),
                &cotangent,
                &mut gradient,
                &mut noised_gradient,
            )
            .unwrap();
        let mut output = vec![0.0; 3 * size];
        for i in (0..3 * size).step_by(5) {
            let before = batch.noised[i];
            let mut at = |value: f64| {
                batch.noised[i] = value;
                executor.predict(&parameters, &batch.inputs(), &mut output).unwrap();
                output.iter().zip(&cotangent).map(|(a, b)| a * b).sum::<f64>()
            };
            let difference = (at(before + 1e-5) - at(before - 1e-5)) / 2e-5;
            at(before);
            assert!((noised_gradient[i] - difference).abs() < 1e-7, "{tokenization:?} {i}");
        }
    }
}

#[test]
fn single_precision_follows_double_precision() {
    for (tokenization, layout) in networks(&[5, 7, 3]) {
        let config = ModelConfig { width: 40, heads: 5, ..config(tokenization) };
        let model = Arc::new(Transformer::new(config, &layout).unwrap());
        let size = layout.num_parameters();
        let single = Batch::<f32>::random(5, size, 1);
        let double = Batch::<f64>::random(5, size, 1);
        let (weights, weights64) = (parameters::<f32>(&model, 2), parameters::<f64>(&model, 2));
        let mut gradient = vec![0f32; model.num_parameters()];
        let mut gradient64 = vec![0f64; model.num_parameters()];
        let loss = Executor::for_training(model.clone(), 5, 2)
            .unwrap()
            .loss_and_gradient(
                &weights,
                &single.inputs(),
                &Target::new(&single.wanted),
                &mut gradient,
            )
            .unwrap();
        let loss64 = Executor::for_training(model.clone(), 5, 1)
            .unwrap()
            .loss_and_gradient(
                &weights64,
                &double.inputs(),
                &Target::new(&double.wanted),
                &mut gradient64,
            )
            .unwrap();
        assert!((loss - loss64).abs() < 1e-4 * loss64, "{loss} {loss64}");
        let norm: f64 = gradient64.iter().map(|g| g * g).sum();
        let error: f64 =
            gradient.iter().zip(&gradient64).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        assert!((error / norm).sqrt() < 1e-4, "{tokenization:?}: {}", (error / norm).sqrt());
    }
}

#[test]
fn inference_equals_training_and_batches_do_not_matter() {
    for (tokenization, layout) in networks(&[3, 4, 2]) {
        let model = Arc::new(Transformer::new(config(tokenization), &layout).unwrap());
        let size = layout.num_parameters();
        // More samples than one pass takes.
        let samples = 70;
        let batch = Batch::<f64>::random(samples, size, 1);
        let parameters = parameters::<f64>(&model, 2);
        let run = |mut executor: Executor<f64>| {
            let mut output = vec![0.0; samples * size];
            executor.predict(&parameters, &batch.inputs(), &mut output).unwrap();
            output
        };
        let one = run(Executor::for_inference(model.clone(), samples, 1).unwrap());
        for other in [
            run(Executor::for_training(model.clone(), samples, 1).unwrap()),
            run(Executor::for_inference(model.clone(), samples + 5, 3).unwrap()),
        ] {
            assert!(one.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-12));
        }
        let mut executor = Executor::for_inference(model.clone(), 4, 2).unwrap();
        let (mut output, i) = (vec![0.0; size], 37);
        let inputs = Inputs {
            noised: &batch.noised[i * size..][..size],
            start: &batch.start[i * size..][..size],
            timestep: &batch.timestep[i..=i],
            delta: &batch.delta[i..=i],
            target: &batch.target[i..=i],
            current: &batch.current[i..=i],
        };
        executor.predict(&parameters, &inputs, &mut output).unwrap();
        assert!(output.iter().zip(&one[i * size..]).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}

#[test]
fn same_seed_and_threads_give_the_same_bits() {
    let layout = mlp(&[6, 5, 3]);
    let model = Arc::new(Transformer::new(config(Tokenization::Units), &layout).unwrap());
    let size = layout.num_parameters();
    let batch = Batch::<f32>::random(9, size, 1);
    assert_eq!(model.initialize::<f32>(4), model.initialize::<f32>(4));
    assert_ne!(model.initialize::<f32>(4), model.initialize::<f32>(5));
    let parameters = parameters::<f32>(&model, 2);
    let run = |executor: &mut Executor<f32>| {
        let mut gradient = vec![0f32; model.num_parameters()];
        let target = Target::new(&batch.wanted);
        let loss = executor
            .loss_and_gradient(&parameters, &batch.inputs(), &target, &mut gradient)
            .unwrap();
        (loss.to_bits(), gradient)
    };
    for threads in [1, 2, 3] {
        let mut executor = Executor::for_training(model.clone(), 9, threads).unwrap();
        let first = run(&mut executor);
        assert_eq!(run(&mut executor), first);
        let mut other = Executor::for_training(model.clone(), 9, threads).unwrap();
        assert_eq!(run(&mut other), first);
    }
}

#[test]
fn a_fresh_model_returns_the_start() {
    for (tokenization, layout) in networks(&[3, 4, 2]) {
        let model = Arc::new(Transformer::new(config(tokenization), &layout).unwrap());
        let parameters: Vec<f32> = model.initialize(0);
        let batch = Batch::<f32>::random(2, layout.num_parameters(), 1);
        let mut output = vec![0.0; batch.start.len()];
        let mut executor = Executor::for_inference(model, 2, 1).unwrap();
        executor.predict(&parameters, &batch.inputs(), &mut output).unwrap();
        assert_eq!(output, batch.start);
    }
}

#[test]
fn reordering_units_reorders_the_output() {
    let orders = [vec![3, 1, 4, 0, 2], vec![2, 0, 3, 1]];
    reordering_reorders(&mlp(&[6, 5, 3]), &orders[..1]);
    reordering_reorders(&mlp(&[3, 5, 4, 2]), &orders);
    let orders = [vec![2, 0, 1], vec![2, 0, 3, 1], vec![1, 0]];
    reordering_reorders(&graph(), &orders);
}

fn reordering_reorders(layout: &Layout, orders: &[Vec<usize>]) {
    let model = Arc::new(Transformer::new(config(Tokenization::Units), layout).unwrap());
    let size = layout.num_parameters();
    let batch = Batch::<f64>::random(1, size, 1);
    let parameters = parameters::<f64>(&model, 2);
    let mut executor = Executor::for_inference(model, 1, 1).unwrap();
    let mut output = vec![0.0; size];
    executor.predict(&parameters, &batch.inputs(), &mut output).unwrap();

    let index = Symmetry::new(layout).index(orders);
    let moved = |values: &[f64]| {
        let mut moved = vec![0.0; size];
        gather(&index, values, &mut moved);
        moved
    };
    let (noised, start) = (moved(&batch.noised), moved(&batch.start));
    let inputs = Inputs { noised: &noised, start: &start, ..batch.inputs() };
    let mut other = vec![0.0; size];
    executor.predict(&parameters, &inputs, &mut other).unwrap();
    assert!(moved(&output).iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-12));
}

#[test]
fn wrong_lengths_are_errors() {
    use crate::engine::EngineError;
    let layout = mlp(&[3, 4, 2]);
    let model = Arc::new(Transformer::new(config(Tokenization::Units), &layout).unwrap());
    let size = layout.num_parameters();
    let batch = Batch::<f32>::random(2, size, 1);
    let parameters: Vec<f32> = model.initialize(0);
    let mut executor = Executor::for_inference(model.clone(), 2, 1).unwrap();
    let mut output = vec![0.0; 2 * size];
    let mut fails = |parameters: &[f32], inputs: Inputs<'_, f32>, output: &mut [f32]| {
        executor.predict(parameters, &inputs, output).unwrap_err()
    };
    let length = |buffer, found, expected| EngineError::Length { buffer, found, expected };
    let n = model.num_parameters();
    assert_eq!(
        fails(&parameters[1..], batch.inputs(), &mut output),
        length("parameters", n - 1, n)
    );
    assert_eq!(
        fails(&parameters, batch.inputs(), &mut output[1..]),
        length("output", 2 * size - 1, 2 * size)
    );
    let inputs = Inputs { delta: &[0.0], ..batch.inputs() };
    assert_eq!(fails(&parameters, inputs, &mut output), length("delta", 1, 2));
    let inputs = Inputs { timestep: &[0.0; 3], ..batch.inputs() };
    assert_eq!(
        fails(&parameters, inputs, &mut output),
        EngineError::Batch { found: 3, capacity: 2 }
    );
    let mut gradient = vec![0.0; n];
    let target = Target::new(&batch.wanted);
    assert_eq!(
        executor.loss_and_gradient(&parameters, &batch.inputs(), &target, &mut gradient),
        Err(EngineError::InferenceOnly)
    );
    assert!(Executor::<f32>::for_inference(model, 0, 1).is_err());
}

#[test]
fn parameters_cover_the_vector_once_and_decay_only_weights() {
    for tokenization in TOKENIZATIONS {
        let model = Transformer::new(config(tokenization), &mlp(&[3, 4, 2])).unwrap();
        let mut ranges: Vec<_> = model.parameters().iter().map(ParameterSpec::range).collect();
        ranges.sort_by_key(|range| range.start);
        assert_eq!(ranges[0].start, 0);
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(ranges.last().unwrap().end, model.num_parameters());
        let decayed: usize = model.decayed().iter().map(|range| range.len()).sum();
        let weights: usize = model
            .parameters()
            .iter()
            .filter(|spec| spec.name.ends_with(".weight") && spec.shape.len() == 2)
            .map(ParameterSpec::num_elements)
            .sum();
        assert_eq!(decayed, weights);
    }
}

#[test]
fn sizes_that_cannot_be_addressed_are_refused() {
    let layout = mlp(&[3, 4, 2]);
    for config in [
        ModelConfig { width: 1 << 40, heads: 1, ..ModelConfig::default() },
        ModelConfig { width: 1 << 16, blocks: 1 << 12, ..ModelConfig::default() },
        ModelConfig { blocks: usize::MAX, ..ModelConfig::default() },
        ModelConfig { frequencies: usize::MAX / 2, ..ModelConfig::default() },
    ] {
        assert!(Transformer::new(config, &layout).is_err());
    }
}
