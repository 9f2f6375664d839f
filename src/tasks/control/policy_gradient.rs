//! Proximal policy optimization of a policy, in dfdx.
//!
//! Shape letters: `E` environments in parallel, `H` steps of each between two
//! updates, `B = E H`; `O` values of an observation, `A` actions.
//!
//! # Source
//! Schulman et al. 2017, arXiv:1707.06347, algorithm 1 and equation 7; advantages
//! as in Schulman et al. 2016, arXiv:1506.02438, equation 16.

use dfdx::optim::{Adam, Optimizer as _};
use dfdx::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{pick, probabilities, row, Control, Counted, Environment, Episode, Outcome, Rows};
use crate::network::flatten;
use crate::tasks::training::{adam_config, dfdx_error, Observe};
use crate::tasks::{TaskError, TrainingConfig};

/// How the policies of an environment are trained unless the user says otherwise.
///
/// Where states have a [potential](Episode::potential) `Φ`, a step from `s` to `s'` is
/// rewarded with `γ Φ(s') - Φ(s)` besides, and `Φ` of an end is 0. That changes no
/// policy's rank, only how soon a better one is found; returns are measured without it.
///
/// # Source
/// Schulman et al. 2017, arXiv:1707.06347; potentials: Ng, Harada and Russell 1999,
/// "Policy invariance under reward transformations", theorem 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyGradient {
    /// Environments in parallel, `E`.
    pub environments: usize,
    /// Steps of each environment between two updates, `H`.
    pub horizon: usize,
    /// Updates.
    pub updates: usize,
    /// Adam's rate of the first step; it falls to 0 along a cosine.
    pub learning_rate: f64,
    /// Times that the steps of an update are gone through.
    pub epochs: usize,
    /// Parts that they are cut into each time.
    pub parts: usize,
    /// What a reward counts one step earlier, `γ`.
    pub discount: f32,
    /// Share of later surprises in an advantage, `λ`.
    pub trace: f32,
}

impl PolicyGradient {
    /// Largest discounted return of rewards of 1: returns are divided by it before the
    /// critic learns them.
    fn value_scale(&self) -> f32 {
        1.0 / (1.0 - self.discount)
    }
}

/// How far the probability of an action moves in one update, as a ratio, `ε`.
const CLIP: f32 = 0.2;
/// Seed of the critic: the same one for all runs, so that less of their end is chance.
const CRITIC_SEED: u64 = 0;

/// Guesses the discounted return from an observation. No part of what is recorded.
type Critic<const O: usize> = (Linear<O, 32>, ReLU, Linear<32, 32>, ReLU, Linear<32, 1>);
type CriticModel<const O: usize> = <Critic<O> as BuildOnDevice<Cpu, f32>>::Built;

/// What the environments did between two updates, environment by environment.
#[derive(Debug, Default)]
struct Steps {
    /// `[B, O]`
    features: Vec<f32>,
    /// `[B]`
    actions: Vec<usize>,
    /// Logarithm of the probability that each action had, `[B]`.
    log_likelihoods: Vec<f32>,
    /// `[B]`
    rewards: Vec<f32>,
    /// What came next, `[B, O]`.
    next: Vec<f32>,
    outcomes: Vec<Outcome>,
}

/// A policy in training, and the environments that it acts in.
pub(super) struct Trainer<'a, E: Environment<O, A>, const O: usize, const A: usize> {
    device: &'a Cpu,
    task: &'a Control<E, O, A>,
    config: &'a TrainingConfig,
    running: Vec<Counted<E::Episode>>,
    rng: ChaCha8Rng,
    critic: CriticModel<O>,
    policy_optimizer: Adam<E::Model, f32, Cpu>,
    critic_optimizer: Adam<CriticModel<O>, f32, Cpu>,
}

