//! Activations that dfdx 0.13 lacks.

use dfdx::nn::{Module, NonMutableModule, ZeroSizedModule};
use dfdx::shapes::Shape;
use dfdx::tensor::{Tape, Tensor};

use super::device::{record, HostDevice, Operation};
use super::lanes::Value;

/// Factor of the exponential of [`SeLU`], `α`.
const ALPHA: f64 = 1.673_263_242_354_377_2;
/// Factor of the whole of [`SeLU`], `λ`.
const SCALE: f64 = 1.050_700_987_355_480_5;

/// Scaled exponential linear unit: `λ x` above zero, `λ α (exp(x) - 1)` below.
///
/// # Shapes
/// Any; the output has that of the input.
///
/// # Examples
/// ```
/// use dfdx::prelude::*;
/// use lopt::nn::SeLU;
///
/// let dev = Cpu::default();
/// let out = dev.build_module::<SeLU, f64>().forward(dev.tensor([1.0, 0.0, -1.0]));
/// let [above, zero, below]: [f64; 3] = out.array();
/// assert_eq!(zero, 0.0);
/// assert!(above > 1.05 && (below + 1.111_330_737_812_562_5).abs() < 1e-12);
/// ```
///
/// # Source
/// Klambauer et al. 2017, arXiv:1706.02515, section 2 and appendix A; the
/// constants are those of PyTorch's `torch.nn.SELU`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeLU;

impl ZeroSizedModule for SeLU {}
impl NonMutableModule for SeLU {}

/// [`SeLU`] of one value.
pub(crate) fn selu<E: num_traits::Float>(x: E) -> E {
    let [alpha, scale] = constants::<E>();
    scale * if x > E::zero() { x } else { alpha * x.exp_m1() }
}

/// `α` and `λ`.
fn constants<E: num_traits::Float>() -> [E; 2] {
    // Every float type holds a neighbour of these.
    [ALPHA, SCALE].map(|value| E::from(value).unwrap_or_else(E::nan))
}

/// The operation on slices.
struct Selu<E> {
    /// The slope at each input.
    slopes: Vec<E>,
}

impl<E: Value> Operation<E> for Selu<E> {
    fn forward(&mut self, input: &[E], out: &mut [E], keep: bool) {
        let [alpha, scale] = constants::<E>();
        for (out, &x) in out.iter_mut().zip(input) {
            *out = selu(x);
        }
        if keep {
            // Below zero, the slope is the output and what it tends to.
            let slope = |&y: &E| if y > E::zero() { scale } else { y + scale * alpha };
            self.slopes = out.iter().map(slope).collect();
        }
    }

    fn backward(&self, out_gradient: &[E], input_gradient: &mut [E]) {
        for ((gradient, &out), &slope) in
            input_gradient.iter_mut().zip(out_gradient).zip(&self.slopes)
        {
            *gradient += out * slope;
        }
    }
}

impl<S: Shape, E: Value, D: HostDevice<E>, T: Tape<E, D>> Module<Tensor<S, E, D, T>> for SeLU {
    type Output = Tensor<S, E, D, T>;
    type Error = D::Err;

    fn try_forward(&self, input: Tensor<S, E, D, T>) -> Result<Self::Output, D::Err> {
        use dfdx::shapes::HasShape;
        let shape = *input.shape();
        record(input, shape, Selu { slopes: Vec::new() })
    }
}
