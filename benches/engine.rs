//! Speed of a G.pt over the hidden units of a 64-10-10 network: width 128, 4
//! blocks, 0.9 million parameters, 12 tokens.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, Criterion};
use lopt::engine::{adamw_ema, global_norm, AdamW, Update};
use lopt::gpt::{Executor, Inputs, ModelConfig, Target, Transformer};
use lopt::layout::LayoutBuilder;

/// Values without a pattern that a kernel could gain from.
fn values(count: usize, scale: f32) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * scale
    };
    (0..count).map(|_| next()).collect()
}

fn engine(criterion: &mut Criterion) {
    let mut builder = LayoutBuilder::new();
    builder.scope("hidden", |b| b.linear(64, 10, true));
    builder.scope("output", |b| b.linear(10, 10, true));
    let layout = builder.finish().expect("a consistent layout");
    let size = layout.num_parameters();
    let config = ModelConfig { blocks: 4, ..ModelConfig::default() };
    let model = Arc::new(Transformer::new(config, &layout).expect("a config"));
    let decayed = model.decayed();
    let count = model.num_parameters();
    let mut parameters: Vec<f32> = model.initialize(0);
    let mut first = vec![0.0; count];
    let mut second = vec![0.0; count];
    let mut average = parameters.clone();
    let mut gradient = vec![0.0; count];

    const BATCH: usize = 64;
    let (noised, start) = (values(BATCH * size, 2.0), values(BATCH * size, 2.1));
    let (timestep, metric) = (values(BATCH, 900.0), values(BATCH, 4.0));
    let mut output = vec![0.0; BATCH * size];
    let inputs = |batch: usize| Inputs {
        noised: &noised[..batch * size],
        start: &start[..batch * size],
        timestep: &timestep[..batch],
        delta: &metric[..batch],
        target: &metric[..batch],
        current: &metric[..batch],
    };

    for threads in [1, 2] {
        let mut executor =
            Executor::for_training(model.clone(), BATCH, threads).expect("an executor");
        let target = Target::new(&noised);
        let mut step = 0;
        criterion.bench_function(&format!("training step, batch 64, {threads} threads"), |b| {
            b.iter(|| {
                let loss = executor
                    .loss_and_gradient(&parameters, &inputs(BATCH), &target, &mut gradient)
                    .expect("a gradient");
                step += 1;
                let update = Update {
                    step,
                    gradient: &gradient,
                    gradient_scale: 1.0 / (1.0 + global_norm(&gradient)),
                    decayed: &decayed,
                    parameters: &mut parameters,
                    first: &mut first,
                    second: &mut second,
                    average: &mut average,
                    average_decay: 0.9999,
                };
                adamw_ema(executor.threads(), &AdamW::default(), update);
                black_box(loss)
            })
        });
        criterion.bench_function(&format!("gradient, batch 64, {threads} threads"), |b| {
            b.iter(|| {
                executor
                    .loss_and_gradient(&parameters, &inputs(BATCH), &target, &mut gradient)
                    .expect("a gradient")
            })
        });
    }
    for (batch, threads) in [(BATCH, 1), (BATCH, 2), (1, 1)] {
        let mut executor =
            Executor::for_inference(model.clone(), batch, threads).expect("an executor");
        criterion.bench_function(&format!("forward, batch {batch}, {threads} threads"), |b| {
            b.iter(|| {
                executor
                    .predict(&parameters, &inputs(batch), &mut output[..batch * size])
                    .expect("an output")
            })
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = engine
}
criterion_main!(benches);
