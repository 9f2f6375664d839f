//! Tries out on a model what its layout says about it.

use std::ops::Neg;

use dfdx::nn::TensorCollection;
use dfdx::shapes::Dtype;
use dfdx::tensor_ops::Device;
use rand::Rng;

use super::{flatten, layout_of, unflatten, Network, NetworkError};
use crate::symmetry::Symmetry;

/// For each group; a permutation of few units often is none.
const TRIES: usize = 8;

/// Checks that a model computes the same after its units have changed places,
/// and signs, at random as its layout allows: a test for a network whose
/// forward pass is written by hand, or with a hand-written [`Layer`](super::Layer).
///
/// `outputs` is to give what the model computes for some inputs, many enough
/// that every unit matters, and the same every time it is called. The model is
/// to hold random values, as after some training: where all parameters are zero
/// nothing can be seen. Running statistics of batch norms stay where they are,
/// so of a model with batch norms this is true in `forward` only as long as
/// nobody has estimated them; see [`symmetry`](crate::symmetry#batch-norms).
///
/// # Errors
/// [`NetworkError::Symmetry`] with the first group that the outputs depend on:
/// by more than the square root of the dtype's precision, relative to the
/// largest output. Else as [`layout_of`].
///
/// # Examples
/// ```
/// use dfdx::prelude::*;
/// use lopt::network::check_symmetry;
/// use rand::SeedableRng;
///
/// let dev = Cpu::seed_from_u64(0);
/// let model = dev.build_module::<(Linear<4, 8>, Tanh, Linear<8, 2>), f32>();
/// let inputs: Tensor<Rank2<16, 4>, f32, _> = dev.sample_normal();
/// let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
/// check_symmetry(&model, &mut rng, |model| model.forward(inputs.clone()).as_vec())?;
/// # Ok::<(), lopt::Error>(())
/// ```
pub fn check_symmetry<M, E, D>(
    model: &M,
    rng: &mut impl Rng,
    outputs: impl Fn(&M) -> Vec<E>,
) -> Result<(), NetworkError>
where
    M: Network + TensorCollection<E, D> + Clone,
    E: Dtype + Neg<Output = E>,
    D: Device<E>,
{
    let layout = layout_of(model)?;
    let symmetry = Symmetry::new(&layout);
    let flat = flatten(model)?;
    let mut moved = flat.clone();
    let mut other = model.clone();
    let expected = outputs(model);
    let largest = expected.iter().fold(0.0, |largest: f64, &value| largest.max(size(value)));
    for (index, group) in layout.groups().iter().enumerate() {
        for _ in 0..TRIES {
            symmetry.sample_group(index, rng).apply(&flat, &mut moved);
            unflatten(&mut other, &moved)?;
            let found = outputs(&other);
            let changes = expected.iter().zip(&found).map(|(&a, &b)| size(a - b));
            let change = changes.fold(0.0, f64::max);
            if found.len() != expected.len() || change > precision::<E>().sqrt() * largest {
                return Err(NetworkError::Symmetry { group: group.name.clone(), change, largest });
            }
        }
    }
    Ok(())
}

/// Absolute value; infinite where there is none.
fn size<E: Dtype>(value: E) -> f64 {
    value.to_f64().filter(|value| !value.is_nan()).map_or(f64::INFINITY, f64::abs)
}

/// Distance of the next number after one.
fn precision<E: Dtype>() -> f64 {
    let mut step = 1.0;
    while E::from_f64(1.0 + step / 2.0).is_some_and(|value| value > E::ONE) {
        step /= 2.0;
    }
    step
}

#[cfg(test)]
mod tests {
    use dfdx::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::layout::LayoutBuilder;
    use crate::network::Layer;

    /// Says that it treats all units alike, and does not.
    #[derive(Clone, Debug, Default)]
    struct Liar;

    impl ZeroSizedModule for Liar {}

    impl<D: Device<f64>> Module<Tensor<Rank2<8, 6>, f64, D>> for Liar {
        type Output = Tensor<Rank2<8, 6>, f64, D>;
        type Error = D::Err;

        fn try_forward(&self, x: Tensor<Rank2<8, 6>, f64, D>) -> Result<Self::Output, D::Err> {
            x.clone().try_roll::<Axis<1>>(1)?.try_mul(x)
        }
    }

    impl Layer for Liar {
        const PARAMETERS: usize = 0;

        fn describe(layout: &mut LayoutBuilder) {
            layout.unitwise("Liar");
        }
    }

    #[test]
    fn a_layer_that_is_not_what_it_says_is_found() {
        type Model<L> = (Linear<4, 5>, Tanh, Linear<5, 6>, L, Linear<6, 2>);
        let dev = Cpu::seed_from_u64(0);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let inputs: Tensor<Rank2<8, 4>, f64, _> = dev.sample_normal();
        let model = dev.build_module::<Model<ReLU>, f64>();
        check_symmetry(&model, &mut rng, |m| m.forward(inputs.clone()).as_vec()).unwrap();
        let model = dev.build_module::<Model<Liar>, f64>();
        let error = check_symmetry(&model, &mut rng, |m| m.forward(inputs.clone()).as_vec());
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("units of group `2` "), "{error}");
    }

    #[test]
    fn precision_is_that_of_the_dtype() {
        assert_eq!(precision::<f32>(), f64::from(f32::EPSILON));
        assert_eq!(precision::<f64>(), f64::EPSILON);
    }
}
