//! `lopt calibrate`.

use std::path::PathBuf;

use clap::Args;
use lopt::eval::{calibrate, CalibrationConfig};
use lopt::gpt::GptConfig;
use lopt::report::calibration_table;
use lopt::tasks::by_name;
use lopt::Gpt;
use serde_json::{json, to_value};

use super::optimizer::{load_weights, Loaded};
use super::output::{check_target, print, print_json, Failure};
use super::terminal::Terminal;

/// Make prompts come out as they are asked for
///
/// Asks G.pt for values all over the range of the metric, from random initialisations that
/// neither recordings nor evaluations draw, and writes weights that know what to ask for
/// instead, so that the value wanted comes out on average.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lopt calibrate digits --weights mine.safetensors
  lopt calibrate mnist --data data-sets/mnist --weights mnist.safetensors --out even.safetensors")]
pub struct Arguments {
    /// Task that the weights are for
    #[arg(value_parser = super::task_names(), default_value = "digits")]
    task: String,
    /// Folder of the images, for tasks that are not bundled
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Weights that `lopt train` has made
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Weights to write [default: those that were read]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Random initialisations
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    networks: u32,
    /// Prompts for each
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..))]
    prompts: u32,
}

pub fn run(arguments: &Arguments, terminal: &Terminal) -> Result<(), Failure> {
    let out = arguments.out.as_ref().unwrap_or(&arguments.weights);
    check_target(out)?;
    let task = by_name(&arguments.task, arguments.data.as_deref())?;
    let mut weights = load_weights(&arguments.weights, task.as_ref())?;
    weights.header.calibration = None;
    let sampler = weights.header.sampler;
    let (threads, device) = (terminal.threads, terminal.device);
    let config = GptConfig { threads, device, ..GptConfig::default() };
    let gpt = Gpt::new(weights.clone(), config)?;
    let origin = arguments.weights.display().to_string();
    let mut loaded = Loaded { task, gpt, origin, sampler };
    let config = CalibrationConfig {
        networks: arguments.networks as usize,
        prompts: arguments.prompts as usize,
    };
    let result =
        loaded.judge(terminal, |task, subject| calibrate(task, subject, &config, terminal))?;
    weights.header.calibration = Some(result.calibration.clone());
    let precision = weights.precision();
    weights.save(out, precision)?;
    if terminal.json {
        let mut value = to_value(&result)?;
        value["task"] = json!(arguments.task);
        value["out"] = json!(out);
        return print_json(&value);
    }
    print(&format!(
        "Mean {} of {} networks.\n{}\n\nWritten to {}\n",
        result.metric,
        arguments.networks,
        calibration_table(&result),
        out.display()
    ))
}
