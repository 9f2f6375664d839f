//! Cart-pole of gym-rs, with the physics of Gym or with its own.

use dfdx::prelude::*;
use gym_rs::core::Env;
use gym_rs::envs::classical_control::cartpole::{CartPoleEnv, CartPoleObservation};
use gym_rs::spaces::BoxR;
use gym_rs::utils::renderer::RenderMode;

use super::{Control, Environment, Episode, Outcome, PolicyGradient};
use crate::network::Built;
use crate::nn::SeLU;
use crate::tasks::{Course, TaskError};

/// Largest value of each observation at the start of an episode, as in Gym.
const START: f64 = 0.05;

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

/// The policy of cart-pole: 4 observations, two hidden layers of 32 units, 2 actions.
///
/// Outputs are logits of the actions. Observations are divided by 2.4 m, 2 m/s,
/// 12 degrees and 2 rad/s.
#[lopt::network]
#[derive(Clone, Debug)]
pub struct CartPolePolicy {
    /// Observations to the first hidden layer.
    pub first: Linear<4, 32>,
    /// After it.
    pub first_activation: SeLU,
    /// To the second hidden layer.
    pub second: Linear<32, 32>,
    /// After it.
    pub second_activation: SeLU,
    /// To the actions.
    pub output: Linear<32, 2>,
}

/// The task `cartpole`: keep a pole upright by pushing its cart.
///
/// An episode gives a reward of 1 for every step until the pole leans by more than 12
/// degrees or the cart leaves its track, and ends after 500 steps: returns are 1 to 500.
/// The environment is gym-rs's, with Gym's physics (see [`Physics`]).
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
pub type CartPole = Control<Physics, 4, 2>;

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
        Self::of(physics)
    }
}

impl Environment<4, 2> for Physics {
    type Policy = CartPolePolicy;
    type Model = Built<CartPolePolicy, f32, Cpu>;
    type Episode = Cart;

    const NAME: &'static str = crate::tasks::CARTPOLE;
    const MOST_STEPS: usize = 500;
    const REWARD: f32 = 1.0;
    /// Near the cap. Gym counts a mean of 475 as solved.
    const GOOD: f64 = 450.0;
    const TRAINING: PolicyGradient = PolicyGradient {
        environments: 48,
        horizon: 32,
        updates: 60,
        learning_rate: 5e-3,
        epochs: 4,
        parts: 2,
        discount: 0.98,
        trace: 0.9,
    };

    fn summary(&self) -> String {
        let physics = match self {
            Self::Gym => "Gym's physics",
            Self::GymRs => "gym-rs's physics",
        };
        format!("cart-pole, {physics}, returns of at most {}", Self::MOST_STEPS)
    }

    fn begin(&self, seed: u64) -> Cart {
        let mut environment = CartPoleEnv::new(RenderMode::None);
        if *self == Self::Gym {
            environment.masscart = (-10.0).into();
            environment.masspole = (-1.0).into();
            environment.force_mag = (-100.0).into();
        }
        let mut cart = Cart { environment, state: [0.0; 4] };
        cart.reset(seed);
        cart
    }

    fn course(states: Vec<[f64; 4]>) -> Course {
        Course::CartPole(states.into_iter().map(|[place, _, angle, _]| [place, angle]).collect())
    }
}

/// One cart with its pole: place and speed of the cart, angle and speed of the pole.
#[derive(Clone, Debug)]
pub struct Cart {
    environment: CartPoleEnv,
    state: [f64; 4],
}

impl Cart {
    fn see(&mut self, observation: CartPoleObservation) {
        for (own, value) in self.state.iter_mut().zip(Vec::<f64>::from(observation)) {
            *own = value;
        }
    }
}

impl Episode<4> for Cart {
    fn reset(&mut self, seed: u64) {
        let high = CartPoleObservation::new(START.into(), START.into(), START.into(), START.into());
        // Differs from gym-rs, whose own bounds of 0.5 let many poles start fallen.
        let (observation, _) =
            self.environment.reset(Some(seed), false, Some(BoxR::new(-high, high)));
        self.see(observation);
    }

    fn step(&mut self, action: usize) -> Outcome {
        let result = self.environment.step(action);
        self.see(result.observation);
        if result.done {
            Outcome::Ended
        } else {
            Outcome::Goes
        }
    }

    /// In metres, radians and seconds.
    fn state(&self) -> [f64; 4] {
        self.state
    }

    /// Divided by the limits of place and angle, and by what speeds are of the order of.
    fn features(&self) -> [f32; 4] {
        let scales = [2.4, 2.0, 0.209_439_510_239_319_5, 2.0];
        std::array::from_fn(|i| (self.state[i] / scales[i]) as f32)
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
        let mut cart = Physics::Gym.begin(3);
        let mut other = Physics::GymRs.begin(3);
        assert_eq!(cart.state(), other.state());
        assert!(cart.state().iter().all(|value| value.abs() <= START));
        let mut state = cart.state();
        for step in 0..40 {
            // Against the fall, so that the episode lasts.
            let action = usize::from(state[2] + 0.3 * state[3] > 0.0);
            state = gym_step(state, action);
            assert_eq!(cart.step(action), Outcome::Goes);
            other.step(action);
            for (own, gym) in cart.state().iter().zip(state) {
                assert!((own - gym).abs() < 1e-12, "step {step}: {own} {gym}");
            }
        }
        assert!((cart.state()[1] - other.state()[1]).abs() > 0.01);
    }

    #[test]
    fn poles_fall_when_they_are_pushed_over() {
        let mut cart = Physics::Gym.begin(0);
        let steps = (1..).find(|_| cart.step(1) == Outcome::Ended).unwrap();
        assert!((8..=12).contains(&steps), "{steps}");
        cart.reset(1);
        assert_eq!(cart.step(0), Outcome::Goes);
    }
}
