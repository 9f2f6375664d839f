//! [`Layer`] for what is made of other layers.

use dfdx::nn::modules::{AddInto, GeneralizedResidual, Repeated, Residual, SplitInto};

use super::super::Layer;
use crate::layout::LayoutBuilder;

/// dfdx's tuples: layers one after the other, named by position; and the two
/// that have a tuple's layers next to each other.
macro_rules! tuple {
    ($($layer:ident $index:literal),*) => {
        impl<$($layer: Layer),*> Layer for ($($layer,)*) {
            const PARAMETERS: usize = 0 $(+ $layer::PARAMETERS)*;

            fn describe(layout: &mut LayoutBuilder) {
                $(layout.scope($index, $layer::describe);)*
            }
        }

        impl<$($layer: Layer),*> Layer for SplitInto<($($layer,)*)> {
            const PARAMETERS: usize = 0 $(+ $layer::PARAMETERS)*;

            fn describe(layout: &mut LayoutBuilder) {
                layout.scope("0", |layout| {
                    layout.split(&[$(&|b: &mut LayoutBuilder| b.scope($index, $layer::describe)),*]);
                });
            }
        }

        impl<$($layer: Layer),*> Layer for AddInto<($($layer,)*)> {
            const PARAMETERS: usize = 0 $(+ $layer::PARAMETERS)*;

            fn describe(layout: &mut LayoutBuilder) {
                layout.scope("0", |layout| {
                    layout.add_into(&[$(&|b: &mut LayoutBuilder| b.scope($index, $layer::describe)),*]);
                });
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

impl<L: Layer, const N: usize> Layer for Repeated<L, N> {
    const PARAMETERS: usize = N * L::PARAMETERS;

    fn describe(layout: &mut LayoutBuilder) {
        for index in 0..N {
            layout.scope(&index.to_string(), L::describe);
        }
    }
}

impl<F: Layer> Layer for Residual<F> {
    const PARAMETERS: usize = F::PARAMETERS;

    fn describe(layout: &mut LayoutBuilder) {
        layout.residual(|layout| layout.scope("0", F::describe));
    }
}

impl<F: Layer, R: Layer> Layer for GeneralizedResidual<F, R> {
    const PARAMETERS: usize = F::PARAMETERS + R::PARAMETERS;

    fn describe(layout: &mut LayoutBuilder) {
        layout.parallel(
            |layout| layout.scope("f", F::describe),
            |layout| layout.scope("r", R::describe),
        );
    }
}
