use dfdx::prelude::*;

struct Own;

#[lopt::network]
#[lopt(forward(hidden, Own, output))]
struct Unknown {
    hidden: Linear<2, 3>,
    output: Linear<3, 1>,
}

#[lopt::network]
#[lopt(forward(hidden, LayerNorm1D<3>, output))]
struct WithParameters {
    hidden: Linear<2, 3>,
    output: Linear<3, 1>,
}

fn main() {}
