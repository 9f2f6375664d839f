//! Problems to train small networks on, record and compare optimizers with.
//!
//! A [`Task`] is a network, its data in three [splits](Split) and an ordinary
//! dfdx training loop. Everything above (recording, evaluation, the command)
//! sees only the trait, so a further data set or a control problem is one more
//! implementation.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::layout::{Layout, LayoutError};
use crate::metric::{Metric, MetricKind, Split};
use crate::network::NetworkError;

mod behavior;
mod cifar;
pub mod classifier;
#[cfg(feature = "gym")]
pub mod control;
pub mod digits;
pub mod file;
mod idx;
pub mod image_sets;
pub mod images;
pub mod recording;
pub mod seeds;
mod stack;
pub mod starts;
pub mod training;

pub use behavior::TaskBehavior;
pub use classifier::{Classifier, ImageNetwork};
#[cfg(feature = "gym")]
pub use control::{cart_pole::CartPole, mountain_car::MountainCar};
pub use digits::{Digits, DigitsMlp};
pub use file::{load_network, save_network, NetworkFileError};
pub use recording::{open_store, record, Moments, RecordingConfig, RecordingError};
pub use seeds::{SeedError, Seeds};
pub use starts::Starts;
pub use training::{Algorithm, Schedule, TrainingConfig};

/// Why a task could not be set up, scored or trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// No task has this name.
    #[error("no task is named `{found}`, expected one of: {expected}")]
    Unknown {
        /// Name asked for.
        found: String,
        /// Names there are.
        expected: String,
    },
    /// The data could not be unpacked.
    #[error("cannot unpack the data of task `{task}`")]
    Unpack {
        /// Name of the task.
        task: &'static str,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A line of the data is not an example.
    #[error("line {line} of the data of task `{task}` is not an example: {problem}")]
    Data {
        /// Name of the task.
        task: &'static str,
        /// Line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The images of the task are not bundled, and no folder was named.
    #[error("task `{task}` needs its images: name the folder of {expected} (`--data FOLDER`)")]
    NoData {
        /// Name of the task.
        task: &'static str,
        /// What must be in the folder, and where it can be had.
        expected: &'static str,
    },
    /// A folder was named for a task that needs none.
    #[error("task `{task}` comes with its data: leave `--data` out")]
    Bundled {
        /// Name of the task.
        task: &'static str,
    },
    /// The task was left out when lopt was built.
    #[error(
        "task `{task}` is not part of this build: build lopt with `--features {feature}`, which \
         needs {needs}"
    )]
    Feature {
        /// Name of the task.
        task: &'static str,
        /// The feature of the package that adds it.
        feature: &'static str,
        /// What must be installed first.
        needs: &'static str,
    },
    /// A file of images or labels is missing, cut off or something else.
    #[error("cannot use {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// A setting is outside its range.
    #[error("`{field}` is {found}, expected {expected}")]
    Setting {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// The network's layout is unusable, or a flat vector does not fit it.
    #[error(transparent)]
    Layout(Box<LayoutError>),
    /// The network's parameters could not be read or written.
    #[error(transparent)]
    Network(Box<NetworkError>),
    /// dfdx failed.
    #[error("dfdx cannot train the network: {0}")]
    Dfdx(String),
    /// A thread pool could not be made.
    #[error("cannot start threads")]
    Threads {
        /// What went wrong.
        source: rayon::ThreadPoolBuildError,
    },
}

impl From<LayoutError> for TaskError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(Box::new(error))
    }
}

impl From<NetworkError> for TaskError {
    fn from(error: NetworkError) -> Self {
        Self::Network(Box::new(error))
    }
}

/// What the length of a training is told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StepUnit {
    /// `steps`, or `environment steps`.
    pub name: &'static str,
    /// How many of them one step of the optimizer is.
    pub per_step: usize,
}

impl Default for StepUnit {
    fn default() -> Self {
        Self { name: "steps", per_step: 1 }
    }
}

/// An episode to look at, from its first state to its last.
#[derive(Clone, Debug, PartialEq)]
pub enum Course {
    /// Of cart-pole: how far the cart is from the middle of its track, in metres to the
    /// right, and how far the pole leans, in radians to the right.
    CartPole(Vec<[f64; 2]>),
    /// Of mountain car: where the car is, -1.2 to 0.6 with the flag at 0.5.
    MountainCar(Vec<f64>),
}

/// A network, data to train it on, and how it is scored.
pub trait Task: Send + Sync {
    /// Name, as the command spells it.
    fn name(&self) -> &'static str;

    /// One line for people: the data and the network.
    fn summary(&self) -> String;

    /// Layout of the network's parameters.
    ///
    /// # Errors
    /// If the network has no usable layout.
    fn layout(&self) -> Result<Layout, TaskError>;

    /// What [`measure`](Self::measure) returns, in its order.
    fn kinds(&self) -> &'static [MetricKind];

    /// Examples in a split.
    fn size(&self, split: Split) -> usize;

    /// Splits that recorded checkpoints are scored on, validation among them.
    fn recorded_splits(&self) -> &'static [Split];

    /// Value of the first metric from which on a network counts as good, where there is
    /// such a convention.
    fn good(&self) -> Option<f64> {
        None
    }

