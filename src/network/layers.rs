//! [`Layer`] for dfdx's layers: the description and the built form of each.

mod containers;
mod transformer;

use dfdx::nn::{builders, modules, prelu};
use dfdx::shapes::{ConstDim, ConstShape, Dtype};
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

use layer;

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
// These two lie along the second axis of their input: the units of a batch
// `[N, C]`, but not those of a batch of sequences `[N, S, C]`. The builder takes
// them for the units if there are as many; `Layer` says what that leaves open.
layer!(
    [const C: usize,] builders::BatchNorm1D<C>,
    [E: Dtype, D: Storage<E>] modules::BatchNorm1D<C, E, D>,
    2 * C,
    |layout| layout.batch_norm("BatchNorm1D", C)
);
layer!(
    [C: ConstDim,] builders::PReLU1D<C>,
    [E: Dtype, D: Device<E>] prelu::PReLU1D<C, E, D>,
    C::SIZE,
    |layout| layout.slopes("PReLU1D", C::SIZE)
);
layer!(
    [const C: usize,] builders::BatchNorm2D<C>,
    [E: Dtype, D: Storage<E>] modules::BatchNorm2D<C, E, D>,
    2 * C,
    |layout| layout.batch_norm2d("BatchNorm2D", C)
);
layer!(
    [const C: usize,] builders::Bias2D<C>,
    [E: Dtype, D: Storage<E>] modules::Bias2D<C, E, D>,
    C,
    |layout| layout.bias2d("Bias2D", C)
);
layer!(
    [const V: usize, const M: usize,] builders::Embedding<V, M>,
    [E: Dtype, D: Storage<E>] modules::Embedding<V, M, E, D>,
    V * M,
    |layout| layout.embedding(V, M)
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
/// Layers without parameters that are their own built form.
macro_rules! plain {
    ($method:ident: $($layer:ident),* $(,)?) => {
        $(layer!([] builders::$layer, 0, |layout| layout.$method(stringify!($layer)));)*
    };
}

plain!(
    unitwise: Abs, AccurateGeLU, Cos, Exp, FastGeLU, Ln, ReLU, Sigmoid, Sqrt, Square,
);
// These mix the units, but all in the same way: reordered inputs give outputs
// reordered likewise.
plain!(unitwise: LogSoftmax, Softmax);
plain!(odd: Dropout, Sin, Tanh);

layer!([](), 0, |_| {});
layer!([E: Dtype] builders::LeakyReLU<E>, 0, |layout| layout.unitwise("LeakyReLU"));
layer!([const N: usize] builders::DropoutOneIn<N>, 0, |layout| {
    layout.odd(&format!("DropoutOneIn<{N}>"))
});
layer!([] builders::AvgPoolGlobal, 0, |layout| layout.pool_global("AvgPoolGlobal", true));
layer!([] builders::MaxPoolGlobal, 0, |layout| layout.pool_global("MaxPoolGlobal", false));
layer!([] builders::MinPoolGlobal, 0, |layout| layout.pool_global("MinPoolGlobal", false));
// Whether units stay together depends on the shape of the input.
layer!([S: ConstShape] builders::Reshape<S>, 0, |layout| {
    layout.opaque(&format!("Reshape<{:?}>", S::default().concrete()))
});

// The old name of the same function.
#[allow(deprecated)]
mod deprecated {
    use super::*;
    layer!([] builders::GeLU, 0, |layout| layout.unitwise("FastGeLU"));
}