impl<'a, E: Environment<O, A>, const O: usize, const A: usize> Trainer<'a, E, O, A> {
    pub fn new(
        device: &'a Cpu,
        policy: &E::Model,
        task: &'a Control<E, O, A>,
        seed: u64,
        config: &'a TrainingConfig,
    ) -> Result<Self, TaskError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let running = (0..config.batch_size).map(|_| task.begin(rng.gen())).collect();
        let critic = Cpu::seed_from_u64(CRITIC_SEED)
            .try_build_module::<Critic<O>, f32>()
            .map_err(dfdx_error)?;
        Ok(Self {
            device,
            task,
            config,
            running,
            rng,
            policy_optimizer: Adam::new(policy, adam_config(config)),
            critic_optimizer: Adam::new(&critic, adam_config(config)),
            critic,
        })
    }

    /// Takes all updates; `observe` sees the policy before each of `at`.
    pub fn finish(
        &mut self,
        policy: &mut E::Model,
        at: &[usize],
        observe: &mut Observe<'_, E::Model>,
    ) -> Result<(), TaskError> {
        let mut at = at.iter().copied().peekable();
        for step in 0..=self.config.steps {
            while at.next_if_eq(&step).is_some() {
                if observe(step, policy)?.is_break() {
                    return Ok(());
                }
            }
            if step == self.config.steps || at.peek().is_none() {
                break;
            }
            let rate = self.config.rate(step);
            self.policy_optimizer.cfg.lr = rate;
            self.critic_optimizer.cfg.lr = rate;
            let steps = self.act(&flatten(policy)?);
            self.learn(policy, &steps)?;
        }
        Ok(())
    }

    /// `H` steps in every environment, actions drawn from the policy.
    fn act(&mut self, parameters: &[f32]) -> Steps {
        let horizon = E::TRAINING.horizon;
        let count = self.running.len();
        let size = count * horizon;
        let mut steps = Steps {
            features: vec![0.0; size * O],
            actions: vec![0; size],
            log_likelihoods: vec![0.0; size],
            rewards: vec![0.0; size],
            next: vec![0.0; size * O],
            outcomes: vec![Outcome::Goes; size],
        };
        let mut rows: Vec<f32> =
            self.running.iter().flat_map(|running| running.episode.features()).collect();
        for time in 0..horizon {
            let logits = self.task.stack.logits(parameters, &rows, count);
            for (n, running) in self.running.iter_mut().enumerate() {
                let index = n * horizon + time;
                let seen = &mut rows[n * O..][..O];
                steps.features[index * O..][..O].copy_from_slice(seen);
                let shares = probabilities::<A>(row(&logits[n * A..]));
                let action = pick(&shares, &mut self.rng);
                steps.actions[index] = action;
                steps.log_likelihoods[index] = shares[action].max(f32::MIN_POSITIVE).ln();
                let before = running.episode.potential();
                let outcome = running.step(action, E::MOST_STEPS);
                let after = match outcome {
                    Outcome::Ended => 0.0,
                    Outcome::Goes | Outcome::Capped => running.episode.potential(),
                };
                steps.rewards[index] = E::REWARD + E::TRAINING.discount * after - before;
                steps.outcomes[index] = outcome;
                steps.next[index * O..][..O].copy_from_slice(&running.episode.features());
                if outcome != Outcome::Goes {
                    running.episode.reset(self.rng.gen());
                    running.steps = 0;
                }
                seen.copy_from_slice(&running.episode.features());
            }
        }
        steps
    }

    fn rows<const C: usize>(&self, rows: Vec<f32>) -> Result<Rows<C>, TaskError> {
        let shape = (rows.len() / C, Const);
        self.device.try_tensor_from_vec(rows, shape).map_err(dfdx_error)
    }

    /// The critic's guesses for rows of features, in returns.
    fn values(&self, rows: &[f32]) -> Result<Vec<f32>, TaskError> {
        let input = self.rows::<O>(rows.to_vec())?;
        let values = self.critic.try_forward(input).map_err(dfdx_error)?.as_vec();
        Ok(values.into_iter().map(|value| value * E::TRAINING.value_scale()).collect())
    }

    /// Advantages, of mean 0 and variance 1, and what the critic should have guessed.
    fn judge(&self, steps: &Steps) -> Result<[Vec<f32>; 2], TaskError> {
        let values = self.values(&steps.features)?;
        let next = self.values(&steps.next)?;
        let mut advantages = vec![0.0; values.len()];
        let mut later = 0.0;
        let PolicyGradient { horizon, discount, trace, .. } = E::TRAINING;
        for index in (0..values.len()).rev() {
            let outcome = steps.outcomes[index];
            // The next row is of the same episode only if this one goes on.
            if outcome != Outcome::Goes || (index + 1) % horizon == 0 {
                later = 0.0;
            }
            let next = if outcome == Outcome::Ended { 0.0 } else { next[index] };
            later =
                steps.rewards[index] + discount * next - values[index] + discount * trace * later;
            advantages[index] = later;
        }
        let scale = E::TRAINING.value_scale();
        let wanted = advantages.iter().zip(&values).map(|(a, v)| (a + v) / scale).collect();
        let count = advantages.len() as f32;
        let mean = advantages.iter().sum::<f32>() / count;
        let variance = advantages.iter().map(|a| (a - mean).powi(2)).sum::<f32>() / count;
        let deviation = variance.sqrt() + 1e-6;
        advantages.iter_mut().for_each(|a| *a = (*a - mean) / deviation);
        Ok([advantages, wanted])
    }

    fn learn(&mut self, policy: &mut E::Model, steps: &Steps) -> Result<(), TaskError> {
        let [advantages, wanted] = self.judge(steps)?;
        let mut order: Vec<usize> = (0..advantages.len()).collect();
        for _ in 0..E::TRAINING.epochs {
            order.shuffle(&mut self.rng);
            for part in order.chunks(order.len().div_ceil(E::TRAINING.parts)) {
                let pick =
                    |values: &[f32]| -> Vec<f32> { part.iter().map(|&n| values[n]).collect() };
                let features: Vec<f32> =
                    part.iter().flat_map(|&n| &steps.features[n * O..][..O]).copied().collect();
                let features = self.rows(features)?;
                let actions = part.iter().flat_map(|&n| one_hot::<A>(steps.actions[n])).collect();
                let taken = (self.rows(actions)?, pick(&steps.log_likelihoods), pick(&advantages));
                self.improve_policy(policy, features.clone(), taken).map_err(dfdx_error)?;
                let wanted = self.rows::<1>(pick(&wanted))?;
                self.improve_critic(features, wanted).map_err(dfdx_error)?;
            }
        }
        Ok(())
    }

    /// One step up the clipped objective.
    fn improve_policy(
        &mut self,
        policy: &mut E::Model,
        features: Rows<O>,
        (actions, before, advantages): (Rows<A>, Vec<f32>, Vec<f32>),
    ) -> Result<(), TrainingError> {
        let count = before.len();
        let vector = |values| self.device.try_tensor_from_vec(values, (count,));
        let (before, advantages) = (vector(before)?, vector(advantages)?);
        let traced = features.traced(policy.try_alloc_grads()?);
        let now = policy
            .try_forward_mut(traced)?
            .try_log_softmax::<Axis<1>>()?
            .try_mul(actions)?
            .try_sum::<(usize,), Axis<1>>()?;
        let ratio = now.try_sub(before)?.try_exp()?;
        let clipped = ratio
            .with_empty_tape()
            .try_clamp(1.0 - CLIP, 1.0 + CLIP)?
            .try_mul(advantages.clone())?;
        let loss = ratio.try_mul(advantages)?.try_minimum(clipped)?.try_mean()?.try_negate()?;
        let gradients = loss.try_backward()?;
        self.policy_optimizer.update(policy, &gradients)?;
        Ok(())
    }

    /// One step down the squared error.
    fn improve_critic(&mut self, features: Rows<O>, wanted: Rows<1>) -> Result<(), TrainingError> {
        let traced = features.traced(self.critic.try_alloc_grads()?);
        let error = self.critic.try_forward_mut(traced)?.try_sub(wanted)?;
        let gradients = error.try_square()?.try_mean()?.try_backward()?;
        self.critic_optimizer.update(&mut self.critic, &gradients)?;
        Ok(())
    }
}

fn one_hot<const A: usize>(action: usize) -> [f32; A] {
    std::array::from_fn(|n| if n == action { 1.0 } else { 0.0 })
}

/// What dfdx says of a step: that of a tensor or of an optimizer.
type TrainingError = Box<dyn std::error::Error>;
