use dfdx::prelude::*;

#[lopt::network]
struct Net {
    hidden: Linear<2, 3>,
    activation: ReLU,
    output: Linear<4, 1>,
}

fn main() {
    let device = Cpu::default();
    let model = device.build_module::<Net, f32>();
    model.forward(device.zeros::<Rank1<2>>());
}
