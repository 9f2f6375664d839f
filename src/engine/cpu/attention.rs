//! Attention: for every sample and head, `S = Q Kᵀ / sqrt(head size)`,
//! `P = softmax(S)` row by row, `O = P V`.
//!
//! Backward: `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P (dP - rowsum(P dP))`,
//! `dQ = dS K / sqrt(head size)`, `dK = dSᵀ Q / sqrt(head size)`.
//!
//! One head of one sample is small (a dozen tokens of 32 values), too small for
//! `gemm`. Its matrices are copied into a scratch buffer, with rows padded to
//! whole lanes, and multiplied by a loop that keeps its sums in registers.
//!
//! # Source
//! Vaswani et al. 2017, arXiv:1706.03762.

use pulp::{Simd, WithSimd};

use super::{padded, LANES};
use crate::engine::{AttentionShape, Float};

/// Sizes of one attention layer.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    samples: usize,
    tokens: usize,
    queries: usize,
    heads: usize,
    width: usize,
    /// Values in a head.
    size: usize,
    /// Tokens, padded.
    keys: usize,
    /// Values in a head, padded.
    values: usize,
}

impl Shape {
    pub fn new(samples: usize, shape: &AttentionShape) -> Self {
        let &AttentionShape { tokens, queries, heads, width } = shape;
        let size = width / heads;
        let (keys, values) = (padded(tokens), padded(size));
        Self { samples, tokens, queries, heads, width, size, keys, values }
    }

    pub fn key_rows(&self) -> usize {
        self.tokens * self.samples
    }

    pub fn query_rows(&self) -> usize {
        self.queries * self.samples
    }

    /// Position in `qkv` of the values of a head of a sample, and the distance
    /// of its tokens. `part` is 0 for keys, 1 for queries, 2 for values.
    fn part(&self, sample: usize, head: usize, part: usize) -> (usize, usize) {
        let row = 3 * self.width;
        (sample * row + part * self.width + head * self.size, self.samples * row)
    }

    /// The same in the output.
    fn out(&self, sample: usize, head: usize) -> (usize, usize) {
        (sample * self.width + head * self.size, self.samples * self.width)
    }

    fn scale<F: Float>(&self) -> F {
        F::from_f64((self.size as f64).sqrt().recip())
    }
}

/// Values of scratch that one head needs, forward and backward.
pub(crate) fn scratch_len(shape: &AttentionShape) -> usize {
    let shape = Shape::new(1, shape);
    let transposed = shape.size * shape.keys;
    let scores = shape.queries * shape.keys;
    transposed + scores + 4 * shape.tokens * shape.values
}

/// `out`, and the probabilities: `[samples][heads][queries][padded tokens]`.
pub(super) struct Forward<'a, F> {
    pub shape: Shape,
    pub qkv: &'a [F],
    pub probabilities: &'a mut [F],
    pub out: &'a mut [F],
    pub scratch: &'a mut [F],
}

impl<F: Float> WithSimd for Forward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { shape, qkv, probabilities, out, scratch } = self;
        let Shape { samples, tokens, queries, heads, size, keys, values, .. } = shape;
        let (key_t, scratch) = scratch.split_at_mut(size * keys);
        let (value, scratch) = scratch.split_at_mut(tokens * values);
        let (result, _) = scratch.split_at_mut(queries * values);
        let mut probabilities = probabilities.chunks_exact_mut(queries * keys);
        for sample in 0..samples {
            for (head, p) in (0..heads).zip(&mut probabilities) {
                copy_transposed(qkv, shape.part(sample, head, 0), tokens, key_t, keys);
                copy_in(qkv, shape.part(sample, head, 2), [tokens, size], value, values);
                let (first, stride) = shape.part(sample, head, 1);
                let query = Left { values: &qkv[first..], row: stride, column: 1 };
                product::<F, S>([queries, size, keys], shape.scale(), query, key_t, p);
                for row in p.chunks_exact_mut(keys) {
                    softmax::<F, S>(row, tokens);
                }
                let left = Left { values: p, row: keys, column: 1 };
                product::<F, S>([queries, tokens, values], F::one(), left, value, result);
                copy_out(result, values, [queries, size], out, shape.out(sample, head));
            }
        }
    }
}

