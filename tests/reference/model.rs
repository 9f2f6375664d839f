//! The network of G.pt: outputs, gradients, splits, embedding, initial values.

use std::sync::Arc;

use lopt::engine::Float;
use lopt::gpt::embedding::{self, embed};
use lopt::gpt::{Executor, Inputs, ModelConfig, Target, Tokenization, Transformer};
use lopt::layout::{Layout, LayoutBuilder, Role};
use serde_json::Value;

use crate::case::{cast, count, counts, flag, list, number, numbers, tokenization, widen, Case};
use crate::report::{Bound, Outcome, Report, DEFAULT};

/// A G.pt of a case, with its parameters.
pub struct Model<F> {
    pub plan: Arc<Transformer>,
    pub executor: Executor<F>,
    #[cfg(feature = "cuda")]
    device: Option<crate::device::OnDevice>,
    pub parameters: Vec<F>,
}

/// Conditions of a batch.
pub struct Conditions<'a, F> {
    pub start: &'a [F],
    pub target: &'a [F],
    pub current: &'a [F],
}

impl<F: Float> Model<F> {
    /// The network of a case and the parameters whose names start with `prefix`,
    /// with room for `batch` samples.
    pub fn load(case: &Case, prefix: &str, frequencies: &str, batch: usize) -> Outcome<Self> {
        let plan = Transformer::new(case.model_config()?, &case.layout("parameter_layout")?)
            .and_then(|plan| match case.cast(frequencies) {
                Ok(frequencies) => plan.with_frequencies(frequencies),
                Err(_) => Ok(plan),
            })
            .map_err(|e| e.to_string())?;
        let plan = Arc::new(plan);
        let parameters = flat(case, &plan, prefix)?;
        // Two threads, so that the split of a batch is tested too.
        let executor = Executor::for_training(plan.clone(), batch, 2).map_err(|e| e.to_string())?;
        Ok(Self {
            #[cfg(feature = "cuda")]
            device: crate::device::OnDevice::named::<F>(&plan, batch)?,
            plan,
            executor,
            parameters,
        })
    }

    /// Output for a batch at these diffusion steps.
    ///
    /// The difference of the metrics is formed in `f32`, as the reference does
    /// when it prompts.
    pub fn predict(
        &mut self,
        noised: &[F],
        timestep: &[F],
        given: &Conditions<'_, F>,
    ) -> Outcome<Vec<F>> {
        let mut output = vec![F::zero(); noised.len()];
        self.predict_into(noised, timestep, given, &mut output)?;
        Ok(output)
    }

    /// [`predict`](Self::predict) into a buffer.
    pub fn predict_into(
        &mut self,
        noised: &[F],
        timestep: &[F],
        given: &Conditions<'_, F>,
        output: &mut [F],
    ) -> Outcome {
        let delta = single_difference(given.target, given.current);
        let inputs = Inputs {
            noised,
            start: given.start,
            timestep,
            delta: &delta,
            target: given.target,
            current: given.current,
        };
        #[cfg(feature = "cuda")]
        if let Some(device) = &mut self.device {
            return device.predict(&self.parameters, &inputs, output);
        }
        self.executor.predict(&self.parameters, &inputs, output).map_err(|e| e.to_string())
    }

    /// Loss of a batch, and its gradient.
    pub fn loss_and_gradient(
        &mut self,
        inputs: &Inputs<'_, F>,
        target: &Target<'_, F>,
        gradient: &mut [F],
    ) -> Outcome<f64> {
        #[cfg(feature = "cuda")]
        if let Some(device) = &mut self.device {
            return device.loss_and_gradient(&self.parameters, inputs, target, gradient);
        }
        let loss = self.executor.loss_and_gradient(&self.parameters, inputs, target, gradient);
        loss.map_err(|e| e.to_string())
    }
}

/// Differences in `f32`, of values that are `f32`.
fn single_difference<F: Float>(target: &[F], current: &[F]) -> Vec<F> {
    let single = |v: &F| v.as_f64() as f32;
    let pairs = target.iter().zip(current);
    pairs.map(|(t, c)| F::from_f64(f64::from(single(t) - single(c)))).collect()
}

