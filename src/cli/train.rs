//! `lopt train`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use lopt::checkpoints::{Dataset, DatasetConfig, Store};
use lopt::gpt::{
    Conditioning, ModelConfig, Precision, SamplerConfig, Tokenization, Trainer, TrainerConfig,
    Weights,
};
use lopt::metric::{Metric, MetricKind, Split};
use lopt::tasks::{by_name, TaskBehavior, NAMES};
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::{json, Value};

use super::optimizer::{data_option, Named, SamplerArguments};
use super::output::{check_target, command_line, print, print_json, Failure};
use super::terminal::Terminal;

/// How often the state is saved.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// Batches of held-out pairs that a training is watched on.
const WATCHED: u64 = 8;
/// Weight of the behavioural loss unless the user says otherwise.
const BEHAVIOR: f64 = 0.3;
/// Share of the last loss that the mean keeps at every step.
const SMOOTHING: f64 = 0.98;

/// Train a G.pt on recorded runs
///
/// Learns to go from any checkpoint of a run to any later one, given their
/// losses. The state is saved once a minute and at Ctrl-C: the same command goes
/// on from there, to the same result as if it had never stopped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lopt train digits --store runs/digits --out digits.safetensors
  lopt train digits --store runs/digits --out small.safetensors --steps 2000 --width 96
  lopt train digits --store runs/digits --out odd.safetensors --config odd.json
  lopt train mnist --data data-sets/mnist --store runs/mnist --out mnist.safetensors
  lopt train digits --store runs/fresh --store runs/from-samples --out digits.safetensors

A configuration file names what differs from the defaults:
  { \"model\": { \"blocks\": 8 }, \"trainer\": { \"ema_decay\": 0.9995 } }")]
