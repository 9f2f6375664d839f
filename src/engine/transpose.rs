//! Squares of 16 by 16 values whose rows become columns.
//!
//! A processor has no instruction for it. In registers of 16 values it takes four rounds of
//! shuffles, each of which doubles the length of what lies together; elsewhere squares of four are
//! small enough for the compiler to keep in registers.

// Loops that count up to a constant, so that they are unrolled and arrays stay in registers.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512;

#[cfg(target_arch = "x86_64")]
use pulp::core_arch::x86::Avx512f;
use pulp::Simd;

use super::Float;

/// Rows and columns of a square.
pub const SQUARE: usize = 16;

/// Rows and columns that are transposed at once without registers of 16 values.
const QUAD: usize = 4;

/// Numbers that squares are made of.
pub trait Transpose: Sized {
    /// `to[i * stride + l] = rows[l][i]`.
    fn transpose<S: Simd>(simd: S, rows: [&[Self; SQUARE]; SQUARE], to: &mut [Self], stride: usize);
}

impl Transpose for f32 {
    #[inline(always)]
    fn transpose<S: Simd>(
        simd: S,
        rows: [&[Self; SQUARE]; SQUARE],
        to: &mut [Self],
        stride: usize,
    ) {
        // Which instruction set `S` is, is known when this is compiled.
        #[cfg(target_arch = "x86_64")]
        if let Some(&simd) = (&simd as &dyn std::any::Any).downcast_ref() {
            return by_shuffles(simd, rows, to, stride);
        }
        let _ = simd;
        by_quads(rows, to, stride);
    }
}

impl Transpose for f64 {
    #[inline(always)]
    fn transpose<S: Simd>(_: S, rows: [&[Self; SQUARE]; SQUARE], to: &mut [Self], stride: usize) {
        by_quads(rows, to, stride);
    }
}

/// Four by four.
#[inline(always)]
fn by_quads<F: Float>(rows: [&[F; SQUARE]; SQUARE], to: &mut [F], stride: usize) {
    for l in (0..SQUARE).step_by(QUAD) {
        for i in (0..SQUARE).step_by(QUAD) {
            let mut quad = [[F::zero(); QUAD]; QUAD];
            for q in 0..QUAD {
                quad[q] = rows[l + q].as_chunks().0[i / QUAD];
            }
            for q in 0..QUAD {
                let column = [quad[0][q], quad[1][q], quad[2][q], quad[3][q]];
                to[(i + q) * stride + l..][..QUAD].copy_from_slice(&column);
            }
        }
    }
}

/// In registers of AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn by_shuffles(simd: pulp::x86::V4, rows: [&[f32; SQUARE]; SQUARE], to: &mut [f32], stride: usize) {
    // Loops, for closures given to functions of the library would be compiled without AVX-512.
    let simd = simd.avx512f;
    let zero: __m512 = bytemuck::cast([0f32; SQUARE]);
    let mut twos = [zero; SQUARE];
    for l in (0..SQUARE).step_by(2) {
        let (a, b) = (bytemuck::cast(*rows[l]), bytemuck::cast(*rows[l + 1]));
        (twos[l], twos[l + 1]) = (simd._mm512_unpacklo_ps(a, b), simd._mm512_unpackhi_ps(a, b));
    }
    // Each quarter of `fours[4 g + j]` holds a column of the rows from 4 g: the columns j, 4 + j,
    // 8 + j and 12 + j.
    let mut fours = [zero; SQUARE];
    for g in (0..SQUARE).step_by(4) {
        for half in 0..2 {
            let (a, b) = (twos[g + half], twos[g + half + 2]);
            fours[g + 2 * half] = simd._mm512_shuffle_ps::<0b01_00_01_00>(a, b);
            fours[g + 2 * half + 1] = simd._mm512_shuffle_ps::<0b11_10_11_10>(a, b);
        }
    }
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        let low = [even(simd, a, b), even(simd, c, d)];
        let high = [odd(simd, a, b), odd(simd, c, d)];
        let columns = [
            even(simd, low[0], low[1]),
            even(simd, high[0], high[1]),
            odd(simd, low[0], low[1]),
            odd(simd, high[0], high[1]),
        ];
        for quarter in 0..4 {
            let values: [f32; SQUARE] = bytemuck::cast(columns[quarter]);
            to[(4 * quarter + j) * stride..][..SQUARE].copy_from_slice(&values);
        }
    }
}

/// The even quarters of `a`, then those of `b`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn even(simd: Avx512f, a: __m512, b: __m512) -> __m512 {
    simd._mm512_shuffle_f32x4::<0b10_00_10_00>(a, b)
}

/// The odd quarters of `a`, then those of `b`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn odd(simd: Avx512f, a: __m512, b: __m512) -> __m512 {
    simd._mm512_shuffle_f32x4::<0b11_01_11_01>(a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let square: [[f32; SQUARE]; SQUARE] =
            std::array::from_fn(|l| std::array::from_fn(|i| (l * SQUARE + i) as f32));
        let check = |to: &[f32]| {
            for l in 0..SQUARE {
                assert!((0..SQUARE).all(|i| to[i * 20 + l] == square[l][i]), "row {l}");
            }
        };
        let mut to = [0.0; 20 * SQUARE];
        by_quads(square.each_ref(), &mut to, 20);
        check(&to);
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V4::try_new() {
            to.fill(0.0);
            by_shuffles(simd, square.each_ref(), &mut to, 20);
            check(&to);
        }
    }
}
