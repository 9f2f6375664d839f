//! Sums and products along the edges of a graph of units, one matrix product
//! for each sample.

use super::gelu::Finish;
use super::matmul::{Matrix, Product};
use super::simd;
use crate::engine::{EdgeShape, Float, Write};

/// Copies the rows of one sample next to each other.
fn collect<F: Float>(rows: &[F], sample: usize, samples: usize, width: usize, to: &mut [F]) {
    let rows = rows.chunks_exact(width).skip(sample).step_by(samples);
    to.chunks_exact_mut(width).zip(rows).for_each(|(to, row)| to.copy_from_slice(row));
}

/// Undoes [`collect`].
fn spread<F: Float>(from: &[F], sample: usize, samples: usize, width: usize, rows: &mut [F]) {
    let rows = rows.chunks_exact_mut(width).skip(sample).step_by(samples);
    from.chunks_exact(width).zip(rows).for_each(|(from, row)| row.copy_from_slice(from));
}

/// `out = a b`, or that added.
fn multiply<F: Float>(
    out: &mut [F],
    a: Matrix<'_, F>,
    b: Matrix<'_, F>,
    write: Write,
    scratch: &mut [F],
) {
    let (stride, start) = (b.columns(), write.into());
    let finish = Finish::Nothing;
    simd(Product { out, stride, start, a, b: b.into(), bias: None, finish, scratch });
}

/// The factors of an [`EdgeShape`]'s trilinear form: `edges [N, U, V, C]`, `to [U N, R]`,
/// `from [V N, C R]`.
pub(super) struct Edges<'a, F> {
    pub shape: &'a EdgeShape,
    pub samples: usize,
    pub edges: &'a mut [F],
    pub to: &'a mut [F],
    pub from: &'a mut [F],
    /// As long as [`EdgeShape::scratch_len`].
    pub own: &'a mut [F],
    /// For matrix products.
    pub scratch: &'a mut [F],
}

impl<F: Float> Edges<'_, F> {
    /// Calls `product` for each sample with matrices `edges [U, V C]`, `to [U, R]` and
    /// `from [V C, R]`.
    fn for_each(self, read: [bool; 2], product: impl Fn([&mut [F]; 3], &mut [F])) {
        let Self { shape, samples, edges, to, from, own, scratch } = self;
        let (rank, wide) = (shape.rank, shape.channels * shape.rank);
        let (own_to, own_from) = own.split_at_mut(shape.to * rank);
        for (sample, edges) in edges.chunks_exact_mut(shape.len()).enumerate() {
            if read[0] {
                collect(to, sample, samples, rank, own_to);
            }
            if read[1] {
                collect(from, sample, samples, wide, own_from);
            }
            product([edges, own_to, own_from], scratch);
            if !read[0] {
                spread(own_to, sample, samples, rank, to);
            }
            if !read[1] {
                spread(own_from, sample, samples, wide, from);
            }
        }
    }

    /// `to = edges from`
    pub fn sum(self) {
        let (to, columns, rank) = (self.shape.to, self.shape.columns(), self.shape.rank);
        self.for_each([false, true], |[edges, sum, from], scratch| {
            let edges = Matrix::new(edges, to, columns);
            multiply(sum, edges, Matrix::new(from, columns, rank), Write::Set, scratch);
        });
    }

    /// `from = edgesᵀ to`
    pub fn sum_transposed(self) {
        let (to, columns, rank) = (self.shape.to, self.shape.columns(), self.shape.rank);
        self.for_each([true, false], |[edges, own, sum], scratch| {
            let edges = Matrix::new(edges, to, columns).transposed();
            multiply(sum, edges, Matrix::new(own, to, rank), Write::Set, scratch);
        });
    }

    /// `edges = to fromᵀ`, or that added.
    pub fn product(self, write: Write) {
        let (to, columns, rank) = (self.shape.to, self.shape.columns(), self.shape.rank);
        self.for_each([true, true], |[edges, own, from], scratch| {
            let from = Matrix::new(from, columns, rank).transposed();
            multiply(edges, Matrix::new(own, to, rank), from, write, scratch);
        });
    }
}

/// `out[n, u, v, k] += sum over s of gates[row(u, n), s] edges[n, u, v, s, k]`, where `s`
/// goes up to the shape's rank and `k` up to its channels.
pub(super) fn gate<F: Float>(
    shape: &EdgeShape,
    samples: usize,
    gates: &[F],
    edges: &[F],
    out: &mut [F],
) {
    let parts = shape.rank;
    for_each_gate(shape, samples, |sample, unit, values, kept| {
        let gates = &gates[(unit * samples + sample) * parts..][..parts];
        let kept = out[kept].chunks_exact_mut(shape.channels);
        for (out, edge) in kept.zip(edges[values].chunks_exact(parts * shape.channels)) {
            for (edge, &gate) in edge.chunks_exact(shape.channels).zip(gates) {
                out.iter_mut().zip(edge).for_each(|(out, &edge)| *out += gate * edge);
            }
        }
    });
}

