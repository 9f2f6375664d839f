//! How the time of a training step grows with batch, blocks and tokens, and what memory it
//! takes.
//!
//! ```text
//! cargo bench --bench growth
//! ```
//!
//! Prints the tables of benches/RESULTS.md, section *Growth*. One thread, CPU time of the
//! process, medians.

use std::sync::Arc;

use lopt::gpt::{Executor, Inputs, ModelConfig, Target, Tokenization, Transformer};
use lopt::layout::{LayoutBuilder, Role};
use rustix::time::{clock_gettime, ClockId};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const WIDTH: usize = 128;
/// Values in a token.
const LENGTH: usize = 64;
/// Fewest steps of a median, and shortest time of them all in seconds.
const STEPS: usize = 7;
const SECONDS: f64 = 0.5;

/// What was measured of one shape.
struct Figures {
    /// Of one step.
    milliseconds: f64,
    /// Multiplications and additions of matrix products, in billions for each second.
    gflops: f64,
    /// What the executor allocated, and wrote to, in megabytes.
    megabytes: f64,
    /// Parameters of the model.
    parameters: usize,
}

fn measure(pieces: usize, blocks: usize, batch: usize) -> Result<Figures> {
    let mut builder = LayoutBuilder::new();
    builder.tensor("vector", &[pieces * LENGTH], Role::Weight);
    let layout = builder.finish()?;
    let reference = ModelConfig::reference(Tokenization::ChunkWithinInput { length: LENGTH });
    let config = ModelConfig { width: WIDTH, blocks, heads: 4, ..reference };
    let model = Arc::new(Transformer::new(config, &layout)?);
    let parameters: Vec<f32> = model.initialize(0);
    let mut gradient = vec![1.0; parameters.len()];
    let size = layout.num_parameters();
    let wave = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|i| ((i * 29 + seed) % 61) as f32 / 30.0 - 1.0).collect()
    };
    let (noised, start, wanted) =
        (wave(batch * size, 1), wave(batch * size, 2), wave(batch * size, 3));
    let metric = wave(batch, 4);
    let timestep: Vec<f32> = (0..batch).map(|i| (i * 37 % 1000) as f32).collect();
    let inputs = Inputs {
        noised: &noised,
        start: &start,
        timestep: &timestep,
        delta: &metric,
        target: &metric,
        current: &metric,
    };

    let before = resident()?;
    let mut executor = Executor::for_training(model.clone(), batch, 1)?;
    let mut times = Vec::new();
    let mut total = 0.0;
    while times.len() <= STEPS || total < SECONDS {
        let start = cpu_seconds();
        executor.loss_and_gradient(&parameters, &inputs, &Target::new(&wanted), &mut gradient)?;
        times.push(cpu_seconds() - start);
        total += cpu_seconds() - start;
    }
    let megabytes = resident()? - before;
    // The first one touches memory for the first time.
    times.remove(0);
    times.sort_by(f64::total_cmp);
    let seconds = times[times.len() / 2];

    let (tokens, outputs) = (model.num_tokens(), model.num_outputs());
    let asking = tokens * (blocks - 1) + outputs;
    let blocks = (3 * blocks * tokens + 9 * asking) * WIDTH * WIDTH + 2 * asking * tokens * WIDTH;
    let decoders = size * WIDTH;
    // Nothing needs the gradient of the input.
    let encoders = 2 * size * WIDTH;
    let operations = 2 * batch * (3 * (blocks + decoders) + 2 * encoders);
    Ok(Figures {
        milliseconds: seconds * 1e3,
        gflops: operations as f64 / seconds / 1e9,
        megabytes,
        parameters: parameters.len(),
    })
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Memory of the process, in megabytes.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmRSS")?;
    Ok(kib.parse::<f64>()? * 1024.0 / 1e6)
}

fn main() -> Result<()> {
    println!("Width {WIDTH}, 4 heads, tokens of {LENGTH} values.\n");
    println!("| tokens | blocks | batch | ms a step | GFLOP/s | parameters | executor, MB |");
    println!("|---|---|---|---|---|---|---|");
    let batches = [4, 16, 64, 256].map(|batch| (8, 4, batch));
    let blocks = [1, 2, 4, 8].map(|blocks| (8, blocks, 64));
    // As many rows in each.
    let tokens = [16, 32, 64, 128, 256, 512].map(|tokens| ((tokens - 4) / 2, 4, 2048 / tokens));
    for (pieces, blocks, batch) in batches.into_iter().chain(blocks).chain(tokens) {
        let figures = measure(pieces, blocks, batch)?;
        println!(
            "| {} | {blocks} | {batch} | {:.2} | {:.0} | {} | {:.0} |",
            2 * pieces + 4,
            figures.milliseconds,
            figures.gflops,
            figures.parameters,
            figures.megabytes,
        );
    }
    Ok(())
}
