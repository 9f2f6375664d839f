use dfdx::prelude::*;
use lopt::nn::Parameter;

#[lopt::network]
#[lopt(forward = "hidden, output")]
struct NoParentheses {
    hidden: Linear<2, 3>,
}

#[lopt::network]
#[lopt(forward())]
struct Empty {
    hidden: Linear<2, 3>,
}

#[lopt::network]
#[lopt(forward, forward(hidden))]
struct Twice {
    hidden: Linear<2, 3>,
}

#[lopt::network]
#[lopt(forward(hidden, "relu", output))]
struct NoStep {
    hidden: Linear<2, 3>,
    output: Linear<3, 1>,
}

#[lopt::network]
#[lopt(forward(hidden, ()))]
struct NothingInside {
    hidden: Linear<2, 3>,
}

#[lopt::network]
#[lopt(forward(hidden, _ + middle | output))]
struct Mixed {
    hidden: Linear<3, 3>,
    middle: Linear<3, 3>,
    output: Linear<3, 1>,
}

#[lopt::network]
#[lopt(forward(hidden, relu, output))]
struct NoField {
    hidden: Linear<2, 3>,
    output: Linear<3, 1>,
}

#[lopt::network]
#[lopt(forward(hidden, shared, ReLU, shared, output))]
struct Shared {
    hidden: Linear<2, 3>,
    shared: Linear<3, 3>,
    output: Linear<3, 1>,
}

#[lopt::network]
#[lopt(forward(hidden, ReLU, output))]
struct Order {
    output: Linear<3, 1>,
    hidden: Linear<2, 3>,
}

#[lopt::network]
#[lopt(forward(hidden, output))]
struct Forgotten {
    hidden: Linear<2, 3>,
    activation: ReLU,
    scale: Parameter<Rank1<3>>,
    output: Linear<3, 1>,
}

#[lopt::network]
#[lopt(forward(hidden, scale))]
struct NamedTensor {
    hidden: Linear<2, 3>,
    scale: Parameter<Rank1<3>>,
}

#[lopt::network]
#[lopt(forward(hidden, A, output))]
struct OwnParameter<A> {
    hidden: Linear<2, 3>,
    output: Linear<3, 1>,
    activation: A,
}

#[lopt::network]
#[lopt(forward(hidden, _, _ + _, (_), output))]
struct WhatArrives {
    hidden: Linear<2, 3>,
    output: Linear<3, 1>,
}

#[lopt::network]
#[lopt(forward(hidden, block))]
struct Residual {
    hidden: Linear<2, 3>,
    #[lopt(residual)]
    block: Linear<3, 3>,
}

fn main() {}
