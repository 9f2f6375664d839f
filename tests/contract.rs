//! What every optimizer of this crate keeps to, whatever it does: one table.
//!
//! To add an optimizer, write a [`Case`] and add a line to the table at the end.

use std::cell::Cell;
use std::sync::{Arc, OnceLock};

use dfdx::nn::tensor_collection::*;
use dfdx::optim::Sgd;
use dfdx::prelude::*;
use lopt::checkpoints::{
    record_runs, Dataset, DatasetConfig, Metadata, RecordOptions, RunInfo, Store, StoreError,
};
use lopt::gpt::{Gpt, GptConfig, ModelConfig, SamplerConfig, Trainer, TrainerConfig, Weights};
use lopt::metric::Metric;
use lopt::network::{flatten, unflatten, Built, Network};
use lopt::optimizer::{Adapter, LearnedOptimizer, OptimizerState, StateError, UpdateError};
use rand_distr::Distribution;

/// An optimizer, with a model and a task for it.
trait Case {
    type Model: TensorCollection<f32, Cpu> + Clone;

    /// Updates after which the metric has to be below `SHARE` of its start.
    const UPDATES: usize;
    const SHARE: f64;

    /// A freshly initialised model.
    fn model(seed: u64) -> Self::Model;

    /// The optimizer, made for `model`, always alike.
    fn optimizer(model: &Self::Model) -> Box<dyn LearnedOptimizer<Self::Model, f32, Cpu>>;

    /// What is to be lowered, and its gradients.
    fn evaluate(model: &Self::Model) -> (f64, Gradients<f32, Cpu>);
}

/// Everything that an update is given: the same for optimizers of all kinds.
fn update<C: Case>(
    optimizer: &mut dyn LearnedOptimizer<C::Model, f32, Cpu>,
    model: &mut C::Model,
) -> Result<(), UpdateError> {
    let (metric, gradients) = C::evaluate(model);
    optimizer.observe(metric.into());
    optimizer.try_update(model, Some(&gradients)).map(|_| ())
}

fn bits<M: TensorCollection<f32, Cpu>>(model: &M) -> Vec<u32> {
    let flat: Vec<f32> = flatten(model).unwrap();
    flat.into_iter().map(f32::to_bits).collect()
}

fn lowers_the_metric<C: Case>() {
    for seed in 0..3 {
        let mut model = C::model(seed);
        let mut optimizer = C::optimizer(&model);
        let start = C::evaluate(&model).0;
        for _ in 0..C::UPDATES {
            update::<C>(&mut *optimizer, &mut model).unwrap();
        }
        let end = C::evaluate(&model).0;
        assert!(end < C::SHARE * start, "{}: from {start} to {end}", optimizer.name());
    }
}

fn is_deterministic<C: Case>() {
    let (mut a, mut b) = (C::model(1), C::model(1));
    let (mut first, mut second) = (C::optimizer(&a), C::optimizer(&b));
    for _ in 0..5 {
        update::<C>(&mut *first, &mut a).unwrap();
        update::<C>(&mut *second, &mut b).unwrap();
        assert_eq!(bits(&a), bits(&b));
    }
}

/// dfdx's `update` does what `try_update` does.
fn is_a_dfdx_optimizer<C: Case>() {
    let (mut a, mut b) = (C::model(2), C::model(2));
    let (mut first, mut second) = (C::optimizer(&a), C::optimizer(&b));
    for _ in 0..3 {
        update::<C>(&mut *first, &mut a).unwrap();
        let (metric, gradients) = C::evaluate(&b);
        second.observe(metric.into());
        second.update(&mut b, &gradients).unwrap();
        assert!(second.last_error().is_none());
        assert_eq!(bits(&a), bits(&b));
    }
}

/// Tensors stay the tensors they were, so gradients allocated once stay valid;
/// clones of the model are not touched.
fn keeps_tensors_and_clones<C: Case>() {
    let mut model = C::model(3);
    let mut optimizer = C::optimizer(&model);
    let (clone, before, ids) = (model.clone(), bits(&model), ids(&model));
    update::<C>(&mut *optimizer, &mut model).unwrap();
    assert_ne!(bits(&model), before);
    assert_eq!(bits(&clone), before);
    assert_eq!(self::ids(&model), ids);
}

