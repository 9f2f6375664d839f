//! Cart-pole: keep a pole upright by pushing its cart, with the return as metric.
//!
//! An episode gives a reward of 1 for every step until the pole leans by more
//! than 12 degrees or the cart leaves its track, and ends after 500 steps: returns
//! are 1 to 500. The environment is gym-rs's, with Gym's physics (see
//! [`Physics`]).

mod environment;
mod policy_gradient;

use std::ops::ControlFlow;

use dfdx::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use environment::{Physics, ACTIONS, MOST_STEPS, OBSERVATIONS};

use self::environment::{Cart, Outcome};
use self::policy_gradient::Trainer;
use super::stack::Stack;
use super::training::{dfdx_error, divergence, Algorithm, Schedule};
use super::{
    Course, Moments, RecordingConfig, StepUnit, Task, TaskError, TrainingConfig, CARTPOLE as NAME,
};
use crate::layout::Layout;
use crate::metric::{MetricKind, Split};
use crate::network::{flatten, unflatten, Built, Network};
use crate::nn::SeLU;

/// Episodes that a return is the mean of.
pub const EPISODES: usize = 20;
/// Return from which on a policy counts as good.
const GOOD: f64 = 450.0;
/// Most environments that a policy is trained in at once.
const MOST_ENVIRONMENTS: usize = 1 << 14;
/// Observations that answers of policies are compared on.
const PROBES: usize = 1000;
/// Seeds of the episodes of each split, and of the draws of actions in them.
const EPISODE_SEEDS: [u64; 3] = [1 << 40, 2 << 40, 3 << 40];

/// The policy: 4 observations, two hidden layers of 32 units, 2 actions.
///
/// Outputs are logits of the actions. Observations are divided by 2.4 m, 2 m/s,
/// 12 degrees and 2 rad/s.
#[lopt::network]
#[derive(Clone, Debug)]
pub struct CartPolePolicy {
    /// Observations to the first hidden layer.
    pub first: Linear<OBSERVATIONS, 32>,
    /// After it.
    pub first_activation: SeLU,
    /// To the second hidden layer.
    pub second: Linear<32, 32>,
    /// After it.
    pub second_activation: SeLU,
    /// To the actions.
    pub output: Linear<32, ACTIONS>,
}

type Model = Built<CartPolePolicy, f32, Cpu>;

/// The task `cartpole`.
///
/// A return is the mean of 20 episodes with actions drawn from the policy. Starts
/// and draws of an episode follow from the split and the number of the episode, so
/// that all policies meet the same luck: measured again, a return is the same.
///
/// # Examples
/// ```
/// use lopt::metric::Split;
/// use lopt::tasks::{CartPole, Task};
///
/// let task = CartPole::new()?;
/// let returns = task.measure(&task.initial(1)?, Split::Validation)?;
/// assert!((8.0..100.0).contains(&returns[0]));
/// # Ok::<(), lopt::Error>(())
/// ```
///
/// # Source
/// The network: Peebles et al. 2022, arXiv:2209.12892, appendix.
#[derive(Clone, Debug)]
pub struct CartPole {
    physics: Physics,
    layout: Layout,
    stack: Stack,
}

impl CartPole {
    /// With the physics of Gym.
    ///
    /// # Errors
    /// If the layout of the policy is unusable.
    pub fn new() -> Result<Self, TaskError> {
        Self::with_physics(Physics::default())
    }

    /// With other physics.
    ///
    /// # Errors
    /// If the layout of the policy is unusable.
    pub fn with_physics(physics: Physics) -> Result<Self, TaskError> {
        let layout = CartPolePolicy::layout()?;
        // The policy has no layers but those that a stack knows.
        let stack = Stack::of(&layout).ok_or_else(|| TaskError::Setting {
            field: "policy",
            found: layout.layers().join(", "),
            expected: "linear layers with ReLU or SeLU".to_owned(),
        })?;
        Ok(Self { physics, layout, stack })
    }

