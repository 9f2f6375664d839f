//! Layers for images: against PyTorch, against their definition, against
//! central differences, and as parts of networks that train and are saved.

use std::path::Path;

use ::safetensors::SafeTensors;
use dfdx::optim::{Adam, AdamConfig};
use dfdx::prelude::*;
use lopt::network::{flatten, unflatten};
use lopt::nn::{
    self, AvgPool2D, AvgPoolGlobal, Conv2D, Flatten2D, MaxPool2D, UnbiasedConv2D, Value,
};
use lopt::Network;

type Images<const C: usize, E> = Tensor<(usize, Const<C>, usize, usize), E, Cpu>;

/// What `tests/golden/nn/layers.py` has stored.
struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nn/layers.safetensors");
        Self { bytes: std::fs::read(path).unwrap() }
    }

    /// `f32` values were rounded when they were stored, and sums of up to 160
    /// products of that type carry rounding of their own.
    fn check<E: Value>(&self, name: &str, found: &[E]) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        let wanted: Vec<f64> = tensor
            .data()
            .chunks_exact(4)
            .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
            .collect();
        assert_eq!(found.len(), wanted.len(), "{name}");
        let largest = wanted.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        let tolerance = if size_of::<E>() == 4 { 2e-6 } else { 1e-7 } * largest.max(1.0);
        for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
            let found: f64 = num_traits::cast(*found).unwrap();
            assert!((found - wanted).abs() <= tolerance, "{name} {i}: {found}, expected {wanted}");
        }
    }
}

fn values<E: Value>(seed: usize, len: usize) -> Vec<E> {
    let value = |i: usize| ((i * 37 + i * i % 61 + seed * 101) % 201) as f64 - 100.0;
    (0..len).map(|i| E::from_f64(value(i) / 100.0).unwrap()).collect()
}

fn coarse<E: Value>(seed: usize, len: usize) -> Vec<E> {
    (0..len)
        .map(|i| E::from_f64(((i * 3 + i * i % 7 + seed) % 5) as f64 / 2.0 - 1.0).unwrap())
        .collect()
}

fn images<const C: usize, E: Value>(
    values: fn(usize, usize) -> Vec<E>,
    [n, h, w]: [usize; 3],
) -> Images<C, E>
where
    Cpu: Device<E>,
{
    Cpu::default().tensor((values(1, n * C * h * w), (n, Const, h, w)))
}

/// A layer's output and gradients, with the formula's values everywhere.
macro_rules! convolution {
    ($golden:ident, $name:literal, $layer:ident<$($size:literal),*>, $shape:expr, $($bias:ident)?) => {{
        convolution!(f32, $golden, $name, $layer<$($size),*>, $shape, $($bias)?);
        convolution!(f64, $golden, $name, $layer<$($size),*>, $shape, $($bias)?);
    }};
    ($e:ty, $golden:ident, $name:literal, $layer:ident<$($size:literal),*>, $shape:expr, $($bias:ident)?) => {{
        let dev = Cpu::default();
        let mut layer = dev.build_module::<$layer<$($size),*>, $e>();
        let length = layer.weight.shape().num_elements();
        layer.weight.copy_from(&values(2, length));
        $(let length = layer.$bias.shape().num_elements();
        layer.$bias.copy_from(&values(3, length));)?
        let input = images::<_, $e>(values, $shape);
        let out = layer.forward(input.leaky_trace());
        $golden.check(concat!($name, ".out"), &out.as_vec());
        let gradient = dev.tensor((values(4, out.shape().num_elements()), *out.shape()));
        let gradients = (out * gradient).sum::<Rank0, _>().backward();
        $golden.check(concat!($name, ".input"), &gradients.get(&input).as_vec());
        $golden.check(concat!($name, ".weight"), &gradients.get(&layer.weight).as_vec());
        $($golden.check(concat!($name, ".bias"), &gradients.get(&layer.$bias).as_vec());)?
    }};
}

#[test]
fn convolutions_agree_with_pytorch() {
    let golden = Golden::read();
    convolution!(golden, "stride", Conv2D<1, 4, 3, 2>, [2, 9, 9], bias);
    convolution!(golden, "padding", Conv2D<3, 5, 3, 1, 1>, [2, 5, 7], bias);
    convolution!(golden, "groups", UnbiasedConv2D<4, 6, 3, 2, 1, 2>, [2, 7, 6],);
    convolution!(golden, "depthwise", Conv2D<4, 8, 3, 1, 1, 4>, [1, 6, 5], bias);
    convolution!(golden, "wide", UnbiasedConv2D<2, 3, 5, 3, 2>, [1, 11, 8],);
    convolution!(golden, "one", Conv2D<3, 9, 1>, [2, 4, 5], bias);
    convolution!(golden, "gaps", Conv2D<2, 3, 2, 3, 1>, [3, 8, 7], bias);
    convolution!(golden, "whole", Conv2D<3, 4, 4>, [2, 4, 4], bias);
    convolution!(golden, "many", UnbiasedConv2D<3, 17, 3>, [11, 4, 4],);
}

