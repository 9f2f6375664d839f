//! Trainings on made-up runs.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::*;
use crate::checkpoints::{DatasetConfig, Metadata, RunInfo, Store};
use crate::layout::LayoutBuilder;

/// Made-up runs: parameters shrink, and the metric with them.
pub(super) fn dataset(hidden: usize, runs: u64, metric: Metric) -> Arc<Dataset> {
    let folder = tempfile::tempdir().unwrap();
    let mut builder = LayoutBuilder::new();
    builder.scope("hidden", |b| b.linear(2, hidden, true));
    builder.scope("output", |b| b.linear(hidden, 1, true));
    let layout = builder.finish().unwrap();
    let size = layout.num_parameters();
    let metadata = Metadata::new("shrink", layout, vec![metric]);
    let store = Store::create(folder.path(), metadata).unwrap();
    for id in 0..runs {
        let mut run = store.begin_run(RunInfo::new(id, id)).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(id);
        let start: Vec<f32> = (0..size).map(|_| rng.sample(StandardNormal)).collect();
        for scale in [1.0f32, 0.8, 0.5, 0.3, 0.1] {
            let flat: Vec<f32> = start.iter().map(|p| p * scale).collect();
            run.record_flat(&flat, &[f64::from(scale)]).unwrap();
        }
        run.finish().unwrap();
    }
    let config = DatasetConfig { metric, held_out: 2, train: None };
    Arc::new(Dataset::load(&store, &config).unwrap())
}

pub(super) fn model() -> ModelConfig {
    ModelConfig { width: 8, blocks: 1, heads: 2, frequencies: 4, ..ModelConfig::default() }
}

pub(super) fn config() -> TrainerConfig {
    TrainerConfig { steps: 6, batch: 5, warmup: 2, ..TrainerConfig::default() }
}

fn trainer(dataset: &Arc<Dataset>, config: TrainerConfig) -> Trainer {
    Trainer::new(dataset.clone(), model(), config, 1).unwrap()
}

#[test]
fn resumed_at_any_step_a_training_ends_at_the_same_bits() {
    let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut unbroken = trainer(&dataset, config());
    let reports: Vec<StepReport> = (0..6).map(|_| unbroken.step().unwrap()).collect();
    assert!(unbroken.is_finished());
    for broken_at in 0..=6 {
        let mut first = trainer(&dataset, config());
        for _ in 0..broken_at {
            first.step().unwrap();
        }
        first.save(&path).unwrap();
        let mut second = trainer(&dataset, config());
        second.resume(&path).unwrap();
        assert_eq!(second.steps_done(), broken_at as u64);
        assert_eq!(second.state, first.state);
        for report in &reports[broken_at..] {
            // Looking at the held-out loss must not matter.
            second.held_out_loss(1).unwrap();
            assert_eq!(second.step().unwrap(), *report);
        }
        assert_eq!(second.state, unbroken.state);
    }
}

#[test]
fn a_diverging_loss_is_an_error_that_changes_nothing() {
    let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
    let config = TrainerConfig { learning_rate: 1e30, warmup: 0, gradient_clip: None, ..config() };
    let mut trainer = trainer(&dataset, config);
    let error = loop {
        let before = trainer.state.clone();
        if let Err(error) = trainer.step() {
            assert_eq!(trainer.state, before);
            break error;
        }
        assert!(!trainer.is_finished(), "it does not diverge");
    };
    let step = trainer.steps_done();
    assert!(matches!(error, TrainError::Diverged { step: s, .. } if s == step), "{error}");
    assert!(trainer.step().is_err(), "and again");
}

/// The sum of all parameters is what a network answers.
struct Sum;

