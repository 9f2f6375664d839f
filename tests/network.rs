use dfdx::optim::Optimizer as _;
use dfdx::prelude::*;
use lopt::Network;

/// Docs.
#[lopt::network]
#[derive(Clone, Debug)]
pub struct Mlp<const H: usize = 10> {
    /// Hidden layer.
    pub hidden: Linear<64, H>,
    activation: ReLU,
    drop: Dropout,
    output: Linear<H, 10>,
}

#[test]
fn it_builds() {
    let dev = Cpu::default();
    let mut model = dev.build_module::<Mlp, f32>();
    let y = model.forward(dev.zeros::<Rank2<3, 64>>());
    assert_eq!(y.array().len(), 3);
    let y = model.forward_mut(dev.zeros::<Rank2<3, 64>>().leaky_trace());
    let g = y.square().mean().backward();
    let mut o = dfdx::optim::Adam::new(&model, Default::default());
    o.update(&mut model, &g).unwrap();
    assert_eq!(Mlp::<10>::NUM_PARAMETERS, model.num_trainable_params());
    let flat = lopt::network::flatten(&model).unwrap();
    assert_eq!(flat.len(), Mlp::<10>::layout().unwrap().num_parameters());
    let layout = Mlp::<10>::layout().unwrap();
    assert_eq!(layout.groups()[0].name, "hidden");
}
