//! Tiles of a product, summed in registers.

use std::ops::Range;

use pulp::Simd;

use super::{equal_parts, Matrix, Start, STEP, TILE};
use crate::engine::cpu::fetch;
use crate::engine::Float;

/// Columns of `C` that a panel gives.
pub(super) struct Target<'a, F> {
    pub out: &'a mut [F],
    pub stride: usize,
    pub start: Start<'a, F>,
    pub bias: Option<&'a [F]>,
    /// Column that the panel begins at.
    pub first: usize,
    /// Columns of the panel that are not padding.
    pub valid: usize,
}

/// `A` times a panel. What is read `ahead` comes to the cache: of an `A` that lies row by row some
/// other values, of one that lies column by column what follows its values.
#[inline(always)]
pub(super) fn tiles<F: Float, S: Simd, const N: usize>(
    simd: S,
    a: Matrix<'_, F>,
    panel: &[F],
    ahead: &[F],
    target: Target<'_, F>,
) {
    let panel = F::as_lanes::<S>(panel).as_chunks::<N>().0;
    if a.transposed {
        return by_columns::<F, S, N>(simd, a, panel, ahead, target);
    }
    // Few rows are shared among tiles of the same height.
    match equal_parts(a.rows, TILE) {
        1 => by_rows::<F, S, N, 1>(simd, a, panel, ahead, target),
        2..=4 => by_rows::<F, S, N, 4>(simd, a, panel, ahead, target),
        5 => by_rows::<F, S, N, 5>(simd, a, panel, ahead, target),
        _ => by_rows::<F, S, N, TILE>(simd, a, panel, ahead, target),
    }
}

/// Rows of `A` times columns of `B`, both where they lie.
#[inline(always)]
pub(super) fn in_place<F: Float, S: Simd, const N: usize>(
    simd: S,
    a: &Matrix<'_, F>,
    b: &Matrix<'_, F>,
    target: Target<'_, F>,
) {
    match equal_parts(a.rows, TILE) {
        1..=4 => tiles_in_place::<F, S, N, 4>(simd, a, b, target),
        5 => tiles_in_place::<F, S, N, 5>(simd, a, b, target),
        _ => tiles_in_place::<F, S, N, TILE>(simd, a, b, target),
    }
}

#[inline(always)]
fn tiles_in_place<F: Float, S: Simd, const N: usize, const M: usize>(
    simd: S,
    a: &Matrix<'_, F>,
    b: &Matrix<'_, F>,
    mut target: Target<'_, F>,
) {
    let [row, column] = if a.transposed { [1, a.stride] } else { [a.stride, 1] };
    for top in (0..a.rows).step_by(M) {
        let height = M.min(a.rows - top);
        let mut rows = [a.values; M];
        for i in 0..M {
            // Below the last row comes the last row again: its sums are not stored.
            rows[i] = &a.values[(top + i.min(height - 1)) * row..];
        }
        let mut sums = [[F::splat(simd, F::zero()); N]; M];
        for k in 0..b.rows {
            let values = &b.values[k * b.stride + target.first..][..N * F::lanes::<S>()];
            let values = F::as_lanes::<S>(values).as_chunks::<N>().0[0];
            for i in 0..M {
                let value = F::splat(simd, rows[i][k * column]);
                for n in 0..N {
                    sums[i][n] = F::fused_lanes(simd, value, values[n], sums[i][n]);
                }
            }
        }
        store(simd, &sums, [top, height], &mut target);
    }
}

/// Tiles of `M` rows of an `A` that lies row by row.
#[inline(always)]
fn by_rows<F: Float, S: Simd, const N: usize, const M: usize>(
    simd: S,
    a: Matrix<'_, F>,
    panel: &[[F::Lanes<S>; N]],
    ahead: &[F],
    mut target: Target<'_, F>,
) {
    let mut sums = [[F::splat(simd, F::zero()); N]; M];
    let share = ahead.len() / a.rows.div_ceil(M);
    for (i, top) in (0..a.rows).step_by(M).enumerate() {
        let height = M.min(a.rows - top);
        let mut rows = [&a.values[..0]; M];
        for i in 0..M {
            // Below the last row comes the last row again: its sums are not stored.
            rows[i] = &a.values[(top + i.min(height - 1)) * a.stride..][..panel.len()];
        }
        target.fetch(top, height);
        row_sums(simd, rows, panel, &ahead[i * share..][..share], &mut sums);
        store(simd, &sums, [top, height], &mut target);
    }
}

