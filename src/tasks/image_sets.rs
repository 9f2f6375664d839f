//! MNIST, Fashion-MNIST and CIFAR-10, and the networks of the G.pt paper.
//!
//! The images lie in a folder of the user's; `scripts/fetch-data.sh` fetches the
//! first two. The last images of the training files are for validation.
//!
//! # Source
//! Networks, standardisation and [`paper`]: Peebles et al. 2022,
//! arXiv:2209.12892, appendix, and the G.pt code.

use std::ops::Range;
use std::path::Path;

use dfdx::prelude::{Const, Cpu, Linear, ReLU};

use super::classifier::{Classifier, Data, ImageNetwork, CLASSES};
use super::images::Images;
use super::training::{Algorithm, Schedule, TrainingConfig};
use super::{cifar, idx, Moments, RecordingConfig, Task, TaskError};
use crate::metric::Split;
use crate::network::Built;
use crate::nn;

/// What must be in a folder of IDX files.
const IDX_FILES: &str = "train-images-idx3-ubyte, train-labels-idx1-ubyte and the two t10k files, \
                         as scripts/fetch-data.sh fetches them";
/// Name of the task on CIFAR-10.
const CIFAR: &str = "cifar10";
/// What must be in the folder of CIFAR-10.
const CIFAR_FILES: &str = "data_batch_1.bin to data_batch_5.bin and test_batch.bin, the binary \
                           version of CIFAR-10";
/// One in so many of the training images is kept for validation.
const VALIDATION: usize = 12;
/// Share of the validation images that networks of convolutions, which take
/// longer to score, are measured on, in percent.
const VALIDATION_CNN: usize = 40;

/// MNIST's first network in the paper: 784 pixels, 10 hidden units, 10 classes.
#[lopt::network]
#[derive(Clone, Debug)]
pub struct ImageMlp {
    /// Pixels to hidden units.
    pub hidden: Linear<784, 10>,
    /// Between the two.
    pub activation: ReLU,
    /// Hidden units to classes.
    pub output: Linear<10, 10>,
}

impl ImageNetwork for ImageMlp {
    type Model = Built<ImageMlp, f32, Cpu>;
    type Input = (usize, Const<784>);

    fn input(batch: usize, _: [usize; 3]) -> Self::Input {
        (batch, Const)
    }
}

/// The paper's network of convolutions, for images of `C` channels.
#[lopt::network]
#[derive(Clone, Debug)]
pub struct ImageCnn<const C: usize> {
    /// 16 channels of half the height and width.
    pub first: nn::UnbiasedConv2D<C, 16, 3, 2>,
    /// Between the two.
    pub first_activation: ReLU,
    /// 32 channels.
    pub second: nn::UnbiasedConv2D<16, 32, 3>,
    /// After it.
    pub second_activation: ReLU,
    /// Mean of each channel.
    pub pool: nn::AvgPoolGlobal,
    /// Channels to classes.
    pub output: Linear<32, 10>,
}

impl<const C: usize> ImageNetwork for ImageCnn<C> {
    type Model = Built<ImageCnn<C>, f32, Cpu>;
    type Input = (usize, Const<C>, usize, usize);

    fn input(batch: usize, [_, height, width]: [usize; 3]) -> Self::Input {
        (batch, Const, height, width)
    }
}

/// The task of this name, if it is one of image sets.
pub(super) fn by_name(name: &str, data: Option<&Path>) -> Result<Option<Box<dyn Task>>, TaskError> {
    Ok(Some(match name {
        "mnist" => mlp(MNIST.load("mnist", data, 100)?)?,
        "mnist-cnn" => cnn::<1>(MNIST.load("mnist-cnn", data, VALIDATION_CNN)?)?,
        "fashion-mnist" => mlp(FASHION.load("fashion-mnist", data, 100)?)?,
        "fashion-mnist-cnn" => {
            cnn::<1>(FASHION.load("fashion-mnist-cnn", data, VALIDATION_CNN)?)?
        }
        CIFAR => cnn::<3>(cifar10(data)?)?,
        _ => return Ok(None),
    }))
}

/// The paper's recording: SGD with momentum 0.9, rate 0.1 falling along a cosine
/// that changes once an epoch, weight decay 5e-4, batch 128, 25 epochs (50 for
/// CIFAR-10), 200 checkpoints at random steps.
pub fn paper(task: &dyn Task) -> RecordingConfig {
    let epoch = task.size(Split::Train).div_ceil(PAPER.batch_size);
    let epochs = if task.name() == CIFAR { 50 } else { 25 };
    RecordingConfig {
        training: TrainingConfig {
            schedule: Schedule::Staircase { steps: epoch },
            steps: epochs * epoch,
            ..PAPER
        },
        saves: 200,
        moments: Moments::Random,
        ..RecordingConfig::default()
    }
}

/// Optimizer of the paper's recordings.
const PAPER: TrainingConfig = TrainingConfig {
    algorithm: Algorithm::SGD,
    learning_rate: 0.1,
    schedule: Schedule::Cosine,
    weight_decay: 5e-4,
    batch_size: 128,
    steps: 1600,
};

/// A task of the perceptron: runs of 1600 steps.
fn mlp(set: Set) -> Result<Box<dyn Task>, TaskError> {
    let recording = RecordingConfig {
        training: PAPER,
        runs: 4000,
        saves: 40,
        // With power 2 there is nothing between a loss of 1.9 and one of 0.9.
        moments: Moments::Spaced(3.0),
        ..RecordingConfig::default()
    };
    Ok(Box::new(Classifier::<ImageMlp>::new(set.data("784-10-10, ReLU", recording))?))
}

