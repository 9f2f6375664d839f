//! `#[lopt::network]`: what it makes of a struct, and that the layout says what
//! dfdx does.

use std::collections::BTreeSet;

use dfdx::nn::modules;
use dfdx::nn::tensor_collection::*;
use dfdx::optim::{Adam, Optimizer, RMSprop, Sgd};
use dfdx::prelude::*;
use lopt::layout::Layout;
use lopt::network::{flatten, flatten_gradients, unflatten, Built, Layer};
use lopt::Network;

/// Digits, with a width to choose.
#[lopt::network]
#[derive(Clone, Debug)]
pub struct Mlp<const H: usize = 10> {
    /// Reads the pixels.
    pub hidden: Linear<64, H>,
    activation: ReLU,
    pub(crate) output: Linear<H, 10>,
}

mod blocks {
    use dfdx::nn::builders as layers;

    /// Any activation, any width.
    #[lopt::network]
    #[derive(Debug)]
    pub struct Block<A, const I: usize, const O: usize>
    where
        A: Copy,
    {
        pub map: layers::UnbiasedLinear<I, O>,
        pub norm: layers::LayerNorm1D<O>,
        pub activation: A,
    }
}

/// Networks in a network, a tuple, names that the macro uses itself, a raw name.
#[lopt::network]
pub struct Deep<D: Copy, const E: usize> {
    first: blocks::Block<D, 4, E>,
    second: blocks::Block<Tanh, E, 7>,
    r#in: (Linear<7, 6>, (Sigmoid, Linear<6, 5>)),
    output: Linear<5, 3>,
}

/// More fields than dfdx's tuples hold, in two levels.
#[lopt::network]
struct Long<F0 = Sin> {
    a0: Linear<2, 3>,
    a1: F0,
    a2: Linear<3, 3>,
    a3: Cos,
    a4: Linear<3, 3>,
    a5: Tanh,
    a6: Linear<3, 4>,
    a7: Sigmoid,
    visitor: Linear<4, 4>,
    built: Softmax,
    value: Linear<4, 4>,
    layout: Abs,
    s: Linear<4, 3>,
}

#[lopt::network]
struct WithDropout {
    hidden: Linear<4, 50>,
    dropout: Dropout,
    sometimes: DropoutOneIn<4>,
    output: Linear<50, 1>,
}

fn trainable<M: TensorCollection<E, D>, E: Dtype, D: Device<E>>(
    model: &M,
) -> Vec<(String, Vec<usize>)> {
    struct List(Vec<(String, Vec<usize>)>);
    impl<E: Dtype, D: Device<E>> TensorVisitor<E, D> for List {
        type Viewer = (ViewTensorRef, ViewTensorName);
        type Err = D::Err;
        type E2 = E;
        type D2 = D;
        fn visit<S: Shape>(
            &mut self,
            options: TensorOptions<S, E, D>,
            (tensor, name): (&Tensor<S, E, D>, String),
        ) -> Result<Option<Tensor<S, E, D>>, D::Err> {
            if options.do_gradient_update {
                self.0.push((name, tensor.shape().concrete().into()));
            }
            Ok(None)
        }
    }
    let mut list = List(Vec::new());
    M::iter_tensors(&mut RecursiveWalker { m: (model, String::new()), f: &mut list }).unwrap();
    list.0
}

/// The layout, of the description and of the built module, is what dfdx visits.
fn agrees<N>() -> Layout
where
    N: Network + BuildOnDevice<Cpu, f32> + BuildOnDevice<Cpu, f64>,
    Built<N, f32, Cpu>: Network,
    Built<N, f64, Cpu>: Network,
{
    let dev = Cpu::default();
    let layout = N::layout().unwrap();
    assert_eq!(<Built<N, f32, Cpu>>::layout().unwrap(), layout);
    assert_eq!(<Built<N, f64, Cpu>>::layout().unwrap(), layout);
    assert_eq!(<Built<N, f32, Cpu>>::NUM_PARAMETERS, N::NUM_PARAMETERS);

    let model = dev.build_module::<N, f32>();
    let described: Vec<_> =
        layout.tensors().iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    assert_eq!(described, trainable::<_, f32, Cpu>(&model));
    assert_eq!(described, trainable::<_, f64, Cpu>(&dev.build_module::<N, f64>()));
    assert_eq!(N::NUM_PARAMETERS, NumParams::<f32, Cpu>::num_trainable_params(&model));
    assert_eq!(flatten::<_, f32, Cpu>(&model).unwrap().len(), N::NUM_PARAMETERS);
    layout
}

