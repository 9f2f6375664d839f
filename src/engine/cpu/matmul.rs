//! Matrix products `C = A B`, on one thread.
//!
//! A block of `B` is copied into panels a few vectors wide, which lie in the order in which
//! they are read, and stays in the second-level cache while the rows of `A` go past, mostly
//! where they lie. A tile of `C` is summed in registers: for every inner index, each of its
//! rows adds one value of `A` times the vectors of a panel. A `B` that does not change is
//! copied once: where `A` has few rows, the copy takes longer than the product.
//!
//! # Source
//! Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication".

// Loops that count up to a constant, so that they are unrolled and arrays stay in registers.
#![allow(clippy::needless_range_loop, clippy::manual_memcpy)]

mod pack;
mod packed;
mod tile;

use std::ops::Range;

use pulp::{Simd, WithSimd};

pub(super) use self::pack::{panels_len, Pack, PANEL};
pub(super) use self::packed::PackedMatrix;
use self::tile::{Ahead, Target, Tiles};
use super::gelu::Finish;
use super::simd;
use crate::engine::{Float, Write};

/// Most rows of a tile. With four vectors each they leave eight of 32 registers for a row of
/// a panel and a value of `A`, with two vectors four of 16.
const TILE: usize = 6;

/// Most inner indices and columns of a block of `B`, and most rows of `A` that go past it
/// before the next: all of it, and what it is added to, stays in half of a second-level cache
/// of two megabytes. The other half may be somebody else's.
const DEPTH: usize = 384;
const COLUMNS: usize = 384;
const ROWS: usize = 96;

/// Most inner indices where columns of `A` are read where they lie, and most bytes from one to
/// the next, a page: a processor knows the places of so many pages by heart.
const DEPTH_IN_PLACE: usize = 192;
const PAGE: usize = 4096;

/// Inner indices between two computations of addresses, which would take longer than the
/// sums, and rows and columns that are transposed at once.
const STEP: usize = 16;

/// Most values in a row of a panel: four vectors of 16.
const WIDEST: usize = 64;

/// Vectors in a row of a panel.
const fn vectors<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 {
        4
    } else {
        2
    }
}

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

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Its rows, which lie as such.
    pub fn each_row(self) -> impl Iterator<Item = &'a [F]> {
        self.values.chunks(self.stride).take(self.rows).map(move |row| &row[..self.columns])
    }

    /// The same without rows from `rows` on.
    pub fn first_rows(self, rows: usize) -> Self {
        Self { rows: self.rows.min(rows), ..self }
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Some rows, and of those some columns.
    fn part(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        let [outer, inner] = if self.transposed { [&columns, &rows] } else { [&rows, &columns] };
        let values = &self.values[outer.start * self.stride + inner.start..];
        Self { values, rows: rows.len(), columns: columns.len(), ..self }
    }

    /// Rows become columns.
    pub fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, transposed: !self.transposed, ..self }
    }
}

/// The right factor of a product.
#[derive(Clone, Copy)]
pub(super) enum Right<'a, F> {
    /// Copied into panels, block by block.
    Matrix(Matrix<'a, F>),
    /// All of it is in panels. What follows them is fetched with the last.
    Panels(PackedMatrix<'a, F>),
}

impl<'a, F> From<Matrix<'a, F>> for Right<'a, F> {
    fn from(matrix: Matrix<'a, F>) -> Self {
        Self::Matrix(matrix)
    }
}

impl<F> Right<'_, F> {
    fn shape(&self) -> [usize; 2] {
        match *self {
            Self::Matrix(Matrix { rows, columns, .. })
            | Self::Panels(PackedMatrix { rows, columns, .. }) => [rows, columns],
        }
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

impl<F> Start<'_, F> {
    /// What a part of the output is added to, which begins at `place`.
    fn at(self, place: usize) -> Self {
        match self {
            Self::Matrix(values) => Self::Matrix(&values[place..]),
            other => other,
        }
    }
}

impl<F> From<Write> for Start<'_, F> {
    fn from(write: Write) -> Self {
        match write {
            Write::Set => Self::Nothing,
            Write::Add => Self::Output,
        }
    }
}

/// `out = start + a b + bias`, the bias in every row, and what finishes that.
pub(super) struct Product<'a, F> {
    /// Rows that begin every `stride` values.
    pub out: &'a mut [F],
    pub stride: usize,
    pub start: Start<'a, F>,
    pub a: Matrix<'a, F>,
    pub b: Right<'a, F>,
    pub bias: Option<&'a [F]>,
    pub finish: Finish<'a, F>,
    /// [`SCRATCH`] values.
    pub scratch: &'a mut [F],
}

/// Values of scratch memory for a product of rows that lie as such with that many inner
/// indices and columns.
fn scratch_len(inner: usize, columns: usize) -> usize {
    inner.next_multiple_of(STEP).min(DEPTH) * columns.next_multiple_of(WIDEST).min(COLUMNS)
}

/// Values of scratch memory for any product.
pub(super) const SCRATCH: usize = DEPTH * (COLUMNS + ROWS);