/// `sums[i] = sum over k of rows[i][k] panel[k]`.
#[inline(always)]
fn row_sums<F: Float, S: Simd, const N: usize, const M: usize>(
    simd: S,
    rows: [&[F]; M],
    panel: &[[F::Lanes<S>; N]],
    ahead: &[F],
    sums: &mut [[F::Lanes<S>; N]; M],
) {
    // A local copy stays in registers.
    let mut local = [[F::splat(simd, F::zero()); N]; M];
    let (steps, rest) = panel.as_chunks::<STEP>();
    let mut left = [&rows[0].as_chunks::<STEP>().0[..0]; M];
    for i in 0..M {
        left[i] = &rows[i].as_chunks().0[..steps.len()];
    }
    let (lines, _) = ahead.as_chunks::<STEP>();
    let share = lines.len() / steps.len().max(1);
    for (step, panel) in steps.iter().enumerate() {
        fetch::row(lines[step * share..][..share].as_flattened());
        for k in 0..STEP {
            for i in 0..M {
                let value = F::splat(simd, left[i][step][k]);
                for n in 0..N {
                    local[i][n] = F::fused_lanes(simd, value, panel[k][n], local[i][n]);
                }
            }
        }
    }
    for (k, panel) in rest.iter().enumerate() {
        for i in 0..M {
            let value = F::splat(simd, rows[i][steps.len() * STEP + k]);
            for n in 0..N {
                local[i][n] = F::fused_lanes(simd, value, panel[n], local[i][n]);
            }
        }
    }
    *sums = local;
}

/// Tiles of an `A` that lies column by column.
#[inline(always)]
fn by_columns<F: Float, S: Simd, const N: usize>(
    simd: S,
    a: Matrix<'_, F>,
    panel: &[[F::Lanes<S>; N]],
    ahead: &[F],
    mut target: Target<'_, F>,
) {
    let mut sums = [[F::splat(simd, F::zero()); N]; TILE];
    for top in (0..a.rows).step_by(TILE) {
        let height = TILE.min(a.rows - top);
        target.fetch(top, height);
        let ahead = ahead.get(top..).unwrap_or_default();
        column_sums(simd, &a.values[top..], a.stride, panel, ahead, &mut sums);
        store(simd, &sums, [top, height], &mut target);
    }
}

/// `sums[i] = sum over k of values[k * stride + i] panel[k]`, with a stride of at least a tile.
#[inline(always)]
fn column_sums<F: Float, S: Simd, const N: usize>(
    simd: S,
    values: &[F],
    stride: usize,
    panel: &[[F::Lanes<S>; N]],
    ahead: &[F],
    sums: &mut [[F::Lanes<S>; N]; TILE],
) {
    // A tile may reach beyond the last row, but then not beyond the last column.
    let mut last = [F::zero(); TILE];
    let rest = &values[(panel.len() - 1) * stride..];
    let height = rest.len().min(TILE);
    last[..height].copy_from_slice(&rest[..height]);
    let mut local = [[F::splat(simd, F::zero()); N]; TILE];
    for (k, panel) in panel.iter().enumerate() {
        if let Some(value) = ahead.get(k * stride) {
            fetch::line(value);
        }
        let column = values[k * stride..].first_chunk().unwrap_or(&last);
        for i in 0..TILE {
            let value = F::splat(simd, column[i]);
            for n in 0..N {
                local[i][n] = F::fused_lanes(simd, value, panel[n], local[i][n]);
            }
        }
    }
    *sums = local;
}

impl<F> Target<'_, F> {
    /// Has some rows fetched.
    #[inline(always)]
    fn fetch(&self, top: usize, height: usize) {
        for row in top..top + height {
            fetch::row(&self.out[row * self.stride + self.first..][..self.valid]);
        }
    }
}

/// Writes the rows of a tile.
#[inline(always)]
fn store<F: Float, S: Simd, const N: usize, const M: usize>(
    simd: S,
    sums: &[[F::Lanes<S>; N]; M],
    [top, height]: [usize; 2],
    target: &mut Target<'_, F>,
) {
    let lanes = F::lanes::<S>();
    let width = N * lanes;
    let whole = target.valid == width;
    let bias = target.bias.filter(|_| whole).map(|bias| &F::as_lanes::<S>(bias)[..N]);
    for i in 0..M {
        if i >= height {
            break;
        }
        let place = (top + i) * target.stride + target.first;
        if !whole {
            for n in 0..N {
                let columns = (n * lanes).min(target.valid)..target.valid.min((n + 1) * lanes);
                store_some(simd, sums[i][n], place + columns.start, columns, target);
            }
            continue;
        }
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

/// Writes the values of a vector that belong to some columns of a panel.
#[inline(always)]
fn store_some<F: Float, S: Simd>(
    simd: S,
    mut sum: F::Lanes<S>,
    place: usize,
    columns: Range<usize>,
    target: &mut Target<'_, F>,
) {
    let add = |sum, values: &[F]| F::add_lanes(simd, sum, F::partial_load(simd, values));
    let place = place..place + columns.len();
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
