//! The inner loops of a convolution: tiles of sums that stay in registers.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "loops over registers, which are unrolled")]

use pulp::{Simd, WithSimd};

use super::lanes::Value;

/// Rows of a matrix in blocks, each transposed, as [`product`] reads them.
pub(super) struct Rows<E> {
    blocks: Vec<Block>,
    values: Vec<E>,
    columns: usize,
}

/// Up to eight rows.
struct Block {
    rows: usize,
    /// Of `values`.
    start: usize,
    /// Value that a row starts from.
    initial: usize,
    /// Where a row is written.
    targets: [usize; 8],
}

impl<E: Value> Rows<E> {
    /// `groups` of rows, each cut into blocks by itself: the place that a row
    /// is written to, and its values.
    pub fn new<I>(columns: usize, groups: impl IntoIterator<Item = Vec<(usize, I)>>) -> Self
    where
        I: IntoIterator<Item = E>,
    {
        let mut packed = Self { blocks: Vec::new(), values: Vec::new(), columns };
        let mut initial = 0;
        for group in groups {
            let mut group = group.into_iter();
            while group.len() > 0 {
                let rows = [8, 4, 2, 1].into_iter().find(|&n| n <= group.len()).unwrap_or(1);
                let start = packed.values.len();
                packed.values.resize(start + rows * columns, E::default());
                let mut targets = [0; 8];
                for (r, (target, row)) in group.by_ref().take(rows).enumerate() {
                    targets[r] = target;
                    for (j, value) in row.into_iter().take(columns).enumerate() {
                        packed.values[start + j * rows + r] = value;
                    }
                }
                packed.blocks.push(Block { rows, start, initial, targets });
                initial += rows;
            }
        }
        packed
    }

    /// One past the last value that a row is written to, `positions` long.
    fn target_end(&self) -> usize {
        let targets = self.blocks.iter().flat_map(|block| &block.targets[..block.rows]);
        targets.copied().max().unwrap_or(0)
    }
}

/// `target[row + p] = initial[row] + Σ_j rows[row][j] source[sources[j] + p]`
/// for `p` in `0..positions`, or added to what `target` holds.
///
/// Whole vectors are read and written, up to `MAX_LANES - 1` values more.
#[derive(Clone, Copy)]
pub(super) struct Product<'a, E> {
    pub rows: &'a Rows<E>,
    pub sources: &'a [usize],
    pub positions: usize,
    /// One for each row, or empty to add.
    pub initial: &'a [E],
}

