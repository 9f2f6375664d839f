//! Proximal policy optimization of a cart-pole policy, in dfdx.
//!
//! Shape letters: `E` environments in parallel, `H` steps of each between two
//! updates, `B = E H`.
//!
//! # Source
//! Schulman et al. 2017, arXiv:1707.06347, algorithm 1 and equation 7; advantages
//! as in Schulman et al. 2016, arXiv:1506.02438, equation 16.

use dfdx::optim::{Adam, Optimizer as _};
use dfdx::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::environment::{Cart, Outcome, Physics, ACTIONS, OBSERVATIONS};
use super::{probabilities, Model};
use crate::network::flatten;
use crate::tasks::stack::Stack;
use crate::tasks::training::{adam_config, dfdx_error, Observe};
use crate::tasks::{TaskError, TrainingConfig};

/// Steps of each environment between two updates, `H`.
pub(super) const HORIZON: usize = 32;
/// Times that the steps of an update are gone through.
const EPOCHS: usize = 4;
/// Parts that they are cut into each time.
const PARTS: usize = 2;
/// What a reward counts one step earlier, `γ`.
const DISCOUNT: f32 = 0.98;
/// Share of later surprises in an advantage, `λ`.
const TRACE: f32 = 0.9;
/// How far the probability of an action moves in one update, as a ratio, `ε`.
const CLIP: f32 = 0.2;
/// Returns are divided by the largest discounted one before the critic learns them.
const VALUE_SCALE: f32 = 1.0 / (1.0 - DISCOUNT);
/// Seed of the critic: the same one for all runs, so that less of their end is chance.
const CRITIC_SEED: u64 = 0;

/// Guesses the discounted return from an observation. No part of what is recorded.
type Critic = (Linear<OBSERVATIONS, 32>, ReLU, Linear<32, 32>, ReLU, Linear<32, 1>);
type CriticModel = <Critic as BuildOnDevice<Cpu, f32>>::Built;
type Rows<const C: usize> = Tensor<(usize, Const<C>), f32, Cpu>;

/// What the environments did between two updates, environment by environment.
#[derive(Debug, Default)]
struct Steps {
    /// `[B, OBSERVATIONS]`
    features: Vec<f32>,
    /// `[B]`
    actions: Vec<usize>,
    /// Logarithm of the probability that each action had, `[B]`.
    log_likelihoods: Vec<f32>,
    /// What came next, `[B, OBSERVATIONS]`.
    next: Vec<f32>,
    outcomes: Vec<Outcome>,
}

/// A policy in training, and the environments that it acts in.
pub(super) struct Trainer<'a> {
    device: &'a Cpu,
    stack: &'a Stack,
    config: &'a TrainingConfig,
    carts: Vec<Cart>,
    rng: ChaCha8Rng,
    critic: CriticModel,
    policy_optimizer: Adam<Model, f32, Cpu>,
    critic_optimizer: Adam<CriticModel, f32, Cpu>,
}

