//! Nothing of dfdx or lopt has to be in scope, not even the prelude's names.
#![no_implicit_prelude]
#![deny(warnings, missing_docs)]

struct Result;
struct Option;
struct Layer;

/// A network.
#[::lopt::network]
pub struct Mlp {
    /// Documented.
    pub hidden: ::dfdx::nn::builders::Linear<2, 3>,
    activation: ::dfdx::nn::builders::ReLU,
    output: ::dfdx::nn::builders::Linear<3, 1>,
}

#[test]
fn builds() {
    use ::dfdx::nn::DeviceBuildExt as _;
    let _ = (Result, Option, Layer);
    let device: ::dfdx::tensor::Cpu = ::std::default::Default::default();
    let _model = device.build_module::<Mlp, f64>();
}
