//! Reordering hidden units: the permutations that leave a network's function
//! unchanged.
//!
//! # Source
//! Peebles et al. 2022, arXiv:2209.12892, section 3.2 (permutation augmentation).

use rand::seq::SliceRandom;
use rand::Rng;

use crate::layout::Layout;

/// The reorderings that a layout's unit groups allow.
///
/// # Examples
/// ```
/// use lopt::layout::LayoutBuilder;
/// use lopt::symmetry::Symmetry;
/// use rand::SeedableRng;
///
/// let mut builder = LayoutBuilder::new();
/// builder.scope("hidden", |b| b.linear(2, 3, true));
/// builder.scope("output", |b| b.linear(3, 1, true));
/// let symmetry = Symmetry::new(&builder.finish()?);
///
/// let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
/// let index = symmetry.sample(&mut rng);
/// let flat: Vec<f32> = (0..13).map(|i| i as f32).collect();
/// let mut moved = vec![0.0; 13];
/// lopt::symmetry::gather(&index, &flat, &mut moved);
/// assert_eq!(moved[12], 12.0, "the output bias stays where it is");
/// # Ok::<(), lopt::layout::LayoutError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Symmetry {
    layout: Layout,
}

impl Symmetry {
    /// The symmetry of a layout.
    pub fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone() }
    }

    /// A gather index for uniformly random permutations, one for each group.
    pub fn sample(&self, rng: &mut impl Rng) -> Vec<u32> {
        let permutations: Vec<Vec<usize>> = self
            .layout
            .groups()
            .iter()
            .map(|group| {
                let mut order: Vec<usize> = (0..group.units).collect();
                order.shuffle(rng);
                order
            })
            .collect();
        self.index(&permutations)
    }

    /// The gather index of given permutations: unit `u` of group `g` becomes
    /// what unit `permutations[g][u]` was.
    ///
    /// # Panics
    /// If `permutations` does not hold one permutation of the right length for
    /// each group.
    pub fn index(&self, permutations: &[Vec<usize>]) -> Vec<u32> {
        let groups = self.layout.groups();
        assert_eq!(permutations.len(), groups.len(), "one permutation for each unit group");
        let mut index = Vec::with_capacity(self.layout.num_parameters());
        for (t, tensor) in self.layout.tensors().iter().enumerate() {
            // For each axis of the tensor, where its positions are read from.
            let axes: Vec<Vec<usize>> = tensor
                .shape
                .iter()
                .enumerate()
                .map(|(a, &length)| {
                    let mut source: Vec<usize> = (0..length).collect();
                    for (group, permutation) in groups.iter().zip(permutations) {
                        assert_eq!(permutation.len(), group.units, "group `{}`", group.name);
                        for axis in group.axes.iter().filter(|x| x.tensor == t && x.axis == a) {
                            for (position, from) in source.iter_mut().enumerate() {
                                let (unit, within) = (position / axis.block, position % axis.block);
                                *from = permutation[unit] * axis.block + within;
                            }
                        }
                    }
                    source
                })
                .collect();
            let mut positions = vec![tensor.offset];
            let mut stride = tensor.num_elements();
            for (source, &length) in axes.iter().zip(&tensor.shape) {
                stride /= length;
                positions = positions
                    .iter()
                    .flat_map(|p| source.iter().map(move |s| p + s * stride))
                    .collect();
            }
            index.extend(positions.iter().map(|&p| p as u32));
        }
        index
    }
}

/// `moved[i] = flat[index[i]]`.
///
/// # Panics
/// If the lengths differ.
pub fn gather<E: Copy>(index: &[u32], flat: &[E], moved: &mut [E]) {
    assert_eq!(index.len(), flat.len());
    assert_eq!(index.len(), moved.len());
    for (to, &from) in moved.iter_mut().zip(index) {
        *to = flat[from as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LayoutBuilder;

    #[test]
    fn rows_bias_and_columns_move_together() {
        let mut builder = LayoutBuilder::new();
        builder.scope("a", |b| b.linear(1, 2, true));
        builder.scope("b", |b| b.linear(2, 2, true));
        let symmetry = Symmetry::new(&builder.finish().unwrap());
        // a.weight 0 1, a.bias 2 3, b.weight 4 5 / 6 7, b.bias 8 9
        assert_eq!(symmetry.index(&[vec![1, 0]]), [1, 0, 3, 2, 5, 4, 7, 6, 8, 9]);
        assert_eq!(symmetry.index(&[vec![0, 1]]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
}