/// A task of the convolutions: runs of 400 steps of half the batch.
fn cnn<const C: usize>(set: Set) -> Result<Box<dyn Task>, TaskError> {
    let recording = RecordingConfig {
        training: TrainingConfig { batch_size: 64, steps: 400, ..PAPER },
        runs: 1000,
        saves: 12,
        ..RecordingConfig::default()
    };
    let network = "conv 3x3 stride 2 (16), conv 3x3 (32), global mean, linear; ReLU";
    Ok(Box::new(Classifier::<ImageCnn<C>>::new(set.data(network, recording))?))
}

/// A data set for one task.
struct Set {
    task: &'static str,
    title: &'static str,
    train: Images,
    validation: Images,
    test: Images,
}

impl Set {
    fn data(self, network: &str, recording: RecordingConfig) -> Data {
        let Self { task, title, train, validation, test } = self;
        let [trained, validated, tested] = [&train, &validation, &test].map(Images::len);
        let summary = format!(
            "{title}, {trained} images to train on, {validated} to validate, {tested} to test; \
             network {network}"
        );
        let recorded = &[Split::Validation];
        Data { name: task, summary, train, validation, test, recorded, recording }
    }

    /// Splits training images; `share` percent of those for validation are used.
    fn split(
        (task, title): (&'static str, &'static str),
        (pixels, labels): (&[u8], &[u8]),
        test: Images,
        share: usize,
        images: impl Fn(&[u8], &[u8]) -> Images,
    ) -> Self {
        let kept = labels.len() / VALIDATION;
        let first = labels.len() - kept;
        let used = (kept * share).div_ceil(100);
        let size = pixels.len() / labels.len();
        let part = |range: Range<usize>| {
            images(&pixels[range.start * size..range.end * size], &labels[range])
        };
        Self { task, title, train: part(0..first), validation: part(first..first + used), test }
    }
}

/// A data set in IDX files, and what its pixels are standardised with.
struct IdxSet {
    title: &'static str,
    mean: f32,
    deviation: f32,
}

const MNIST: IdxSet = IdxSet { title: "MNIST", mean: 0.1307, deviation: 0.3081 };
const FASHION: IdxSet = IdxSet { title: "Fashion-MNIST", mean: 0.2860, deviation: 0.3530 };

impl IdxSet {
    fn load(
        &self,
        task: &'static str,
        data: Option<&Path>,
        share: usize,
    ) -> Result<Set, TaskError> {
        let folder = data.ok_or(TaskError::NoData { task, expected: IDX_FILES })?;
        let (images, labels) = read_idx(folder, "train")?;
        let (test_images, test_labels) = read_idx(folder, "t10k")?;
        let test = self.images(&test_images, &test_labels);
        let standardise = |pixels: &[u8], labels: &[u8]| self.images(pixels, labels);
        Ok(Set::split((task, self.title), (&images, &labels), test, share, standardise))
    }

    fn images(&self, pixels: &[u8], labels: &[u8]) -> Images {
        let value = |&pixel: &u8| (f32::from(pixel) / 255.0 - self.mean) / self.deviation;
        let labels = labels.iter().map(|&label| usize::from(label)).collect();
        Images::new(pixels.iter().map(value).collect(), labels, [1, 28, 28])
    }
}

/// Pixels and labels of a part of a data set, `train` or `t10k`.
fn read_idx(folder: &Path, part: &str) -> Result<(Vec<u8>, Vec<u8>), TaskError> {
    let problem = |name: &str, problem| TaskError::File { path: folder.join(name), problem };
    let name = format!("{part}-images-idx3-ubyte");
    let images = idx::read(folder, &name)?;
    match images.shape[..] {
        [count, 28, 28] if count >= VALIDATION => {}
        ref shape => {
            let expected = format!("[N, 28, 28] with at least {VALIDATION} images");
            return Err(problem(&name, format!("its shape is {shape:?}, expected {expected}")));
        }
    }
    let name = format!("{part}-labels-idx1-ubyte");
    let labels = idx::read(folder, &name)?;
    if labels.shape != images.shape[..1] {
        let (found, expected) = (&labels.shape, images.shape[0]);
        return Err(problem(&name, format!("its shape is {found:?}, expected [{expected}]")));
    }
    if let Some(label) = labels.values.iter().find(|&&label| usize::from(label) >= CLASSES) {
        return Err(problem(&name, format!("it has a label {label}, expected 0 to 9")));
    }
    Ok((images.values, labels.values))
}

/// Mean and standard deviation of CIFAR-10's channels, of pixels from 0 to 255.
const CIFAR_MOMENTS: [(f32, f32); 3] = [(125.3, 63.0), (123.0, 62.1), (113.9, 66.7)];

fn cifar10(data: Option<&Path>) -> Result<Set, TaskError> {
    let folder = data.ok_or(TaskError::NoData { task: CIFAR, expected: CIFAR_FILES })?;
    let names = [1, 2, 3, 4, 5].map(|i| format!("data_batch_{i}.bin"));
    let (images, labels) = cifar::read(folder, &names)?;
    let (test_images, test_labels) = cifar::read(folder, &["test_batch.bin".to_owned()])?;
    let test = cifar_images(&test_images, &test_labels);
    let train = (&images[..], &labels[..]);
    Ok(Set::split((CIFAR, "CIFAR-10"), train, test, VALIDATION_CNN, cifar_images))
}

fn cifar_images(pixels: &[u8], labels: &[u8]) -> Images {
    let rows = pixels
        .chunks_exact(cifar::PIXELS / 3)
        .zip(CIFAR_MOMENTS.iter().cycle())
        .flat_map(|(channel, &(mean, deviation))| {
            channel.iter().map(move |&pixel| (f32::from(pixel) - mean) / deviation)
        })
        .collect();
    let labels = labels.iter().map(|&label| usize::from(label)).collect();
    Images::new(rows, labels, [3, 32, 32])
}
