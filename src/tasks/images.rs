//! Images with labels, and how well answers fit them.
//!
//! Shape letters: `N` images, `I` values of an image, `C` classes.

use crate::engine::exp_negative;

/// Images of one split, standardised.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    image: [usize; 3],
    labels: Vec<usize>,
    rows: Vec<f32>,
}

/// Mean cross entropy in nats, and share of wrong answers in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Mean cross entropy.
    pub loss: f64,
    /// Wrong answers, in percent.
    pub error: f64,
}

impl Images {
    /// Images from their values.
    ///
    /// # Shapes
    /// `rows [N, I]`, `labels [N]`, `image [channels, height, width]` with product `I`.
    ///
    /// # Panics
    /// If the lengths do not agree.
    pub fn new(rows: Vec<f32>, labels: Vec<usize>, image: [usize; 3]) -> Self {
        let inputs: usize = image.iter().product();
        assert_eq!(rows.len(), labels.len() * inputs, "one row of {inputs} values a label");
        Self { image, labels, rows }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Channels, height and width of an image.
    pub fn image(&self) -> [usize; 3] {
        self.image
    }

    /// Number of values of an image, `I`.
    pub fn inputs(&self) -> usize {
        self.image.iter().product()
    }

    /// Values of one image: channel by channel, row by row.
    pub fn row(&self, index: usize) -> &[f32] {
        let inputs = self.inputs();
        &self.rows[index * inputs..][..inputs]
    }

    /// Values of all images, `[N, I]`.
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// The class of each image.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// Scores the logits of all images.
    ///
    /// # Shapes
    /// `logits [N, C]`.
    ///
    /// # Panics
    /// If there are not as many rows as images.
    pub fn score(&self, logits: &[f32], classes: usize) -> Score {
        assert_eq!(logits.len(), self.len() * classes, "one row of {classes} logits an image");
        let answers: Vec<usize> = logits.chunks_exact(classes).map(answer).collect();
        let mut terms = logits.to_vec();
        for (terms, &answer) in terms.chunks_exact_mut(classes).zip(&answers) {
            let best = terms[answer];
            terms.iter_mut().for_each(|term| *term -= best);
        }
        exp_negative(&mut terms);
        let (mut loss, mut wrong) = (0.0f64, 0usize);
        let rows = logits.chunks_exact(classes).zip(terms.chunks_exact(classes));
        for ((logits, terms), (&answer, &label)) in rows.zip(answers.iter().zip(&self.labels)) {
            let best = logits[answer];
            // A network that is not a number answers nothing.
            let known = best.is_finite() && !logits.iter().any(|logit| logit.is_nan());
            let sum = if known { terms.iter().sum() } else { f32::NAN };
            loss += f64::from(sum.ln() + best - logits[label]);
            wrong += usize::from(answer != label || !known);
        }
        let count = self.len() as f64;
        Score { loss: loss / count, error: 100.0 * wrong as f64 / count }
    }
}

/// The class with the largest logit, the first of several.
pub fn answer(logits: &[f32]) -> usize {
    let mut best = 0;
    for class in 1..logits.len() {
        if logits[class] > logits[best] {
            best = class;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_that_are_not_numbers_are_wrong_about_everything() {
        let images = Images::new(vec![1.0, -1.0], vec![0, 1], [1, 1, 1]);
        for logits in [[f32::NAN; 4], [1.0, f32::NAN, f32::NAN, 2.0], [f32::INFINITY; 4]] {
            let score = images.score(&logits, 2);
            assert!(score.loss.is_nan());
            assert_eq!(score.error, 100.0);
        }
    }

    #[test]
    fn scores_by_hand() {
        let images = Images::new(vec![2.0, -1.0], vec![0, 1], [1, 1, 1]);
        let score = images.score(&[2.0, 1.0, 0.0, 1.0], 2);
        let expected = (1.0 + (-1.0f64).exp()).ln();
        assert!((score.loss - expected).abs() < 1e-6, "{score:?}");
        assert_eq!(score.error, 0.0);
        assert_eq!(images.score(&[0.0, 1.0, 0.0, 1.0], 2).error, 50.0);
    }
}
