//! Training of a G.pt: what is saved goes on as if it had never stopped, and
//! what cannot be gone on with is refused and changes nothing.

use std::path::Path;
use std::sync::Arc;

use lopt::checkpoints::{Dataset, DatasetConfig, Metadata, RunInfo, Store};
use lopt::gpt::{ModelConfig, SamplerConfig, TrainError, Trainer, TrainerConfig};
use lopt::layout::LayoutBuilder;
use lopt::metric::Metric;

/// Twelve runs of a small network whose parameters and losses shrink.
fn dataset(folder: &Path, shift: f64) -> Arc<Dataset> {
    let mut layout = LayoutBuilder::new();
    layout.scope("hidden", |b| b.linear(3, 4, true));
    layout.scope("output", |b| b.linear(4, 2, true));
    let layout = layout.finish().unwrap();
    let size = layout.num_parameters();
    let metadata = Metadata::new("toy", layout, vec![Metric::VALIDATION_LOSS]);
    let store = Store::create(folder, metadata).unwrap();
    for id in 0..12 {
        let mut run = store.begin_run(RunInfo::new(id, id)).unwrap();
        for step in 0..5 {
            let share = 1.0 / (1.0 + step as f32);
            let flat: Vec<f32> =
                (0..size).map(|p| share * (p as f32 * 0.7 + id as f32).sin()).collect();
            run.record_flat(&flat, &[f64::from(share) + shift]).unwrap();
        }
        run.finish().unwrap();
    }
    let config = DatasetConfig { held_out: 2, ..DatasetConfig::default() };
    Dataset::load(&store, &config).unwrap().into()
}

fn config() -> TrainerConfig {
    TrainerConfig { steps: 8, batch: 6, warmup: 2, ..TrainerConfig::default() }
}

fn trainer(dataset: &Arc<Dataset>, config: TrainerConfig, threads: usize) -> Trainer {
    let model =
        ModelConfig { width: 16, heads: 2, blocks: 1, frequencies: 4, ..ModelConfig::default() };
    Trainer::new(dataset.clone(), model, config, threads).unwrap()
}

fn steps(trainer: &mut Trainer, count: usize) -> Vec<u64> {
    (0..count).map(|_| trainer.step().unwrap().loss.to_bits()).collect()
}

fn bits(trainer: &Trainer) -> Vec<u32> {
    let weights = trainer.weights(SamplerConfig::default(), "toy", serde_json::Value::Null);
    weights.parameters.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_resumed_training_ends_at_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(&folder.path().join("store"), 0.0);
    let state = folder.path().join("state");
    for threads in [1, 2] {
        let mut whole = trainer(&data, config(), threads);
        let losses = steps(&mut whole, 8);
        assert!(whole.is_finished());
        for stop in [0, 3, 8] {
            let mut first = trainer(&data, config(), threads);
            assert_eq!(steps(&mut first, stop), losses[..stop]);
            // Watching a training does not change it.
            first.held_out_loss(2).unwrap();
            first.save(&state).unwrap();
            let mut second = trainer(&data, config(), threads);
            second.resume(&state).unwrap();
            assert_eq!(second.steps_done(), stop as u64);
            assert_eq!(steps(&mut second, 8 - stop), losses[stop..]);
            assert_eq!(bits(&second), bits(&whole));
        }
    }
}

#[test]
fn a_state_of_another_training_or_a_broken_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(&folder.path().join("store"), 0.0);
    let other = dataset(&folder.path().join("other"), 0.5);
    let state = folder.path().join("state");
    let mut saved = trainer(&data, config(), 1);
    steps(&mut saved, 3);
    saved.save(&state).unwrap();
    let whole = std::fs::read(&state).unwrap();

    let seed = TrainerConfig { seed: 1, ..config() };
    for mut different in [trainer(&other, config(), 1), trainer(&data, seed, 1)] {
        let before = bits(&different);
        let error = different.resume(&state).unwrap_err();
        assert!(matches!(error, TrainError::Mismatch { .. }), "{error}");
        assert_eq!((different.steps_done(), bits(&different)), (0, before));
    }
    let mut fresh = trainer(&data, config(), 1);
    let before = bits(&fresh);
    for cut in (0..whole.len()).step_by(whole.len() / 50) {
        std::fs::write(&state, &whole[..cut]).unwrap();
        assert!(matches!(fresh.resume(&state), Err(TrainError::File(_))), "cut to {cut} bytes");
        assert_eq!((fresh.steps_done(), bits(&fresh)), (0, before.clone()));
    }
}

#[test]
fn settings_that_cannot_be_used_are_errors() {
    let good = TrainerConfig::default();
    assert!(good.validate().is_ok());
    for bad in [
        TrainerConfig { steps: 0, ..good.clone() },
        TrainerConfig { batch: 0, ..good.clone() },
        TrainerConfig { batch: usize::MAX, ..good.clone() },
        TrainerConfig { learning_rate: f64::NAN, ..good.clone() },
        TrainerConfig { weight_decay: -1.0, ..good.clone() },
        TrainerConfig { gradient_clip: Some(0.0), ..good.clone() },
        TrainerConfig { ema_decay: 1.0, ..good.clone() },
    ] {
        assert!(bad.validate().is_err(), "{bad:?}");
    }
}
