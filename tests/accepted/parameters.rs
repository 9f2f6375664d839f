//! Constants, types, defaults, where clauses, and the names that the macro likes.
#![deny(warnings)]
use dfdx::prelude::*;

#[lopt::network]
pub struct Net<E, D = ReLU, const F0: usize = 4, const X1: usize = { 2 + 3 }>
where
    D: Clone,
{
    first: Linear<2, F0>,
    second: E,
    third: D,
    fourth: Linear<F0, X1>,
}

#[lopt::network]
struct Outer<L> {
    inner: Net<L>,
    deep: (Net2, ((ReLU,), Linear<3, 1>)),
}

#[lopt::network]
struct Net2 {
    only: self::inner::Residual,
}

mod inner {
    /// A name that dfdx has too.
    #[lopt::network]
    pub(crate) struct Residual {
        r#type: dfdx::prelude::UnbiasedLinear<5, 3>,
    }
}

#[test]
fn builds() {
    let device = Cpu::default();
    let model = device.build_module::<Outer<Tanh>, f32>();
    let _: Tensor<Rank1<1>, f32, _> = model.forward(device.zeros::<Rank1<2>>());
}
