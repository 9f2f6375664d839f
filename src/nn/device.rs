//! Values and gradients of dfdx's tensors as slices.

#![allow(unsafe_code)]

use std::ops::DerefMut;

use dfdx::shapes::{HasShape, Shape};
use dfdx::tensor::{Cpu, PutTape, SplitTape, Storage, Tape, Tensor};
use dfdx::tensor_ops::{Device, ReshapeTo};

use super::Value;

/// A device whose tensors these layers can work on: dfdx's `Cpu`.
#[diagnostic::on_unimplemented(
    message = "layers of `lopt::nn` run on dfdx's `Cpu`, not on `{Self}`"
)]
pub trait HostDevice<E: Value>: Device<E> {
    /// Values of a contiguous tensor, in order.
    #[doc(hidden)]
    fn values<S: Shape, T>(tensor: &Tensor<S, E, Self, T>) -> &[E];
    /// Values of a tensor that was just made, in order.
    #[doc(hidden)]
    fn values_mut<S: Shape>(tensor: &mut Tensor<S, E, Self>) -> &mut [E];
    /// Values of a gradient.
    #[doc(hidden)]
    fn gradient(storage: &mut <Self as Storage<E>>::Vec) -> &mut Vec<E>;
}

impl<E: Value> HostDevice<E> for Cpu
where
    Cpu: Device<E> + Storage<E, Vec: DerefMut<Target = Vec<E>>>,
{
    fn values<S: Shape, T>(tensor: &Tensor<S, E, Self, T>) -> &[E] {
        let length = tensor.shape().num_elements();
        if length == 0 {
            return &[];
        }
        let first: &E = &tensor[S::Concrete::default()];
        // SAFETY: `first` is the start of the tensor's vector, which holds
        // `length` values: callers pass tensors from `try_contiguous`, which
        // have one value for each position. The borrow of `tensor` keeps the
        // vector alive and unchanged. Strict models of aliasing (Stacked
        // Borrows, Miri) want a pointer to the whole vector for that, which
        // dfdx does not give; the compiler does not make use of the rule.
        unsafe { std::slice::from_raw_parts(first, length) }
    }

    fn values_mut<S: Shape>(tensor: &mut Tensor<S, E, Self>) -> &mut [E] {
        let length = tensor.shape().num_elements();
        if length == 0 {
            return &mut [];
        }
        let first: &mut E = &mut tensor[S::Concrete::default()];
        // SAFETY: as above; indexing mutably has made the vector this tensor's
        // own, and the mutable borrow lasts as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(first, length) }
    }

    fn gradient(storage: &mut <Self as Storage<E>>::Vec) -> &mut Vec<E> {
        storage
    }
}

/// dfdx's error for a wrong number of elements: of its devices' errors for
/// shapes the only one that can be made for every device.
pub(super) fn refuse<R, E: Value, D: Device<E>>(device: &D) -> Result<R, D::Err> {
    match device.try_tensor_from_vec(Vec::<E>::new(), (1,)) {
        Err(error) => Err(error),
        Ok(_) => unreachable!("dfdx made a tensor of one value from none"),
    }
}

/// A function of one tensor, on plain slices.
pub(super) trait Operation<E>: 'static {
    /// Writes the output; `keep` says whether there will be a backward pass.
    fn forward(&mut self, input: &[E], out: &mut [E], keep: bool);
    /// Adds to the gradient of the input.
    fn backward(&self, out_gradient: &[E], input_gradient: &mut [E]);
}

/// Applies an operation, and puts it on the tape of `input`.
pub(super) fn record<X, Y, E, D, T>(
    input: Tensor<X, E, D, T>,
    shape: Y,
    mut operation: impl Operation<E>,
) -> Result<Tensor<Y, E, D, T>, D::Err>
where
    X: Shape,
    Y: Shape,
    E: Value,
    D: HostDevice<E>,
    T: Tape<E, D>,
{
    let (input, mut tape) = input.try_contiguous()?.split_tape();
    let mut out = input.device().try_zeros_like(&shape)?;
    operation.forward(D::values(&input), D::values_mut(&mut out), T::OWNS_TAPE);
    let (input, out_ghost) = (input.ghost(), out.ghost());
    tape.add_backward_op(move |gradients| {
        let out_gradient = std::mem::take(D::gradient(gradients.get_or_alloc_mut(&out_ghost)?));
        let input_gradient = D::gradient(gradients.get_or_alloc_mut(&input)?);
        operation.backward(&out_gradient, input_gradient);
        // Taken out and put back, for there is only one borrow at a time.
        *D::gradient(gradients.get_or_alloc_mut(&out_ghost)?) = out_gradient;
        Ok(())
    });
    Ok(out.put_tape(tape))
}
