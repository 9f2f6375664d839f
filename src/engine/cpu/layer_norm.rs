//! Layer normalisation of every row: `y = x̂ scale + shift`, `x̂ = (x - m) r`,
//! `m` the mean of the row and `r = 1 / sqrt(variance + 1e-5)`, the variance
//! divided by the width (biased).
//!
//! Backward, with `g = dy scale`: `dx = r (g - mean(g) - x̂ mean(g x̂))`,
//! `dscale += dy x̂`, `dshift += dy`.
//!
//! # Source
//! Ba et al. 2016, arXiv:1607.06450; `torch.nn.LayerNorm`.

// Loops that count up to a constant, so that they are unrolled and arrays stay in registers.
#![allow(clippy::needless_range_loop)]

use pulp::{Simd, WithSimd};

use super::{sum_lanes, LANES};
use crate::engine::{Float, Write};

/// Added to the variance.
const EPSILON: f64 = 1e-5;

/// Rows that are treated at once: the sums of one need not wait for those of another.
const ROWS: usize = 4;

/// `y`, and in `stats` the mean and `r` of every row.
pub(super) struct Forward<'a, F> {
    pub scale: &'a [F],
    pub shift: &'a [F],
    pub x: &'a [F],
    pub y: &'a mut [F],
    pub stats: &'a mut [F],
}

impl<F: Float> WithSimd for Forward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { scale, shift, x, y, stats } = self;
        let width = scale.len();
        let (stats, _) = stats.as_chunks_mut::<2>();
        let rows = x.chunks(ROWS * width).zip(y.chunks_mut(ROWS * width));
        for ((x, y), stats) in rows.zip(stats.chunks_mut(ROWS)) {
            if stats.len() == ROWS {
                row_stats::<F, S, ROWS>(simd, width, x, stats);
            } else {
                for (x, stats) in x.chunks_exact(width).zip(stats.chunks_exact_mut(1)) {
                    row_stats::<F, S, 1>(simd, width, x, stats);
                }
            }
            for ((x, y), &stats) in
                x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(&*stats)
            {
                normalise::<F, S>(simd, stats, x, scale, shift, y);
            }
        }
    }
}

/// Means and `r` of `N` rows.
#[inline(always)]
fn row_stats<F: Float, S: Simd, const N: usize>(
    simd: S,
    width: usize,
    x: &[F],
    stats: &mut [[F; 2]],
) {
    let inverse_width = F::from_f64(1.0 / width as f64);
    let lanes = F::lanes::<S>();
    let count = width / lanes;
    let (mut rows, mut rests) = ([&F::as_lanes::<S>(x)[..0]; N], [&x[..0]; N]);
    for r in 0..N {
        let row = &x[r * width..][..width];
        (rows[r], rests[r]) = (&F::as_lanes::<S>(row)[..count], &row[count * lanes..]);
    }
    let zero = F::splat(simd, F::zero());
    let mut sums = [zero; N];
    for c in 0..count {
        for r in 0..N {
            sums[r] = F::add_lanes(simd, sums[r], rows[r][c]);
        }
    }
    let (mut means, mut minus) = ([F::zero(); N], sums);
    for r in 0..N {
        let rest: F = rests[r].iter().copied().sum();
        means[r] = (sum::<F, S>(sums[r]) + rest) * inverse_width;
        minus[r] = F::splat(simd, -means[r]);
    }
    let mut squares = [zero; N];
    for c in 0..count {
        for r in 0..N {
            let d = F::add_lanes(simd, rows[r][c], minus[r]);
            squares[r] = F::fused_lanes(simd, d, d, squares[r]);
        }
    }
    for r in 0..N {
        let mean = means[r];
        let rest: F = rests[r].iter().map(|&x| (x - mean) * (x - mean)).sum();
        let variance = (sum::<F, S>(squares[r]) + rest) * inverse_width;
        stats[r] = [mean, (variance + F::from_f64(EPSILON)).sqrt().recip()];
    }
}

#[inline(always)]
fn sum<F: Float, S: Simd>(lanes: F::Lanes<S>) -> F {
    let mut all = [F::zero(); LANES];
    F::as_mut_lanes::<S>(&mut all)[0] = lanes;
    sum_lanes(all)
}

