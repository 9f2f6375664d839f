//! The G.pt that a command works with: bundled or from a file.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use lopt::eval::alignment::Request;
use lopt::eval::{EvalError, Subject};
use lopt::gpt::{Gpt, GptConfig, Pretrained, SamplerConfig, SamplerKind, Weights};
use lopt::report::Provenance;
use lopt::tasks::{by_name, Task};
use serde::Serialize;
use serde_json::json;

use super::output::{command_line, print_json, Failure};
use super::terminal::Terminal;

/// Which weights, and how they are sampled.
#[derive(Debug, Args)]
pub struct OptimizerArguments {
    /// Folder of the images, for tasks that are not bundled
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Weights made by `lopt train` [default: those that come with lopt]
    #[arg(long, value_name = "FILE", help_heading = "Optimizer")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    sampler: SamplerArguments,
}

/// How updates are sampled.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampler")]
pub struct SamplerArguments {
    /// How updates are sampled [default: what the weights name, ddim for new ones]
    #[arg(long, value_enum, value_name = "RULE")]
    sampler: Option<Rule>,
    /// Calls of the model in one update [default: what the weights name, 4 for new ones]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    sampler_steps: Option<u16>,
    /// What noise is multiplied by, 0 to 1: below 1, samples are nearer to what is most
    /// likely, and more alike [default: what the weights name, 1 for new ones]
    #[arg(long, value_name = "SHARE")]
    temperature: Option<f64>,
}

