//! Attention: for every sample and head, `S = Q Kᵀ / sqrt(head size)`,
//! `P = softmax(S)` row by row, `O = P V`.
//!
//! Backward: `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P (dP - rowsum(P dP))`,
//! `dQ = dS K / sqrt(head size)`, `dK = dSᵀ Q / sqrt(head size)`.
//!
//! The rows of a head lie far apart, often at addresses that share a place in the cache: those
//! that are read more than once are copied side by side first. `S`, `P` and their gradients lie
//! transposed, keys by queries, which are padded with zeros: so a lane belongs to a query, and the
//! sums of a softmax go from vector to vector, not through a vector.
//!
//! # Source
//! Vaswani et al. 2017, arXiv:1706.03762.

use pulp::{Simd, WithSimd};

use super::gelu::Finish;
use super::matmul::{Matrix, Product, Start, SCRATCH};
use super::{fetch, padded, simd, LANES};
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
    /// Queries, padded.
    lanes: usize,
}

impl Shape {
    pub fn new(samples: usize, shape: &AttentionShape) -> Self {
        let &AttentionShape { tokens, queries, heads, width } = shape;
        Self { samples, tokens, queries, heads, width, size: width / heads, lanes: padded(queries) }
    }

    pub fn key_rows(&self) -> usize {
        self.tokens * self.samples
    }

    pub fn query_rows(&self) -> usize {
        self.queries * self.samples
    }

    /// Samples, heads in them, and where the probabilities of each begin.
    fn heads(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (heads, len) = (self.heads, self.tokens * self.lanes);
        (0..self.samples * heads).map(move |i| (i / heads, i % heads, i * len))
    }

    /// Position in `qkv` of the values of a head of a sample.
    fn part(&self, sample: usize, head: usize, part: Part) -> usize {
        (3 * sample + part as usize) * self.width + head * self.size
    }

    /// Keys, queries or values of a head, where they lie.
    fn in_place<'a, F>(
        &self,
        qkv: &'a [F],
        (sample, head): (usize, usize),
        part: Part,
    ) -> Matrix<'a, F> {
        let rows = if part == Part::Query { self.queries } else { self.tokens };
        let values = &qkv[self.part(sample, head, part)..];
        Matrix::strided(values, rows, self.size, 3 * self.samples * self.width)
    }

    /// Rows of a head side by side: a copy.
    fn copied<'a, F: Float>(&self, from: Matrix<'_, F>, to: &'a mut [F]) -> Matrix<'a, F> {
        let to = &mut to[..from.rows() * self.size];
        for (from, to) in from.each_row().zip(to.chunks_exact_mut(self.size)) {
            let (from, from_rest) = from.as_chunks::<LANES>();
            let (to, to_rest) = to.as_chunks_mut::<LANES>();
            for (from, to) in from.iter().zip(to) {
                *to = *from;
            }
            to_rest.copy_from_slice(from_rest);
        }
        Matrix::new(to, from.rows(), self.size)
    }

    /// The same of what belongs to queries, with the padding, which holds zeros.
    fn padded<'a, F: Float>(&self, from: Matrix<'_, F>, to: &'a mut [F]) -> Matrix<'a, F> {
        self.copied(from, to);
        Matrix::new(&to[..self.lanes * self.size], self.lanes, self.size)
    }

    /// Has keys, queries or values of a head of a sample fetched, or where their gradients go.
    fn fetch_part<F>(&self, qkv: &[F], head: Option<(usize, usize)>, part: Part) {
        let Some((sample, head)) = head else { return };
        fetch_rows(self.in_place(qkv, (sample, head), part));
    }

    /// The output of a head of a sample, or its gradient, where it lies.
    fn out_in_place<'a, F>(&self, out: &'a [F], sample: usize, head: usize) -> Matrix<'a, F> {
        let values = &out[self.out(sample, head)..];
        Matrix::strided(values, self.queries, self.size, self.out_stride())
    }

    /// The head after this one, and its sample.
    fn next(&self, sample: usize, head: usize) -> Option<(usize, usize)> {
        match (sample + 1 < self.samples, head + 1 < self.heads) {
            (_, true) => Some((sample, head + 1)),
            (true, false) => Some((sample + 1, 0)),
            (false, false) => None,
        }
    }

    /// Values of all tokens of a head, or of all queries with their padding.
    fn head_len(&self) -> usize {
        self.tokens.max(self.lanes) * self.size
    }

    /// Position in the output of the values of a head of a sample.
    fn out(&self, sample: usize, head: usize) -> usize {
        sample * self.width + head * self.size
    }

    /// Distance of the tokens of a sample in the output.
    fn out_stride(&self) -> usize {
        self.samples * self.width
    }

    fn scale<F: Float>(&self) -> F {
        F::from_f64((self.size as f64).sqrt().recip())
    }
}

