use dfdx::prelude::*;
use lopt::nn::Parameter;

#[lopt::network]
struct InOrder {
    hidden: Linear<2, 3>,
    scale: lopt::nn::Parameter<Rank1<3>>,
}

#[lopt::network]
#[lopt(forward)]
struct Initialised {
    #[lopt(init)]
    nothing: Parameter<Rank1<3>>,
    #[lopt(init = "ones")]
    text: Parameter<Rank1<3>>,
    #[lopt(init = 1.0, init = 2.0)]
    twice: Parameter<Rank1<3>>,
    built: Tensor<Rank1<3>, f32, Cpu>,
    tuple: (ReLU, Parameter<Rank1<3>>),
}

fn main() {}