pub struct Arguments {
    /// Task that the runs were recorded on
    task: String,
    /// Folder of recorded runs; give it again for more of them, recorded in another way
    #[arg(long, value_name = "FOLDER", required = true)]
    store: Vec<PathBuf>,
    /// Weights to write; the state lies beside them, with `.state` after its name
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// JSON file of settings; options on the command line come before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Weights to start at instead of a random initialisation, made with the same model
    /// options, to learn another metric or from other runs
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Throw away the state of an earlier training
    #[arg(long)]
    restart: bool,
    /// Append a line of JSON to this file at every report
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Steps between two reports
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    report_every: u64,
    /// How the weights are stored
    #[arg(long, value_enum, default_value = "f16")]
    precision: Width,
    /// Seed of initialisation, pairs and noise
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// What G.pt is conditioned on, measured on the validation split [default: the first
    /// metric that was recorded: the loss, or the return of a policy]
    #[arg(long, value_enum, help_heading = "Data")]
    metric: Option<Kind>,
    /// Folder of the images that networks are run on, for tasks that are not bundled
    #[arg(long, value_name = "FOLDER", help_heading = "Data")]
    data: Option<PathBuf>,
    /// Train on the first runs of each store only [default: all]
    #[arg(long, value_name = "N", help_heading = "Data")]
    runs: Option<usize>,
    /// Keep the last runs of each store out of training, to watch it on
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Data")]
    held_out: usize,
    /// Steps in all
    #[arg(long, value_name = "N", help_heading = "Training")]
    steps: Option<u64>,
    /// Pairs of checkpoints in a step
    #[arg(long, value_name = "N", help_heading = "Training")]
    batch: Option<usize>,
    /// Highest learning rate
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    learning_rate: Option<f64>,
    /// Steps over which the learning rate rises
    #[arg(long, value_name = "N", help_heading = "Training")]
    warmup: Option<u64>,
    /// Share of pairs that start at a random initialisation
    #[arg(long, value_name = "SHARE", help_heading = "Training")]
    from_start: Option<f64>,
    /// Share of pairs whose end is drawn evenly over the metric
    #[arg(long, value_name = "SHARE", help_heading = "Training")]
    by_metric: Option<f64>,
    /// Weight of the behavioural loss: predicted networks are run on images of the task, and
    /// their answers are compared with those of the recorded ones [default: 0.3; 0 for stores
    /// of a task that lopt does not know]
    #[arg(long, value_name = "WEIGHT", help_heading = "Training")]
    behavior: Option<f64>,
    /// Images that each predicted network is run on
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Training",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    queries: u64,
    /// How parameters are cut into tokens
    #[arg(long, value_enum, help_heading = "Model")]
    tokens: Option<Policy>,
    /// Values in a token, for the policies that cut pieces
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Model")]
    token_length: usize,
    /// Width of the transformer
    #[arg(long, value_name = "N", help_heading = "Model")]
    width: Option<usize>,
    /// Blocks of the transformer
    #[arg(long, value_name = "N", help_heading = "Model")]
    blocks: Option<usize>,
    /// Attention heads
    #[arg(long, value_name = "N", help_heading = "Model")]
    heads: Option<usize>,
    /// What the weights name as default
    #[command(flatten)]
    sampler: SamplerArguments,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Width {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Loss,
    Error,
    Return,
    Score,
}

impl Kind {
    fn kind(self) -> MetricKind {
        match self {
            Self::Loss => MetricKind::Loss,
            Self::Error => MetricKind::Error,
            Self::Return => MetricKind::Return,
            Self::Score => MetricKind::Score,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Policy {
    /// A token for each hidden unit
    Units,
    /// Pieces of the whole input
    Chunk,
    /// Pieces that never cross a tensor
    ChunkWithinLayer,
    /// Pieces that never cross an input vector
    ChunkWithinInput,
    /// A token for each tensor
    LayerByLayer,
}

impl Arguments {
    fn tokenization(&self) -> Option<Tokenization> {
        let length = self.token_length;
        self.tokens.map(|policy| match policy {
            Policy::Units => Tokenization::Units,
            Policy::Chunk => Tokenization::Chunk { length },
            Policy::ChunkWithinLayer => Tokenization::ChunkWithinLayer { length },
            Policy::ChunkWithinInput => Tokenization::ChunkWithinInput { length },
            Policy::LayerByLayer => Tokenization::LayerByLayer,
        })
    }

    fn configs(&self, metric: MetricKind) -> Result<(ModelConfig, TrainerConfig), Failure> {
        let file = match &self.config {
            Some(path) => read_json(path)?,
            None => json!({}),
        };
        if let Some(unknown) = unknown_key(&file, &json!({ "model": 0, "trainer": 0 })) {
            return Err(Failure::Usage(format!(
                "`{unknown}` is not part of a configuration, expected `model` or `trainer`"
            )));
        }
        let defaults = ModelConfig::for_metric(metric);
        let mut model: ModelConfig = merged(&defaults, &file["model"])?;
        let behavior = if NAMES.contains(&self.task.as_str()) { BEHAVIOR } else { 0.0 };
        let defaults = TrainerConfig { behavior, ..TrainerConfig::default() };
        let mut trainer: TrainerConfig = merged(&defaults, &file["trainer"])?;
        set(&mut model.tokenization, self.tokenization());
        if model.tokenization != Tokenization::Units {
            model.conditioning = Conditioning::OwnTokens;
        }
        set(&mut model.width, self.width);
        set(&mut model.blocks, self.blocks);
        set(&mut model.heads, self.heads);
        set(&mut trainer.steps, self.steps);
        set(&mut trainer.batch, self.batch);
        set(&mut trainer.learning_rate, self.learning_rate);
        set(&mut trainer.warmup, self.warmup);
        set(&mut trainer.from_start, self.from_start);
        set(&mut trainer.by_metric, self.by_metric);
        set(&mut trainer.behavior, self.behavior);
        set(&mut trainer.seed, self.seed);
        Ok((model, trainer))
    }

    /// What predicted networks are compared on.
    fn task_behavior(&self, dataset: &Dataset) -> Result<TaskBehavior, Failure> {
        let why = "the behavioural loss runs networks on the task (not with --behavior 0)";
        let task =
            by_name(&self.task, self.data.as_deref()).map_err(|e| Named(why.to_owned(), e))?;
        task.layout()?.check_matches(dataset.layout())?;
        Ok(TaskBehavior::new(task, self.queries as usize))
    }

    /// The runs of all stores, and how those of each were recorded.
    fn dataset(&self) -> Result<(Dataset, Vec<Value>), Failure> {
        let open = self.store.iter().map(Store::open);
        let stores = open.collect::<Result<Vec<_>, _>>()?;
        for store in &stores {
            let task = &store.metadata().task;
            if *task != self.task {
                return Err(Failure::Usage(format!(
                    "{} holds runs of task `{task}`, not `{}`",
                    store.path().display(),
                    self.task
                )));
            }
        }
        let recorded = stores.first().and_then(|store| store.metadata().metrics.first());
        let kind = match self.metric {
            Some(metric) => metric.kind(),
            None => recorded.map_or(MetricKind::Loss, |metric| metric.kind),
        };
        let config = DatasetConfig {
            metric: Metric { kind, split: Split::Validation },
            held_out: self.held_out,
            train: self.runs,
        };
        let recordings = stores.iter().map(|store| store.metadata().provenance.clone()).collect();
        Ok((Dataset::load_all(&stores, &config)?, recordings))
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn read_json(path: &Path) -> Result<Value, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Ok(serde_json::from_str(&text).map_err(|e| format!("{} is not JSON: {e}", path.display()))?)
}

fn unknown_key<'v>(value: &'v Value, known: &Value) -> Option<&'v str> {
    value.as_object()?.keys().find(|key| known.get(key.as_str()).is_none()).map(String::as_str)
}

/// A configuration with some fields taken from JSON.
fn merged<T: Serialize + DeserializeOwned>(defaults: &T, changes: &Value) -> Result<T, Failure> {
    let mut value = serde_json::to_value(defaults)?;
    if let Some(unknown) = unknown_key(changes, &value) {
        let known: Vec<_> = value.as_object().into_iter().flat_map(|o| o.keys().cloned()).collect();
        let known = known.join(", ");
        return Err(Failure::Usage(format!(
            "no setting is named `{unknown}`, expected one of: {known}"
        )));
    }
    for (key, change) in changes.as_object().into_iter().flatten() {
        value[key] = change.clone();
    }
    Ok(serde_json::from_value(value)?)
}

pub fn run(arguments: &Arguments, terminal: &Terminal) -> Result<(), Failure> {
    let mut sampler = SamplerConfig::default();
    arguments.sampler.apply(&mut sampler)?;
    let task = &arguments.task;
    let (dataset, recordings) = arguments.dataset()?;
    let (model, config) = arguments.configs(dataset.metric().kind)?;
    let dataset = Arc::new(dataset);
    let (device, threads) = (terminal.device, terminal.threads);
    let mut trainer = Trainer::on(device, dataset.clone(), model, config, threads)?;
    if let Some(source) = trainer.batch_source() {
        terminal.say(&source.to_string());
    }
    if trainer.config().behavior > 0.0 {
        trainer = trainer.with_behavior(Box::new(arguments.task_behavior(&dataset)?));
    }
    if let Some(path) = &arguments.init {
        let name = || format!("cannot start at the weights {}", path.display());
        let weights = Weights::load(path).map_err(|e| Named(name(), e))?;
        trainer.start_at(&weights).map_err(|e| Named(name(), e))?;
    }
    let state = state_path(&arguments.out);
    check_target(&arguments.out)?;
    if arguments.restart {
        remove(&state)?;
    }
    if state.exists() {
        trainer.resume(&state).map_err(|source| Resume { state: state.clone(), source })?;
        terminal.say(&format!(
            "goes on at step {} of {}",
            trainer.steps_done(),
            trainer.config().steps
        ));
    }
    let first = trainer.steps_done();
    let begin = Instant::now();
    let last = Training { arguments, terminal, state: &state }.finish(&mut trainer)?;

    let provenance = json!({
        "lopt": env!("CARGO_PKG_VERSION"),
        "command": command_line(),
        "runs": dataset.train().len(),
        "checkpoints": dataset.num_checkpoints(),
        "trainer": trainer.config(),
        "stores": recordings,
    });
    trainer.synchronize()?;
    let weights = trainer.weights(sampler, task, provenance);
    let precision = match arguments.precision {
        Width::F32 => Precision::F32,
        Width::F16 => Precision::F16,
        Width::Bf16 => Precision::Bf16,
    };
    weights.save(&arguments.out, precision)?;
    let report = json!({
        "task": task,
        "out": arguments.out,
        "parameters": weights.parameters.len(),
        "runs": dataset.train().len(),
        "steps": trainer.steps_done(),
        "first_step": first,
        "seconds": begin.elapsed().as_secs_f64(),
        "loss": last.map(|r| r.loss),
        "held_out_loss": last.and_then(|r| r.held_out),
        "divergence": last.and_then(|r| r.divergence),
        "batches": trainer.batch_source().map(|source| source.to_string()),
    });
    if terminal.json {
        return print_json(&report);
    }
    print(&format!(
        "{} parameters, {} steps on {} runs, written to {}\n\nNext: lopt eval {task}{} --weights {}\n",
        weights.parameters.len(),
        trainer.steps_done(),
        dataset.train().len(),
        arguments.out.display(),
        data_option(arguments.data.as_deref()),
        arguments.out.display()
    ))
}

/// A mean that later values count more in.
fn smoothed(mean: Option<f64>, value: f64) -> f64 {
    mean.map_or(value, |mean| SMOOTHING * mean + (1.0 - SMOOTHING) * value)
}

/// How a training stands.
#[derive(Clone, Copy)]
struct Report {
    loss: f64,
    held_out: Option<f64>,
    divergence: Option<f64>,
}

/// A training under way.
struct Training<'a> {
    arguments: &'a Arguments,
    terminal: &'a Terminal,
    state: &'a Path,
}

impl Training<'_> {
    /// Takes all steps that are left.
    fn finish(&self, trainer: &mut Trainer) -> Result<Option<Report>, Failure> {
        let total = trainer.config().steps;
        let bar = self.terminal.bar("training", total);
        bar.set_position(trainer.steps_done());
        bar.reset_eta();
        let begin = Instant::now();
        let mut saved = Instant::now();
        let (mut mean, mut divergence) = (None, None);
        let mut last = None;
        while !trainer.is_finished() {
            let step = trainer.step()?;
            let loss = smoothed(mean, step.loss);
            mean = Some(loss);
            divergence = step.divergence.map(|value| smoothed(divergence, value));
            let done = trainer.steps_done();
            bar.set_position(done);
            if done.is_multiple_of(self.arguments.report_every) || trainer.is_finished() {
                let held_out = match self.arguments.held_out {
                    0 => None,
                    _ => Some(trainer.held_out_loss(WATCHED)?),
                };
                last = Some(Report { loss, held_out, divergence });
                let named = |name, value: Option<f64>| {
                    value.map_or(String::new(), |value| format!(", {name} {value:.5}"))
                };
                bar.set_message(format!(
                    "training, loss {loss:.5}{}{}",
                    named("held out", held_out),
                    named("divergence", divergence)
                ));
                self.log(&json!({
                    "step": done,
                    "loss": loss,
                    "held_out_loss": held_out,
                    "divergence": divergence,
                    "learning_rate": step.learning_rate,
                    "gradient_norm": step.gradient_norm,
                    "seconds": begin.elapsed().as_secs_f64(),
                }))?;
            }
            if self.terminal.stopped() {
                trainer.save(self.state)?;
                bar.finish_and_clear();
                return Err(Failure::Interrupted(format!(
                    "{done} of {total} steps are in {}; give the same command again to go on",
                    self.state.display()
                )));
            }
            if saved.elapsed() > SAVE_EVERY {
                trainer.save(self.state)?;
                saved = Instant::now();
            }
        }
        trainer.save(self.state)?;
        bar.finish_and_clear();
        Ok(last)
    }

    fn log(&self, line: &Value) -> Result<(), Failure> {
        let Some(path) = &self.arguments.log else { return Ok(()) };
        let write = || {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            writeln!(file, "{line}")
        };
        Ok(write().map_err(|e: std::io::Error| format!("cannot write {}: {e}", path.display()))?)
    }
}

/// An earlier training cannot be gone on with.
#[derive(Debug, thiserror::Error)]
#[error("cannot go on from {}; --restart throws it away", state.display())]
struct Resume {
    state: PathBuf,
    source: lopt::gpt::TrainError,
}

fn state_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".state");
    name.into()
}

fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {e}", path.display()).into())
        }
        _ => Ok(()),
    }
}
