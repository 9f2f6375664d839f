//! `lopt initialisations`.

use std::path::PathBuf;

use clap::Args;
use lopt::eval::{initialisations, InitialisationConfig};
use lopt::report::{initialisations_figure, initialisations_page, initialisations_table};

use super::optimizer::OptimizerArguments;
use super::output::{check_targets, print, write_file, Failure};
use super::terminal::Terminal;

/// Measure what G.pt makes of initialisations that it has not been trained on
///
/// Initialises networks as dfdx does, which recorded runs start at, and in ways
/// that no recorded run has: Kaiming normal, Xavier uniform, orthogonal, dfdx's
/// own times 0.5 and times 2. Updates each several times in a row and shows
/// whether and how soon they reach the loss that dfdx's own reach. Prints a table
/// and writes a report with curves.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lopt initialisations digits
  lopt initialisations digits --updates 10 --figure initialisations.svg
  lopt initialisations digits --json --quiet | jq '.kinds[].after[-1].test_loss'")]
pub struct Arguments {
    /// Task to evaluate on
    #[arg(value_parser = super::task_names(), default_value = "digits")]
    task: String,
    #[command(flatten)]
    optimizer: OptimizerArguments,
    /// Report to write
    #[arg(long, value_name = "FILE", default_value = "lopt-initialisations.html")]
    out: PathBuf,
    /// Also write the curves as an SVG file
    #[arg(long, value_name = "FILE")]
    figure: Option<PathBuf>,
    /// Networks of each kind
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    networks: u32,
    /// Updates in a row
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    updates: u32,
    /// Validation loss to ask for [default: the best that the weights were trained on]
    #[arg(long, value_name = "LOSS", value_parser = super::prompt)]
    prompt: Option<f64>,
    /// Seed of the networks and of the sampling
    #[arg(long, default_value_t = 0, value_parser = super::seeds())]
    seed: u64,
}

pub fn run(arguments: &Arguments, terminal: &Terminal) -> Result<(), Failure> {
    check_targets([Some(&arguments.out), arguments.figure.as_ref()])?;
    let mut loaded = arguments.optimizer.load(&arguments.task, arguments.seed, terminal)?;
    let config = InitialisationConfig {
        networks: arguments.networks as usize,
        updates: arguments.updates as usize,
        prompt: Some(loaded.prompt(arguments.prompt, terminal)),
        seed: arguments.seed,
    };
    let result = loaded
        .judge(terminal, |task, subject| initialisations(task, subject, &config, terminal))?;
    let provenance = loaded.provenance(terminal);
    write_file(&arguments.out, initialisations_page(&result, &provenance)?.as_bytes())?;
    if let Some(path) = &arguments.figure {
        write_file(path, initialisations_figure(&result)?.as_bytes())?;
    }
    if terminal.json {
        return loaded.print_json(&result, &arguments.out, terminal);
    }
    print(&format!(
        "{}\nprompt: {} of {:.4}; mean and standard error over {} networks of each kind\n\n{}\n\
         Report: {}\n",
        loaded.task.summary(),
        result.metric,
        result.prompt,
        result.networks,
        initialisations_table(&result),
        arguments.out.display()
    ))
}
