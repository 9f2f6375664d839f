//! lopt's own engine; it also writes the problems that all engines are given.
//!
//! ```text
//! lopt_peer prepare CONFIGURATION FILE
//! ```

mod configurations;
mod prepare;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use dfdx::nn::BuildOnDevice;
use dfdx::optim::Optimizer;
use dfdx::prelude::DeviceBuildExt;
use dfdx::tensor::{Cpu, Gradients};
use lopt::engine::{adamw_ema, copied, global_norm, zeros, AdamW, Update};
use lopt::gpt::{clip_scale, Executor, GptConfig, Inputs, Target, Weights};
use lopt::network::unflatten;
use lopt::tasks::digits::DigitsMlp;
use lopt::Gpt;
use lopt_peers::{Engine, Problem, Training, What};

use configurations::Configuration;

type Network = <DigitsMlp as BuildOnDevice<Cpu, f32>>::Built;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["prepare", name, file] => prepare::prepare(name, Path::new(file)),
        _ => lopt_peers::run::<Lopt>(),
    }
}

/// Inputs of a pass, and what is wanted of it.
struct Batch {
    noised: Vec<f32>,
    start: Vec<f32>,
    wanted: Vec<f32>,
    timestep: Vec<f32>,
    metrics: [Vec<f32>; 3],
}

impl Batch {
    fn new(problem: &Problem, samples: usize) -> anyhow::Result<Self> {
        let first = |name: &str, values: usize| {
            let mut all = problem.floats(name)?;
            all.truncate(values);
            anyhow::Ok(all)
        };
        let size = samples * problem.description.parameters;
        Ok(Self {
            noised: first("in.noised", size)?,
            start: first("in.start", size)?,
            wanted: first("in.wanted", size)?,
            timestep: first("in.timestep", samples)?,
            metrics: [
                first("in.delta", samples)?,
                first("in.target", samples)?,
                first("in.current", samples)?,
            ],
        })
    }

    fn inputs(&self) -> Inputs<'_, f32> {
        let [delta, target, current] = &self.metrics;
        let Self { noised, start, timestep, .. } = self;
        Inputs { noised, start, timestep, delta, target, current }
    }
}

/// The training and the passes of one problem.
struct Lopt {
    executor: Executor<f32>,
    /// Whether parameters change, and so are not packed.
    trains: bool,
    batch: Batch,
    output: Vec<f32>,
    parameters: Vec<f32>,
    training: Training,
    step: u64,
    decayed: Vec<Range<usize>>,
    gradient: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    average: Vec<f32>,
    updates: Option<Updates>,
}

/// Whole updates of a network.
struct Updates {
    gpt: Gpt,
    network: Network,
    start: Vec<f32>,
    current: f64,
    target: f64,
}

impl Updates {
    fn new(problem: &Problem, weights: Weights, batch: &Batch) -> anyhow::Result<Self> {
        let scale = problem.description.scale as f32;
        let start: Vec<f32> = batch.start.iter().map(|x| x / scale).collect();
        let [_, target, current] = batch.metrics.each_ref().map(|metric| f64::from(metric[0]));
        let mut network = Cpu::default().build_module::<DigitsMlp, f32>();
        unflatten(&mut network, &start)?;
        let gpt = Gpt::new(weights, GptConfig::default())?;
        Ok(Self { gpt, network, start, current, target })
    }
}

impl Lopt {
    /// Norm of the gradient of the batch.
    fn gradient_norm(&mut self) -> anyhow::Result<f64> {
        self.differentiate()?;
        Ok(global_norm(&self.gradient))
    }

    /// Sets the largest norm of the gradient.
    fn clip(&mut self, clip: f64) {
        self.training.clip = clip;
    }

    fn differentiate(&mut self) -> anyhow::Result<f64> {
        Ok(self.executor.loss_and_gradient(
            &self.parameters,
            &self.batch.inputs(),
            &Target::new(&self.batch.wanted),
            &mut self.gradient,
        )?)
    }
}

impl Engine for Lopt {
    fn new(problem: &Problem, what: What, threads: usize) -> anyhow::Result<Self> {
        let Configuration { model, weights, .. } = Configuration::named(&problem.description.name)?;
        let samples = what.batch(problem.description.batch);
        let mut parameters = zeros(model.num_parameters())?;
        for spec in model.parameters() {
            parameters[spec.range()].copy_from_slice(&problem.floats(&spec.name)?);
        }
        let (model, batch) = (Arc::new(model), Batch::new(problem, samples)?);
        let trains = what == What::TrainStep;
        let state = || zeros(if trains { parameters.len() } else { 0 });
        let updates = weights.filter(|_| what == What::Update);
        let executor = if trains {
            Executor::for_training(model.clone(), samples, threads)?
        } else {
            let mut executor = Executor::for_inference(model.clone(), samples, threads)?;
            executor.pack(&parameters)?;
            executor
        };
        Ok(Self {
            executor,
            trains,
            updates: updates.map(|weights| Updates::new(problem, weights, &batch)).transpose()?,
            output: vec![0.0; batch.start.len()],
            batch,
            training: problem.description.training.clone(),
            step: 0,
            decayed: model.decayed(),
            gradient: state()?,
            first: state()?,
            second: state()?,
            average: if trains { copied(&parameters)? } else { Vec::new() },
            parameters,
        })
    }

    fn forward(&mut self) -> anyhow::Result<Vec<f32>> {
        let (inputs, output) = (self.batch.inputs(), &mut self.output);
        match self.trains {
            true => self.executor.predict(&self.parameters, &inputs, output)?,
            false => self.executor.predict_packed(&inputs, output)?,
        }
        Ok(self.output.clone())
    }

    fn train_step(&mut self) -> anyhow::Result<f64> {
        let loss = self.differentiate()?;
        self.step += 1;
        let settings = AdamW {
            learning_rate: self.training.learning_rate,
            weight_decay: self.training.weight_decay,
            ..AdamW::default()
        };
        let update = Update {
            step: self.step,
            gradient: &self.gradient,
            gradient_scale: clip_scale(global_norm(&self.gradient), self.training.clip),
            decayed: &self.decayed,
            parameters: &mut self.parameters,
            first: &mut self.first,
            second: &mut self.second,
            average: &mut self.average,
            average_decay: self.training.average_decay,
        };
        adamw_ema(self.executor.threads(), &settings, update);
        Ok(loss)
    }

    fn use_average(&mut self) -> anyhow::Result<()> {
        self.parameters.copy_from_slice(&self.average);
        Ok(())
    }

    fn update(&mut self) -> anyhow::Result<()> {
        let updates = self.updates.as_mut().context("no updates in this configuration")?;
        updates.gpt.prompt(updates.target);
        updates.gpt.observe(updates.current);
        updates.gpt.update(&mut updates.network, &Gradients::leaky())?;
        Ok(())
    }

    fn update_from(&mut self, noise: &[f32]) -> anyhow::Result<Vec<f32>> {
        let updates = self.updates.as_mut().context("no updates in this configuration")?;
        let (current, target) = ([updates.current], [updates.target]);
        Ok(updates.gpt.sample_from_noise(noise, &updates.start, &current, &target)?)
    }
}
