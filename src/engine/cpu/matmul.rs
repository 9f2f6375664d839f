//! Matrix products `C = A B`, on one thread.
//!
//! A block of `B` is copied into panels a few vectors wide, which lie in the order in which
//! they are read, and stays in the second-level cache while the rows of `A` go past as they
//! lie. A tile of `C` is summed in registers: for every inner index, each of its rows adds
//! one value of `A` times the vectors of a panel.
//!
//! # Source
//! Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication".

// Loops that count up to a constant, so that they are unrolled and arrays stay in registers.
#![allow(clippy::needless_range_loop, clippy::manual_memcpy)]

use pulp::{Simd, WithSimd};

use super::simd;
use crate::engine::{Float, Write};

/// Rows of a tile. With four vectors each they leave eight of 32 registers for a row of a
/// panel and a value of `A`, with two vectors four of 16.
const TILE: usize = 6;

/// Values between rows of a tile's values of `A`, where these are copied: a few more than are
/// read, so that each row is one vector.
const PACKED_TILE: usize = 8;

/// Most inner indices of a block: a tile's rows of `A`, and most of a panel, stay in the
/// first-level cache.
const DEPTH: usize = 384;

/// Most columns of a block of `B`, and most rows of `A` that go past it before the next: with
/// that depth, both stay in a second-level cache of two megabytes.
const COLUMNS: usize = 512;
const ROWS: usize = 384;

/// Inner indices between two computations of addresses, which would take longer than the
/// sums, and rows and columns that are transposed at once.
const STEP: usize = 16;

/// Most values in a row of a panel: four vectors of 16.
const WIDEST: usize = 64;

/// A matrix in a slice, row by row or column by column.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, F> {
    values: &'a [F],
    rows: usize,
    columns: usize,
    /// From one row to the next, or one column to the next where it is transposed.
    stride: usize,
    /// Whether the slice holds it column by column.
    transposed: bool,
}

impl<'a, F> Matrix<'a, F> {
    /// All of `values`, row by row.
    ///
    /// # Panics
    /// If `values` does not hold `rows * columns` values.
    pub fn new(values: &'a [F], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} by {columns}");
        Self::strided(values, rows, columns, columns)
    }

    /// Rows that begin every `stride` values.
    pub fn strided(values: &'a [F], rows: usize, columns: usize, stride: usize) -> Self {
        Self { values, rows, columns, stride, transposed: false }
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows become columns.
    pub fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, transposed: !self.transposed, ..self }
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a, F> {
    Nothing,
    /// What the output holds.
    Output,
    /// A matrix that lies as the output does.
    Matrix(&'a [F]),
}

impl<F> From<Write> for Start<'_, F> {
    fn from(write: Write) -> Self {
        match write {
            Write::Set => Self::Nothing,
            Write::Add => Self::Output,
        }
    }
}

/// `out = start + a b + bias`, the bias in every row.
pub(super) struct Product<'a, F> {
    /// Rows that begin every `stride` values.
    pub out: &'a mut [F],
    pub stride: usize,
    pub start: Start<'a, F>,
    pub a: Matrix<'a, F>,
    pub b: Matrix<'a, F>,
    pub bias: Option<&'a [F]>,
    /// [`SCRATCH`] values.
    pub scratch: &'a mut [F],
}

/// Values of scratch memory for a product of rows that lie as such with that many inner
/// indices and columns.
fn scratch_len(inner: usize, columns: usize) -> usize {
    inner.next_multiple_of(STEP).min(DEPTH) * columns.next_multiple_of(WIDEST).min(COLUMNS)
}

/// Values of scratch memory for any product.
pub(crate) const SCRATCH: usize = DEPTH * (COLUMNS + ROWS / TILE * PACKED_TILE);

impl<F: Float> WithSimd for Product<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::REGISTER_COUNT >= 32 {
            true => self.run::<S, 4>(simd),
            false => self.run::<S, 2>(simd),
        }
    }
}

