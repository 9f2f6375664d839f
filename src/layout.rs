//! Where each tensor of a network lies in one flat parameter vector.
//!
//! A [`Layout`] lists the trainable tensors of a network in definition order
//! with their shapes, roles and offsets, and its [unit groups](UnitGroup): the
//! sets of hidden units that can be reordered without changing the function.
//! It is what a checkpoint store, a G.pt and a weights file agree on, so it is
//! serialisable, and [validated](LayoutBuilder::finish) whenever it is built
//! or read.

mod builder;
mod units;

use std::fmt;

pub use builder::{Flow, LayoutBuilder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Why a layout is not usable, or does not match another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A tensor has no elements.
    #[error("tensor `{tensor}` has shape {shape:?}, expected at least one element")]
    EmptyTensor {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Two tensors carry one name.
    #[error("two tensors are named `{tensor}`, expected every name once")]
    DuplicateName {
        /// The name.
        tensor: String,
    },
    /// A unit group refers to something that the layout does not hold.
    #[error("unit group `{group}`: {problem}")]
    InvalidGroup {
        /// Name of the group.
        group: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The numbers of tensors differ.
    #[error("layout has {found} tensors, expected {expected}")]
    TensorCount {
        /// Tensors found.
        found: usize,
        /// Tensors expected.
        expected: usize,
    },
    /// A tensor differs in shape or role.
    #[error(
        "tensor {index} (`{found_name}`) is a {found_role} of shape {found_shape:?}, \
         expected `{expected_name}`, a {expected_role} of shape {expected_shape:?}"
    )]
    Tensor {
        /// Position in the layout.
        index: usize,
        /// Name found.
        found_name: String,
        /// Role found.
        found_role: Role,
        /// Shape found.
        found_shape: Vec<usize>,
        /// Name expected.
        expected_name: String,
        /// Role expected.
        expected_role: Role,
        /// Shape expected.
        expected_shape: Vec<usize>,
    },
    /// The layers between the tensors differ (another activation, say).
    #[error("layers are {found}, expected {expected}")]
    Layers {
        /// Layers found.
        found: String,
        /// Layers expected.
        expected: String,
    },
    /// The tensors agree, but the unit groups differ.
    #[error("unit groups are {found:?}, expected {expected:?}")]
    Groups {
        /// Names of the groups found.
        found: Vec<String>,
        /// Names of the groups expected.
        expected: Vec<String>,
    },
    /// A flat vector is too short or too long.
    #[error("flat vector holds {found} values, expected {expected}")]
    Length {
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
}

/// What a tensor does in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Weight of a linear map or convolution, `[out, in, ..]`.
    Weight,
    /// Bias added to the units of a layer, `[out]`.
    Bias,
    /// Scale (gamma) of a normalisation.
    Scale,
    /// Shift (beta) of a normalisation.
    Shift,
    /// Not known: a tensor of a layer that lopt cannot follow.
    Other,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
            Self::Scale => "scale",
            Self::Shift => "shift",
            Self::Other => "tensor",
        })
    }
}

/// One tensor of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Dotted field path, as dfdx's safetensors files spell it.
    pub name: String,
    /// Shape, in dfdx's layout (`Linear` weight: `[out, in]`).
    pub shape: Vec<usize>,
    /// What it does in its layer.
    pub role: Role,
    /// Position of its first value in the flat vector.
    pub offset: usize,
}

impl TensorSpec {
    /// Number of values.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Positions of its values in the flat vector.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.num_elements()
    }
}

/// One axis of one tensor along which the units of a group lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitAxis {
    /// Index of the tensor in the layout.
    pub tensor: usize,
    /// Axis of the tensor.
    pub axis: usize,
    /// Neighbouring positions on the axis that belong to one unit: 1 for a
    /// linear layer after a linear layer, height times width after a flatten.
    pub block: usize,
    /// Whether the tensor computes the units (rows of a weight, its bias, its
    /// normalisation) rather than reads them (columns of the next weight).
    pub produces: bool,
}