#[test]
fn layouts_are_what_dfdx_visits() {
    agrees::<Mlp>();
    agrees::<Mlp<33>>();
    agrees::<Deep<ReLU, 9>>();
    agrees::<Long>();
    agrees::<Long<Square>>();
    agrees::<WithDropout>();
}

/// Every layer, alone and between two others.
#[test]
fn every_layer_is_what_dfdx_visits() {
    fn layer<L>(groups: usize)
    where
        L: Layer + BuildOnDevice<Cpu, f32> + BuildOnDevice<Cpu, f64>,
        Built<L, f32, Cpu>: Layer,
        Built<L, f64, Cpu>: Layer,
    {
        agrees::<L>();
        let layout = agrees::<(Linear<2, 3>, L, Linear<3, 1>)>();
        assert_eq!(layout.groups().len(), groups, "{:?}", layout.layers());
    }
    layer::<Linear<3, 3>>(2);
    layer::<UnbiasedLinear<3, 3>>(2);
    layer::<LayerNorm1D<3>>(1);
    layer::<BatchNorm1D<3>>(1);
    layer::<dfdx::nn::builders::PReLU>(1);
    layer::<dfdx::nn::builders::PReLU1D<Const<3>>>(1);
    layer::<Abs>(1);
    layer::<AccurateGeLU>(1);
    layer::<Cos>(1);
    layer::<Dropout>(1);
    layer::<DropoutOneIn<3>>(1);
    layer::<Exp>(1);
    layer::<FastGeLU>(1);
    layer::<LeakyReLU<f32>>(1);
    layer::<Ln>(1);
    layer::<LogSoftmax>(1);
    layer::<ReLU>(1);
    layer::<Sigmoid>(1);
    layer::<Sin>(1);
    layer::<Softmax>(1);
    layer::<Sqrt>(1);
    layer::<Square>(1);
    layer::<Tanh>(1);
    layer::<Repeated<(Linear<3, 3>, ReLU), 2>>(3);
    layer::<(ReLU,)>(1);
    layer::<(ReLU, Tanh)>(1);
    layer::<(ReLU, Linear<3, 3>, Tanh)>(2);
    layer::<(ReLU, ReLU, ReLU, ReLU)>(1);
    layer::<(ReLU, ReLU, ReLU, ReLU, ReLU)>(1);
    layer::<(ReLU, ReLU, ReLU, Linear<3, 3>, ReLU, LayerNorm1D<3>)>(2);
}

#[test]
fn names_follow_the_fields() {
    let layout = agrees::<Deep<ReLU, 9>>();
    let names: Vec<_> = layout.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "first.map.weight",
            "first.norm.gamma",
            "first.norm.beta",
            "second.map.weight",
            "second.norm.gamma",
            "second.norm.beta",
            "in.0.weight",
            "in.0.bias",
            "in.1.1.weight",
            "in.1.1.bias",
            "output.weight",
            "output.bias",
        ]
    );
    let groups: Vec<_> = layout.groups().iter().map(|g| (g.name.as_str(), g.units)).collect();
    assert_eq!(groups, [("first.map", 9), ("second.map", 7), ("in.0", 6), ("in.1.1", 5)]);
}

#[test]
fn fingerprints_tell_structures_apart() {
    #[lopt::network]
    struct Renamed {
        fc1: Linear<64, 10>,
        act: ReLU,
        fc2: Linear<10, 10>,
    }
    type Tuple = (Linear<64, 10>, ReLU, Linear<10, 10>);
    let mlp = Mlp::<10>::fingerprint().unwrap();
    assert_eq!(mlp, Renamed::fingerprint().unwrap());
    assert_eq!(mlp, Tuple::fingerprint().unwrap());
    assert_ne!(mlp, Mlp::<11>::fingerprint().unwrap());
    assert_ne!(mlp, <(Linear<64, 10>, Tanh, Linear<10, 10>)>::fingerprint().unwrap());
}

