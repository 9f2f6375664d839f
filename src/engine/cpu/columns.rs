//! Sums over the rows of a matrix, and rows added to every row: biases, and
//! their gradients.

use pulp::{Simd, WithSimd};

use crate::engine::Float;

/// `matrix[r, c] += row[c]`.
pub(super) struct AddRow<'a, F> {
    pub row: &'a [F],
    pub matrix: &'a mut [F],
}

impl<F: Float> WithSimd for AddRow<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for target in self.matrix.chunks_exact_mut(self.row.len()) {
            add::<F>(target, self.row);
        }
    }
}

/// `sum[c] += matrix[0, c] + matrix[1, c] + ..`.
pub(super) struct AddColumnSums<'a, F> {
    pub matrix: &'a [F],
    pub sum: &'a mut [F],
}

impl<F: Float> WithSimd for AddColumnSums<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for row in self.matrix.chunks_exact(self.sum.len()) {
            add::<F>(self.sum, row);
        }
    }
}

#[inline(always)]
fn add<F: Float>(target: &mut [F], row: &[F]) {
    for (target, &value) in target.iter_mut().zip(row) {
        *target += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::simd;

    #[test]
    fn rows_are_added_and_summed() {
        let width = 19;
        let row: Vec<f32> = (0..width).map(|c| c as f32).collect();
        let mut matrix = vec![1.0; 3 * width];
        simd(AddRow { row: &row, matrix: &mut matrix });
        assert!((0..3 * width).all(|i| matrix[i] == 1.0 + (i % width) as f32));
        let mut sum = vec![0.5; width];
        simd(AddColumnSums { matrix: &matrix, sum: &mut sum });
        assert!((0..width).all(|c| sum[c] == 3.5 + 3.0 * c as f32));
    }
}
