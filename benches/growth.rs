//! How the time of a training step grows with batch, blocks and tokens, and what memory it
//! takes.
//!
//! ```text
//! cargo bench --bench growth
//! cargo bench --bench growth -- quick    # one short round
//! ```
//!
//! Prints the tables of benches/RESULTS.md, section *Growth*. Each shape is measured in a process
//! of its own, on one thread: CPU time of a step (loss and gradient, clipping, AdamW, average),
//! median of its steps, then of rounds by turns. Memory is the highest resident set of that
//! process, less what was resident when it began.

use std::process::Command;
use std::sync::Arc;

use lopt::engine::{adamw_ema, global_norm, AdamW, Update};
use lopt::gpt::{clip_scale, Executor, Inputs, ModelConfig, Target, Transformer};
use lopt::layout::LayoutBuilder;
use rustix::time::{clock_gettime, ClockId};
use serde::{Deserialize, Serialize};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const WIDTH: usize = 128;
const HEADS: usize = 4;
/// Of the network that is optimised. With a bias, each hidden unit has 64 values.
const INPUTS: usize = 32;
const OUTPUTS: usize = 31;
/// Fewest steps of a median, and shortest time of them all in seconds.
const STEPS: usize = 5;
const SECONDS: f64 = 0.5;
const ROUNDS: usize = 5;

/// What is measured, as the arguments of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    tokens: usize,
    blocks: usize,
    batch: usize,
}

/// What was measured of one shape.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Figures {
    /// Of one step.
    milliseconds: f64,
    /// Of these, for AdamW and average, with the norm of the gradient.
    update: f64,
    /// Multiplications and additions of matrix products in one step, in millions.
    megaflops: f64,
    /// Parameters of the model.
    parameters: usize,
    /// Highest resident set less the first, in bytes.
    peak: f64,
    /// What must be kept, in bytes.
    kept: f64,
}

fn measure(Shape { tokens, blocks, batch }: Shape, seconds: f64) -> Result<Figures> {
    let resident = memory("VmRSS:")?;
    // Besides hidden units, the output biases and the scalars have a token each.
    let hidden = tokens - 2;
    let mut builder = LayoutBuilder::new();
    builder.scope("hidden", |b| b.linear(INPUTS, hidden, true));
    builder.scope("output", |b| b.linear(hidden, OUTPUTS, true));
    let layout = builder.finish()?;
    let config = ModelConfig { width: WIDTH, blocks, heads: HEADS, ..ModelConfig::default() };
    let model = Arc::new(Transformer::new(config, &layout)?);
    if model.num_tokens() != tokens {
        return Err(format!("{} tokens, expected {tokens}", model.num_tokens()).into());
    }
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
    let mut parameters: Vec<f32> = model.initialize(0);
    let mut gradient = vec![0.0; parameters.len()];
    let (mut first, mut second) = (gradient.clone(), gradient.clone());
    let mut average = parameters.clone();
    let decayed = model.decayed();

    let mut executor = Executor::for_training(model.clone(), batch, 1)?;
    let (mut times, mut updates, mut total) = (Vec::new(), Vec::new(), 0.0);
    while times.len() <= STEPS || total < seconds {
        let start = cpu_seconds();
        executor.loss_and_gradient(&parameters, &inputs, &Target::new(&wanted), &mut gradient)?;
        let between = cpu_seconds();
        let update = Update {
            step: times.len() as u64 + 1,
            gradient: &gradient,
            gradient_scale: clip_scale(global_norm(&gradient), 1.0),
            decayed: &decayed,
            parameters: &mut parameters,
            first: &mut first,
            second: &mut second,
            average: &mut average,
            average_decay: 0.9995,
        };
        adamw_ema(executor.threads(), &AdamW::default(), update);
        let end = cpu_seconds();
        times.push(end - start);
        updates.push(end - between);
        total += end - start;
    }
    // The first one touches memory for the first time.
    times.remove(0);
    updates.remove(0);
    Ok(Figures {
        milliseconds: median(times) * 1e3,
        update: median(updates) * 1e3,
        megaflops: operations(&model, blocks, batch) / 1e6,
        parameters: parameters.len(),
        peak: memory("VmHWM:")? - resident,
        kept: 4.0 * kept(&model, blocks, batch, executor.samples_per_pass()) as f64,
    })
}

