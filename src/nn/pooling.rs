//! Forward and backward pass of pooling on plain slices.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::device::Operation;
use super::kernels::sum;
use super::lanes::Value;
use super::shape::Planes;

/// The part of an axis of the image that the window covers at one place.
fn covered(planes: &Planes, axis: usize, place: usize) -> Range<usize> {
    let start = place * planes.window.stride;
    let end = (start + planes.window.kernel).saturating_sub(planes.window.padding);
    start.saturating_sub(planes.window.padding)..end.min(planes.input[axis])
}

/// Max pooling.
pub(super) struct Maximum {
    pub planes: Planes,
    /// Where each output lies in its plane of the input.
    pub places: Vec<u32>,
}

impl<E: Value> Operation<E> for Maximum {
    fn forward(&mut self, input: &[E], out: &mut [E], keep: bool) {
        let planes = self.planes;
        let width = planes.input[1];
        let columns: Vec<_> = (0..planes.output[1]).map(|x| covered(&planes, 1, x)).collect();
        if keep {
            self.places.reserve_exact(out.len());
        }
        let images = input.chunks_exact(planes.input_area());
        for (image, out) in images.zip(out.chunks_exact_mut(planes.output_area())) {
            for (y, out) in out.chunks_exact_mut(planes.output[1]).enumerate() {
                let rows = covered(&planes, 0, y);
                for (out, columns) in out.iter_mut().zip(&columns) {
                    let mut place = rows.start * width + columns.start;
                    let mut largest = image[place];
                    for y in rows.clone() {
                        for x in columns.clone() {
                            let value = image[y * width + x];
                            // A NaN is kept, as in PyTorch.
                            if value > largest || value.is_nan() {
                                (largest, place) = (value, y * width + x);
                            }
                        }
                    }
                    *out = largest;
                    if keep {
                        self.places.push(place as u32);
                    }
                }
            }
        }
    }

    fn backward(&self, out_gradient: &[E], input_gradient: &mut [E]) {
        let area = self.planes.output_area();
        let images = input_gradient.chunks_exact_mut(self.planes.input_area());
        let outs = out_gradient.chunks_exact(area).zip(self.places.chunks_exact(area));
        for (image, (out, places)) in images.zip(outs) {
            for (&gradient, &place) in out.iter().zip(places) {
                image[place as usize] += gradient;
            }
        }
    }
}

/// Average pooling.
pub(super) struct Average {
    pub planes: Planes,
}

impl Average {
    /// One over the values of a window.
    fn share<E: Value>(&self) -> E {
        let values = self.planes.window.kernel.pow(2);
        E::ONE / E::from_usize(values).unwrap_or(E::ONE)
    }
}

impl<E: Value> Operation<E> for Average {
    fn forward(&mut self, input: &[E], out: &mut [E], _keep: bool) {
        let planes = self.planes;
        let (width, share) = (planes.input[1], self.share::<E>());
        let columns: Vec<_> = (0..planes.output[1]).map(|x| covered(&planes, 1, x)).collect();
        let images = input.chunks_exact(planes.input_area());
        for (image, out) in images.zip(out.chunks_exact_mut(planes.output_area())) {
            for (y, out) in out.chunks_exact_mut(planes.output[1]).enumerate() {
                for y in covered(&planes, 0, y) {
                    let row = &image[y * width..][..width];
                    for (out, columns) in out.iter_mut().zip(&columns) {
                        for &value in &row[columns.clone()] {
                            *out += value;
                        }
                    }
                }
                out.iter_mut().for_each(|out| *out *= share);
            }
        }
    }

    fn backward(&self, out_gradient: &[E], input_gradient: &mut [E]) {
        let planes = self.planes;
        let (width, share) = (planes.input[1], self.share::<E>());
        let columns: Vec<_> = (0..planes.output[1]).map(|x| covered(&planes, 1, x)).collect();
        let images = input_gradient.chunks_exact_mut(planes.input_area());
        for (image, out) in images.zip(out_gradient.chunks_exact(planes.output_area())) {
            for (y, out) in out.chunks_exact(planes.output[1]).enumerate() {
                for y in covered(&planes, 0, y) {
                    let row = &mut image[y * width..][..width];
                    for (&gradient, columns) in out.iter().zip(&columns) {
                        for value in &mut row[columns.clone()] {
                            *value += gradient * share;
                        }
                    }
                }
            }
        }
    }
}

/// The mean of all of a plane.
pub(super) struct GlobalAverage {
    /// Values of a plane.
    pub area: usize,
}

impl<E: Value> Operation<E> for GlobalAverage {
    fn forward(&mut self, input: &[E], out: &mut [E], _keep: bool) {
        Arch::new().dispatch(Means { area: self.area, input, out });
    }

    fn backward(&self, out_gradient: &[E], input_gradient: &mut [E]) {
        let share = E::ONE / E::from_usize(self.area).unwrap_or(E::ONE);
        for (plane, &gradient) in input_gradient.chunks_exact_mut(self.area).zip(out_gradient) {
            let gradient = gradient * share;
            plane.iter_mut().for_each(|value| *value += gradient);
        }
    }
}

struct Means<'a, E> {
    area: usize,
    input: &'a [E],
    out: &'a mut [E],
}

impl<E: Value> WithSimd for Means<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let share = E::ONE / E::from_usize(self.area).unwrap_or(E::ONE);
        for (plane, out) in self.input.chunks_exact(self.area).zip(self.out) {
            *out = sum(simd, plane) * share;
        }
    }
}
