//! Policies of control problems, with the return of episodes as metric.
//!
//! An [`Environment`] describes a problem, an [`Episode`] is one in progress; both
//! wrap an environment of gym-rs. [`Control`] makes a task of them: policies that draw
//! their actions, proximal policy optimization, and returns as means of 20 episodes.
//!
//! Shape letters: `N` rows, `O` values of an observation, `A` actions.

pub mod cart_pole;
pub mod mountain_car;
mod policy_gradient;

use std::fmt::Debug;
use std::ops::ControlFlow;

use dfdx::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use self::policy_gradient::PolicyGradient;

use self::policy_gradient::Trainer;
use super::images::answer;
use super::stack::Stack;
use super::training::{dfdx_error, divergence, Algorithm, Schedule};
use super::{Course, Moments, RecordingConfig, StepUnit, Task, TaskError, TrainingConfig};
use crate::layout::Layout;
use crate::metric::{MetricKind, Split};
use crate::network::{flatten, unflatten, Network};

/// Episodes that a return is the mean of.
pub const EPISODES: usize = 20;
/// Most environments that a policy is trained in at once.
const MOST_ENVIRONMENTS: usize = 1 << 14;
/// Observations that answers of policies are compared on.
const PROBES: usize = 1000;
/// Seeds of the episodes of each split, and of the draws of actions in them.
const EPISODE_SEEDS: [u64; 3] = [1 << 40, 2 << 40, 3 << 40];

/// How an episode goes on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is another step.
    Goes,
    /// It ended by the rules of the environment.
    Ended,
    /// It reached the most steps that an episode may have.
    Capped,
}

/// An episode in progress.
pub trait Episode<const O: usize> {
    /// Begins the episode of this seed.
    fn reset(&mut self, seed: u64);

    /// Takes an action for one step. Never [`Outcome::Capped`]: steps are counted by the
    /// task.
    fn step(&mut self, action: usize) -> Outcome;

    /// What is observed, in the environment's units.
    fn state(&self) -> [f64; O];

    /// What a policy sees: [`state`](Self::state), of the order of 1.
    fn features(&self) -> [f32; O];

    /// How promising the present state is, in rewards, for policies in training; see
    /// [`PolicyGradient`].
    fn potential(&self) -> f32 {
        0.0
    }
}

/// A control problem, and the policy that is trained on it.
pub trait Environment<const O: usize, const A: usize>:
    Clone + Debug + Send + Sync + 'static
{
    /// The policy: from features to a logit of each action.
    type Policy: Network + BuildOnDevice<Cpu, f32, Built = Self::Model>;
    /// What dfdx builds from it.
    type Model: TensorCollection<f32, Cpu>
        + ModuleMut<
            Rows<O, OwnedTape<f32, Cpu>>,
            Output = Rows<A, OwnedTape<f32, Cpu>>,
            Error = CpuError,
        >;
    /// An episode of it.
    type Episode: Episode<O>;

    /// Name of the task.
    const NAME: &'static str;
    /// Steps after which an episode ends.
    const MOST_STEPS: usize;
    /// Reward of every step.
    const REWARD: f32;
    /// Return from which on a policy counts as good.
    const GOOD: f64;
    /// How its policies are trained.
    const TRAINING: PolicyGradient;

    /// The problem, for people.
    fn summary(&self) -> String;

    /// Begins the episode of this seed.
    fn begin(&self, seed: u64) -> Self::Episode;

    /// States of an episode, as they are shown.
    fn course(states: Vec<[f64; O]>) -> Course;
}

/// A batch of `N` rows.
type Rows<const C: usize, T = NoneTape> = Tensor<(usize, Const<C>), f32, Cpu, T>;

/// The task of training policies for an environment.
///
/// A return is the mean of 20 episodes with actions drawn from the policy. Starts
/// and draws of an episode follow from the split and the number of the episode, so
/// that all policies meet the same luck: measured again, a return is the same.
#[derive(Clone, Debug)]
pub struct Control<E, const O: usize, const A: usize> {
    environment: E,
    layout: Layout,
    stack: Stack,
}

/// An episode whose steps are counted.
#[derive(Debug)]
struct Counted<P> {
    episode: P,
    steps: usize,
}

