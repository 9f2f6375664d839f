//! Forward and backward pass of a convolution on plain slices.
//!
//! Images are shared out to the threads of the rayon pool that the caller is
//! in. Each thread goes through its images one by one, or a few at a time, so
//! that what it works on stays in its cache.
//!
//! Shape letters: `[N, I, H, W]` input, `[O, I / G, K, K]` weight, `[O]` bias,
//! `[N, O, H', W']` output.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::grid::Grid;
use super::kernels::{sum, Correlation, Product, Rows};
use super::lanes::Value;
use super::shape::Planes;

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Convolution {
    pub planes: Planes,
    /// `I`
    pub inputs: usize,
    /// `O`
    pub outputs: usize,
    /// `G`
    pub groups: usize,
}

/// Multiplications that are worth a thread.
const THREAD_WORK: usize = 1 << 20;

/// Images that a weight gradient is summed over in registers.
const IMAGES: usize = 8;

impl Convolution {
    fn taps(&self) -> usize {
        self.inputs / self.groups * self.planes.window.kernel.pow(2)
    }

    fn input_len(&self) -> usize {
        self.inputs * self.planes.input_area()
    }

    fn output_len(&self) -> usize {
        self.outputs * self.planes.output_area()
    }

    /// Images for each thread.
    fn share(&self, images: usize) -> usize {
        let work = images * self.output_len() * self.taps();
        let threads = (work / THREAD_WORK).max(1);
        // Asked only where it matters: the first question starts a pool.
        let threads = if threads > 1 { threads.min(rayon::current_num_threads()) } else { 1 };
        images.div_ceil(threads).max(1)
    }

    /// Writes the output.
    pub fn forward<E: Value>(&self, input: &[E], weight: &[E], bias: Option<&[E]>, out: &mut [E]) {
        if out.is_empty() {
            return;
        }
        let pass = Pass::new(self);
        let zeros = vec![E::default(); self.outputs];
        let bias = bias.unwrap_or(&zeros);
        let rows = pass.output_rows(weight);
        let share = self.share(out.len() / self.output_len());
        let run = |input: &[E], out: &mut [E]| {
            Arch::new().dispatch(Forward { pass: &pass, rows: &rows, bias, input, out });
        };
        let (input_share, output_share) = (share * self.input_len(), share * self.output_len());
        if output_share >= out.len() {
            return run(input, out);
        }
        let shares = out.par_chunks_mut(output_share).zip(input.par_chunks(input_share));
        shares.for_each(|(out, input)| run(input, out));
    }

    /// Adds to the gradient of the input; returns those of weight and bias.
    pub fn backward<E: Value>(
        &self,
        input: &[E],
        weight: &[E],
        out_gradient: &[E],
        input_gradient: &mut [E],
    ) -> (Vec<E>, Vec<E>) {
        if out_gradient.is_empty() {
            return (vec![E::default(); weight.len()], vec![E::default(); self.outputs]);
        }
        let pass = Pass::new(self);
        let rows = pass.input_rows(weight);
        let share = self.share(out_gradient.len() / self.output_len());
        let run = |input: &[E], out_gradient: &[E], input_gradient: &mut [E]| {
            let (pass, rows) = (&pass, &rows[..]);
            Arch::new().dispatch(Backward { pass, rows, input, out_gradient, input_gradient })
        };
        let (input_share, output_share) = (share * self.input_len(), share * self.output_len());
        if output_share >= out_gradient.len() {
            return run(input, out_gradient, input_gradient);
        }
        let shares = input_gradient.par_chunks_mut(input_share);
        let shares = shares.zip(input.par_chunks(input_share));
        let shares = shares.zip(out_gradient.par_chunks(output_share));
        let parts: Vec<_> = shares.map(|((di, i), d)| run(i, d, di)).collect();
        // In the order of the images, whichever thread was first.
        let add = |mut sum: (Vec<E>, Vec<E>), part: (Vec<E>, Vec<E>)| {
            sum.0.iter_mut().zip(part.0).for_each(|(a, b)| *a += b);
            sum.1.iter_mut().zip(part.1).for_each(|(a, b)| *a += b);
            sum
        };
        parts.into_iter().reduce(add).unwrap_or_default()
    }
}

/// What all images have in common, one group of channels at a time.
struct Pass<'a> {
    sizes: &'a Convolution,
    grid: Grid,
    offsets: Vec<usize>,
}

impl<'a> Pass<'a> {
    fn new(sizes: &'a Convolution) -> Self {
        let grid = Grid::new(sizes.planes, sizes.inputs / sizes.groups);
        let offsets = grid.offsets();
        Self { sizes, grid, offsets }
    }

    /// Outputs of a group.
    fn outputs(&self) -> usize {
        self.sizes.outputs / self.sizes.groups
    }

    /// For each group, rows that are outputs, of one value for each tap.
    fn output_rows<E: Value>(&self, weight: &[E]) -> Vec<Rows<E>> {
        let (taps, padded) = (self.offsets.len(), self.grid.padded_positions());
        let group = |weight: &[E]| {
            let rows = weight.chunks_exact(taps).enumerate();
            let rows: Vec<_> = rows.map(|(o, row)| (o * padded, row.to_vec())).collect();
            Rows::new(taps, [rows])
        };
        weight.chunks_exact(taps * self.outputs()).map(group).collect()
    }

