//! `lopt record`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lopt::checkpoints::{Precision, Progress, RecordOptions};
use lopt::gpt::{Gpt, GptConfig};
use lopt::tasks::{
    by_name, image_sets, open_store, record, Moments, RecordingConfig, Schedule, Starts,
    TrainingConfig,
};

use super::optimizer::{data_option, load_weights};
use super::output::{print, print_json, Failure};
use super::terminal::Terminal;

/// Train many networks and record their checkpoints
///
/// G.pt learns from such runs. Each network is trained by SGD with Nesterov
/// momentum, or a policy by proximal policy optimization, from its own random
/// initialisation; moments of its training are kept
/// with their losses, more of them at the start, where the loss still moves.
/// Runs that are in the folder already are skipped, so that a recording that was
/// interrupted goes on when the same command is given again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lopt record digits --out runs/digits
  lopt record digits --out runs/small --runs 500 --precision f16
  lopt record mnist --data data-sets/mnist --out runs/mnist --precision f16
  lopt record cartpole --out runs/cartpole --precision f16
  lopt inspect runs/digits

For updates in a row, record some runs from samples of a first G.pt:
  lopt train digits --store runs/digits --out first.safetensors --steps 1000
  lopt record digits --out runs/digits --runs 6000 --start-from first.safetensors --from-run 5000")]