impl<F: Float> WithSimd for Product<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match vectors::<S>() {
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, 2>(simd),
        }
    }
}

impl<F: Float> Product<'_, F> {
    /// Multiplies block by block, with panels of up to `N` vectors.
    #[inline(always)]
    fn run<S: Simd, const N: usize>(self, simd: S) {
        let Self { out, stride, start, a, b, bias, finish, scratch } = self;
        let [inner, columns] = b.shape();
        assert_eq!(a.columns, inner, "inner lengths of a product");
        assert!(stride >= columns, "rows of a product overlap");
        let mut output = Output { values: out, stride, is_far: true, start, bias, finish };
        let b = match b {
            Right::Panels(b) => return packed::multiply(simd, a, b, output, scratch),
            Right::Matrix(b) => b,
        };
        let (lanes, widest) = (F::lanes::<S>(), N * F::lanes::<S>());
        let pack = |b, panels: &mut [F]| {
            simd.vectorize(Pack { b, width: widest, multiple: lanes, panels });
        };
        // All of it may be a panel as it lies.
        let is_panel = !b.transposed && b.stride == columns;
        let whole =
            (is_panel && columns <= widest && columns.is_multiple_of(lanes)).then_some(b.values);
        if output.is_plain() && a.rows <= ROWS && inner <= DEPTH && columns <= widest {
            // One panel, and one part of A: the rest would only take time.
            let panel = whole.unwrap_or_else(|| {
                pack(b, &mut *scratch);
                &*scratch
            });
            output.is_far = false;
            let target = output.target(0..a.rows, 0..columns, true, true);
            let nothing = &mut [Ahead::NOTHING; 2];
            return tiles::<F, S, N>(simd, a, panel, (false, nothing), target);
        }
        // Columns of A that go past few panels are read where they lie.
        let in_place = columns <= 2 * widest && a.stride <= PAGE / size_of::<F>();
        let most = if a.transposed && in_place { DEPTH_IN_PLACE } else { DEPTH };
        let depth = equal_parts(inner, most).next_multiple_of(STEP);
        let height = equal_parts(a.rows, ROWS).next_multiple_of(TILE);
        let (block, copy) = scratch.split_at_mut(scratch_len(inner, columns));
        for column in (0..columns).step_by(COLUMNS) {
            let end = columns.min(column + COLUMNS);
            for k in (0..inner).step_by(depth) {
                let deep = depth.min(inner - k);
                if whole.is_none() {
                    pack(b.part(k..k + deep, column..end), &mut *block);
                }
                // The block of B that follows, and the rows of A that go past it first.
                let next = match k + deep {
                    next if next < inner => Some((next, column, end)),
                    _ if end < columns => Some((0, end, columns.min(end + COLUMNS))),
                    _ => None,
                };
                let all = deep * (end - column).div_ceil(widest) * a.rows.div_ceil(TILE);
                let mut ahead = [Ahead::NOTHING; 2];
                if let (Some((k, column, end)), true) = (next, a.transposed) {
                    ahead[0] = Ahead::new(b.part(k..inner.min(k + depth), column..end), all);
                }
                for row in (0..a.rows).step_by(height) {
                    let rows = row..a.rows.min(row + height);
                    let mut part = a.part(rows.clone(), k..k + deep);
                    if a.transposed {
                        if !in_place {
                            part = pack::columns(part, copy);
                        }
                        let work = all / a.rows.div_ceil(height);
                        let follows = match next {
                            _ if rows.end < a.rows => {
                                Some(a.part(rows.end..a.rows.min(rows.end + height), k..k + deep))
                            }
                            Some((k, ..)) => {
                                Some(a.part(0..height.min(a.rows), k..inner.min(k + depth)))
                            }
                            None => None,
                        };
                        ahead[1] = follows.map_or(Ahead::NOTHING, |a| Ahead::new(a, work));
                    }
                    for first in (column..end).step_by(widest) {
                        let columns = first..end.min(first + widest);
                        let width = columns.len().next_multiple_of(lanes);
                        let panel = match whole {
                            Some(values) => &values[k * width..],
                            None => &block[(first - column) * deep..],
                        };
                        let panel = &panel[..width * deep];
                        // In the cache from the first panel on.
                        let rows_ahead = first == column;
                        let last = k + deep == inner;
                        let target = output.target(rows.clone(), columns.clone(), k == 0, last);
                        tiles::<F, S, N>(simd, part, panel, (rows_ahead, &mut ahead), target);
                        if last {
                            output.finish(simd, rows.clone(), columns);
                        }
                    }
                }
            }
        }
    }
}

/// What a product is written to.
struct Output<'a, F> {
    /// Rows that begin every `stride` values.
    values: &'a mut [F],
    stride: usize,
    /// Whether it may not be in the cache.
    is_far: bool,
    start: Start<'a, F>,
    bias: Option<&'a [F]>,
    finish: Finish<'a, F>,
}

