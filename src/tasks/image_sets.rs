//! MNIST, Fashion-MNIST and CIFAR-10, and the networks of the G.pt paper.
//!
//! The images lie in a folder of the user's; `scripts/fetch-data.sh` fetches the
//! first two. The last images of the training files are for validation.
//!
//! # Source
//! Networks, standardisation and [`paper`]: Peebles et al. 2022,
//! arXiv:2209.12892, appendix, and the G.pt code.

use std::path::Path;

use dfdx::prelude::*;

use super::classifier::{Classifier, Data, ImageNetwork, CLASSES};
use super::images::Images;
use super::training::{Schedule, TrainingConfig};
use super::{cifar, idx, Moments, RecordingConfig, Task, TaskError};
use crate::metric::Split;
use crate::network::Built;

/// What must be in a folder of IDX files.
const IDX_FILES: &str = "train-images-idx3-ubyte, train-labels-idx1-ubyte and the two t10k files, \
                         as scripts/fetch-data.sh fetches them";
/// Images kept from training for validation.
const VALIDATION: usize = 5000;
/// Those of them that count for networks of convolutions, which take longer to score.
const VALIDATION_CNN: usize = 2000;

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

/// The task of this name, if it is one of image sets.
pub(super) fn by_name(name: &str, data: Option<&Path>) -> Result<Option<Box<dyn Task>>, TaskError> {
    Ok(Some(match name {
        "mnist" => Box::new(mlp("mnist", &MNIST, data)?),
        "fashion-mnist" => Box::new(mlp("fashion-mnist", &FASHION, data)?),
        _ => return Ok(None),
    }))
}

/// The paper's recording: SGD with momentum 0.9, rate 0.1 falling along a cosine
/// that changes once an epoch, weight decay 5e-4, batch 128, 200 checkpoints at
/// random steps.
pub fn paper(images: usize, epochs: usize) -> RecordingConfig {
    let epoch = images.div_ceil(128);
    RecordingConfig {
        training: TrainingConfig {
            learning_rate: 0.1,
            schedule: Schedule::Staircase { steps: epoch },
            weight_decay: 5e-4,
            batch_size: 128,
            steps: epochs * epoch,
            ..TrainingConfig::default()
        },
        saves: 200,
        moments: Moments::Random,
        ..RecordingConfig::default()
    }
}

/// A data set in IDX files.
struct Set {
    title: &'static str,
    mean: f32,
    deviation: f32,
}

const MNIST: Set = Set { title: "MNIST", mean: 0.1307, deviation: 0.3081 };
const FASHION: Set = Set { title: "Fashion-MNIST", mean: 0.2860, deviation: 0.3530 };

fn mlp(
    name: &'static str,
    set: &Set,
    data: Option<&Path>,
) -> Result<Classifier<ImageMlp>, TaskError> {
    let [train, validation, test] = set.load(name, data, VALIDATION)?;
    let summary = set.summary(&train, &validation, &test, "784-10-10, ReLU");
    let recording = RecordingConfig {
        training: TrainingConfig { steps: 1200, ..paper(train.len(), 1).training },
        runs: 3000,
        ..RecordingConfig::default()
    };
    let recording = RecordingConfig {
        training: TrainingConfig { schedule: Schedule::Cosine, ..recording.training },
        ..recording
    };
    let recorded = &[Split::Validation];
    Classifier::new(Data { name, summary, train, validation, test, recorded, recording })
}

impl Set {
    /// Training, validation and test images.
    fn load(
        &self,
        task: &'static str,
        data: Option<&Path>,
        validation: usize,
    ) -> Result<[Images; 3], TaskError> {
        let folder = data.ok_or(TaskError::NoData { task, expected: IDX_FILES })?;
        let read = |part: &str| -> Result<_, TaskError> {
            let name = format!("{part}-images-idx3-ubyte");
            let images = idx::read(folder, &name)?;
            let problem =
                |name: &str, problem| TaskError::File { path: folder.join(name), problem };
            if images.shape.len() != 3 || images.shape[1..] != [28, 28] {
                let found = format!("its shape is {:?}, expected [N, 28, 28]", images.shape);
                return Err(problem(&name, found));
            }
            let name = format!("{part}-labels-idx1-ubyte");
            let labels = idx::read(folder, &name)?;
            if labels.shape != images.shape[..1] {
                let (found, expected) = (&labels.shape, images.shape[0]);
                return Err(problem(
                    &name,
                    format!("its shape is {found:?}, expected [{expected}]"),
                ));
            }
            if let Some(label) = labels.values.iter().find(|&&label| usize::from(label) >= CLASSES)
            {
                return Err(problem(&name, format!("it has a label {label}, expected 0 to 9")));
            }
            Ok((images.values, labels.values))
        };
        let (images, labels) = read("train")?;
        let (test_images, test_labels) = read("t10k")?;
        if labels.len() < 2 * VALIDATION || test_labels.is_empty() {
            let path = folder.join("train-images-idx3-ubyte");
            let problem = format!("it has {} images, expected 60000", labels.len());
            return Err(TaskError::File { path, problem });
        }
        let split = labels.len() - VALIDATION;
        let some = |range: std::ops::Range<usize>| {
            let pixels = &images[range.start * 784..range.end * 784];
            self.images(pixels, &labels[range])
        };
        Ok([
            some(0..split),
            some(split..split + validation),
            self.images(&test_images, &test_labels),
        ])
    }

    /// Pixels from 0 to 255, standardised.
    fn images(&self, pixels: &[u8], labels: &[u8]) -> Images {
        let value = |&pixel: &u8| (f32::from(pixel) / 255.0 - self.mean) / self.deviation;
        let labels = labels.iter().map(|&label| usize::from(label)).collect();
        Images::new(pixels.iter().map(value).collect(), labels, [1, 28, 28])
    }

    fn summary(&self, train: &Images, validation: &Images, test: &Images, network: &str) -> String {
        format!(
            "{}, {} images to train on, {} to validate, {} to test; network {network}",
            self.title,
            train.len(),
            validation.len(),
            test.len()
        )
    }
}