macro_rules! pool {
    ($golden:ident, $name:literal, $layer:ty, $channels:literal, $shape:expr) => {{
        pool!(f32, $golden, $name, $layer, $channels, $shape);
        pool!(f64, $golden, $name, $layer, $channels, $shape);
    }};
    ($e:ty, $golden:ident, $name:literal, $layer:ty, $channels:literal, $shape:expr) => {{
        let dev = Cpu::default();
        let layer = dev.build_module::<$layer, $e>();
        let input = images::<$channels, $e>(coarse, $shape);
        let out = layer.forward(input.leaky_trace());
        $golden.check(concat!($name, ".out"), &out.as_vec());
        let gradient = dev.tensor((values(4, out.shape().num_elements()), *out.shape()));
        let gradients = (out * gradient).sum::<Rank0, _>().backward();
        $golden.check(concat!($name, ".input"), &gradients.get(&input).as_vec());
    }};
}

#[test]
fn pooling_agrees_with_pytorch() {
    let golden = Golden::read();
    pool!(golden, "max_even", MaxPool2D<2, 2>, 3, [2, 7, 6]);
    pool!(golden, "max_padded", MaxPool2D<3, 2, 1>, 2, [1, 7, 8]);
    pool!(golden, "avg_even", AvgPool2D<2, 2>, 3, [2, 7, 6]);
    pool!(golden, "avg_padded", AvgPool2D<3, 2, 1>, 2, [1, 7, 8]);
    pool!(golden, "avg_global", AvgPoolGlobal, 3, [2, 5, 4]);
}

#[test]
fn a_block_with_a_batch_norm_agrees_with_pytorch() {
    type Block =
        (UnbiasedConv2D<2, 4, 3, 1, 1>, BatchNorm2D<4>, ReLU, AvgPool2D<2, 2>, AvgPoolGlobal);
    let golden = Golden::read();
    let dev = Cpu::default();
    let mut block = dev.build_module::<Block, f64>();
    block.0.weight.copy_from(&values(2, 4 * 2 * 9));
    block.1.scale.copy_from(&values(5, 4));
    block.1.bias.copy_from(&values(6, 4));
    let input = images::<2, f64>(values, [3, 6, 5]);
    let out = block.forward_mut(input.leaky_trace());
    golden.check("block.out", &out.as_vec());
    let gradient = dev.tensor((values(4, 12), *out.shape()));
    let gradients = (out * gradient).sum::<Rank0, _>().backward();
    golden.check("block.input", &gradients.get(&input).as_vec());
    golden.check("block.weight", &gradients.get(&block.0.weight).as_vec());
    golden.check("block.scale", &gradients.get(&block.1.scale).as_vec());
    golden.check("block.shift", &gradients.get(&block.1.bias).as_vec());
    golden.check("block.running_mean", &block.1.running_mean.as_vec());
    golden.check("block.running_variance", &block.1.running_var.as_vec());
    block.forward(input);
}

/// Every layer once, groups and padding among them.
type Everything = (
    (Conv2D<2, 6, 3, 2, 1, 2>, Tanh, MaxPool2D<2>),
    (UnbiasedConv2D<6, 8, 2, 1, 1>, Sigmoid, AvgPool2D<3, 2, 1>),
    (Flatten2D<72>, Linear<72, 3>),
);

