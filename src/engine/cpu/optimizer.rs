//! AdamW with a moving average of the parameters in one pass, and sums of
//! squares.
//!
//! `m = β₁ m + (1 - β₁) g`, `v = β₂ v + (1 - β₂) g²`,
//! `p = p (1 - lr λ) - (lr / (1 - β₁ᵗ)) m / (sqrt(v) / sqrt(1 - β₂ᵗ) + ε)`,
//! `a = α a + (1 - α) p`.
//!
//! # Source
//! Loshchilov and Hutter 2017, arXiv:1711.05101; `torch.optim.AdamW`.

use pulp::{Simd, WithSimd};

use super::{sum_lanes, LANES};
use crate::engine::Float;

/// Numbers of one step, in the precision of the parameters.
#[derive(Clone, Copy)]
pub(crate) struct AdamStep<'a, F> {
    pub gradient_scale: F,
    pub beta1: F,
    pub beta2: F,
    pub epsilon: F,
    /// `lr / (1 - β₁ᵗ)`.
    pub step_size: F,
    /// `1 / sqrt(1 - β₂ᵗ)`.
    pub correction: F,
    /// `1 - lr λ`, or 1 for parameters that do not decay.
    pub keep: F,
    /// `α`.
    pub average_decay: F,
    pub gradient: &'a [F],
}

impl<F: Float> AdamStep<'_, F> {
    /// Takes the step on parameters that lie side by side.
    pub fn run(self, parameters: &mut [F], first: &mut [F], second: &mut [F], average: &mut [F]) {
        super::simd(Adam { step: self, parameters, first, second, average });
    }
}

struct Adam<'a, F> {
    step: AdamStep<'a, F>,
    parameters: &'a mut [F],
    first: &'a mut [F],
    second: &'a mut [F],
    average: &'a mut [F],
}

impl<F: Float> WithSimd for Adam<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let step = self.step;
        let (g, g_rest) = step.gradient.as_chunks::<LANES>();
        let (p, p_rest) = self.parameters.as_chunks_mut::<LANES>();
        let (m, m_rest) = self.first.as_chunks_mut::<LANES>();
        let (v, v_rest) = self.second.as_chunks_mut::<LANES>();
        let (a, a_rest) = self.average.as_chunks_mut::<LANES>();
        for ((((g, p), m), v), a) in g.iter().zip(p).zip(m).zip(v).zip(a) {
            (*p, *m, *v, *a) = lanes::<F, S, LANES>(&step, *g, *p, *m, *v, *a);
        }
        for i in 0..g_rest.len() {
            let (p, m, v, a) = (&mut p_rest[i], &mut m_rest[i], &mut v_rest[i], &mut a_rest[i]);
            ([*p], [*m], [*v], [*a]) = lanes::<F, S, 1>(&step, [g_rest[i]], [*p], [*m], [*v], [*a]);
        }
    }
}

#[inline(always)]
#[allow(clippy::type_complexity)]
fn lanes<F: Float, S: Simd, const N: usize>(
    step: &AdamStep<'_, F>,
    g: [F; N],
    mut p: [F; N],
    mut m: [F; N],
    mut v: [F; N],
    mut a: [F; N],
) -> ([F; N], [F; N], [F; N], [F; N]) {
    let (rest1, rest2) = (F::one() - step.beta1, F::one() - step.beta2);
    for i in 0..N {
        let g = g[i] * step.gradient_scale;
        m[i] = step.beta1.fused::<S>(m[i], rest1 * g);
        v[i] = step.beta2.fused::<S>(v[i], rest2 * g * g);
        let deviation = v[i].sqrt().fused::<S>(step.correction, step.epsilon);
        p[i] = p[i] * step.keep - step.step_size * m[i] / deviation;
        a[i] = step.average_decay.fused::<S>(a[i] - p[i], p[i]);
    }
    (p, m, v, a)
}

/// Sum of the squares of values, in `f64`.
pub(crate) struct SumOfSquares<'a, F>(&'a [F]);

impl<'a, F: Float> SumOfSquares<'a, F> {
    /// The sum.
    pub fn of(values: &'a [F]) -> f64 {
        super::simd(Self(values))
    }
}

impl<F: Float> WithSimd for SumOfSquares<'_, F> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut total = 0.0;
        for block in self.0.chunks(1024) {
            let (lanes, rest) = block.as_chunks::<LANES>();
            let mut sums = [F::zero(); LANES];
            for x in lanes {
                for i in 0..LANES {
                    sums[i] = x[i].fused::<S>(x[i], sums[i]);
                }
            }
            total += sum_lanes(sums).as_f64() + rest.iter().map(|&x| (x * x).as_f64()).sum::<f64>();
        }
        total
    }
}
