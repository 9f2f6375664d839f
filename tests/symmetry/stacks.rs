//! dfdx's containers, attention and batch norms, and the library's convolutions:
//! a transformed model computes what it did, in training and in inference.

use dfdx::prelude::*;
use lopt::network::{layout_of, unflatten, Built};
use lopt::symmetry::Symmetry;
use lopt::{nn, Network};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type ConvNet<A> = (
    (
        nn::Conv2D<2, 8, 3, 1, 1>,
        BatchNorm2D<8>,
        A,
        Residual<(nn::UnbiasedConv2D<8, 4, 3, 1, 1>, BatchNorm2D<4>, A, nn::Conv2D<4, 8, 1>)>,
        GeneralizedResidual<(nn::Conv2D<8, 6, 3, 2, 1>, A), nn::Conv2D<8, 6, 1, 2>>,
    ),
    (nn::AvgPool2D<2, 2>, nn::Conv2D<6, 12, 3, 1, 1, 6>, A),
    (nn::UnbiasedConv2D<12, 8, 1>, Bias2D<8>, A, nn::Flatten2D<32>, Linear<32, 3>),
);

/// Skips around skips, also around the convolutions in groups.
type Grouped = (
    nn::Conv2D<2, 6, 3>,
    Residual<(
        (nn::Conv2D<6, 6, 3, 1, 1, 2>, BatchNorm2D<6>, Tanh),
        Residual<nn::Conv2D<6, 6, 3, 1, 1, 6>>,
        Residual<Tanh>,
    )>,
    nn::MaxPool2D<2, 2>,
    Residual<(nn::Conv2D<6, 4, 1>, Sin, nn::Conv2D<4, 6, 1>)>,
    nn::AvgPoolGlobal,
    Linear<6, 3>,
);

type Mlp = (
    (
        Linear<4, 8>,
        Tanh,
        Residual<(Linear<8, 8>, Tanh, Residual<(Linear<8, 6>, Sin, Linear<6, 8>)>)>,
    ),
    SplitInto<(Linear<8, 4>, (Linear<8, 5>, Tanh))>,
    AddInto<(Linear<4, 6>, Linear<5, 6>)>,
    BatchNorm1D<6>,
    Repeated<Residual<(UnbiasedLinear<6, 3>, Abs, UnbiasedLinear<3, 6>)>, 2>,
    Linear<6, 3>,
);

/// From the input on, so the units next to the first skip stay.
type FromInput =
    (Residual<(Linear<4, 5>, Tanh, Linear<5, 4>)>, ReLU, Linear<4, 6>, ReLU, Linear<6, 3>);

type Encoder = (Embedding<7, 8>, TransformerEncoder<8, 2, 5, 2>, Linear<8, 3>);

type Translator = (
    SplitInto<(Embedding<7, 8>, (Embedding<7, 8>, LayerNorm1D<8>))>,
    Transformer<8, 2, 1, 2, 5>,
    Linear<8, 3>,
);

/// Largest change of an output, as a share of the largest output.
fn change(a: &[f64], b: &[f64]) -> f64 {
    let largest = a.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max) / largest
}

fn wide(values: Vec<impl Into<f64>>) -> Vec<f64> {
    values.into_iter().map(Into::into).collect()
}

/// Builds two models, one of them transformed, shows both the same batches, and
/// compares the outputs. `$groups` are the units of each group, negative where
/// they have no signs.
macro_rules! keeps {
    ($model:ty, $dtype:ty, $tolerance:expr, $seed:expr, $inputs:expr, $groups:expr) => {
        keeps!($model, $dtype, $tolerance, $seed, $inputs, $groups, leaky_trace)
    };
    ($model:ty, $dtype:ty, $tolerance:expr, $seed:expr, $inputs:expr, $groups:expr, $trace:ident) => {{
        let mut rng = ChaCha8Rng::seed_from_u64($seed);
        let dev = Cpu::default();
        let mut model: Built<$model, $dtype, Cpu> = dev.build_module::<$model, $dtype>();
        let mut other = model.clone();
        let layout = layout_of::<_, $dtype, Cpu>(&model).unwrap();
        assert_eq!(layout, <$model>::layout().unwrap());
        let units = |g: &lopt::layout::UnitGroup| g.units as i32 * if g.odd { 1 } else { -1 };
        assert_eq!(layout.groups().iter().map(units).collect::<Vec<_>>(), $groups);

        let flat: Vec<$dtype> =
            (0..layout.num_parameters()).map(|_| rng.gen_range(-1.0..1.0)).collect();
        let mut moved = flat.clone();
        Symmetry::new(&layout).sample(&mut rng).apply(&flat, &mut moved);
        assert_ne!(flat, moved);
        unflatten(&mut model, &flat).unwrap();
        unflatten(&mut other, &moved).unwrap();
        for _ in 0..2 {
            let x = $inputs(&mut rng);
            let outputs = wide(model.forward_mut(x.clone().$trace()).as_vec());
            let found = wide(other.forward_mut(x.$trace()).as_vec());
            let error = change(&outputs, &found);
            assert!(error < $tolerance, "outputs in training change by {error}");
        }
        let x = $inputs(&mut rng);
        let error =
            change(&wide(model.forward(x.clone()).as_vec()), &wide(other.forward(x).as_vec()));
        assert!(error < $tolerance, "outputs in inference change by {error}");
    }};
}

