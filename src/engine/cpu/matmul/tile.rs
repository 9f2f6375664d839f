//! Tiles of a product, summed in registers.

use std::ops::Range;

use pulp::Simd;

use super::{equal_parts, Matrix, Start, PACKED_TILE, STEP, TILE};
use crate::engine::Float;

/// Some rows of `A`, and inner indices from `k` on.
#[derive(Clone, Copy)]
pub(super) struct Left<'a, F> {
    pub a: Matrix<'a, F>,
    pub k: usize,
    pub rows: [usize; 2],
    /// Where `A` lies column by column: a copy, tile by tile.
    pub packed: &'a [F],
}

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

/// Rows of `A` times a panel. Meanwhile what is read `ahead` comes to the cache.
#[inline(always)]
pub(super) fn tiles<F: Float, S: Simd, const N: usize>(
    simd: S,
    left: Left<'_, F>,
    panel: &[F],
    ahead: &[F],
    mut target: Target<'_, F>,
) {
    let Left { a, rows: [first, end], packed, .. } = left;
    let panel = F::as_lanes::<S>(panel).as_chunks::<N>().0;
    if !a.transposed {
        // Few rows are shared among tiles of the same height.
        return match equal_parts(end - first, TILE) {
            1 => by_rows::<F, S, N, 1>(simd, left, panel, ahead, target),
            2..=4 => by_rows::<F, S, N, 4>(simd, left, panel, ahead, target),
            5 => by_rows::<F, S, N, 5>(simd, left, panel, ahead, target),
            _ => by_rows::<F, S, N, TILE>(simd, left, panel, ahead, target),
        };
    }
    let mut sums = [[F::splat(simd, F::zero()); N]; TILE];
    let columns = packed.chunks_exact(PACKED_TILE * panel.len());
    for (top, columns) in (first..end).step_by(TILE).zip(columns) {
        tile(simd, ByColumns(columns.as_chunks().0), panel, &[], &mut sums);
        store(simd, &sums, [top, TILE.min(end - top)], &mut target);
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

/// Tiles of `M` rows that lie as such.
#[inline(always)]
fn by_rows<F: Float, S: Simd, const N: usize, const M: usize>(
    simd: S,
    left: Left<'_, F>,
    panel: &[[F::Lanes<S>; N]],
    ahead: &[F],
    mut target: Target<'_, F>,
) {
    let Left { a, k, rows: [first, end], .. } = left;
    let mut sums = [[F::splat(simd, F::zero()); N]; M];
    let share = ahead.len() / (end - first).div_ceil(M);
    for (i, top) in (first..end).step_by(M).enumerate() {
        let height = M.min(end - top);
        let mut rows = [&a.values[..0]; M];
        for i in 0..M {
            // Below the last row comes the last row again: its sums are not stored.
            let row = top + i.min(height - 1);
            rows[i] = &a.values[row * a.stride + k..][..panel.len()];
        }
        tile(simd, ByRows(rows), panel, &ahead[i * share..][..share], &mut sums);
        store(simd, &sums, [top, height], &mut target);
    }
}

/// The values of `A` that a tile is made from.
trait Factor<F, const M: usize>: Copy {
    /// Addresses for whole steps.
    type Steps: Copy;
    fn steps(self, count: usize) -> Self::Steps;
    /// Inner index `step * STEP + k`.
    fn in_step(steps: Self::Steps, step: usize, k: usize, row: usize) -> F;
    fn get(self, k: usize, row: usize) -> F;
}

#[derive(Clone, Copy)]
struct ByRows<'a, F, const M: usize>([&'a [F]; M]);

impl<'a, F: Copy, const M: usize> Factor<F, M> for ByRows<'a, F, M> {
    type Steps = [&'a [[F; STEP]]; M];

    #[inline(always)]
    fn steps(self, count: usize) -> Self::Steps {
        let mut steps = [&self.0[0].as_chunks::<STEP>().0[..0]; M];
        for i in 0..M {
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

impl<'a, F: Copy> Factor<F, TILE> for ByColumns<'a, F> {
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
fn tile<F: Float, S: Simd, const N: usize, const M: usize, A: Factor<F, M>>(
    simd: S,
    a: A,
    panel: &[[F::Lanes<S>; N]],
    ahead: &[F],
    sums: &mut [[F::Lanes<S>; N]; M],
) {
    // A local copy stays in registers.
    let mut local = [[F::splat(simd, F::zero()); N]; M];
    let (steps, rest) = panel.as_chunks::<STEP>();
    let left = a.steps(steps.len());
    let (lines, _) = ahead.as_chunks::<STEP>();
    let share = lines.len() / steps.len().max(1);
    for (step, panel) in steps.iter().enumerate() {
        for line in &lines[step * share..][..share] {
            prefetch(line);
        }
        for k in 0..STEP {
            for i in 0..M {
                let value = F::splat(simd, A::in_step(left, step, k, i));
                for n in 0..N {
                    local[i][n] = F::fused_lanes(simd, value, panel[k][n], local[i][n]);
                }
            }
        }
    }
    for (k, panel) in rest.iter().enumerate() {
        for i in 0..M {
            let value = F::splat(simd, a.get(steps.len() * STEP + k, i));
            for n in 0..N {
                local[i][n] = F::fused_lanes(simd, value, panel[n], local[i][n]);
            }
        }
    }
    *sums = local;
}

/// Has a line of the second-level cache fetched, where the compiler can ask for that.
#[inline(always)]
#[allow(unsafe_code)]
fn prefetch<F>(line: &[F; STEP]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
        // SAFETY: the instruction is part of every x86-64, and changes nothing but caches.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
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
