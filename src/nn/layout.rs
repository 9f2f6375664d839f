//! [`Layer`] for the layers of this module: the description and the built form
//! of each.

use dfdx::shapes::Dtype;
use dfdx::tensor::Storage;

use super::{conv, AvgPool2D, AvgPoolGlobal, Flatten2D, MaxPool2D, SeLU};
use crate::layout::LayoutBuilder;
use crate::network::Layer;

/// One body for the description and for the built form of a convolution.
macro_rules! convolution {
    ($name:ident, $bias:literal, [$($bounds:tt)*] $layer:ty) => {
        impl<
                const I: usize,
                const O: usize,
                const K: usize,
                const S: usize,
                const P: usize,
                const G: usize,
                $($bounds)*
            > Layer for $layer
        {
            const PARAMETERS: usize = O * (I / G) * K * K + if $bias { O } else { 0 };

            fn describe(layout: &mut LayoutBuilder) {
                let kind = format!("{}<{S}, {P}, {G}>", stringify!($name));
                layout.conv2d(&kind, I, O, K, G, $bias);
            }
        }
    };
}

convolution!(Conv2D, true, [] conv::builders::Conv2D<I, O, K, S, P, G>);
convolution!(Conv2D, true, [E: Dtype, D: Storage<E>] conv::Conv2D<I, O, K, S, P, G, E, D>);
convolution!(UnbiasedConv2D, false, [] conv::builders::UnbiasedConv2D<I, O, K, S, P, G>);
convolution!(
    UnbiasedConv2D, false,
    [E: Dtype, D: Storage<E>] conv::UnbiasedConv2D<I, O, K, S, P, G, E, D>
);

impl<const K: usize, const S: usize, const P: usize> Layer for MaxPool2D<K, S, P> {
    const PARAMETERS: usize = 0;

    fn describe(layout: &mut LayoutBuilder) {
        layout.pool2d(&format!("MaxPool2D<{K}, {S}, {P}>"), false);
    }
}

impl<const K: usize, const S: usize, const P: usize> Layer for AvgPool2D<K, S, P> {
    const PARAMETERS: usize = 0;

    fn describe(layout: &mut LayoutBuilder) {
        layout.pool2d(&format!("AvgPool2D<{K}, {S}, {P}>"), true);
    }
}

impl Layer for AvgPoolGlobal {
    const PARAMETERS: usize = 0;

    fn describe(layout: &mut LayoutBuilder) {
        layout.pool_global("AvgPoolGlobal", true);
    }
}

impl<const F: usize> Layer for Flatten2D<F> {
    const PARAMETERS: usize = 0;

    fn describe(layout: &mut LayoutBuilder) {
        layout.flatten("Flatten2D");
    }
}

impl Layer for SeLU {
    const PARAMETERS: usize = 0;

    fn describe(layout: &mut LayoutBuilder) {
        layout.unitwise("SeLU");
    }
}