#[test]
fn gradients_agree_with_central_differences() {
    const STEP: f64 = 1e-5;
    let dev = Cpu::seed_from_u64(3);
    let mut model = dev.build_module::<Everything, f64>();
    let input = dev.sample_normal::<Rank4<2, 2, 9, 10>>();
    let gradient = dev.sample_normal::<Rank2<2, 3>>();
    let scores = model.forward(input.leaky_trace());
    let gradients = (scores * gradient.clone()).sum::<Rank0, _>().backward();
    let loss = |model: &<Everything as BuildOnDevice<Cpu, f64>>::Built,
                input: &Tensor<_, f64, Cpu>| {
        let input: Tensor<Rank4<2, 2, 9, 10>, f64, Cpu> = input.clone();
        (model.forward(input) * gradient.clone()).sum::<Rank0, _>().array()
    };
    let near = |a: f64, b: f64, what: &str| {
        assert!((a - b).abs() < 1e-7, "{what}: {a}, expected {b}");
    };

    let found = gradients.get(&input).as_vec();
    let values = input.as_vec();
    assert_eq!(found.len(), values.len());
    for (i, found) in found.into_iter().enumerate() {
        let at = |change: f64| {
            let mut values = values.clone();
            values[i] += change;
            let mut input = input.clone();
            input.copy_from(&values);
            loss(&model, &input)
        };
        near(found, (at(STEP) - at(-STEP)) / (2.0 * STEP), &format!("input {i}"));
    }
    let found = [
        gradients.get(&model.0 .0.weight).as_vec(),
        gradients.get(&model.0 .0.bias).as_vec(),
        gradients.get(&model.1 .0.weight).as_vec(),
        gradients.get(&model.2 .1.weight).as_vec(),
        gradients.get(&model.2 .1.bias).as_vec(),
    ];
    let found = found.concat();
    let values = flatten(&model).unwrap();
    assert_eq!(found.len(), values.len());
    for (i, found) in found.into_iter().enumerate() {
        let mut at = |change: f64| {
            let mut values = values.clone();
            values[i] += change;
            unflatten(&mut model, &values).unwrap();
            loss(&model, &input)
        };
        near(found, (at(STEP) - at(-STEP)) / (2.0 * STEP), &format!("parameter {i}"));
    }
}

#[test]
fn threads_change_nothing_but_the_order_of_sums() {
    let dev = Cpu::seed_from_u64(4);
    let conv = dev.build_module::<Conv2D<16, 32, 3>, f32>();
    let input = dev.sample_normal::<Rank4<21, 16, 13, 13>>();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let out = conv.forward(input.leaky_trace());
            let values = out.as_vec();
            let gradients = out.square().mean().backward();
            let weight = gradients.get(&conv.weight).as_vec();
            (values, gradients.get(&input).as_vec(), weight, gradients.get(&conv.bias).as_vec())
        })
    };
    let (one, three) = (run(1), run(3));
    assert_eq!((&one.0, &one.1), (&three.0, &three.1));
    for (a, b) in one.2.iter().chain(&one.3).zip(three.2.iter().chain(&three.3)) {
        assert!((a - b).abs() < 1e-6 * (1.0 + a.abs()), "{a} and {b}");
    }
    assert_eq!(run(3), three);
}

#[test]
fn images_may_be_single_empty_or_permuted() {
    let dev = Cpu::seed_from_u64(5);
    let model = dev.build_module::<(Conv2D<2, 3, 3, 1, 1>, MaxPool2D<2>, AvgPoolGlobal), f32>();
    let input = dev.sample_normal::<Rank4<1, 2, 5, 4>>();
    let single: Tensor<Rank3<2, 5, 4>, f32, _> = input.clone().reshape();
    assert_eq!(model.forward(single).as_vec(), model.forward(input.clone()).as_vec());

    let last: Tensor<Rank4<1, 5, 4, 2>, f32, _> = input.clone().permute();
    let mut copy = dev.zeros::<Rank4<1, 5, 4, 2>>();
    copy.copy_from(&last.as_vec());
    let out = model.forward(copy.leaky_trace().permute::<Rank4<1, 2, 5, 4>, _>());
    assert_eq!(out.as_vec(), model.forward(input.clone()).as_vec());
    let permuted = out.square().mean().backward().get(&copy);
    let plain = model.forward(input.leaky_trace()).square().mean().backward().get(&input);
    let plain: Tensor<Rank4<1, 5, 4, 2>, f32, _> = plain.permute();
    assert_eq!(permuted.as_vec(), plain.as_vec());

    let empty: Tensor<(usize, Const<2>, usize, usize), f32, _> = dev.zeros_like(&(0, Const, 5, 4));
    let out = model.forward(empty);
    assert_eq!(out.shape().concrete(), [0, 3]);
}

/// A convolution, written as its definition.
#[allow(clippy::too_many_arguments)]
fn plain(
    x: &[f64],
    [n, i, h, w]: [usize; 4],
    weight: &[f64],
    bias: &[f64],
    [o, k, s, p, g]: [usize; 5],
) -> (Vec<f64>, [usize; 2]) {
    let (oh, ow) = ((h + 2 * p - k) / s + 1, (w + 2 * p - k) / s + 1);
    let (ig, og) = (i / g, o / g);
    let mut out = Vec::new();
    for b in 0..n {
        for c in 0..o {
            for y in 0..oh {
                for z in 0..ow {
                    let mut sum = bias[c];
                    for j in 0..ig {
                        for ky in 0..k {
                            for kx in 0..k {
                                let (iy, ix) = (y * s + ky, z * s + kx);
                                if iy < p || ix < p || iy - p >= h || ix - p >= w {
                                    continue;
                                }
                                let channel = c / og * ig + j;
                                sum += weight[((c * ig + j) * k + ky) * k + kx]
                                    * x[((b * i + channel) * h + iy - p) * w + ix - p];
                            }
                        }
                    }
                    out.push(sum);
                }
            }
        }
    }
    (out, [oh, ow])
}

