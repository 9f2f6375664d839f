//! Layers for images: against PyTorch, against central differences, and as
//! parts of networks that train and are saved.

use dfdx::optim::{Adam, AdamConfig};
use dfdx::prelude::*;
use lopt::network::{flatten, unflatten};
use lopt::nn::{self, Conv2D, Flatten2D, MaxPool2D, UnbiasedConv2D};
use lopt::Network;

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
