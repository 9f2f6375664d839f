//! Products with weights that were packed once.
//!
//! One sample has so few rows that reading the weights takes as long as multiplying them. Tiles
//! therefore have as many rows as registers have room for, mostly of two vectors, so that a value
//! of `A` is read for two sums; the tiles of some rows read two panels of `B` in the order in which
//! they lie, while the panels that follow are fetched at the same pace. The values of `A` are
//! transposed, so that those for one inner index lie together.

// Loops that count up to a constant, so that they are unrolled and arrays stay in registers.
#![allow(clippy::needless_range_loop)]

use pulp::{Simd, WithSimd};

use super::pack::{columns_of_rows, PANEL};
use super::tile::{store, Target};
use super::{equal_parts, Matrix, Output, SCRATCH, STEP};
use crate::engine::cpu::fetch;
use crate::engine::Float;

/// Inner indices between two computations of addresses, which would take the place of sums.
const UNROLL: usize = 4;

/// Tiles that share a panel while it is in the cache, at most.
const TILES: usize = 5;

/// Rows that are few: more than two tiles of two vectors read panels too often for them.
const FEW: usize = 64;

/// Most inner indices of panels that tiles share.
const DEPTH: usize = 1536;

/// Inner indices between a row of a panel that is read and one that is fetched, where a panel is
/// read once. A single row goes past so fast that a processor fetches better itself.
const AHEAD: usize = 128;

/// A matrix in panels of [`PANEL`] columns, made by [`Pack`](super::Pack), with all that follows
/// it.
#[derive(Clone, Copy)]
pub(in crate::engine::cpu) struct PackedMatrix<'a, F> {
    pub values: &'a [F],
    pub rows: usize,
    pub columns: usize,
}

impl<'a, F> PackedMatrix<'a, F> {
    /// The panel of a column, from an inner index on.
    fn at(self, column: usize, from: usize) -> &'a [F] {
        self.values.get(column * self.rows + from * PANEL..).unwrap_or_default()
    }
}

/// How some rows are divided.
struct Tiling {
    /// Rows of a tile.
    height: usize,
    tiles: usize,
    /// Values of a transposed tile of `A` for one inner index.
    width: usize,
    /// Panels that a tile takes at a time.
    group: usize,
}

impl Tiling {
    /// Most rows of a tile of some vectors: a row of the panels and a value of `A` need registers,
    /// too.
    fn highest<S: Simd>(vectors: usize) -> usize {
        ((S::REGISTER_COUNT - 1) / vectors).saturating_sub(1).max(1)
    }

    /// Most rows of a tile where there are that many rows in all.
    fn most<F: Float, S: Simd>(rows: usize) -> usize {
        let panel = PANEL / F::lanes::<S>();
        let two = Self::highest::<S>(panel.max(2));
        if rows <= 2 * two || rows > FEW {
            two
        } else {
            Self::highest::<S>(panel)
        }
    }

    /// Divides some rows into tiles of at most so many.
    fn new<F: Float, S: Simd>(rows: usize, most: usize) -> Self {
        let height = equal_parts(rows, most);
        // Each height is a function of its own, so there are no odd ones beyond some.
        let height = if height > 14 { height.next_multiple_of(2) } else { height };
        let tiles = rows.div_ceil(height);
        let width = if height > 1 { height.next_multiple_of(STEP) } else { 1 };
        let each = PANEL / F::lanes::<S>();
        // Where rows are few, there are registers for several panels.
        let mut group = 1;
        while 2 * group * each <= 4 && height <= Self::highest::<S>(2 * group * each) {
            group *= 2;
        }
        Self { height, tiles, width, group }
    }
}

/// `A B`, added to what the output starts with.
#[inline(always)]
pub(super) fn multiply<F: Float, S: Simd>(
    simd: S,
    a: Matrix<'_, F>,
    b: PackedMatrix<'_, F>,
    mut output: Output<'_, F>,
    scratch: &mut [F],
) {
    assert!(!a.transposed, "rows of activations lie as such");
    // The output of few rows stays in the cache.
    output.is_far = a.rows > FEW;
    let most = Tiling::most::<F, S>(a.rows);
    let block = equal_parts(a.rows, TILES * most);
    for top in (0..a.rows).step_by(block) {
        let rows = block.min(a.rows - top);
        let tiling = Tiling::new::<F, S>(rows, most);
        let depth = DEPTH.min(SCRATCH / (tiling.tiles * tiling.width));
        for from in (0..b.rows).step_by(depth) {
            let inner = from..b.rows.min(from + depth);
            let mut a = a.part(top..top + rows, inner.clone());
            if tiling.height > 1 {
                for tile in 0..tiling.tiles {
                    let row = tile * tiling.height;
                    let a = a.part(row..rows.min(row + tiling.height), 0..a.columns);
                    let len = tiling.width * a.columns;
                    columns_of_rows(simd, a, tiling.width, &mut scratch[tile * len..][..len]);
                }
                a = Matrix { values: scratch, stride: tiling.width * a.columns, ..a };
            }
            let mut first = 0;
            while first < b.columns {
                let left = b.columns - first;
                let group = if left >= tiling.group * PANEL { tiling.group } else { 1 };
                let columns = first..b.columns.min(first + group * PANEL);
                let ahead = match tiling {
                    Tiling { height: 1, .. } => &[],
                    Tiling { tiles: 1, group: 1, .. } => b.at(first, from + AHEAD),
                    _ => b.at(columns.end, from),
                };
                // Each tile has a part fetched, each inner index a line or none.
                let parts = 1 << tiling.tiles.min(UNROLL).ilog2();
                for tile in 0..tiling.tiles {
                    let row = tile * tiling.height;
                    let rows = top + row..top + rows.min(row + tiling.height);
                    let is_last = inner.end == b.rows;
                    let target = output.target(rows.clone(), columns.clone(), from == 0, is_last);
                    let strip = Strip {
                        a: &a.values[tile * a.stride..],
                        deep: inner.len(),
                        panels: b.at(first, from),
                        across: b.rows * PANEL,
                        ahead: if tile < parts { ahead } else { &[] },
                        part: tile,
                        parts,
                        rows: rows.len(),
                        target,
                    };
                    strip.sum(simd, tiling.height, group);
                    if is_last {
                        output.finish(simd, rows, columns.clone());
                    }
                }
                first = columns.end;
            }
        }
    }
}