impl Behavior for Sum {
    fn divergence(
        &self,
        seed: u64,
        predicted: &[f32],
        target: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64, BehaviorError> {
        let sum = |values: &[f32]| values.iter().sum::<f32>();
        let difference = sum(predicted) - sum(target);
        // Part of it depends on the seed, as that of random inputs does.
        let weight = 1.0 + (seed % 2) as f32;
        gradient.fill(2.0 * weight * difference);
        Ok(f64::from(weight * difference * difference))
    }

    fn describe(&self) -> String {
        "the sum".to_owned()
    }
}

#[test]
fn the_divergence_of_answers_falls_and_is_not_formed_without_a_weight() {
    let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
    let train = |behavior: f64| -> Vec<f64> {
        let config = TrainerConfig { behavior, steps: 100, learning_rate: 5e-3, ..config() };
        let mut trainer = trainer(&dataset, config).with_behavior(Box::new(Sum));
        std::iter::repeat_with(|| trainer.step().unwrap().divergence).take(100).flatten().collect()
    };
    assert!(train(0.0).is_empty());
    let found = train(1.0);
    let mean = |steps: &[f64]| steps.iter().sum::<f64>() / steps.len() as f64;
    let (before, after) = (mean(&found[..20]), mean(&found[80..]));
    assert!(after < 0.6 * before, "from {before} to {after}");
}

#[test]
fn a_training_with_answers_goes_on_to_the_same_bits_on_any_number_of_threads() {
    let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let config = TrainerConfig { behavior: 0.5, ..config() };
    let new = |threads| {
        Trainer::new(dataset.clone(), model(), config.clone(), threads)
            .unwrap()
            .with_behavior(Box::new(Sum))
    };
    for threads in [1, 2] {
        let mut unbroken = new(threads);
        let reports: Vec<StepReport> = (0..6).map(|_| unbroken.step().unwrap()).collect();
        let mut first = new(threads);
        first.step().unwrap();
        first.save(&path).unwrap();
        let mut second = new(threads);
        second.resume(&path).unwrap();
        for report in &reports[1..] {
            assert_eq!(second.step().unwrap(), *report);
        }
        assert_eq!(second.state, unbroken.state);
    }

    let mut without = Trainer::new(dataset.clone(), model(), config, 1).unwrap();
    let error = without.resume(&path).unwrap_err().to_string();
    assert!(error.contains(r#"another behavioural loss: found "the sum", expected """#), "{error}");
}

#[test]
fn what_answers_cannot_be_compared_is_an_error_that_changes_nothing() {
    struct Broken;
    impl Behavior for Broken {
        fn divergence(
            &self,
            _: u64,
            _: &[f32],
            _: &[f32],
            _: &mut [f32],
        ) -> Result<f64, BehaviorError> {
            Err("no images".into())
        }
    }
    let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
    let config = TrainerConfig { behavior: 0.5, ..config() };
    let mut without = trainer(&dataset, config.clone());
    let before = without.state.clone();
    let error = without.step().unwrap_err();
    assert!(matches!(error, TrainError::NoBehavior { weight: 0.5 }), "{error}");
    assert_eq!(without.state, before);
    let mut broken = without.with_behavior(Box::new(Broken));
    let error = broken.step().unwrap_err();
    assert!(matches!(&error, TrainError::Behavior(source) if source.to_string() == "no images"));
    assert_eq!(broken.state, before);

    let noise = ModelConfig { prediction: Prediction::Noise, ..model() };
    let error = Trainer::new(dataset, noise, config, 1).err().unwrap().to_string();
    assert!(error.contains("behavior") && error.contains("clean parameters"), "{error}");
}

#[test]
fn a_state_of_another_training_is_refused_and_says_why() {
    let data = dataset(3, 8, Metric::VALIDATION_LOSS);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut saved = trainer(&data, config());
    saved.step().unwrap();
    saved.save(&path).unwrap();

    let new = |dataset: Arc<Dataset>, model: ModelConfig, config: TrainerConfig| {
        Trainer::new(dataset, model, config, 1).unwrap()
    };
    let others = [
        ("configuration", new(data.clone(), model(), TrainerConfig { seed: 1, ..config() })),
        ("configuration", new(data.clone(), model(), TrainerConfig { steps: 7, ..config() })),
        ("model", new(data.clone(), ModelConfig { width: 16, ..model() }, config())),
        ("data set", new(dataset(3, 9, Metric::VALIDATION_LOSS), model(), config())),
        ("data set", new(dataset(3, 8, Metric::VALIDATION_ERROR), model(), config())),
        ("layout", new(dataset(4, 8, Metric::VALIDATION_LOSS), model(), config())),
    ];
    for (what, mut other) in others {
        let before = other.state.clone();
        let error = other.resume(&path).unwrap_err().to_string();
        let start = format!("the training state was made with another {what}: found ");
        assert!(error.starts_with(&start), "{error}");
        assert_eq!(other.state, before);
    }

    let bytes = std::fs::read(&path).unwrap();
    let before = saved.state.clone();
    for cut in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert!(matches!(saved.resume(&path), Err(TrainError::File(_))), "cut to {cut} bytes");
        assert_eq!(saved.state, before);
    }
}

#[test]
fn a_training_starts_at_other_weights_of_the_same_model_only() {
    let data = dataset(3, 8, Metric::VALIDATION_LOSS);
    let mut first = trainer(&data, config());
    first.step().unwrap();
    let weights = first.weights(SamplerConfig::default(), "shrink", serde_json::Value::Null);
    // Another metric may be scaled in another way.
    let scaled = ModelConfig { metric_scale: 0.5, ..model() };
    let mut second = Trainer::new(data.clone(), scaled, config(), 1).unwrap();
    second.start_at(&weights).unwrap();
    assert_eq!(second.state.parameters, first.state.average);
    assert_eq!(second.state.average, first.state.average);
    for (what, mut other) in [
        ("layout", trainer(&dataset(4, 8, Metric::VALIDATION_LOSS), config())),
        ("model", Trainer::new(data, ModelConfig { width: 16, ..model() }, config(), 1).unwrap()),
    ] {
        let error = other.start_at(&weights).unwrap_err().to_string();
        assert!(error.contains(&format!("have another {what}: found")), "{error}");
    }
}

#[test]
fn the_held_out_loss_is_always_of_the_same_pairs_and_falls() {
    let dataset = dataset(3, 8, Metric::VALIDATION_LOSS);
    let config = TrainerConfig { steps: 200, learning_rate: 5e-3, ..config() };
    let mut trainer = trainer(&dataset, config);
    let before = trainer.held_out_loss(4).unwrap();
    assert_eq!(trainer.held_out_loss(4).unwrap(), before);
    while !trainer.is_finished() {
        trainer.step().unwrap();
    }
    let after = trainer.held_out_loss(4).unwrap();
    assert!(after < 0.8 * before, "from {before} to {after}");
    assert!(matches!(trainer.held_out_loss(0), Err(TrainError::Config(_))));
}

#[test]
fn the_prompt_range_is_that_of_the_runs_to_train_on() {
    use crate::metric::{MetricKind, Split};
    let reward = Metric { kind: MetricKind::Return, split: Split::Validation };
    for (metric, best, worst) in [(Metric::VALIDATION_LOSS, 0.1, 1.0), (reward, 1.0, 0.1)] {
        let trainer = trainer(&dataset(3, 4, metric), config());
        let weights = trainer.weights(SamplerConfig::default(), "shrink", serde_json::Value::Null);
        let range = weights.header.prompt_range;
        assert!((range.best - best).abs() < 1e-6 && (range.worst - worst).abs() < 1e-6);
        weights.header.validate().unwrap();
    }
}