/// Hidden units that can be reordered together without changing the function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitGroup {
    /// Name of the layer that produces the units.
    pub name: String,
    /// Number of units.
    pub units: usize,
    /// Every axis that the units appear on.
    pub axes: Vec<UnitAxis>,
    /// Whether a unit may also change its sign, in all of its axes but those of
    /// a [`Role::Scale`]: true if everything between the tensors that produce the
    /// units and those that read them is odd, such as `Tanh`.
    ///
    /// It follows from the layers and is no part of the [`Fingerprint`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub odd: bool,
}

/// Identifies the structure of a layout: shapes, roles, layers and unit
/// groups, but no names, so that two programs may call their fields differently.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(String);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The tensors of a network in one flat vector.
///
/// # Examples
/// ```
/// use lopt::layout::{LayoutBuilder, Role};
///
/// let mut builder = LayoutBuilder::new();
/// builder.tensor("fc.weight", &[10, 64], Role::Weight);
/// builder.tensor("fc.bias", &[10], Role::Bias);
/// let layout = builder.finish()?;
/// assert_eq!(layout.num_parameters(), 650);
/// assert_eq!(layout.tensors()[1].offset, 640);
/// # Ok::<(), lopt::layout::LayoutError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Layout {
    tensors: Vec<TensorSpec>,
    groups: Vec<UnitGroup>,
    layers: Vec<String>,
}

impl Layout {
    /// Tensors in definition order.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Unit groups in the order of the layers that produce them.
    pub fn groups(&self) -> &[UnitGroup] {
        &self.groups
    }

    /// Kinds of the layers in the order in which they are applied, empty where
    /// they are not known (a layout read from a foreign data set).
    pub fn layers(&self) -> &[String] {
        &self.layers
    }

    /// Length of the flat vector.
    pub fn num_parameters(&self) -> usize {
        self.tensors.last().map_or(0, |last| last.range().end)
    }

    /// Hash of the structure; see [`Fingerprint`].
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        for tensor in &self.tensors {
            hash.update(format!("{}{:?};", tensor.role, tensor.shape));
        }
        for group in &self.groups {
            hash.update(format!("group {} {:?};", group.units, group.axes));
        }
        hash.update(format!("layers {:?}", self.layers));
        let digest = hash.finalize();
        Fingerprint(digest[..8].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Checks that `self`, which was found, has the structure of `expected`.
    ///
    /// Names may differ.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_matches(&self, expected: &Layout) -> Result<(), LayoutError> {
        for (index, (found, wanted)) in self.tensors.iter().zip(&expected.tensors).enumerate() {
            if found.shape != wanted.shape || found.role != wanted.role {
                return Err(LayoutError::Tensor {
                    index,
                    found_name: found.name.clone(),
                    found_role: found.role,
                    found_shape: found.shape.clone(),
                    expected_name: wanted.name.clone(),
                    expected_role: wanted.role,
                    expected_shape: wanted.shape.clone(),
                });
            }
        }
        if self.tensors.len() != expected.tensors.len() {
            return Err(LayoutError::TensorCount {
                found: self.tensors.len(),
                expected: expected.tensors.len(),
            });
        }
        if self.layers != expected.layers {
            return Err(LayoutError::Layers {
                found: self.layers.join(" "),
                expected: expected.layers.join(" "),
            });
        }
        let same = self.groups.len() == expected.groups.len()
            && self
                .groups
                .iter()
                .zip(&expected.groups)
                .all(|(a, b)| a.units == b.units && a.axes == b.axes);
        if !same {
            let names = |layout: &Layout| layout.groups.iter().map(|g| g.name.clone()).collect();
            return Err(LayoutError::Groups { found: names(self), expected: names(expected) });
        }
        Ok(())
    }

    /// Checks the length of a flat vector.
    ///
    /// # Errors
    /// [`LayoutError::Length`].
    pub fn check_length(&self, found: usize) -> Result<(), LayoutError> {
        let expected = self.num_parameters();
        if found == expected {
            Ok(())
        } else {
            Err(LayoutError::Length { found, expected })
        }
    }
}

