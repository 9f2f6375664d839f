//! An image in the order in which a convolution reads it.
//!
//! Under one tap of the kernel all output positions read the image at one
//! distance: `image[offset(tap) + position]`, if positions are counted along
//! the rows of the padded image, the columns behind the last place included.
//! So a convolution is a matrix product whose right side needs no copies of the
//! image (im2col makes one for each tap), only rows of another length. With a
//! stride the image is first split into phases: rows and columns of one
//! remainder lie together, and each tap stays within one phase.

use super::lanes::{Value, MAX_LANES};
use super::shape::{Planes, Window};

/// Where the values of `channels` images lie, and what each tap reads.
pub(super) struct Grid {
    planes: Planes,
    channels: usize,
    /// Phases along each axis that a tap reads.
    phases: usize,
    /// Length of a row of a phase, and of an output row with its gap.
    row: usize,
    /// Length of a phase.
    phase: usize,
    /// Length of a channel.
    channel: usize,
}

impl Grid {
    pub fn new(planes: Planes, channels: usize) -> Self {
        let window = planes.window;
        let phases = window.stride.min(window.kernel);
        let [rows, row] = planes.input.map(|n| (n + 2 * window.padding).div_ceil(window.stride));
        let phase = rows * row;
        Self { planes, channels, phases, row, phase, channel: phases * phases * phase }
    }

    /// Positions from the first output to the last, gaps between rows included.
    pub fn positions(&self) -> usize {
        let [height, width] = self.planes.output;
        (height - 1) * self.row + width
    }

    /// Length of a row of outputs, padded to whole vectors.
    pub fn padded_positions(&self) -> usize {
        self.positions().next_multiple_of(MAX_LANES)
    }

    /// Length of the image, and some zeros: the last vector reads beyond it.
    pub fn len(&self) -> usize {
        self.channels * self.channel + MAX_LANES
    }

    /// Where the first output reads the image under each tap, in the order of
    /// the weight: channel, row, column.
    pub fn offsets(&self) -> Vec<usize> {
        let Window { kernel, stride, .. } = self.planes.window;
        let mut offsets = Vec::with_capacity(self.channels * kernel * kernel);
        for channel in 0..self.channels {
            for y in 0..kernel {
                for x in 0..kernel {
                    let phase = y % stride * self.phases + x % stride;
                    let start = channel * self.channel + phase * self.phase;
                    offsets.push(start + y / stride * self.row + x / stride);
                }
            }
        }
        offsets
    }

    /// Copies an image in; padding and gaps must be zero already.
    #[inline(always)]
    pub fn load<E: Value>(&self, image: &[E], grid: &mut [E]) {
        self.each_run(image.len(), |from, count, to| {
            let stride = self.planes.window.stride;
            let to = &mut grid[to..][..count];
            strided_copy(&image[from..], to, stride);
        });
    }

    /// Adds the gradient of the grid to that of the image.
    #[inline(always)]
    pub fn add_to<E: Value>(&self, grid: &[E], image: &mut [E]) {
        self.each_run(image.len(), |to, count, from| {
            let stride = self.planes.window.stride;
            let from = &grid[from..][..count];
            strided_add(from, &mut image[to..], stride);
        });
    }

    /// Calls `run(start in the image, values, start in the grid)` for values
    /// that are a stride apart in a row of the image and adjacent in the grid.
    #[inline(always)]
    fn each_run(&self, length: usize, mut run: impl FnMut(usize, usize, usize)) {
        let Window { stride, padding, .. } = self.planes.window;
        let [height, width] = self.planes.input;
        let area = height * width;
        debug_assert_eq!(length, self.channels * area);
        for channel in 0..self.channels {
            for y in 0..height {
                let (phase_y, grid_y) = ((y + padding) % stride, (y + padding) / stride);
                if phase_y >= self.phases {
                    continue;
                }
                for phase_x in 0..self.phases {
                    // The first column of the image in this phase.
                    let x = (phase_x + stride - padding % stride) % stride;
                    if x >= width {
                        continue;
                    }
                    let phase = phase_y * self.phases + phase_x;
                    let start = channel * self.channel + phase * self.phase + grid_y * self.row;
                    run(
                        channel * area + y * width + x,
                        (width - x).div_ceil(stride),
                        start + (x + padding) / stride,
                    );
                }
            }
        }
    }

    /// Takes the outputs out of a padded row, without the gaps.
    #[inline(always)]
    pub fn without_gaps<E: Value>(&self, padded: &[E], output: &mut [E]) {
        let width = self.planes.output[1];
        for (y, row) in output.chunks_exact_mut(width).enumerate() {
            row.copy_from_slice(&padded[y * self.row..][..width]);
        }
    }

    /// The inverse of [`without_gaps`](Self::without_gaps); gaps must be zero
    /// already.
    #[inline(always)]
    pub fn with_gaps<E: Value>(&self, output: &[E], padded: &mut [E]) {
        let width = self.planes.output[1];
        for (y, row) in output.chunks_exact(width).enumerate() {
            padded[y * self.row..][..width].copy_from_slice(row);
        }
    }
}

#[inline(always)]
fn strided_copy<E: Copy>(from: &[E], to: &mut [E], stride: usize) {
    match stride {
        1 => to.copy_from_slice(&from[..to.len()]),
        2 => {
            let (pairs, rest) = from.as_chunks::<2>();
            for (to, pair) in to.iter_mut().zip(pairs) {
                *to = pair[0];
            }
            if to.len() > pairs.len() {
                to[pairs.len()] = rest[0];
            }
        }
        _ => {
            for (to, from) in to.iter_mut().zip(from.iter().step_by(stride)) {
                *to = *from;
            }
        }
    }
}

#[inline(always)]
fn strided_add<E: Value>(from: &[E], to: &mut [E], stride: usize) {
    if stride == 1 {
        for (to, from) in to.iter_mut().zip(from) {
            *to += *from;
        }
    } else {
        for (to, from) in to.iter_mut().step_by(stride).zip(from) {
            *to += *from;
        }
    }
}
