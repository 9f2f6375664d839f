use dfdx::prelude::*;

#[lopt::network(device = "cpu")]
struct Arguments {
    hidden: Linear<2, 3>,
}

#[lopt::network]
#[lopt(forward)]
struct Reserved {
    #[lopt(residual)]
    hidden: Linear<2, 2>,
    #[lopt(frozen)]
    output: Linear<2, 3>,
    #[lopt(skip = "hidden")]
    activation: ReLU,
}

#[lopt::network]
#[lopt(rename = "x")]
struct Unknown {
    #[lopt]
    hidden: Linear<2, 3>,
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
