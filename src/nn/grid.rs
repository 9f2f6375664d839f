//! An image in the order in which a convolution reads it.
//!
//! Under one tap of the kernel all output positions read the image at one
//! distance: `image[offset(tap) + position]`, if positions are counted along
//! the rows of the padded image, the columns behind the last place included.
//! So a convolution is a matrix product whose right side needs no copies of the
//! image (im2col makes one for each tap), only rows of another length. With a
//! stride the image is first split into phases: rows and columns of one
//! remainder lie together, and each tap stays within one phase.

use pulp::Simd;

use super::kernels::{add, copy};
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
    runs: Vec<Run>,
}

impl Grid {
    pub fn new(planes: Planes, channels: usize) -> Self {
        let window = planes.window;
        let phases = window.stride.min(window.kernel);
        let [rows, row] = planes.input.map(|n| (n + 2 * window.padding).div_ceil(window.stride));
        let phase = rows * row;
        let runs = runs(&planes, phases, row, phase);
        Self { planes, channels, phases, row, phase, channel: phases * phases * phase, runs }
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
    pub fn load<E: Value, S: Simd>(&self, simd: S, image: &[E], grid: &mut [E]) {
        let stride = self.planes.window.stride;
        let channels = image.chunks_exact(self.planes.input_area());
        for (image, grid) in channels.zip(grid.chunks_exact_mut(self.channel)) {
            for run in &self.runs {
                let to = &mut grid[run.grid..][..run.count];
                match stride {
                    1 => copy(simd, &image[run.image..][..run.count], to),
                    2 => every_second(&image[run.image..], to),
                    _ => {
                        let from = image[run.image..].iter().step_by(stride);
                        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                    }
                }
            }
        }
    }

    /// Adds the gradient of the grid to that of the image.
    #[inline(always)]
    pub fn add_to<E: Value, S: Simd>(&self, simd: S, grid: &[E], image: &mut [E]) {
        let stride = self.planes.window.stride;
        let channels = image.chunks_exact_mut(self.planes.input_area());
        for (image, grid) in channels.zip(grid.chunks_exact(self.channel)) {
            for run in &self.runs {
                let from = &grid[run.grid..][..run.count];
                if stride == 1 {
                    add(simd, from, &mut image[run.image..][..run.count]);
                } else {
                    let to = image[run.image..].iter_mut().step_by(stride);
                    to.zip(from).for_each(|(to, from)| *to += *from);
                }
            }
        }
    }

    /// Takes the outputs out of a padded row, without the gaps.
    #[inline(always)]
    pub fn without_gaps<E: Value, S: Simd>(&self, simd: S, padded: &[E], output: &mut [E]) {
        let width = self.planes.output[1];
        for (y, row) in output.chunks_exact_mut(width).enumerate() {
            copy(simd, &padded[y * self.row..][..width], row);
        }
    }

    /// The inverse of [`without_gaps`](Self::without_gaps); gaps must be zero
    /// already.
    #[inline(always)]
    pub fn with_gaps<E: Value, S: Simd>(&self, simd: S, output: &[E], padded: &mut [E]) {
        let width = self.planes.output[1];
        for (y, row) in output.chunks_exact(width).enumerate() {
            copy(simd, row, &mut padded[y * self.row..][..width]);
        }
    }
}

/// Values that are a stride apart in a row of the image and adjacent in the
/// grid; of the first channel.
struct Run {
    image: usize,
    grid: usize,
    count: usize,
}

/// All values of a channel.
fn runs(planes: &Planes, phases: usize, row: usize, phase_len: usize) -> Vec<Run> {
    let Window { stride, padding, .. } = planes.window;
    let [height, width] = planes.input;
    let mut runs: Vec<Run> = Vec::new();
    for y in 0..height {
        let (phase_y, grid_y) = ((y + padding) % stride, (y + padding) / stride);
        if phase_y >= phases {
            continue;
        }
        for phase_x in 0..phases {
            // The first column of the image in this phase.
            let x = (phase_x + stride - padding % stride) % stride;
            if x >= width {
                continue;
            }
            let start = (phase_y * phases + phase_x) * phase_len + grid_y * row;
            let run = Run {
                image: y * width + x,
                grid: start + (x + padding) / stride,
                count: (width - x).div_ceil(stride),
            };
            // Without a stride and padding rows follow each other on both sides.
            match runs.last_mut() {
                Some(last) if stride == 1 && last.grid + last.count == run.grid => {
                    last.count += run.count;
                }
                _ => runs.push(run),
            }
        }
    }
    runs
}

/// Copies values two apart.
#[inline(always)]
fn every_second<E: Value>(from: &[E], to: &mut [E]) {
    let (pairs, rest) = from.as_chunks::<2>();
    for (to, pair) in to.iter_mut().zip(pairs) {
        *to = pair[0];
    }
    if let (Some(to), Some(&last)) = (to.get_mut(pairs.len()), rest.first()) {
        *to = last;
    }
}