/// The parameters of a case in the order of the plan.
pub fn flat<F: Float>(case: &Case, plan: &Transformer, prefix: &str) -> Outcome<Vec<F>> {
    let mut parameters = vec![F::zero(); plan.num_parameters()];
    for spec in plan.parameters() {
        let name = format!("{prefix}{}", spec.name);
        let shape = case.shape(&name)?;
        if shape != spec.shape {
            return Err(format!("`{name}` is {shape:?} in the case, {:?} in the plan", spec.shape));
        }
        parameters[spec.range()].copy_from_slice(&cast(case.values(&name)?));
    }
    Ok(parameters)
}

/// Checks that a case names the parameters that the plan has, and no others.
pub fn compare_names(case: &Case, report: &mut Report, plan: &Transformer, prefix: &str) {
    let mut found: Vec<&str> = plan.parameters().iter().map(|spec| &spec.name[..]).collect();
    let names = case.names().filter_map(|name| name.strip_prefix(prefix));
    let mut expected: Vec<&str> = names.filter(|name| !name.ends_with(".frequencies")).collect();
    found.sort_unstable();
    expected.sort_unstable();
    report.same("parameter names", &found, &expected);
}

/// Output, gradient with respect to the input, and what lies between.
pub fn forward(case: &Case, report: &mut Report) -> Outcome {
    let batch = case.shape("x_noised")?[0];
    let frequencies = "model.scalar_embedder.frequencies";
    let mut single = Model::<f32>::load(case, "model.", frequencies, batch)?;
    let mut double = Model::<f64>::load(case, "model.", frequencies, batch)?;
    let plan = single.plan.clone();
    compare_names(case, report, &plan, "model.");
    if let Ok(expected) = count(case.json(), "n_tokens") {
        report.same("n_tokens", &plan.num_tokens(), &expected);
    }
    for (field, found) in
        [("input_splits", input_splits(&plan)), ("output_splits", output_splits(&plan))]
    {
        if case.field(field).is_ok() {
            report.same(field, &found, &counts(case.json(), field)?);
        }
    }

    let found = output(&mut single, case)?;
    let expected = case.values("output")?;
    report.compare("output", &found, expected, case.suggested("max_abs", DEFAULT));
    if let Bound::Absolute(limit) = case.suggested("rel_l2", DEFAULT) {
        let distance = relative_distance(&found, expected);
        report.compare_one("output, relative distance", distance, 0.0, Bound::Absolute(limit));
    }
    if case.has("output_f64") {
        // The embedding is rounded to f32 in both, and there may differ by an ulp.
        let found = output(&mut double, case)?;
        report.compare("output_f64", &found, case.values("output_f64")?, Bound::Relative(1e-6));
    }
    if case.has("grad.x_noised") {
        let expected = case.values("grad.x_noised")?;
        let bound = case.suggested("grad_max_abs", DEFAULT);
        report.compare("grad.x_noised", &input_gradient(&mut single, case)?, expected, bound);
        // Of a case in f32: the same values, without the rounding of ours.
        let found = input_gradient(&mut double, case)?;
        report.compare("grad.x_noised, ours in f64", &found, expected, bound);
    }
    stages(case, report, &mut single)?;
    embeddings(case, report, &plan)
}

