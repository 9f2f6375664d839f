//! The units that flow through a network while its layout is built, and the
//! groups that they form.

use super::{UnitAxis, UnitGroup};

/// What flows from one layer into the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// In a fixed order: the network's input, or something not understood.
    Fixed,
    /// Units of one group.
    Units(Units),
    /// Several values side by side, as dfdx's tuples of tensors.
    Tuple(Vec<Value>),
}

/// Units of a group, each a block of neighbouring positions on one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Units {
    pub group: usize,
    pub place: Place,
    /// Length of the axis, where it is known.
    pub width: Option<usize>,
}

/// Which axis of a tensor the units lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The last: `[.., units]`.
    Vector,
    /// That before height and width: `[.., units, H, W]`.
    Image,
}

/// The groups found so far. A group keeps its index when it becomes part of
/// another.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    drafts: Vec<Draft>,
}

#[derive(Clone, Debug)]
struct Draft {
    group: UnitGroup,
    /// Something depends on the order of the units: they are no group.
    pinned: bool,
    /// The group that this one has become part of.
    merged: Option<usize>,
}

impl Groups {
    /// A new group without axes.
    pub fn begin(&mut self, name: String, units: usize) -> usize {
        let group = UnitGroup { name, units, axes: Vec::new(), odd: true };
        self.drafts.push(Draft { group, pinned: false, merged: None });
        self.drafts.len() - 1
    }

    /// Number of groups so far.
    pub fn count(&self) -> usize {
        self.drafts.len()
    }

    /// Number of units.
    pub fn units(&self, group: usize) -> usize {
        self.drafts[self.root(group)].group.units
    }

    /// Adds an axis of the given length, whose blocks are the units.
    pub fn axis(
        &mut self,
        group: usize,
        length: usize,
        tensor: usize,
        axis: usize,
        produces: bool,
    ) {
        let group = &mut self.draft(group).group;
        let block = length.checked_div(group.units).unwrap_or(0);
        group.axes.push(UnitAxis { tensor, axis, block, produces });
    }

    /// The order of the units in a value matters.
    pub fn pin(&mut self, value: &Value) {
        match value {
            Value::Fixed => {}
            Value::Units(units) => self.draft(units.group).pinned = true,
            Value::Tuple(parts) => parts.iter().for_each(|part| self.pin(part)),
        }
    }

    /// The order of the units of a group matters, of all but the first groups.
    pub fn pin_since(&mut self, first: usize) {
        self.drafts[first..].iter_mut().for_each(|draft| draft.pinned = true);
    }

    /// The signs of the units in a value matter.
    pub fn no_signs(&mut self, value: &Value) {
        match value {
            Value::Fixed => {}
            Value::Units(units) => self.draft(units.group).group.odd = false,
            Value::Tuple(parts) => parts.iter().for_each(|part| self.no_signs(part)),
        }
    }

    /// Makes neighbouring units one, so that `units` of them are left.
    pub fn coarsen(&mut self, group: usize, units: usize) {
        let group = &mut self.draft(group).group;
        let factor = group.units.checked_div(units).unwrap_or(1);
        group.units = units;
        group.axes.iter_mut().for_each(|axis| axis.block *= factor);
    }

    /// The sum of two values.
    pub fn join(&mut self, a: Value, b: Value) -> Value {
        if let (Value::Units(a), Value::Units(b)) = (&a, &b) {
            if let Some(units) = self.merge(*a, *b) {
                return Value::Units(units);
            }
        }
        self.pin(&a);
        self.pin(&b);
        Value::Fixed
    }

    /// Makes one group of the units of two values of the same shape; none if
    /// they have nothing in common.
    fn merge(&mut self, a: Units, b: Units) -> Option<Units> {
        let differ = matches!((a.width, b.width), (Some(a), Some(b)) if a != b);
        if a.place != b.place || differ {
            return None;
        }
        // Where blocks differ, the smallest that both can be made of.
        let (a_units, b_units) = (self.units(a.group), self.units(b.group));
        let common = gcd(a_units, b_units);
        if common == 1 && a_units != b_units {
            return None;
        }
        self.coarsen(a.group, common);
        self.coarsen(b.group, common);
        let (a_root, b_root) = (self.root(a.group), self.root(b.group));
        let (into, from) = (a_root.min(b_root), a_root.max(b_root));
        if into != from {
            let (kept, rest) = self.drafts.split_at_mut(from);
            let (kept, merged) = (&mut kept[into], &mut rest[0]);
            merged.merged = Some(into);
            kept.group.axes.append(&mut merged.group.axes);
            kept.group.odd &= merged.group.odd;
            kept.pinned |= merged.pinned;
        }
        Some(Units { group: into, width: a.width.or(b.width), ..a })
    }

    /// The groups whose order nothing depends on, and which something reads.
    pub fn finish(self) -> Vec<UnitGroup> {
        let free = |draft: &Draft| !draft.pinned && draft.merged.is_none();
        let mut groups: Vec<UnitGroup> =
            self.drafts.into_iter().filter(free).map(|draft| draft.group).collect();
        groups.retain(|group| group.axes.iter().any(|axis| !axis.produces));
        for group in &mut groups {
            group.axes.sort_by_key(|axis| (axis.tensor, axis.axis));
        }
        groups
    }

    /// Index of the draft that holds the units of a group now.
    fn root(&self, mut group: usize) -> usize {
        while let Some(other) = self.drafts[group].merged {
            group = other;
        }
        group
    }

    fn draft(&mut self, group: usize) -> &mut Draft {
        let root = self.root(group);
        &mut self.drafts[root]
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        gcd(b, a % b)
    }
}
