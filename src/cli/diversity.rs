//! `lopt diversity`.

use std::path::PathBuf;

use clap::Args;
use lopt::eval::{diversity, DiversityConfig};
use lopt::report::{diversity_figure, diversity_page, diversity_table};

use super::optimizer::OptimizerArguments;
use super::output::{check_targets, print, write_file, Failure};
use super::terminal::Terminal;

/// Measure how much samples from one network and one prompt differ
///
/// Samples many updates of one unseen random initialisation at one prompt, and
/// compares how far they lie apart and how often they answer differently with
/// trainings of the same initialisation on the same examples in another order,
/// and with updates of other initialisations. Prints a table and writes a report
/// with the samples on the landscape of the loss.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lopt diversity digits
  lopt diversity digits --samples 64 --prompt 0.3 --figure diversity.svg
  lopt diversity digits --trainings 0 --json --quiet | jq '.groups[0].disagreement'")]
pub struct Arguments {
    /// Task to evaluate on
    #[arg(value_parser = super::task_names(), default_value = "digits")]
    task: String,
    #[command(flatten)]
    optimizer: OptimizerArguments,
    /// Report to write
    #[arg(long, value_name = "FILE", default_value = "lopt-diversity.html")]
    out: PathBuf,
    /// Also write the figure as an SVG file
    #[arg(long, value_name = "FILE")]
    figure: Option<PathBuf>,
    /// Samples from the initialisation, and other initialisations
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..))]
    samples: u32,
    /// Trainings of the initialisation; 0 leaves them out
    #[arg(long, value_name = "N", default_value_t = 16)]
    trainings: u32,
    /// Validation loss to ask for [default: the best that the weights were trained on]
    #[arg(long, value_name = "LOSS", value_parser = super::prompt)]
    prompt: Option<f64>,
    /// Points on each side of the landscape
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u16).range(2..=200))]
    landscape: u16,
    /// Seed of the networks and of the sampling
    #[arg(long, default_value_t = 0, value_parser = super::seeds())]
    seed: u64,
}

pub fn run(arguments: &Arguments, terminal: &Terminal) -> Result<(), Failure> {
    check_targets([Some(&arguments.out), arguments.figure.as_ref()])?;
    let mut loaded = arguments.optimizer.load(&arguments.task, arguments.seed, terminal)?;
    let config = DiversityConfig {
        samples: arguments.samples as usize,
        trainings: arguments.trainings as usize,
        prompt: Some(loaded.prompt(arguments.prompt, terminal)),
        landscape: usize::from(arguments.landscape),
        seed: arguments.seed,
    };
    let result =
        loaded.judge(terminal, |task, subject| diversity(task, subject, &config, terminal))?;
    let provenance = loaded.provenance(terminal);
    write_file(&arguments.out, diversity_page(&result, &provenance)?.as_bytes())?;
    if let Some(path) = &arguments.figure {
        write_file(path, diversity_figure(&result)?.as_bytes())?;
    }
    if terminal.json {
        return loaded.print_json(&result, &arguments.out, terminal);
    }
    print(&format!(
        "{}\nprompt: {} of {:.4}; mean and standard error over networks\n\n{}\n\
         from start, apart: mean distances of parameters; disagree: test examples that two networks\n\
         answer differently\n\nReport: {}\n",
        loaded.task.summary(),
        result.metric,
        result.prompt,
        diversity_table(&result),
        arguments.out.display()
    ))
}