/// Tokens before, between and after the blocks.
fn stages(case: &Case, report: &mut Report, model: &mut Model<f32>) -> Outcome {
    let first = "inter.after_ln_in";
    if !case.has(first) {
        return Ok(());
    }
    let plan = model.plan.clone();
    let (width, blocks) = (plan.config().width, plan.config().blocks);
    let mut names = vec![first.to_owned()];
    names.extend((0..blocks).map(|i| format!("inter.after_block{i}")));
    names.push("inter.after_ln_f".to_owned());
    let mut found = vec![Vec::new(); names.len()];

    let size = plan.layout().num_parameters();
    let all = |name: &str| case.cast::<f32>(name);
    let (noised, start, t) = (all("x_noised")?, all("x_prev")?, all("t")?);
    let (target, current) = (all("loss_target")?, all("loss_prev")?);
    let delta = single_difference(&target, &current);
    for n in 0..t.len() {
        let inputs = Inputs {
            noised: &noised[n * size..][..size],
            start: &start[n * size..][..size],
            timestep: &t[n..=n],
            delta: &delta[n..=n],
            target: &target[n..=n],
            current: &current[n..=n],
        };
        let stages =
            model.executor.stages(&model.parameters, &inputs).map_err(|e| e.to_string())?;
        found.iter_mut().zip(stages).for_each(|(found, stage)| found.push(widen(&stage)));
    }
    // Ours is after the position embedding, theirs before it.
    let positions = case.values("model.decoder.pos_emb")?;
    for tokens in &mut found[0] {
        tokens.iter_mut().zip(positions).for_each(|(v, p)| *v -= p);
    }
    for (name, found) in names.iter().zip(found) {
        // Of the last two, only output tokens are computed.
        let sample = case.shape(name)?[1] * width;
        let expected: Vec<f64> = case
            .values(name)?
            .chunks(sample)
            .zip(&found)
            .flat_map(|(row, found)| row[..found.len()].to_vec())
            .collect();
        report.compare(name, &found.concat(), &expected, DEFAULT);
    }
    Ok(())
}

/// Gradient of the output's product with the cotangent.
fn input_gradient<F: Float>(model: &mut Model<F>, case: &Case) -> Outcome<Vec<f64>> {
    let (start, target): (Vec<F>, Vec<F>) = (case.cast("x_prev")?, case.cast("loss_target")?);
    let current: Vec<F> = case.cast("loss_prev")?;
    let (noised, timestep): (Vec<F>, Vec<F>) = (case.cast("x_noised")?, case.cast("t")?);
    let delta = single_difference(&target, &current);
    let inputs = Inputs {
        noised: &noised,
        start: &start,
        timestep: &timestep,
        delta: &delta,
        target: &target,
        current: &current,
    };
    let cotangent: Vec<F> = case.cast("cotangent")?;
    let mut gradient = vec![F::zero(); model.parameters.len()];
    let mut of_input = vec![F::zero(); noised.len()];
    let executor = &mut model.executor;
    let done =
        executor.pull_back(&model.parameters, &inputs, &cotangent, &mut gradient, &mut of_input);
    done.map_err(|e| e.to_string())?;
    Ok(widen(&of_input))
}

/// Embedded scalars of a case with intermediate values.
fn embeddings(case: &Case, report: &mut Report, plan: &Transformer) -> Outcome {
    let width = 2 * plan.frequencies().len() + 1;
    let rows = |columns: &[Vec<f32>]| {
        let mut found = Vec::new();
        for n in 0..columns[0].len() {
            for column in columns {
                let mut row = vec![0.0; width];
                embed(plan.frequencies(), column[n], &mut row);
                found.extend(widen(&row));
            }
        }
        found
    };
    if case.has("inter.t_embedding") {
        let found = rows(&[case.cast("t")?]);
        report.compare("t_embedding", &found, case.values("inter.t_embedding")?, EMBEDDING);
    }
    if case.has("inter.loss_embedding") {
        let (target, current): (Vec<f32>, Vec<f32>) =
            (case.cast("loss_target")?, case.cast("loss_prev")?);
        let mut columns = vec![single_difference(&target, &current)];
        if plan.config().absolute_conditioning {
            columns.extend([target, current]);
        }
        let expected = case.values("inter.loss_embedding")?;
        report.compare("loss_embedding", &rows(&columns), expected, EMBEDDING);
    }
    Ok(())
}

/// Sine and cosine of the same f32 phase, by two libraries.
const EMBEDDING: Bound = Bound::Absolute(1e-6);

