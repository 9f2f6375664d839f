//! `lopt sample`.

use std::path::PathBuf;

use clap::Args;
use lopt::eval::Scores;
use lopt::metric::Metric;
use lopt::tasks::{load_network, save_network, Seeds, Task};
use serde_json::json;

use super::optimizer::OptimizerArguments;
use super::output::{check_target, print, print_json, Failure};
use super::terminal::Terminal;

/// Update one network and save the result
///
/// Takes a random initialisation, or a network of your own in dfdx's safetensors
/// format, asks G.pt for a loss, and writes the updated network in that format:
/// dfdx's `load_safetensors` reads it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lopt sample digits --out net.safetensors
  lopt sample digits --from net.safetensors --prompt 0.12 --out better.safetensors
  lopt sample digits --seed 7 --updates 3 --out net.safetensors --json")]
pub struct Arguments {
    /// Task that the network is for
    #[arg(value_parser = super::task_names(), default_value = "digits")]
    task: String,
    #[command(flatten)]
    optimizer: OptimizerArguments,
    /// Network to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Network to start from [default: a random initialisation]
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Validation loss to ask for [default: the best that the weights were trained on]
    #[arg(long, value_name = "LOSS", value_parser = super::prompt)]
    prompt: Option<f64>,
    /// Updates in a row
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    updates: u32,
    /// Seed of the random initialisation and of the sampling
    #[arg(long, default_value_t = 0, value_parser = super::seeds())]
    seed: u64,
}

pub fn run(arguments: &Arguments, terminal: &Terminal) -> Result<(), Failure> {
    check_target(&arguments.out)?;
    let mut loaded = arguments.optimizer.load(&arguments.task, arguments.seed, terminal)?;
    let header = loaded.gpt.weights().header.clone();
    let applied = loaded.prompt(arguments.prompt, terminal);
    let task = loaded.task.as_ref();
    let layout = task.layout()?;
    let mut network = match &arguments.from {
        Some(path) => load_network(path, &layout)?,
        None => task.initial(Seeds::evaluation(arguments.seed)?.run(0)?)?,
    };
    let mut scores = vec![Scores::of(task, &network)?];
    for _ in 0..arguments.updates {
        if terminal.stopped() {
            return Err(Failure::Interrupted("nothing was written, run it again".into()));
        }
        let current = present(task, header.metric, &network)?;
        network = loaded.gpt.sample(&network, &[current], &[applied])?;
        scores.push(Scores::of(task, &network)?);
    }
    save_network(&arguments.out, &layout, &network)?;
    if terminal.json {
        return print_json(&json!({
            "task": task.name(),
            "weights": loaded.origin,
            "prompt": applied,
            "seed": arguments.seed,
            "after": scores,
            "out": arguments.out,
        }));
    }
    let mut text = String::new();
    for (updates, scores) in scores.iter().enumerate() {
        let values: Vec<String> =
            scores.iter().map(|(metric, e)| format!("{metric} {:.4}", e.mean)).collect();
        text.push_str(&format!("after {updates} updates  {}\n", values.join(", ")));
    }
    print(&format!("{text}\nwritten to {}\n", arguments.out.display()))
}

fn present(task: &dyn Task, metric: Metric, network: &[f32]) -> Result<f64, Failure> {
    let index = task.kinds().iter().position(|&kind| kind == metric.kind);
    let index = index.ok_or_else(|| format!("task {} has no {metric}", task.name()))?;
    Ok(task.measure(network, metric.split)?[index])
}
