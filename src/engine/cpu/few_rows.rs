//! Products of a few rows with a weight, `y = x Wᵀ`, `W [outputs, inputs]`.
//!
//! One sample has a dozen tokens. For so few rows `gemm` spends most of its time
//! on transposing the weight. Here the rows are transposed instead, into the
//! lanes of a vector, and every weight is read once, as it lies, and multiplies
//! all rows at once.

use pulp::{Simd, WithSimd};

use super::LANES;
use crate::engine::{Float, Write};

/// Most rows for which this beats `gemm`.
pub(super) const MOST: usize = 36;

/// Inputs that are transposed at once.
const DEPTH: usize = 512;

/// Outputs that are summed at once: enough to hide the latency of a sum.
const TILE: usize = 8;

/// `y = x Wᵀ`, or that added to `y`.
pub(super) struct FewRows<'a, F> {
    pub x: &'a [F],
    pub weight: &'a [F],
    pub inputs: usize,
    pub outputs: usize,
    pub y: &'a mut [F],
    pub write: Write,
}

impl<F: Float> WithSimd for FewRows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, weight, inputs, outputs, y, write } = self;
        let mut columns = [[F::zero(); LANES]; DEPTH];
        let blocks = x.chunks(LANES * inputs).zip(y.chunks_mut(LANES * outputs));
        for (x, y) in blocks {
            for from in (0..inputs).step_by(DEPTH) {
                let depth = DEPTH.min(inputs - from);
                for (lane, row) in x.chunks_exact(inputs).enumerate() {
                    for (column, &value) in columns.iter_mut().zip(&row[from..from + depth]) {
                        column[lane] = value;
                    }
                }
                let add = write == Write::Add || from > 0;
                for (tile, weight) in weight.chunks(TILE * inputs).enumerate() {
                    let mut sums = [[F::zero(); LANES]; TILE];
                    let count = weight.len() / inputs;
                    if count == TILE {
                        let rows = std::array::from_fn(|j| &weight[j * inputs + from..][..depth]);
                        dot::<F, S, TILE>(&columns[..depth], rows, &mut sums);
                    } else {
                        for (j, sum) in sums[..count].iter_mut().enumerate() {
                            let row = &weight[j * inputs + from..][..depth];
                            dot::<F, S, 1>(&columns[..depth], [row], std::array::from_mut(sum));
                        }
                    }
                    for (lane, row) in y.chunks_exact_mut(outputs).enumerate() {
                        for (y, sum) in row[tile * TILE..][..count].iter_mut().zip(&sums) {
                            *y = if add { *y + sum[lane] } else { sum[lane] };
                        }
                    }
                }
            }
        }
    }
}

/// `sums[j] = sum over k of columns[k] rows[j][k]`.
#[inline(always)]
fn dot<F: Float, S: Simd, const N: usize>(
    columns: &[[F; LANES]],
    rows: [&[F]; N],
    sums: &mut [[F; LANES]; N],
) {
    let mut local = [[F::zero(); LANES]; N];
    for (k, column) in columns.iter().enumerate() {
        for j in 0..N {
            let weight = rows[j][k];
            for l in 0..LANES {
                local[j][l] = column[l].fused::<S>(weight, local[j][l]);
            }
        }
    }
    *sums = local;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::simd;

    #[test]
    fn products_match_the_definition() {
        for (rows, inputs, outputs) in [(1, 5, 3), (4, 16, 8), (19, 35, 10), (7, 600, 9)] {
            let wave = |count: usize| -> Vec<f64> {
                (0..count).map(|i| ((i * 29 % 61) as f64 - 30.0) / 16.0).collect()
            };
            let (x, weight) = (wave(rows * inputs), wave(inputs * outputs));
            let mut y = vec![0.5; rows * outputs];
            let product = |y: &mut Vec<f64>, write| {
                simd(FewRows { x: &x, weight: &weight, inputs, outputs, y, write })
            };
            product(&mut y, Write::Add);
            for (i, &y) in y.iter().enumerate() {
                let (x, w) = (&x[i / outputs * inputs..], &weight[i % outputs * inputs..]);
                let dot: f64 = x[..inputs].iter().zip(&w[..inputs]).map(|(a, b)| a * b).sum();
                assert!((y - dot - 0.5).abs() < 1e-10);
            }
            let before = y.clone();
            product(&mut y, Write::Set);
            assert!(y.iter().zip(&before).all(|(a, b)| (a + 0.5 - b).abs() < 1e-10));
        }
    }
}