/// In the order in which they lie in a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Key,
    Query,
    Value,
}

/// All of them.
const PARTS: [Part; 3] = [Part::Key, Part::Query, Part::Value];

/// Values of scratch memory for attention, and for any product.
pub(crate) fn scratch_len(shape: &AttentionShape) -> usize {
    let lanes = padded(shape.queries);
    let head = shape.tokens.max(lanes).saturating_mul(shape.width / shape.heads.max(1));
    let scores = shape.tokens.saturating_mul(lanes);
    SCRATCH.saturating_add(head.saturating_mul(3)).saturating_add(scores)
}

/// `out`, and the probabilities: `[samples][heads][tokens][padded queries]`.
pub(super) struct Forward<'a, F> {
    pub shape: Shape,
    pub qkv: &'a [F],
    pub probabilities: &'a mut [F],
    pub out: &'a mut [F],
    /// As long as [`scratch_len`].
    pub scratch: &'a mut [F],
}

impl<F: Float> Forward<'_, F> {
    pub fn run(self) {
        let Self { shape, qkv, probabilities, out, scratch } = self;
        let Shape { tokens, queries, lanes, .. } = shape;
        let (scratch, own) = scratch.split_at_mut(SCRATCH);
        let (own_query, own_value) = own.split_at_mut(shape.head_len());
        own_query.fill(F::zero());
        for (sample, head, at) in shape.heads() {
            let next = shape.next(sample, head);
            let [key, query, value] = PARTS.map(|part| shape.in_place(qkv, (sample, head), part));
            let p = &mut probabilities[at..][..tokens * lanes];
            let query = shape.padded(query, own_query);
            shape.fetch_part(qkv, next, Part::Key);
            shape.fetch_part(qkv, next, Part::Query);
            multiply(p, lanes, key, query.transposed(), scratch);
            simd(Softmax { scale: shape.scale(), lanes, scores: p });
            let p = Matrix::strided(p, tokens, queries, lanes);
            let out = &mut out[shape.out(sample, head)..];
            let value = shape.copied(value, own_value);
            shape.fetch_part(qkv, next, Part::Value);
            multiply(out, shape.out_stride(), p.transposed(), value, scratch);
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
    /// As long as [`scratch_len`].
    pub scratch: &'a mut [F],
}

impl<F: Float> Backward<'_, F> {
    pub fn run(self) {
        let Self { shape, qkv, probabilities, dout, dqkv, scratch } = self;
        let Shape { samples, tokens, queries, size, width, lanes, .. } = shape;
        let stride = 3 * samples * width;
        let (scratch, own) = scratch.split_at_mut(SCRATCH);
        let (ds, own) = own.split_at_mut(tokens * lanes);
        let (own_dout, own) = own.split_at_mut(shape.head_len());
        let (own_key, own_query) = own.split_at_mut(shape.head_len());
        own_dout.fill(F::zero());
        for (sample, head, at) in shape.heads() {
            let (own_place, next) = (Some((sample, head)), shape.next(sample, head));
            let [key, query, value] = PARTS.map(|part| shape.in_place(qkv, (sample, head), part));
            let p = &probabilities[at..][..tokens * lanes];
            let at_part = |part| shape.part(sample, head, part);
            let own_dout = shape.padded(shape.out_in_place(dout, sample, head), own_dout);
            shape.fetch_part(dqkv, own_place, Part::Key);
            shape.fetch_part(qkv, next, Part::Value);
            multiply(ds, lanes, value, own_dout.transposed(), scratch);
            simd(SoftmaxBackward { scale: shape.scale(), lanes, p, dp: ds });

            let ds = Matrix::strided(ds, tokens, queries, lanes);
            let p = Matrix::strided(p, tokens, queries, lanes);
            let (key, query) = (shape.copied(key, own_key), shape.copied(query, own_query));
            let own_dout = own_dout.first_rows(queries);
            shape.fetch_part(dqkv, own_place, Part::Query);
            shape.fetch_part(qkv, next, Part::Key);
            multiply(&mut dqkv[at_part(Part::Key)..], stride, ds, query, scratch);
            shape.fetch_part(dqkv, own_place, Part::Value);
            shape.fetch_part(qkv, next, Part::Query);
            multiply(&mut dqkv[at_part(Part::Query)..], stride, ds.transposed(), key, scratch);
            if let Some((sample, head)) = next {
                fetch_rows(shape.out_in_place(dout, sample, head));
            }
            multiply(&mut dqkv[at_part(Part::Value)..], stride, p, own_dout, scratch);
            for token in queries..tokens {
                let dquery = at_part(Part::Query) + token * stride;
                dqkv[dquery..][..size].fill(F::zero());
            }
        }
    }
}