/// A tile: some rows, and a panel or some.
struct Strip<'a, F> {
    /// Rows of `A`, transposed.
    a: &'a [F],
    deep: usize,
    /// They begin every `across` values.
    panels: &'a [F],
    across: usize,
    /// Panels that are fetched meanwhile: of each, one of some equal parts.
    ahead: &'a [F],
    part: usize,
    parts: usize,
    /// Rows that are not padding.
    rows: usize,
    target: Target<'a, F>,
}

impl<F: Float> Strip<'_, F> {
    /// Sums a tile of some height and some panels.
    #[inline(always)]
    fn sum<S: Simd>(self, simd: S, height: usize, panels: usize) {
        macro_rules! heights {
            ($vectors:literal: $($height:literal)*) => {
                match height {
                    $($height => simd.vectorize(Sums::<F, $height, $vectors>(self)),)*
                    more => unreachable!("a tile of {more} rows"),
                }
            };
        }
        match panels * (PANEL / F::lanes::<S>()) {
            1 => heights!(1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 16 18 20 22 24 26 28 30),
            2 => heights!(2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
            4 => heights!(4: 1 2 3 4 5 6),
            8 => heights!(8: 1 2),
            PANEL => heights!(16: 1),
            more => unreachable!("{more} vectors"),
        }
    }
}

/// A tile of `M` rows and `V` vectors. A function of its own, so that its loops get all registers.
struct Sums<'a, F, const M: usize, const V: usize>(Strip<'a, F>);

impl<F: Float, const M: usize, const V: usize> WithSimd for Sums<'_, F, M, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let rows = self.0.rows;
        self.0.target.fetch(0..rows);
        // Tiles are this wide.
        let sums = match M {
            1 => self.sums::<S, 1>(simd),
            2..=16 => self.sums::<S, 16>(simd),
            _ => self.sums::<S, 32>(simd),
        };
        store(simd, &sums, 0..rows, &mut self.0.target);
    }
}

impl<F: Float, const M: usize, const V: usize> Sums<'_, F, M, V> {
    /// `sums[i] = sum over k of a[k, i] b[k]`, of `W` values for each inner index.
    #[inline(always)]
    fn sums<S: Simd, const W: usize>(&self, simd: S) -> [[F::Lanes<S>; V]; M] {
        let Strip { a, deep, panels, across, ahead, part, parts, .. } = self.0;
        let each = PANEL / F::lanes::<S>();
        let (columns, last_columns) = a.as_chunks::<W>().0[..deep].as_chunks::<UNROLL>();
        let count = columns.len();
        let mut rows = [&panels.as_chunks::<PANEL>().0[..0]; V];
        let mut steps = [&rows[0].as_chunks::<UNROLL>().0[..0]; V];
        let mut follows = rows;
        for p in 0..V / each {
            rows[p] = &panels[p * across..].as_chunks().0[..deep];
            steps[p] = &rows[p].as_chunks().0[..count];
            follows[p] = ahead.get(p * across..).unwrap_or_default().as_chunks().0;
            follows[p] = follows[p].get(deep * part / parts..).unwrap_or_default();
        }
        let share = UNROLL / parts;
        let mut sums = [[F::splat(simd, F::zero()); V]; M];
        for (step, a) in columns.iter().enumerate() {
            for p in 0..V / each {
                if let Some(lines) = follows[p].get(step * share..(step + 1) * share) {
                    for line in lines {
                        fetch::line(&line[0]);
                    }
                }
            }
            for k in 0..UNROLL {
                let mut row = [sums[0][0]; V];
                for v in 0..V {
                    row[v] = F::as_lanes::<S>(&steps[v / each][step][k])[v % each];
                }
                add(simd, &a[k], row, &mut sums);
            }
        }
        for (k, a) in last_columns.iter().enumerate() {
            let mut row = [sums[0][0]; V];
            for v in 0..V {
                row[v] = F::as_lanes::<S>(&rows[v / each][count * UNROLL + k])[v % each];
            }
            add(simd, a, row, &mut sums);
        }
        sums
    }
}

/// Adds the products for an inner index.
#[inline(always)]
fn add<F: Float, S: Simd, const M: usize, const V: usize, const W: usize>(
    simd: S,
    a: &[F; W],
    row: [F::Lanes<S>; V],
    sums: &mut [[F::Lanes<S>; V]; M],
) {
    for i in 0..M {
        let value = F::splat(simd, a[i]);
        for v in 0..V {
            sums[i][v] = F::fused_lanes(simd, value, row[v], sums[i][v]);
        }
    }
}
