//! Tiles of a product, summed in registers.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::{Matrix, Start, STEP, TILE};
use crate::engine::cpu::{fetch, LANES};
use crate::engine::Float;

/// Columns of `C` that a panel gives.
pub(super) struct Target<'a, F> {
    pub out: &'a mut [F],
    pub stride: usize,
    /// Whether it may not be in the cache.
    pub is_far: bool,
    pub start: Start<'a, F>,
    pub bias: Option<&'a [F]>,
    /// What is read or written in the same places afterwards; may be empty.
    pub beside: &'a [F],
    /// Column that the panel begins at.
    pub first: usize,
    /// Columns of the panel that are not padding.
    pub valid: usize,
}

/// Lines of a matrix that are fetched one after the other, evenly over some work.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a, F> {
    rows: &'a [F],
    stride: usize,
    width: usize,
    /// Of the next line, in the first of the rows.
    column: usize,
    /// Lines for every [`STEP`] inner indices of a tile.
    pace: usize,
}

impl<'a, F> Ahead<'a, F> {
    pub const NOTHING: Self = Self { rows: &[], stride: 1, width: 0, column: 0, pace: 0 };

    /// A matrix, while tiles go through some inner indices in all.
    pub fn new(matrix: Matrix<'a, F>, inner_indices: usize) -> Self {
        let Matrix { values: rows, stride, .. } = matrix;
        let [count, width] = match matrix.transposed {
            true => [matrix.columns, matrix.rows],
            false => [matrix.rows, matrix.columns],
        };
        let rows = &rows[..rows.len().min(count * stride)];
        let pace = (count * width.div_ceil(LANES)).div_ceil((inner_indices / STEP).max(1));
        Self { rows, stride, width, column: 0, pace }
    }

    #[inline(always)]
    fn step(&mut self) {
        for _ in 0..self.pace {
            if let Some(value) = self.rows.get(self.column) {
                fetch::line(value);
            }
            self.column += LANES;
            if self.column >= self.width {
                self.column = 0;
                self.rows = self.rows.get(self.stride..).unwrap_or_default();
            }
        }
    }
}

/// `A` times a panel of `N` vectors. A function of its own, so that its loops get all registers.
pub(super) struct Tiles<'a, 'b, F, const N: usize> {
    pub a: Matrix<'a, F>,
    pub panel: &'a [F],
    /// Whether the rows of `A` that follow each tile are fetched meanwhile, where they lie as such.
    pub rows_ahead: bool,
    /// What is fetched meanwhile, where `A` lies column by column.
    pub ahead: &'a mut [Ahead<'b, F>; 2],
    pub target: Target<'a, F>,
}

impl<F: Float, const N: usize> WithSimd for Tiles<'_, '_, F, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let tiles = self.a.rows.div_ceil(TILE);
        let mut top = 0;
        for tile in 0..tiles {
            // No row is computed in vain: tiles are of two heights where they cannot be equal.
            let height = (self.a.rows - top).div_ceil(tiles - tile);
            match height {
                1 => self.tile::<S, 1>(simd, top),
                2 => self.tile::<S, 2>(simd, top),
                3 => self.tile::<S, 3>(simd, top),
                4 => self.tile::<S, 4>(simd, top),
                5 => self.tile::<S, 5>(simd, top),
                TILE => self.tile::<S, TILE>(simd, top),
                more => unreachable!("a tile of {more} rows"),
            }
            top += height;
        }
    }
}

impl<F: Float, const N: usize> Tiles<'_, '_, F, N> {
    /// A tile of `M` rows from `top`.
    #[inline(always)]
    fn tile<S: Simd, const M: usize>(&mut self, simd: S, top: usize) {
        self.target.fetch(top..top + M);
        let mut sums = [[F::splat(simd, F::zero()); N]; M];
        if self.a.transposed {
            self.column_sums(simd, top, &mut sums);
        } else {
            self.row_sums(simd, top, &mut sums);
        }
        store(simd, &sums, top..top + M, &mut self.target);
    }