/// Has the rows of a matrix fetched.
fn fetch_rows<F>(matrix: Matrix<'_, F>) {
    matrix.each_row().for_each(fetch::row);
}

/// `out = a b`.
fn multiply<F: Float>(
    out: &mut [F],
    stride: usize,
    a: Matrix<'_, F>,
    b: Matrix<'_, F>,
    scratch: &mut [F],
) {
    let (start, finish) = (Start::Nothing, Finish::Nothing);
    simd(Product { out, stride, start, a, b: b.into(), bias: None, finish, scratch });
}

/// `scores = softmax(scale scores)` over the rows, for every lane by itself.
struct Softmax<'a, F> {
    scale: F,
    /// Values in a row.
    lanes: usize,
    scores: &'a mut [F],
}

impl<F: Float> WithSimd for Softmax<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (rows, _) = self.scores.as_chunks_mut::<LANES>();
        let vectors = self.lanes / LANES;
        for vector in 0..vectors {
            let mut most = [F::neg_infinity(); LANES];
            for s in rows[vector..].iter().step_by(vectors) {
                for i in 0..LANES {
                    most[i] = if s[i] > most[i] { s[i] } else { most[i] };
                }
            }
            let mut sums = [F::zero(); LANES];
            for s in rows[vector..].iter_mut().step_by(vectors) {
                let mut e = *s;
                for i in 0..LANES {
                    e[i] = ((e[i] - most[i]) * self.scale).exp_negative::<S>();
                    sums[i] += e[i];
                }
                *s = e;
            }
            let mut inverse = [F::one(); LANES];
            for i in 0..LANES {
                inverse[i] /= sums[i];
            }
            for s in rows[vector..].iter_mut().step_by(vectors) {
                let mut p = *s;
                for i in 0..LANES {
                    p[i] *= inverse[i];
                }
                *s = p;
            }
        }
    }
}

/// `dp = scale p (dp - sum over rows of p dp)` for every lane by itself.
struct SoftmaxBackward<'a, F> {
    scale: F,
    /// Values in a row.
    lanes: usize,
    p: &'a [F],
    dp: &'a mut [F],
}

impl<F: Float> WithSimd for SoftmaxBackward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (p, _) = self.p.as_chunks::<LANES>();
        let (dp, _) = self.dp.as_chunks_mut::<LANES>();
        let vectors = self.lanes / LANES;
        for vector in 0..vectors {
            let rows = || p[vector..].iter().step_by(vectors);
            let mut sums = [F::zero(); LANES];
            for (p, dp) in rows().zip(dp[vector..].iter().step_by(vectors)) {
                for i in 0..LANES {
                    sums[i] = p[i].fused::<S>(dp[i], sums[i]);
                }
            }
            for (p, dp) in rows().zip(dp[vector..].iter_mut().step_by(vectors)) {
                let mut ds = *dp;
                for i in 0..LANES {
                    ds[i] = p[i] * (ds[i] - sums[i]) * self.scale;
                }
                *dp = ds;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave<F: Float>(length: usize, phase: f64) -> Vec<F> {
        (0..length).map(|i| F::from_f64((i as f64 * 0.37 + phase).sin())).collect()
    }

    fn forward<F: Float>(samples: usize, shape: &AttentionShape, qkv: &[F]) -> [Vec<F>; 2] {
        let sizes = Shape::new(samples, shape);
        let mut p = vec![F::zero(); samples * shape.heads * shape.tokens * sizes.lanes];
        let mut out = vec![F::zero(); sizes.query_rows() * shape.width];
        let mut scratch = vec![F::nan(); scratch_len(shape)];
        Forward { shape: sizes, qkv, probabilities: &mut p, out: &mut out, scratch: &mut scratch }
            .run();
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
            Backward {
                shape: Shape::new(samples, &shape),
                qkv: &qkv,
                probabilities: &p,
                dout: &cotangent,
                dqkv: &mut dqkv,
                scratch: &mut scratch,
            }
            .run();
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
