//! Matrix products: `C = A B` or `C += A B`, by `gemm`, on one thread.

#![allow(unsafe_code)]

use crate::engine::{Float, Write};

/// A matrix in a slice, row by row or column by column.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, F> {
    values: &'a [F],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, F> Matrix<'a, F> {
    /// All of `values`, row by row.
    ///
    /// # Panics
    /// If `values` does not hold `rows * columns` values.
    pub fn new(values: &'a [F], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} by {columns}");
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Rows become columns.
    pub fn transposed(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// `out = a b`, or `out += a b`, with `out` row by row.
///
/// # Panics
/// If the shapes do not fit.
pub(super) fn multiply<F: Float>(out: &mut [F], a: Matrix<'_, F>, b: Matrix<'_, F>, write: Write) {
    assert_eq!(a.columns, b.rows, "inner lengths of a product");
    assert_eq!(out.len(), a.rows * b.columns, "length of a product");
    let add = write == Write::Add;
    // SAFETY: `Matrix::new` and `transposed` keep every index `row * row_stride
    // + column * column_stride` below `values.len()`, and the assertions above
    // do so for `out`, which is borrowed mutably, so nothing else overlaps it.
    // `F` is `f32` or `f64` (`Float` is sealed), which `gemm` knows.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            b.columns as isize,
            add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            if add { F::one() } else { F::zero() },
            F::one(),
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
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
    for row in y.chunks_exact_mut(outputs) {
        row.copy_from_slice(bias);
    }
    let weight = Matrix::new(weight, outputs, inputs).transposed();
    multiply(y, Matrix::new(x, rows, inputs), weight, Write::Add);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_plain_and_transposed_matrices() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // 2 x 3, or 3 x 2 transposed
        let b = [1.0, 0.0, 2.0, 1.0, 0.0, 3.0]; // 3 x 2
        let mut c = [1.0; 4];
        multiply(&mut c, Matrix::new(&a, 2, 3), Matrix::new(&b, 3, 2), Write::Set);
        assert_eq!(c, [5.0, 11.0, 14.0, 23.0]);
        multiply(&mut c, Matrix::new(&a, 2, 3), Matrix::new(&b, 3, 2), Write::Add);
        assert_eq!(c, [10.0, 22.0, 28.0, 46.0]);
        let mut c = [0.0f32; 4];
        let (a, b) = (a.map(|x| x as f32), b.map(|x| x as f32));
        let a = Matrix::new(&a, 3, 2).transposed(); // 1 3 5 / 2 4 6
        multiply(&mut c, a, Matrix::new(&b, 3, 2), Write::Set);
        assert_eq!(c, [7.0, 18.0, 10.0, 22.0]);
    }
}
