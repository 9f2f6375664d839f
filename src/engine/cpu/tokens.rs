//! Cuts rows of values into tokens and joins them: `token[u, n, c] =
//! row[n, table[u, c]]`, and its transpose.

use crate::engine::Float;

/// `to[u * samples + n, c] = from[n, table[u * width + c]]`.
pub(super) fn gather<F: Float>(
    table: &[u32],
    samples: usize,
    from: &[F],
    from_width: usize,
    to: &mut [F],
    width: usize,
) {
    for (index, token) in table.chunks_exact(width).zip(to.chunks_exact_mut(samples * width)) {
        for (row, values) in from.chunks_exact(from_width).zip(token.chunks_exact_mut(width)) {
            for (value, &i) in values.iter_mut().zip(index) {
                *value = row[i as usize];
            }
        }
    }
}

/// `to[n, table[u * width + c]] += from[u * samples + n, c]`.
pub(super) fn scatter_add<F: Float>(
    table: &[u32],
    samples: usize,
    from: &[F],
    width: usize,
    to: &mut [F],
    to_width: usize,
) {
    for (index, token) in table.chunks_exact(width).zip(from.chunks_exact(samples * width)) {
        for (row, values) in to.chunks_exact_mut(to_width).zip(token.chunks_exact(width)) {
            for (&value, &i) in values.iter().zip(index) {
                row[i as usize] += value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattering_undoes_gathering() {
        let table = [4, 0, 1, 3, 2, 5]; // three tokens of two
        let from: Vec<f64> = (0..12).map(f64::from).collect(); // two samples of six
        let mut tokens = vec![0.0; 12];
        gather(&table, 2, &from, 6, &mut tokens, 2);
        assert_eq!(tokens, [4.0, 0.0, 10.0, 6.0, 1.0, 3.0, 7.0, 9.0, 2.0, 5.0, 8.0, 11.0]);
        let mut back = vec![0.0; 12];
        scatter_add(&table, 2, &tokens, 2, &mut back, 6);
        assert_eq!(back, from);
    }
}
