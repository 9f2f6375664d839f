//! What to ask a G.pt for, so that the value wanted comes out on average.
//!
//! Where few checkpoints of a run have a value, G.pt answers a prompt with a network
//! between those it has seen, which is usually better than the prompt. The difference is
//! much the same for all networks, so it can be measured on some and undone for others.

use serde::{Deserialize, Serialize};

/// A map from values wanted to prompts, linear between knots.
///
/// The best value that was asked for stays what it is: more than what comes of it
/// cannot be had.
///
/// # Examples
/// ```
/// use lopt::gpt::Calibration;
///
/// // Who asked for 200 got 300.
/// let calibration = Calibration::fit(&[0.0, 200.0, 400.0], &[0.0, 300.0, 400.0]).unwrap();
/// assert_eq!(calibration.prompt(300.0), 200.0);
/// assert_eq!(calibration.prompt(400.0), 400.0);
/// ```
///
/// # Source
/// Pool adjacent violators: Barlow et al. 1972, "Statistical inference under order
/// restrictions", section 1.2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Values wanted, ascending.
    pub wanted: Vec<f64>,
    /// What is asked for to get them, ascending.
    pub asked: Vec<f64>,
}

impl Calibration {
    /// The inverse of what came of prompts: of the rising function that is nearest to it.
    ///
    /// `None` if fewer than two values came out, or a value is not finite.
    ///
    /// # Shapes
    /// `prompts`, ascending, and the mean value `observed` after each: `[K]`.
    pub fn fit(prompts: &[f64], observed: &[f64]) -> Option<Self> {
        // Blocks of neighbours that do not rise: mean observed, and how many.
        let mut blocks: Vec<(f64, usize)> = Vec::new();
        for &value in observed {
            let (mut mean, mut count) = (value, 1);
            while let Some(&(before, many)) = blocks.last() {
                if before < mean {
                    break;
                }
                mean = (before * many as f64 + mean * count as f64) / (many + count) as f64;
                count += many;
                blocks.pop();
            }
            blocks.push((mean, count));
        }
        let mut first = 0;
        let mut asked: Vec<f64> = blocks
            .iter()
            .filter_map(|&(_, count)| {
                let block = prompts.get(first..first + count)?;
                first += count;
                Some(block.iter().sum::<f64>() / count as f64)
            })
            .collect();
        // The ends of what was asked stay within reach.
        *asked.first_mut()? = *prompts.first()?;
        *asked.last_mut()? = *prompts.last()?;
        let wanted = blocks.into_iter().map(|(mean, _)| mean).collect();
        Some(Self { wanted, asked }).filter(Self::is_valid)
    }

    /// What to ask for.
    ///
    /// Beyond the prompts that were tried it is what is wanted; between them and the
    /// values that came of them, the nearest prompt.
    pub fn prompt(&self, wanted: f64) -> f64 {
        let (Some(&low), Some(&high)) = (self.asked.first(), self.asked.last()) else {
            return wanted;
        };
        if !(low..=high).contains(&wanted) {
            return wanted;
        }
        let above = self.wanted.partition_point(|&value| value <= wanted);
        if above == 0 {
            return low;
        }
        let (Some(next), Some(end)) = (self.wanted.get(above), self.asked.get(above)) else {
            return high;
        };
        let (value, prompt) = (self.wanted[above - 1], self.asked[above - 1]);
        prompt + (end - prompt) * (wanted - value) / (next - value)
    }

    /// Whether it has as many values as prompts, at least two, that ascend.
    pub(super) fn is_valid(&self) -> bool {
        let ascends = |values: &[f64]| values.windows(2).all(|pair| pair[0] < pair[1]);
        self.wanted.len() == self.asked.len()
            && self.wanted.len() > 1
            && self.wanted.iter().chain(&self.asked).all(|value| value.is_finite())
            && ascends(&self.wanted)
            && ascends(&self.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_a_prompt_leads_back_to_it() {
        let prompts = [18.0, 100.0, 200.0, 300.0, 400.0, 500.0];
        let observed = [23.0, 110.0, 270.0, 350.0, 420.0, 470.0];
        let calibration = Calibration::fit(&prompts, &observed).unwrap();
        for (prompt, value) in prompts.iter().zip(observed) {
            assert_eq!(calibration.prompt(value), *prompt);
        }
        assert_eq!(calibration.prompt(310.0), 250.0);
        // Better or worse than what came out, but asked for: the ends.
        assert_eq!(calibration.prompt(490.0), 500.0);
        assert_eq!(calibration.prompt(500.0), 500.0);
        assert_eq!(calibration.prompt(19.0), 18.0);
        // Never tried: as it is.
        assert_eq!(calibration.prompt(600.0), 600.0);
        assert_eq!(calibration.prompt(3.0), 3.0);
    }

    #[test]
    fn values_that_fall_are_pooled() {
        let calibration =
            Calibration::fit(&[1.0, 2.0, 3.0, 4.0, 5.0], &[1.0, 3.0, 2.0, 4.0, 3.5]).unwrap();
        assert_eq!(calibration.wanted, [1.0, 2.5, 3.75]);
        assert_eq!(calibration.asked, [1.0, 2.5, 5.0]);
        assert!(calibration.prompt(2.0) < calibration.prompt(3.0));
    }

    #[test]
    fn nothing_to_learn_is_no_calibration() {
        assert_eq!(Calibration::fit(&[], &[]), None);
        assert_eq!(Calibration::fit(&[1.0, 2.0], &[5.0, 5.0]), None);
        assert_eq!(Calibration::fit(&[1.0, 2.0], &[2.0, 1.0]), None);
        assert_eq!(Calibration::fit(&[1.0, 2.0], &[2.0, f64::NAN]), None);
        let wrong = Calibration { wanted: vec![0.0, 1.0], asked: vec![0.0] };
        assert!(!wrong.is_valid());
    }
}