impl<F: Float> Product<'_, F> {
    /// Multiplies block by block, with panels of up to `N` vectors.
    #[inline(always)]
    fn run<S: Simd, const N: usize>(self, simd: S) {
        let Self { out, stride, start, a, b, bias, scratch } = self;
        let (inner, columns) = (a.columns, b.columns);
        assert_eq!(inner, b.rows, "inner lengths of a product");
        assert!(stride >= columns, "rows of a product overlap");
        let lanes = F::lanes::<S>();
        let depth = equal_parts(inner, DEPTH).next_multiple_of(STEP);
        let height = equal_parts(a.rows, ROWS).next_multiple_of(TILE);
        let (block, packed) = scratch.split_at_mut(scratch_len(inner, columns));
        for column in (0..columns).step_by(COLUMNS) {
            let end = columns.min(column + COLUMNS);
            for k in (0..inner).step_by(depth) {
                let deep = depth.min(inner - k);
                pack(simd, &b, [k, column], [deep, end - column], N * lanes, block);
                for row in (0..a.rows).step_by(height) {
                    let rows = [row, a.rows.min(row + height)];
                    if a.transposed {
                        pack_tiles(&a, [k, deep], rows, packed);
                    }
                    let left = Left { a, k, rows, packed };
                    let mut at = 0;
                    for first in (column..end).step_by(N * lanes) {
                        let valid = (N * lanes).min(end - first);
                        let panel = &block[at..][..valid.next_multiple_of(lanes) * deep];
                        at += panel.len();
                        let target = Target {
                            out: &mut *out,
                            stride,
                            start: if k == 0 { start } else { Start::Output },
                            bias: bias.filter(|_| k == 0).map(|bias| &bias[first..][..valid]),
                            first,
                            valid,
                        };
                        match valid.div_ceil(lanes) {
                            1 => tiles::<F, S, 1>(simd, left, panel, target),
                            2 => tiles::<F, S, 2>(simd, left, panel, target),
                            3 if N == 4 => tiles::<F, S, 3>(simd, left, panel, target),
                            _ if N == 4 => tiles::<F, S, 4>(simd, left, panel, target),
                            more => unreachable!("a panel of {more} vectors"),
                        }
                    }
                }
            }
        }
    }
}

/// Length of the parts of a length, none longer than `most`.
fn equal_parts(length: usize, most: usize) -> usize {
    length.div_ceil(length.div_ceil(most).max(1)).max(1)
}

/// Some rows of `A`, and inner indices from `k` on.
#[derive(Clone, Copy)]
struct Left<'a, F> {
    a: Matrix<'a, F>,
    k: usize,
    rows: [usize; 2],
    /// Where `A` lies column by column: a copy, tile by tile.
    packed: &'a [F],
}

/// Columns of `C` that a panel gives.
struct Target<'a, F> {
    out: &'a mut [F],
    stride: usize,
    start: Start<'a, F>,
    bias: Option<&'a [F]>,
    /// Column that the panel begins at.
    first: usize,
    /// Columns of the panel that are not padding.
    valid: usize,
}

