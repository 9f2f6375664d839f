//! Reordering hidden units, and changing their signs: what leaves a network's
//! function unchanged.
//!
//! # Batch norms
//! The scale and the shift of a batch norm move with its units. So do its
//! running statistics, which are no parameters: they are not in the flat vector
//! and stay where they are. In training, where the statistics are those of the
//! batch, a transformed network computes what it did before; in inference it
//! does once its statistics have been estimated again, as they have to be
//! whenever a learned optimizer has written parameters.
//!
//! # Source
//! Peebles et al. 2022, arXiv:2209.12892, section 3.2 (permutation
//! augmentation). Signs: Chen, Lu and Hecht-Nielsen 1993, "On the geometry of
//! feedforward neural network error surfaces", Neural Computation 5(6).

use std::ops::Neg;

use rand::seq::SliceRandom;
use rand::Rng;

use crate::layout::{Layout, Role};

/// The reorderings and changes of sign that a layout's unit groups allow.
///
/// # Examples
/// ```
/// use lopt::layout::LayoutBuilder;
/// use lopt::symmetry::Symmetry;
/// use rand::SeedableRng;
///
/// let mut builder = LayoutBuilder::new();
/// builder.scope("hidden", |b| b.linear(2, 3, true));
/// builder.odd("Tanh");
/// builder.scope("output", |b| b.linear(3, 1, true));
/// let symmetry = Symmetry::new(&builder.finish()?);
///
/// let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
/// let transformation = symmetry.sample(&mut rng);
/// let flat: Vec<f32> = (0..13).map(|i| i as f32).collect();
/// let mut moved = vec![0.0; 13];
/// transformation.apply(&flat, &mut moved);
/// assert_eq!(moved[12], 12.0, "the output bias stays where it is");
/// # Ok::<(), lopt::layout::LayoutError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Symmetry {
    layout: Layout,
    /// See [`unit_places`](Self::unit_places).
    places: Vec<UnitPlace>,
}

/// Which unit a position of the flat vector moves with along one axis of its tensor: a number
/// and a distance.
///
/// The number is twice that of the unit, counted through all groups, plus one if the position
/// changes its sign with the unit. The distance is that between two units in the flat vector.
/// Both are 0 where nothing moves.
pub(crate) type UnitPlace = [u32; 2];

impl Symmetry {
    /// The symmetry of a layout.
    pub fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone(), places: unit_places(layout) }
    }

    /// Uniformly random permutations, one for each group, and uniformly random
    /// signs for the units of each [odd](crate::layout::UnitGroup::odd) group.
    pub fn sample(&self, rng: &mut impl Rng) -> Transformation {
        self.apply_moves(&self.sample_moves(|_| true, rng))
    }

    /// As [`sample`](Self::sample), for the units of one group only.
    ///
    /// # Panics
    /// If there are not as many groups.
    pub fn sample_group(&self, group: usize, rng: &mut impl Rng) -> Transformation {
        let groups = self.layout.groups().len();
        assert!(group < groups, "group {group}, expected one of {groups}");
        self.apply_moves(&self.sample_moves(|g| g == group, rng))
    }

    /// What [`sample`](Self::sample) draws, of the chosen groups, unit by unit: see
    /// [`moves`](Self::moves).
    pub(crate) fn sample_moves(
        &self,
        chosen: impl Fn(usize) -> bool,
        rng: &mut impl Rng,
    ) -> Vec<i32> {
        let groups = self.layout.groups();
        let permutations: Vec<Vec<usize>> = groups
            .iter()
            .enumerate()
            .map(|(index, group)| {
                let mut order: Vec<usize> = (0..group.units).collect();
                if chosen(index) {
                    order.shuffle(rng);
                }
                order
            })
            .collect();
        // After all permutations, which signs leave as they were without them.
        let flips: Vec<Vec<bool>> = groups
            .iter()
            .enumerate()
            .map(|(index, group)| {
                let units = if group.odd && chosen(index) { group.units } else { 0 };
                (0..units).map(|_| rng.gen()).collect()
            })
            .collect();
        self.moves(&permutations, &flips)
    }

    /// Given permutations, as for [`index`](Self::index), and changes of sign:
    /// those of the units `u` of group `g` with `flips[g][u]`, as they are numbered
    /// after it. An empty list, for a group or for all, is for no changes.
    ///
    /// The network keeps its function if only units of
    /// [odd](crate::layout::UnitGroup::odd) groups change their signs.
    ///
    /// # Panics
    /// If a list that is not empty has another length than it should.
    pub fn transformation(
        &self,
        permutations: &[Vec<usize>],
        flips: &[Vec<bool>],
    ) -> Transformation {
        self.apply_moves(&self.moves(permutations, flips))
    }

    /// The gather index of given permutations: unit `u` of group `g` becomes
    /// what unit `permutations[g][u]` was.
    ///
    /// # Panics
    /// If `permutations` does not hold one permutation of the right length for
    /// each group.
    pub fn index(&self, permutations: &[Vec<usize>]) -> Vec<u32> {
        self.transformation(permutations, &[]).index
    }

    /// For each unit of all groups, twice how far away the unit is that it becomes, plus one if
    /// it changes its sign.
    fn moves(&self, permutations: &[Vec<usize>], flips: &[Vec<bool>]) -> Vec<i32> {
        let groups = self.layout.groups();
        assert_eq!(permutations.len(), groups.len(), "one permutation for each unit group");
        assert!([0, groups.len()].contains(&flips.len()), "signs for each unit group");
        let mut moves = Vec::with_capacity(self.num_units());
        for (g, (group, permutation)) in groups.iter().zip(permutations).enumerate() {
            let flips = flips.get(g).map_or(&[][..], Vec::as_slice);
            assert_eq!(permutation.len(), group.units, "group `{}`", group.name);
            assert!([0, group.units].contains(&flips.len()), "group `{}`", group.name);
            moves.extend(permutation.iter().enumerate().map(|(unit, &from)| {
                let flipped = flips.get(unit).is_some_and(|&flipped| flipped);
                2 * (from as i32 - unit as i32) + i32::from(flipped)
            }));
        }
        moves
    }

    /// Number of units of all groups.
    pub(crate) fn num_units(&self) -> usize {
        self.layout.groups().iter().map(|group| group.units).sum()
    }

    /// Where every position of the flat vector lies among the units, `[A, P]`, for as many axes
    /// `A` as the units of any one tensor lie on.
    #[cfg(feature = "cuda")]
    pub(crate) fn unit_places(&self) -> &[UnitPlace] {
        &self.places
    }

    pub(crate) fn apply_moves(&self, moves: &[i32]) -> Transformation {
        let mut index: Vec<u32> = (0..self.layout.num_parameters() as u32).collect();
        let mut flipped = match moves.iter().any(|sign| sign & 1 == 1) {
            true => vec![false; index.len()],
            false => Vec::new(),
        };
        for places in self.places.chunks_exact(index.len().max(1)) {
            for (from, &[unit, step]) in index.iter_mut().zip(places) {
                let distance = moves[unit as usize >> 1] >> 1;
                *from = from.wrapping_add_signed(distance.wrapping_mul(step as i32));
            }
            for (flipped, &[unit, _]) in flipped.iter_mut().zip(places) {
                *flipped ^= unit as i32 & moves[unit as usize >> 1] & 1 == 1;
            }
        }
        Transformation { index, flipped }
    }
}

