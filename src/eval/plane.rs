//! The plane of parameter space in which some networks differ most.
//!
//! Shape letters: `N` networks, `P` parameters.

/// Two directions through the mean of some networks along which they spread most.
///
/// # Source
/// Principal components, from the `N` by `N` matrix of inner products, since there
/// are more parameters than networks.
#[derive(Clone, Debug, PartialEq)]
pub struct Plane {
    /// The mean of the networks, `[P]`.
    pub mean: Vec<f64>,
    /// Unit vectors, at right angles, `[P]`; zero where the networks do not spread.
    pub directions: [Vec<f64>; 2],
    /// Share of the networks' variance that lies along each.
    pub shares: [f64; 2],
}

impl Plane {
    /// The plane of some networks.
    ///
    /// # Shapes
    /// `networks [N, P]`, with `size` = `P`.
    ///
    /// # Panics
    /// If there are no networks or `size` does not divide their length.
    pub fn of(networks: &[f32], size: usize) -> Self {
        assert!(size > 0 && !networks.is_empty() && networks.len().is_multiple_of(size));
        let count = networks.len() / size;
        let mut mean = vec![0.0; size];
        for network in networks.chunks_exact(size) {
            mean.iter_mut().zip(network).for_each(|(m, &p)| *m += f64::from(p) / count as f64);
        }
        let centred: Vec<Vec<f64>> = networks
            .chunks_exact(size)
            .map(|network| network.iter().zip(&mean).map(|(&p, m)| f64::from(p) - m).collect())
            .collect();
        let inner = |i: usize, j: usize| dot(&centred[i], &centred[j]);
        let mut matrix = vec![0.0; count * count];
        for i in 0..count {
            for j in i..count {
                matrix[i * count + j] = inner(i, j);
                matrix[j * count + i] = matrix[i * count + j];
            }
        }
        let trace: f64 = (0..count).map(|i| matrix[i * count + i]).sum();
        let (values, vectors) = eigen(matrix, count);
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        let component = |rank: usize| {
            let mut direction = vec![0.0; size];
            let Some(&column) = order.get(rank).filter(|&&c| values[c] > 1e-12 * trace) else {
                return (direction, 0.0);
            };
            for (row, network) in centred.iter().enumerate() {
                let weight = vectors[row * count + column] / values[column].sqrt();
                direction.iter_mut().zip(network).for_each(|(d, p)| *d += weight * p);
            }
            (direction, values[column] / trace)
        };
        let [first, second] = [component(0), component(1)];
        Self { mean, directions: [first.0, second.0], shares: [first.1, second.1] }
    }

    /// Where a network lies, seen from above the plane.
    ///
    /// # Panics
    /// If the network has another size.
    pub fn project(&self, network: &[f32]) -> [f64; 2] {
        assert_eq!(network.len(), self.mean.len());
        let from_mean: Vec<f64> =
            network.iter().zip(&self.mean).map(|(&p, m)| f64::from(p) - m).collect();
        [0, 1].map(|axis| dot(&from_mean, &self.directions[axis]))
    }

    /// The network at a point of the plane.
    pub fn at(&self, [x, y]: [f64; 2]) -> Vec<f32> {
        let directions = self.directions[0].iter().zip(&self.directions[1]);
        self.mean.iter().zip(directions).map(|(m, (a, b))| (m + x * a + y * b) as f32).collect()
    }
}