    /// For each group, rows that are taps, of one value for each output.
    ///
    /// A block holds one tap of the window in several channels: what it adds to
    /// does not overlap.
    fn input_rows<E: Value>(&self, weight: &[E]) -> Vec<Rows<E>> {
        let (taps, outputs) = (self.offsets.len(), self.outputs());
        let area = self.sizes.planes.window.kernel.pow(2);
        let group = |weight: &[E]| {
            let row = |tap: usize| -> Vec<E> {
                (0..outputs).map(|output| weight[output * taps + tap]).collect()
            };
            let block = |place: usize| -> Vec<_> {
                let taps = (place..taps).step_by(area);
                taps.map(|tap| (self.offsets[tap], row(tap))).collect()
            };
            Rows::new(outputs, (0..area).map(block))
        };
        weight.chunks_exact(taps * outputs).map(group).collect()
    }
}

struct Forward<'a, E> {
    pass: &'a Pass<'a>,
    rows: &'a [Rows<E>],
    bias: &'a [E],
    input: &'a [E],
    out: &'a mut [E],
}

impl<E: Value> WithSimd for Forward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pass, rows, bias, input, out } = self;
        let (sizes, grid, outputs) = (pass.sizes, &pass.grid, pass.outputs());
        let padded_len = grid.padded_positions();
        let mut scratch = E::take_scratch(grid.len() + outputs * padded_len);
        let (image, padded) = scratch.split_at_mut(grid.len());
        let area = sizes.planes.output_area();
        // Groups of channels, of one image after the other.
        let inputs = input.chunks_exact(sizes.input_len() / sizes.groups);
        let outs = out.chunks_exact_mut(outputs * area);
        for (i, (input, out)) in inputs.zip(outs).enumerate() {
            let group = i % sizes.groups;
            grid.load(simd, input, image);
            let product = Product {
                rows: &rows[group],
                sources: &pass.offsets,
                positions: grid.positions(),
                initial: &bias[group * outputs..][..outputs],
            };
            product.run(simd, image, padded);
            for (out, padded) in out.chunks_exact_mut(area).zip(padded.chunks_exact(padded_len)) {
                grid.without_gaps(simd, padded, out);
            }
        }
        E::put_scratch(scratch);
    }
}

struct Backward<'a, E> {
    pass: &'a Pass<'a>,
    rows: &'a [Rows<E>],
    input: &'a [E],
    out_gradient: &'a [E],
    input_gradient: &'a mut [E],
}

impl<E: Value> WithSimd for Backward<'_, E> {
    type Output = (Vec<E>, Vec<E>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (Vec<E>, Vec<E>) {
        let Self { pass, rows, input, out_gradient, input_gradient } = self;
        let (sizes, grid, outputs) = (pass.sizes, &pass.grid, pass.outputs());
        let (padded_len, taps) = (grid.padded_positions(), pass.offsets.len());
        let area = sizes.planes.output_area();
        let (input_len, output_len) = (sizes.input_len(), sizes.output_len());
        let group_len = input_len / sizes.groups;
        let images = IMAGES.min(out_gradient.len() / output_len);

        let mut scratch =
            E::take_scratch((images + 1) * grid.len() + images * outputs * padded_len);
        let (grids, rest) = scratch.split_at_mut(images * grid.len());
        let (grid_gradient, padded) = rest.split_at_mut(grid.len());
        let mut weight_gradient = vec![E::default(); sizes.outputs * taps];
        let mut bias_gradient = vec![E::default(); sizes.outputs];

        let parts = input.chunks(images * input_len).zip(out_gradient.chunks(images * output_len));
        let parts = parts.zip(input_gradient.chunks_mut(images * input_len));
        for ((input, out_gradient), input_gradient) in parts {
            let count = out_gradient.len() / output_len;
            for group in 0..sizes.groups {
                for n in 0..count {
                    let input = &input[n * input_len + group * group_len..][..group_len];
                    grid.load(simd, input, &mut grids[n * grid.len()..][..grid.len()]);
                    let start = n * output_len + group * outputs * area;
                    let out = out_gradient[start..][..outputs * area].chunks_exact(area);
                    let start = n * outputs * padded_len;
                    let padded = padded[start..].chunks_exact_mut(padded_len);
                    let bias = &mut bias_gradient[group * outputs..][..outputs];
                    for ((out, padded), bias) in out.zip(padded).zip(bias) {
                        grid.with_gaps(simd, out, padded);
                        *bias += sum(simd, out);
                    }
                }
                let correlation = Correlation {
                    images: count,
                    rows: outputs,
                    columns: &pass.offsets,
                    positions: grid.positions(),
                    left_row: padded_len,
                    left_image: outputs * padded_len,
                    right_image: grid.len(),
                };
                let sums = &mut weight_gradient[group * outputs * taps..][..outputs * taps];
                correlation.run(simd, padded, grids, sums);

                let sources: Vec<usize> = (0..outputs).map(|o| o * padded_len).collect();
                let product = Product {
                    rows: &rows[group],
                    sources: &sources,
                    positions: grid.positions(),
                    initial: &[],
                };
                for n in 0..count {
                    grid_gradient.fill(E::default());
                    let padded = &padded[n * outputs * padded_len..][..outputs * padded_len];
                    product.run(simd, padded, grid_gradient);
                    let start = n * input_len + group * group_len;
                    grid.add_to(simd, grid_gradient, &mut input_gradient[start..][..group_len]);
                }
            }
        }
        E::put_scratch(scratch);
        (weight_gradient, bias_gradient)
    }
}