/// `dqkv`; rows of tokens that do not ask have zeros for their queries.
pub(super) struct Backward<'a, F> {
    pub shape: Shape,
    pub qkv: &'a [F],
    pub probabilities: &'a [F],
    pub dout: &'a [F],
    pub dqkv: &'a mut [F],
    pub scratch: &'a mut [F],
}

impl<F: Float> WithSimd for Backward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { shape, qkv, probabilities, dout, dqkv, scratch } = self;
        let Shape { samples, tokens, queries, heads, size, keys, values, .. } = shape;
        let (value_t, scratch) = scratch.split_at_mut(size * keys);
        let (ds, scratch) = scratch.split_at_mut(queries * keys);
        let (key, scratch) = scratch.split_at_mut(tokens * values);
        let (query, scratch) = scratch.split_at_mut(queries * values);
        let (doutput, scratch) = scratch.split_at_mut(queries * values);
        let (result, _) = scratch.split_at_mut(tokens * values);
        let mut probabilities = probabilities.chunks_exact(queries * keys);
        let scale = shape.scale();
        for sample in 0..samples {
            for (head, p) in (0..heads).zip(&mut probabilities) {
                let parts = [0, 1, 2].map(|part| shape.part(sample, head, part));
                copy_in(qkv, parts[0], [tokens, size], key, values);
                copy_in(qkv, parts[1], [queries, size], query, values);
                copy_transposed(qkv, parts[2], tokens, value_t, keys);
                copy_in(dout, shape.out(sample, head), [queries, size], doutput, values);

                let left = Left { values: doutput, row: values, column: 1 };
                product::<F, S>([queries, size, keys], F::one(), left, value_t, ds);
                for (ds, p) in ds.chunks_exact_mut(keys).zip(p.chunks_exact(keys)) {
                    softmax_backward::<F, S>(p, ds);
                }

                let left = Left { values: ds, row: 1, column: keys };
                let result = &mut *result;
                product::<F, S>([tokens, queries, values], scale, left, query, result);
                copy_out(result, values, [tokens, size], dqkv, parts[0]);

                let left = Left { values: ds, row: keys, column: 1 };
                product::<F, S>([queries, tokens, values], scale, left, key, result);
                result[queries * values..].fill(F::zero());
                copy_out(result, values, [tokens, size], dqkv, parts[1]);

                let left = Left { values: p, row: 1, column: keys };
                product::<F, S>([tokens, queries, values], F::one(), left, doutput, result);
                copy_out(result, values, [tokens, size], dqkv, parts[2]);
            }
        }
    }
}

/// Rows from `(first, stride)` into rows of `padded`, the rest of which is zero.
#[inline(always)]
fn copy_in<F: Float>(
    from: &[F],
    (first, stride): (usize, usize),
    [rows, columns]: [usize; 2],
    to: &mut [F],
    padded: usize,
) {
    for (row, to) in to.chunks_exact_mut(padded).take(rows).enumerate() {
        let (to, rest) = to.split_at_mut(columns);
        to.copy_from_slice(&from[first + row * stride..][..columns]);
        rest.fill(F::zero());
    }
}

/// The first `columns` of padded rows to `(first, stride)`.
#[inline(always)]
fn copy_out<F: Float>(
    from: &[F],
    padded: usize,
    [rows, columns]: [usize; 2],
    to: &mut [F],
    (first, stride): (usize, usize),
) {
    for (row, from) in from.chunks_exact(padded).take(rows).enumerate() {
        to[first + row * stride..][..columns].copy_from_slice(&from[..columns]);
    }
}

/// `to[column, row] = from[row, column]`, rows of `to` padded with zeros.
#[inline(always)]
fn copy_transposed<F: Float>(
    from: &[F],
    (first, stride): (usize, usize),
    rows: usize,
    to: &mut [F],
    padded: usize,
) {
    let columns = to.len() / padded;
    for row in 0..rows {
        let from = &from[first + row * stride..][..columns];
        for (column, &value) in from.iter().enumerate() {
            to[column * padded + row] = value;
        }
    }
    for to in to.chunks_exact_mut(padded) {
        to[rows..].fill(F::zero());
    }
}