#[inline(always)]
fn normalise<F: Float, S: Simd>(
    simd: S,
    [mean, r]: [F; 2],
    x: &[F],
    scale: &[F],
    shift: &[F],
    y: &mut [F],
) {
    let whole = x.len() / F::lanes::<S>() * F::lanes::<S>();
    let (minus, factor, zero) =
        (F::splat(simd, -mean), F::splat(simd, r), F::splat(simd, F::zero()));
    let lanes = F::as_mut_lanes::<S>(y)
        .iter_mut()
        .zip(F::as_lanes::<S>(x))
        .zip(F::as_lanes::<S>(scale))
        .zip(F::as_lanes::<S>(shift));
    for (((y, &x), &scale), &shift) in lanes {
        let normal = F::fused_lanes(simd, F::add_lanes(simd, x, minus), factor, zero);
        *y = F::fused_lanes(simd, normal, scale, shift);
    }
    for c in whole..x.len() {
        y[c] = ((x[c] - mean) * r).fused::<S>(scale[c], shift[c]);
    }
}

/// Gradients of the input and, added up, of scale and shift.
pub(super) struct Backward<'a, F> {
    pub scale: &'a [F],
    pub x: &'a [F],
    pub stats: &'a [F],
    pub dy: &'a [F],
    pub dx: &'a mut [F],
    pub dscale: &'a mut [F],
    pub dshift: &'a mut [F],
    pub write: Write,
}

impl<F: Float> WithSimd for Backward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { scale, x, stats, dy, dx, dscale, dshift, write } = self;
        let width = scale.len();
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
        let rows = rows.zip(dx.chunks_exact_mut(width)).zip(stats.as_chunks::<2>().0);
        for (((x, dy), dx), &stats) in rows {
            let means = gradient_sums::<F, S>(stats, x, dy, scale, dscale, dshift);
            match write {
                Write::Set => input_gradient::<F, S, false>(stats, means, x, dy, scale, dx),
                Write::Add => input_gradient::<F, S, true>(stats, means, x, dy, scale, dx),
            }
        }
    }
}

/// Adds a row to the gradients of scale and shift; `mean(g)` and `mean(g x̂)`.
#[inline(always)]
fn gradient_sums<F: Float, S: Simd>(
    [mean, r]: [F; 2],
    x: &[F],
    dy: &[F],
    scale: &[F],
    dscale: &mut [F],
    dshift: &mut [F],
) -> [F; 2] {
    let inverse_width = F::from_f64(1.0 / x.len() as f64);
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (dy, dy_rest) = dy.as_chunks::<LANES>();
    let (scale, scale_rest) = scale.as_chunks::<LANES>();
    let (dscale, dscale_rest) = dscale.as_chunks_mut::<LANES>();
    let (dshift, dshift_rest) = dshift.as_chunks_mut::<LANES>();
    let (mut g_sum, mut gx_sum) = ([F::zero(); LANES], [F::zero(); LANES]);
    for ((((x, dy), scale), dscale), dshift) in x.iter().zip(dy).zip(scale).zip(dscale).zip(dshift)
    {
        let (mut scale_sum, mut shift_sum) = (*dscale, *dshift);
        for i in 0..LANES {
            let normal = (x[i] - mean) * r;
            let g = dy[i] * scale[i];
            g_sum[i] += g;
            gx_sum[i] = g.fused::<S>(normal, gx_sum[i]);
            scale_sum[i] = dy[i].fused::<S>(normal, scale_sum[i]);
            shift_sum[i] += dy[i];
        }
        (*dscale, *dshift) = (scale_sum, shift_sum);
    }
    let (mut g_total, mut gx_total) = (sum_lanes(g_sum), sum_lanes(gx_sum));
    for i in 0..x_rest.len() {
        let normal = (x_rest[i] - mean) * r;
        let g = dy_rest[i] * scale_rest[i];
        g_total += g;
        gx_total += g * normal;
        dscale_rest[i] += dy_rest[i] * normal;
        dshift_rest[i] += dy_rest[i];
    }
    [g_total * inverse_width, gx_total * inverse_width]
}

