//! Updates of networks that are initialised as no recorded run was.
//!
//! A G.pt is trained on runs that all start at one kind of initialisation. What
//! it makes of another one, and whether several updates in a row recover from
//! it, tells how much it depends on what it has seen. Every kind is drawn from
//! the layout, so any network can be initialised so.
//!
//! # Source
//! Peebles et al. 2022, arXiv:2209.12892, figure 6.

use std::fmt;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize, Serializer};

use super::alignment::Request;
use super::scores::condition;
use super::{EvalError, Monitor, Networks, Scores, Subject};
use crate::layout::{Layout, Role, TensorSpec};
use crate::metric::{Direction, Metric, Split};
use crate::tasks::{Seeds, Task, TaskError};

/// How a network is initialised.
///
/// Kaiming, Xavier and orthogonal set the weights and make biases 0, as is usual
/// with them; scales and shifts of normalisations stay as the task makes them.
/// Fans are those of PyTorch: the size of an axis times that of the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initialisation {
    /// As the task does it: dfdx's, which recorded runs start at.
    Own,
    /// Normal, variance 2 / fan in. He et al. 2015, arXiv:1502.01852.
    KaimingNormal,
    /// Uniform, variance 2 / (fan in + fan out). Glorot and Bengio 2010.
    XavierUniform,
    /// Orthonormal rows or columns, whichever are fewer, of the weight as a
    /// matrix of outputs by all else. Saxe et al. 2013, arXiv:1312.6120.
    Orthogonal,
    /// The task's, all parameters times a factor.
    Scaled(f64),
}

impl Initialisation {
    /// What is judged: the one seen in training first, then unseen ones.
    pub const ALL: [Self; 6] = [
        Self::Own,
        Self::KaimingNormal,
        Self::XavierUniform,
        Self::Orthogonal,
        Self::Scaled(0.5),
        Self::Scaled(2.0),
    ];

    /// A network of this kind, decided by the seed.
    ///
    /// # Errors
    /// If the task cannot initialise a network.
    pub fn sample(self, task: &dyn Task, seed: u64) -> Result<Vec<f32>, TaskError> {
        let mut parameters = task.initial(seed)?;
        self.draw(&task.layout()?, &mut parameters, &mut ChaCha8Rng::seed_from_u64(seed));
        Ok(parameters)
    }

    /// Overwrites the task's own initialisation.
    ///
    /// # Panics
    /// If the layout is not that of the parameters.
    pub fn draw(self, layout: &Layout, parameters: &mut [f32], rng: &mut impl Rng) {
        assert_eq!(parameters.len(), layout.num_parameters(), "the layout of the parameters");
        match self {
            Self::Own => return,
            Self::Scaled(factor) => {
                return parameters.iter_mut().for_each(|p| *p = (f64::from(*p) * factor) as f32)
            }
            Self::KaimingNormal | Self::XavierUniform | Self::Orthogonal => {}
        }
        for tensor in layout.tensors() {
            let values = &mut parameters[tensor.range()];
            match tensor.role {
                Role::Weight if tensor.shape.len() > 1 => self.draw_weight(tensor, values, rng),
                Role::Bias => values.fill(0.0),
                _ => {}
            }
        }
    }

    fn draw_weight(self, tensor: &TensorSpec, values: &mut [f32], rng: &mut impl Rng) {
        let (outputs, inputs) = (tensor.shape[0], tensor.shape[1]);
        let kernel: usize = tensor.shape[2..].iter().product();
        let (fan_in, fan_out) = ((inputs * kernel) as f64, (outputs * kernel) as f64);
        let mut normal = || rng.sample::<f64, _>(StandardNormal);
        match self {
            Self::KaimingNormal => {
                let deviation = (2.0 / fan_in).sqrt();
                values.iter_mut().for_each(|v| *v = (deviation * normal()) as f32);
            }
            Self::XavierUniform => {
                let bound = (6.0 / (fan_in + fan_out)).sqrt();
                values.iter_mut().for_each(|v| *v = rng.gen_range(-bound..bound) as f32);
            }
            Self::Orthogonal => orthogonal(outputs, values, &mut normal),
            Self::Own | Self::Scaled(_) => {}
        }
    }
}

impl fmt::Display for Initialisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("dfdx's own, seen in training"),
            Self::KaimingNormal => f.write_str("Kaiming normal"),
            Self::XavierUniform => f.write_str("Xavier uniform"),
            Self::Orthogonal => f.write_str("orthogonal"),
            Self::Scaled(factor) => write!(f, "dfdx's own times {factor}"),
        }
    }
}

