//! `#[lopt(..)]` on an annotated struct and on its fields: residual, frozen and
//! skipped layers, bare tensors, and a forward pass of one's own.

use std::collections::BTreeSet;

use dfdx::nn::modules;
use dfdx::optim::{Adam, Optimizer, Sgd};
use dfdx::prelude::*;
use lopt::layout::{Layout, LayoutBuilder};
use lopt::network::{check_symmetry, flatten, unflatten, Built, Layer};
use lopt::nn::Parameter;
use lopt::Network;
use rand::SeedableRng;

fn names(layout: &Layout) -> Vec<&str> {
    layout.tensors().iter().map(|tensor| tensor.name.as_str()).collect()
}

fn groups(layout: &Layout) -> Vec<(&str, usize)> {
    layout.groups().iter().map(|group| (group.name.as_str(), group.units)).collect()
}

fn flat<M: TensorCollection<f32, Cpu>>(model: &M) -> Vec<f32> {
    flatten(model).unwrap()
}

/// The description, the built module and its flat vector agree.
fn layout<N>() -> Layout
where
    N: Network + BuildOnDevice<Cpu, f32>,
    Built<N, f32, Cpu>: Network,
{
    let layout = N::layout().unwrap();
    assert_eq!(<Built<N, f32, Cpu>>::layout().unwrap(), layout);
    assert_eq!(<Built<N, f32, Cpu>>::NUM_PARAMETERS, N::NUM_PARAMETERS);
    let mut model = Cpu::seed_from_u64(0).build_module::<N, f32>();
    assert_eq!(flat(&model).len(), N::NUM_PARAMETERS);
    let wanted: Vec<f32> = (0..N::NUM_PARAMETERS).map(|i| i as f32).collect();
    unflatten(&mut model, &wanted).unwrap();
    assert_eq!(flat(&model), wanted);
    layout
}

/// Names and values in a saved file.
fn saved<M: SaveToSafetensors<f32, Cpu>>(model: &M) -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    model.save_safetensors(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let names = file.tensors().into_iter().map(|(name, _)| name);
    names.filter(|name| !name.ends_with("epsilon")).collect()
}

/// One step of SGD on a random batch; all that the optimizer updates has a
/// gradient.
macro_rules! step {
    ($model:expr, $inputs:literal, $outputs:literal) => {{
        let dev = Cpu::seed_from_u64(3);
        let x: Tensor<Rank2<16, $inputs>, f32, _> = dev.sample_normal();
        let y: Tensor<Rank2<16, $outputs>, f32, _> = dev.sample_normal();
        let model = $model;
        let gradients = model.alloc_grads();
        let loss = mse_loss(model.forward_mut(x.trace(gradients)), y.clone());
        let before = loss.array();
        let gradients = loss.backward();
        Sgd::new(&*model, SgdConfig { lr: 1e-2, ..Default::default() })
            .update(model, &gradients)
            .unwrap();
        assert!(mse_loss(model.forward(x), y).array() < before);
    }};
}

#[lopt::network]
struct Block<A, const W: usize> {
    norm: LayerNorm1D<W>,
    inner: Linear<W, W>,
    activation: A,
}

#[lopt::network]
struct Skips<const W: usize = 6> {
    stem: Linear<4, W>,
    #[lopt(residual)]
    first: Block<Tanh, W>,
    #[lopt(residual)]
    second: (ReLU, Linear<W, 5>, Linear<5, W>),
    output: Linear<W, 2>,
}

#[test]
fn a_residual_field_is_dfdx_s_residual() {
    type Same = (
        Linear<4, 6>,
        Residual<Block<Tanh, 6>>,
        Residual<(ReLU, Linear<6, 5>, Linear<5, 6>)>,
        Linear<6, 2>,
    );
    let found = layout::<Skips>();
    assert_eq!(Skips::<6>::fingerprint().unwrap(), Same::fingerprint().unwrap());
    assert_eq!(groups(&found), [("stem", 6), ("second.1", 5)]);
    assert_eq!(names(&found)[2..4], ["first.norm.gamma", "first.norm.beta"]);

    let dev = Cpu::seed_from_u64(1);
    let mut model = dev.build_module::<Skips, f32>();
    let mut same = dev.build_module::<Same, f32>();
    unflatten(&mut same, &flat(&model)).unwrap();
    let x: Tensor<Rank2<3, 4>, f32, _> = dev.sample_normal();
    assert_eq!(model.forward(x.clone()).array(), same.forward(x.clone()).array());
    assert_eq!(model.forward_mut(x.clone()).array(), same.forward_mut(x).array());
    step!(&mut model, 4, 2);
    step!(&mut dev.build_module::<Skips<3>, f32>(), 4, 2);
}