    /// The return of each episode of a split.
    ///
    /// # Errors
    /// If `parameters` has the wrong length.
    pub fn returns(&self, parameters: &[f32], split: Split) -> Result<Vec<f64>, TaskError> {
        self.layout.check_length(parameters.len())?;
        let base = EPISODE_SEEDS[split as usize];
        let mut episodes: Vec<(Cart, ChaCha8Rng)> = (0..EPISODES as u64)
            .map(|n| (Cart::new(self.physics, base + n), ChaCha8Rng::seed_from_u64(base + n)))
            .collect();
        let mut returns = Vec::with_capacity(EPISODES);
        // In step: one product for all poles that still stand.
        while !episodes.is_empty() {
            let rows: Vec<f32> = episodes.iter().flat_map(|(cart, _)| cart.features()).collect();
            let logits = self.stack.logits(parameters, &rows, episodes.len());
            let mut logits = logits.chunks_exact(ACTIONS);
            episodes.retain_mut(|(cart, rng)| {
                let row = logits.next().map_or([0.0; 2], |row| [row[0], row[1]]);
                let ended = cart.push(draw(row, rng)) != Outcome::Goes;
                if ended {
                    returns.push(cart.steps() as f64);
                }
                !ended
            });
        }
        Ok(returns)
    }
}

/// Probabilities of the actions.
fn probabilities([left, right]: [f32; ACTIONS]) -> [f32; ACTIONS] {
    let odds = (right - left).exp();
    let right = if odds.is_infinite() { 1.0 } else { odds / (1.0 + odds) };
    [1.0 - right, right]
}

/// An action.
fn draw(logits: [f32; ACTIONS], rng: &mut impl Rng) -> usize {
    usize::from(rng.gen::<f32>() < probabilities(logits)[1])
}

/// What policies see in `count` states all over the track, many of them near its
/// middle and upright, where poles spend most of their time. `[count, OBSERVATIONS]`
fn probes(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .flat_map(|_| {
            let reach: f32 = rng.gen();
            std::array::from_fn::<f32, OBSERVATIONS, _>(|_| reach * rng.gen_range(-1.0..1.0))
        })
        .collect()
}