impl Serialize for Initialisation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Own => serializer.serialize_str("own"),
            Self::KaimingNormal => serializer.serialize_str("kaiming_normal"),
            Self::XavierUniform => serializer.serialize_str("xavier_uniform"),
            Self::Orthogonal => serializer.serialize_str("orthogonal"),
            Self::Scaled(factor) => serializer.collect_str(&format_args!("scaled_{factor}")),
        }
    }
}

/// A random matrix with orthonormal rows, or columns where these are fewer.
///
/// Gram and Schmidt's procedure on normal vectors, each step twice for the sake
/// of rounding: evenly distributed, as the QR decomposition with a positive
/// diagonal is.
fn orthogonal(rows: usize, values: &mut [f32], normal: &mut impl FnMut() -> f64) {
    let columns = values.len() / rows;
    let (count, length) = (rows.min(columns), rows.max(columns));
    let mut vectors: Vec<Vec<f64>> = Vec::with_capacity(count);
    while vectors.len() < count {
        let mut vector: Vec<f64> = (0..length).map(|_| normal()).collect();
        for _ in 0..2 {
            for other in &vectors {
                let along: f64 = vector.iter().zip(other).map(|(a, b)| a * b).sum();
                vector.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
            let norm = vector.iter().map(|a| a * a).sum::<f64>().sqrt();
            vector.iter_mut().for_each(|a| *a /= norm);
        }
        vectors.push(vector);
    }
    for (index, value) in values.iter_mut().enumerate() {
        let (row, column) = (index / columns, index % columns);
        let entry = if rows <= columns { vectors[row][column] } else { vectors[column][row] };
        *value = entry as f32;
    }
}

/// What is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InitialisationConfig {
    /// Networks of each kind. Default 64.
    pub networks: usize,
    /// Updates in a row, each from the last result. Default 5.
    pub updates: usize,
    /// The metric asked for. Default `None`: the best value the optimizer was trained on.
    pub prompt: Option<f64>,
    /// The user's seed, below 2^31. Default 0.
    pub seed: u64,
}

impl Default for InitialisationConfig {
    fn default() -> Self {
        Self { networks: 64, updates: 5, prompt: None, seed: 0 }
    }
}

impl InitialisationConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), EvalError> {
        EvalError::check(self.networks > 0, "networks", self.networks, "at least 1")?;
        EvalError::check(self.updates > 0, "updates", self.updates, "at least 1")?;
        EvalError::check_prompt(self.prompt)
    }
}

/// What updates make of one kind of initialisation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recovery {
    /// The kind.
    pub initialisation: Initialisation,
    /// Before the first and after every update.
    pub after: Vec<Scores>,
    /// Of each network the state, before or after an update, whose metric was the best:
    /// what is left when updates that do not help are undone.
    pub kept: Scores,
    /// Updates until the mean test metric is that of one update of the kind seen
    /// in training, `None` if it never is within those that were made.
    pub updates_to_match: Option<usize>,
}

/// What updates make of every kind of initialisation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Initialisations {
    /// Name of the task.
    pub task: String,
    /// Number of networks of each kind.
    pub networks: usize,
    /// The metric that the optimizer is conditioned on.
    pub metric: Metric,
    /// What was asked for at every update.
    pub prompt: f64,
    /// The kinds, the one seen in training first.
    pub kinds: Vec<Recovery>,
    /// The settings.
    pub config: InitialisationConfig,
}

impl Initialisations {
    /// The metric that is shown: that of the condition, on the test split.
    pub fn test_metric(&self) -> Metric {
        Metric { split: Split::Test, ..self.metric }
    }
}