#[lopt::network]
struct Tuned<B> {
    #[lopt(frozen)]
    stem: Linear<4, 6>,
    /// Layers in it train.
    body: B,
    #[lopt(frozen)]
    norm: BatchNorm1D<6>,
    #[lopt(frozen, residual)]
    block: Block<ReLU, 6>,
    head: Linear<6, 3>,
    last: Linear<3, 2>,
}

#[test]
fn nothing_changes_what_is_frozen() {
    type Body = (Linear<6, 5>, ReLU, Linear<5, 6>);
    let found = layout::<Tuned<Body>>();
    assert_eq!(
        names(&found),
        [
            "body.0.weight",
            "body.0.bias",
            "body.2.weight",
            "body.2.bias",
            "head.weight",
            "head.bias",
            "last.weight",
            "last.bias"
        ]
    );
    assert_eq!(groups(&found), [("body.0", 5), ("head", 3)]);
    assert_ne!(
        Tuned::<Body>::fingerprint().unwrap(),
        Tuned::<(Linear<6, 5>, Tanh, Linear<5, 6>)>::fingerprint().unwrap()
    );

    let dev = Cpu::seed_from_u64(1);
    let mut model = dev.build_module::<Tuned<Body>, f32>();
    assert_eq!(NumParams::<f32, Cpu>::num_trainable_params(&model), found.num_parameters());
    let frozen = |model: &Built<Tuned<Body>, f32, Cpu>| {
        let stem = (model.stem.weight.array(), model.stem.bias.array());
        let block = (model.block.norm.gamma.array(), model.block.inner.weight.array());
        (stem, model.norm.scale.array(), block)
    };
    let (before, parameters) = (frozen(&model), flat(&model));
    step!(&mut model, 4, 2);
    assert_eq!(frozen(&model), before);
    let after = flat(&model);
    assert!(after.iter().zip(&parameters).filter(|(a, b)| a != b).count() > 60);
    unflatten(&mut model, &vec![0.5; after.len()]).unwrap();
    assert_eq!(frozen(&model), before);

    // Everything is saved, loaded and moved.
    let names = saved(&model);
    for name in ["stem.weight", "body.0.weight", "norm.running_mean", "block.norm.gamma"] {
        assert!(names.contains(name), "{name} in {names:?}");
    }
    let wide: Built<Tuned<Body>, f64, Cpu> = model.to_dtype::<f64>();
    assert_eq!(wide.block.inner.weight.as_vec().len(), 36);
    assert_eq!(wide.stem.bias.array()[1], f64::from(before.0 .1[1]));
}

#[lopt::network]
struct Partly {
    first: Linear<4, 6>,
    activation: ReLU,
    #[lopt(skip)]
    skipped: (Linear<6, 5>, Tanh),
    third: Linear<5, 4>,
    again: Tanh,
    output: Linear<4, 2>,
}

