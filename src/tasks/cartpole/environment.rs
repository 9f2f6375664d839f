//! Cart-pole of gym-rs, with the physics of Gym or with its own.

use gym_rs::core::Env;
use gym_rs::envs::classical_control::cartpole::{CartPoleEnv, CartPoleObservation};
use gym_rs::spaces::BoxR;
use gym_rs::utils::renderer::RenderMode;

/// Values of an observation: place and speed of the cart, angle and speed of the pole.
pub const OBSERVATIONS: usize = 4;
/// Actions: push to the left, push to the right.
pub const ACTIONS: usize = 2;
/// Steps after which an episode ends, as in Gym's version 1.
pub const MOST_STEPS: usize = 500;
/// Largest value of each observation at the start of an episode, as in Gym.
const START: f64 = 0.05;
/// What observations are divided by before a network sees them: the limits of
/// place and angle, and what speeds are of the order of.
pub(super) const SCALES: [f64; OBSERVATIONS] = [2.4, 2.0, 0.209_439_510_239_319_5, 2.0];

/// Which equations of motion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Physics {
    /// Those of Gym's `CartPole-v1`: cart of 1 kg, pole of 0.1 kg and half length 0.5 m,
    /// force of 10 N.
    ///
    /// gym-rs adds the pole's mass and half length where Gym multiplies them. Masses and
    /// force can all be multiplied by one number without any other change, and a pole of
    /// -1 kg has the same sum as product with its half length, -0.5. So a cart of -10 kg,
    /// a pole of -1 kg and a force of -100 N move in gym-rs as Gym's do.
    #[default]
    Gym,
    /// Those of gym-rs, whose cart-pole is heavier. Episodes start as Gym's do.
    GymRs,
}

/// How an episode goes on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Goes,
    /// The pole fell, or the cart left its track.
    Fell,
    /// It lasted [`MOST_STEPS`].
    Capped,
}

/// One cart with its pole.
#[derive(Clone, Debug)]
pub(super) struct Cart {
    environment: CartPoleEnv,
    state: [f64; OBSERVATIONS],
    steps: usize,
}

impl Cart {
    pub fn new(physics: Physics, seed: u64) -> Self {
        let mut environment = CartPoleEnv::new(RenderMode::None);
        if physics == Physics::Gym {
            environment.masscart = (-10.0).into();
            environment.masspole = (-1.0).into();
            environment.force_mag = (-100.0).into();
        }
        let mut cart = Self { environment, state: [0.0; OBSERVATIONS], steps: 0 };
        cart.reset(seed);
        cart
    }

    /// Begins the episode of this seed.
    pub fn reset(&mut self, seed: u64) {
        let high = CartPoleObservation::new(START.into(), START.into(), START.into(), START.into());
        // Differs from gym-rs, whose own bounds of 0.5 let many poles start fallen.
        let (observation, _) =
            self.environment.reset(Some(seed), false, Some(BoxR::new(-high, high)));
        self.see(observation);
        self.steps = 0;
    }

    fn see(&mut self, observation: CartPoleObservation) {
        for (own, value) in self.state.iter_mut().zip(Vec::<f64>::from(observation)) {
            *own = value;
        }
    }

    /// Pushes the cart for one step.
    pub fn push(&mut self, action: usize) -> Outcome {
        let result = self.environment.step(action);
        self.see(result.observation);
        self.steps += 1;
        match result.done {
            true => Outcome::Fell,
            false if self.steps == MOST_STEPS => Outcome::Capped,
            false => Outcome::Goes,
        }
    }

    /// Steps since the episode began.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// What is observed, in metres, radians and seconds.
    pub fn state(&self) -> [f64; OBSERVATIONS] {
        self.state
    }

    /// What a network sees.
    pub fn features(&self) -> [f32; OBSERVATIONS] {
        std::array::from_fn(|i| (self.state[i] / SCALES[i]) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One Euler step of Gym's `cartpole.py`.
    fn gym_step([x, v, angle, spin]: [f64; 4], action: usize) -> [f64; 4] {
        let force = if action == 1 { 10.0 } else { -10.0 };
        let (cos, sin) = (angle.cos(), angle.sin());
        let temp = (force + 0.05 * spin * spin * sin) / 1.1;
        let spin_change = (9.8 * sin - cos * temp) / (0.5 * (4.0 / 3.0 - 0.1 * cos * cos / 1.1));
        let change = temp - 0.05 * spin_change * cos / 1.1;
        [x + 0.02 * v, v + 0.02 * change, angle + 0.02 * spin, spin + 0.02 * spin_change]
    }

    #[test]
    fn negative_masses_move_as_gym_does_and_gym_rs_does_not() {
        let mut cart = Cart::new(Physics::Gym, 3);
        let mut other = Cart::new(Physics::GymRs, 3);
        assert_eq!(cart.state(), other.state());
        assert!(cart.state().iter().all(|value| value.abs() <= START));
        let mut state = cart.state();
        for step in 0..40 {
            // Against the fall, so that the episode lasts.
            let action = usize::from(state[2] + 0.3 * state[3] > 0.0);
            state = gym_step(state, action);
            assert_eq!(cart.push(action), Outcome::Goes);
            other.push(action);
            for (own, gym) in cart.state().iter().zip(state) {
                assert!((own - gym).abs() < 1e-12, "step {step}: {own} {gym}");
            }
        }
        assert!((cart.state()[1] - other.state()[1]).abs() > 0.01);
    }

    #[test]
    fn poles_fall_when_they_are_pushed_over() {
        let mut cart = Cart::new(Physics::Gym, 0);
        let steps = (1..).find(|_| cart.push(1) == Outcome::Fell).unwrap();
        assert!((8..=12).contains(&steps), "{steps}");
        assert_eq!(cart.steps(), steps);
        cart.reset(1);
        assert_eq!(cart.steps(), 0);
    }
}
