use dfdx::prelude::*;

#[lopt::network(device = "cpu")]
struct Arguments {
    hidden: Linear<2, 3>,
}

#[lopt::network]
#[lopt(rename = "x")]
#[lopt(frozen)]
struct OfTheStruct {
    hidden: Linear<2, 3>,
}

#[lopt::network]
#[lopt]
struct Nothing {
    hidden: Linear<2, 3>,
}

#[lopt::network]
struct OfFields {
    #[lopt]
    nothing: ReLU,
    #[lopt()]
    still_nothing: ReLU,
    #[lopt = "frozen"]
    value: ReLU,
    #[lopt(forwards)]
    unknown: ReLU,
    #[lopt(forward)]
    forward: ReLU,
    #[lopt(skip = "hidden")]
    skip: ReLU,
    #[lopt(residual(2))]
    residual: ReLU,
    #[lopt(frozen, residual)]
    #[lopt(frozen)]
    twice: ReLU,
    #[lopt(frozen, skip)]
    both: ReLU,
    #[lopt(init = 1.0)]
    initialised: ReLU,
}

#[lopt::network]
#[lopt::network]
struct Twice {
    hidden: Linear<2, 3>,
}

#[lopt::network]
struct Conditional {
    #[cfg(unix)]
    hidden: Linear<2, 3>,
}

fn main() {}