/// Every kind of misuse: an error, the model unchanged bit for bit, and the
/// optimizer as if it had not been called.
fn an_error_changes_nothing<C: Case>() {
    type Misuse<'a, M> = Box<dyn Fn(&mut M) -> (Option<f64>, Option<Gradients<f32, Cpu>>) + 'a>;
    let metric = |model: &C::Model| Some(C::evaluate(model).0);
    let needs = C::optimizer(&C::model(4)).needs();
    let mut misuses: Vec<(String, Misuse<C::Model>)> = Vec::new();
    if needs.gradients {
        misuses.push(("no gradients".into(), Box::new(|model| (metric(model), None))));
        for missing in 0..ids(&C::model(4)).len() {
            let name = format!("no gradient for tensor {missing}");
            misuses.push((
                name,
                Box::new(move |model| {
                    let gradients =
                        gradients(model, |tensor, _| (tensor != missing).then_some(0.1));
                    (metric(model), Some(gradients))
                }),
            ));
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            misuses.push((
                format!("gradient {bad}"),
                Box::new(move |model| {
                    let last = ids(model).len() - 1;
                    let value = |tensor, i| if (tensor, i) == (last, 0) { bad } else { 0.1 };
                    (metric(model), Some(gradients(model, |tensor, i| Some(value(tensor, i)))))
                }),
            ));
        }
    }
    if needs.feedback {
        let all = |model: &C::Model| Some(C::evaluate(model).1);
        misuses.push(("nothing observed".into(), Box::new(move |model| (None, all(model)))));
        for bad in [f64::NAN, f64::INFINITY] {
            misuses
                .push((format!("observed {bad}"), Box::new(move |model| (Some(bad), all(model)))));
        }
    }
    assert!(!misuses.is_empty(), "an optimizer that needs nothing is none");

    for (what, misuse) in misuses {
        for through_dfdx in [false, true] {
            let mut model = C::model(4);
            let mut twin = model.clone();
            let mut optimizer = C::optimizer(&model);
            let mut unharmed = C::optimizer(&model);
            for _ in 0..2 {
                update::<C>(&mut *optimizer, &mut model).unwrap();
                update::<C>(&mut *unharmed, &mut twin).unwrap();
            }
            let (metric, gradients) = misuse(&mut model);
            let before = bits(&model);
            if let Some(metric) = metric {
                optimizer.observe(metric.into());
            }
            match gradients.as_ref().filter(|_| through_dfdx) {
                Some(gradients) => {
                    optimizer.update(&mut model, gradients).expect_err(&what);
                    assert!(optimizer.last_error().is_some(), "{what}");
                }
                None => {
                    optimizer.try_update(&mut model, gradients.as_ref()).expect_err(&what);
                }
            }
            assert_eq!(bits(&model), before, "{what}: the model changed");
            for _ in 0..2 {
                update::<C>(&mut *optimizer, &mut model).unwrap();
                update::<C>(&mut *unharmed, &mut twin).unwrap();
            }
            assert_eq!(bits(&model), bits(&twin), "{what}: the optimizer changed");
        }
    }
}

/// Huge parameters and gradients, finite all the same: a finite model or an
/// error and no change.
fn never_writes_what_is_not_finite<C: Case>() {
    for (value, gradient) in [(3e38, -3e38), (-3e38, 3e38), (0.0, 3e38), (1e38, 1e38), (0.0, 1e20)]
    {
        let mut model = C::model(5);
        let mut optimizer = C::optimizer(&model);
        update::<C>(&mut *optimizer, &mut model).unwrap();
        let length = bits(&model).len();
        unflatten(&mut model, &vec![value; length]).unwrap();
        let gradients = gradients(&model, |_, _| Some(gradient));
        for _ in 0..3 {
            let before = bits(&model);
            optimizer.observe(1.0.into());
            match optimizer.try_update(&mut model, Some(&gradients)) {
                Ok(_) => assert!(bits(&model).iter().all(|&b| f32::from_bits(b).is_finite())),
                Err(_) => assert_eq!(bits(&model), before),
            }
        }
    }
}

