use dfdx::prelude::*;

struct Own;

#[lopt::network]
struct Net {
    hidden: Linear<2, 3>,
    own: Own,
}

#[lopt::network]
struct Generic<A> {
    hidden: Linear<2, 3>,
    activation: A,
}

fn parameters<N: lopt::Network>() -> usize {
    N::NUM_PARAMETERS
}

fn main() {
    parameters::<Generic<Own>>();
    parameters::<f32>();
}