/// Euclidean distance of two networks.
pub(super) fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>().sqrt()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Eigenvalues and, in columns, eigenvectors of a symmetric matrix, in any order.
///
/// # Source
/// Jacobi's method; Golub and Van Loan, Matrix Computations, section 8.5.
fn eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    for _ in 0..64 {
        let off: f64 = (0..n * n).filter(|k| k / n != k % n).map(|k| a[k] * a[k]).sum();
        let all: f64 = a.iter().map(|v| v * v).sum();
        if off <= 1e-24 * all {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p * n + q] == 0.0 {
                    continue;
                }
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * a[p * n + q]);
                let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let sine = tangent * cosine;
                let rotate = |x: &mut f64, y: &mut f64| {
                    (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                };
                for k in 0..n {
                    let (mut x, mut y) = (a[k * n + p], a[k * n + q]);
                    rotate(&mut x, &mut y);
                    (a[k * n + p], a[k * n + q]) = (x, y);
                }
                for k in 0..n {
                    let (mut x, mut y) = (a[p * n + k], a[q * n + k]);
                    rotate(&mut x, &mut y);
                    (a[p * n + k], a[q * n + k]) = (x, y);
                    let (mut x, mut y) = (vectors[k * n + p], vectors[k * n + q]);
                    rotate(&mut x, &mut y);
                    (vectors[k * n + p], vectors[k * n + q]) = (x, y);
                }
            }
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points `mean + a u + b v` for right-angled unit vectors `u` and `v`.
    fn cloud(points: &[[f64; 2]]) -> (Vec<f32>, [Vec<f64>; 2]) {
        let u: Vec<f64> = (0..50).map(|i| if i < 25 { 0.2 } else { 0.0 }).collect();
        let v: Vec<f64> = (0..50).map(|i| if i < 25 { 0.0 } else { 0.2 }).collect();
        let at = |[a, b]: &[f64; 2]| {
            u.iter().zip(&v).map(move |(u, v)| (3.0 + a * u + b * v) as f32).collect::<Vec<_>>()
        };
        (points.iter().flat_map(at).collect(), [u, v])
    }

    #[test]
    fn the_plane_of_a_flat_cloud_holds_it() {
        let points = [[4.0, 0.0], [-4.0, 0.0], [0.0, 1.0], [0.0, -1.0]];
        let (networks, directions) = cloud(&points);
        let plane = Plane::of(&networks, 50);
        for (found, expected) in plane.directions.iter().zip(&directions) {
            assert!((dot(found, expected).abs() - 1.0).abs() < 1e-6);
        }
        assert!((plane.shares[0] - 16.0 / 17.0).abs() < 1e-6, "{:?}", plane.shares);
        assert!((plane.shares[1] - 1.0 / 17.0).abs() < 1e-6, "{:?}", plane.shares);
        for (network, [a, b]) in networks.chunks(50).zip(points) {
            let place = plane.project(network);
            assert!((place[0].abs() - f64::abs(a)).abs() < 1e-5);
            assert!((place[1].abs() - f64::abs(b)).abs() < 1e-5);
            for (p, q) in plane.at(place).iter().zip(network) {
                assert!((p - q).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn networks_that_do_not_spread_have_a_plane_too() {
        let one = Plane::of(&[1.0, 2.0, 3.0], 3);
        assert_eq!((one.shares, one.project(&[9.0, 9.0, 9.0])), ([0.0; 2], [0.0; 2]));
        assert_eq!(one.at([5.0, 5.0]), [1.0, 2.0, 3.0]);
        let line = Plane::of(&[1.0, 1.0, 3.0, 3.0], 2);
        assert!((line.shares[0] - 1.0).abs() < 1e-12 && line.shares[1] == 0.0);
    }

    #[test]
    fn eigenvectors_rebuild_the_matrix() {
        let n = 7;
        let entry = |i: usize, j: usize| ((i * j + i + j) as f64 * 1.7).sin();
        let matrix: Vec<f64> = (0..n * n).map(|k| entry(k / n, k % n)).collect();
        let (values, vectors) = eigen(matrix.clone(), n);
        for (k, &expected) in matrix.iter().enumerate() {
            let (i, j) = (k / n, k % n);
            let sum: f64 =
                (0..n).map(|c| values[c] * vectors[i * n + c] * vectors[j * n + c]).sum();
            assert!((sum - expected).abs() < 1e-9);
        }
    }
}