impl<E: Value> Product<'_, E> {
    /// # Panics
    /// If a slice is too short.
    #[inline(always)]
    pub fn run<S: Simd>(self, simd: S, source: &[E], target: &mut [E]) {
        let vectors = self.positions.div_ceil(E::lanes::<S>());
        let reach = vectors * E::lanes::<S>();
        let last = self.sources.iter().copied().max().unwrap_or(0);
        assert!(self.sources.len() == self.rows.columns, "a source for each column");
        assert!(last + reach <= source.len(), "vectors within the source");
        assert!(self.rows.target_end() + reach <= target.len(), "vectors within the target");
        let rows = self.rows.blocks.last().map_or(0, |block| block.initial + block.rows);
        let add = self.initial.is_empty();
        assert!(add || self.initial.len() == rows, "an initial value for each row");
        let mut vector = 0;
        while vector < vectors {
            let count = match vectors - vector {
                1 => 1,
                2 | 4 => 2,
                _ => 3,
            };
            let shift = vector * E::lanes::<S>();
            for block in &self.rows.blocks {
                // SAFETY: the assertions above keep `sources[j] + shift` and
                // `targets[r] + shift`, with `count` vectors from there, within
                // the slices. A block holds `rows * columns` values, in both
                // halves of it too.
                unsafe {
                    let source = source.as_ptr().add(shift);
                    let target = target.as_mut_ptr().add(shift);
                    match (add, count) {
                        (false, 1) => self.block::<S, 1, false>(simd, block, source, target),
                        (false, 2) => self.block::<S, 2, false>(simd, block, source, target),
                        (false, _) => self.block::<S, 3, false>(simd, block, source, target),
                        (true, 1) => self.block::<S, 1, true>(simd, block, source, target),
                        (true, 2) => self.block::<S, 2, true>(simd, block, source, target),
                        (true, _) => self.block::<S, 3, true>(simd, block, source, target),
                    }
                }
            }
            vector += count;
        }
    }

    /// `V` vectors of each row of a block.
    ///
    /// # Safety
    /// `sources[j]` from `source` on and `targets[r]` from `target` on there
    /// must be `V` vectors.
    #[inline(always)]
    unsafe fn block<S: Simd, const V: usize, const ADD: bool>(
        &self,
        simd: S,
        block: &Block,
        source: *const E,
        target: *mut E,
    ) {
        match block.rows {
            1 => self.tile::<S, 1, V, ADD>(simd, block, 0, source, target),
            2 => self.tile::<S, 2, V, ADD>(simd, block, 0, source, target),
            4 => self.tile::<S, 4, V, ADD>(simd, block, 0, source, target),
            // Eight rows of three vectors need more than 16 registers.
            _ if S::REGISTER_COUNT < 32 => {
                self.tile::<S, 4, V, ADD>(simd, block, 0, source, target);
                self.tile::<S, 4, V, ADD>(simd, block, 4, source, target);
            }
            _ => self.tile::<S, 8, V, ADD>(simd, block, 0, source, target),
        }
    }

    /// `R` rows of a block from row `first` on, `V` vectors of each.
    ///
    /// # Safety
    /// As of [`block`](Self::block); the block must have these rows.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const V: usize, const ADD: bool>(
        &self,
        simd: S,
        block: &Block,
        first: usize,
        source: *const E,
        target: *mut E,
    ) {
        let lanes = E::lanes::<S>();
        let mut weights = self.rows.values.as_ptr().add(block.start + first);
        let mut sums = [[E::splat(simd, E::default()); V]; R];
        if !ADD {
            for r in 0..R {
                sums[r] = [E::splat(simd, self.initial[block.initial + first + r]); V];
            }
        }
        for &offset in self.sources {
            let mut x = [E::splat(simd, E::default()); V];
            for v in 0..V {
                x[v] = load(simd, source.add(offset + v * lanes));
            }
            for r in 0..R {
                let weight = E::splat(simd, *weights.add(r));
                for v in 0..V {
                    sums[r][v] = E::multiply_add(simd, weight, x[v], sums[r][v]);
                }
            }
            weights = weights.add(block.rows);
        }
        for r in 0..R {
            let target = target.add(block.targets[first + r]);
            for v in 0..V {
                let target = target.add(v * lanes);
                let old = if ADD { load(simd, target) } else { E::splat(simd, E::default()) };
                let sum = if ADD { E::plus(simd, old, sums[r][v]) } else { sums[r][v] };
                target.cast::<E::Vector<S>>().write_unaligned(sum);
            }
        }
    }
}

/// # Safety
/// A vector must lie there.
#[inline(always)]
unsafe fn load<E: Value, S: Simd>(_: S, from: *const E) -> E::Vector<S> {
    from.cast::<E::Vector<S>>().read_unaligned()
}

/// `sums[row * columns + column] += Σ_image Σ_p left[row * left_row + p]
/// right[columns[column] + p]` for `p` in `0..positions`; images lie
/// `left_image` and `right_image` apart.
///
/// Whole vectors are read; `left` must be zero beyond `positions`.
#[derive(Clone, Copy)]
pub(super) struct Correlation<'a> {
    pub images: usize,
    pub rows: usize,
    pub columns: &'a [usize],
    pub positions: usize,
    pub left_row: usize,
    pub left_image: usize,
    pub right_image: usize,
}