fn a_restored_optimizer_continues<C: Case>() {
    let mut model = C::model(6);
    let mut optimizer = C::optimizer(&model);
    for updates in [0, 3] {
        for _ in 0..updates {
            update::<C>(&mut *optimizer, &mut model).unwrap();
        }
        let state = match optimizer.state() {
            Err(StateError::Unsupported { .. }) => return,
            other => other.unwrap(),
        };
        assert_eq!(state.optimizer(), optimizer.name());
        let json = serde_json::to_string(&state).unwrap();
        let state: OptimizerState = serde_json::from_str(&json).unwrap();

        // As in a new process: another model object, another optimizer.
        let mut other = C::model(7);
        unflatten(&mut other, &flatten(&model).unwrap() as &[f32]).unwrap();
        let mut restored = C::optimizer(&other);
        restored.restore(&state).unwrap();
        assert_eq!(restored.state().unwrap(), state);
        let (mut model, mut original) = (model.clone(), C::optimizer(&model));
        original.restore(&state).unwrap();
        for _ in 0..3 {
            update::<C>(&mut *original, &mut model).unwrap();
            update::<C>(&mut *restored, &mut other).unwrap();
            assert_eq!(bits(&model), bits(&other));
        }
    }
    // And the one that was never interrupted goes the same way.
    let state = optimizer.state().unwrap();
    let mut other = model.clone();
    let mut restored = C::optimizer(&other);
    restored.restore(&state).unwrap();
    for _ in 0..3 {
        update::<C>(&mut *optimizer, &mut model).unwrap();
        update::<C>(&mut *restored, &mut other).unwrap();
        assert_eq!(bits(&model), bits(&other));
    }
}

fn a_foreign_state_is_refused<C: Case>() {
    let (mut model, mut twin) = (C::model(8), C::model(8));
    let mut optimizer = C::optimizer(&model);
    let mut unharmed = C::optimizer(&model);
    let foreign = OptimizerState::new("somebody else", &0).unwrap();
    assert!(optimizer.restore(&foreign).is_err());
    let garbage = OptimizerState::new(optimizer.name(), &[1.5]).unwrap();
    assert!(optimizer.restore(&garbage).is_err());
    update::<C>(&mut *optimizer, &mut model).unwrap();
    update::<C>(&mut *unharmed, &mut twin).unwrap();
    assert_eq!(bits(&model), bits(&twin));
}

/// Identities of the trainable tensors.
fn ids<M: TensorCollection<f32, Cpu>>(model: &M) -> Vec<UniqueId> {
    struct Ids(UnusedTensors);
    impl TensorVisitor<f32, Cpu> for Ids {
        type Viewer = ViewTensorRef;
        type Err = std::convert::Infallible;
        type E2 = f32;
        type D2 = Cpu;
        fn visit<S: Shape>(
            &mut self,
            options: TensorOptions<S, f32, Cpu>,
            tensor: &Tensor<S, f32, Cpu>,
        ) -> Result<Option<Tensor<S, f32, Cpu>>, Self::Err> {
            if options.do_gradient_update {
                self.0.add(tensor);
            }
            Ok(None)
        }
    }
    let mut visitor = Ids(UnusedTensors::default());
    M::iter_tensors(&mut RecursiveWalker { m: model, f: &mut visitor }).unwrap();
    visitor.0.ids
}