impl<P> Counted<P> {
    fn step<const O: usize>(&mut self, action: usize, most: usize) -> Outcome
    where
        P: Episode<O>,
    {
        self.steps += 1;
        match self.episode.step(action) {
            Outcome::Goes if self.steps == most => Outcome::Capped,
            outcome => outcome,
        }
    }
}

impl<E: Environment<O, A>, const O: usize, const A: usize> Control<E, O, A> {
    /// The task of an environment.
    ///
    /// # Errors
    /// If the layout of the policy is unusable, or it has other layers than linear
    /// ones, ReLU and SeLU.
    pub fn of(environment: E) -> Result<Self, TaskError> {
        let layout = E::Policy::layout()?;
        let stack = Stack::of(&layout).ok_or_else(|| TaskError::Setting {
            field: "policy",
            found: layout.layers().join(", "),
            expected: "linear layers with ReLU or SeLU".to_owned(),
        })?;
        Ok(Self { environment, layout, stack })
    }

    /// The return of each episode of a split, in the order in which they end.
    ///
    /// # Errors
    /// If `parameters` has the wrong length.
    pub fn returns(&self, parameters: &[f32], split: Split) -> Result<Vec<f64>, TaskError> {
        self.layout.check_length(parameters.len())?;
        let base = EPISODE_SEEDS[split as usize];
        let mut episodes: Vec<_> =
            (0..EPISODES as u64).map(|n| (self.begin(base + n), draws(base + n))).collect();
        let mut returns = Vec::with_capacity(EPISODES);
        // In step: one product for all that still go on.
        while !episodes.is_empty() {
            let rows: Vec<f32> =
                episodes.iter().flat_map(|(running, _)| running.episode.features()).collect();
            let logits = self.stack.logits(parameters, &rows, episodes.len());
            let mut logits = logits.chunks_exact(A);
            episodes.retain_mut(|(running, rng)| {
                let row = logits.next().map_or([0.0; A], row);
                let goes = running.step(draw(row, rng), E::MOST_STEPS) == Outcome::Goes;
                if !goes {
                    returns.push(f64::from(E::REWARD) * running.steps as f64);
                }
                goes
            });
        }
        Ok(returns)
    }

    fn begin(&self, seed: u64) -> Counted<E::Episode> {
        Counted { episode: self.environment.begin(seed), steps: 0 }
    }
}