/// Softmax of the first `length` values of a padded row; the rest becomes zero.
#[inline(always)]
fn softmax<F: Float, S: Simd>(row: &mut [F], length: usize) {
    row[length..].fill(F::neg_infinity());
    let (lanes, _) = row.as_chunks_mut::<LANES>();
    let mut largest = [F::neg_infinity(); LANES];
    for x in lanes.iter() {
        for i in 0..LANES {
            largest[i] = if x[i] > largest[i] { x[i] } else { largest[i] };
        }
    }
    let mut max = largest[0];
    for value in largest {
        max = if value > max { value } else { max };
    }
    let mut sums = [F::zero(); LANES];
    for x in lanes.iter_mut() {
        let mut e = *x;
        for i in 0..LANES {
            e[i] = (e[i] - max).exp_negative::<S>();
            sums[i] += e[i];
        }
        *x = e;
    }
    // Padding holds at most the smallest normal number, which the sum does not see.
    let inverse = super::sum_lanes(sums).recip();
    for x in row.iter_mut() {
        *x *= inverse;
    }
    row[length..].fill(F::zero());
}

/// `ds = p (dp - rowsum(p dp))` of a padded row; `dp` becomes `ds`.
#[inline(always)]
fn softmax_backward<F: Float, S: Simd>(p: &[F], dp: &mut [F]) {
    let (p, _) = p.as_chunks::<LANES>();
    let (dp, _) = dp.as_chunks_mut::<LANES>();
    let mut sums = [F::zero(); LANES];
    for (p, dp) in p.iter().zip(dp.iter()) {
        for i in 0..LANES {
            sums[i] = p[i].fused::<S>(dp[i], sums[i]);
        }
    }
    let sum = super::sum_lanes(sums);
    for (p, dp) in p.iter().zip(dp) {
        let mut ds = *dp;
        for i in 0..LANES {
            ds[i] = p[i] * (ds[i] - sum);
        }
        *dp = ds;
    }
}

/// A matrix that is read one value at a time.
#[derive(Clone, Copy)]
struct Left<'a, F> {
    values: &'a [F],
    row: usize,
    column: usize,
}

/// `c = alpha a b` for `a [m, k]`, `b [k, n]`, `c [m, n]`, `n` whole lanes.
#[inline(always)]
fn product<F: Float, S: Simd>(
    [m, k, n]: [usize; 3],
    alpha: F,
    a: Left<'_, F>,
    b: &[F],
    c: &mut [F],
) {
    let columns = n / LANES;
    let (b, _) = b[..k * n].as_chunks::<LANES>();
    let (c, _) = c[..m * n].as_chunks_mut::<LANES>();
    let mut column = 0;
    while column < columns {
        let pair = columns - column >= 2;
        let mut row = 0;
        while row < m {
            let four = m - row >= 4;
            let at = [row, column];
            match (four, pair) {
                (true, true) => tile::<F, S, 4, 2>(at, k, columns, alpha, a, b, c),
                (true, false) => tile::<F, S, 4, 1>(at, k, columns, alpha, a, b, c),
                (false, true) => tile::<F, S, 1, 2>(at, k, columns, alpha, a, b, c),
                (false, false) => tile::<F, S, 1, 1>(at, k, columns, alpha, a, b, c),
            }
            row += if four { 4 } else { 1 };
        }
        column += if pair { 2 } else { 1 };
    }
}

