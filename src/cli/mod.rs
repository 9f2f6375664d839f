//! Arguments in, one library call, results out.
//!
//! Results go to standard output, everything else to standard error. Exit codes:
//! 0 done, 1 failed, 2 wrong arguments, 130 interrupted.

mod calibrate;
mod compare;
mod devices;
mod diversity;
mod eval;
mod initialisations;
mod inspect;
mod optimizer;
mod output;
mod record;
mod sample;
mod terminal;
mod train;
mod walk;

use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use lopt::engine::Device;

use output::Failure;
use terminal::Terminal;

/// Learned optimizers for dfdx: one update instead of many training steps.
///
/// G.pt is a model of trained networks. It is given the parameters of a network,
/// its present loss and the loss wanted, and returns parameters that reach it.
#[derive(Debug, Parser)]
#[command(
    name = "lopt",
    version,
    max_term_width = 100,
    after_help = "\
Start here, with nothing on disk:
  lopt compare digits

From nothing to weights of your own:
  lopt record digits --out runs/digits
  lopt train digits --store runs/digits --out digits.safetensors
  lopt compare digits --weights digits.safetensors

`lopt COMMAND --help` says more about each command."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    shared: Shared,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
struct Shared {
    /// Print one JSON object instead of tables
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
    /// Show no progress
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    quiet: bool,
    /// Threads to use [default: as many as there are cores]
    #[arg(
        long, global = true, value_name = "N", help_heading = "Everywhere",
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    threads: Option<u16>,
    /// What G.pt runs on: cpu, cuda, cuda:1 (see `lopt devices`), or with the precision of matrix
    /// products, cuda:0:f32, cuda:0:tf32 (the default on a GPU) or cuda:0:bf16
    #[arg(
        long,
        global = true,
        value_name = "DEVICE",
        default_value = "cpu",
        help_heading = "Everywhere"
    )]
    device: Device,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compare(compare::Arguments),
    Record(record::Arguments),
    Train(train::Arguments),
    Eval(eval::Arguments),
    Calibrate(calibrate::Arguments),
    #[command(alias = "initializations")]
    Initialisations(initialisations::Arguments),
    Diversity(diversity::Arguments),
    Walk(walk::Arguments),
    Sample(sample::Arguments),
    Inspect(inspect::Arguments),
    Devices(devices::Arguments),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let Cli { command, shared } = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are no errors; both may meet a closed pipe.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { output::USAGE } else { 0 });
        }
    };
    let result = Terminal::new(&shared).and_then(|terminal| match command {
        Command::Compare(arguments) => compare::run(&arguments, &terminal),
        Command::Record(arguments) => record::run(&arguments, &terminal),
        Command::Train(arguments) => train::run(&arguments, &terminal),
        Command::Eval(arguments) => eval::run(&arguments, &terminal),
        Command::Calibrate(arguments) => calibrate::run(&arguments, &terminal),
        Command::Initialisations(arguments) => initialisations::run(&arguments, &terminal),
        Command::Diversity(arguments) => diversity::run(&arguments, &terminal),
        Command::Walk(arguments) => walk::run(&arguments, &terminal),
        Command::Sample(arguments) => sample::run(&arguments, &terminal),
        Command::Inspect(arguments) => inspect::run(&arguments, &terminal),
        Command::Devices(arguments) => devices::run(&arguments, &terminal),
    });
    result.map_or_else(Failure::report, |()| ExitCode::SUCCESS)
}

fn parse() -> Result<Cli, clap::Error> {
    // A negative number is a value out of range, not an argument that nobody knows.
    let command = Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| {
            let negative = arg.get_long().is_some() && arg.get_action().takes_values();
            arg.allow_negative_numbers(negative)
        })
    });
    Cli::from_arg_matches(&command.try_get_matches()?)
}

/// Losses that a user may ask for; those outside the trained range are moved into it.
fn prompt(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err("expected a finite number".into()),
    }
}

/// The tasks that there are, as values of an argument.
fn task_names() -> clap::builder::PossibleValuesParser {
    lopt::tasks::NAMES.iter().copied().into()
}

/// Seeds that a user may choose.
fn seeds() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(..lopt::tasks::Seeds::LIMIT)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
