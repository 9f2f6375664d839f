use dfdx::prelude::*;
use std::marker::PhantomData;

#[lopt::network]
struct Net<T> {
    array: [Linear<3, 3>; 2],
    nothing: (),
    function: fn(f32) -> f32,
    tensor: Tensor<Rank1<3>, f32, Cpu>,
    marker: PhantomData<T>,
    many: (ReLU, ReLU, ReLU, ReLU, ReLU, ReLU, ReLU),
    built: dfdx::nn::modules::Linear<2, 3, f32, Cpu>,
}

fn main() {}
