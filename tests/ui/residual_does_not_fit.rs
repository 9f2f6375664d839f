use dfdx::prelude::*;

#[lopt::network]
struct Net {
    stem: Linear<2, 3>,
    #[lopt(residual)]
    block: Linear<3, 4>,
}

fn main() {
    let device = Cpu::default();
    let model = device.build_module::<Net, f32>();
    model.forward(device.zeros::<Rank1<2>>());
}