fn check<
    const I: usize,
    const O: usize,
    const K: usize,
    const S: usize,
    const P: usize,
    const G: usize,
>(
    n: usize,
    h: usize,
    w: usize,
) {
    let dev = Cpu::seed_from_u64(7);
    let conv = dev.build_module::<Conv2D<I, O, K, S, P, G>, f64>();
    let x: Tensor<(usize, Const<I>, usize, usize), f64, _> =
        dev.sample_normal_like(&(n, Const, h, w));
    let (wanted, [oh, ow]) = plain(
        &x.as_vec(),
        [n, I, h, w],
        &conv.weight.as_vec(),
        &conv.bias.as_vec(),
        [O, K, S, P, G],
    );
    let y = conv.forward(x.leaky_trace());
    assert_eq!(y.shape().concrete(), [n, O, oh, ow]);
    let close = |a: &[f64], b: &[f64], what: &str| {
        assert_eq!(a.len(), b.len());
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            assert!(
                (a - b).abs() < 1e-9 * (1.0 + b.abs()),
                "{what} {i}: {a} {b} for {:?}",
                (I, O, K, S, P, G, n, h, w)
            );
        }
    };
    close(&y.as_vec(), &wanted, "out");
    let m = dev.sample_normal_like(y.shape());
    let mv = m.as_vec();
    let g = (y * m).sum::<Rank0, _>().backward();
    // The function is linear in each argument: gradients by unit vectors.
    let dot = |y: Vec<f64>| y.iter().zip(&mv).map(|(a, b)| a * b).sum::<f64>();
    let zero_bias = vec![0.0; O];
    let (xv, wv) = (x.as_vec(), conv.weight.as_vec());
    let gx = g.get(&x).as_vec();
    let gw = g.get(&conv.weight).as_vec();
    let gb = g.get(&conv.bias).as_vec();
    let wanted: Vec<f64> = (0..xv.len())
        .map(|j| {
            let mut e = vec![0.0; xv.len()];
            e[j] = 1.0;
            dot(plain(&e, [n, I, h, w], &wv, &zero_bias, [O, K, S, P, G]).0)
        })
        .collect();
    close(&gx, &wanted, "x");
    let wanted: Vec<f64> = (0..wv.len())
        .map(|j| {
            let mut e = vec![0.0; wv.len()];
            e[j] = 1.0;
            dot(plain(&xv, [n, I, h, w], &e, &zero_bias, [O, K, S, P, G]).0)
        })
        .collect();
    close(&gw, &wanted, "w");
    let wanted: Vec<f64> = (0..O)
        .map(|o| {
            mv.chunks(oh * ow)
                .enumerate()
                .filter(|(i, _)| i % O == o)
                .map(|(_, c)| c.iter().sum::<f64>())
                .sum()
        })
        .collect();
    close(&gb, &wanted, "b");
}

#[test]
fn as_defined() {
    check::<1, 1, 1, 1, 0, 1>(1, 1, 1);
    check::<1, 16, 3, 2, 0, 1>(2, 9, 9);
    check::<2, 11, 3, 1, 0, 1>(3, 7, 5);
    check::<3, 7, 3, 1, 1, 1>(2, 6, 7);
    check::<2, 3, 5, 3, 2, 1>(2, 8, 9);
    check::<2, 3, 2, 3, 1, 1>(9, 8, 7);
    check::<4, 8, 3, 2, 1, 2>(2, 7, 6);
    check::<4, 8, 3, 1, 1, 4>(2, 5, 5);
    check::<3, 4, 4, 1, 0, 1>(2, 4, 4);
    check::<2, 2, 3, 4, 3, 1>(2, 3, 2);
}

/// The convolutional network of the G.pt paper, for grey images.
#[lopt::network]
struct Cnn {
    first: nn::Conv2D<1, 16, 3, 2>,
    first_activation: ReLU,
    second: nn::Conv2D<16, 32, 3>,
    second_activation: ReLU,
    pool: nn::AvgPoolGlobal,
    output: Linear<32, 10>,
}

