//! Handwritten digits of 8x8 pixels, and a network of 64-10-10 units.
//!
//! The data is part of the library, so this task runs anywhere. Where it comes
//! from and under which licence: `data/README.md`.

use std::io::Read;

use dfdx::prelude::*;
use rand::seq::SliceRandom;
use rand_chacha::rand_core::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::classifier::{Classifier, Data, ImageNetwork, CLASSES};
use super::images::Images;
use super::{RecordingConfig, Schedule, TaskError, TrainingConfig, SPLITS};
use crate::network::Built;

/// Name of the task.
pub(super) const NAME: &str = "digits";

/// Pixels of an image.
const INPUTS: usize = 64;
/// Units of the hidden layer.
const HIDDEN: usize = 10;
/// Largest value of a pixel.
const WHITE: f32 = 16.0;
/// Images for training, validation and testing.
const SIZES: [usize; 3] = [1197, 300, 300];
/// Decides which image goes into which split.
///
/// Splits of so few images differ in difficulty, whence the ample validation and
/// test splits.
const SPLIT_SEED: u64 = 1;

static CSV: &[u8] = include_bytes!("../../data/digits.csv.gz");

/// The network of the task: 64 pixels, 10 hidden units, 10 digits.
#[lopt::network]
#[derive(Clone, Debug)]
pub struct DigitsMlp {
    /// Pixels to hidden units.
    pub hidden: Linear<64, 10>,
    /// Between the two.
    pub activation: ReLU,
    /// Hidden units to digits.
    pub output: Linear<10, 10>,
}

impl ImageNetwork for DigitsMlp {
    type Model = Built<DigitsMlp, f32, Cpu>;
    type Input = (usize, Const<INPUTS>);

    fn input(batch: usize, _: [usize; 3]) -> Self::Input {
        (batch, Const)
    }
}

/// The task `digits`: which digit is it?
///
/// Pixels are divided by 16 and then standardised with the mean and standard
/// deviation of all pixels of the training split.
///
/// # Examples
/// ```
/// use lopt::metric::Split;
/// use lopt::tasks::{Digits, Task};
///
/// let digits = Digits::load()?;
/// let fresh = digits.initial(1)?;
/// let score = digits.measure(&fresh, Split::Test)?;
/// assert!(score[0] > 2.0 && score[1] > 75.0); // loss, error in percent
/// # Ok::<(), lopt::Error>(())
/// ```
pub type Digits = Classifier<DigitsMlp>;

impl Digits {
    /// Unpacks and splits the data that comes with the library.
    ///
    /// # Errors
    /// If the data is damaged.
    pub fn load() -> Result<Self, TaskError> {
        let mut text = String::new();
        flate2::read::GzDecoder::new(CSV)
            .read_to_string(&mut text)
            .map_err(|source| TaskError::Unpack { task: NAME, source })?;
        let mut examples = parse(&text)?;
        let expected: usize = SIZES.iter().sum();
        if examples.len() != expected {
            let problem = format!("there are {} lines, expected {expected}", examples.len());
            return Err(TaskError::Data { task: NAME, line: examples.len(), problem });
        }
        examples.shuffle(&mut ChaCha8Rng::seed_from_u64(SPLIT_SEED));
        let (train, rest) = examples.split_at(SIZES[0]);
        let (validation, test) = rest.split_at(SIZES[1]);
        let (mean, deviation) = moments(train);
        let images = |examples: &[Example]| {
            let pixels = examples.iter().flat_map(|e| e.pixels);
            let rows = pixels.map(|p| ((f64::from(p) - mean) / deviation) as f32).collect();
            Images::new(rows, examples.iter().map(|e| e.digit).collect(), [1, 8, 8])
        };
        let [training, validating, testing] = SIZES;
        Self::new(Data {
            name: NAME,
            summary: format!(
                "8x8 digits, {training} images to train on, {validating} to validate, {testing} \
                 to test; network {INPUTS}-{HIDDEN}-{CLASSES}, ReLU"
            ),
            train: images(train),
            validation: images(validation),
            test: images(test),
            recorded: &SPLITS,
            recording: RecordingConfig {
                training: TrainingConfig {
                    learning_rate: 0.1,
                    schedule: Schedule::Cosine,
                    weight_decay: 5e-3,
                    batch_size: 256,
                    ..TrainingConfig::default()
                },
                ..RecordingConfig::default()
            },
        })
    }
}

/// One line of the data.
#[derive(Clone, Debug)]
struct Example {
    pixels: [f32; INPUTS],
    digit: usize,
}

fn parse(text: &str) -> Result<Vec<Example>, TaskError> {
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            parse_line(line).map_err(|problem| TaskError::Data {
                task: NAME,
                line: index + 1,
                problem,
            })
        })
        .collect()
}

fn parse_line(line: &str) -> Result<Example, String> {
    let mut pixels = [0.0; INPUTS];
    let mut fields = line
        .split(',')
        .map(|field| field.trim().parse::<f32>().map_err(|_| format!("`{field}` is not a number")));
    let mut next = || fields.next().unwrap_or_else(|| Err("it has too few fields".to_owned()));
    for pixel in &mut pixels {
        let value = next()?;
        if !(0.0..=WHITE).contains(&value) {
            return Err(format!("pixel {value}, expected 0 to {WHITE}"));
        }
        *pixel = value / WHITE;
    }
    let digit = next()?;
    if digit.fract() != 0.0 || !(0.0..CLASSES as f32).contains(&digit) {
        return Err(format!("digit {digit}, expected 0 to 9"));
    }
    match fields.next() {
        None => Ok(Example { pixels, digit: digit as usize }),
        Some(_) => Err("it has too many fields".to_owned()),
    }
}

