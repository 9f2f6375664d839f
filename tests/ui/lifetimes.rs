use dfdx::prelude::*;

#[lopt::network]
struct Borrowed<'a, 'b: 'a> {
    hidden: &'a Linear<2, 3>,
    output: &'b mut Linear<2, 3>,
}

fn main() {}
