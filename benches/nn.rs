//! Layers for images and a small CNN: forward and backward, one line for each.
//!
//! `benches/peers/nn.sh` runs this and the same in PyTorch by turns and prints
//! the ratios. Alone:
//!
//! ```text
//! cargo bench --bench nn -- 1
//! ```
//!
//! The argument is the number of threads. With one, times are CPU time,
//! otherwise wall-clock time; each is the median of some passes.

use std::time::Instant;

use dfdx::prelude::*;
use lopt::nn::{self, Conv2D};
use rustix::time::{clock_gettime, ClockId};

/// Seconds for each pass of each measurement.
const SECONDS: f64 = 0.25;

type Images<const C: usize> = Tensor<(usize, Const<C>, usize, usize), f32, Cpu>;

#[lopt::network]
struct Cnn {
    first: nn::Conv2D<1, 16, 3, 2>,
    first_activation: ReLU,
    second: nn::Conv2D<16, 32, 3>,
    second_activation: ReLU,
    pool: nn::AvgPoolGlobal,
    output: Linear<32, 10>,
}

fn main() {
    let threads = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        for batch in [64, 128] {
            layer::<Conv2D<1, 16, 3, 2>, 1, 16>("conv 28x28x1 s2 16", batch, 28, threads);
            layer::<Conv2D<16, 32, 3>, 16, 32>("conv 13x13x16 32", batch, 13, threads);
            cnn(batch, threads);
        }
    });
}

/// A layer and the mean over its outputs, to have one number to go back from.
fn layer<L, const I: usize, const O: usize>(name: &str, batch: usize, side: usize, threads: usize)
where
    L: BuildOnDevice<Cpu, f32>,
    L::Built: Module<
        Tensor<(usize, Const<I>, usize, usize), f32, Cpu, OwnedTape<f32, Cpu>>,
        Output = Tensor<(usize, Const<O>, usize, usize), f32, Cpu, OwnedTape<f32, Cpu>>,
    >,
{
    let dev = Cpu::default();
    dev.enable_cache();
    let layer = dev.build_module::<L, f32>();
    let input: Images<I> = dev.sample_normal_like(&(batch, Const, side, side));
    let mut gradients = Some(layer.alloc_grads());
    measure(name, batch, threads, |clock| {
        let start = clock();
        let out = layer.forward(input.clone().traced(gradients.take().expect("gradients")));
        let forward = clock() - start;
        let loss = nn::AvgPoolGlobal.forward(out).sum::<Rank0, _>();
        let start = clock();
        gradients = Some(loss.backward());
        (forward, clock() - start)
    });
}

fn cnn(batch: usize, threads: usize) {
    let dev = Cpu::default();
    dev.enable_cache();
    let mut model = dev.build_module::<Cnn, f32>();
    let input: Images<1> = dev.sample_normal_like(&(batch, Const, 28, 28));
    let mut target = dev.zeros_like(&(batch, Const::<10>));
    for n in 0..batch {
        target[[n, n % 10]] = 1.0;
    }
    let mut gradients = Some(model.alloc_grads());
    measure("CNN", batch, threads, |clock| {
        let start = clock();
        let traced = input.clone().traced(gradients.take().expect("gradients"));
        let loss = cross_entropy_with_logits_loss(model.forward_mut(traced), target.clone());
        let forward = clock() - start;
        let start = clock();
        let mut new = loss.backward();
        let backward = clock() - start;
        model.zero_grads(&mut new);
        gradients = Some(new);
        (forward, backward)
    });
}

/// Prints medians in milliseconds.
fn measure(
    name: &str,
    batch: usize,
    threads: usize,
    mut pass: impl FnMut(&dyn Fn() -> f64) -> (f64, f64),
) {
    let epoch = Instant::now();
    let wall = || epoch.elapsed().as_secs_f64();
    let clock: &dyn Fn() -> f64 = if threads == 1 { &cpu_seconds } else { &wall };
    for _ in 0..3 {
        pass(clock);
    }
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    let end = Instant::now();
    while end.elapsed().as_secs_f64() < SECONDS || forward.len() < 5 {
        let (f, b) = pass(clock);
        forward.push(f);
        backward.push(b);
    }
    for (what, mut times) in [("forward", forward), ("backward", backward)] {
        times.sort_by(f64::total_cmp);
        println!("{name}, batch {batch}\t{what}\t{:.4}", times[times.len() / 2] * 1e3);
    }
}

/// CPU time of this thread.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