#[test]
fn dfdx_trains_what_lopt_skips() {
    // In a network, and frozen there as a whole.
    #[lopt::network]
    struct Outer {
        inner: Partly,
        #[lopt(frozen)]
        frozen: Partly2,
    }
    #[lopt::network]
    struct Partly2 {
        #[lopt(skip)]
        skipped: Linear<2, 2>,
        map: Linear<2, 2>,
    }

    let found = layout::<Partly>();
    assert_eq!(found.num_parameters(), (4 * 6 + 6) + (5 * 4 + 4) + (4 * 2 + 2));
    assert_eq!(groups(&found), [("third", 4)]);
    let found = layout::<Outer>();
    assert!(names(&found).iter().all(|name| name.starts_with("inner.")));

    let dev = Cpu::seed_from_u64(1);
    let mut model = dev.build_module::<Partly, f32>();
    let skipped = |model: &Built<Partly, f32, Cpu>| model.skipped.0.weight.array();
    let (before, parameters) = (skipped(&model), flat(&model));
    unflatten(&mut model, &vec![0.25; parameters.len()]).unwrap();
    assert_eq!(skipped(&model), before);
    unflatten(&mut model, &parameters).unwrap();
    step!(&mut model, 4, 2);
    assert_ne!(skipped(&model), before);
    assert_ne!(flat(&model), parameters);
    assert!(saved(&model).contains("skipped.0.weight"));
    // Walks that end early leave nothing behind.
    unflatten(&mut model, &[]).unwrap_err();
    assert_eq!(flat(&(dev.build_module::<Linear<1, 1>, f32>())).len(), 2);
}

/// `output(relu(hidden(x) * gain + mean))`, with a skip around `middle`.
#[lopt::network]
#[lopt(forward(hidden, .., inner, ReLU, _ + (middle, Tanh), output))]
struct Own {
    hidden: Linear<4, 6>,
    #[lopt(init = 1)]
    gain: Parameter<Rank1<6>>,
    #[lopt(frozen, init = -0.5)]
    mean: Parameter<Rank1<6>>,
    /// Trained, and unknown to lopt.
    #[lopt(skip)]
    bias: Parameter<Rank0>,
    inner: Linear<6, 5>,
    middle: Linear<5, 5>,
    output: Linear<5, 2>,
}

impl<B: Dim, D: Device<f32>, T: Tape<f32, D>> Module<Tensor<(B, Const<4>), f32, D, T>>
    for OwnOn<f32, D>
where
    Tensor<(B, Const<6>), f32, D, T>: TryMul<Tensor<(B, Const<6>), f32, D, T>, Err = D::Err>,
{
    type Output = Tensor<(B, Const<2>), f32, D, T>;
    type Error = D::Err;

    fn try_forward(&self, x: Tensor<(B, Const<4>), f32, D, T>) -> Result<Self::Output, D::Err> {
        let hidden = self.hidden.try_forward(x)?;
        let shape = *hidden.shape();
        let hidden = hidden
            .try_mul(self.gain.retaped::<T>().try_broadcast_like(&shape)?)?
            .try_add(self.mean.retaped::<T>().try_broadcast_like(&shape)?)?
            .try_add(self.bias.retaped::<T>().try_broadcast_like(&shape)?)?;
        let inner = self.inner.try_forward(hidden)?.try_relu()?;
        let middle = self.middle.try_forward(inner.with_empty_tape())?.try_tanh()?;
        self.output.try_forward(middle.try_add(inner)?)
    }
}

impl<F0, F1, F2, F3, F4, F5, F6> NonMutableModule for BuiltOwn<F0, F1, F2, F3, F4, F5, F6> {}

#[test]
fn a_forward_pass_of_one_s_own_with_bare_tensors() {
    let found = layout::<Own>();
    assert_eq!(
        names(&found),
        [
            "hidden.weight",
            "hidden.bias",
            "gain",
            "inner.weight",
            "inner.bias",
            "middle.weight",
            "middle.bias",
            "output.weight",
            "output.bias"
        ]
    );
    // `hidden` feeds `..`, and `inner` and `middle` are two sides of a skip.
    assert_eq!(groups(&found), [("inner", 5)]);
    assert_eq!(found.groups()[0].axes.len(), 6);

    let dev = Cpu::seed_from_u64(1);
    let mut model = dev.build_module::<Own, f32>();
    assert_eq!(model.gain.array(), [1.0; 6]);
    assert_eq!(model.mean.array(), [-0.5; 6]);
    assert_eq!(model.bias.array(), 0.0);
    step!(&mut model, 4, 2);
    assert_ne!(model.gain.array(), [1.0; 6]);
    assert_eq!(model.mean.array(), [-0.5; 6]);
    assert_ne!(model.bias.array(), 0.0);

    let names = saved(&model);
    assert!(["gain", "mean", "bias"].iter().all(|&name| names.contains(name)), "{names:?}");
    let wide: Built<Own, f64, Cpu> = model.to_dtype::<f64>();
    assert_eq!(wide.gain.array()[2], f64::from(model.gain.array()[2]));
    model.reset_params();
    assert_eq!(model.gain.array(), [1.0; 6]);
}

