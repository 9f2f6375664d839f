//! Images with labels, and how well a small network sorts them.
//!
//! Evaluation scores hundreds of thousands of networks, so it does not go
//! through dfdx: a ReLU network of two linear layers is read straight from its
//! flat vector. A test holds it against dfdx.
//!
//! Shape letters: `N` images, `I` inputs, `H` hidden units, `C` classes.

/// Images of one split, standardised.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    inputs: usize,
    labels: Vec<usize>,
    rows: Vec<f32>,
    columns: Vec<f32>,
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
    /// `rows [N, I]`, `labels [N]`.
    ///
    /// # Panics
    /// If the lengths do not agree.
    pub fn new(rows: Vec<f32>, labels: Vec<usize>, inputs: usize) -> Self {
        assert_eq!(rows.len(), labels.len() * inputs, "one row of {inputs} values a label");
        let count = labels.len();
        let mut columns = vec![0.0; rows.len()];
        for (n, row) in rows.chunks_exact(inputs).enumerate() {
            for (i, &value) in row.iter().enumerate() {
                columns[i * count + n] = value;
            }
        }
        Self { inputs, labels, rows, columns }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Values of one image.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.rows[index * self.inputs..][..self.inputs]
    }

    /// The class of each image.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// Scores a network `Linear<I, H>`, ReLU, `Linear<H, C>` by its flat vector.
    ///
    /// # Shapes
    /// `parameters [H * I + H + C * H + C]`.
    ///
    /// # Panics
    /// If `parameters` has another length.
    pub fn score_mlp(&self, parameters: &[f32], hidden: usize, classes: usize) -> Score {
        self.score_logits(&self.logits_mlp(parameters, hidden, classes), classes)
    }

    /// The class that such a network gives each image.
    ///
    /// # Panics
    /// If `parameters` has another length.
    pub fn answers_mlp(&self, parameters: &[f32], hidden: usize, classes: usize) -> Vec<usize> {
        let logits = self.logits_mlp(parameters, hidden, classes);
        (0..self.len()).map(|n| answer(|class| logits[class * self.len() + n], classes).0).collect()
    }

    /// # Shapes
    /// Returns `[C, N]`.
    fn logits_mlp(&self, parameters: &[f32], hidden: usize, classes: usize) -> Vec<f32> {
        let (weight1, rest) = parameters.split_at(hidden * self.inputs);
        let (bias1, rest) = rest.split_at(hidden);
        let (weight2, bias2) = rest.split_at(classes * hidden);
        assert_eq!(bias2.len(), classes, "a vector for {hidden} units and {classes} classes");
        let mut units = vec![0.0f32; hidden * self.len()];
        let mut logits = vec![0.0f32; classes * self.len()];
        let count = self.len();
        // Wider instructions where the processor has them; the sums are the same.
        let instructions = pulp::Arch::new();
        let input = &self.columns;
        instructions.dispatch(Linear {
            weight: weight1,
            bias: bias1,
            input,
            output: &mut units,
            count,
        });
        units.iter_mut().for_each(|u| *u = u.max(0.0));
        let input = &units;
        instructions.dispatch(Linear {
            weight: weight2,
            bias: bias2,
            input,
            output: &mut logits,
            count,
        });
        logits
    }

    /// # Shapes
    /// `logits [C, N]`.
    fn score_logits(&self, logits: &[f32], classes: usize) -> Score {
        let count = self.len();
        let (mut loss, mut wrong) = (0.0f64, 0usize);
        for (n, &label) in self.labels.iter().enumerate() {
            let at = |class: usize| logits[class * count + n];
            let (answer, best) = answer(at, classes);
            let sum: f32 = (0..classes).map(|class| (at(class) - best).exp()).sum();
            loss += f64::from(sum.ln() + best - at(label));
            // A network that is not a number answers nothing.
            wrong += usize::from(answer != label || !sum.is_finite());
        }
        Score { loss: loss / count as f64, error: 100.0 * wrong as f64 / count as f64 }
    }
}

/// The class with the largest logit, and that logit.
fn answer(logit: impl Fn(usize) -> f32, classes: usize) -> (usize, f32) {
    let larger = |best: (usize, f32), class: usize| {
        let found = logit(class);
        if found > best.1 {
            (class, found)
        } else {
            best
        }
    };
    (1..classes).fold((0, logit(0)), larger)
}

/// `y = W x + b` on images that lie in columns.
///
/// # Shapes
/// `weight [O, I]`, `bias [O]`, `input [I, N]`, `output [O, N]`, with `count` = `N`.
struct Linear<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    input: &'a [f32],
    output: &'a mut [f32],
    count: usize,
}

impl pulp::NullaryFnOnce for Linear<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let inputs = self.input.len() / self.count;
        let rows = self.output.chunks_exact_mut(self.count);
        for ((output, weight), &bias) in rows.zip(self.weight.chunks_exact(inputs)).zip(self.bias) {
            output.fill(bias);
            for (input, &w) in self.input.chunks_exact(self.count).zip(weight) {
                for (y, &x) in output.iter_mut().zip(input) {
                    *y += w * x;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_is_not_a_number_is_wrong_about_everything() {
        let images = Images::new(vec![1.0, -1.0], vec![0, 1], 1);
        let score = images.score_mlp(&[f32::NAN; 6], 1, 2);
        assert!(score.loss.is_nan());
        assert_eq!(score.error, 100.0);
    }

    #[test]
    fn scores_by_hand() {
        let images = Images::new(vec![2.0, -1.0], vec![0, 1], 1);
        // hidden = relu(x), logits = [hidden, 1]
        let score = images.score_mlp(&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0], 1, 2);
        let expected = ((1.0 + (-1.0f64).exp()).ln() + (1.0 + (-1.0f64).exp()).ln()) / 2.0;
        assert!((score.loss - expected).abs() < 1e-6, "{score:?}");
        assert_eq!(score.error, 0.0);
    }
}
