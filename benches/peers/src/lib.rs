//! What the engines of `run.sh` that are written in Rust share: the problem they
//! are all given, and how they are checked and measured.
//!
//! Every engine is a program with two commands:
//!
//! ```text
//! ENGINE check FILE
//! ENGINE measure FILE WHATS THREADS SECONDS
//! ```
//!
//! `FILE` is a [`Problem`], `WHATS` names what to measure, with commas between. Each
//! prints one line of JSON for each result.
//!
//! Shape letters: `N` batch, `P` parameters of the network that is optimised, `T`
//! tokens, `D` width.

mod measure;
mod problem;

use anyhow::{bail, ensure, Context};

pub use measure::{measure, process_cpu_seconds, Timing};
pub use problem::{Description, InputClass, OutputClass, Problem, Tokens, Training};

/// Something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Forward, backward, clipping, AdamW and moving average of one batch.
    TrainStep,
    /// Output of one batch.
    Forward,
    /// Output of the first sample.
    ForwardBatch1,
    /// One network from noise: all steps of the sampler, and scaling.
    Update,
}

impl What {
    /// Finds it by its name in the table.
    ///
    /// # Errors
    /// If there is no such thing.
    pub fn parse(name: &str) -> anyhow::Result<Self> {
        Ok(match name {
            "train_step" => Self::TrainStep,
            "forward" => Self::Forward,
            "forward_batch_1" => Self::ForwardBatch1,
            "update" => Self::Update,
            other => bail!("`{other}` cannot be measured"),
        })
    }

    /// Samples of a pass, in a problem of `batch`.
    pub fn batch(self, batch: usize) -> usize {
        match self {
            Self::TrainStep | Self::Forward => batch,
            Self::ForwardBatch1 | Self::Update => 1,
        }
    }
}

/// The transformer in one framework.
pub trait Engine: Sized {
    /// Gets ready for one kind of work.
    fn new(problem: &Problem, what: What, threads: usize) -> anyhow::Result<Self>;

    /// Output of the batch, or of its first sample, `[N, P]`.
    fn forward(&mut self) -> anyhow::Result<Vec<f32>>;

    /// One step of training on the batch; its loss.
    fn train_step(&mut self) -> anyhow::Result<f64>;

    /// Puts the moving average in place of the parameters.
    fn use_average(&mut self) -> anyhow::Result<()>;

    /// New parameters of the first network from fresh noise.
    fn update(&mut self) -> anyhow::Result<()>;

    /// New parameters of the first network, `[P]`, from this noise.
    fn update_from(&mut self, noise: &[f32]) -> anyhow::Result<Vec<f32>>;
}

/// Main function of an engine.
///
/// # Errors
/// If the arguments are wrong, the file is, or the engine fails.
pub fn run<E: Engine>() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["check", file] => check::<E>(&Problem::open(file)?),
        ["measure", file, whats, threads, seconds] => {
            let (threads, seconds) = (threads.parse()?, seconds.parse()?);
            // Before the first use of rayon, whose global pool dfdx and candle work in.
            std::env::set_var("RAYON_NUM_THREADS", format!("{threads}"));
            let problem = Problem::open(file)?;
            whats.split(',').try_for_each(|what| time::<E>(&problem, what, threads, seconds))
        }
        _ => bail!("expected `check FILE` or `measure FILE WHATS THREADS SECONDS`"),
    }
}

fn time<E: Engine>(
    problem: &Problem,
    name: &str,
    threads: usize,
    seconds: f64,
) -> anyhow::Result<()> {
    let what = What::parse(name)?;
    let mut engine = E::new(problem, what, threads)?;
    let timing = measure(seconds, || match what {
        What::TrainStep => engine.train_step().map(drop),
        What::Forward | What::ForwardBatch1 => engine.forward().map(drop),
        What::Update => engine.update(),
    })?;
    println!("{}", timing.json(name));
    Ok(())
}

/// Compares an engine with what lopt wrote into the file: relative errors.
fn check<E: Engine>(problem: &Problem) -> anyhow::Result<()> {
    let training = &problem.description.training;
    let mut engine = E::new(problem, What::TrainStep, 1)?;
    let forward = relative_error(&engine.forward()?, &problem.floats("out.forward")?)?;
    let mut losses = 0.0f64;
    for &expected in &training.losses {
        losses = losses.max((engine.train_step()? / expected - 1.0).abs());
    }
    engine.use_average()?;
    let trained = relative_error(&engine.forward()?, &problem.floats("out.trained")?)?;
    let mut report = serde_json::json!({
        "forward": forward, "losses": losses, "trained": trained,
    });
    drop(engine);
    if problem.description.has_update() {
        let noise = problem.floats("in.noise")?;
        let found = E::new(problem, What::Update, 1)?.update_from(&noise)?;
        report["update"] = relative_error(&found, &problem.floats("out.update")?)?.into();
    }
    println!("{report}");
    Ok(())
}

/// Length of the difference over the length of what is expected.
fn relative_error(found: &[f32], expected: &[f32]) -> anyhow::Result<f64> {
    ensure!(found.len() == expected.len(), "{} values, not {}", found.len(), expected.len());
    let (mut difference, mut length) = (0.0f64, 0.0f64);
    for (&found, &expected) in found.iter().zip(expected) {
        difference += f64::from(found - expected).powi(2);
        length += f64::from(expected).powi(2);
    }
    let error = (difference / length).sqrt();
    error.is_finite().then_some(error).context("the output is not finite")
}
