//! What there is to the fields of an annotated struct that are no plain layers:
//! residual ones, those that lopt does not see, and bare tensors.
//!
//! What `#[lopt::network]` writes refers to this module. Not a public interface.

use std::cell::Cell;

use dfdx::nn::tensor_collection::ModuleFields;
use dfdx::nn::{ModuleVisitor, TensorCollection, TensorOptions};
use dfdx::shapes::{ConstShape, Dtype, HasShape};
use dfdx::tensor::{HasErr, Storage, Tensor};
use dfdx::tensor_ops::{Device, TryAdd};

use crate::layout::{LayoutBuilder, Role};

/// What a residual layer has made of `X`.
#[diagnostic::on_unimplemented(
    message = "a residual layer makes `{Self}` of `{X}`, expected the same type",
    label = "input and output of a layer with `#[lopt(residual)]` do not fit"
)]
pub trait ResidualOutput<X>: HasErr {
    /// Adds what the layer was given.
    ///
    /// # Errors
    /// If the device fails.
    fn add(self, input: X) -> Result<Self, Self::Err>;
}

impl<X: TryAdd<X>> ResidualOutput<X> for X {
    fn add(self, input: X) -> Result<X, X::Err> {
        self.try_add(input)
    }
}

/// A tensor that is a field itself: its description, and the tensor.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a bare tensor",
    note = "write `lopt::nn::Parameter<Rank1<10>>`; a type of your own of that name is written \
            `self::Parameter`"
)]
pub trait BareTensor {
    /// Number of values.
    const PARAMETERS: usize;

    /// Adds the tensor to a layout.
    fn describe(layout: &mut LayoutBuilder, name: &str);
}

impl<S: ConstShape, E, D: Storage<E>> BareTensor for Tensor<S, E, D> {
    const PARAMETERS: usize = S::NUMEL;

    fn describe(layout: &mut LayoutBuilder, name: &str) {
        let shape: Vec<usize> = S::default().concrete().into();
        layout.layer(&format!("Tensor {shape:?}"));
        layout.tensor(name, &shape, Role::Other);
    }
}

/// What the type of a field has to be for the field to be a tensor: a type
/// parameter of the built struct cannot be bound to be one.
pub trait BuiltTensor<E: Dtype, D: Device<E>>: TensorCollection<E, D> {
    /// Shape of the tensor.
    type Shape: ConstShape;

    /// The tensor.
    fn get(&self) -> &Tensor<Self::Shape, E, D>;

    /// The tensor, to be changed.
    fn get_mut(&mut self) -> &mut Tensor<Self::Shape, E, D>;

    /// The field from a tensor.
    fn new<E2: Dtype, D2: Device<E2>>(tensor: Tensor<Self::Shape, E2, D2>) -> Self::To<E2, D2>;
}

impl<S: ConstShape, E: Dtype, D: Device<E>> BuiltTensor<E, D> for Tensor<S, E, D> {
    type Shape = S;

    fn get(&self) -> &Self {
        self
    }

    fn get_mut(&mut self) -> &mut Self {
        self
    }

    fn new<E2: Dtype, D2: Device<E2>>(tensor: Tensor<S, E2, D2>) -> Tensor<S, E2, D2> {
        tensor
    }
}

/// Options of a tensor that is filled with one value, given as its bits, and
/// that optimizers change or do not.
pub fn filled<const BITS: u64, S: ConstShape, E: Dtype, D: Device<E>>(
    frozen: bool,
) -> TensorOptions<S, E, D> {
    let fill = |tensor: &mut Tensor<S, E, D>| {
        let value = E::from_f64(f64::from_bits(BITS)).unwrap_or_default();
        tensor.copy_from(&vec![value; tensor.shape().num_elements()]);
        Ok(())
    };
    if frozen {
        TensorOptions::detached(fill)
    } else {
        TensorOptions::reset_with(fill)
    }
}

/// A field that lopt's own visitors pass over, and dfdx's do not.
///
/// dfdx tells a visitor nothing about a tensor but whether optimizers update
/// it. So this is noted beside: a walk stays on one thread.
pub struct SkippedField<F>(pub F);

impl<F, M, E, D> ModuleFields<M, E, D> for SkippedField<F>
where
    F: ModuleFields<M, E, D>,
    M: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    type Options<E2: Dtype, D2: Device<E2>> = F::Options<E2, D2>;
    type Output<E2: Dtype, D2: Device<E2>> = F::Output<E2, D2>;

    fn visit_fields<V: ModuleVisitor<M, E, D>>(
        self,
        visitor: &mut V,
    ) -> Result<Self::Options<V::E2, V::D2>, V::Err> {
        let _skipping = Skipping::start();
        self.0.visit_fields(visitor)
    }

    fn handle_options<E2: Dtype, D2: Device<E2>>(
        options: Self::Options<E2, D2>,
    ) -> Option<Self::Output<E2, D2>> {
        F::handle_options(options)
    }
}

thread_local! {
    static SKIPPING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a visitor is within a skipped field.
pub(super) fn is_skipping() -> bool {
    SKIPPING.get()
}

struct Skipping {
    outer: bool,
}

impl Skipping {
    fn start() -> Self {
        Self { outer: SKIPPING.replace(true) }
    }
}

impl Drop for Skipping {
    fn drop(&mut self) {
        SKIPPING.set(self.outer);
    }
}
