//! `lopt compare`.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use lopt::eval::{compare, BaselineConfig, ComparisonConfig, UpdateConfig};
use lopt::report::{comparison_figure, comparison_page, comparison_table, episode_figure};
use serde_json::json;

use super::optimizer::OptimizerArguments;
use super::output::{check_targets, print, write_file, Failure};
use super::terminal::Terminal;

/// Compare one update of G.pt with training by SGD and Adam, or with policy gradients
///
/// Takes fresh random initialisations that were never used in training, updates
/// them with G.pt (once, several times in a row, best of several candidates),
/// trains the same networks with SGD and with Adam (each at its default learning
/// rate and at the best of a grid; policies with proximal policy optimization), and
/// says how many steps one update replaces.
/// Prints a table and writes a report with curves.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lopt compare digits
  lopt compare digits --json --quiet > comparison.json
  lopt compare digits --weights mine.safetensors --prompt 0.2 --out mine.html
  lopt compare cartpole --prompt 500
  lopt compare mnist --data data-sets/mnist --weights mnist.safetensors --baseline-networks 16")]
pub struct Arguments {
    /// Task to compare on
    #[arg(value_parser = super::task_names(), default_value = "digits")]
    task: String,
    #[command(flatten)]
    optimizer: OptimizerArguments,
    /// Report to write
    #[arg(long, value_name = "FILE", default_value = "lopt-compare.html")]
    out: PathBuf,
    /// Also write the main figure as an SVG file
    #[arg(long, value_name = "FILE")]
    figure: Option<PathBuf>,
    /// Also write an episode before and after one update as an animated SVG file, on tasks of gym-rs
    #[arg(long, value_name = "FILE")]
    episode: Option<PathBuf>,
    /// Random initialisations
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    networks: u32,
    /// Validation loss, or return, to ask for [default: the best that the weights were trained on]
    #[arg(long, value_name = "LOSS", value_parser = super::prompt)]
    prompt: Option<f64>,
    /// Updates in a row
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    recursive: u32,
    /// Candidates that the best is kept of
    #[arg(long, value_name = "K", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    best_of: u32,
    /// Of these, how many SGD and Adam train [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    baseline_networks: Option<u32>,
    /// Steps of SGD and Adam [default: 1500, or as many as recorded runs of a policy have]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Seed of the networks and of the sampling
    #[arg(long, default_value_t = 0, value_parser = super::seeds())]
    seed: u64,
}

pub fn run(arguments: &Arguments, terminal: &Terminal) -> Result<(), Failure> {
    let begin = Instant::now();
    let [figure, episode] = [&arguments.figure, &arguments.episode].map(Option::as_ref);
    check_targets([Some(&arguments.out), figure, episode])?;
    let mut loaded = arguments.optimizer.load(&arguments.task, arguments.seed, terminal)?;
    if episode.is_some() && loaded.task.course(&loaded.task.initial(0)?)?.is_none() {
        return Err(Failure::Usage(format!(
            "task `{}` has no episodes to look at, only cartpole and mountain-car have: leave \
             --episode out",
            arguments.task
        )));
    }
    let defaults = BaselineConfig::default();
    let baseline = loaded.task.baseline();
    let steps = arguments.steps.map_or(baseline.steps, |steps| steps as usize);
    let config = ComparisonConfig {
        networks: arguments.networks as usize,
        updates: UpdateConfig {
            prompt: Some(loaded.prompt(arguments.prompt, terminal)),
            recursive: arguments.recursive as usize,
            candidates: arguments.best_of as usize,
        },
        baselines: BaselineConfig {
            networks: arguments.baseline_networks.map(|n| n as usize),
            batch_size: baseline.batch_size,
            steps,
            grid_steps: defaults.grid_steps.min(steps),
            ..defaults
        },
        seed: arguments.seed,
    };
    let comparison =
        loaded.judge(terminal, |task, subject| compare(task, subject, &config, terminal))?;
    let provenance = loaded.provenance(terminal);
    write_file(&arguments.out, comparison_page(&comparison, &provenance)?.as_bytes())?;
    if let Some(path) = &arguments.figure {
        write_file(path, comparison_figure(&comparison)?.as_bytes())?;
    }
    if let Some(path) = &arguments.episode {
        let film = episode_figure(&comparison).ok_or("no episode was recorded")?;
        write_file(path, film.as_bytes())?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    if terminal.json {
        let mut value = serde_json::to_value(&comparison)?;
        value["seconds"] = json!(seconds);
        return loaded.print_json(&value, &arguments.out, terminal);
    }
    print(&format!(
        "{}\n{}\n\nMean and standard error over {} networks; {seconds:.0} s in all.\nReport: {}\n",
        loaded.task.summary(),
        comparison_table(&comparison),
        comparison.networks,
        arguments.out.display()
    ))
}