/// One tile of [`product`], of `M` rows and `N` lanes of columns.
#[inline(always)]
fn tile<F: Float, S: Simd, const M: usize, const N: usize>(
    [row, column]: [usize; 2],
    k: usize,
    columns: usize,
    alpha: F,
    a: Left<'_, F>,
    b: &[[F; LANES]],
    c: &mut [[F; LANES]],
) {
    let mut sums = [[[F::zero(); LANES]; N]; M];
    for p in 0..k {
        let b = &b[p * columns + column..][..N];
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = a.values[(row + i) * a.row + p * a.column];
            for j in 0..N {
                for l in 0..LANES {
                    sums[j][l] = a.fused::<S>(b[j][l], sums[j][l]);
                }
            }
        }
    }
    for (i, sums) in sums.into_iter().enumerate() {
        for (j, mut lanes) in sums.into_iter().enumerate() {
            for value in &mut lanes {
                *value *= alpha;
            }
            c[(row + i) * columns + column + j] = lanes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::simd;

    fn wave<F: Float>(length: usize, phase: f64) -> Vec<F> {
        (0..length).map(|i| F::from_f64((i as f64 * 0.37 + phase).sin())).collect()
    }

    fn forward<F: Float>(samples: usize, shape: &AttentionShape, qkv: &[F]) -> [Vec<F>; 2] {
        let sizes = Shape::new(samples, shape);
        let mut p = vec![F::zero(); samples * shape.heads * shape.queries * sizes.keys];
        let mut out = vec![F::zero(); sizes.query_rows() * shape.width];
        let mut scratch = vec![F::nan(); scratch_len(shape)];
        simd(Forward {
            shape: sizes,
            qkv,
            probabilities: &mut p,
            out: &mut out,
            scratch: &mut scratch,
        });
        [p, out]
    }

    fn naive(samples: usize, shape: &AttentionShape, qkv: &[f64]) -> Vec<f64> {
        let &AttentionShape { tokens, queries, heads, width } = shape;
        let size = width / heads;
        let at = |token: usize, n: usize, part: usize, column: usize| {
            qkv[(token * samples + n) * 3 * width + part * width + column]
        };
        let mut out = vec![0.0; queries * samples * width];
        for (n, h, i) in (0..samples)
            .flat_map(|n| (0..heads).flat_map(move |h| (0..queries).map(move |i| (n, h, i))))
        {
            let column = |c: usize| h * size + c;
            let scores: Vec<f64> = (0..tokens)
                .map(|j| {
                    let dot: f64 =
                        (0..size).map(|c| at(i, n, 1, column(c)) * at(j, n, 0, column(c))).sum();
                    (dot / (size as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = scores.iter().sum();
            for c in 0..size {
                let value = (0..tokens).map(|j| scores[j] / total * at(j, n, 2, column(c))).sum();
                out[(i * samples + n) * width + column(c)] = value;
            }
        }
        out
    }

    const SHAPES: [AttentionShape; 4] = [
        AttentionShape { tokens: 5, queries: 5, heads: 2, width: 12 },
        AttentionShape { tokens: 17, queries: 9, heads: 1, width: 8 },
        AttentionShape { tokens: 12, queries: 11, heads: 2, width: 64 },
        AttentionShape { tokens: 35, queries: 35, heads: 1, width: 48 },
    ];

    #[test]
    fn output_matches_the_definition() {
        for shape in SHAPES {
            let qkv: Vec<f64> = wave(2 * shape.tokens * 3 * shape.width, 0.0);
            let expected = naive(2, &shape, &qkv);
            let [_, out] = forward(2, &shape, &qkv);
            assert!(out.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{shape:?}");
            let single: Vec<f32> = qkv.iter().map(|&x| x as f32).collect();
            let [_, out] = forward(2, &shape, &single);
            let close = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() < 2e-6;
            assert!(out.iter().zip(&expected).all(close), "{shape:?}");
        }
    }

    #[test]
    fn gradient_matches_differences() {
        for shape in SHAPES {
            let samples = 2;
            let qkv: Vec<f64> = wave(samples * shape.tokens * 3 * shape.width, 0.0);
            let [p, out] = forward(samples, &shape, &qkv);
            let cotangent: Vec<f64> = wave(out.len(), 1.0);
            let mut dqkv = vec![f64::NAN; qkv.len()];
            let mut scratch = vec![f64::NAN; scratch_len(&shape)];
            simd(Backward {
                shape: Shape::new(samples, &shape),
                qkv: &qkv,
                probabilities: &p,
                dout: &cotangent,
                dqkv: &mut dqkv,
                scratch: &mut scratch,
            });
            let value = |qkv: &[f64]| -> f64 {
                forward(samples, &shape, qkv)[1].iter().zip(&cotangent).map(|(a, b)| a * b).sum()
            };
            for i in (0..qkv.len()).step_by(13) {
                let (mut up, mut down) = (qkv.clone(), qkv.clone());
                up[i] += 1e-5;
                down[i] -= 1e-5;
                let difference = (value(&up) - value(&down)) / 2e-5;
                assert!((dqkv[i] - difference).abs() < 1e-8, "{shape:?}: {i}");
            }
        }
    }
}