/// Made-up gradients: the value for each position of each tensor, or none for
/// tensors to leave out.
fn gradients<M: TensorCollection<f32, Cpu>>(
    model: &M,
    value: impl Fn(usize, usize) -> Option<f32>,
) -> Gradients<f32, Cpu> {
    struct Make<F> {
        gradients: Gradients<f32, Cpu>,
        tensor: usize,
        value: F,
    }
    impl<F: Fn(usize, usize) -> Option<f32>> TensorVisitor<f32, Cpu> for Make<F> {
        type Viewer = ViewTensorRef;
        type Err = CpuError;
        type E2 = f32;
        type D2 = Cpu;
        fn visit<S: Shape>(
            &mut self,
            options: TensorOptions<S, f32, Cpu>,
            tensor: &Tensor<S, f32, Cpu>,
        ) -> Result<Option<Tensor<S, f32, Cpu>>, CpuError> {
            if options.do_gradient_update {
                if (self.value)(self.tensor, 0).is_some() {
                    let storage = self.gradients.get_or_alloc_mut(tensor)?;
                    let (at, position) = (self.tensor, Cell::new(0));
                    let next = Next(|| {
                        position.set(position.get() + 1);
                        (self.value)(at, position.get() - 1).unwrap()
                    });
                    SampleTensor::<f32>::try_fill_with_distr(tensor.device(), storage, next)?;
                }
                self.tensor += 1;
            }
            Ok(None)
        }
    }
    struct Next<F>(F);
    impl<F: Fn() -> f32> Distribution<f32> for Next<F> {
        fn sample<R: rand::Rng + ?Sized>(&self, _: &mut R) -> f32 {
            (self.0)()
        }
    }
    let mut make = Make { gradients: Gradients::leaky(), tensor: 0, value };
    M::iter_tensors(&mut RecursiveWalker { m: model, f: &mut make }).unwrap();
    make.gradients
}

/// Regression of a smooth function of two variables.
#[lopt::network]
struct Regression {
    hidden: Linear<2, 8>,
    activation: Tanh,
    norm: LayerNorm1D<8>,
    output: Linear<8, 1>,
}

type Regressor = Built<Regression, f32, Cpu>;

fn regressor(seed: u64) -> Regressor {
    Cpu::seed_from_u64(seed).build_module::<Regression, f32>()
}

fn regression(model: &Regressor) -> (f64, Gradients<f32, Cpu>) {
    let dev = Cpu::seed_from_u64(100);
    let x: Tensor<Rank2<32, 2>, f32, _> = dev.sample_normal();
    let y = x.clone().sin().sum::<Rank1<32>, Axis<1>>().reshape::<Rank2<32, 1>>();
    let loss = mse_loss(model.forward(x.traced(model.alloc_grads())), y);
    (loss.array().into(), loss.backward())
}

/// The case of one of dfdx's optimizers on the regression.
macro_rules! regression {
    ($case:ident, $make:expr) => {
        struct $case;

        impl Case for $case {
            type Model = Regressor;
            const UPDATES: usize = 100;
            const SHARE: f64 = 0.2;

            fn model(seed: u64) -> Regressor {
                regressor(seed)
            }

            fn optimizer(model: &Regressor) -> Box<dyn LearnedOptimizer<Regressor, f32, Cpu>> {
                Box::new($make(model).unwrap())
            }

            fn evaluate(model: &Regressor) -> (f64, Gradients<f32, Cpu>) {
                regression(model)
            }
        }
    };
}

regression!(PlainSgd, |model| Adapter::sgd(model, SgdConfig { lr: 0.1, ..Default::default() }));
regression!(NesterovSgd, |model| {
    let momentum = Some(Momentum::Nesterov(0.9));
    Adapter::sgd(model, SgdConfig { lr: 0.03, momentum, weight_decay: Some(WeightDecay::L2(1e-4)) })
});
regression!(Adam, |model| Adapter::adam(model, AdamConfig { lr: 0.03, ..Default::default() }));
regression!(RMSprop, |model| {
    let config =
        RMSpropConfig { lr: 0.01, momentum: Some(0.5), centered: true, ..Default::default() };
    Adapter::rmsprop(model, config)
});

/// Which of three overlapping clouds is a point from?
#[lopt::network]
struct Clouds {
    hidden: Linear<3, 6>,
    activation: ReLU,
    output: Linear<6, 3>,
}

type Classifier = Built<Clouds, f32, Cpu>;