/// Updates networks of every kind of initialisation several times in a row.
///
/// # Errors
/// If a setting is unusable, the task or the optimizer fails, or `monitor` ends it.
///
/// # Source
/// Peebles et al. 2022, arXiv:2209.12892, figure 6.
pub fn initialisations(
    task: &dyn Task,
    subject: &mut Subject,
    config: &InitialisationConfig,
    monitor: &dyn Monitor,
) -> Result<Initialisations, EvalError> {
    config.validate()?;
    subject.check(task)?;
    let prompt = config.prompt.unwrap_or(subject.best_prompt);
    let metric = subject.metric;
    let test = Metric { split: Split::Test, ..metric };
    let seeds = Networks::fresh(task, Seeds::evaluation(config.seed)?, config.networks)?.seeds;
    let target = vec![prompt; config.networks];
    monitor.stage("updates", Initialisation::ALL.len() * config.updates);
    let mut kinds: Vec<Recovery> = Vec::new();
    for initialisation in Initialisation::ALL {
        let mut parameters = Vec::new();
        for &seed in &seeds {
            parameters.extend(initialisation.sample(task, seed)?);
        }
        let mut after = vec![Scores::of(task, &parameters)?];
        let mut current = condition(task, metric, &parameters)?;
        let mut kept = (parameters.clone(), current.clone());
        for _ in 0..config.updates {
            if monitor.cancelled() {
                return Err(EvalError::Cancelled);
            }
            let request = Request { start: &parameters, current: &current, target: &target };
            parameters = subject.sample(request)?;
            after.push(Scores::of(task, &parameters)?);
            current = condition(task, metric, &parameters)?;
            keep_better(metric.kind.direction(), &mut kept, (&parameters, &current));
            monitor.advance();
        }
        let seen = kinds.first().map_or(&after, |own| &own.after)[1].get(test).mean;
        let direction = test.kind.direction();
        let matched = |scores: &Scores| !direction.is_better(seen, scores.get(test).mean);
        // A mean that is not a number is no match.
        let updates_to_match =
            after.iter().position(|s| s.get(test).mean.is_finite() && matched(s));
        let kept = Scores::of(task, &kept.0)?;
        kinds.push(Recovery { initialisation, after, kept, updates_to_match });
    }
    Ok(Initialisations {
        task: task.name().to_owned(),
        networks: config.networks,
        metric,
        prompt,
        kinds,
        config: config.clone(),
    })
}

