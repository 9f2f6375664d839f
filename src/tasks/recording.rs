//! What is recorded for a learned optimizer to learn from.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::training::{Schedule, TrainingConfig};
use super::{metrics, SeedError, Seeds, Starts, Task, TaskError};
use crate::checkpoints::{
    record_runs, Metadata, Precision, RecordOptions, RecordReport, Run, RunInfo, Store, StoreError,
};
use crate::metric::Split;
use crate::optimizer::UpdateError;

/// Why a task could not be recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The task failed.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A seed or the number of a run is too large.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// A network to start at could not be sampled.
    #[error("a network to start at could not be sampled")]
    Start(#[from] UpdateError),
    /// The store holds runs that were recorded in another way.
    #[error(
        "the store was recorded with {found}, expected {expected}: choose another folder, or the \
         same settings to go on"
    )]
    Settings {
        /// Settings in the store.
        found: String,
        /// Settings asked for.
        expected: String,
    },
}

/// Which moments of a run are kept, besides its start and its end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moments {
    /// Steps drawn evenly and anew for each run, as in the G.pt paper.
    Random,
    /// Checkpoint `i` of `n` is taken at step `steps * (i / (n - 1)) ^ power`: above 1 they
    /// are dense at the start, where the loss still moves.
    #[serde(untagged)]
    Spaced(f64),
}

/// How runs are trained, and which of their moments are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordingConfig {
    /// How each network is trained. Default SGD with Nesterov momentum 0.9, rate 0.05
    /// falling to 0 along a cosine, weight decay 5e-4, 400 steps of 64 images.
    pub training: TrainingConfig,
    /// Runs. Default 5000.
    pub runs: u64,
    /// Checkpoints of a run, the first and the last included. Default 50.
    pub saves: usize,
    /// At which steps. Default [`Moments::Spaced`] with power 2.
    pub moments: Moments,
    /// The user's seed, below 2^31; see [`Seeds`]. Default 0.
    pub seed: u64,
}

impl Default for RecordingConfig {
    fn default() -> Self {
        Self {
            training: TrainingConfig {
                schedule: Schedule::Cosine,
                weight_decay: 5e-4,
                ..TrainingConfig::default()
            },
            runs: 5000,
            saves: 50,
            moments: Moments::Spaced(2.0),
            seed: 0,
        }
    }
}

impl RecordingConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range.
    pub fn validate(&self) -> Result<(), TaskError> {
        self.training.validate()?;
        let setting = |field, found: String, expected: &str| {
            Err(TaskError::Setting { field, found, expected: expected.to_owned() })
        };
        // All runs are listed in memory before the first is recorded.
        if !(1..=1 << 20).contains(&self.runs) {
            return setting("runs", self.runs.to_string(), "1 to 2^20");
        }
        // Fewer than are asked for are kept where there are not as many steps.
        if !(2..=1 << 20).contains(&self.saves) {
            return setting("saves", self.saves.to_string(), "2 to 2^20");
        }
        if let Moments::Spaced(power) = self.moments {
            if !(power > 0.0 && power.is_finite()) {
                return setting("spacing", power.to_string(), "a positive number");
            }
        }
        Ok(())
    }

    /// Everything but the number of runs, which may grow.
    fn settings(&self) -> serde_json::Value {
        serde_json::json!({
            "training": self.training,
            "saves": self.saves,
            "spacing": self.moments,
            "seed": self.seed,
        })
    }

    /// Steps at which a run of this seed keeps a checkpoint, ascending. Fewer than
    /// `saves` where several fall on one step.
    pub fn steps(&self, seed: u64) -> Vec<usize> {
        let steps = self.training.steps;
        match self.moments {
            Moments::Spaced(power) => {
                let last = self.saves - 1;
                let share = |i| (i as f64 / last as f64).powf(power);
                let mut all: Vec<usize> =
                    (0..=last).map(|i| (share(i) * steps as f64).round() as usize).collect();
                all.dedup();
                all
            }
            Moments::Random => {
                let between = (self.saves - 2).min(steps - 1);
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let mut all: Vec<usize> = rand::seq::index::sample(&mut rng, steps - 1, between)
                    .into_iter()
                    .map(|step| step + 1)
                    .chain([0, steps])
                    .collect();
                all.sort_unstable();
                all
            }
        }
    }
}

/// Opens the store in a folder for a recording, or makes one.
///
/// # Errors
/// If the store cannot be opened for writing, or was recorded with other settings.
pub fn open_store(
    task: &dyn Task,
    path: impl AsRef<Path>,
    config: &RecordingConfig,
    precision: Precision,
) -> Result<Store, RecordingError> {
    config.validate()?;
    let settings = config.settings();
    let size = |split| task.size(split);
    let metadata = Metadata {
        precision,
        provenance: serde_json::json!({
            "recording": settings,
            "splits": {
                "train": size(Split::Train),
                "validation": size(Split::Validation),
                "test": size(Split::Test),
            },
            "lopt": env!("CARGO_PKG_VERSION"),
        }),
        ..Metadata::new(task.name(), task.layout()?, metrics(task))
    };
    let store = Store::open_or_create(path, metadata)?;
    let found = &store.metadata().provenance["recording"];
    if *found == settings {
        Ok(store)
    } else {
        let (found, expected) = differences(found, &settings);
        Err(RecordingError::Settings { found, expected })
    }
}

/// Where two settings differ, each as `name value, name value`.
fn differences(found: &Value, expected: &Value) -> (String, String) {
    let names: BTreeSet<_> =
        [found, expected].into_iter().filter_map(Value::as_object).flat_map(|o| o.keys()).collect();
    if names.is_empty() {
        return (found.to_string(), expected.to_string());
    }
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for name in names {
        let (a, b) = (&found[name], &expected[name]);
        if a == b {
            continue;
        }
        if a.is_object() && b.is_object() {
            let (a, b) = differences(a, b);
            left.push(a);
            right.push(b);
        } else {
            left.push(format!("{name} {a}"));
            right.push(format!("{name} {b}"));
        }
    }
    (left.join(", "), right.join(", "))
}