    /// `sums[i] = sum over k of A[top + i, k] panel[k]`, where `A` lies row by row.
    #[inline(always)]
    fn row_sums<S: Simd, const M: usize>(
        &self,
        simd: S,
        top: usize,
        sums: &mut [[F::Lanes<S>; N]; M],
    ) {
        let deep = self.a.columns;
        let mut rows = [&self.a.values[..0]; M];
        let mut steps = [&rows[0].as_chunks::<STEP>().0[..0]; M];
        for i in 0..M {
            rows[i] = &self.a.values[(top + i) * self.a.stride..][..deep];
            steps[i] = rows[i].as_chunks().0;
        }
        let count = deep / STEP;
        let follows = match self.rows_ahead {
            true => self.a.values.get((top + M) * self.a.stride..).unwrap_or_default(),
            false => &[],
        };
        // A local copy stays in registers.
        let mut local = *sums;
        let panel = F::as_lanes::<S>(self.panel).as_chunks::<N>().0;
        let (panels, rest) = panel[..deep].as_chunks::<STEP>();
        for (step, panel) in panels.iter().enumerate() {
            if !follows.is_empty() {
                for i in 0..M {
                    if let Some(value) = follows.get(i * self.a.stride + step * STEP) {
                        fetch::line(value);
                    }
                }
            }
            for k in 0..STEP {
                for i in 0..M {
                    let value = F::splat(simd, steps[i][step][k]);
                    for n in 0..N {
                        local[i][n] = F::fused_lanes(simd, value, panel[k][n], local[i][n]);
                    }
                }
            }
        }
        for (k, panel) in rest.iter().enumerate() {
            for i in 0..M {
                let value = F::splat(simd, rows[i][count * STEP + k]);
                for n in 0..N {
                    local[i][n] = F::fused_lanes(simd, value, panel[n], local[i][n]);
                }
            }
        }
        *sums = local;
    }

    /// The same, where `A` lies column by column.
    #[inline(always)]
    fn column_sums<S: Simd, const M: usize>(
        &mut self,
        simd: S,
        top: usize,
        sums: &mut [[F::Lanes<S>; N]; M],
    ) {
        let stride = self.a.stride;
        let values = &self.a.values[top..];
        let panel = F::as_lanes::<S>(self.panel).as_chunks::<N>().0;
        let mut local = *sums;
        let (panels, rest) = panel[..self.a.columns].as_chunks::<STEP>();
        let count = panels.len();
        for (step, panel) in panels.iter().enumerate() {
            for ahead in &mut *self.ahead {
                ahead.step();
            }
            let values = &values[step * STEP * stride..];
            for k in 0..STEP {
                let column = &values[k * stride..][..M];
                for i in 0..M {
                    let value = F::splat(simd, column[i]);
                    for n in 0..N {
                        local[i][n] = F::fused_lanes(simd, value, panel[k][n], local[i][n]);
                    }
                }
            }
        }
        for (k, panel) in rest.iter().enumerate() {
            let column = &values[(count * STEP + k) * stride..][..M];
            for i in 0..M {
                let value = F::splat(simd, column[i]);
                for n in 0..N {
                    local[i][n] = F::fused_lanes(simd, value, panel[n], local[i][n]);
                }
            }
        }
        *sums = local;
    }
}

impl<F> Target<'_, F> {
    /// Has some rows fetched, and what is beside them, where they are far.
    #[inline(always)]
    pub(super) fn fetch(&self, rows: Range<usize>) {
        if !self.is_far {
            return;
        }
        for row in rows {
            let place = row * self.stride + self.first;
            fetch::row(&self.out[place..][..self.valid]);
            fetch::row(self.beside.get(place..place + self.valid).unwrap_or_default());
        }
    }
}

/// Writes the rows of a tile, but for those that are padding.
#[inline(always)]
pub(super) fn store<F: Float, S: Simd, const N: usize, const M: usize>(
    simd: S,
    sums: &[[F::Lanes<S>; N]; M],
    rows: Range<usize>,
    target: &mut Target<'_, F>,
) {
    let lanes = F::lanes::<S>();
    let width = N * lanes;
    let whole = target.valid == width;
    let bias = target.bias.filter(|_| whole).map(|bias| &F::as_lanes::<S>(bias)[..N]);
    for i in 0..M {
        if i == rows.len() {
            break;
        }
        let place = (rows.start + i) * target.stride + target.first;
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