/// G.pt, trained on a few recorded runs of the same task; three updates, each
/// of the last result.
struct TrainedGpt;

impl Case for TrainedGpt {
    type Model = Classifier;
    const UPDATES: usize = 3;
    const SHARE: f64 = 0.5;

    fn model(seed: u64) -> Classifier {
        Cpu::seed_from_u64(seed).build_module::<Clouds, f32>()
    }

    fn optimizer(_: &Classifier) -> Box<dyn LearnedOptimizer<Classifier, f32, Cpu>> {
        static WEIGHTS: OnceLock<Weights> = OnceLock::new();
        let weights = WEIGHTS.get_or_init(gpt_weights).clone();
        Box::new(Gpt::new(weights, GptConfig::default()).unwrap())
    }

    fn evaluate(model: &Classifier) -> (f64, Gradients<f32, Cpu>) {
        let dev = Cpu::seed_from_u64(100);
        let mut points = dev.sample_normal::<Rank2<96, 3>>().array();
        let mut labels = [[0.0; 3]; 96];
        for (i, (point, label)) in points.iter_mut().zip(&mut labels).enumerate() {
            point[i % 3] += 2.0;
            label[i % 3] = 1.0;
        }
        let scores = model.forward(dev.tensor(points).traced(model.alloc_grads()));
        let loss = cross_entropy_with_logits_loss(scores, dev.tensor(labels));
        (loss.array().into(), loss.backward())
    }
}

/// Records and trains in a few seconds. The runs start at other networks than
/// the tests do.
fn gpt_weights() -> Weights {
    let folder = tempfile::tempdir().unwrap();
    let metric = Metric::VALIDATION_LOSS;
    let metadata = Metadata::new("clouds", Clouds::layout().unwrap(), vec![metric]);
    let store = Store::create(folder.path(), metadata).unwrap();
    let runs = (0..200).map(|id| RunInfo::new(id, 1000 + id));
    record_runs(&store, runs, &RecordOptions::default(), |run| {
        let mut model = TrainedGpt::model(run.info().seed);
        let momentum = Some(Momentum::Nesterov(0.9));
        let config = SgdConfig { lr: 0.1, momentum, weight_decay: Some(WeightDecay::L2(1e-2)) };
        let mut sgd = Sgd::new(&model, config);
        for step in 0..80 {
            let (loss, gradients) = TrainedGpt::evaluate(&model);
            if step < 10 || step % 5 == 0 {
                run.at(step).record(&model, &[loss])?;
            }
            sgd.update(&mut model, &gradients).unwrap();
        }
        Ok::<(), StoreError>(())
    })
    .unwrap();
    let dataset = Arc::new(Dataset::load(&store, &DatasetConfig::default()).unwrap());
    let model = ModelConfig { width: 32, blocks: 2, frequencies: 8, ..ModelConfig::default() };
    let config = TrainerConfig { steps: 800, batch: 32, ema_decay: 0.99, ..Default::default() };
    let mut trainer = Trainer::new(dataset, model, config, 2).unwrap();
    while !trainer.is_finished() {
        trainer.step().unwrap();
    }
    trainer.weights(SamplerConfig::default(), "clouds", serde_json::Value::Null)
}

macro_rules! contract {
    ([$($name:ident: $case:ty),* $(,)?] $all:tt) => { $(contract!($name $case, $all);)* };
    ($name:ident $case:ty, [$($test:ident),* $(,)?]) => {
        mod $name {
            use super::*;
            $(#[test] fn $test() { super::$test::<$case>(); })*
        }
    };
}

contract!(
    [
        plain_sgd: PlainSgd,
        nesterov_sgd: NesterovSgd,
        adam: Adam,
        rmsprop: RMSprop,
        gpt: TrainedGpt,
    ]
    [
        lowers_the_metric,
        is_deterministic,
        is_a_dfdx_optimizer,
        keeps_tensors_and_clones,
        an_error_changes_nothing,
        never_writes_what_is_not_finite,
        a_restored_optimizer_continues,
        a_foreign_state_is_refused,
    ]
);
