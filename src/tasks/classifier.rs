//! Small networks that sort images into ten classes.

use std::marker::PhantomData;
use std::ops::ControlFlow;

use dfdx::optim::{Adam, Sgd};
use dfdx::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::images::{answer, Images, Score};
use super::stack::Stack;
use super::training::{
    adam_config, dfdx_error, divergence, sgd_config, train_classifier, Algorithm,
};
use super::{RecordingConfig, Task, TaskError, TrainingConfig};
use crate::layout::Layout;
use crate::metric::{MetricKind, Split};
use crate::network::{flatten, unflatten, Network};

/// Number of classes of every data set here.
pub const CLASSES: usize = 10;
/// Images that go through dfdx at once when a network is scored.
const CHUNK: usize = 250;

/// A network that takes images and returns one logit for each of ten classes.
pub trait ImageNetwork:
    Network + BuildOnDevice<Cpu, f32, Built = Self::Model> + Send + Sync + 'static
{
    /// What dfdx builds from it.
    type Model: TensorCollection<f32, Cpu>
        + Module<Logits<Self::Input, NoneTape>, Output = Logits<Batch, NoneTape>, Error = CpuError>
        + ModuleMut<
            Logits<Self::Input, OwnedTape<f32, Cpu>>,
            Output = Logits<Batch, OwnedTape<f32, Cpu>>,
            Error = CpuError,
        >;
    /// Shape of a batch of images.
    type Input: Shape;

    /// The shape of `batch` images of channels, height and width.
    fn input(batch: usize, image: [usize; 3]) -> Self::Input;
}

/// Shape of the logits of a batch.
type Batch = (usize, Const<CLASSES>);
type Logits<S, T> = Tensor<S, f32, Cpu, T>;

/// A data set and how a network is trained on it.
#[derive(Clone, Debug)]
pub(super) struct Data {
    /// Name of the task.
    pub name: &'static str,
    /// The data and the network, for people.
    pub summary: String,
    pub train: Images,
    pub validation: Images,
    pub test: Images,
    /// Splits that recorded checkpoints are scored on.
    pub recorded: &'static [Split],
    pub recording: RecordingConfig,
}

/// The task of training a network `N` on a set of images.
#[derive(Clone, Debug)]
pub struct Classifier<N> {
    data: Data,
    layout: Layout,
    stack: Option<Stack>,
    network: PhantomData<fn() -> N>,
}

impl<N: ImageNetwork> Classifier<N> {
    pub(super) fn new(data: Data) -> Result<Self, TaskError> {
        let layout = N::layout()?;
        let stack = Stack::of(&layout);
        Ok(Self { data, layout, stack, network: PhantomData })
    }

    /// Loss of a network on the validation split, what G.pt is conditioned on
    /// unless it was trained otherwise.
    ///
    /// # Errors
    /// If the parameters cannot be read, or are not those of such a network.
    pub fn validation_loss<M, E, D>(&self, model: &M) -> Result<f64, TaskError>
    where
        M: TensorCollection<E, D>,
        E: Dtype,
        D: Device<E>,
    {
        let flat: Vec<E> = flatten(model)?;
        let flat: Vec<f32> = flat.iter().map(|p| p.to_f32().unwrap_or(f32::NAN)).collect();
        Ok(self.measure(&flat, Split::Validation)?[0])
    }

    /// Images of a split.
    pub fn images(&self, split: Split) -> &Images {
        match split {
            Split::Train => &self.data.train,
            Split::Validation => &self.data.validation,
            Split::Test => &self.data.test,
        }
    }

