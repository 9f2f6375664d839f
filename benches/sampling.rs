//! Speed of one update with the bundled weights, as a user asks for it: a network of 64-10-10
//! units, batch 1, one thread, with the sampler of the weights, 20 and 1000 steps.

use std::time::Duration;

use criterion::{criterion_group, criterion_main, Criterion};
use dfdx::prelude::*;
use lopt::gpt::{GptConfig, SamplerConfig, SamplerKind};
use lopt::tasks::DigitsMlp;
use lopt::{Gpt, Pretrained};

fn sampling(criterion: &mut Criterion) {
    let ddim = SamplerConfig { steps: 20, ..SamplerConfig::default() };
    // The reference's sampler.
    let ddpm = SamplerConfig { kind: SamplerKind::Ddpm, steps: 1000, ..SamplerConfig::default() };
    let samplers = [
        ("the weights' sampler", None),
        ("20 steps of DDIM", Some(ddim)),
        ("1000 of DDPM", Some(ddpm)),
    ];
    for (name, sampler) in samplers {
        let weights = Pretrained::Digits.weights().expect("bundled weights");
        let config = GptConfig { sampler, ..GptConfig::default() };
        let mut optimizer = Gpt::new(weights, config).expect("an optimizer");
        let mut model = Cpu::seed_from_u64(0).build_module::<DigitsMlp, f32>();
        optimizer.prompt(0.12);
        let gradients = Gradients::leaky();
        criterion.bench_function(&format!("update, {name}"), |b| {
            b.iter(|| {
                optimizer.observe(2.3);
                optimizer.update(&mut model, &gradients).expect("an update");
            })
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .without_plots()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = sampling
}
criterion_main!(benches);
