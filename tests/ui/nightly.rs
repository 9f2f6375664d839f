use dfdx::prelude::*;

#[lopt::network]
struct Images {
    convolution: dfdx::nn::builders::Conv2D<1, 4, 3>,
    pool: (ReLU, dfdx::prelude::MaxPool2D<2>),
    up: Upscale2D<4>,
    transposed: ConvTrans2D<1, 4, 3>,
}

fn main() {}