impl SamplerArguments {
    /// Changes what is named on the command line.
    pub fn apply(&self, sampler: &mut SamplerConfig) -> Result<(), Failure> {
        if let Some(rule) = self.sampler {
            sampler.kind = rule.kind();
        }
        if let Some(steps) = self.sampler_steps {
            sampler.steps = usize::from(steps);
        }
        if let Some(temperature) = self.temperature {
            sampler.temperature = temperature;
        }
        sampler.validate().map_err(|e| Failure::Usage(e.to_string()))
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Rule {
    /// Random at every step; needs many of them
    Ddpm,
    /// Deterministic after the first noise
    Ddim,
    /// Deterministic and of second order
    Dpm,
}

impl Rule {
    fn kind(self) -> SamplerKind {
        match self {
            Self::Ddpm => SamplerKind::Ddpm,
            Self::Ddim => SamplerKind::Ddim { eta: 0.0 },
            Self::Dpm => SamplerKind::DpmSolverPlusPlus,
        }
    }
}

/// A G.pt and the task that it is used on.
pub struct Loaded {
    /// The task.
    pub task: Box<dyn Task>,
    /// The optimizer.
    pub gpt: Gpt,
    /// Where the weights are from.
    pub origin: String,
    /// How updates are sampled.
    pub sampler: SamplerConfig,
}

impl OptimizerArguments {
    /// Loads the weights and checks that they are for the task.
    pub fn load(&self, task: &str, seed: u64, terminal: &Terminal) -> Result<Loaded, Failure> {
        let task = by_name(task, self.data.as_deref())?;
        let (weights, origin) = match &self.weights {
            Some(path) => (load_weights(path, task.as_ref())?, path.display().to_string()),
            None => {
                let bundled = Pretrained::for_task(task.name()).ok_or_else(|| {
                    Failure::Usage(format!(
                        "no weights for task `{}` come with lopt: name a file that `lopt train` \
                         has made (--weights FILE)",
                        task.name()
                    ))
                })?;
                let name = || "cannot use the weights that come with lopt".to_owned();
                let weights = bundled.weights().map_err(|e| Named(name(), e))?;
                (weights, "bundled with lopt".to_owned())
            }
        };
        let mut sampler = weights.header.sampler;
        self.sampler.apply(&mut sampler)?;
        let config = GptConfig {
            seed,
            threads: terminal.threads,
            device: terminal.device,
            sampler: Some(sampler),
            ..GptConfig::default()
        };
        Ok(Loaded { task, gpt: Gpt::new(weights, config)?, origin, sampler })
    }
}

impl Loaded {
    /// Hands the optimizer to an evaluation, which Ctrl-C ends.
    pub fn judge<T>(
        &mut self,
        terminal: &Terminal,
        evaluation: impl FnOnce(&dyn Task, &mut Subject) -> Result<T, EvalError>,
    ) -> Result<T, Failure> {
        let header = &self.gpt.weights().header;
        let (metric, best_prompt) = (header.metric, header.prompt_range.best);
        let gpt = &mut self.gpt;
        let mut sample = |request: Request<'_>| {
            Ok(gpt.sample(request.start, request.current, request.target)?)
        };
        let mut subject = Subject { name: "G.pt", sample: &mut sample, metric, best_prompt };
        finish(evaluation(self.task.as_ref(), &mut subject), terminal)
    }

    /// Prints a result as JSON, with where it comes from and where its report is.
    pub fn print_json(
        &self,
        result: &impl Serialize,
        report: &Path,
        terminal: &Terminal,
    ) -> Result<(), Failure> {
        let mut value = serde_json::to_value(result)?;
        value["weights"] = json!(self.origin);
        value["threads"] = json!(terminal.threads);
        value["device"] = json!(terminal.device.to_string());
        value["sampler"] = json!(self.sampler);
        value["calibrated"] = json!(self.gpt.weights().header.calibration.is_some());
        value["report"] = json!(report);
        value["lopt"] = json!(env!("CARGO_PKG_VERSION"));
        print_json(&value)
    }

    /// Where a report's figures come from.
    pub fn provenance(&self, terminal: &Terminal) -> Provenance {
        Provenance {
            command: command_line(),
            weights: self.origin.clone(),
            task: self.task.summary(),
            threads: terminal.threads,
            more: self.facts(terminal),
        }
    }

    /// The prompt that is applied: the one asked for, moved into the trained range.
    pub fn prompt(&self, asked: Option<f64>, terminal: &Terminal) -> f64 {
        let range = self.gpt.weights().header.prompt_range;
        let asked = asked.unwrap_or(range.best);
        let applied = range.clamp(asked);
        if applied != asked {
            terminal.warn(&format!(
                "the prompt {asked} is outside the trained range, {:.4} to {:.4}: {applied:.4} is \
                 asked for",
                range.best, range.worst
            ));
        }
        applied
    }

    /// Names and values for a report.
    fn facts(&self, terminal: &Terminal) -> Vec<(String, String)> {
        let header = &self.gpt.weights().header;
        let config = &header.config;
        [
            (
                "model",
                format!(
                    "{:?}, width {}, {} blocks, {} heads, {} parameters",
                    config.tokenization,
                    config.width,
                    config.blocks,
                    config.heads,
                    self.gpt.weights().parameters.len()
                ),
            ),
            (
                "sampler",
                format!(
                    "{:?}, {} steps, temperature {}",
                    self.sampler.kind, self.sampler.steps, self.sampler.temperature
                ),
            ),
            (
                "prompts",
                match header.calibration {
                    Some(_) => "calibrated".to_owned(),
                    None => "as they are asked for".to_owned(),
                },
            ),
            ("device", terminal.device.to_string()),
            ("made from", header.provenance.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

/// Ends an evaluation: its progress bar, and with it the command where it was
/// cancelled.
pub fn finish<T>(result: Result<T, EvalError>, terminal: &Terminal) -> Result<T, Failure> {
    terminal.clear();
    match result {
        Err(EvalError::Cancelled) => {
            Err(Failure::Interrupted("nothing was written, run it again".into()))
        }
        result => Ok(result?),
    }
}

/// The option that names the folder of a task's data, as the next command needs it.
pub fn data_option(folder: Option<&Path>) -> String {
    folder.map_or(String::new(), |folder| format!(" --data {}", folder.display()))
}

/// Reads weights and checks that they are for a task.
pub fn load_weights(path: &Path, task: &dyn Task) -> Result<Weights, Failure> {
    let name = || format!("cannot use the weights {}", path.display());
    let weights = Weights::load(path).map_err(|e| Named(name(), e))?;
    task.layout()?.check_matches(&weights.header.layout).map_err(|e| Named(name(), e))?;
    if weights.header.task != task.name() {
        return Err(format!(
            "{}: they were trained on task `{}`, expected `{}`",
            name(),
            weights.header.task,
            task.name()
        )
        .into());
    }
    Ok(weights)
}

/// An error with a line before it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Named<E: std::error::Error + 'static>(pub String, #[source] pub E);