#[test]
fn a_network_trains_and_is_saved() {
    let dev = Cpu::seed_from_u64(1);
    let mut model = dev.build_module::<Cnn, f32>();
    assert_eq!(Cnn::NUM_PARAMETERS, 16 * 9 + 16 + 32 * 16 * 9 + 32 + 330);
    let layout = Cnn::layout().unwrap();
    assert_eq!(layout.tensors()[2].shape, [32, 16, 3, 3]);
    assert_eq!(layout.groups().len(), 2);

    let images: Tensor<(usize, Const<1>, usize, usize), f32, _> =
        dev.sample_normal_like(&(20, Const, 28, 28));
    let mut target = dev.zeros_like(&(20, Const::<10>));
    for n in 0..20 {
        target[[n, n % 10]] = 1.0;
    }
    let config = AdamConfig { lr: 3e-3, ..Default::default() };
    let mut adam = Adam::new(&model, config);
    let mut gradients = model.alloc_grads();
    let mut losses = Vec::new();
    for _ in 0..150 {
        let scores = model.forward_mut(images.clone().traced(gradients));
        let loss = cross_entropy_with_logits_loss(scores, target.clone());
        losses.push(loss.array());
        gradients = loss.backward();
        adam.update(&mut model, &gradients).unwrap();
        model.zero_grads(&mut gradients);
    }
    assert!(losses[149] < 0.5 * losses[0], "{} to {}", losses[0], losses[149]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cnn.safetensors");
    model.save_safetensors(&path).unwrap();
    let mut other = dev.build_module::<Cnn, f32>();
    other.load_safetensors(&path).unwrap();
    assert_eq!(flatten(&other).unwrap(), flatten(&model).unwrap());
    let mut third = dev.build_module::<Cnn, f32>();
    unflatten(&mut third, &flatten(&model).unwrap()).unwrap();
    let scores =
        |model: &lopt::network::Built<Cnn, f32, Cpu>| model.forward(images.clone()).as_vec();
    assert_eq!(scores(&third), scores(&model));
    assert_eq!(scores(&other), scores(&model));
}

#[test]
fn layers_stand_in_tuples_and_change_dtype_and_refuse_wrong_shapes() {
    type Network = (UnbiasedConv2D<1, 4, 3>, Tanh, MaxPool2D<2, 2>, Flatten2D<16>, Linear<16, 3>);
    let dev = Cpu::seed_from_u64(2);
    let model = dev.build_module::<Network, f64>();
    let images = dev.sample_normal::<Rank4<5, 1, 6, 6>>();
    let double = model.forward(images.clone()).as_vec();
    let single = model.to_dtype::<f32>().forward(images.to_dtype::<f32>()).as_vec();
    assert!(double.iter().zip(single).all(|(a, b)| (a - f64::from(b)).abs() < 1e-5));

    let model = dev.build_module::<Network, f64>();
    assert!(model.try_forward(dev.zeros::<Rank4<5, 1, 7, 8>>()).is_err());
    assert!(model.try_forward(dev.zeros::<Rank4<5, 1, 2, 8>>()).is_err());
    assert!(model.try_forward(dev.zeros::<Rank4<5, 1, 3, 3>>()).is_err());
}

/// Values are those of PyTorch 2 (`torch.nn.SELU` in float64).
#[test]
fn selu_is_that_of_pytorch_and_has_its_slope() {
    let dev = Cpu::default();
    let x = dev.tensor([-3.0f64, -0.5, 0.0, 0.25, 2.0]);
    let layer = dev.build_module::<nn::SeLU, f64>();
    let y = layer.forward(x.clone());
    let expected = [
        -1.670_568_728_767_111_8,
        -0.691_758_187_802_871_3,
        0.0,
        0.262_675_246_838_870_1,
        2.101_401_974_710_961,
    ];
    for (y, expected) in y.array().iter().zip(expected) {
        assert!((y - expected).abs() < 1e-12, "{y} {expected}");
    }
    let gradients = layer.forward(x.leaky_trace()).sum().backward();
    let step = 1e-6;
    let rise = (layer.forward(x.clone() + step) - layer.forward(x.clone() - step)) / (2.0 * step);
    for (n, (slope, rise)) in gradients.get(&x).array().iter().zip(rise.array()).enumerate() {
        // At zero the two slopes differ; the one from below is taken.
        let rise = if n == 2 { 1.673_263_242_354_377_2 * 1.050_700_987_355_480_5 } else { rise };
        assert!((slope - rise).abs() < 1e-6, "{slope} {rise}");
    }
    type Hidden = (Linear<3, 5>, nn::SeLU, Linear<5, 2>);
    let groups = <Hidden as Network>::layout().unwrap();
    assert_eq!(groups.groups()[0].units, 5);
}