/// Copies `deep` rows from `k` of columns from `first`, up to `columns` of them, into panels:
/// row after row of up to `widest` values, padded with anything to whole vectors.
#[inline(always)]
fn pack<F: Float, S: Simd>(
    simd: S,
    b: &Matrix<'_, F>,
    [k, first]: [usize; 2],
    [deep, columns]: [usize; 2],
    widest: usize,
    block: &mut [F],
) {
    let lanes = F::lanes::<S>();
    let mut at = 0;
    for column in (0..columns).step_by(widest) {
        let valid = widest.min(columns - column);
        let width = valid.next_multiple_of(lanes);
        let panel = &mut block[at..][..width * deep];
        at += panel.len();
        if b.transposed {
            let values = &b.values[(first + column) * b.stride + k..];
            transpose(values, b.stride, valid, panel, width);
            continue;
        }
        for (k, to) in (k..).zip(panel.chunks_exact_mut(width)) {
            let from = &b.values[k * b.stride + first + column..][..valid];
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

/// `panel[i, j] = values[j * stride + i]` for `j` below `valid`.
#[inline(always)]
fn transpose<F: Float>(values: &[F], stride: usize, valid: usize, panel: &mut [F], width: usize) {
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
            for i in 0..STEP {
                let mut row = [F::zero(); STEP];
                for l in 0..STEP {
                    row[l] = rows[l][square][i];
                }
                panel[(square * STEP + i) * width + j..][..STEP].copy_from_slice(&row);
            }
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

/// Copies columns from `k` of rows of a matrix that lies column by column: tile after tile,
/// and in each the columns, with rows of the next tile or of nothing below.
#[inline(always)]
fn pack_tiles<F: Float>(
    a: &Matrix<'_, F>,
    [k, deep]: [usize; 2],
    [first, end]: [usize; 2],
    packed: &mut [F],
) {
    // Not all of a tile at once: columns may lie far apart, and each holds rows of many tiles.
    for from in (0..deep).step_by(STEP) {
        let some = from..deep.min(from + STEP);
        let tiles = packed.chunks_exact_mut(PACKED_TILE * deep);
        for (top, tile) in (first..end).step_by(TILE).zip(tiles) {
            let tile = &mut tile.as_chunks_mut::<PACKED_TILE>().0[some.clone()];
            for (k, to) in (k + from..).zip(tile) {
                let rows = &a.values[k * a.stride + top..];
                match rows.first_chunk() {
                    Some(rows) => *to = *rows,
                    None => to[..rows.len()].copy_from_slice(rows),
                }
            }
        }
    }
}

/// Rows of `A` times a panel.
#[inline(always)]
fn tiles<F: Float, S: Simd, const N: usize>(
    simd: S,
    left: Left<'_, F>,
    panel: &[F],
    mut target: Target<'_, F>,
) {
    let Left { a, k, rows: [first, end], packed } = left;
    let panel = F::as_lanes::<S>(panel).as_chunks::<N>().0;
    let mut sums = [[F::splat(simd, F::zero()); N]; TILE];
    for top in (first..end).step_by(TILE) {
        let height = TILE.min(end - top);
        if !a.transposed {
            let mut rows = [&a.values[..0]; TILE];
            for i in 0..TILE {
                // Below the last row comes the last row again: its sums are not stored.
                let row = top + i.min(height - 1);
                rows[i] = &a.values[row * a.stride + k..][..panel.len()];
            }
            tile(simd, ByRows(rows), panel, &mut sums);
        } else {
            let tile_len = PACKED_TILE * panel.len();
            let columns = &packed[(top - first) / TILE * tile_len..][..tile_len];
            tile(simd, ByColumns(columns.as_chunks().0), panel, &mut sums);
        }
        store::<F, S, N>(simd, &sums, [top, height], &mut target);
    }
}

/// The values of `A` that a tile is made from.
trait Factor<F>: Copy {
    /// Addresses for whole steps.
    type Steps: Copy;
    fn steps(self, count: usize) -> Self::Steps;
    /// Inner index `step * STEP + k`.
    fn in_step(steps: Self::Steps, step: usize, k: usize, row: usize) -> F;
    fn get(self, k: usize, row: usize) -> F;
}

#[derive(Clone, Copy)]
struct ByRows<'a, F>([&'a [F]; TILE]);

impl<'a, F: Copy> Factor<F> for ByRows<'a, F> {
    type Steps = [&'a [[F; STEP]]; TILE];

    #[inline(always)]
    fn steps(self, count: usize) -> Self::Steps {
        let mut steps = [&self.0[0].as_chunks::<STEP>().0[..0]; TILE];
        for i in 0..TILE {
            steps[i] = &self.0[i].as_chunks::<STEP>().0[..count];
        }
        steps
    }

    #[inline(always)]
    fn in_step(steps: Self::Steps, step: usize, k: usize, row: usize) -> F {
        steps[row][step][k]
    }

    #[inline(always)]
    fn get(self, k: usize, row: usize) -> F {
        self.0[row][k]
    }
}

#[derive(Clone, Copy)]
struct ByColumns<'a, F>(&'a [[F; PACKED_TILE]]);

impl<'a, F: Copy> Factor<F> for ByColumns<'a, F> {
    type Steps = &'a [[[F; PACKED_TILE]; STEP]];

    #[inline(always)]
    fn steps(self, count: usize) -> Self::Steps {
        &self.0.as_chunks::<STEP>().0[..count]
    }

    #[inline(always)]
    fn in_step(steps: Self::Steps, step: usize, k: usize, row: usize) -> F {
        steps[step][k][row]
    }

    #[inline(always)]
    fn get(self, k: usize, row: usize) -> F {
        self.0[k][row]
    }
}

/// `sums[i] = sum over k of a[i, k] panel[k]`.
#[inline(always)]
fn tile<F: Float, S: Simd, const N: usize, A: Factor<F>>(
    simd: S,
    a: A,
    panel: &[[F::Lanes<S>; N]],
    sums: &mut [[F::Lanes<S>; N]; TILE],
) {
    // A local copy stays in registers.
    let mut local = [[F::splat(simd, F::zero()); N]; TILE];
    let (steps, rest) = panel.as_chunks::<STEP>();
    let left = a.steps(steps.len());
    for (step, panel) in steps.iter().enumerate() {
        for k in 0..STEP {
            for i in 0..TILE {
                let value = F::splat(simd, A::in_step(left, step, k, i));
                for n in 0..N {
                    local[i][n] = F::fused_lanes(simd, value, panel[k][n], local[i][n]);
                }
            }
        }
    }
    for (k, panel) in rest.iter().enumerate() {
        for i in 0..TILE {
            let value = F::splat(simd, a.get(steps.len() * STEP + k, i));
            for n in 0..N {
                local[i][n] = F::fused_lanes(simd, value, panel[n], local[i][n]);
            }
        }
    }
    *sums = local;
}

/// Writes the rows of a tile.
#[inline(always)]
fn store<F: Float, S: Simd, const N: usize>(
    simd: S,
    sums: &[[F::Lanes<S>; N]; TILE],
    [top, height]: [usize; 2],
    target: &mut Target<'_, F>,
) {
    let width = N * F::lanes::<S>();
    if target.valid < width {
        // A copy: what is indexed by a variable does not stay in registers.
        return store_some(simd, *sums, [top, height], target);
    }
    let bias = target.bias.map(|bias| &F::as_lanes::<S>(bias)[..N]);
    for i in 0..TILE {
        if i < height {
            let place = (top + i) * target.stride + target.first;
            let mut values = sums[i];
            if let Some(bias) = bias {
                for n in 0..N {
                    values[n] = F::add_lanes(simd, values[n], bias[n]);
                }
            }
            if let Start::Matrix(start) = target.start {
                let start = F::as_lanes::<S>(&start[place..][..width]);
                for n in 0..N {
                    values[n] = F::add_lanes(simd, values[n], start[n]);
                }
            }
            let out = F::as_mut_lanes::<S>(&mut target.out[place..][..width]);
            if let Start::Output = target.start {
                for n in 0..N {
                    values[n] = F::add_lanes(simd, values[n], out[n]);
                }
            }
            for n in 0..N {
                out[n] = values[n];
            }
        }
    }
}

/// Writes the rows of a tile that is wider than what is left of `C`.
#[inline(always)]
fn store_some<F: Float, S: Simd, const N: usize>(
    simd: S,
    sums: [[F::Lanes<S>; N]; TILE],
    [top, height]: [usize; 2],
    target: &mut Target<'_, F>,
) {
    let lanes = F::lanes::<S>();
    let add = |sum, values: &[F]| F::add_lanes(simd, sum, F::partial_load(simd, values));
    for (i, sums) in sums.iter().enumerate().take(height) {
        for (n, &sum) in sums.iter().enumerate() {
            let columns = n * lanes..target.valid.min((n + 1) * lanes);
            let first = (top + i) * target.stride + target.first;
            let place = first + columns.start..first + columns.end;
            let mut sum = sum;
            if let Some(bias) = target.bias {
                sum = add(sum, &bias[columns]);
            }
            match target.start {
                Start::Nothing => {}
                Start::Output => sum = add(sum, &target.out[place.clone()]),
                Start::Matrix(start) => sum = add(sum, &start[place.clone()]),
            }
            F::partial_store(simd, &mut target.out[place], sum);
        }
    }
}

/// `y = x Wᵀ + b`, on one thread.
///
/// # Shapes
/// `y [N, O]`, `x [N, I]`, `weight [O, I]`, `bias [O]`.
///
/// # Panics
/// If the lengths do not fit.
pub(crate) fn linear<F: Float>(y: &mut [F], x: &[F], weight: &[F], bias: &[F]) {
    let (outputs, inputs) = (bias.len(), weight.len() / bias.len());
    let rows = y.len() / outputs;
    let a = Matrix::new(x, rows, inputs);
    let b = Matrix::new(weight, outputs, inputs).transposed();
    let scratch = &mut vec![F::zero(); scratch_len(inputs, outputs)];
    let (start, bias) = (Start::Nothing, Some(bias));
    simd(Product { out: y, stride: outputs, start, a, b, bias, scratch });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small whole numbers, so that all sums are exact.
    fn numbers<F: Float>(count: usize, seed: usize) -> Vec<F> {
        (0..count).map(|i| F::from_f64(((i * 29 + seed) % 7) as f64 - 3.0)).collect()
    }

    fn products_are_exact<F: Float>([rows, inner, columns]: [usize; 3]) {
        let (a, b) = (numbers::<F>(rows * inner, 1), numbers::<F>(inner * columns, 3));
        let (bias, start) = (numbers::<F>(columns, 5), numbers::<F>(rows * columns, 2));
        let mut scratch = vec![F::nan(); SCRATCH];
        for (by_columns, b_by_columns) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let at = |by_columns: bool, rows: usize, columns: usize, r: usize, c: usize| {
                if by_columns {
                    c * rows + r
                } else {
                    r * columns + c
                }
            };
            let matrix = |values, by_columns, rows, columns| match by_columns {
                false => Matrix::new(values, rows, columns),
                true => Matrix::new(values, columns, rows).transposed(),
            };
            for (starts, with_bias) in [(0, true), (1, false), (2, true)] {
                let mut out = start.clone();
                simd(Product {
                    out: &mut out,
                    stride: columns,
                    start: [Start::Nothing, Start::Output, Start::Matrix(&start)][starts],
                    a: matrix(&a, by_columns, rows, inner),
                    b: matrix(&b, b_by_columns, inner, columns),
                    bias: with_bias.then_some(&bias),
                    scratch: &mut scratch,
                });
                for (i, &found) in out.iter().enumerate() {
                    let (r, c) = (i / columns, i % columns);
                    let mut sum: F = (0..inner)
                        .map(|k| {
                            a[at(by_columns, rows, inner, r, k)]
                                * b[at(b_by_columns, inner, columns, k, c)]
                        })
                        .sum();
                    sum += if starts > 0 { start[i] } else { F::zero() };
                    sum += if with_bias { bias[c] } else { F::zero() };
                    assert_eq!(found, sum, "{rows} {inner} {columns} at {r} {c}");
                }
            }
        }
    }

    #[test]
    fn products_of_all_shapes_and_layouts_are_exact() {
        for shape in [
            [1, 1, 1],
            [2, 3, 2],
            [7, 16, 64],
            [13, 33, 65],
            [6, 400, 17],
            [5, 20, 130],
            [20, 17, 555],
            [9, 800, 40],
        ] {
            products_are_exact::<f32>(shape);
            products_are_exact::<f64>(shape);
        }
    }

    #[test]
    fn a_linear_layer_adds_its_bias() {
        let (x, weight) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.5, -1.0, 2.0, 2.0]);
        let mut y = [9.0f32; 6];
        linear(&mut y, &x, &weight, &[0.0, 10.0, -1.0]);
        assert_eq!(y, [1.0, 8.5, 5.0, 3.0, 7.5, 13.0]);
    }
}