impl Task for CartPole {
    fn name(&self) -> &'static str {
        NAME
    }

    fn summary(&self) -> String {
        let physics = match self.physics {
            Physics::Gym => "Gym's physics",
            Physics::GymRs => "gym-rs's physics",
        };
        format!(
            "cart-pole, {physics}, returns of at most {MOST_STEPS}, means of {EPISODES} episodes; \
             policy {OBSERVATIONS}-32-32-{ACTIONS}, SELU, actions drawn"
        )
    }

    fn layout(&self) -> Result<Layout, TaskError> {
        Ok(self.layout.clone())
    }

    fn kinds(&self) -> &'static [MetricKind] {
        &[MetricKind::Return]
    }

    fn size(&self, _: Split) -> usize {
        EPISODES
    }

    fn recorded_splits(&self) -> &'static [Split] {
        &[Split::Validation]
    }

    fn good(&self) -> Option<f64> {
        Some(GOOD)
    }

    fn algorithms(&self) -> &'static [Algorithm] {
        &[Algorithm::Adam]
    }

    fn title(&self, _: Algorithm) -> &'static str {
        "PPO"
    }

    fn baseline(&self) -> TrainingConfig {
        self.recording().training
    }

    fn unit(&self, config: &TrainingConfig) -> StepUnit {
        StepUnit {
            name: "environment steps",
            per_step: config.batch_size * policy_gradient::HORIZON,
        }
    }

    fn image(&self) -> Option<[usize; 3]> {
        None
    }

    fn initial(&self, seed: u64) -> Result<Vec<f32>, TaskError> {
        let device = Cpu::seed_from_u64(seed);
        let model: Model = device.try_build_module::<CartPolePolicy, f32>().map_err(dfdx_error)?;
        Ok(flatten(&model)?)
    }

    fn measure(&self, parameters: &[f32], split: Split) -> Result<Vec<f64>, TaskError> {
        let returns = self.returns(parameters, split)?;
        Ok(vec![returns.iter().sum::<f64>() / returns.len() as f64])
    }

    /// The likelier action in each of 1000 states.
    fn predictions(&self, parameters: &[f32], split: Split) -> Result<Vec<usize>, TaskError> {
        self.layout.check_length(parameters.len())?;
        let rows = probes(EPISODE_SEEDS[split as usize], PROBES);
        let logits = self.stack.logits(parameters, &rows, PROBES);
        Ok(logits.chunks_exact(ACTIONS).map(|row| usize::from(row[1] > row[0])).collect())
    }

    fn divergence(
        &self,
        seed: u64,
        queries: usize,
        predicted: &[f32],
        target: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64, TaskError> {
        for vector in [predicted, target, gradient] {
            self.layout.check_length(vector.len())?;
        }
        let device = Cpu::default();
        let input = device
            .try_tensor_from_vec(probes(seed, queries), (queries, Const::<OBSERVATIONS>))
            .map_err(dfdx_error)?;
        let mut model: Model =
            device.try_build_module::<CartPolePolicy, f32>().map_err(dfdx_error)?;
        divergence(&mut model, &input, predicted, target, gradient)
    }

    fn course(&self, parameters: &[f32]) -> Result<Option<Course>, TaskError> {
        self.layout.check_length(parameters.len())?;
        let seed = EPISODE_SEEDS[Split::Test as usize];
        let mut cart = Cart::new(self.physics, seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let seen = |cart: &Cart| [cart.state()[0], cart.state()[2]];
        let mut course = Course(vec![seen(&cart)]);
        loop {
            let logits = self.stack.logits(parameters, &cart.features(), 1);
            let outcome = cart.push(draw([logits[0], logits[1]], &mut rng));
            course.0.push(seen(&cart));
            if outcome != Outcome::Goes {
                return Ok(Some(course));
            }
        }
    }

    fn recording(&self) -> RecordingConfig {
        RecordingConfig {
            training: TrainingConfig {
                algorithm: Algorithm::Adam,
                learning_rate: 5e-3,
                schedule: Schedule::Cosine,
                weight_decay: 0.0,
                batch_size: 48,
                steps: 60,
            },
            runs: 1500,
            saves: 20,
            moments: Moments::Spaced(1.3),
            seed: 0,
        }
    }

    fn train(
        &self,
        start: &[f32],
        seed: u64,
        config: &TrainingConfig,
        at: &[usize],
        observe: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), TaskError> {
        config.validate()?;
        self.layout.check_length(start.len())?;
        let setting = |field, found: String, expected: &str| {
            Err(TaskError::Setting { field, found, expected: expected.to_owned() })
        };
        if config.algorithm != Algorithm::Adam {
            let found = config.algorithm.title().to_owned();
            return setting("algorithm", found, "Adam, which policies are trained by");
        }
        if config.batch_size > MOST_ENVIRONMENTS {
            let expected = format!("at most {MOST_ENVIRONMENTS} environments");
            return setting("batch_size", config.batch_size.to_string(), &expected);
        }
        let device = Cpu::seed_from_u64(seed);
        device.try_enable_cache().map_err(dfdx_error)?;
        let mut policy: Model =
            device.try_build_module::<CartPolePolicy, f32>().map_err(dfdx_error)?;
        unflatten(&mut policy, start)?;
        let mut trainer =
            Trainer::new(&device, &policy, &self.stack, (self.physics, seed), config)?;
        let result = trainer.finish(&mut policy, at, &mut |step, policy: &Model| {
            let parameters = flatten(policy)?;
            Ok(observe(step, &parameters))
        });
        device.try_disable_cache().map_err(dfdx_error)?;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::by_name;

    fn task() -> CartPole {
        CartPole::new().unwrap()
    }

    #[test]
    fn the_policy_has_the_parameters_of_its_layers() {
        let layout = task().layout().unwrap();
        assert_eq!(layout.num_parameters(), 4 * 32 + 32 + 32 * 32 + 32 + 32 * 2 + 2);
        assert_eq!(layout.groups().len(), 2);
    }

    #[test]
    fn policies_answer_as_dfdx_does() {
        let task = task();
        let model = Cpu::seed_from_u64(4).build_module::<CartPolePolicy, f32>();
        let rows = probes(9, 50);
        let input = Cpu::default().tensor_from_vec(rows.clone(), (50, Const::<OBSERVATIONS>));
        let expected = model.forward(input).as_vec();
        let found = task.stack.logits(&flatten(&model).unwrap(), &rows, 50);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn returns_are_the_same_when_they_are_measured_again() {
        let task = task();
        let policy = task.initial(2).unwrap();
        let returns = task.returns(&policy, Split::Validation).unwrap();
        assert_eq!(returns.len(), EPISODES);
        assert_eq!(returns, task.returns(&policy, Split::Validation).unwrap());
        assert_ne!(returns, task.returns(&policy, Split::Test).unwrap());
        assert!(returns.iter().all(|r| (8.0..200.0).contains(r)), "{returns:?}");
        assert!(task.returns(&policy[1..], Split::Test).is_err());
        let course = task.course(&policy).unwrap().unwrap();
        assert!(course.0.len() > 8 && course.0.len() < 200);
    }

    /// A policy that pushes against the fall, written by hand: it needs no training.
    #[test]
    fn a_good_policy_reaches_the_cap() {
        let task = task();
        let mut parameters = vec![0.0; task.layout.num_parameters()];
        // One unit of the first layer sees a mixture, the next passes it on; both stay
        // above zero, where SELU is linear.
        let mixture = [0.4, 0.6, 1.0, 2.0];
        parameters[..4].copy_from_slice(&mixture);
        let [bias, second, second_bias, output] = [128, 160, 160 + 1024, 160 + 1024 + 32];
        parameters[bias] = 10.0;
        parameters[second] = 1.0;
        parameters[second_bias] = 10.0;
        parameters[output + 32] = 100.0;
        let scale = 1.050_701f32;
        parameters[output + 65] = -100.0 * scale * (10.0 + scale * 10.0);
        let returns = task.returns(&parameters, Split::Test).unwrap();
        assert_eq!(returns, vec![500.0; EPISODES]);
        let course = task.course(&parameters).unwrap().unwrap();
        assert_eq!(course.0.len(), 501);
        assert_eq!(probabilities([0.0, 1000.0]), [0.0, 1.0]);
    }

    #[test]
    fn training_is_decided_by_the_seed_and_raises_the_return() {
        let task = task();
        let start = task.initial(5).unwrap();
        let run = |seed| {
            let mut seen = Vec::new();
            let config = TrainingConfig { steps: 12, ..task.recording().training };
            task.train(&start, seed, &config, &[0, 12], &mut |_, parameters| {
                seen.push(parameters.to_vec());
                ControlFlow::Continue(())
            })
            .unwrap();
            seen
        };
        let seen = run(1);
        assert_eq!(seen[0], start);
        assert_eq!(seen, run(1), "same seed, same bits");
        assert_ne!(seen, run(2));
        let value = |p: &[f32]| task.measure(p, Split::Test).unwrap()[0];
        assert!(value(&seen[1]) > 2.0 * value(&start), "{} {}", value(&seen[1]), value(&start));
    }

    #[test]
    fn the_divergence_has_the_gradient_of_its_differences() {
        let task = task();
        let (target, policy) = (task.initial(0).unwrap(), task.initial(1).unwrap());
        let mut gradient = vec![0.0; policy.len()];
        assert!(task.divergence(3, 64, &target, &target, &mut gradient).unwrap().abs() < 1e-6);
        let mut divergence = |policy: &[f32]| {
            let value = task.divergence(3, 64, policy, &target, &mut gradient).unwrap();
            (value, gradient.clone())
        };
        let (value, slope) = divergence(&policy);
        assert!(value > 0.0);
        let size = slope.iter().map(|g| g * g).sum::<f32>().sqrt();
        let mut at = |step: f32| {
            let moved: Vec<f32> =
                policy.iter().zip(&slope).map(|(p, g)| p + step * g / size).collect();
            divergence(&moved).0
        };
        let rise = (at(0.01) - at(-0.01)) / f64::from(0.02 * size);
        assert!((rise - 1.0).abs() < 0.01, "{rise}");
    }

    #[test]
    fn other_optimizers_and_folders_of_data_are_refused() {
        let task = task();
        let config = TrainingConfig { algorithm: Algorithm::SGD, ..task.recording().training };
        let start = task.initial(0).unwrap();
        let train = task.train(&start, 0, &config, &[0], &mut |_, _| ControlFlow::Break(()));
        assert!(train.unwrap_err().to_string().contains("expected Adam"));
        let config = TrainingConfig { batch_size: usize::MAX, ..task.recording().training };
        let train = task.train(&start, 0, &config, &[0], &mut |_, _| ControlFlow::Break(()));
        assert!(train.unwrap_err().to_string().contains("at most 16384 environments"));
        assert!(by_name(NAME, Some(std::path::Path::new("/"))).is_err());
        assert_eq!(by_name(NAME, None).unwrap().name(), "cartpole");
    }
}