/// Replaces networks, `[N, P]`, by those with a better metric, `[N]`.
fn keep_better(
    direction: Direction,
    kept: &mut (Vec<f32>, Vec<f64>),
    (networks, values): (&[f32], &[f64]),
) {
    let size = networks.len() / values.len();
    let rows = kept.0.chunks_exact_mut(size).zip(&mut kept.1);
    for ((row, best), (network, &value)) in rows.zip(networks.chunks_exact(size).zip(values)) {
        if direction.is_better(value, *best) || best.is_nan() {
            row.copy_from_slice(network);
            *best = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LayoutBuilder;
    use crate::tasks::Digits;

    /// A convolution, a normalisation and a linear layer.
    fn layout() -> Layout {
        let mut builder = LayoutBuilder::new();
        builder.tensor("conv.weight", &[32, 8, 3, 3], Role::Weight);
        builder.tensor("conv.bias", &[32], Role::Bias);
        builder.tensor("norm.gamma", &[32], Role::Scale);
        builder.tensor("norm.beta", &[32], Role::Shift);
        builder.tensor("linear.weight", &[200, 32], Role::Weight);
        builder.tensor("linear.bias", &[200], Role::Bias);
        builder.finish().unwrap()
    }

    fn drawn(initialisation: Initialisation, seed: u64) -> Vec<f32> {
        let layout = layout();
        let mut parameters = vec![0.25; layout.num_parameters()];
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        initialisation.draw(&layout, &mut parameters, &mut rng);
        parameters
    }

    fn tensor<'a>(parameters: &'a [f32], name: &str) -> &'a [f32] {
        let layout = layout();
        let tensor = layout.tensors().iter().find(|tensor| tensor.name == name).unwrap();
        &parameters[tensor.range()]
    }

    fn variance(values: &[f32]) -> f64 {
        values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64
    }

    #[test]
    fn variances_follow_the_fans() {
        let kaiming = drawn(Initialisation::KaimingNormal, 1);
        let xavier = drawn(Initialisation::XavierUniform, 1);
        for (name, fan_in, fan_out) in
            [("conv.weight", 72.0, 288.0), ("linear.weight", 32.0, 200.0)]
        {
            let ratio = variance(tensor(&kaiming, name)) / (2.0 / fan_in);
            assert!((ratio - 1.0).abs() < 0.08, "{name} {ratio}");
            let ratio = variance(tensor(&xavier, name)) / (2.0 / (fan_in + fan_out));
            assert!((ratio - 1.0).abs() < 0.08, "{name} {ratio}");
            let largest = tensor(&xavier, name).iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let bound = (6.0f64 / (fan_in + fan_out)).sqrt();
            assert!(f64::from(largest) <= bound && f64::from(largest) > 0.99 * bound);
        }
    }

    #[test]
    fn biases_are_zero_and_normalisations_stay() {
        for initialisation in [
            Initialisation::KaimingNormal,
            Initialisation::XavierUniform,
            Initialisation::Orthogonal,
        ] {
            let parameters = drawn(initialisation, 2);
            for (name, value) in [
                ("conv.bias", 0.0),
                ("linear.bias", 0.0),
                ("norm.gamma", 0.25),
                ("norm.beta", 0.25),
            ] {
                assert!(tensor(&parameters, name).iter().all(|&p| p == value), "{name}");
            }
        }
        assert!(drawn(Initialisation::Scaled(2.0), 2).iter().all(|&p| p == 0.5));
        assert!(drawn(Initialisation::Own, 2).iter().all(|&p| p == 0.25));
    }

    #[test]
    fn orthogonal_rows_or_columns_are_orthonormal() {
        let parameters = drawn(Initialisation::Orthogonal, 3);
        // 32 rows of 72, and 200 rows of 32: there the columns are orthonormal.
        let wide = tensor(&parameters, "conv.weight");
        let tall = tensor(&parameters, "linear.weight");
        for i in 0..32 {
            for j in 0..32 {
                let expected = f64::from(i == j);
                let rows = (0..72).map(|k| f64::from(wide[i * 72 + k] * wide[j * 72 + k]));
                let columns = (0..200).map(|k| f64::from(tall[k * 32 + i] * tall[k * 32 + j]));
                assert!((rows.sum::<f64>() - expected).abs() < 1e-5, "row {i} {j}");
                assert!((columns.sum::<f64>() - expected).abs() < 1e-5, "column {i} {j}");
            }
        }
    }

    #[test]
    fn seeds_decide_and_differ() {
        for initialisation in Initialisation::ALL.into_iter().skip(1).take(3) {
            assert_eq!(drawn(initialisation, 4), drawn(initialisation, 4));
            assert_ne!(drawn(initialisation, 4), drawn(initialisation, 5));
        }
        let digits = Digits::load().unwrap();
        let own = Initialisation::Own.sample(&digits, 9).unwrap();
        assert_eq!(own, digits.initial(9).unwrap());
        let half = Initialisation::Scaled(0.5).sample(&digits, 9).unwrap();
        assert!(own.iter().zip(&half).all(|(own, half)| *half == 0.5 * own));
    }

    #[test]
    fn what_is_kept_is_the_best_of_each_network() {
        let mut kept = (vec![1.0, 1.0, 2.0, 2.0], vec![0.5, f64::NAN]);
        for (networks, values) in [([3.0, 3.0, 4.0, 4.0], [0.4, 0.7]), ([5.0; 4], [0.6, 0.8])] {
            keep_better(Direction::Minimize, &mut kept, (&networks, &values));
        }
        assert_eq!(kept, (vec![3.0, 3.0, 4.0, 4.0], vec![0.4, 0.7]));
        keep_better(Direction::Maximize, &mut kept, (&[6.0; 4], &[0.3, f64::NAN]));
        assert_eq!(kept.1, [0.4, 0.7]);
    }

    #[test]
    fn recovery_is_counted_from_the_kind_that_was_seen() {
        // The stand-in halves the way to a network that knows nothing.
        let digits = Digits::load().unwrap();
        let mut sample = |request: Request<'_>| -> Result<Vec<f32>, EvalError> {
            Ok(request.start.iter().map(|p| 0.5 * p).collect())
        };
        let mut subject = Subject {
            name: "shrinks",
            sample: &mut sample,
            metric: Metric::VALIDATION_LOSS,
            best_prompt: 0.1,
        };
        let config = InitialisationConfig { networks: 2, updates: 3, ..Default::default() };
        let result = initialisations(&digits, &mut subject, &config, &()).unwrap();
        assert_eq!(result.kinds.len(), 6);
        assert!(result.kinds.iter().all(|kind| kind.after.len() == 4));
        // Own is matched by one update, half of it by none, its double by two.
        let matches = |k: usize| result.kinds[k].updates_to_match;
        assert_eq!((matches(0), matches(4), matches(5)), (Some(1), Some(0), Some(2)));
        for kind in &result.kinds {
            let loss = |scores: &Scores| scores.get(Metric::VALIDATION_LOSS).mean;
            assert!(kind.after.iter().all(|scores| loss(&kind.kept) <= loss(scores)));
        }
        let json = serde_json::to_value(&result).unwrap();
        assert_eq!(json["kinds"][4]["initialisation"], "scaled_0.5");

        let none = InitialisationConfig { updates: 0, ..config };
        assert!(initialisations(&digits, &mut subject, &none, &()).is_err());
    }
}