#[test]
fn a_forward_pass_of_one_s_own_is_a_layer_of_another_network() {
    #[lopt::network]
    struct Nested<L> {
        before: (Linear<3, 5>, Tanh),
        map: Linear<5, 4>,
        own: L,
        #[lopt(residual)]
        block: Linear<2, 2>,
    }
    let found = layout::<Nested<Own>>();
    assert_eq!(groups(&found), [("before.0", 5), ("map", 4), ("own.inner", 5)]);
    assert_eq!(names(&found)[6], "own.gain");
    let mut model = Cpu::seed_from_u64(1).build_module::<Nested<Own>, f32>();
    step!(&mut model, 3, 2);
    assert!(saved(&model).contains("own.mean"));
    let x: Tensor<Rank2<16, 3>, f32, _> = Cpu::seed_from_u64(2).sample_normal();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    check_symmetry(&model, &mut rng, |model| model.forward(x.clone()).as_vec()).unwrap();
}

/// Two heads on a trunk, with parameters and dropout: both forward passes.
#[lopt::network]
#[lopt(forward(trunk, self::Lift, policy | (value, Tanh, scalar)))]
struct ActorCritic<const H: usize> {
    trunk: (Linear<4, H>, Dropout),
    policy: Linear<H, 2>,
    value: Linear<H, 3>,
    scalar: Linear<3, 1>,
}

/// An activation that is a type without a field.
struct Lift;

impl Layer for Lift {
    const PARAMETERS: usize = 0;

    fn describe(layout: &mut LayoutBuilder) {
        layout.unitwise("Lift");
    }
}

type Head<const I: usize, const O: usize> = modules::Linear<I, O, f32, Cpu>;

impl<const H: usize, T: Tape<f32, Cpu>> Module<Tensor<Rank1<4>, f32, Cpu, T>>
    for BuiltActorCritic<(Head<4, H>, Dropout), Head<H, 2>, Head<H, 3>, Head<3, 1>>
where
    modules::Linear<4, H, f32, Cpu>: Module<
        Tensor<Rank1<4>, f32, Cpu, T>,
        Output = Tensor<Rank1<H>, f32, Cpu, T>,
        Error = <Cpu as HasErr>::Err,
    >,
{
    type Output = (Tensor<Rank1<2>, f32, Cpu, T>, Tensor<Rank1<1>, f32, Cpu>);
    type Error = <Cpu as HasErr>::Err;

    fn try_forward(&self, x: Tensor<Rank1<4>, f32, Cpu, T>) -> Result<Self::Output, Self::Error> {
        let features = self.trunk.0.try_forward(x)?.try_square()?;
        let value = self.value.try_forward(features.with_empty_tape().split_tape().0)?;
        let value = self.scalar.try_forward(value.try_tanh()?)?;
        Ok((self.policy.try_forward(features)?, value))
    }
}

#[test]
fn heads_side_by_side() {
    let found = layout::<ActorCritic<7>>();
    assert_eq!(groups(&found), [("trunk.0", 7), ("value", 3)]);
    assert_eq!(found.groups()[0].axes.len(), 4);
    let dev = Cpu::seed_from_u64(1);
    let model = dev.build_module::<ActorCritic<7>, f32>();
    let (policy, value) = model.forward(dev.sample_normal());
    assert!(policy.array().iter().chain(&value.array()).all(|value| value.is_finite()));
}

#[test]
fn without_a_wiring_nothing_is_a_group() {
    #[lopt::network]
    #[lopt(forward)]
    struct Silent {
        first: (Linear<4, 6>, ReLU, Linear<6, 5>),
        second: Linear<5, 2>,
    }
    #[lopt::network]
    #[lopt(forward(.., inner, ..))]
    struct Whole {
        before: (Linear<4, 6>, ReLU, Linear<6, 5>),
        inner: (Linear<5, 3>, ReLU, Linear<3, 2>),
        after: (Linear<2, 2>, Linear<2, 2>),
    }
    assert_eq!(groups(&layout::<Silent>()), []);
    assert_eq!(groups(&layout::<Whole>()), [("inner.0", 3)]);
    // What surrounds such a network is followed as ever, up to it.
    type Around = (Linear<2, 3>, ReLU, Linear<3, 4>, Silent, Linear<2, 8>, Linear<8, 1>);
    assert_eq!(groups(&layout::<Around>()), [("0", 3), ("4", 8)]);
}