    /// Optimizers that an update is compared with.
    fn algorithms(&self) -> &'static [Algorithm] {
        &[Algorithm::SGD, Algorithm::Adam]
    }

    /// What training with one of them is called.
    fn title(&self, algorithm: Algorithm) -> &'static str {
        algorithm.title()
    }

    /// How they are trained, but for algorithm and rate.
    fn baseline(&self) -> TrainingConfig {
        TrainingConfig { steps: 1500, ..TrainingConfig::default() }
    }

    /// What the length of a training by these settings is told in.
    fn unit(&self, _config: &TrainingConfig) -> StepUnit {
        StepUnit::default()
    }

    /// Channels, height and width of an input, where inputs are images.
    fn image(&self) -> Option<[usize; 3]>;

    /// A freshly initialised network, as dfdx initialises it.
    ///
    /// # Errors
    /// If dfdx fails.
    fn initial(&self, seed: u64) -> Result<Vec<f32>, TaskError>;

    /// Scores a network on a split.
    ///
    /// # Errors
    /// If `parameters` has the wrong length.
    fn measure(&self, parameters: &[f32], split: Split) -> Result<Vec<f64>, TaskError>;

    /// The class that a network answers for each example of a split.
    ///
    /// # Errors
    /// If `parameters` has the wrong length.
    fn predictions(&self, parameters: &[f32], split: Split) -> Result<Vec<usize>, TaskError>;

    /// How far the answers of one network are from those of another: mean
    /// Kullback-Leibler divergence, in nats, of the probabilities of `predicted` from
    /// those of `target`, over `queries` examples of the training split drawn from
    /// `seed`. Its gradient with respect to `predicted` replaces `gradient`.
    ///
    /// # Shapes
    /// `predicted`, `target`, `gradient [P]`.
    ///
    /// # Errors
    /// If a vector has the wrong length, or dfdx fails.
    fn divergence(
        &self,
        seed: u64,
        queries: usize,
        predicted: &[f32],
        target: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64, TaskError>;

    /// One test episode with a policy, where the task has episodes.
    ///
    /// # Errors
    /// If `parameters` has the wrong length.
    fn course(&self, _parameters: &[f32]) -> Result<Option<Course>, TaskError> {
        Ok(None)
    }

    /// How this task's runs are recorded unless the user says otherwise.
    fn recording(&self) -> RecordingConfig;

    /// Trains a network from `start` with dfdx's loop and optimizer.
    ///
    /// `observe` gets the step (0 is `start`) and the parameters at each of
    /// `at`, which must ascend; it ends the training early with `Break`. `seed`
    /// decides the order of the examples.
    ///
    /// # Errors
    /// If a setting is outside its range, or dfdx fails.
    fn train(
        &self,
        start: &[f32],
        seed: u64,
        config: &TrainingConfig,
        at: &[usize],
        observe: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), TaskError>;
}

/// The task of this name, with the folder of its data where it is not bundled.
///
/// # Errors
/// If there is none, or its data is missing or damaged.
pub fn by_name(name: &str, data: Option<&Path>) -> Result<Box<dyn Task>, TaskError> {
    match name {
        digits::NAME if data.is_some() => Err(TaskError::Bundled { task: digits::NAME }),
        digits::NAME => Ok(Box::new(Digits::load()?)),
        CARTPOLE => control(CARTPOLE, data),
        MOUNTAIN_CAR => control(MOUNTAIN_CAR, data),
        _ => image_sets::by_name(name, data)?.ok_or_else(|| TaskError::Unknown {
            found: name.to_owned(),
            expected: NAMES.join(", "),
        }),
    }
}

/// The control problem of this name.
fn control(task: &'static str, data: Option<&Path>) -> Result<Box<dyn Task>, TaskError> {
    if data.is_some() {
        return Err(TaskError::Bundled { task });
    }
    #[cfg(feature = "gym")]
    return match task {
        MOUNTAIN_CAR => Ok(Box::new(MountainCar::new()?)),
        _ => Ok(Box::new(CartPole::new()?)),
    };
    #[cfg(not(feature = "gym"))]
    Err(TaskError::Feature {
        task,
        feature: "gym",
        needs: "cmake and SDL2_gfx, on Debian `apt-get install cmake libsdl2-gfx-dev`",
    })
}

/// Names of all tasks.
pub const NAMES: &[&str] = &[
    digits::NAME,
    "mnist",
    "mnist-cnn",
    "fashion-mnist",
    "fashion-mnist-cnn",
    "cifar10",
    CARTPOLE,
    MOUNTAIN_CAR,
];

/// Names of the tasks of feature `gym`, known without it too.
const CARTPOLE: &str = "cartpole";
const MOUNTAIN_CAR: &str = "mountain-car";

/// Order of the splits in what is recorded.
const SPLITS: [Split; 3] = [Split::Validation, Split::Test, Split::Train];

/// What is recorded with a checkpoint: every kind of metric on every recorded split.
pub fn metrics(task: &dyn Task) -> Vec<Metric> {
    task.recorded_splits()
        .iter()
        .flat_map(|&split| task.kinds().iter().map(move |&kind| Metric { kind, split }))
        .collect()
}
