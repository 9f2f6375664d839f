//! `lopt walk`.

use std::path::PathBuf;

use clap::Args;
use lopt::eval::{walk, WalkConfig};
use lopt::report::{walk_figure, walk_page, walk_strip, walk_table};

use super::optimizer::{finish, OptimizerArguments};
use super::output::{check_targets, print, write_file, Failure};
use super::terminal::Terminal;

/// Walk in a circle through the noise that networks are sampled from
///
/// Samples updates of one unseen random initialisation at one prompt from noise
/// that goes once around a circle, so that one network changes into the next and
/// the last into the first. Shows the loss of every network on the way, and the
/// first layer of each in an animation, where it reads an image. Needs a sampler
/// that the noise decides: ddim or dpm.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lopt walk digits
  lopt walk digits --starts --figure walk.svg --strip strip.svg
  lopt walk digits --frames 24 --json --quiet | jq .course.validation_loss")]
pub struct Arguments {
    /// Task to sample for
    #[arg(value_parser = super::task_names(), default_value = "digits")]
    task: String,
    #[command(flatten)]
    optimizer: OptimizerArguments,
    /// Report to write
    #[arg(long, value_name = "FILE", default_value = "lopt-walk.html")]
    out: PathBuf,
    /// Also write the animation as an SVG file
    #[arg(long, value_name = "FILE")]
    figure: Option<PathBuf>,
    /// Also write the first layer of some of the networks, in a strip, as an SVG file
    #[arg(long, value_name = "FILE")]
    strip: Option<PathBuf>,
    /// Networks on the circle
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = clap::value_parser!(u16).range(3..=1000))]
    frames: u16,
    /// Let the starting network go around a circle as well, through two initialisations
    #[arg(long)]
    starts: bool,
    /// Validation loss to ask for [default: the best that the weights were trained on]
    #[arg(long, value_name = "LOSS", value_parser = super::prompt)]
    prompt: Option<f64>,
    /// Seed of the network and of the noise
    #[arg(long, default_value_t = 0, value_parser = super::seeds())]
    seed: u64,
}

pub fn run(arguments: &Arguments, terminal: &Terminal) -> Result<(), Failure> {
    check_targets([Some(&arguments.out), arguments.figure.as_ref(), arguments.strip.as_ref()])?;
    let mut loaded = arguments.optimizer.load(&arguments.task, arguments.seed, terminal)?;
    let config = WalkConfig {
        frames: usize::from(arguments.frames),
        prompt: loaded.prompt(arguments.prompt, terminal),
        starts: arguments.starts,
        seed: arguments.seed,
    };
    let metric = loaded.gpt.weights().header.metric;
    let (task, gpt) = (loaded.task.as_ref(), &mut loaded.gpt);
    let result = walk(
        task,
        metric,
        &mut |request, noise| {
            Ok(gpt.sample_from_noise(noise, request.start, request.current, request.target)?)
        },
        &config,
        terminal,
    );
    let result = finish(result, terminal)?;
    let provenance = loaded.provenance(terminal);
    if let Some(path) = &arguments.strip {
        let strip = walk_strip(&result)?;
        let none = || format!("the first layer of task {} reads no image", result.task);
        write_file(path, strip.ok_or_else(none)?.as_bytes())?;
    }
    write_file(&arguments.out, walk_page(&result, &provenance)?.as_bytes())?;
    if let Some(path) = &arguments.figure {
        write_file(path, walk_figure(&result)?.as_bytes())?;
    }
    if terminal.json {
        return loaded.print_json(&result, &arguments.out, terminal);
    }
    let (mean, most) = result.deviation();
    print(&format!(
        "{}\nprompt: {} of {:.4}; {mean:.4} away from it on average over {} networks, {most:.4} at \
         most\n\n{}\nReport: {}\n",
        loaded.task.summary(),
        result.metric,
        config.prompt,
        config.frames,
        walk_table(&result),
        arguments.out.display()
    ))
}
