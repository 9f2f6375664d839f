use dfdx::prelude::*;

#[lopt::network]
struct Tuple(Linear<2, 3>, ReLU);

#[lopt::network]
struct Unit;

#[lopt::network]
struct Empty {}

fn main() {
    let _ = (Unit, Empty {});
}