/// Gradient of [`gate`] with respect to the gates, and with respect to the edges, which is
/// added, if asked for.
pub(super) fn gate_backward<F: Float>(
    shape: &EdgeShape,
    samples: usize,
    (gates, dgates): (&[F], &mut [F]),
    (edges, mut dedges): (&[F], Option<&mut [F]>),
    dout: &[F],
) {
    let parts = shape.rank;
    for_each_gate(shape, samples, |sample, unit, values, kept| {
        let row = (unit * samples + sample) * parts;
        let (gates, dgates) = (&gates[row..row + parts], &mut dgates[row..row + parts]);
        dgates.fill(F::zero());
        let channels = shape.channels;
        for (i, dout) in dout[kept].chunks_exact(channels).enumerate() {
            for (part, (dgate, &gate)) in dgates.iter_mut().zip(gates).enumerate() {
                let at = values.start + (i * parts + part) * channels;
                let edge = &edges[at..at + channels];
                edge.iter().zip(dout).for_each(|(&edge, &d)| *dgate += edge * d);
                if let Some(dedges) = dedges.as_deref_mut() {
                    let dedges = &mut dedges[at..at + channels];
                    dedges.iter_mut().zip(dout).for_each(|(dedge, &d)| *dedge += gate * d);
                }
            }
        }
    });
}

/// Calls `visit` with every sample, every unit, and where its edges and its share of what
/// they are gated to lie.
fn for_each_gate(
    shape: &EdgeShape,
    samples: usize,
    mut visit: impl FnMut(usize, usize, std::ops::Range<usize>, std::ops::Range<usize>),
) {
    let (kept, parts) = (shape.columns(), shape.rank);
    for sample in 0..samples {
        for unit in 0..shape.to {
            let at = (sample * shape.to + unit) * kept;
            visit(sample, unit, at * parts..(at + kept) * parts, at..at + kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::matmul::SCRATCH;

    const SHAPE: EdgeShape = EdgeShape { to: 3, from: 5, channels: 2, rank: 4 };
    const SAMPLES: usize = 2;

    /// Random values for edges, `to`, `from` and scratch memory.
    fn factors() -> [Vec<f64>; 4] {
        let values = |len: usize, seed: usize| {
            (0..len).map(|i| ((i * i + 7 * i * seed + seed) as f64).sin()).collect()
        };
        let (to, from) = (SHAPE.to * SAMPLES * SHAPE.rank, SHAPE.from * SAMPLES * 8);
        let [edges, to, from] = [values(SHAPE.len() * SAMPLES, 1), values(to, 2), values(from, 3)];
        [edges, to, from, vec![0.0; SHAPE.scratch_len()]]
    }

    /// What a form is the sum of: places of edge, `to` and `from` in their buffers.
    fn terms() -> impl Iterator<Item = [usize; 3]> {
        let EdgeShape { to, from, channels, rank } = SHAPE;
        (0..SAMPLES * SHAPE.len() * rank).map(move |i| {
            let (r, c, v) = (i % rank, i / rank % channels, i / rank / channels % from);
            let (u, n) = (i / rank / channels / from % to, i / rank / SHAPE.len());
            let own_from = ((v * SAMPLES + n) * channels + c) * rank + r;
            [i / rank, (u * SAMPLES + n) * rank + r, own_from]
        })
    }

    fn same(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
        assert!(found.iter().zip(expected).all(close), "{found:?} {expected:?}");
    }

    #[test]
    fn each_operation_is_a_derivative_of_the_form() {
        for wanted in 0..3 {
            let before = factors();
            let mut expected = vec![0.0; before[wanted].len()];
            for places in terms() {
                let others = (0..3).filter(|&i| i != wanted);
                let product: f64 = others.map(|i| before[i][places[i]]).product();
                expected[places[wanted]] += product;
            }
            let mut after = factors();
            let [edges, to, from, own] = &mut after;
            let scratch = &mut vec![0.0; SCRATCH][..];
            let form = Edges { shape: &SHAPE, samples: SAMPLES, edges, to, from, own, scratch };
            match wanted {
                0 => form.product(Write::Set),
                1 => form.sum(),
                _ => form.sum_transposed(),
            }
            for (i, (after, before)) in after.iter().zip(&before).take(3).enumerate() {
                same(after, if i == wanted { &expected } else { before });
            }
        }
    }

    #[test]
    fn products_can_be_added() {
        let [edges, mut to, mut from, mut own] = factors();
        let scratch = &mut vec![0.0; SCRATCH][..];
        let mut both = [edges.clone(), edges.clone()];
        for (out, write) in both.iter_mut().zip([Write::Set, Write::Add]) {
            let (to, from, own) = (&mut to[..], &mut from[..], &mut own[..]);
            let (edges, scratch) = (&mut out[..], &mut *scratch);
            Edges { shape: &SHAPE, samples: SAMPLES, edges, to, from, own, scratch }.product(write);
        }
        let sums: Vec<f64> = edges.iter().zip(&both[0]).map(|(a, b)| a + b).collect();
        same(&both[1], &sums);
    }

    #[test]
    fn gates_weigh_the_parts_of_an_edge() {
        // One unit, two edges of one channel, two parts each.
        let shape = EdgeShape { to: 1, from: 2, channels: 1, rank: 2 };
        let (gates, edges, mut out) = ([0.5, 2.0], [1.0, 10.0, 3.0, 20.0], [100.0, 200.0]);
        gate(&shape, 1, &gates, &edges, &mut out);
        assert_eq!(out, [120.5, 241.5]);
        let (mut dgates, mut dedges) = ([9.0; 2], [1.0; 4]);
        let dout = [1.0, -1.0];
        gate_backward(&shape, 1, (&gates, &mut dgates), (&edges, Some(&mut dedges)), &dout);
        assert_eq!(dgates, [-2.0, -10.0]);
        assert_eq!(dedges, [1.5, 3.0, 0.5, -1.0]);
    }
}