impl<'a> Trainer<'a> {
    pub fn new(
        device: &'a Cpu,
        policy: &Model,
        stack: &'a Stack,
        (physics, seed): (Physics, u64),
        config: &'a TrainingConfig,
    ) -> Result<Self, TaskError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let carts = (0..config.batch_size).map(|_| Cart::new(physics, rng.gen())).collect();
        let critic: CriticModel = Cpu::seed_from_u64(CRITIC_SEED)
            .try_build_module::<Critic, f32>()
            .map_err(dfdx_error)?;
        Ok(Self {
            device,
            stack,
            config,
            carts,
            rng,
            policy_optimizer: Adam::new(policy, adam_config(config)),
            critic_optimizer: Adam::new(&critic, adam_config(config)),
            critic,
        })
    }

    /// Takes all updates; `observe` sees the policy before each of `at`.
    pub fn finish(
        &mut self,
        policy: &mut Model,
        at: &[usize],
        observe: &mut Observe<'_, Model>,
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
        let count = self.carts.len();
        let size = count * HORIZON;
        let mut steps = Steps {
            features: vec![0.0; size * OBSERVATIONS],
            actions: vec![0; size],
            log_likelihoods: vec![0.0; size],
            next: vec![0.0; size * OBSERVATIONS],
            outcomes: vec![Outcome::Goes; size],
        };
        let mut rows: Vec<f32> = self.carts.iter().flat_map(Cart::features).collect();
        for time in 0..HORIZON {
            let logits = self.stack.logits(parameters, &rows, count);
            for (n, cart) in self.carts.iter_mut().enumerate() {
                let index = n * HORIZON + time;
                let row = &mut rows[n * OBSERVATIONS..][..OBSERVATIONS];
                steps.features[index * OBSERVATIONS..][..OBSERVATIONS].copy_from_slice(row);
                let shares = probabilities([logits[n * ACTIONS], logits[n * ACTIONS + 1]]);
                let action = usize::from(self.rng.gen::<f32>() < shares[1]);
                steps.actions[index] = action;
                steps.log_likelihoods[index] = shares[action].max(f32::MIN_POSITIVE).ln();
                let outcome = cart.push(action);
                steps.outcomes[index] = outcome;
                steps.next[index * OBSERVATIONS..][..OBSERVATIONS]
                    .copy_from_slice(&cart.features());
                if outcome != Outcome::Goes {
                    cart.reset(self.rng.gen());
                }
                row.copy_from_slice(&cart.features());
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
        let input = self.rows::<OBSERVATIONS>(rows.to_vec())?;
        let values = self.critic.try_forward(input).map_err(dfdx_error)?.as_vec();
        Ok(values.into_iter().map(|value| value * VALUE_SCALE).collect())
    }

    /// Advantages, of mean 0 and variance 1, and what the critic should have guessed.
    fn judge(&self, steps: &Steps) -> Result<[Vec<f32>; 2], TaskError> {
        let values = self.values(&steps.features)?;
        let next = self.values(&steps.next)?;
        let mut advantages = vec![0.0; values.len()];
        let mut later = 0.0;
        for index in (0..values.len()).rev() {
            let outcome = steps.outcomes[index];
            // The next row is of the same episode only if this one goes on.
            if outcome != Outcome::Goes || (index + 1) % HORIZON == 0 {
                later = 0.0;
            }
            let next = if outcome == Outcome::Fell { 0.0 } else { next[index] };
            later = 1.0 + DISCOUNT * next - values[index] + DISCOUNT * TRACE * later;
            advantages[index] = later;
        }
        let wanted = advantages.iter().zip(&values).map(|(a, v)| (a + v) / VALUE_SCALE).collect();
        let count = advantages.len() as f32;
        let mean = advantages.iter().sum::<f32>() / count;
        let variance = advantages.iter().map(|a| (a - mean).powi(2)).sum::<f32>() / count;
        let deviation = variance.sqrt() + 1e-6;
        advantages.iter_mut().for_each(|a| *a = (*a - mean) / deviation);
        Ok([advantages, wanted])
    }

    fn learn(&mut self, policy: &mut Model, steps: &Steps) -> Result<(), TaskError> {
        let [advantages, wanted] = self.judge(steps)?;
        let mut order: Vec<usize> = (0..advantages.len()).collect();
        for _ in 0..EPOCHS {
            order.shuffle(&mut self.rng);
            for part in order.chunks(order.len().div_ceil(PARTS)) {
                let pick =
                    |values: &[f32]| -> Vec<f32> { part.iter().map(|&n| values[n]).collect() };
                let features: Vec<f32> = part
                    .iter()
                    .flat_map(|&n| &steps.features[n * OBSERVATIONS..][..OBSERVATIONS])
                    .copied()
                    .collect();
                let features = self.rows(features)?;
                let actions = part
                    .iter()
                    .flat_map(|&n| [1 - steps.actions[n], steps.actions[n]])
                    .map(|hot| hot as f32)
                    .collect();
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
        policy: &mut Model,
        features: Rows<OBSERVATIONS>,
        (actions, before, advantages): (Rows<ACTIONS>, Vec<f32>, Vec<f32>),
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
    fn improve_critic(
        &mut self,
        features: Rows<OBSERVATIONS>,
        wanted: Rows<1>,
    ) -> Result<(), TrainingError> {
        let traced = features.traced(self.critic.try_alloc_grads()?);
        let error = self.critic.try_forward_mut(traced)?.try_sub(wanted)?;
        let gradients = error.try_square()?.try_mean()?.try_backward()?;
        self.critic_optimizer.update(&mut self.critic, &gradients)?;
        Ok(())
    }
}

/// What dfdx says of a step: that of a tensor or of an optimizer.
type TrainingError = Box<dyn std::error::Error>;
