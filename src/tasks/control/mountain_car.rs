//! Mountain car of gym-rs, whose equations are Gym's.

use dfdx::prelude::*;
use gym_rs::core::Env;
use gym_rs::envs::classical_control::mountain_car::{MountainCarEnv, MountainCarObservation};
use gym_rs::utils::renderer::RenderMode;

use super::{Control, Environment, Episode, Outcome, PolicyGradient};
use crate::network::Built;
use crate::nn::SeLU;
use crate::tasks::{Course, TaskError};

/// What the mechanical energy at the flag counts, in rewards.
const POTENTIAL: f64 = 50.0;

/// The policy of mountain car: 2 observations, two hidden layers of 32 units, 3 actions.
///
/// Outputs are logits of the actions: push to the left, not at all, to the right. Places
/// are counted from the middle of the track and divided by its half, speeds by the
/// highest.
#[lopt::network]
#[derive(Clone, Debug)]
pub struct MountainCarPolicy {
    /// Observations to the first hidden layer.
    pub first: Linear<2, 32>,
    /// After it.
    pub first_activation: SeLU,
    /// To the second hidden layer.
    pub second: Linear<32, 32>,
    /// After it.
    pub second_activation: SeLU,
    /// To the actions.
    pub output: Linear<32, 3>,
}

/// The task `mountain-car`: swing a car out of a valley that is too steep for it.
///
/// Every step costs 1 until the car reaches the flag, and an episode ends after 200
/// steps: returns are -200 to about -85. The environment is gym-rs's, whose equations
/// are Gym's.
///
/// No policy that pushes at random reaches the flag, so that the reward alone teaches
/// nothing. Policies in training are paid for mechanical energy besides, in the way
/// that does not change which policy is best (see [`PolicyGradient`]); returns are
/// measured without that.
pub type MountainCar = Control<Valley, 2, 3>;

impl MountainCar {
    /// The task.
    ///
    /// # Errors
    /// If the layout of the policy is unusable.
    pub fn new() -> Result<Self, TaskError> {
        Self::of(Valley)
    }
}

/// Mountain car.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Valley;

impl Environment<2, 3> for Valley {
    type Policy = MountainCarPolicy;
    type Model = Built<MountainCarPolicy, f32, Cpu>;
    type Episode = Car;

    const NAME: &'static str = crate::tasks::MOUNTAIN_CAR;
    const MOST_STEPS: usize = 200;
    const REWARD: f32 = -1.0;
    /// Where Gym counts it as solved.
    const GOOD: f64 = -110.0;
    const TRAINING: PolicyGradient = PolicyGradient {
        environments: 32,
        horizon: 64,
        updates: 60,
        learning_rate: 0.02,
        epochs: 8,
        parts: 2,
        discount: 0.99,
        trace: 0.98,
    };

    fn summary(&self) -> String {
        format!("mountain car, returns of at least -{}", Self::MOST_STEPS)
    }

    fn begin(&self, seed: u64) -> Car {
        let mut car = Car(MountainCarEnv::new(RenderMode::None));
        car.reset(seed);
        car
    }

    fn course(states: Vec<[f64; 2]>) -> Course {
        Course::MountainCar(states.into_iter().map(|[place, _]| place).collect())
    }
}

/// One car: place and speed.
#[derive(Clone, Debug)]
pub struct Car(MountainCarEnv);

impl Episode<2> for Car {
    fn reset(&mut self, seed: u64) {
        self.0.reset(Some(seed), false, None);
    }

    fn step(&mut self, action: usize) -> Outcome {
        if self.0.step(action).done {
            Outcome::Ended
        } else {
            Outcome::Goes
        }
    }

    fn state(&self) -> [f64; 2] {
        let MountainCarObservation { position, velocity } = self.0.state;
        [position.into_inner(), velocity.into_inner()]
    }

    fn features(&self) -> [f32; 2] {
        let [place, speed] = self.state();
        [((place + 0.3) / 0.9) as f32, (speed / self.0.max_speed.into_inner()) as f32]
    }

    /// Mechanical energy above that at rest in the valley, as a share of the potential
    /// energy at the flag, times 50.
    fn potential(&self) -> f32 {
        let [place, speed] = self.state();
        let gravity = self.0.gravity.into_inner();
        let height = |place: f64| gravity / 3.0 * ((3.0 * place).sin() + 1.0);
        let flag = self.0.goal_position.into_inner();
        (POTENTIAL * (0.5 * speed * speed + height(place)) / height(flag)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Split;
    use crate::tasks::control::EPISODES;
    use crate::tasks::Task;

    #[test]
    fn cars_move_by_gyms_equations() {
        let mut car = Valley.begin(3);
        let [mut place, mut speed] = car.state();
        assert!((-0.6..=-0.4).contains(&place) && speed == 0.0);
        for step in 0..150 {
            let action = if speed < 0.0 { 0 } else { 2 };
            speed += (action as f64 - 1.0) * 0.001 - 0.0025 * (3.0 * place).cos();
            speed = speed.clamp(-0.07, 0.07);
            place = (place + speed).clamp(-1.2, 0.6);
            if place == -1.2 && speed < 0.0 {
                speed = 0.0;
            }
            let outcome = car.step(action);
            for (own, gym) in car.state().iter().zip([place, speed]) {
                assert!((own - gym).abs() < 1e-12, "step {step}: {own} {gym}");
            }
            assert_eq!(outcome == Outcome::Ended, place >= 0.5, "step {step}");
            if outcome == Outcome::Ended {
                assert!((0.9..2.0).contains(&(car.potential() / 50.0)), "{}", car.potential());
                return;
            }
        }
        panic!("pushing along with the motion must reach the flag");
    }

    #[test]
    fn random_policies_never_reach_the_flag() {
        let task = MountainCar::new().unwrap();
        assert_eq!(task.layout().unwrap().num_parameters(), 2 * 32 + 32 + 32 * 33 + 32 * 3 + 3);
        let returns = task.returns(&task.initial(1).unwrap(), Split::Test).unwrap();
        assert_eq!(returns, vec![-200.0; EPISODES]);
        let summary = task.summary();
        assert!(summary.contains("policy 2-32-32-3"), "{summary}");
    }

    #[test]
    fn training_reaches_the_flag() {
        let task = MountainCar::new().unwrap();
        let config = crate::tasks::TrainingConfig { steps: 20, ..task.recording().training };
        let mut end = Vec::new();
        task.train(&task.initial(5).unwrap(), 1, &config, &[15], &mut |_, parameters| {
            end = parameters.to_vec();
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        let value = task.measure(&end, Split::Test).unwrap()[0];
        assert!(value > -170.0, "{value}");
        let Some(Course::MountainCar(places)) = task.course(&end).unwrap() else {
            panic!("an episode to look at");
        };
        assert!(places.len() > 60 && places.iter().all(|place| (-1.2..=0.6).contains(place)));
    }
}
