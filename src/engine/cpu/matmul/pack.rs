//! Copies of factors in the order in which tiles read them.

use pulp::{Simd, WithSimd};

use super::{Matrix, ROWS, STEP};
use crate::engine::cpu::{padded, LANES};
use crate::engine::Float;

/// Columns of a panel of weights that are packed once: a vector, or a few, on any machine.
pub(in crate::engine::cpu) const PANEL: usize = LANES;

/// All of `b` in panels: row after row of a panel. The last is padded with anything.
pub(in crate::engine::cpu) struct Pack<'a, F> {
    pub b: Matrix<'a, F>,
    /// Columns of a panel.
    pub width: usize,
    /// Of what the columns of the last panel are a multiple.
    pub multiple: usize,
    /// [`panels_len`] values or more.
    pub panels: &'a mut [F],
}

/// Values of the panels of a matrix.
pub(in crate::engine::cpu) fn panels_len(rows: usize, columns: usize) -> usize {
    rows * padded(columns)
}

impl<F: Float> WithSimd for Pack<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { b, width: widest, multiple, panels } = self;
        let lanes = F::lanes::<S>();
        if b.transposed {
            for column in (0..b.columns).step_by(widest) {
                let valid = widest.min(b.columns - column);
                let width = valid.next_multiple_of(multiple);
                let values = &b.values[column * b.stride..];
                let panel = &mut panels[column * b.rows..][..width * b.rows];
                transpose(simd, values, b.stride, valid, (panel, width));
            }
            return;
        }
        for row in 0..b.rows {
            let values = &b.values[row * b.stride..][..b.columns];
            for (i, from) in values.chunks(widest).enumerate() {
                let width = from.len().next_multiple_of(multiple);
                let to = &mut panels[i * widest * b.rows + row * width..][..width];
                let (whole, to) = (F::as_lanes::<S>(from), F::as_mut_lanes::<S>(to));
                for (to, &from) in to.iter_mut().zip(whole) {
                    *to = from;
                }
                if let Some(to) = to.get_mut(whole.len()) {
                    *to = F::partial_load(simd, &from[whole.len() * lanes..]);
                }
            }
        }
    }
}

/// `panel[i, j] = values[j * stride + i]` for `j` below `valid`.
#[inline(always)]
fn transpose<F: Float, S: Simd>(
    simd: S,
    values: &[F],
    stride: usize,
    valid: usize,
    (panel, width): (&mut [F], usize),
) {
    let deep = panel.len() / width;
    let squares = deep / STEP;
    // Vectors narrower than a square pad to less than one.
    let columns = width / STEP * STEP;
    for j in (0..columns).step_by(STEP) {
        let mut rows = [&values.as_chunks::<STEP>().0[..0]; STEP];
        for l in 0..STEP {
            // Padding repeats the last row.
            let row = &values[(j + l).min(valid - 1) * stride..];
            rows[l] = &row[..squares * STEP].as_chunks::<STEP>().0[..squares];
        }
        for square in 0..squares {
            let panel = &mut panel[square * STEP * width + j..];
            let mut values = [&rows[0][square]; STEP];
            for l in 1..STEP {
                values[l] = &rows[l][square];
            }
            F::transpose(simd, values, panel, width);
        }
    }
    // What fills no square: the last rows, and the last columns.
    for j in 0..valid {
        let from = if j < columns { squares * STEP } else { 0 };
        let row = &values[j * stride..][..deep];
        for i in from..deep {
            panel[i * width + j] = row[i];
        }
    }
}

/// A copy of a matrix that lies column by column, its columns close to each other.
#[inline(always)]
pub(super) fn columns<'a, F: Float>(a: Matrix<'_, F>, copy: &'a mut [F]) -> Matrix<'a, F> {
    for (column, to) in copy.as_chunks_mut::<ROWS>().0[..a.columns].iter_mut().enumerate() {
        let values = &a.values[column * a.stride..];
        match values.first_chunk() {
            // Beyond the last row, too: a constant length is copied faster.
            Some(values) => *to = *values,
            None => to[..a.rows].copy_from_slice(&values[..a.rows]),
        }
    }
    Matrix { values: copy, stride: ROWS, ..a }
}

/// `to[k * width + i] = a[i, k]`, padded with anything.
#[inline(always)]
pub(super) fn columns_of_rows<F: Float, S: Simd>(
    simd: S,
    a: Matrix<'_, F>,
    width: usize,
    to: &mut [F],
) {
    transpose(simd, a.values, a.stride, a.rows, (&mut to[..a.columns * width], width));
}