/// The wiring of a sequence is the sequence; sums are dfdx's residuals.
#[test]
fn wirings_say_what_layers_do() {
    #[lopt::network]
    #[lopt(forward(first, ReLU, second, shortcut + (third, Tanh, fourth), output))]
    struct Wired {
        first: Linear<2, 3>,
        second: Linear<3, 4>,
        shortcut: Linear<4, 5>,
        third: Linear<4, 6>,
        fourth: Linear<6, 5>,
        output: Linear<5, 1>,
    }
    type Same = (
        (Linear<2, 3>, ReLU, Linear<3, 4>),
        GeneralizedResidual<Linear<4, 5>, (Linear<4, 6>, Tanh, Linear<6, 5>)>,
        Linear<5, 1>,
    );
    assert_eq!(layout::<Wired>().fingerprint(), layout::<Same>().fingerprint());

    #[lopt::network]
    #[lopt(forward(stem, _ + a + b, _ + _ + (c, (Tanh)), d + e + f, g))]
    struct Sums {
        stem: Linear<2, 4>,
        a: Linear<4, 4>,
        b: Linear<4, 4>,
        c: Linear<4, 4>,
        d: Linear<4, 3>,
        e: Linear<4, 3>,
        f: Linear<4, 3>,
        g: Linear<3, 1>,
    }
    assert_eq!(groups(&layout::<Sums>()), [("stem", 4), ("d", 3)]);

    // A value that leaves the network keeps its order.
    #[lopt::network]
    #[lopt(forward(stem, (ReLU, output) | _))]
    struct Features {
        stem: Linear<2, 4>,
        output: Linear<4, 1>,
    }
    assert_eq!(groups(&layout::<Features>()), []);
}

/// States a plain sequence, and multiplies neighbouring units.
#[lopt::network]
#[lopt(forward(first, Tanh, second, ReLU, output))]
struct False {
    first: Linear<4, 3>,
    second: Linear<3, 5>,
    output: Linear<5, 2>,
}

impl<const N: usize> Module<Tensor<Rank2<N, 4>, f32, Cpu>> for FalseOn<f32, Cpu> {
    type Output = Tensor<Rank2<N, 2>, f32, Cpu>;
    type Error = <Cpu as HasErr>::Err;

    fn try_forward(&self, x: Tensor<Rank2<N, 4>, f32, Cpu>) -> Result<Self::Output, Self::Error> {
        let x = self.second.try_forward(self.first.try_forward(x)?.try_tanh()?)?;
        let next = x.clone().try_roll::<Axis<1>>(1)?;
        self.output.try_forward(x.try_mul(next)?.try_relu()?)
    }
}

#[test]
fn a_false_wiring_is_found() {
    let dev = Cpu::seed_from_u64(1);
    let model = dev.build_module::<False, f32>();
    let x: Tensor<Rank2<16, 4>, f32, _> = dev.sample_normal();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let error = check_symmetry(&model, &mut rng, |model| model.forward(x.clone()).as_vec());
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("units of group `second` are not free to move"), "{error}");
}

#[test]
fn adam_moves_what_is_not_frozen() {
    let mut model = Cpu::seed_from_u64(1).build_module::<Own, f32>();
    let x: Tensor<Rank2<8, 4>, f32, _> = Cpu::seed_from_u64(2).sample_normal();
    let before = flat(&model);
    let mut adam = Adam::new(&model, AdamConfig::default());
    let mut gradients = model.alloc_grads();
    for _ in 0..3 {
        gradients = model.forward_mut(x.clone().traced(gradients)).square().mean().backward();
        adam.update(&mut model, &gradients).unwrap();
        model.zero_grads(&mut gradients);
    }
    assert_ne!(flat(&model), before);
    assert_eq!(model.mean.array(), [-0.5; 6]);
}