impl<F: Float> Output<'_, F> {
    /// Whether sums are not finished.
    fn is_plain(&self) -> bool {
        matches!(self.finish, Finish::Nothing)
    }

    /// A part of it, for the first or the last of the inner indices or others.
    fn target(
        &mut self,
        rows: Range<usize>,
        columns: Range<usize>,
        is_first: bool,
        is_last: bool,
    ) -> Target<'_, F> {
        let place = rows.start * self.stride;
        let beside = if is_last { self.finish.beside() } else { &[] };
        Target {
            out: &mut self.values[place..],
            stride: self.stride,
            is_far: self.is_far,
            start: if is_first { self.start.at(place) } else { Start::Output },
            bias: self.bias.filter(|_| is_first).map(|bias| &bias[columns.clone()]),
            beside: beside.get(place..).unwrap_or_default(),
            first: columns.start,
            valid: columns.len(),
        }
    }

    /// Finishes a part that has been summed.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, rows: Range<usize>, columns: Range<usize>) {
        if !self.is_plain() {
            let Self { values: out, stride, finish, .. } = self;
            simd.vectorize(FinishPart { finish, rows, columns, out, stride: *stride });
        }
    }
}

/// `A` times a panel. Those that are not whole have fewer vectors than `N`.
#[inline(always)]
fn tiles<F: Float, S: Simd, const N: usize>(
    simd: S,
    a: Matrix<'_, F>,
    panel: &[F],
    (rows_ahead, ahead): (bool, &mut [Ahead<'_, F>; 2]),
    target: Target<'_, F>,
) {
    match target.valid.div_ceil(F::lanes::<S>()) {
        1 => simd.vectorize(Tiles::<F, 1> { a, panel, rows_ahead, ahead, target }),
        2 => simd.vectorize(Tiles::<F, 2> { a, panel, rows_ahead, ahead, target }),
        3 if N == 4 => simd.vectorize(Tiles::<F, 3> { a, panel, rows_ahead, ahead, target }),
        4 if N == 4 => simd.vectorize(Tiles::<F, 4> { a, panel, rows_ahead, ahead, target }),
        more => unreachable!("a panel of {more} vectors"),
    }
}

/// Finishes a part of the output.
struct FinishPart<'a, 'b, F> {
    finish: &'a mut Finish<'b, F>,
    rows: Range<usize>,
    columns: Range<usize>,
    out: &'a mut [F],
    stride: usize,
}

impl<F: Float> WithSimd for FinishPart<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for row in self.rows {
            let place = row * self.stride + self.columns.start;
            self.finish.row::<S>(place, &mut self.out[place..][..self.columns.len()]);
        }
    }
}

/// Length of the parts of a length, none longer than `most`.
fn equal_parts(length: usize, most: usize) -> usize {
    length.div_ceil(length.div_ceil(most).max(1)).max(1)
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
    let b = Matrix::new(weight, outputs, inputs).transposed().into();
    let scratch = &mut vec![F::zero(); scratch_len(inputs, outputs)];
    let (start, bias, finish) = (Start::Nothing, Some(bias), Finish::Nothing);
    simd(Product { out: y, stride: outputs, start, a, b, bias, finish, scratch });
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
                let right = matrix(&b, b_by_columns, inner, columns);
                let mut values = vec![F::nan(); panels_len(inner, columns)];
                simd(Pack { b: right, width: PANEL, multiple: PANEL, panels: &mut values });
                let panels = PackedMatrix { values: &values, rows: inner, columns };
                let mut out = Vec::new();
                let mut product = |b| {
                    out.clone_from(&start);
                    simd(Product {
                        out: &mut out,
                        stride: columns,
                        start: [Start::Nothing, Start::Output, Start::Matrix(&start)][starts],
                        a: matrix(&a, by_columns, rows, inner),
                        b,
                        bias: with_bias.then_some(&bias),
                        finish: Finish::Nothing,
                        scratch: &mut scratch,
                    });
                    out.clone()
                };
                let out = product(right.into());
                if !by_columns {
                    assert_eq!(
                        out,
                        product(Right::Panels(panels)),
                        "{rows} {inner} {columns} from panels"
                    );
                }
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
            [3, 31, 129],
            [28, 400, 200],
            [20, 20, 32],
            [9, 33, 112],
            // Several parts of A, read where they lie, and copied as they lie too far apart.
            [200, 400, 80],
            [1100, 200, 70],
        ] {
            products_are_exact::<f32>(shape);
            products_are_exact::<f64>(shape);
        }
    }

    #[test]
    fn products_of_few_rows_are_exact_on_every_instruction_set() {
        crate::engine::cpu::on_each_instruction_set(|_| {
            for rows in (1..34).chain([57, 85, 113, 120]) {
                products_are_exact::<f32>([rows, 21, 70]);
                products_are_exact::<f64>([rows, 18, 33]);
            }
            // Transposed rows that the scratch memory does not hold.
            products_are_exact::<f32>([40, 4200, 19]);
        });
    }

    #[test]
    fn a_linear_layer_adds_its_bias() {
        let (x, weight) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.5, -1.0, 2.0, 2.0]);
        let mut y = [9.0f32; 6];
        linear(&mut y, &x, &weight, &[0.0, 10.0, -1.0]);
        assert_eq!(y, [1.0, 8.5, 5.0, 3.0, 7.5, 13.0]);
    }
}