/// One step of each of dfdx's optimizers lowers the loss of a copy of `model`.
macro_rules! trains {
    ($model:expr, $inputs:literal, $outputs:literal) => {{
        let model = $model;
        let dev = Cpu::seed_from_u64(0);
        let x: Tensor<Rank2<16, $inputs>, f32, _> = dev.sample_normal();
        let y: Tensor<Rank2<16, $outputs>, f32, _> = dev.sample_uniform();
        let loss = |m: &_, gradients| -> Tensor<Rank0, f32, Cpu, OwnedTape<f32, Cpu>> {
            mse_loss(Module::forward(m, x.trace(gradients)), y.clone())
        };
        let gradients = loss(&model, model.alloc_grads());
        let before = gradients.array();
        let mut gradients = gradients.backward();
        let (mut a, mut b, mut c) = (model.clone(), model.clone(), model.clone());
        Sgd::new(&a, SgdConfig { lr: 1e-3, ..Default::default() })
            .update(&mut a, &gradients)
            .unwrap();
        Adam::new(&b, AdamConfig { lr: 1e-4, ..Default::default() })
            .update(&mut b, &gradients)
            .unwrap();
        RMSprop::new(&c, RMSpropConfig { lr: 1e-4, ..Default::default() })
            .update(&mut c, &gradients)
            .unwrap();
        for updated in [a, b, c] {
            assert!(loss(&updated, updated.alloc_grads()).array() < before);
        }
        model.zero_grads(&mut gradients);
        assert_eq!(gradients.get(&model.output.bias).array(), [0.0; $outputs]);
    }};
}

#[test]
fn networks_train() {
    let dev = Cpu::seed_from_u64(1);
    trains!(dev.build_module::<Mlp, f32>(), 64, 10);
    trains!(dev.build_module::<Mlp<3>, f32>(), 64, 10);
    trains!(dev.build_module::<Deep<ReLU, 8>, f32>(), 4, 3);
}

#[test]
fn dropout_drops_in_training_only() {
    let dev = Cpu::seed_from_u64(1);
    let mut model = dev.build_module::<WithDropout, f32>();
    let x: Tensor<Rank2<1, 4>, f32, _> = dev.sample_normal();
    let still = model.forward(x.clone()).array();
    assert_eq!(model.forward(x.clone()).array(), still);
    let dropped = model.forward_mut(x.trace(model.alloc_grads()));
    assert_ne!(dropped.array(), still);
    let mut gradients = dropped.mean().backward();
    let mut sgd = Sgd::new(&model, SgdConfig::default());
    sgd.update(&mut model, &gradients).unwrap();
    model.zero_grads(&mut gradients);
    assert_ne!(model.forward(x).array(), still);
}

#[test]
fn long_networks_apply_layers_in_order() {
    let dev = Cpu::seed_from_u64(1);
    let model = dev.build_module::<Long, f64>();
    let x: Tensor<Rank1<2>, f64, _> = dev.sample_normal();
    let y = model.a4.forward(model.a2.forward(model.a0.forward(x.clone()).sin()).cos()).tanh();
    let y = model.visitor.forward(model.a6.forward(y).sigmoid()).softmax();
    let y = model.s.forward(model.value.forward(y).abs());
    assert_eq!(model.forward(x).array(), y.array());
}