/// See [`Symmetry::unit_places`].
fn unit_places(layout: &Layout) -> Vec<UnitPlace> {
    let size = layout.num_parameters();
    let mut places: Vec<UnitPlace> = Vec::new();
    for (t, tensor) in layout.tensors().iter().enumerate() {
        let mut moving = 0;
        let mut step = tensor.num_elements();
        for (a, &length) in tensor.shape.iter().enumerate() {
            let stride = step / length;
            let mut first = 0;
            let mut own = None;
            for group in layout.groups() {
                let axis = group.axes.iter().find(|axis| axis.tensor == t && axis.axis == a);
                own = axis.map(|axis| (first, axis.block)).or(own);
                first += group.units;
            }
            step = stride;
            let Some((first, block)) = own else { continue };
            if places.len() == moving * size {
                places.resize(places.len() + size, [0; 2]);
            }
            // A unit keeps its scale: that of what is shifted changes its sign.
            let signed = u32::from(tensor.role != Role::Scale);
            let row = &mut places[moving * size..][tensor.range()];
            for (i, place) in row.iter_mut().enumerate() {
                let unit = first + i / stride % length / block;
                *place = [2 * unit as u32 + signed, (stride * block) as u32];
            }
            moving += 1;
        }
    }
    places
}

/// One reordering of the units of a network, with changes of their signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transformation {
    index: Vec<u32>,
    /// By position after reordering; empty if no sign changes.
    flipped: Vec<bool>,
}

impl Transformation {
    /// Where each value is read from, to [`gather`] with.
    pub fn index(&self) -> &[u32] {
        &self.index
    }

    /// Whether the value that ends up at `position` changes its sign.
    pub fn flips(&self, position: usize) -> bool {
        self.flipped.get(position).copied().unwrap_or(false)
    }

    /// Writes the transformed vector to `moved`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn apply<E: Copy + Neg<Output = E>>(&self, flat: &[E], moved: &mut [E]) {
        gather(&self.index, flat, moved);
        for (value, _) in moved.iter_mut().zip(&self.flipped).filter(|(_, &flipped)| flipped) {
            *value = -*value;
        }
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
        let flipped = symmetry.transformation(&[vec![0, 1]], &[vec![false, true]]);
        let positions: Vec<usize> = (0..10).filter(|&i| flipped.flips(i)).collect();
        assert_eq!(positions, [1, 3, 5, 7]);
    }

    #[test]
    fn a_weight_with_units_on_both_axes_changes_its_sign_twice() {
        let mut builder = LayoutBuilder::new();
        builder.scope("a", |b| b.linear(1, 2, false));
        builder.residual(|b| b.scope("b", |b| b.linear(2, 2, false)));
        builder.scope("c", |b| b.linear(2, 1, false));
        let symmetry = Symmetry::new(&builder.finish().unwrap());
        // a 0 1, b 2 3 / 4 5, c 6 7
        assert_eq!(symmetry.index(&[vec![1, 0]]), [1, 0, 5, 4, 3, 2, 7, 6]);
        let flipped = symmetry.transformation(&[vec![0, 1]], &[vec![false, true]]);
        let positions: Vec<usize> = (0..8).filter(|&i| flipped.flips(i)).collect();
        assert_eq!(positions, [1, 3, 4, 7]);
    }
}
