//! Products of a few rows with a weight, `y = x Wᵀ`, `W [outputs, inputs]`.
//!
//! One sample has a dozen tokens. For so few rows a product by blocks spends most
//! of its time on copying the weight. Here the rows are transposed instead, into the
//! lanes of one vector or two, and every weight is read once, as it lies, and multiplies
//! all rows at once. A row or two are not worth that: each is multiplied as it lies.

use pulp::{Simd, WithSimd};

use super::{sum_lanes, LANES};
use crate::engine::{Float, Write};

/// Most rows for which this beats a product by blocks, that of the crate `gemm` when it was
/// measured.
pub(super) const MOST: usize = 36;

/// Most rows that are multiplied one by one.
const SINGLE: usize = 2;

/// Inputs that are transposed at once: they stay in the first-level cache.
const DEPTH: usize = 256;

/// Outputs that are summed at once: enough to hide the latency of a sum.
const TILE: usize = 8;

/// Inputs between two computations of addresses, which would take longer than the sums.
const STEP: usize = 8;

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
        let shape = [inputs, outputs];
        if x.len() <= SINGLE * inputs {
            for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
                one_row::<F, S>(x, weight, y, write);
            }
            return;
        }
        let most = 2 * LANES;
        for (x, y) in x.chunks(most * inputs).zip(y.chunks_mut(most * outputs)) {
            match x.len() > LANES * inputs {
                true => in_lanes::<F, S, 2>(shape, x, weight, y, write),
                false => in_lanes::<F, S, 1>(shape, x, weight, y, write),
            }
        }
    }
}

/// Up to `M` vectors of rows.
#[inline(always)]
fn in_lanes<F: Float, S: Simd, const M: usize>(
    [inputs, outputs]: [usize; 2],
    x: &[F],
    weight: &[F],
    y: &mut [F],
    write: Write,
) {
    let mut columns = [[[F::zero(); LANES]; M]; DEPTH];
    for from in (0..inputs).step_by(DEPTH) {
        let depth = DEPTH.min(inputs - from);
        for (i, row) in x.chunks_exact(inputs).enumerate() {
            for (column, &value) in columns.iter_mut().zip(&row[from..from + depth]) {
                column[i / LANES][i % LANES] = value;
            }
        }
        let add = write == Write::Add || from > 0;
        for (tile, weight) in weight.chunks(TILE * inputs).enumerate() {
            let mut sums = [[[F::zero(); LANES]; M]; TILE];
            let count = weight.len() / inputs;
            if count == TILE {
                let mut rows = [&weight[..0]; TILE];
                for j in 0..TILE {
                    rows[j] = &weight[j * inputs + from..][..depth];
                }
                dot::<F, S, M, TILE>(&columns[..depth], rows, &mut sums);
            } else {
                for (j, sum) in sums[..count].iter_mut().enumerate() {
                    let row = &weight[j * inputs + from..][..depth];
                    dot::<F, S, M, 1>(&columns[..depth], [row], std::array::from_mut(sum));
                }
            }
            for (i, row) in y.chunks_exact_mut(outputs).enumerate() {
                for (y, sum) in row[tile * TILE..][..count].iter_mut().zip(&sums) {
                    let sum = sum[i / LANES][i % LANES];
                    *y = if add { *y + sum } else { sum };
                }
            }
        }
    }
}

/// `sums[j] = sum over k of columns[k] rows[j][k]`.
#[inline(always)]
fn dot<F: Float, S: Simd, const M: usize, const N: usize>(
    columns: &[[[F; LANES]; M]],
    rows: [&[F]; N],
    sums: &mut [[[F; LANES]; M]; N],
) {
    let mut local = [[[F::zero(); LANES]; M]; N];
    let (steps, rest) = columns.as_chunks::<STEP>();
    // No closures here: only what is inlined is compiled for the instruction set.
    let mut weights = [&rows[0].as_chunks::<STEP>().0[..0]; N];
    for j in 0..N {
        weights[j] = &rows[j].as_chunks::<STEP>().0[..steps.len()];
    }
    for (step, columns) in steps.iter().enumerate() {
        for k in 0..STEP {
            for j in 0..N {
                add::<F, S, M>(&mut local[j], &columns[k], weights[j][step][k]);
            }
        }
    }
    for (k, column) in rest.iter().enumerate() {
        for j in 0..N {
            add::<F, S, M>(&mut local[j], column, rows[j][steps.len() * STEP + k]);
        }
    }
    *sums = local;
}

/// `sums += column weight`.
#[inline(always)]
fn add<F: Float, S: Simd, const M: usize>(
    sums: &mut [[F; LANES]; M],
    column: &[[F; LANES]; M],
    weight: F,
) {
    for m in 0..M {
        for l in 0..LANES {
            sums[m][l] = column[m][l].fused::<S>(weight, sums[m][l]);
        }
    }
}

/// One row: its values and those of each weight row are multiplied lane by lane.
#[inline(always)]
fn one_row<F: Float, S: Simd>(x: &[F], weight: &[F], y: &mut [F], write: Write) {
    let (lanes, rest) = x.as_chunks::<LANES>();
    let weights = weight.chunks_exact(x.len());
    for (y, weight) in y.iter_mut().zip(weights) {
        let (weight, weight_rest) = weight.as_chunks::<LANES>();
        let mut sums = [F::zero(); LANES];
        for (x, w) in lanes.iter().zip(weight) {
            for l in 0..LANES {
                sums[l] = x[l].fused::<S>(w[l], sums[l]);
            }
        }
        let rest: F = rest.iter().zip(weight_rest).map(|(&x, &w)| x * w).sum();
        let sum = sum_lanes(sums) + rest;
        *y = if write == Write::Add { *y + sum } else { sum };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::simd;

    #[test]
    fn products_match_the_definition() {
        for (rows, inputs, outputs) in
            [(1, 5, 3), (2, 37, 9), (4, 16, 8), (19, 35, 10), (7, 600, 9), (36, 300, 17)]
        {
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