#[test]
fn models_move_between_dtypes_and_devices() {
    let dev = Cpu::seed_from_u64(1);
    let model = dev.build_module::<Deep<Tanh, 8>, f32>();
    let wide: Built<Deep<Tanh, 8>, f64, Cpu> = model.to_dtype::<f64>();
    let copy: Built<Deep<Tanh, 8>, f32, Cpu> = model.to_device(&Cpu::default());
    let flat: Vec<f32> = flatten(&model).unwrap();
    assert_eq!(flatten::<_, f32, Cpu>(&copy).unwrap(), flat);
    let wide: Vec<f64> = flatten(&wide).unwrap();
    assert_eq!(wide, flat.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
}

/// Code that is generic over the device builds and reads networks.
#[test]
fn networks_build_on_any_device() {
    fn parameters<D: Device<f32>>(dev: &D) -> usize {
        let model = Mlp::<10>::try_build_on_device(dev).unwrap_or_else(|_| unreachable!());
        flatten::<_, f32, D>(&model).unwrap().len()
    }
    assert_eq!(parameters(&Cpu::default()), Mlp::<10>::NUM_PARAMETERS);
}

#[test]
fn safetensors_round_trip_under_the_names_of_the_layout() {
    type Net = (Deep<ReLU, 9>, Linear<3, 2>);
    #[lopt::network]
    struct WithStatistics {
        net: Net,
        norm: BatchNorm1D<2>,
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let model = Cpu::seed_from_u64(1).build_module::<WithStatistics, f32>();
    model.save_safetensors(&path).unwrap();
    let mut other = Cpu::seed_from_u64(2).build_module::<WithStatistics, f32>();
    let flat: Vec<f32> = flatten(&model).unwrap();
    assert_ne!(flatten::<_, f32, Cpu>(&other).unwrap(), flat);
    other.load_safetensors(&path).unwrap();
    assert_eq!(flatten::<_, f32, Cpu>(&other).unwrap(), flat);

    let bytes = std::fs::read(&path).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: BTreeSet<String> = file
        .tensors()
        .into_iter()
        .filter(|(name, tensor)| !tensor.shape().is_empty() && !name.contains("running"))
        .map(|(name, _)| name)
        .collect();
    let layout = WithStatistics::layout().unwrap();
    assert_eq!(tensors, layout.tensors().iter().map(|t| t.name.clone()).collect());
}

/// Fields keep their visibility, and the description stays the struct it was.
#[test]
fn the_struct_stays() {
    let config = Mlp::<3> { hidden: Linear, activation: ReLU, output: Linear };
    assert!(format!("{:?}", config.clone().hidden).contains("Linear"));
    assert_eq!(config.output, Linear::<3, 10>);
    let model: Built<Mlp<3>, f32, Cpu> = Cpu::default().build_module::<Mlp<3>, f32>();
    let _: &modules::Linear<64, 3, f32, Cpu> = &model.hidden;
    let _: BuiltMlp<_, ReLU, _> = model.clone();
    assert!(format!("{model:?}").starts_with("BuiltMlp { hidden: Linear {"));
}

/// dfdx writes in the order of memory and reads in that of the axes.
#[test]
fn permuted_tensors_are_read_and_written_in_logical_order() {
    let dev = Cpu::seed_from_u64(1);
    let mut model = dev.build_module::<(Linear<70, 80>, Linear<80, 2>), f32>();
    model.0.weight = dev.sample_normal::<Rank2<70, 80>>().permute();
    let first_row = model.0.weight.array()[0];
    let flat: Vec<f32> = flatten(&model).unwrap();
    assert_eq!(flat[..70], first_row);

    let wanted: Vec<f32> = (0..flat.len()).map(|i| i as f32).collect();
    unflatten(&mut model, &wanted).unwrap();
    assert_eq!(flatten::<_, f32, Cpu>(&model).unwrap(), wanted);
    assert_eq!(model.0.weight.array()[2][5], 145.0);
}

/// The gradient of half the square of a parameter is the parameter.
#[test]
fn gradients_have_the_order_of_parameters() {
    let dev = Cpu::seed_from_u64(1);
    let mut model = dev.build_module::<(Linear<3, 4>, Linear<4, 2>), f32>();
    model.0.weight = dev.sample_normal::<Rank2<3, 4>>().permute();
    let half_square = (model.0.weight.leaky_trace().square().sum::<Rank0, _>()
        + model.1.bias.leaky_trace().square().sum::<Rank0, _>())
        * 0.5;
    let gradients = flatten_gradients(&model, &half_square.backward()).unwrap();
    // Nothing depends on the first bias and the second weight.
    let mut expected: Vec<f32> = flatten(&model).unwrap();
    expected[12..12 + 4 + 8].fill(0.0);
    assert_eq!(gradients, expected);
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_is() {
    let dev = Cpu::seed_from_u64(1);
    let mut model = dev.build_module::<(Linear<2, 3>, Linear<3, 1>), f32>();
    let flat: Vec<f32> = flatten(&model).unwrap();
    for length in [0, flat.len() - 1, flat.len() + 1] {
        let error = unflatten(&mut model, &vec![0.5; length]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("flat vector holds {length} values, expected {}", flat.len())
        );
        assert_eq!(flatten::<_, f32, Cpu>(&model).unwrap(), flat);
    }
    model.1.weight = dev.tensor([0.5]).broadcast::<Rank2<1, 3>, Axis<1>>();
    let flat: Vec<f32> = flatten(&model).unwrap();
    let error = unflatten(&mut model, &vec![0.25; flat.len()]).unwrap_err();
    assert!(error.to_string().contains("tensor `1.weight` stores 1 values for 3"), "{error}");
    assert_eq!(flatten::<_, f32, Cpu>(&model).unwrap(), flat);
}
