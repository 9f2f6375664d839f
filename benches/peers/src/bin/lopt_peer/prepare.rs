//! Writes the problems that all engines are given.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{bail, ensure};
use lopt::gpt::{NoiseSchedule, Sampler, Tokenization, Transformer, DIFFUSION_STEPS};
use lopt_peers::{Description, Engine, InputClass, OutputClass, Problem, Training, What};
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;
use safetensors::tensor::{Dtype, TensorView};

use crate::configurations::Configuration;
use crate::Lopt;

/// The tables of `Tokens`: which values of the input row, and of the flat vector, go
/// into which token.
fn tables(model: &Transformer) -> anyhow::Result<(Vec<i64>, Vec<i64>, Vec<usize>)> {
    let parameters = model.layout().num_parameters();
    let scalars = 4 * (2 * model.config().frequencies + 1);
    if model.config().tokenization != Tokenization::Units {
        let row = (0..(2 * parameters + scalars) as i64).collect();
        return Ok((row, (0..parameters as i64).collect(), vec![1]));
    }
    let [group] = model.layout().groups() else { bail!("expected one unit group") };
    let [weight, bias, next, last] = model.layout().tensors() else { bail!("expected two layers") };
    let (inputs, outputs) = (weight.shape[1], next.shape[0]);
    let unit = |u: usize| {
        let row = weight.offset + u * inputs..weight.offset + (u + 1) * inputs;
        let column = (0..outputs).map(move |o| next.offset + o * group.units + u);
        row.chain([bias.offset + u]).chain(column).collect::<Vec<_>>()
    };
    let tokens = (0..group.units).map(unit).chain([last.range().collect()]);
    let (mut table, mut output_table) = (Vec::new(), Vec::new());
    for token in tokens {
        table.extend(token.iter().map(|&i| i as i64));
        table.extend(token.iter().map(|&i| (i + parameters) as i64));
        output_table.extend(token.iter().map(|&i| i as i64));
    }
    table.extend((2 * parameters..2 * parameters + scalars).map(|i| i as i64));
    Ok((table, output_table, vec![group.units, 1, 1]))
}