/// Embedded scalars for several frequencies, and the frequencies themselves.
pub fn embedding(case: &Case, report: &mut Report) -> Outcome {
    let json = case.json();
    let key = |count: f64, log2: f64| format!("F{count}_m{log2}");
    for config in list(json, "cases")? {
        let (frequencies, log2) =
            (count(config, "num_frequencies")?, number(config, "max_freq_log2")?);
        let key = key(frequencies as f64, log2);
        let name = format!("{key}.frequencies");
        let found = widen(&embedding::frequencies(frequencies, log2));
        // At most one unit in the last place.
        report.compare(&name, &found, case.values(&name)?, Bound::Elementwise(1.2e-7));
        let bound = number(config, "suggested_max_abs").map_or(EMBEDDING, Bound::Absolute);
        let found = embedded(case, &name, case.values("values")?)?;
        let name = format!("{key}.embedded");
        report.compare(&name, &found, case.values(&name)?, bound);
    }
    let config = |field: &str| {
        let pair = numbers(json, field)?;
        Ok::<_, String>(format!("{}.frequencies", key(pair[0], pair[1])))
    };
    for (prefix, field) in [("nd", "nd_config"), ("int", "int_config")] {
        if case.field(field).is_ok() {
            let found = embedded(case, &config(field)?, case.values(&format!("{prefix}.values"))?)?;
            let name = format!("{prefix}.embedded");
            report.compare(&name, &found, case.values(&name)?, EMBEDDING);
        }
    }
    if let Ok(double) = case.field("float64_metric_case") {
        let pair = numbers(double, "config")?;
        let frequencies = format!("{}.frequencies", key(pair[0], pair[1]));
        let (target, current) = (case.values("f64.loss_target")?, case.values("f64.loss_prev")?);
        let delta: Vec<f64> = target.iter().zip(current).map(|(t, c)| t - c).collect();
        let rounded: Vec<f64> =
            target.iter().zip(current).map(|(&t, &c)| f64::from(t as f32 - c as f32)).collect();
        for (name, delta) in
            [("f64.delta_embedded_ref", delta), ("f64.delta_embedded_if_f32_first", rounded)]
        {
            let found = embedded(case, &frequencies, &delta)?;
            report.compare(name, &found, case.values(name)?, EMBEDDING);
        }
    }
    Ok(())
}

/// Rows of embedded scalars, rounded to `f32` first.
fn embedded(case: &Case, frequencies: &str, values: &[f64]) -> Outcome<Vec<f64>> {
    let frequencies: Vec<f32> = case.cast(frequencies)?;
    let row = |&value: &f64| {
        let mut row = vec![0.0f32; 2 * frequencies.len() + 1];
        embed(&frequencies, value as f32, &mut row);
        widen(&row)
    };
    Ok(values.iter().flat_map(row).collect())
}

fn output<F: Float>(model: &mut Model<F>, case: &Case) -> Outcome<Vec<f64>> {
    let (start, target): (Vec<F>, Vec<F>) = (case.cast("x_prev")?, case.cast("loss_target")?);
    let current: Vec<F> = case.cast("loss_prev")?;
    let given = Conditions { start: &start, target: &target, current: &current };
    let (noised, timestep): (Vec<F>, Vec<F>) = (case.cast("x_noised")?, case.cast("t")?);
    Ok(widen(&model.predict(&noised, &timestep, &given)?))
}

fn relative_distance(found: &[f64], expected: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

/// Values in each input token, read off the encoders.
fn input_splits(plan: &Transformer) -> Vec<usize> {
    let first = |spec: &&lopt::gpt::ParameterSpec| {
        spec.name.contains("input_parameter_projections.") && spec.name.ends_with(".0.weight")
    };
    in_order(plan.parameters().iter().filter(first).map(|spec| (&spec.name[..], spec.shape[1])))
}

/// Values in each output token, read off the last layer of the decoders.
fn output_splits(plan: &Transformer) -> Vec<usize> {
    let last = format!(".{}.weight", 2 * (plan.config().decoder_depth - 1));
    let last = |spec: &&lopt::gpt::ParameterSpec| {
        spec.name.contains("output_parameter_projections.") && spec.name.ends_with(&last)
    };
    in_order(plan.parameters().iter().filter(last).map(|spec| (&spec.name[..], spec.shape[0])))
}

/// Sorted by the number in the name.
fn in_order<'a>(entries: impl Iterator<Item = (&'a str, usize)>) -> Vec<usize> {
    let number = |name: &str| name.split('.').find_map(|part| part.parse::<usize>().ok());
    let mut entries: Vec<_> = entries.map(|(name, size)| (number(name), size)).collect();
    entries.sort_unstable_by_key(|entry| entry.0);
    entries.into_iter().map(|(_, size)| size).collect()
}

