//! [`Layer`] for dfdx's layers: the description and the built form of each.

use dfdx::nn::{builders, modules, prelu};
use dfdx::shapes::{ConstDim, Dtype};
use dfdx::tensor::Storage;
use dfdx::tensor_ops::Device;

use super::Layer;
use crate::layout::{LayoutBuilder, Role};

/// One body for the description and for the built form of a layer.
macro_rules! layer {
    (
        [$($parameters:tt)*] $description:ty, [$($bounds:tt)*] $built:ty,
        $count:expr, $describe:expr
    ) => {
        layer!([$($parameters)*] $description, $count, $describe);
        layer!([$($parameters)* $($bounds)*] $built, $count, $describe);
    };
    ([$($parameters:tt)*] $layer:ty, $count:expr, $describe:expr) => {
        impl<$($parameters)*> Layer for $layer {
            const PARAMETERS: usize = $count;

            fn describe(layout: &mut LayoutBuilder) {
                let describe: fn(&mut LayoutBuilder) = $describe;
                describe(layout);
            }
        }
    };
}

layer!(
    [const I: usize, const O: usize,] builders::Linear<I, O>,
    [E: Dtype, D: Storage<E>] modules::Linear<I, O, E, D>,
    I * O + O,
    |layout| layout.linear(I, O, true)
);
layer!(
    [const I: usize, const O: usize,] builders::UnbiasedLinear<I, O>,
    [E: Dtype, D: Storage<E>] modules::UnbiasedLinear<I, O, E, D>,
    I * O,
    |layout| layout.linear(I, O, false)
);
layer!(
    [const M: usize,] builders::LayerNorm1D<M>,
    [E: Dtype, D: Storage<E>] modules::LayerNorm1D<M, E, D>,
    2 * M,
    |layout| layout.norm("LayerNorm1D", M)
);
// Its running statistics belong to the units too, but are no parameters: the
// units cannot be reordered in the flat vector alone, so they are in no group.
layer!(
    [const C: usize,] builders::BatchNorm1D<C>,
    [E: Dtype, D: Storage<E>] modules::BatchNorm1D<C, E, D>,
    2 * C,
    |layout| {
        layout.opaque("BatchNorm1D");
        layout.tensor("scale", &[C], Role::Scale);
        layout.tensor("bias", &[C], Role::Shift);
    }
);
layer!(
    [] builders::PReLU,
    [E: Dtype, D: Device<E>] prelu::PReLU<E, D>,
    1,
    |layout| {
        layout.unitwise("PReLU");
        layout.tensor("a", &[], Role::Scale);
    }
);
// Its slopes lie along the second axis of the input, which are the units of a
// batch, but not those of a batch of sequences: which one is not known here.
layer!(
    [C: ConstDim,] builders::PReLU1D<C>,
    [E: Dtype, D: Device<E>] prelu::PReLU1D<C, E, D>,
    C::SIZE,
    |layout| {
        layout.opaque("PReLU1D");
        layout.tensor("a", &[C::SIZE], Role::Scale);
    }
);

/// Layers without parameters that are their own built form.
macro_rules! unitwise {
    ($($layer:ident),* $(,)?) => {
        $(layer!([] builders::$layer, 0, |layout| layout.unitwise(stringify!($layer)));)*
    };
}

unitwise!(
    Abs,
    AccurateGeLU,
    Cos,
    Dropout,
    Exp,
    FastGeLU,
    Ln,
    ReLU,
    Sigmoid,
    Sin,
    Sqrt,
    Square,
    Tanh,
);
// These mix the units, but all in the same way: reordered inputs give outputs
// reordered likewise.
unitwise!(LogSoftmax, Softmax);

layer!([E: Dtype] builders::LeakyReLU<E>, 0, |layout| layout.unitwise("LeakyReLU"));
layer!([const N: usize] builders::DropoutOneIn<N>, 0, |layout| {
    layout.unitwise(&format!("DropoutOneIn<{N}>"))
});

// The old name of the same function.
#[allow(deprecated)]
mod deprecated {
    use super::*;
    layer!([] builders::GeLU, 0, |layout| layout.unitwise("FastGeLU"));
}

/// dfdx's tuples: layers one after the other, named by position.
macro_rules! tuple {
    ($($layer:ident $index:literal),*) => {
        impl<$($layer: Layer),*> Layer for ($($layer,)*) {
            const PARAMETERS: usize = 0 $(+ $layer::PARAMETERS)*;

            fn describe(layout: &mut LayoutBuilder) {
                $(layout.scope($index, $layer::describe);)*
            }
        }
    };
}

tuple!(A "0");
tuple!(A "0", B "1");
tuple!(A "0", B "1", C "2");
tuple!(A "0", B "1", C "2", D "3");
tuple!(A "0", B "1", C "2", D "3", F "4");
tuple!(A "0", B "1", C "2", D "3", F "4", G "5");

impl<L: Layer, const N: usize> Layer for modules::Repeated<L, N> {
    const PARAMETERS: usize = N * L::PARAMETERS;

    fn describe(layout: &mut LayoutBuilder) {
        for index in 0..N {
            layout.scope(&index.to_string(), L::describe);
        }
    }
}
