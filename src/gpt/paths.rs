//! What a unit is to the ends of the network: products of the starting weights
//! along the paths that lead through it.
//!
//! A unit of a network with one hidden layer has its inputs and its outputs in
//! its own token. A unit between other hidden units has not: which class it
//! speaks for depends on all the units that read it. So its token gets the sum
//! over all paths of the products of their weights: as many values as the
//! network has outputs, or inputs. Sums over the units of a group do not depend
//! on their order, so these values move with their unit and are otherwise
//! unchanged when units are reordered.
//!
//! Activations, biases and normalisations on the way are left out, and so are
//! weights from a group to itself. The weights are taken in the order of the
//! layout; for another order the values say less, but are as well defined.
//! Every weight is divided by the root of the number of values that it sums, so
//! that products of normalised weights stay of their order.

use std::ops::Range;

use super::config::ConfigError;
use super::tokens::MOST_PARAMETERS;
use crate::engine::Float;
use crate::layout::{Layout, TensorSpec, UnitAxis};

/// The unit that value `i` of a tensor belongs to along an axis.
pub(super) fn unit_of(tensor: &TensorSpec, axis: &UnitAxis, i: usize) -> usize {
    let stride: usize = tensor.shape[axis.axis + 1..].iter().product();
    i / stride % tensor.shape[axis.axis] / axis.block
}

/// Where the values of the units of a group lie, unit by unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    start: usize,
    units: usize,
    width: usize,
}

impl Span {
    /// Values of one unit.
    pub fn unit(&self, unit: usize) -> Range<usize> {
        self.start + unit * self.width..self.start + (unit + 1) * self.width
    }

    fn range(&self) -> Range<usize> {
        self.start..self.start + self.units * self.width
    }
}

/// A weight between two groups: `to[u] += scale * weight * from[v]` for each of
/// its values.
#[derive(Clone, Debug, PartialEq)]
struct Product {
    from: Span,
    to: Span,
    scale: f64,
    /// Position in the flat vector, unit `u`, unit `v`.
    entries: Vec<[u32; 3]>,
}

/// How the products along all paths of a layout are computed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Paths {
    len: usize,
    /// Groups whose units have products.
    spans: Vec<(usize, Span)>,
    /// Weights at the ends of paths: position in the flat vector, and where it is added.
    ends: Vec<[u32; 2]>,
    products: Vec<Product>,
}

impl Paths {
    /// The paths of a layout; none if no weight lies between two of its groups.
    ///
    /// # Errors
    /// If there are more products than parameters that a network may have.
    pub fn new(layout: &Layout) -> Result<Option<Self>, ConfigError> {
        let groups = layout.groups();
        let attached = |tensor: usize, produces: bool| {
            groups.iter().enumerate().find_map(|(g, group)| {
                let mut axes = group.axes.iter();
                let axis = axes.find(|a| a.tensor == tensor && a.produces == produces);
                axis.map(|axis| (g, axis))
            })
        };
        let (mut first, mut between, mut last) = (Vec::new(), Vec::new(), Vec::new());
        for (index, tensor) in layout.tensors().iter().enumerate() {
            if tensor.shape.len() < 2 {
                continue;
            }
            match (attached(index, true), attached(index, false)) {
                (Some(to), Some(from)) if to.0 != from.0 => between.push((tensor, to, from)),
                (Some(to), None) => first.push((tensor, to)),
                (None, Some(from)) => last.push((tensor, from)),
                _ => {}
            }
        }
        if between.is_empty() {
            return Ok(None);
        }
        let row = |tensor: &TensorSpec, units: usize| tensor.num_elements() / units;
        let inputs: usize = first.iter().map(|(t, (g, _))| row(t, groups[*g].units)).sum();
        let outputs: usize = last.iter().map(|(t, _)| t.shape[0]).sum();
        let mut len = 0;
        let mut spans = |width: usize| -> Vec<Span> {
            let take = |group: &crate::layout::UnitGroup| {
                let span = Span { start: len, units: group.units, width };
                len = span.range().end;
                span
            };
            groups.iter().map(take).collect()
        };
        let (above, below) = (spans(inputs), spans(outputs));
        let expected = format!("at most {MOST_PARAMETERS} products along paths");
        ConfigError::check(len <= MOST_PARAMETERS, "paths", &len, &expected)?;

        let mut paths = Self { len, spans: Vec::new(), ends: Vec::new(), products: Vec::new() };
        let mut column = 0;
        for (tensor, (group, axis)) in &first {
            let mut filled = vec![column; groups[*group].units];
            for i in 0..tensor.num_elements() {
                let unit = unit_of(tensor, axis, i);
                paths.end(tensor.offset + i, above[*group].unit(unit).start + filled[unit]);
                filled[unit] += 1;
            }
            column = filled[0];
        }
        let mut column = 0;
        for (tensor, (group, axis)) in &last {
            let values = row(tensor, tensor.shape[0]);
            for i in 0..tensor.num_elements() {
                let to = below[*group].unit(unit_of(tensor, axis, i)).start;
                paths.end(tensor.offset + i, to + column + i / values);
            }
            column += tensor.shape[0];
        }
        for (tensor, (to, to_axis), (from, from_axis)) in &between {
            paths.product(tensor, (above[*to], to_axis), (above[*from], from_axis));
            paths.spans.push((*to, above[*to]));
        }
        for (tensor, (to, to_axis), (from, from_axis)) in between.iter().rev() {
            paths.product(tensor, (below[*from], from_axis), (below[*to], to_axis));
            paths.spans.push((*from, below[*from]));
        }
        paths.spans.sort_by_key(|(group, span)| (*group, span.start));
        paths.spans.dedup();
        Ok(Some(paths))
    }

