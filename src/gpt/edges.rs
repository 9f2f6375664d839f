//! Weights between the units of two groups: the edges of a graph of units.
//!
//! A unit of a network with one hidden layer has all its weights in its own
//! token. A weight between two hidden layers belongs to two units, and to the
//! token of neither: it is an edge between them. Every block of the transformer
//! passes messages along the edges, in both directions, each message a linear
//! function of its sender multiplied by the weights on the way; and the new
//! weight of an edge is decoded from the tokens at its two ends. Gradients of a
//! network are made of the same sums and products. So the model is equivariant to
//! reordering the units of every group.
//!
//! # Source
//! Kofinas et al. 2024, arXiv:2403.12143, and Lim et al. 2024, arXiv:2312.04501,
//! for networks as graphs whose edges modulate messages.

use std::ops::Range;

use crate::layout::{TensorSpec, UnitAxis};

/// The unit that value `i` of a tensor belongs to along an axis.
pub(super) fn unit_of(tensor: &TensorSpec, axis: &UnitAxis, i: usize) -> usize {
    let stride: usize = tensor.shape[axis.axis + 1..].iter().product();
    i / stride % tensor.shape[axis.axis] / axis.block
}

/// The weights of one tensor, from the units that are read to those that are
/// computed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Edges {
    /// Weights between a unit and another: several with convolutions.
    pub taps: usize,
    /// Position in the flat vector of every weight, `[to, from, taps]`.
    pub table: Vec<u32>,
    /// Along the edges, from the units that the weights read to those that they compute,
    /// and against them.
    pub directions: [Direction; 2],
}

/// Edges as messages go along them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Direction {
    /// Tokens of the units that get messages.
    pub to: Range<usize>,
    /// Tokens of the units that send them.
    pub from: Range<usize>,
    /// Positions in the input row, `[to, from, 2 taps]`: noised weights, then
    /// starting ones.
    pub table: Vec<u32>,
}

/// Gates of a unit's edges when they are decoded: of the noised weights and of the starting
/// ones.
pub(super) const GATES: usize = 2;

impl Edges {
    /// The weights of a tensor between two groups, whose units have the tokens
    /// `to` and `from`, in networks of `parameters` parameters.
    pub fn new(
        tensor: &TensorSpec,
        to: (&UnitAxis, Range<usize>),
        from: (&UnitAxis, Range<usize>),
        parameters: usize,
    ) -> Self {
        let (rows, columns) = (to.1.len(), from.1.len());
        let mut between = vec![Vec::new(); rows * columns];
        for i in 0..tensor.num_elements() {
            let (u, v) = (unit_of(tensor, to.0, i), unit_of(tensor, from.0, i));
            between[u * columns + v].push((tensor.offset + i) as u32);
        }
        let both = |taps: &Vec<u32>| {
            let start = taps.iter().map(|i| i + parameters as u32);
            taps.iter().copied().chain(start).collect::<Vec<u32>>()
        };
        let along = between.iter().flat_map(both).collect();
        let columnwise = (0..columns).flat_map(|v| (0..rows).map(move |u| u * columns + v));
        let against = columnwise.flat_map(|pair| both(&between[pair])).collect();
        let directions = [
            Direction { to: to.1.clone(), from: from.1.clone(), table: along },
            Direction { to: from.1, from: to.1, table: against },
        ];
        let taps = tensor.num_elements() / (rows * columns);
        Self { taps, table: between.concat(), directions }
    }

    /// Values in a message, and terms in what is decoded for each weight: fewer where
    /// there are many taps, each of which has its own.
    pub fn rank(&self) -> usize {
        (128 / self.taps).next_multiple_of(4).clamp(4, 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Role;

    #[test]
    fn weights_by_their_units() {
        // Two units read, each a block of two columns, by three.
        let tensor =
            TensorSpec { name: "weight".into(), shape: vec![3, 4], role: Role::Weight, offset: 10 };
        let axis = |axis, block| UnitAxis { tensor: 0, axis, block, produces: axis == 0 };
        let edges = Edges::new(&tensor, (&axis(0, 1), 2..5), (&axis(1, 2), 0..2), 100);
        assert_eq!(edges.taps, 2);
        assert_eq!(edges.table, (10..22).collect::<Vec<_>>());
        let [along, against] = &edges.directions;
        assert_eq!(along.table[..8], [10, 11, 110, 111, 12, 13, 112, 113]);
        assert_eq!(against.table[..8], [10, 11, 110, 111, 14, 15, 114, 115]);
        assert_eq!((&against.to, &against.from), (&(0..2), &(2..5)));
        assert_eq!(edges.rank(), 32);
    }
}