/// How vectors are cut into tokens, for many sizes.
pub fn splits(case: &Case, report: &mut Report) -> Outcome {
    let json = case.json();
    for (i, row) in list(json, "rows")?.iter().enumerate() {
        let sizes = counts(row, "parameter_sizes")?;
        let mut config = small(tokenization(row, "split_policy")?);
        config.frequencies = count(row, "num_frequencies")?;
        config.absolute_conditioning = flag(row, "absolute_loss_conditioning")?;
        let plan = Transformer::new(config, &tensors(&sizes)?).map_err(|e| e.to_string())?;
        let (inputs, outputs) = (input_splits(&plan), output_splits(&plan));
        report.same(&format!("row {i} outputs"), &outputs, &counts(row, "output_splits")?);
        report.same(&format!("row {i} tokens"), &plan.num_tokens(), &count(row, "n_tokens")?);
        let named = ("first_tokens_equal_output_splits", inputs.starts_with(&outputs));
        if let Ok(expected) = flag(row, named.0) {
            report.same(&format!("row {i} {}", named.0), &named.1, &expected);
        }
        report.same(&format!("row {i} inputs"), &inputs, &counts(row, "input_splits")?);
    }
    let direct = json.get("build_splits_direct").and_then(Value::as_array);
    for (i, row) in direct.into_iter().flatten().enumerate() {
        let Ok(sizes) = counts(row, "parameter_sizes") else {
            report.note(format!("direct {i}: inputs of unequal sizes, which no G.pt has"));
            continue;
        };
        let config = small(tokenization(row, "policy")?);
        let plan = Transformer::new(config, &tensors(&sizes)?).map_err(|e| e.to_string())?;
        report.same(&format!("direct {i}"), &output_splits(&plan), &counts(row, "splits")?);
    }
    Ok(())
}

/// A network of the smallest size with this tokenization.
fn small(tokenization: Tokenization) -> ModelConfig {
    ModelConfig { width: 1, heads: 1, blocks: 1, ..ModelConfig::reference(tokenization) }
}

/// A layout of tensors with these sizes.
fn tensors(sizes: &[usize]) -> Outcome<Layout> {
    let mut builder = LayoutBuilder::new();
    for (i, &size) in sizes.iter().enumerate() {
        builder.tensor(&i.to_string(), &[size], Role::Bias);
    }
    builder.finish().map_err(|e| e.to_string())
}

/// What a fresh network holds, by the statistics of every tensor.
pub fn initial_values(case: &Case, report: &mut Report) -> Outcome {
    let stated = case.field("parameters")?.as_object().ok_or("`parameters` is not an object")?;
    let mut names = Vec::new();
    let plan = plan_of(stated)?;
    let parameters: Vec<f32> = plan.initialize(0);
    for spec in plan.parameters() {
        let values = widen(&parameters[spec.range()]);
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        let json =
            stated.get(&spec.name).ok_or_else(|| format!("`{}` is not stated", spec.name))?;
        report.same(&format!("{} shape", spec.name), &spec.shape, &counts(json, "shape")?);
        let (expected_mean, expected) = (number(json, "mean")?, number(json, "std")?);
        // Both are samples: five deviations of their difference.
        let spread = 5.0 * 0.02 * (2.0 / n).sqrt();
        let constant = expected == 0.0;
        let bound = |spread: f64| Bound::Absolute(if constant { 0.0 } else { spread });
        report.compare_one(&format!("{} mean", spec.name), mean, expected_mean, bound(spread));
        let bound = bound(spread / std::f64::consts::SQRT_2);
        report.compare_one(&format!("{} deviation", spec.name), deviation, expected, bound);
        names.push(spec.name.clone());
    }
    report.same("number of tensors", &names.len(), &stated.len());
    if flag(case.json(), "output_equals_x_prev").unwrap_or(false) {
        fresh_returns_start(report, plan, &parameters)?;
    }
    Ok(())
}

