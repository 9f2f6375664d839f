use dfdx::prelude::*;

#[lopt::network]
enum Layers {
    Hidden(Linear<2, 3>),
}

#[lopt::network]
union Either {
    hidden: std::mem::ManuallyDrop<Linear<2, 3>>,
}

#[lopt::network]
fn network() -> Linear<2, 3> {
    Linear
}

fn main() {}