/// Records the runs of a task that the store does not have yet.
///
/// Runs begin at a fresh initialisation, or at that of `starts`.
///
/// # Errors
/// If the settings are unusable or the store cannot be written to. Errors of
/// single runs are in the report.
pub fn record(
    task: &dyn Task,
    store: &Store,
    config: &RecordingConfig,
    starts: &Starts,
    options: &RecordOptions,
) -> Result<RecordReport<RecordingError>, RecordingError> {
    config.validate()?;
    let seeds = Seeds::recording(config.seed)?;
    let infos = (0..config.runs)
        .map(|id| {
            Ok(RunInfo { hyperparameters: starts.describe(id), ..RunInfo::new(id, seeds.run(id)?) })
        })
        .collect::<Result<Vec<_>, SeedError>>()?;
    for entry in store.runs()? {
        let found = &entry.info.hyperparameters["weights"];
        let expected = starts.describe(entry.info.id);
        let expected = &expected["weights"];
        if found.is_string() && expected.is_string() && found != expected {
            let of = |weights: &Value| format!("samples of weights {weights} as starts");
            return Err(RecordingError::Settings { found: of(found), expected: of(expected) });
        }
    }
    Ok(record_runs(store, infos, options, |run| record_run(task, config, starts, run))?)
}

/// Trains one network and records it. Everything follows from the run's seed.
fn record_run(
    task: &dyn Task,
    config: &RecordingConfig,
    starts: &Starts,
    run: &mut Run,
) -> Result<(), RecordingError> {
    let seed = run.info().seed;
    let start = match starts.get(run.info().id) {
        Some(start) => start.to_vec(),
        None => task.initial(seed)?,
    };
    let mut result = Ok(());
    let save = |run: &mut Run, step: usize, parameters: &[f32]| {
        let mut values = Vec::new();
        for &split in task.recorded_splits() {
            values.extend(task.measure(parameters, split)?);
        }
        run.at(step as u64).record_flat(parameters, &values)?;
        Ok(())
    };
    task.train(&start, seed, &config.training, &config.steps(seed), &mut |step, parameters| {
        result = save(run, step, parameters);
        // A diverged run is dropped in the end: it need not go on.
        if result.is_err() || run.reason().is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_dense_at_the_start_and_hold_both_ends() {
        let steps = RecordingConfig::default().steps(0);
        assert_eq!(steps.first(), Some(&0));
        assert_eq!(steps.last(), Some(&400));
        assert!(steps.windows(2).all(|w| w[0] < w[1]));
        assert!(steps[1] - steps[0] < steps[steps.len() - 1] - steps[steps.len() - 2]);
    }

    #[test]
    fn random_moments_follow_from_the_seed_and_hold_both_ends() {
        let config = RecordingConfig { moments: Moments::Random, ..RecordingConfig::default() };
        let steps = config.steps(3);
        assert_eq!((steps.len(), steps[0], steps[49]), (50, 0, 400));
        assert!(steps.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(steps, config.steps(3));
        assert_ne!(steps, config.steps(4));
        let more = RecordingConfig { saves: 1000, ..config };
        assert_eq!(more.steps(0), (0..=400).collect::<Vec<_>>());
    }

    #[test]
    fn settings_that_cannot_be_used_are_named() {
        let good = RecordingConfig::default();
        assert!(good.validate().is_ok());
        for (bad, field) in [
            (RecordingConfig { runs: 0, ..good.clone() }, "runs"),
            (RecordingConfig { runs: u64::MAX, ..good.clone() }, "runs"),
            (RecordingConfig { saves: 1, ..good.clone() }, "saves"),
            (RecordingConfig { saves: usize::MAX, ..good.clone() }, "saves"),
            (RecordingConfig { moments: Moments::Spaced(f64::NAN), ..good.clone() }, "spacing"),
        ] {
            assert!(bad.validate().unwrap_err().to_string().contains(field), "{field}");
        }
    }

    #[test]
    fn runs_are_recorded_once_and_are_decided_by_their_seed() {
        let digits = crate::tasks::Digits::load().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let training = TrainingConfig { steps: 6, ..RecordingConfig::default().training };
        let mut config =
            RecordingConfig { training, runs: 2, saves: 3, ..RecordingConfig::default() };
        let at = |name: &str| folder.path().join(name);
        let store = open_store(&digits, at("a"), &config, Precision::F32).unwrap();
        let options = RecordOptions { threads: 1, ..RecordOptions::default() };
        let fresh = Starts::default();
        assert_eq!(record(&digits, &store, &config, &fresh, &options).unwrap().progress.kept, 2);
        config.runs = 3;
        let report = record(&digits, &store, &config, &fresh, &options).unwrap();
        assert_eq!((report.progress.skipped, report.progress.kept), (2, 1));

        let again = open_store(&digits, at("b"), &config, Precision::F32).unwrap();
        record(&digits, &again, &config, &fresh, &RecordOptions::default()).unwrap();
        for id in 0..3 {
            let (a, b) = (store.read_run(id).unwrap(), again.read_run(id).unwrap());
            assert_eq!(a.parameters, b.parameters);
            assert_eq!(a.iterations, [0, 2, 6]);
        }
        drop(store);
        config.training.learning_rate = 0.01;
        let error = open_store(&digits, at("a"), &config, Precision::F32).unwrap_err();
        assert!(matches!(error, RecordingError::Settings { .. }), "{error}");
    }
}