fn fresh_returns_start(report: &mut Report, plan: Transformer, parameters: &[f32]) -> Outcome {
    let size = plan.layout().num_parameters();
    let start: Vec<f32> = (0..size).map(|i| (i as f32 * 0.37).sin()).collect();
    let noised: Vec<f32> = start.iter().map(|v| 1.0 - v).collect();
    let inputs = Inputs {
        noised: &noised,
        start: &start,
        timestep: &[321.0],
        delta: &[-1.0],
        target: &[0.5],
        current: &[1.5],
    };
    let mut output = vec![0.0; size];
    let executor = Executor::for_inference(Arc::new(plan), 1, 1);
    let predicted = executor.and_then(|mut e| e.predict(parameters, &inputs, &mut output));
    predicted.map_err(|e| e.to_string())?;
    report.same("a fresh network returns the start", &output, &start);
    Ok(())
}

/// The network that parameters of these names and shapes belong to. Heads do
/// not show in them; a tensor for each output token is cut into the same tokens.
fn plan_of(stated: &serde_json::Map<String, Value>) -> Outcome<Transformer> {
    let (encoders, decoders) = ("input_parameter_projections", "output_parameter_projections");
    let part = |name: &str, at: usize| name.split('.').nth(at)?.parse::<usize>().ok();
    let most = |group: &str, at: usize| {
        let names = stated.keys().filter(|name| name.split('.').nth(1) == Some(group));
        names.filter_map(|name| part(name, at)).max().unwrap_or(0)
    };
    let side = |name: String, axis: usize| {
        let json = stated.get(&name).ok_or_else(|| format!("`{name}` is not stated"))?;
        counts(json, "shape")?.get(axis).copied().ok_or_else(|| format!("shape of `{name}`"))
    };
    let decoder_depth = most(decoders, 3) / 2 + 1;
    let last = 2 * (decoder_depth - 1);
    let inputs = (0..=most(encoders, 2))
        .map(|k| side(format!("decoder.{encoders}.{k}.0.weight"), 1))
        .collect::<Outcome<Vec<_>>>()?;
    let outputs = (0..=most(decoders, 2))
        .map(|k| side(format!("decoder.{decoders}.{k}.{last}.weight"), 0))
        .collect::<Outcome<Vec<_>>>()?;
    let config = ModelConfig {
        width: side("decoder.ln_f.weight".into(), 0)?,
        blocks: most("blocks", 2) + 1,
        heads: 1,
        encoder_depth: most(encoders, 3) / 2 + 1,
        decoder_depth,
        ..ModelConfig::reference(Tokenization::LayerByLayer)
    };
    let layout = tensors(&outputs)?;
    let embedded = inputs.iter().sum::<usize>().saturating_sub(2 * outputs.iter().sum::<usize>());
    let length = inputs.iter().copied().max().unwrap_or(1);
    for absolute_conditioning in [true, false] {
        let frequencies = (embedded / if absolute_conditioning { 4 } else { 2 }).max(1) / 2;
        for tokenization in [
            Tokenization::LayerByLayer,
            Tokenization::ChunkWithinLayer { length },
            Tokenization::ChunkWithinInput { length },
            Tokenization::Chunk { length },
        ] {
            let config =
                ModelConfig { tokenization, frequencies, absolute_conditioning, ..config.clone() };
            match Transformer::new(config, &layout) {
                Ok(plan) if input_splits(&plan) == inputs => return Ok(plan),
                _ => {}
            }
        }
    }
    Err("no tokenization gives these tokens".into())
}
