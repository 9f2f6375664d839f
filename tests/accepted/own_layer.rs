//! A layer of one's own, next to dfdx's.
use dfdx::prelude::*;
use lopt::layout::LayoutBuilder;
use lopt::network::Layer;
use lopt::Network;

#[derive(Clone, Debug, Default)]
struct Double;

impl ZeroSizedModule for Double {}
impl NonMutableModule for Double {}

impl<S: Shape, E: Dtype, D: Device<E>, T: Tape<E, D>> Module<Tensor<S, E, D, T>> for Double {
    type Output = Tensor<S, E, D, T>;
    type Error = D::Err;

    fn try_forward(&self, input: Tensor<S, E, D, T>) -> Result<Self::Output, D::Err> {
        input.try_mul(E::ONE + E::ONE)
    }
}

impl Layer for Double {
    const PARAMETERS: usize = 0;

    fn describe(layout: &mut LayoutBuilder) {
        layout.unitwise("Double");
    }
}

#[lopt::network]
struct Net {
    hidden: Linear<2, 3>,
    double: Double,
    output: Linear<3, 1>,
}

#[test]
fn builds() {
    let device = Cpu::default();
    let model = device.build_module::<Net, f32>();
    let _: Tensor<Rank1<1>, f32, _> = model.forward(device.zeros::<Rank1<2>>());
    assert_eq!(Net::layout().unwrap().groups().len(), 1);
}