pub struct Arguments {
    /// Task to record
    #[arg(value_parser = super::task_names())]
    task: String,
    /// Folder of the images, for tasks that are not bundled
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Folder of the store; it is made if it is not there
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Runs in all, with those that are there already [default: 5000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    runs: Option<u64>,
    /// How parameters are stored: f16 takes half the space
    #[arg(long, value_enum, default_value = "f32")]
    precision: Width,
    /// Seed of the runs
    #[arg(long, default_value_t = 0, value_parser = super::seeds())]
    seed: u64,
    /// Weights of an earlier G.pt whose samples later runs start at, so that it
    /// learns to update what it has made itself
    #[arg(
        long,
        value_name = "FILE",
        requires = "from_run",
        help_heading = "Runs that start at samples"
    )]
    start_from: Option<PathBuf>,
    /// First run that starts at a sample; those before it start at random initialisations
    #[arg(
        long,
        value_name = "N",
        requires = "start_from",
        help_heading = "Runs that start at samples"
    )]
    from_run: Option<u64>,
    /// How networks are trained where no other option says so
    #[arg(long, value_enum, default_value = "short", help_heading = "Training of each network")]
    recipe: Recipe,
    /// Steps of each training
    #[arg(long, value_name = "N", help_heading = "Training of each network")]
    steps: Option<usize>,
    /// Images in a step, or environments in parallel
    #[arg(long, value_name = "N", help_heading = "Training of each network")]
    batch_size: Option<usize>,
    /// Learning rate of the first step
    #[arg(long, value_name = "RATE", help_heading = "Training of each network")]
    learning_rate: Option<f64>,
    /// How the learning rate changes
    #[arg(long, value_enum, help_heading = "Training of each network")]
    schedule: Option<Course>,
    /// Penalty on the squares of the parameters
    #[arg(long, value_name = "WEIGHT", help_heading = "Training of each network")]
    weight_decay: Option<f64>,
    /// Checkpoints kept of each run
    #[arg(long, value_name = "N", help_heading = "Training of each network")]
    saves: Option<usize>,
    /// Above 1, checkpoints are denser at the start
    #[arg(long, value_name = "POWER", help_heading = "Training of each network")]
    spacing: Option<f64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Width {
    F32,
    F16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Recipe {
    /// What the task's own weights were made from
    Short,
    /// As the G.pt paper: 25 epochs (CIFAR-10: 50) of batch 128, 200 checkpoints at random steps
    Paper,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Course {
    /// It stays
    Constant,
    /// It falls to zero along a cosine
    Cosine,
}

impl Arguments {
    fn config(&self, defaults: RecordingConfig) -> RecordingConfig {
        let training = defaults.training;
        let schedule = self.schedule.map(|course| match course {
            Course::Constant => Schedule::Constant,
            Course::Cosine => Schedule::Cosine,
        });
        RecordingConfig {
            training: TrainingConfig {
                algorithm: training.algorithm,
                learning_rate: self.learning_rate.unwrap_or(training.learning_rate),
                schedule: schedule.unwrap_or(training.schedule),
                weight_decay: self.weight_decay.unwrap_or(training.weight_decay),
                batch_size: self.batch_size.unwrap_or(training.batch_size),
                steps: self.steps.unwrap_or(training.steps),
            },
            runs: self.runs.unwrap_or(defaults.runs),
            saves: self.saves.unwrap_or(defaults.saves),
            moments: self.spacing.map_or(defaults.moments, Moments::Spaced),
            seed: self.seed,
        }
    }
}

pub fn run(arguments: &Arguments, terminal: &Terminal) -> Result<(), Failure> {
    let task = by_name(&arguments.task, arguments.data.as_deref())?;
    let defaults = match arguments.recipe {
        Recipe::Short => task.recording(),
        Recipe::Paper => image_sets::paper(task.as_ref()),
    };
    let config = arguments.config(defaults);
    let precision = match arguments.precision {
        Width::F32 => Precision::F32,
        Width::F16 => Precision::F16,
    };
    if let Some(first) = arguments.from_run.filter(|&first| first >= config.runs) {
        return Err(Failure::Usage(format!(
            "--from-run is {first}, expected less than --runs, {}",
            config.runs
        )));
    }
    let store = open_store(task.as_ref(), &arguments.out, &config, precision)?;
    let starts = match (&arguments.start_from, arguments.from_run) {
        (Some(path), Some(first)) => {
            let weights = load_weights(path, task.as_ref())?;
            let (threads, device) = (terminal.threads, terminal.device);
            let settings = GptConfig { threads, device, ..GptConfig::default() };
            let mut gpt = Gpt::new(weights, settings)?;
            Starts::sample(task.as_ref(), &mut gpt, config.seed, first..config.runs)?
        }
        _ => Starts::default(),
    };
    let bar = terminal.bar("recording runs", config.runs);
    let progress = |progress: &Progress| {
        if bar.position() == 0 && progress.skipped > 0 {
            bar.set_position(progress.skipped as u64);
            bar.reset_eta();
        }
        bar.set_position(progress.done() as u64);
    };
    let options = RecordOptions {
        threads: terminal.threads,
        cancel: Some(terminal.stop().clone()),
        progress: Some(&progress),
    };
    let report = record(task.as_ref(), &store, &config, &starts, &options)?;
    bar.finish_and_clear();
    if report.cancelled {
        let done = report.progress.done();
        return Err(Failure::Interrupted(format!(
            "{done} of {} runs are in {}; give the same command again to go on",
            config.runs,
            arguments.out.display()
        )));
    }
    let failed = report.failures.len();
    if let Some(first) = report.failures.into_iter().next() {
        terminal.say(&format!("{failed} runs failed, the first is run {}", first.id));
        return Err(first.error.into());
    }
    let summary = store.summary()?;
    if report.progress.kept == 0 && report.progress.dropped > 0 && summary.kept == 0 {
        return Err(format!(
            "none of the {} runs could be kept, `lopt inspect {}` says why: try a lower \
             --learning-rate in another folder",
            report.progress.dropped,
            arguments.out.display()
        )
        .into());
    }
    if terminal.json {
        return print_json(&summary);
    }
    print(&format!(
        "{summary}\nNext: lopt train {}{} --store {} --out {}.safetensors\n",
        arguments.task,
        data_option(arguments.data.as_deref()),
        arguments.out.display(),
        arguments.task
    ))
}
