//! A trained G.pt in one file.
//!
//! Tensors carry the names of the reference's state dict; everything needed to
//! sample (configuration, layout, normaliser, metric, prompt range, sampler) is
//! in the metadata, so a file cannot be used on the wrong network by mistake.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::{self, Contents, Entry, FileError, Precision};
use super::{
    Calibration, ConfigError, ModelConfig, Normalizer, ParameterSpec, SamplerConfig, Transformer,
};
use crate::layout::Layout;
use crate::metric::{Direction, Metric};

/// Kind of file, in its header.
const KIND: &str = "G.pt weights file";
/// Name of the buffer of embedding frequencies, which is not trained.
const FREQUENCIES: &str = "scalar_embedder.frequencies";

/// Why weights could not be loaded or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// The configuration in the file is not usable.
    #[error("the configuration in the file is not usable")]
    Config {
        /// What is wrong with it.
        #[from]
        source: ConfigError,
    },
    /// The calibration in the file is not usable.
    #[error(
        "the calibration is not of as many prompts as values, at least two of each, finite and \
         ascending: calibrate the weights again"
    )]
    Calibration,
    /// The prompt range in the file is not usable.
    #[error(
        "prompt range is {best} (best) to {worst} (worst), expected finite values in this order"
    )]
    PromptRange {
        /// Best value.
        best: f64,
        /// Worst value.
        worst: f64,
    },
}

/// Values of the metric that a G.pt can be asked for.
///
/// The best is what a training run reaches on average: the few runs that got
/// further teach too little to be asked for, and updates in a row get worse.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptRange {
    /// The best value: the lowest loss or error, the highest return, averaged over
    /// training runs.
    pub best: f64,
    /// The worst value of any checkpoint.
    pub worst: f64,
}

impl PromptRange {
    /// The value in the range that is nearest to `prompt`.
    pub fn clamp(&self, prompt: f64) -> f64 {
        prompt.clamp(self.best.min(self.worst), self.best.max(self.worst))
    }

    fn is_valid(&self, direction: Direction) -> bool {
        self.best.is_finite()
            && self.worst.is_finite()
            && !direction.is_better(self.worst, self.best)
    }
}

/// What a weights file holds besides tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightsHeader {
    /// Shape of the model.
    pub config: ModelConfig,
    /// The network whose parameters it samples.
    pub layout: Layout,
    /// How parameters are scaled.
    pub normalizer: Normalizer,
    /// The metric it is conditioned on.
    pub metric: Metric,
    /// Values of the metric seen in training.
    pub prompt_range: PromptRange,
    /// Sampler used unless the caller asks for another.
    pub sampler: SamplerConfig,
    /// What is asked for to get what is wanted. `None`: what is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Name of the task that the runs came from.
    pub task: String,
    /// How the weights were made, free-form.
    pub provenance: serde_json::Value,
}

impl WeightsHeader {
    /// What the model is asked for where this value is wanted.
    pub fn asked_for(&self, wanted: f64) -> f64 {
        self.calibration.as_ref().map_or(wanted, |calibration| calibration.prompt(wanted))
    }

    /// Checks prompt range, calibration, sampler and normaliser. The configuration is checked
    /// by [`Weights::model`].
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn validate(&self) -> Result<(), WeightsError> {
        let range = self.prompt_range;
        if !range.is_valid(self.metric.kind.direction()) {
            return Err(WeightsError::PromptRange { best: range.best, worst: range.worst });
        }
        if self.calibration.as_ref().is_some_and(|calibration| !calibration.is_valid()) {
            return Err(WeightsError::Calibration);
        }
        self.sampler.validate()?;
        self.normalizer.validate()?;
        Ok(())
    }
}

/// A trained G.pt: everything that is needed to sample from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// What is known about them.
    pub header: WeightsHeader,
    /// Flat parameters, at the offsets of [`Transformer::parameters`].
    pub parameters: Vec<f32>,
    /// Frequencies of the scalar embedding.
    pub frequencies: Vec<f32>,
}

impl Weights {
    /// Reads a file.
    ///
    /// # Errors
    /// If the file cannot be read, is cut off or foreign, does not hold exactly
    /// the tensors of its configuration, or holds values that are not finite.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        Self::from_bytes(&file::read(path.as_ref())?)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WeightsError> {
        let contents = Contents::<WeightsHeader>::parse(bytes, KIND)?;
        let header = contents.header.clone();
        header.validate()?;
        let model = Transformer::new(header.config.clone(), &header.layout)?;
        let frequencies = contents.tensor(FREQUENCIES, &[header.config.frequencies])?;
        // All are read before anything is allocated for all: the size of the model
        // is what the file says, and may be absurd.
        let read = |spec: &ParameterSpec| {
            Ok::<_, FileError>((spec.range(), contents.tensor(&spec.name, &spec.shape)?))
        };
        let tensors = model.parameters().iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let names = model.parameters().iter().map(|spec| spec.name.as_str());
        contents.check_names(names.chain([FREQUENCIES]))?;
        let mut parameters = vec![0.0; model.num_parameters()];
        for (range, values) in tensors {
            parameters[range].copy_from_slice(&values);
        }
        Ok(Self { header, parameters, frequencies })
    }

    /// Writes a file, whole or not at all.
    ///
    /// The embedding frequencies are kept in full precision, for the phase of
    /// the highest ones needs it.
    ///
    /// # Errors
    /// If a value does not fit the precision, or the disk is full.
    pub fn save(&self, path: impl AsRef<Path>, precision: Precision) -> Result<(), WeightsError> {
        let model = Transformer::new(self.header.config.clone(), &self.header.layout)?;
        let shape = [self.frequencies.len()];
        let frequencies = Entry { name: FREQUENCIES, shape: &shape, values: &self.frequencies };
        let mut entries = vec![(frequencies, Precision::F32)];
        for spec in model.parameters() {
            let values = &self.parameters[spec.range()];
            let entry = Entry { name: &spec.name, shape: &spec.shape, values };
            entries.push((entry, precision));
        }
        Ok(file::write(path.as_ref(), KIND, &self.header, &entries)?)
    }

    /// The narrowest precision that holds the parameters as they are.
    pub fn precision(&self) -> Precision {
        let fits = |narrow: fn(f32) -> f32| self.parameters.iter().all(|&p| narrow(p) == p);
        if fits(|p| half::f16::from_f32(p).to_f32()) {
            Precision::F16
        } else if fits(|p| half::bf16::from_f32(p).to_f32()) {
            Precision::Bf16
        } else {
            Precision::F32
        }
    }

    /// The model that the parameters belong to.
    ///
    /// # Errors
    /// If the configuration is not usable.
    pub fn model(&self) -> Result<Transformer, ConfigError> {
        Transformer::new(self.header.config.clone(), &self.header.layout)?
            .with_frequencies(self.frequencies.clone())
    }
}