/// Multiplications and additions that a step needs: after the last block only output tokens are
/// read, and nothing needs the gradient of the input.
fn operations(model: &Transformer, blocks: usize, batch: usize) -> f64 {
    let (tokens, outputs) = (model.num_tokens(), model.num_outputs());
    let asking = tokens * (blocks - 1) + outputs;
    let blocks = (3 * blocks * tokens + 9 * asking) * WIDTH * WIDTH + 2 * asking * tokens * WIDTH;
    let decoders = model.layout().num_parameters() * WIDTH;
    // The scalars are also projected for all tokens.
    let encoders = 2 * decoders + 2 * scalars(model) * WIDTH;
    (2 * batch * (3 * (blocks + decoders) + 2 * encoders)) as f64
}

/// Values of the embedded scalars: timestep, and wanted metric, present one and difference.
fn scalars(model: &Transformer) -> usize {
    4 * (2 * model.config().frequencies + 1)
}

/// Values that must be kept: parameters, gradient, both moments and average; noised, starting and
/// wanted parameters of the batch; and, for the samples that go through the network at once, what
/// formulas of the backward pass read. That is what goes into each linear layer and LayerNorm
/// (with mean and deviation), queries, keys, values and attention probabilities, the slope of
/// each GELU, and the output; in the last block of output tokens only, but for keys and values.
fn kept(model: &Transformer, blocks: usize, batch: usize, samples: usize) -> usize {
    let (tokens, outputs) = (model.num_tokens(), model.num_outputs());
    let size = model.layout().num_parameters();
    // Stream, normalised stream, and all three of queries, keys and values.
    let asked = 5 * WIDTH + 2;
    // Attended, stream, normalised stream; the widened MLP and its slope.
    let asking = HEADS * tokens + 3 * WIDTH + 2 + 8 * WIDTH;
    let within = blocks * tokens * asked + ((blocks - 1) * tokens + outputs) * asking;
    let encoder = 2 * size + scalars(model) + tokens * (WIDTH + 2);
    let decoder = outputs * (WIDTH + 2 + WIDTH) + size;
    5 * model.num_parameters() + 3 * batch * size + samples * (within + encoder + decoder)
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// A line of what Linux says of the memory of the process, in bytes.
fn memory(name: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no such line")?;
    Ok(kib.parse::<f64>()? * 1024.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures a shape in a process of its own.
fn measure_apart(shape: Shape, seconds: f64) -> Result<Figures> {
    let arguments = [shape.tokens, shape.blocks, shape.batch].map(|number| number.to_string());
    let child = Command::new(std::env::current_exe()?)
        .arg("shape")
        .args(arguments)
        .arg(seconds.to_string())
        .output()?;
    if !child.status.success() {
        return Err(String::from_utf8_lossy(&child.stderr).into());
    }
    Ok(serde_json::from_slice(&child.stdout)?)
}

/// The line `a + b x` with the least sum of squared relative errors, and the largest of these
/// errors.
fn line(points: &[(f64, f64)]) -> (f64, f64, f64) {
    let sum =
        |f: &dyn Fn(f64, f64) -> f64| points.iter().map(|&(x, y)| f(x, y) / (y * y)).sum::<f64>();
    let (n, x, y) = (sum(&|_, _| 1.0), sum(&|x, _| x), sum(&|_, y| y));
    let (xx, xy) = (sum(&|x, _| x * x), sum(&|x, y| x * y));
    let slope = (n * xy - x * y) / (n * xx - x * x);
    let base = (y - slope * x) / n;
    let error = |&(x, y): &(f64, f64)| ((base + slope * x) / y - 1.0).abs();
    (base, slope, points.iter().map(error).fold(0.0, f64::max))
}

fn print(title: &str, shapes: &[(Shape, Figures)]) {
    println!("\n{title}\n");
    println!(
        "| tokens | blocks | batch | ms a step | of it AdamW | GFLOP/s before | parameters | must be \
         kept, MB | peak, MB | ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (Shape { tokens, blocks, batch }, figures) in shapes {
        println!(
            "| {tokens} | {blocks} | {batch} | {:.2} | {:.2} | {:.0} | {} | {:.1} | {:.1} | {:.2} |",
            figures.milliseconds,
            figures.update,
            figures.megaflops / (figures.milliseconds - figures.update),
            figures.parameters,
            figures.kept / 1e6,
            figures.peak / 1e6,
            figures.peak / figures.kept,
        );
    }
}

fn print_line(what: &str, points: &[(f64, f64)]) {
    let (base, slope, error) = line(points);
    println!(
        "\nLine through them: {base:.2} ms and {slope:.3} ms for each {what}; largest deviation \
         {:.1} %.",
        100.0 * error
    );
}

fn main() -> Result<()> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (rounds, seconds) = match arguments[..] {
        ["shape", tokens, blocks, batch, seconds] => {
            let shape =
                Shape { tokens: tokens.parse()?, blocks: blocks.parse()?, batch: batch.parse()? };
            println!("{}", serde_json::to_string(&measure(shape, seconds.parse()?)?)?);
            return Ok(());
        }
        [] => (ROUNDS, SECONDS),
        ["quick"] => (1, 0.0),
        _ => return Err(format!("{arguments:?}, expected nothing or `quick`").into()),
    };
    let batches = [4, 16, 64, 256].map(|batch| Shape { tokens: 20, blocks: 4, batch });
    let blocks = [1, 2, 4, 8].map(|blocks| Shape { tokens: 20, blocks, batch: 64 });
    // As many rows in each.
    let tokens = [16, 32, 64, 128, 256, 512];
    let tokens = tokens.map(|tokens| Shape { tokens, blocks: 4, batch: 2048 / tokens });
    let shapes: Vec<Shape> = [&batches[..], &blocks[..], &tokens[..]].concat();

    let mut measured: Vec<Vec<Figures>> = vec![Vec::new(); shapes.len()];
    for _ in 0..rounds {
        for (&shape, measured) in shapes.iter().zip(&mut measured) {
            measured.push(measure_apart(shape, seconds)?);
        }
    }
    let all: Vec<(Shape, Figures)> = shapes
        .into_iter()
        .zip(measured)
        .map(|(shape, rounds)| {
            let median = |of: fn(&Figures) -> f64| median(rounds.iter().map(of).collect());
            let (milliseconds, update) = (median(|f| f.milliseconds), median(|f| f.update));
            (shape, Figures { milliseconds, update, peak: median(|f| f.peak), ..rounds[0] })
        })
        .collect();

    println!(
        "Width {WIDTH}, {HEADS} heads, tokens `Units` of networks with {INPUTS} inputs and {OUTPUTS} \
         outputs, one thread."
    );
    let (batches, rest) = all.split_at(batches.len());
    let (blocks, tokens) = rest.split_at(blocks.len());
    let time = |x: fn(Shape) -> usize, table: &[(Shape, Figures)]| -> Vec<(f64, f64)> {
        table.iter().map(|&(shape, figures)| (x(shape) as f64, figures.milliseconds)).collect()
    };
    print("Batch:", batches);
    print_line("sample", &time(|shape| shape.batch, batches));
    print("Blocks:", blocks);
    print_line("block", &time(|shape| shape.blocks, blocks));
    print("Tokens, as many of them in each step:", tokens);
    // The time of the products of attention grows so; without them it would stay.
    print_line("token", &time(|shape| shape.tokens, tokens));
    Ok(())
}
