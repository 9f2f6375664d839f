//! Attributes and a forward pass of one's own, with nothing in scope.
#![no_implicit_prelude]
#![deny(warnings, missing_docs)]

/// Every attribute, in a struct with parameters.
#[::lopt::network]
#[lopt(forward(hidden, _ + (block, ::dfdx::nn::builders::Tanh), .., r#in | (_ + other) | _))]
pub struct Net<A: ::std::marker::Copy, const H: usize = 3> {
    /// Documented.
    pub hidden: ::dfdx::nn::builders::Linear<2, H>,
    block: Block<A, H>,
    #[lopt(init = 1.5)]
    scale: ::lopt::nn::Parameter<::dfdx::shapes::Rank1<H>>,
    #[lopt(frozen, init = -2)]
    pub(crate) mean: ::lopt::nn::Parameter<::dfdx::shapes::Rank2<H, 2>>,
    #[lopt(skip)]
    shift: ::lopt::nn::Parameter<::dfdx::shapes::Rank0>,
    #[lopt(frozen)]
    r#in: ::dfdx::nn::builders::Linear<H, 1>,
    #[lopt(skip)]
    other: ::dfdx::nn::builders::Linear<H, H>,
}

/// In order, with the attributes of such structs.
#[::lopt::network]
pub struct Block<A, const H: usize> {
    #[lopt(residual)]
    first: ::dfdx::nn::builders::Linear<H, H>,
    #[lopt(frozen, residual)]
    second: (::dfdx::nn::builders::Linear<H, H>, A),
    #[lopt(skip)]
    third: A,
}

/// No wiring, and more fields than dfdx's tuples hold.
#[::lopt::network]
#[lopt(forward)]
struct Long<S: ::dfdx::shapes::ConstShape> {
    a: ::lopt::nn::Parameter<S>,
    #[lopt(frozen)]
    b: ::dfdx::nn::builders::Linear<2, 3>,
    c: ::lopt::nn::Parameter<S>,
    d: ::lopt::nn::Parameter<S>,
    #[lopt(skip)]
    e: Block<::dfdx::nn::builders::ReLU, 2>,
    f: ::lopt::nn::Parameter<S>,
    g: ::lopt::nn::Parameter<S>,
}

#[test]
fn builds() {
    use ::dfdx::nn::DeviceBuildExt as _;
    use ::dfdx::tensor::AsArray as _;
    use ::lopt::Network as _;
    use ::std::{assert_eq, iter::Iterator as _, vec::Vec};

    let device: ::dfdx::tensor::Cpu = ::std::default::Default::default();
    let model = device.build_module::<Net<::dfdx::nn::builders::ReLU>, f64>();
    let _: &NetOn<::dfdx::nn::builders::ReLU, 3, f64, ::dfdx::tensor::Cpu> = &model;
    assert_eq!(model.scale.array(), [1.5; 3]);
    assert_eq!(model.mean.array(), [[-2.0; 2]; 3]);
    let layout = Net::<::dfdx::nn::builders::ReLU>::layout().unwrap();
    let names: Vec<_> = layout.tensors().iter().map(|tensor| &tensor.name[..]).collect();
    let expected =
        ["hidden.weight", "hidden.bias", "block.first.weight", "block.first.bias", "scale"];
    assert_eq!(names, expected);

    let model = device.build_module::<Long<::dfdx::shapes::Rank1<2>>, f32>();
    assert_eq!(model.g.array(), [0.0; 2]);
    assert_eq!(Long::<::dfdx::shapes::Rank1<2>>::NUM_PARAMETERS, 10);
}