/// What a layout is made of and stored as; offsets follow from it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Parts {
    tensors: Vec<TensorPart>,
    groups: Vec<UnitGroup>,
    layers: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct TensorPart {
    name: String,
    shape: Vec<usize>,
    role: Role,
}

impl From<Layout> for Parts {
    fn from(layout: Layout) -> Self {
        let tensors = layout
            .tensors
            .into_iter()
            .map(|t| TensorPart { name: t.name, shape: t.shape, role: t.role })
            .collect();
        Self { tensors, groups: layout.groups, layers: layout.layers }
    }
}

impl TryFrom<Parts> for Layout {
    type Error = LayoutError;

    fn try_from(parts: Parts) -> Result<Self, LayoutError> {
        let mut names = std::collections::HashSet::new();
        let mut tensors = Vec::with_capacity(parts.tensors.len());
        let mut offset = 0usize;
        for TensorPart { name, shape, role } in parts.tensors {
            let size = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(0);
            let end = offset.checked_add(size).filter(|_| size > 0);
            let Some(end) = end else {
                return Err(LayoutError::EmptyTensor { tensor: name, shape });
            };
            if !names.insert(name.clone()) {
                return Err(LayoutError::DuplicateName { tensor: name });
            }
            tensors.push(TensorSpec { name, shape, role, offset });
            offset = end;
        }
        for group in &parts.groups {
            check_group(group, &tensors)?;
        }
        Ok(Self { tensors, groups: parts.groups, layers: parts.layers })
    }
}

