use dfdx::prelude::*;

#[lopt::network]
struct Images {
    convolution: Conv2D<1, 4, 3>,
}

#[lopt::network]
struct Blocks {
    skip: Residual<Linear<3, 3>>,
    other_skip: dfdx::nn::builders::GeneralizedResidual<ReLU, Linear<3, 3>>,
    split: (ReLU, SplitInto<(ReLU, Tanh)>),
    attention: MultiHeadAttention<8, 2>,
    global: MaxPoolGlobal,
}

fn main() {}
