//! `lopt eval`.

use std::path::PathBuf;

use clap::Args;
use lopt::eval::{evaluate, EvaluationConfig, UpdateConfig};
use lopt::report::{evaluation_page, evaluation_table, prompting_figure};

use super::optimizer::OptimizerArguments;
use super::output::{check_targets, print, write_file, Failure};
use super::terminal::Terminal;

/// Measure how well G.pt does what it is asked
///
/// Asks one update of each of many unseen random initialisations for losses from
/// the best one that the weights were trained on to 0.9 of the network's own, and
/// compares what came out with what was asked for. Prompt alignment is the mean
/// over networks of R²: 1 is perfect. Prints a table and writes a report with the
/// plot of observed against prompted losses. On cart-pole, returns take their place.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lopt eval digits
  lopt eval digits --json --quiet | jq .prompt_alignment
  lopt eval cartpole
  lopt eval digits --weights mine.safetensors --networks 256 --out mine.html")]
pub struct Arguments {
    /// Task to evaluate on
    #[arg(value_parser = super::task_names(), default_value = "digits")]
    task: String,
    #[command(flatten)]
    optimizer: OptimizerArguments,
    /// Report to write
    #[arg(long, value_name = "FILE", default_value = "lopt-eval.html")]
    out: PathBuf,
    /// Also write the plot of observed against prompted losses as an SVG file
    #[arg(long, value_name = "FILE")]
    figure: Option<PathBuf>,
    /// Unseen random initialisations
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    networks: u32,
    /// Judge on the initialisations of recorded runs, to see what was merely learned by heart
    #[arg(long)]
    seen: bool,
    /// Prompts for each of them
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..))]
    prompts: u32,
    /// Updates in a row
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    recursive: u32,
    /// Candidates that the best is kept of
    #[arg(long, value_name = "K", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    best_of: u32,
    /// Seed of the networks and of the sampling
    #[arg(long, default_value_t = 0, value_parser = super::seeds())]
    seed: u64,
}

pub fn run(arguments: &Arguments, terminal: &Terminal) -> Result<(), Failure> {
    check_targets([Some(&arguments.out), arguments.figure.as_ref()])?;
    let mut loaded = arguments.optimizer.load(&arguments.task, arguments.seed, terminal)?;
    let config = EvaluationConfig {
        networks: arguments.networks as usize,
        seen: arguments.seen,
        prompts: arguments.prompts as usize,
        updates: UpdateConfig {
            recursive: arguments.recursive as usize,
            candidates: arguments.best_of as usize,
            ..UpdateConfig::default()
        },
        seed: arguments.seed,
        ..EvaluationConfig::default()
    };
    let evaluation =
        loaded.judge(terminal, |task, subject| evaluate(task, subject, &config, terminal))?;
    let provenance = loaded.provenance(terminal);
    write_file(&arguments.out, evaluation_page(&evaluation, &provenance)?.as_bytes())?;
    if let Some(path) = &arguments.figure {
        write_file(path, prompting_figure(&evaluation)?.as_bytes())?;
    }
    if terminal.json {
        return loaded.print_json(&evaluation, &arguments.out, terminal);
    }
    print(&format!(
        "{}\n\nprompt alignment {:.3} over {} prompts and {} networks\n\n{}\nReport: {}\n",
        loaded.task.summary(),
        evaluation.prompt_alignment,
        config.prompts,
        evaluation.networks,
        evaluation_table(&evaluation),
        arguments.out.display()
    ))
}