#[inline(always)]
fn input_gradient<F: Float, S: Simd, const ADD: bool>(
    [mean, r]: [F; 2],
    [g_mean, gx_mean]: [F; 2],
    x: &[F],
    dy: &[F],
    scale: &[F],
    dx: &mut [F],
) {
    for (((dx, &x), &dy), &scale) in dx.iter_mut().zip(x).zip(dy).zip(scale) {
        let normal = (x - mean) * r;
        let value = r * (dy.fused::<S>(scale, -g_mean) - normal * gx_mean);
        *dx = if ADD { *dx + value } else { value };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::{on_each_instruction_set, simd};

    fn wave(length: usize, phase: f64) -> Vec<f64> {
        (0..length).map(|i| (i as f64 * 0.7 + phase).sin() + 0.3).collect()
    }

    fn forward(x: &[f64], scale: &[f64], shift: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut y, mut stats) = (vec![0.0; x.len()], vec![0.0; 2 * x.len() / scale.len()]);
        simd(Forward { scale, shift, x, y: &mut y, stats: &mut stats });
        (y, stats)
    }

    #[test]
    fn rows_have_mean_shift_and_deviation_scale() {
        on_each_instruction_set(|_| {
            for width in [3, 16, 24, 37] {
                // Some rows together, and some alone.
                let rows = ROWS + 2;
                let (x, one, zero) = (wave(rows * width, 0.1), vec![1.0; width], vec![0.0; width]);
                let (y, _) = forward(&x, &one, &zero);
                for (x, y) in x.chunks(width).zip(y.chunks(width)) {
                    let n = width as f64;
                    let mean = x.iter().sum::<f64>() / n;
                    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                    for (x, y) in x.iter().zip(y) {
                        assert!((y - (x - mean) / (variance + 1e-5).sqrt()).abs() < 1e-12);
                    }
                }
                let single: Vec<f32> = x.iter().map(|&x| x as f32).collect();
                let (mut y32, mut stats) = (vec![0f32; single.len()], vec![0f32; 2 * rows]);
                let (one, zero) = (vec![1f32; width], vec![0f32; width]);
                simd(Forward {
                    scale: &one,
                    shift: &zero,
                    x: &single,
                    y: &mut y32,
                    stats: &mut stats,
                });
                assert!(y.iter().zip(&y32).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-5));
            }
        });
    }

    #[test]
    fn gradients_match_differences() {
        for width in [3, 16, 37] {
            let (x, cotangent) = (wave(2 * width, 0.1), wave(2 * width, 2.0));
            let (scale, shift) = (wave(width, 1.0), wave(width, 3.0));
            let value = |x: &[f64], scale: &[f64], shift: &[f64]| -> f64 {
                forward(x, scale, shift).0.iter().zip(&cotangent).map(|(a, b)| a * b).sum()
            };
            let (_, stats) = forward(&x, &scale, &shift);
            let (mut dx, mut dscale, mut dshift) =
                (vec![1.0; 2 * width], vec![0.0; width], vec![0.0; width]);
            simd(Backward {
                scale: &scale,
                x: &x,
                stats: &stats,
                dy: &cotangent,
                dx: &mut dx,
                dscale: &mut dscale,
                dshift: &mut dshift,
                write: Write::Add,
            });
            let h = 1e-5;
            let differences = |v: &[f64], f: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
                (0..v.len())
                    .map(|i| {
                        let (mut up, mut down) = (v.to_vec(), v.to_vec());
                        up[i] += h;
                        down[i] -= h;
                        (f(&up) - f(&down)) / (2.0 * h)
                    })
                    .collect()
            };
            let close = |a: &[f64], b: &[f64], add: f64| {
                a.iter().zip(b).for_each(|(a, b)| assert!((a - b - add).abs() < 1e-8, "{a} {b}"))
            };
            close(&dx, &differences(&x, &|x| value(x, &scale, &shift)), 1.0);
            close(&dscale, &differences(&scale, &|s| value(&x, s, &shift)), 0.0);
            close(&dshift, &differences(&shift, &|s| value(&x, &scale, s)), 0.0);
        }
    }
}