fn images<E: Dtype + From<f32>>(
    rng: &mut ChaCha8Rng,
) -> Tensor<(usize, Const<2>, usize, usize), E, Cpu> {
    let values: Vec<E> = (0..4 * 2 * 8 * 8).map(|_| rng.gen_range(-2.0f32..2.0).into()).collect();
    Cpu::default().tensor_from_vec(values, (4, Const, 8, 8))
}

fn vectors<E: Dtype + From<f32>>(rng: &mut ChaCha8Rng) -> Tensor<Rank2<6, 4>, E, Cpu> {
    let values: Vec<E> = (0..6 * 4).map(|_| rng.gen_range(-2.0f32..2.0).into()).collect();
    Cpu::default().tensor_from_vec(values, (Const, Const))
}

fn words(rng: &mut ChaCha8Rng) -> Tensor<Rank2<4, 5>, usize, Cpu> {
    let words: Vec<usize> = (0..4 * 5).map(|_| rng.gen_range(0..7)).collect();
    Cpu::default().tensor_from_vec(words, (Const, Const))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn transformed_models_keep_outputs(seed: u64) {
        // Skips: 8 and 6 channels. The depthwise convolution keeps to its 6.
        let groups = [-8, -4, -6, -8];
        keeps!(ConvNet<ReLU>, f64, 1e-8, seed, images::<f64>, groups);
        let groups = [8, 4, -6, 8];
        keeps!(ConvNet<Tanh>, f32, 1e-2, seed, images::<f32>, groups);
    }

    #[test]
    fn transformed_stacks_keep_outputs(seed: u64) {
        keeps!(Mlp, f64, 1e-8, seed, vectors::<f64>, [8, 6, 4, 5, 6, -3, -3]);
        keeps!(FromInput, f64, 1e-8, seed, vectors::<f64>, [5, -6]);
        keeps!(Grouped, f64, 1e-8, seed, images::<f64>, [-2, 4]);
        keeps!(Encoder, f64, 1e-8, seed, words, [-8, 2, -5, 2, -5]);
        keeps!(Translator, f64, 1e-8, seed, words, [-8, -8, 2, -5, 2, 2, -5, 2, 2, -5], clone);
    }
}

/// Each layer of dfdx's, alone: the description and what is built agree with
/// what dfdx visits, and outside a known order nothing is a group.
#[test]
fn layers_are_what_dfdx_visits() {
    macro_rules! agrees {
        ($($layer:ty: $groups:literal),* $(,)?) => {$(
            let model = Cpu::default().build_module::<$layer, f32>();
            let layout = layout_of::<_, f32, Cpu>(&model).unwrap();
            assert_eq!(layout, <$layer>::layout().unwrap());
            assert_eq!(layout.groups().len(), $groups, stringify!($layer));
        )*};
    }
    agrees!(
        Residual<Linear<3, 3>>: 0,
        Residual<(Linear<3, 4>, Linear<4, 3>)>: 1,
        GeneralizedResidual<Linear<3, 4>, Linear<3, 4>>: 0,
        SplitInto<(Linear<3, 4>, Linear<3, 4>)>: 0,
        AddInto<(Linear<3, 4>, Linear<5, 4>, Linear<4, 4>)>: 0,
        BatchNorm2D<3>: 0,
        Bias2D<3>: 0,
        AvgPoolGlobal: 0,
        MaxPoolGlobal: 0,
        MinPoolGlobal: 0,
        Embedding<5, 3>: 0,
        Reshape<Rank2<2, 3>>: 0,
        (Linear<2, 6>, Reshape<Rank2<2, 3>>, Linear<3, 2>): 0,
        (Linear<2, 6>, Linear<6, 2>): 1,
        // Not vectors where images are read.
        (Linear<2, 6>, BatchNorm2D<6>, Linear<6, 2>): 0,
        (Linear<2, 6>, AvgPoolGlobal, Linear<6, 2>): 0,
        // Of sequences, so not over the units.
        (Linear<2, 6>, BatchNorm1D<3>, Linear<6, 2>): 0,
        MultiHeadAttention<8, 2>: 1,
        MultiHeadAttention<8, 2, 6, 4>: 1,
        TransformerEncoderBlock<8, 2, 5>: 2,
        TransformerEncoder<8, 2, 5, 3>: 6,
        TransformerDecoderBlock<8, 2, 5>: 3,
        TransformerDecoder<8, 2, 5, 2>: 6,
        Transformer<8, 2, 2, 1, 5>: 7,
    );
}