/// Writes a problem, with what lopt makes of it.
pub fn prepare(name: &str, file: &Path) -> anyhow::Result<()> {
    let Configuration { model, weights, batch } = Configuration::named(name)?;
    let config = model.config().clone();
    let size = model.layout().num_parameters();
    let mut rng = rand::rngs::StdRng::seed_from_u64(0);
    let mut normal = |count: usize| -> Vec<f32> {
        (0..count).map(|_| rng.sample::<f32, _>(StandardNormal)).collect()
    };

    // No tensor is left at zero or one: each shall be seen in the output.
    let parameters = weights.as_ref().map(|weights| weights.parameters.clone());
    let parameters = parameters.unwrap_or_else(|| {
        let mut fresh: Vec<f32> = normal(model.num_parameters()).iter().map(|x| x * 0.02).collect();
        let norms = model
            .parameters()
            .iter()
            .filter(|spec| spec.name.contains(".ln") && spec.name.ends_with(".weight"));
        norms.for_each(|spec| fresh[spec.range()].iter_mut().for_each(|x| *x += 1.0));
        fresh
    });
    let floats = |name: &str, shape: &[usize], values: Vec<f32>| {
        (name.to_string(), shape.to_vec(), Values::Floats(values))
    };
    let mut tensors: Vec<(String, Vec<usize>, Values)> = Vec::new();
    for spec in model.parameters() {
        tensors.push(floats(&spec.name, &spec.shape, parameters[spec.range()].to_vec()));
    }
    let frequencies = model.frequencies().to_vec();
    tensors.push(floats("scalar_embedder.frequencies", &[frequencies.len()], frequencies));

    let schedule = NoiseSchedule::linear(DIFFUSION_STEPS)?;
    let alpha_bar: Vec<f32> = (0..DIFFUSION_STEPS).map(|t| schedule.alpha_bar(t) as f32).collect();
    let signal = (0..DIFFUSION_STEPS).map(|t| match config.signal_scaling {
        true => schedule.alpha_bar(t).sqrt() as f32,
        false => 1.0,
    });
    tensors.push(floats("in.signal", &[DIFFUSION_STEPS], signal.collect()));
    tensors.push(floats("in.alpha_bar", &[DIFFUSION_STEPS], alpha_bar));
    let start = normal(batch * size).iter().map(|x| x * 0.538).collect();
    tensors.push(floats("in.start", &[batch, size], start));
    tensors.push(floats("in.noised", &[batch, size], normal(batch * size)));
    tensors.push(floats("in.wanted", &[batch, size], normal(batch * size)));
    let timestep = normal(batch).iter().map(|x| (x.abs() * 400.0).min(999.0).floor()).collect();
    tensors.push(floats("in.timestep", &[batch], timestep));
    let [current, target] = [2.3, 0.2]
        .map(|mean| normal(batch).iter().map(|x| (mean + 0.1 * x).max(0.01)).collect::<Vec<f32>>());
    let delta = target.iter().zip(&current).map(|(target, current)| target - current).collect();
    tensors.push(floats("in.delta", &[batch], delta));
    tensors.push(floats("in.target", &[batch], target));
    tensors.push(floats("in.current", &[batch], current));
    let (table, output_table, tokens) = tables(&model)?;
    tensors.push(("in.table".into(), vec![table.len()], Values::Positions(table)));
    let shape = vec![output_table.len()];
    tensors.push(("in.output_table".into(), shape, Values::Positions(output_table)));

    let count = |class: usize| tokens.get(class).or(tokens.last()).copied().unwrap_or(1);
    let count = |class: usize| if tokens.len() == 1 { 1 } else { count(class) };
    let find = |name: String| model.parameters().iter().find(move |spec| spec.name == name);
    let inputs = (0..).map_while(|class| {
        let name = format!("decoder.input_parameter_projections.{class}.0");
        let bias = find(format!("{name}.bias")).is_some();
        let weight = find(format!("{name}.weight"))?;
        Some(InputClass { tokens: count(class), values: weight.shape[1], bias })
    });
    let outputs = (0..).map_while(|class| {
        let name = format!("decoder.output_parameter_projections.{class}.0.weight");
        Some(OutputClass { tokens: count(class), values: find(name)?.shape[0] })
    });
    let inputs: Vec<InputClass> = inputs.collect();
    let alone = inputs.iter().all(|class| class.tokens == 1);
    let position = |(class, input): (usize, &InputClass)| vec![class; input.tokens];
    let mut description = Description {
        name: name.into(),
        width: config.width,
        blocks: config.blocks,
        heads: config.heads,
        batch,
        parameters: size,
        model_parameters: model.num_parameters(),
        timestep_scale: config.timestep_scale,
        metric_scale: config.metric_scale,
        every_token: !alone,
        positions: inputs.iter().enumerate().flat_map(position).collect(),
        inputs,
        outputs: outputs.collect(),
        training: Training {
            learning_rate: if name == "L" { 1e-4 } else { 1e-3 },
            weight_decay: 0.1,
            clip: 1e30,
            average_decay: 0.5,
            losses: Vec::new(),
        },
        sampler: Vec::new(),
        scale: 1.0,
    };
    ensure!(description.tokens() == model.num_tokens(), "{} tokens", model.num_tokens());

    if let Some(weights) = &weights {
        let steps = Sampler::new(&weights.header.sampler, DIFFUSION_STEPS, config.prediction)?;
        description.sampler = steps.timesteps().collect();
        description.scale = weights.header.normalizer.scale;
        tensors.push(floats("in.noise", &[size], normal(size)));
    }
    write(file, &description, &tensors)?;

    // What comes out, by the same path as in a measurement.
    let problem = Problem::open(&file.to_string_lossy())?;
    let mut engine = Lopt::new(&problem, What::TrainStep, 1)?;
    tensors.push(floats("out.forward", &[batch, size], engine.forward()?));
    description.training.clip = engine.gradient_norm()? / 2.0;
    engine.clip(description.training.clip);
    for _ in 0..if name == "L" { 2 } else { 5 } {
        description.training.losses.push(engine.train_step()?);
    }
    engine.use_average()?;
    tensors.push(floats("out.trained", &[batch, size], engine.forward()?));
    drop(engine);
    if weights.is_some() {
        let noise = problem.floats("in.noise")?;
        let update = Lopt::new(&problem, What::Update, 1)?.update_from(&noise)?;
        tensors.push(floats("out.update", &[size], update));
    }
    write(file, &description, &tensors)
}

/// Values of a tensor.
enum Values {
    Floats(Vec<f32>),
    Positions(Vec<i64>),
}

fn write(
    file: &Path,
    description: &Description,
    tensors: &[(String, Vec<usize>, Values)],
) -> anyhow::Result<()> {
    let views = tensors.iter().map(|(name, shape, values)| {
        let (dtype, bytes) = match values {
            Values::Floats(values) => (Dtype::F32, bytemuck::cast_slice(values)),
            Values::Positions(values) => (Dtype::I64, bytemuck::cast_slice(values)),
        };
        Ok((name, TensorView::new(dtype, shape.clone(), bytes)?))
    });
    let views = views.collect::<anyhow::Result<Vec<_>>>()?;
    let entry = ("description".to_string(), serde_json::to_string(description)?);
    Ok(safetensors::serialize_to_file(views, Some(HashMap::from([entry])), file)?)
}