/// The draws of actions in the episode of this seed.
fn draws(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// One row of a product.
fn row<const A: usize>(values: &[f32]) -> [f32; A] {
    std::array::from_fn(|i| values[i])
}

/// Probabilities of the actions.
fn probabilities<const A: usize>(logits: [f32; A]) -> [f32; A] {
    // Beyond this, the others have no probability that an f32 can tell from 0.
    let odds = logits.map(|logit| (logit - logits[0]).min(80.0).exp());
    let sum: f32 = odds.iter().sum();
    let mut shares = odds.map(|odds| odds / sum);
    shares[0] = (1.0 - shares[1..].iter().sum::<f32>()).max(0.0);
    shares
}

/// An action.
fn draw<const A: usize>(logits: [f32; A], rng: &mut impl Rng) -> usize {
    pick(&probabilities(logits), rng)
}

/// The number of a share, drawn by them; the last lies at the bottom.
fn pick(shares: &[f32], rng: &mut impl Rng) -> usize {
    let mut left: f32 = rng.gen();
    for (action, share) in shares.iter().enumerate().skip(1).rev() {
        if left < *share {
            return action;
        }
        left -= share;
    }
    0
}

/// What policies see in `count` states all over the range of what they can meet, many
/// of them near its middle. `[count, O]`
fn probes<const O: usize>(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .flat_map(|_| {
            let reach: f32 = rng.gen();
            std::array::from_fn::<f32, O, _>(|_| reach * rng.gen_range(-1.0..1.0))
        })
        .collect()
}

impl<E: Environment<O, A>, const O: usize, const A: usize> Task for Control<E, O, A> {
    fn name(&self) -> &'static str {
        E::NAME
    }

    fn summary(&self) -> String {
        let widths = self.stack.widths().iter().map(usize::to_string).collect::<Vec<_>>();
        format!(
            "{}, means of {EPISODES} episodes; policy {}, SELU, actions drawn",
            self.environment.summary(),
            widths.join("-")
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
        Some(E::GOOD)
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
        StepUnit { name: "environment steps", per_step: config.batch_size * E::TRAINING.horizon }
    }

    fn image(&self) -> Option<[usize; 3]> {
        None
    }

    fn initial(&self, seed: u64) -> Result<Vec<f32>, TaskError> {
        let device = Cpu::seed_from_u64(seed);
        let model = device.try_build_module::<E::Policy, f32>().map_err(dfdx_error)?;
        Ok(flatten(&model)?)
    }

    fn measure(&self, parameters: &[f32], split: Split) -> Result<Vec<f64>, TaskError> {
        let returns = self.returns(parameters, split)?;
        Ok(vec![returns.iter().sum::<f64>() / returns.len() as f64])
    }

    /// The likeliest action in each of 1000 states.
    fn predictions(&self, parameters: &[f32], split: Split) -> Result<Vec<usize>, TaskError> {
        self.layout.check_length(parameters.len())?;
        let rows = probes::<O>(EPISODE_SEEDS[split as usize], PROBES);
        let logits = self.stack.logits(parameters, &rows, PROBES);
        Ok(logits.chunks_exact(A).map(answer).collect())
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
        let input: Rows<O> = device
            .try_tensor_from_vec(probes::<O>(seed, queries), (queries, Const))
            .map_err(dfdx_error)?;
        let mut model = device.try_build_module::<E::Policy, f32>().map_err(dfdx_error)?;
        divergence(&mut model, &input, predicted, target, gradient)
    }

    fn course(&self, parameters: &[f32]) -> Result<Option<Course>, TaskError> {
        self.layout.check_length(parameters.len())?;
        let seed = EPISODE_SEEDS[Split::Test as usize];
        let (mut running, mut rng) = (self.begin(seed), draws(seed));
        let mut states = vec![running.episode.state()];
        loop {
            let logits = self.stack.logits(parameters, &running.episode.features(), 1);
            let outcome = running.step(draw::<A>(row(&logits), &mut rng), E::MOST_STEPS);
            states.push(running.episode.state());
            if outcome != Outcome::Goes {
                return Ok(Some(E::course(states)));
            }
        }
    }

    fn recording(&self) -> RecordingConfig {
        let PolicyGradient { environments, updates, learning_rate, .. } = E::TRAINING;
        RecordingConfig {
            training: TrainingConfig {
                algorithm: Algorithm::Adam,
                learning_rate,
                schedule: Schedule::Cosine,
                weight_decay: 0.0,
                batch_size: environments,
                steps: updates,
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
        let mut policy = device.try_build_module::<E::Policy, f32>().map_err(dfdx_error)?;
        unflatten(&mut policy, start)?;
        let mut trainer = Trainer::new(&device, &policy, self, seed, config)?;
        let result = trainer.finish(&mut policy, at, &mut |step, policy: &E::Model| {
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
    use crate::tasks::control::cart_pole::CartPolePolicy;
    use crate::tasks::{by_name, CartPole};

    fn task() -> CartPole {
        CartPole::new().unwrap()
    }

    fn states(task: &CartPole, policy: &[f32]) -> Vec<[f64; 2]> {
        match task.course(policy).unwrap() {
            Some(Course::CartPole(states)) => states,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn actions_are_drawn_with_their_probabilities() {
        assert_eq!(probabilities([0.0, 1000.0]), [0.0, 1.0]);
        assert_eq!(probabilities([1000.0, 0.0, 0.0]), [1.0, 0.0, 0.0]);
        let shares = probabilities([0.5f32.ln(), 0.2f32.ln(), 0.3f32.ln()]);
        let mut rng = draws(1);
        let mut counts = [0.0f64; 3];
        for _ in 0..20_000 {
            counts[pick(&shares, &mut rng)] += 1.0 / 20_000.0;
        }
        for (count, expected) in counts.iter().zip([0.5, 0.2, 0.3]) {
            assert!((count - expected).abs() < 0.02, "{counts:?}");
        }
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
        let rows = probes::<4>(9, 50);
        let input = Cpu::default().tensor_from_vec(rows.clone(), (50, Const::<4>));
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
        let steps = states(&task, &policy).len();
        assert!(steps > 8 && steps < 200, "{steps}");
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
        assert_eq!(states(&task, &parameters).len(), 501);
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
        assert!(by_name("cartpole", Some(std::path::Path::new("/"))).is_err());
        assert_eq!(by_name("cartpole", None).unwrap().name(), "cartpole");
    }
}