/// Mean and standard deviation of all pixels.
fn moments(examples: &[Example]) -> (f64, f64) {
    let pixels = || examples.iter().flat_map(|e| e.pixels).map(f64::from);
    let count = (examples.len() * INPUTS) as f64;
    let mean = pixels().sum::<f64>() / count;
    let variance = pixels().map(|p| (p - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::metric::Split;
    use crate::network::flatten;
    use crate::tasks::{Algorithm, Task};

    type Model = Built<DigitsMlp, f32, Cpu>;

    #[test]
    fn the_data_is_the_file_that_the_readme_states() {
        use sha2::{Digest, Sha256};
        let sum: String = Sha256::digest(CSV).iter().map(|b| format!("{b:02x}")).collect();
        assert!(include_str!("../../data/README.md").contains(&sum), "{sum}");
    }

    #[test]
    fn the_split_is_fixed_and_standardised() {
        let digits = Digits::load().unwrap();
        for (split, size) in [Split::Train, Split::Validation, Split::Test].into_iter().zip(SIZES) {
            assert_eq!(digits.size(split), size);
        }
        let pixels: Vec<f64> = (0..SIZES[0])
            .flat_map(|i| digits.images(Split::Train).row(i).iter().map(|&p| f64::from(p)))
            .collect();
        let mean = pixels.iter().sum::<f64>() / pixels.len() as f64;
        let square = pixels.iter().map(|p| p * p).sum::<f64>() / pixels.len() as f64;
        assert!(mean.abs() < 1e-6 && (square - 1.0).abs() < 1e-6, "{mean} {square}");
        assert_eq!(digits.images(Split::Test).labels()[..10], FIRST_TEST_DIGITS);
    }

    const FIRST_TEST_DIGITS: [usize; 10] = [7, 8, 1, 7, 4, 9, 0, 1, 6, 4];

    #[test]
    fn lines_that_are_not_examples_are_refused() {
        let line = |pixel: &str, digit: &str| format!("{}{digit}", format!("{pixel},").repeat(64));
        assert_eq!(parse_line(&line("16", "3")).unwrap().digit, 3);
        for broken in
            [line("17", "3"), line("x", "3"), line("1", "10"), line("1", "2,2"), String::new()]
        {
            assert!(parse_line(&broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn scores_agree_with_dfdx() {
        let digits = Digits::load().unwrap();
        let device = Cpu::seed_from_u64(3);
        let model: Model = device.build_module::<DigitsMlp, f32>();
        let images = digits.images(Split::Test);
        let rows: Vec<f32> = (0..images.len()).flat_map(|i| images.row(i).to_vec()).collect();
        let mut hot = vec![0.0; images.len() * CLASSES];
        for (n, &label) in images.labels().iter().enumerate() {
            hot[n * CLASSES + label] = 1.0;
        }
        let input = device.tensor_from_vec(rows, (images.len(), Const::<INPUTS>));
        let target = device.tensor_from_vec(hot, (images.len(), Const::<CLASSES>));
        let expected = cross_entropy_with_logits_loss(model.forward(input), target).array();
        let score = digits.measure(&flatten(&model).unwrap(), Split::Test).unwrap();
        assert!((score[0] - f64::from(expected)).abs() < 1e-5, "{} {expected}", score[0]);
    }

    #[test]
    fn training_is_decided_by_the_seed_and_lowers_the_loss() {
        let digits = Digits::load().unwrap();
        let start = digits.initial(5).unwrap();
        let run = |seed: u64, algorithm| {
            let mut seen = Vec::new();
            let config =
                TrainingConfig { algorithm, steps: 30, learning_rate: 0.02, ..Default::default() };
            digits
                .train(&start, seed, &config, &[0, 10, 30], &mut |step, parameters| {
                    seen.push((step, parameters.to_vec()));
                    ControlFlow::Continue(())
                })
                .unwrap();
            seen
        };
        for algorithm in [Algorithm::SGD, Algorithm::Adam] {
            let seen = run(1, algorithm);
            assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 10, 30]);
            assert_eq!(seen[0].1, start);
            assert_eq!(seen, run(1, algorithm), "same seed, same bits");
            assert_ne!(seen, run(2, algorithm));
            let loss = |p: &[f32]| digits.measure(p, Split::Train).unwrap()[0];
            assert!(loss(&seen[2].1) < 0.8 * loss(&start));
        }
    }

    #[test]
    fn an_observer_can_end_a_training() {
        let digits = Digits::load().unwrap();
        let mut steps = Vec::new();
        let start = digits.initial(0).unwrap();
        digits
            .train(&start, 0, &TrainingConfig::default(), &[0, 1, 2], &mut |step, _| {
                steps.push(step);
                if step == 1 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .unwrap();
        assert_eq!(steps, [0, 1]);
    }
}