    /// Number of values that are computed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Groups whose units have products, and where these are; a group may be
    /// there twice.
    pub fn spans(&self) -> &[(usize, Span)] {
        &self.spans
    }

    /// Computes the products of one network.
    ///
    /// # Shapes
    /// `start [P]`, `products` as long as [`len`](Self::len).
    pub fn compute<F: Float>(&self, start: &[F], products: &mut [F]) {
        products.fill(F::zero());
        for &[position, to] in &self.ends {
            products[to as usize] += start[position as usize];
        }
        for Product { from, to, scale, entries } in &self.products {
            let scale = F::from_f64(*scale);
            // They do not overlap, for they belong to different groups.
            let (low, high) = products.split_at_mut(from.start.max(to.start));
            let (source, target) = match from.start < to.start {
                true => (&low[from.range()], &mut high[..to.units * to.width]),
                false => (&high[..from.units * from.width], &mut low[to.range()]),
            };
            let width = to.width;
            for &[position, u, v] in entries {
                let weight = scale * start[position as usize];
                let source = &source[v as usize * width..][..width];
                let target = &mut target[u as usize * width..][..width];
                target.iter_mut().zip(source).for_each(|(t, &s)| *t += weight * s);
            }
        }
    }

    fn end(&mut self, position: usize, to: usize) {
        self.ends.push([position as u32, to as u32]);
    }

    fn product(&mut self, tensor: &TensorSpec, to: (Span, &UnitAxis), from: (Span, &UnitAxis)) {
        let entry = |i| {
            let units = [to.1, from.1].map(|axis| unit_of(tensor, axis, i) as u32);
            [(tensor.offset + i) as u32, units[0], units[1]]
        };
        let entries: Vec<[u32; 3]> = (0..tensor.num_elements()).map(entry).collect();
        let scale = (to.0.units as f64 / entries.len() as f64).sqrt();
        self.products.push(Product { from: from.0, to: to.0, scale, entries });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LayoutBuilder;
    use crate::symmetry::{gather, Symmetry};

    #[test]
    fn products_by_hand() {
        let mut builder = LayoutBuilder::new();
        builder.scope("a", |b| b.linear(1, 2, true));
        builder.scope("b", |b| b.linear(2, 1, true));
        builder.scope("c", |b| b.linear(1, 2, true));
        let paths = Paths::new(&builder.finish().unwrap()).unwrap().unwrap();
        let flat = [2.0, 3.0, 9.0, 9.0, 5.0, 7.0, 9.0, 11.0, 13.0, 9.0, 9.0];
        let mut products = vec![0.0f64; paths.len()];
        paths.compute(&flat, &mut products);
        let values = |(group, span): &(usize, Span)| (*group, &products[span.range()]);
        let found: Vec<_> = paths.spans().iter().map(values).collect();
        let from_input = (2.0 * 5.0 + 3.0 * 7.0) * 0.5f64.sqrt();
        let to_outputs = [5.0 * 11.0, 5.0 * 13.0, 7.0 * 11.0, 7.0 * 13.0];
        assert_eq!(found[0], (0, &to_outputs[..]));
        assert_eq!(found[1].0, 1);
        assert!((found[1].1[0] - from_input).abs() < 1e-12);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn products_move_with_their_units() {
        let mut builder = LayoutBuilder::new();
        builder.scope("a", |b| b.conv2d("Conv2D<3>", 2, 4, 3, 1, true));
        builder.scope("b", |b| b.conv2d("Conv2D<3>", 4, 3, 3, 1, false));
        builder.residual(|b| b.scope("c", |b| b.conv2d("Conv2D<3>", 3, 3, 3, 1, true)));
        builder.flatten("Flatten2D");
        builder.scope("d", |b| b.linear(3 * 4, 5, true));
        builder.scope("e", |b| b.linear(5, 2, true));
        let layout = builder.finish().unwrap();
        let paths = Paths::new(&layout).unwrap().unwrap();
        let flat: Vec<f64> = (0..layout.num_parameters()).map(|i| ((i * i) as f64).sin()).collect();
        let orders = [vec![2, 0, 3, 1], vec![1, 2, 0], vec![4, 2, 0, 1, 3]];
        let mut moved = vec![0.0; flat.len()];
        gather(&Symmetry::new(&layout).index(&orders), &flat, &mut moved);
        let compute = |flat: &[f64]| {
            let mut products = vec![0.0; paths.len()];
            paths.compute(flat, &mut products);
            products
        };
        let (products, of_moved) = (compute(&flat), compute(&moved));
        assert!(paths.spans().len() == 4);
        for (group, span) in paths.spans() {
            for (unit, &before) in orders[*group].iter().enumerate() {
                let (new, old) = (&of_moved[span.unit(unit)], &products[span.unit(before)]);
                assert!(new.iter().zip(old).all(|(a, b)| (a - b).abs() < 1e-12));
                assert!(new.iter().any(|value| value.abs() > 1e-3));
            }
        }
    }

    #[test]
    fn one_group_has_no_paths_between_groups() {
        let mut builder = LayoutBuilder::new();
        builder.scope("a", |b| b.linear(3, 4, true));
        builder.scope("b", |b| b.linear(4, 2, true));
        assert_eq!(Paths::new(&builder.finish().unwrap()), Ok(None));
    }
}