impl Correlation<'_> {
    /// # Panics
    /// If a slice is too short.
    #[inline(always)]
    pub fn run<E: Value, S: Simd>(self, simd: S, left: &[E], right: &[E], sums: &mut [E]) {
        let reach = self.positions.next_multiple_of(E::lanes::<S>());
        if self.images == 0 || self.rows == 0 || self.columns.is_empty() {
            return;
        }
        let last_image = self.images - 1;
        let left_end = last_image * self.left_image + (self.rows - 1) * self.left_row + reach;
        let last_column = self.columns.iter().copied().max().unwrap_or(0);
        let right_end = last_image * self.right_image + last_column + reach;
        assert!(left_end <= left.len() && right_end <= right.len(), "vectors within both sides");
        assert_eq!(sums.len(), self.rows * self.columns.len(), "length of the sums");
        let most = if S::REGISTER_COUNT < 32 { 4 } else { 8 };
        let mut row = 0;
        while row < self.rows {
            let count = [8, 4, 2, 1].into_iter().find(|&n| n <= most.min(self.rows - row));
            let count = count.unwrap_or(1);
            // SAFETY: `row + count` rows are within `left` and the columns
            // within `right`, by the assertions above.
            unsafe {
                match count {
                    1 => self.rows::<E, S, 1>(simd, row, left, right, sums),
                    2 => self.rows::<E, S, 2>(simd, row, left, right, sums),
                    4 => self.rows::<E, S, 4>(simd, row, left, right, sums),
                    _ => self.rows::<E, S, 8>(simd, row, left, right, sums),
                }
            }
            row += count;
        }
    }

    /// # Safety
    /// [`run`](Self::run) must have checked the sizes, and `R` rows be left.
    #[inline(always)]
    unsafe fn rows<E: Value, S: Simd, const R: usize>(
        &self,
        simd: S,
        row: usize,
        left: &[E],
        right: &[E],
        sums: &mut [E],
    ) {
        let mut column = 0;
        while column < self.columns.len() {
            let count = (self.columns.len() - column).min(3);
            match count {
                1 => self.tile::<E, S, R, 1>(simd, row, column, left, right, sums),
                2 => self.tile::<E, S, R, 2>(simd, row, column, left, right, sums),
                _ => self.tile::<E, S, R, 3>(simd, row, column, left, right, sums),
            }
            column += count;
        }
    }

    /// # Safety
    /// As of [`rows`](Self::rows), and `C` columns must be left.
    #[inline(always)]
    unsafe fn tile<E: Value, S: Simd, const R: usize, const C: usize>(
        &self,
        simd: S,
        row: usize,
        column: usize,
        left: &[E],
        right: &[E],
        sums: &mut [E],
    ) {
        let left = left.as_ptr().add(row * self.left_row);
        let right = right.as_ptr();
        // A function of its own, for what surrounds it would take registers.
        let tile = simd.vectorize(Tile::<E, R, C> { sizes: self, column, left, right });
        for (r, tile) in tile.iter().enumerate() {
            for (c, &value) in tile.iter().enumerate() {
                sums[(row + r) * self.columns.len() + column + c] += value;
            }
        }
    }
}

/// `R` rows and `C` columns of a correlation.
struct Tile<'a, E, const R: usize, const C: usize> {
    sizes: &'a Correlation<'a>,
    column: usize,
    left: *const E,
    right: *const E,
}

impl<E: Value, const R: usize, const C: usize> WithSimd for Tile<'_, E, R, C> {
    type Output = [[E; C]; R];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [[E; C]; R] {
        let lanes = E::lanes::<S>();
        let row = self.sizes.left_row;
        let vectors = self.sizes.positions.div_ceil(lanes);
        let mut tile = [[E::splat(simd, E::default()); C]; R];
        for image in 0..self.sizes.images {
            // SAFETY: `Correlation::run` has checked the last vector of the
            // last row and column of the last image.
            unsafe {
                let left = self.left.add(image * self.sizes.left_image);
                let right = self.right.add(image * self.sizes.right_image);
                let mut rights = [right; C];
                for c in 0..C {
                    rights[c] = right.add(self.sizes.columns[self.column + c]);
                }
                for i in 0..vectors {
                    let mut b = [E::splat(simd, E::default()); C];
                    for c in 0..C {
                        b[c] = load(simd, rights[c].add(i * lanes));
                    }
                    for r in 0..R {
                        let a = load(simd, left.add(r * row + i * lanes));
                        for c in 0..C {
                            tile[r][c] = E::multiply_add(simd, a, b[c], tile[r][c]);
                        }
                    }
                }
            }
        }
        let mut sums = [[E::default(); C]; R];
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = E::total(simd, tile[r][c]);
            }
        }
        sums
    }
}

/// The sum of all values, in the order of vectors.
#[inline(always)]
pub(super) fn sum<E: Value, S: Simd>(simd: S, values: &[E]) -> E {
    let mut sums = E::splat(simd, E::default());
    for values in values.chunks(E::lanes::<S>()) {
        sums = E::plus(simd, sums, E::load_part(simd, values));
    }
    E::total(simd, sums)
}

/// Copies a row, which may be short: a call of `memmove` would take as long.
#[inline(always)]
pub(super) fn copy<E: Value, S: Simd>(simd: S, from: &[E], to: &mut [E]) {
    let lanes = E::lanes::<S>();
    for (from, to) in from.chunks(lanes).zip(to.chunks_mut(lanes)) {
        E::store_part(simd, to, E::load_part(simd, from));
    }
}

/// Adds a row to another.
#[inline(always)]
pub(super) fn add<E: Value, S: Simd>(simd: S, from: &[E], to: &mut [E]) {
    let lanes = E::lanes::<S>();
    for (from, to) in from.chunks(lanes).zip(to.chunks_mut(lanes)) {
        let sum = E::plus(simd, E::load_part(simd, from), E::load_part(simd, to));
        E::store_part(simd, to, sum);
    }
}