fn check_group(group: &UnitGroup, tensors: &[TensorSpec]) -> Result<(), LayoutError> {
    let invalid =
        |problem: String| LayoutError::InvalidGroup { group: group.name.clone(), problem };
    if group.units == 0 {
        return Err(invalid("it has no units, expected at least one".into()));
    }
    if group.axes.is_empty() {
        return Err(invalid("it names no axis, expected at least one".into()));
    }
    for (i, axis) in group.axes.iter().enumerate() {
        let Some(tensor) = tensors.get(axis.tensor) else {
            let problem =
                format!("it names tensor {}, expected one of {}", axis.tensor, tensors.len());
            return Err(invalid(problem));
        };
        let Some(&length) = tensor.shape.get(axis.axis) else {
            let problem = format!(
                "it names axis {} of `{}`, which has {}",
                axis.axis,
                tensor.name,
                tensor.shape.len()
            );
            return Err(invalid(problem));
        };
        if axis.block.checked_mul(group.units) != Some(length) {
            let problem = format!(
                "axis {} of `{}` is {length} long, expected {} units of {}",
                axis.axis, tensor.name, group.units, axis.block
            );
            return Err(invalid(problem));
        }
        if group.axes[..i].iter().any(|a| a.tensor == axis.tensor && a.axis == axis.axis) {
            return Err(invalid(format!("it names axis {} of `{}` twice", axis.axis, tensor.name)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mlp() -> Layout {
        let mut builder = LayoutBuilder::new();
        builder.scope("hidden", |b| b.linear(64, 10, true));
        builder.unitwise("ReLU");
        builder.scope("output", |b| b.linear(10, 5, true));
        builder.finish().unwrap()
    }

    #[test]
    fn units_are_followed_to_the_layer_that_reads_them() {
        let layout = mlp();
        assert_eq!(layout.num_parameters(), 64 * 10 + 10 + 50 + 5);
        let axis = |tensor, axis, produces| UnitAxis { tensor, axis, block: 1, produces };
        assert_eq!(layout.groups().len(), 1, "outputs form no group");
        assert_eq!(
            layout.groups()[0].axes,
            [axis(0, 0, true), axis(1, 0, true), axis(2, 1, false)]
        );
    }

    #[test]
    fn opaque_layers_break_the_thread() {
        let mut builder = LayoutBuilder::new();
        builder.scope("a", |b| b.linear(4, 6, true));
        builder.opaque("Shuffle");
        builder.scope("b", |b| b.linear(6, 2, true));
        assert!(builder.finish().unwrap().groups().is_empty());
    }

    #[test]
    fn signs_are_noted_but_change_no_fingerprint() {
        let build = |odd: bool| {
            let mut builder = LayoutBuilder::new();
            builder.scope("a", |b| b.linear(4, 6, true));
            if odd {
                builder.odd("Activation");
            } else {
                builder.unitwise("Activation");
            }
            builder.scope("b", |b| b.linear(6, 2, true));
            builder.finish().unwrap()
        };
        let (odd, other) = (build(true), build(false));
        assert!(odd.groups()[0].odd && !other.groups()[0].odd);
        assert_eq!(odd.fingerprint(), other.fingerprint());
        assert_eq!(odd.check_matches(&other), Ok(()));
        // Layouts that were written before there were signs are read as they were.
        let json = serde_json::to_string(&other).unwrap();
        assert!(!json.contains("odd"), "{json}");
        let json = serde_json::to_string(&odd).unwrap();
        assert_eq!(serde_json::from_str::<Layout>(&json).unwrap(), odd);
    }

    #[test]
    fn skips_and_frozen_tensors_tell_layouts_apart() {
        type Layer = fn(&mut LayoutBuilder);
        let build = |middle: Layer| {
            let mut builder = LayoutBuilder::new();
            builder.scope("a", |b| b.linear(4, 6, true));
            middle(&mut builder);
            builder.scope("c", |b| b.linear(6, 2, true));
            builder.finish().unwrap()
        };
        let linear: Layer = |b| b.scope("b", |b| b.linear(6, 6, true));
        let layouts = [
            build(linear),
            build(|b| b.residual(|b| b.scope("b", |b| b.linear(6, 6, true)))),
            build(|b| b.frozen(|b| b.linear(6, 6, true))),
            build(|b| b.frozen(|b| b.residual(|b| b.linear(6, 6, true)))),
            build(|b| b.frozen(|b| b.scope("b", |b| b.linear(6, 6, false)))),
        ];
        let groups = layouts.each_ref().map(|layout| layout.groups().len());
        assert_eq!(groups, [2, 1, 0, 0, 0]);
        let parameters = layouts.each_ref().map(Layout::num_parameters);
        assert_eq!(parameters, [86, 86, 44, 44, 44]);
        let mut fingerprints = layouts.each_ref().map(|layout| layout.fingerprint().to_string());
        fingerprints.sort_unstable();
        assert!(fingerprints.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn names_do_not_change_the_fingerprint_but_structure_does() {
        let mut other = LayoutBuilder::new();
        other.scope("fc1", |b| b.linear(64, 10, true));
        other.unitwise("ReLU");
        other.scope("fc2", |b| b.linear(10, 5, true));
        let other = other.finish().unwrap();
        assert_eq!(mlp().fingerprint(), other.fingerprint());
        assert_eq!(mlp().check_matches(&other), Ok(()));

        let mut tanh = LayoutBuilder::new();
        tanh.scope("fc1", |b| b.linear(64, 10, true));
        tanh.unitwise("Tanh");
        tanh.scope("fc2", |b| b.linear(10, 5, true));
        let tanh = tanh.finish().unwrap();
        assert_ne!(mlp().fingerprint(), tanh.fingerprint());
        assert!(matches!(tanh.check_matches(&mlp()), Err(LayoutError::Layers { .. })));
    }

    #[test]
    fn a_layout_survives_json_and_a_broken_one_is_refused() {
        let json = serde_json::to_string(&mlp()).unwrap();
        assert_eq!(serde_json::from_str::<Layout>(&json).unwrap(), mlp());
        let broken = json.replace("\"units\":10", "\"units\":11");
        let error = serde_json::from_str::<Layout>(&broken).unwrap_err().to_string();
        assert!(error.contains("unit group `hidden`"), "{error}");
        // The number of units of a group without axes would be bound by nothing.
        let start = json.find("\"axes\":[").unwrap() + 8;
        let end = start + json[start..].find(']').unwrap();
        let error = serde_json::from_str::<Layout>(&[&json[..start], &json[end..]].concat());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("names no axis"), "{error}");
    }
}