    /// Logits of all images of a split, `[N, C]`.
    fn logits(&self, parameters: &[f32], split: Split) -> Result<Vec<f32>, TaskError> {
        self.layout.check_length(parameters.len())?;
        let images = self.images(split);
        if let Some(stack) = &self.stack {
            return Ok(stack.logits(parameters, images.rows(), images.len()));
        }
        let device = Cpu::default();
        let mut model: N::Model = device.try_build_module::<N, f32>().map_err(dfdx_error)?;
        unflatten(&mut model, parameters)?;
        let mut logits = Vec::with_capacity(images.len() * CLASSES);
        for rows in images.rows().chunks(CHUNK * images.inputs()) {
            let shape = N::input(rows.len() / images.inputs(), images.image());
            let mut input = device.try_zeros_like(&shape).map_err(dfdx_error)?;
            input.copy_from(rows);
            logits.extend(model.try_forward(input).map_err(dfdx_error)?.as_vec());
        }
        Ok(logits)
    }
}

impl<N: ImageNetwork> Task for Classifier<N> {
    fn name(&self) -> &'static str {
        self.data.name
    }

    fn summary(&self) -> String {
        self.data.summary.clone()
    }

    fn layout(&self) -> Result<Layout, TaskError> {
        Ok(self.layout.clone())
    }

    fn kinds(&self) -> &'static [MetricKind] {
        &[MetricKind::Loss, MetricKind::Error]
    }

    fn size(&self, split: Split) -> usize {
        self.images(split).len()
    }

    fn recorded_splits(&self) -> &'static [Split] {
        self.data.recorded
    }

    fn image(&self) -> Option<[usize; 3]> {
        Some(self.data.train.image())
    }

    fn initial(&self, seed: u64) -> Result<Vec<f32>, TaskError> {
        let device = Cpu::seed_from_u64(seed);
        let model: N::Model = device.try_build_module::<N, f32>().map_err(dfdx_error)?;
        Ok(flatten(&model)?)
    }

    fn measure(&self, parameters: &[f32], split: Split) -> Result<Vec<f64>, TaskError> {
        let logits = self.logits(parameters, split)?;
        let Score { loss, error } = self.images(split).score(&logits, CLASSES);
        Ok(vec![loss, error])
    }

    fn predictions(&self, parameters: &[f32], split: Split) -> Result<Vec<usize>, TaskError> {
        Ok(self.logits(parameters, split)?.chunks_exact(CLASSES).map(answer).collect())
    }

    fn divergence(
        &self,
        seed: u64,
        queries: usize,
        predicted: &[f32],
        target: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64, TaskError> {
        for vector in [predicted, target, gradient] {
            self.layout.check_length(vector.len())?;
        }
        let images = &self.data.train;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rows = (0..queries).flat_map(|_| images.row(rng.gen_range(0..images.len())));
        let device = Cpu::default();
        let shape = N::input(queries, images.image());
        let mut input = device.try_zeros_like(&shape).map_err(dfdx_error)?;
        input.copy_from(&rows.copied().collect::<Vec<f32>>());
        let mut model: N::Model = device.try_build_module::<N, f32>().map_err(dfdx_error)?;
        divergence(&mut model, &input, predicted, target, gradient)
    }

    fn recording(&self) -> RecordingConfig {
        self.data.recording.clone()
    }

    fn train(
        &self,
        start: &[f32],
        seed: u64,
        config: &TrainingConfig,
        at: &[usize],
        observe: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), TaskError> {
        config.validate()?;
        self.layout.check_length(start.len())?;
        let device = Cpu::seed_from_u64(seed);
        device.try_enable_cache().map_err(dfdx_error)?;
        let mut model: N::Model = device.try_build_module::<N, f32>().map_err(dfdx_error)?;
        unflatten(&mut model, start)?;
        let data = (&self.data.train, seed);
        let observe = &mut |step: usize, model: &N::Model| {
            let parameters = flatten(model)?;
            Ok(observe(step, &parameters))
        };
        let result = match config.algorithm {
            Algorithm::Sgd { momentum } => {
                let mut sgd = Sgd::new(&model, sgd_config(config, momentum));
                train_classifier::<N, _>(&device, &mut model, &mut sgd, data, config, at, observe)
            }
            Algorithm::Adam => {
                let mut adam = Adam::new(&model, adam_config(config));
                train_classifier::<N, _>(&device, &mut model, &mut adam, data, config, at, observe)
            }
        };
        device.try_disable_cache().map_err(dfdx_error)?;
        result
    }
}
