//! Convolutions, pooling, batch norms and residual blocks of them.
#![deny(warnings)]
use dfdx::optim::Sgd;
use dfdx::prelude::*;
use lopt::network::check_symmetry;
use lopt::nn::{AvgPool2D, AvgPoolGlobal, Conv2D, Flatten2D, MaxPool2D, UnbiasedConv2D};
use lopt::Network;
use rand::SeedableRng;

#[lopt::network]
struct Block<const C: usize> {
    conv: UnbiasedConv2D<C, C, 3, 1, 1>,
    norm: BatchNorm2D<C>,
    activation: ReLU,
    depthwise: Conv2D<C, C, 3, 1, 1, C>,
}

#[lopt::network]
struct Cnn {
    stem: Conv2D<1, 4, 3, 2>,
    activation: Tanh,
    pool: MaxPool2D<2, 2>,
    #[lopt(residual)]
    block: Block<4>,
    widen: Conv2D<4, 6, 1>,
    average: AvgPool2D<2, 2>,
    flatten: Flatten2D<{ 6 * 3 * 3 }>,
    hidden: Linear<{ 6 * 3 * 3 }, 8>,
    output: Linear<8, 3>,
}

/// The same kind of network with a forward pass of its own.
#[lopt::network]
#[lopt(forward(stem, ReLU, MaxPool2D<2>, _ + (block, Tanh), AvgPoolGlobal, output))]
struct Own {
    stem: Conv2D<1, 4, 3>,
    block: Conv2D<4, 4, 3, 1, 1>,
    output: Linear<4, 2>,
}

impl<B: Dim, T: Tape<f32, Cpu>> Module<Tensor<(B, Const<1>, usize, usize), f32, Cpu, T>>
    for OwnOn<f32, Cpu>
{
    type Output = Tensor<(B, Const<2>), f32, Cpu, T>;
    type Error = <Cpu as HasErr>::Err;

    fn try_forward(
        &self,
        x: Tensor<(B, Const<1>, usize, usize), f32, Cpu, T>,
    ) -> Result<Self::Output, Self::Error> {
        let x = self.stem.try_forward(x)?.try_relu()?;
        let x = MaxPool2D::<2>.try_forward(x)?;
        let block = self.block.try_forward(x.with_empty_tape())?.try_tanh()?;
        self.output.try_forward(AvgPoolGlobal.try_forward(block.try_add(x)?)?)
    }
}

#[test]
fn builds_and_trains() {
    let dev = Cpu::seed_from_u64(0);
    let mut model = dev.build_module::<Cnn, f32>();
    let x: Tensor<Rank4<5, 1, 28, 28>, f32, _> = dev.sample_normal();
    let gradients = model.forward_mut(x.trace(model.alloc_grads())).square().mean().backward();
    let before = model.block.depthwise.weight.as_vec();
    Sgd::new(&model, SgdConfig::default()).update(&mut model, &gradients).unwrap();
    assert_ne!(model.block.depthwise.weight.as_vec(), before);

    let layout = Cnn::layout().unwrap();
    let groups: Vec<_> = layout.groups().iter().map(|g| (g.name.as_str(), g.units)).collect();
    assert_eq!(groups, [("stem", 4), ("widen", 6), ("hidden", 8)]);
    assert_eq!(layout.groups()[1].axes.last().unwrap().block, 9);
}

#[test]
fn computes_what_it_states() {
    let dev = Cpu::seed_from_u64(0);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let x = dev.sample_normal_like(&(Const::<3>, Const::<1>, 9, 9));
    let model = dev.build_module::<Own, f32>();
    check_symmetry(&model, &mut rng, |model| model.forward(x.clone()).as_vec()).unwrap();
    assert_eq!(Own::layout().unwrap().groups().len(), 1);
}
