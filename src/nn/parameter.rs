//! A tensor that is a field of a network itself, outside of every layer.

use std::marker::PhantomData;

use dfdx::nn::BuildOnDevice;
use dfdx::shapes::{ConstShape, Dtype};
use dfdx::tensor::{Cpu, Tensor};
use dfdx::tensor_ops::Device;

use crate::layout::LayoutBuilder;
use crate::network::fields::BareTensor;

/// Describes a bare tensor in a struct with `#[lopt::network]` and a forward
/// pass of its own: what is built is a dfdx [`Tensor`] of shape `S`.
///
/// It holds zeros at first, or what `#[lopt(init = 1.0)]` says.
///
/// # Examples
/// ```
/// use dfdx::prelude::*;
/// use lopt::nn::Parameter;
///
/// #[lopt::network]
/// #[lopt(forward)]
/// struct Shift {
///     amount: Parameter<Rank1<3>>,
/// }
///
/// let model = Cpu::default().build_module::<Shift, f32>();
/// assert_eq!(model.amount.array(), [0.0; 3]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameter<S>(PhantomData<S>);

impl<S: ConstShape, E: Dtype, D: Device<E>> BuildOnDevice<D, E> for Parameter<S> {
    type Built = Tensor<S, E, D>;
}

impl<S: ConstShape> BareTensor for Parameter<S> {
    const PARAMETERS: usize = S::NUMEL;

    fn describe(layout: &mut LayoutBuilder, name: &str) {
        <Tensor<S, f32, Cpu> as BareTensor>::describe(layout, name);
    }
}
