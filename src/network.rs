//! What lopt has to know about a user's network, and its parameters as one
//! flat vector.
//!
//! `#[lopt::network]` makes a struct whose fields are dfdx layers, applied in
//! order, a dfdx module and a [`Network`]. The struct itself stays what it is
//! and serves as a description: dfdx builds it, on any device and with any
//! dtype, into a struct of the built layers, whose fields keep their names,
//! docs and visibility.
//!
//! ```
//! use dfdx::prelude::*;
//! use lopt::Network;
//!
//! /// 64 inputs, `H` hidden units, 10 outputs.
//! #[lopt::network]
//! pub struct Mlp<const H: usize = 10> {
//!     pub hidden: Linear<64, H>,
//!     pub activation: ReLU,
//!     pub output: Linear<H, 10>,
//! }
//!
//! let dev = Cpu::default();
//! let model = dev.build_module::<Mlp, f32>();
//! let scores: Tensor<Rank1<10>, f32, _> = model.forward(dev.zeros::<Rank1<64>>());
//!
//! assert_eq!(Mlp::<10>::NUM_PARAMETERS, 64 * 10 + 10 + 10 * 10 + 10);
//! let layout = Mlp::<10>::layout()?;
//! assert_eq!(layout.tensors()[2].name, "output.weight");
//! assert_eq!(layout.groups()[0].name, "hidden"); // ten units, in any order
//! # Ok::<(), lopt::Error>(())
//! ```
//!
//! Layers may be dfdx's, tuples of them, type parameters, and other annotated
//! structs, which must be as visible as the struct that holds them. There may be
//! any number. The built struct of `Mlp` is called `BuiltMlp`, and
//! [`Built`] names it completely. It implements dfdx's `Module` for the inputs
//! that its layers take in turn, `ModuleMut` likewise (layers such as
//! [`Dropout`](dfdx::nn::modules::Dropout) train through `forward_mut` only),
//! and with `TensorCollection` everything that dfdx does with modules:
//! optimizers, gradients, safetensors, `to_device`, `to_dtype`.

mod layers;

use dfdx::nn::{
    BuildOnDevice, RecursiveWalker, TensorCollection, TensorOptions, TensorVisitor, ViewTensorMut,
    ViewTensorName, ViewTensorRef,
};
use dfdx::optim::UnusedTensors;
use dfdx::shapes::{Dtype, HasShape, Shape};
use dfdx::tensor::{Gradients, Storage, Tensor};
use dfdx::tensor_ops::{Device, ReshapeTo};

use crate::layout::{Fingerprint, Layout, LayoutBuilder, LayoutError, Role};

/// A part of a network: how many parameters it has, and what it does with the
/// units that flow through it.
///
/// Implemented for dfdx's layers, for tuples of layers, and by
/// `#[lopt::network]`; in each case for the description (`Linear<2, 3>`) and
/// for what dfdx builds from it (`Linear<2, 3, f32, Cpu>`). Implement it for a
/// layer of your own in the same way: list the trainable tensors in the order,
/// and under the names, of its `TensorCollection`. [`layout_of`] checks that.
///
/// Units are followed through dfdx's layers as they treat a batch of vectors
/// `[N, units]`, of sequences `[N, S, units]` or of images `[N, units, H, W]`.
/// `BatchNorm1D<C>` and `PReLU1D<C>` take the second axis, so for sequences they
/// leave the units alone; lopt sees that unless there happen to be `C` units in
/// sequences of just `C`. dfdx's [`Reshape`](dfdx::nn::builders::Reshape) says
/// nothing about its input: units end there.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a layer that lopt can follow",
    label = "not a layer of a network",
    note = "a network is made of dfdx's layers, tuples of them, and other structs with \
            `#[lopt::network]`",
    note = "for a layer of your own implement `lopt::network::Layer`, for its description and for \
            what dfdx builds from it"
)]
pub trait Layer {
    /// Number of trainable parameters.
    const PARAMETERS: usize;

    /// Adds the layer to a layout, after all that come before it.
    fn describe(layout: &mut LayoutBuilder);
}

/// A network whose parameters lopt can read, write and permute.
///
/// Whatever is a [`Layer`] is a network: a struct with `#[lopt::network]`, what
/// dfdx builds from it, and also a plain tuple of dfdx's layers.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a network",
    label = "not a network",
    note = "write a struct of dfdx's layers with `#[lopt::network]`, or a tuple of them"
)]
pub trait Network: Layer {
    /// Number of trainable parameters: the length of the flat vector.
    const NUM_PARAMETERS: usize;

    /// Names, shapes, roles and offsets of the tensors, and the unit groups.
    ///
    /// # Errors
    /// If the description of a hand-written layer is not consistent: two
    /// tensors of one name, an empty tensor, another number of parameters than
    /// it says.
    fn layout() -> Result<Layout, LayoutError>;

    /// Identifies the structure of the network, whatever its fields are called.
    ///
    /// # Errors
    /// As [`layout`](Self::layout).
    fn fingerprint() -> Result<Fingerprint, LayoutError>;
}

impl<L: Layer> Network for L {
    const NUM_PARAMETERS: usize = L::PARAMETERS;

    fn layout() -> Result<Layout, LayoutError> {
        let mut builder = LayoutBuilder::new();
        L::describe(&mut builder);
        let layout = builder.finish()?;
        layout.check_length(L::PARAMETERS)?;
        Ok(layout)
    }

    fn fingerprint() -> Result<Fingerprint, LayoutError> {
        Ok(Self::layout()?.fingerprint())
    }
}

/// Layout of a built model: of a struct with `#[lopt::network]`, and as well of
/// dfdx modules that were never annotated, from a tuple or a single `Linear` to
/// dfdx's own stacks.
///
/// It is [`Network::layout`], which needs no model, checked against the tensors
/// that the model has.
///
/// # Errors
/// If the description of a hand-written layer is not consistent, or is not what
/// dfdx visits.
///
/// # Examples
/// ```
/// use dfdx::prelude::*;
/// use lopt::network::layout_of;
///
/// type Model = (Linear<4, 8>, Residual<(ReLU, Linear<8, 8>)>, Linear<8, 2>);
/// let model = Cpu::default().build_module::<Model, f32>();
/// let layout = layout_of(&model)?;
/// assert_eq!(layout.tensors()[2].name, "1.0.1.weight");
/// assert_eq!(layout.groups()[0].units, 8); // on both sides of the skip
/// # Ok::<(), lopt::Error>(())
/// ```
pub fn layout_of<M, E, D>(model: &M) -> Result<Layout, NetworkError>
where
    M: Network + TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    let layout = M::layout()?;
    let visited = tensors_of(model)?;
    for (index, (expected, found)) in visited.tensors().iter().zip(layout.tensors()).enumerate() {
        if (&expected.name, &expected.shape) != (&found.name, &found.shape) {
            return Err(NetworkError::Layout(LayoutError::Tensor {
                index,
                found_name: found.name.clone(),
                found_role: found.role,
                found_shape: found.shape.clone(),
                expected_name: expected.name.clone(),
                expected_role: expected.role,
                expected_shape: expected.shape.clone(),
            }));
        }
    }
    let (found, expected) = (layout.tensors().len(), visited.tensors().len());
    if found != expected {
        return Err(LayoutError::TensorCount { found, expected }.into());
    }
    Ok(layout)
}

/// Layout of any dfdx module: the names and shapes of its trainable tensors.
///
/// What its layers are is not known, and names tell nothing for certain: tensors
/// have the role [`Other`](crate::layout::Role::Other), and no units may change
/// places. For modules of layers that lopt knows take [`layout_of`].
///
/// # Errors
/// If two tensors have one name, or a tensor is empty.
///
/// # Examples
/// ```
/// use dfdx::prelude::*;
/// use lopt::network::tensors_of;
///
/// let model = Cpu::default().build_module::<Linear<4, 8>, f32>();
/// let layout = tensors_of(&model)?;
/// assert_eq!(layout.num_parameters(), 40);
/// assert!(layout.groups().is_empty());
/// # Ok::<(), lopt::Error>(())
/// ```
pub fn tensors_of<M, E, D>(model: &M) -> Result<Layout, NetworkError>
where
    M: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    let mut lister = Lister { builder: LayoutBuilder::new() };
    M::iter_tensors(&mut RecursiveWalker { m: (model, String::new()), f: &mut lister })?;
    Ok(lister.builder.finish()?)
}

/// The module that dfdx builds from the network `N`, with values of type `E` on
/// the device `D`.
///
/// # Examples
/// ```
/// use dfdx::prelude::*;
///
/// #[lopt::network]
/// struct Line {
///     map: Linear<1, 1>,
/// }
///
/// struct Trained {
///     line: lopt::network::Built<Line, f32, Cpu>,
/// }
///
/// let trained = Trained { line: Cpu::default().build_module::<Line, f32>() };
/// assert_eq!(trained.line.map.weight.as_vec().len(), 1);
/// ```
pub type Built<N, E, D> = <N as BuildOnDevice<D, E>>::Built;

/// Why the parameters of a model could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The flat vector does not fit the model.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Several positions of a tensor share one value in memory.
    #[error(
        "tensor `{tensor}` stores {stored} values for {expected} positions (it was broadcast), \
         expected one for each"
    )]
    SharedStorage {
        /// Dotted field path of the tensor.
        tensor: String,
        /// Values in memory.
        stored: usize,
        /// Positions of the tensor.
        expected: usize,
    },
    /// The device failed.
    #[error("the model's device failed: {message}")]
    Device {
        /// What dfdx said.
        message: String,
    },
}

impl NetworkError {
    pub(crate) fn device(error: impl std::fmt::Display) -> Self {
        Self::Device { message: error.to_string() }
    }
}

/// Trainable parameters of a model as one vector: tensors in definition order,
/// each in the logical order of its values.
///
/// Bits are kept, also those of NaNs and subnormal numbers. Tensors that dfdx's
/// optimizers leave alone, such as running statistics, are left out.
///
/// # Errors
/// None with dfdx's own devices.
///
/// # Examples
/// ```
/// use dfdx::prelude::*;
/// use lopt::network::{flatten, unflatten};
///
/// let dev = Cpu::default();
/// let mut model = dev.build_module::<Linear<2, 3>, f32>();
/// let mut flat = flatten(&model)?;
/// flat[6] = 0.5; // first value of the bias, after 2 times 3 weights
/// unflatten(&mut model, &flat)?;
/// assert_eq!(model.bias.array()[0], 0.5);
/// # Ok::<(), lopt::Error>(())
/// ```
pub fn flatten<M, E, D>(model: &M) -> Result<Vec<E>, NetworkError>
where
    M: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    let mut reader = Reader { values: Vec::new() };
    M::iter_tensors(&mut RecursiveWalker { m: model, f: &mut reader })?;
    Ok(reader.values)
}

/// Writes a flat vector into a model: the inverse of [`flatten`].
///
/// Tensors keep their identity, so gradients and optimizers that belong to the
/// model stay valid. Clones of the model that were taken before are not changed.
///
/// # Errors
/// If `flat` has another length than the model has parameters, or a tensor
/// cannot hold a value for each position. The model is unchanged then.
pub fn unflatten<M, E, D>(model: &mut M, flat: &[E]) -> Result<(), NetworkError>
where
    M: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    let mut planner = Planner { orders: Vec::new(), length: 0 };
    M::iter_tensors(&mut RecursiveWalker { m: (&*model, String::new()), f: &mut planner })?;
    if planner.length != flat.len() {
        return Err(LayoutError::Length { found: flat.len(), expected: planner.length }.into());
    }
    let mut writer = Writer { rest: flat, orders: planner.orders.into_iter() };
    M::iter_tensors(&mut RecursiveWalker { m: model, f: &mut writer })?;
    Ok(())
}

struct Lister {
    builder: LayoutBuilder,
}

impl<E: Dtype, D: Device<E>> TensorVisitor<E, D> for Lister {
    type Viewer = (ViewTensorRef, ViewTensorName);
    type Err = NetworkError;
    type E2 = E;
    type D2 = D;

    fn visit<S: Shape>(
        &mut self,
        options: TensorOptions<S, E, D>,
        (tensor, name): (&Tensor<S, E, D>, String),
    ) -> Result<Option<Tensor<S, E, D>>, NetworkError> {
        if options.do_gradient_update {
            let shape = tensor.shape().concrete();
            self.builder.tensor(&name, shape.as_ref(), Role::Other);
        }
        Ok(None)
    }
}

struct Reader<E> {
    values: Vec<E>,
}

impl<E: Dtype, D: Device<E>> TensorVisitor<E, D> for Reader<E> {
    type Viewer = ViewTensorRef;
    type Err = NetworkError;
    type E2 = E;
    type D2 = D;

    fn visit<S: Shape>(
        &mut self,
        options: TensorOptions<S, E, D>,
        tensor: &Tensor<S, E, D>,
    ) -> Result<Option<Tensor<S, E, D>>, NetworkError> {
        if options.do_gradient_update {
            self.values.extend(tensor.as_vec());
        }
        Ok(None)
    }
}

/// Finds out how to write, before anything is written.
struct Planner {
    orders: Vec<Option<Vec<usize>>>,
    length: usize,
}

impl<E: Dtype, D: Device<E>> TensorVisitor<E, D> for Planner {
    type Viewer = (ViewTensorRef, ViewTensorName);
    type Err = NetworkError;
    type E2 = E;
    type D2 = D;

    fn visit<S: Shape>(
        &mut self,
        options: TensorOptions<S, E, D>,
        (tensor, name): (&Tensor<S, E, D>, String),
    ) -> Result<Option<Tensor<S, E, D>>, NetworkError> {
        if options.do_gradient_update {
            self.orders.push(storage_order(tensor, name)?);
            self.length += tensor.shape().num_elements();
        }
        Ok(None)
    }
}

struct Writer<'a, E> {
    rest: &'a [E],
    orders: std::vec::IntoIter<Option<Vec<usize>>>,
}

impl<E: Dtype, D: Device<E>> TensorVisitor<E, D> for Writer<'_, E> {
    type Viewer = ViewTensorMut;
    type Err = NetworkError;
    type E2 = E;
    type D2 = D;

    fn visit<S: Shape>(
        &mut self,
        options: TensorOptions<S, E, D>,
        tensor: &mut Tensor<S, E, D>,
    ) -> Result<Option<Tensor<S, E, D>>, NetworkError> {
        if options.do_gradient_update {
            let (values, rest) = self.rest.split_at(tensor.shape().num_elements());
            self.rest = rest;
            match self.orders.next().flatten() {
                None => tensor.copy_from(values),
                Some(order) => {
                    let mut stored = vec![E::default(); values.len()];
                    for (&position, &value) in order.iter().zip(values) {
                        stored[position] = value;
                    }
                    tensor.copy_from(&stored);
                }
            }
        }
        Ok(None)
    }
}

/// For each logical position of a tensor, where its value is stored; `None` if
/// both orders are the same.
///
/// dfdx reads values in logical order (`as_vec`) and writes them in that of
/// memory (`copy_from`), and its strides are private. So where a tensor was
/// permuted, the order is found by writing numbers and reading them back.
fn storage_order<S: Shape, E: Dtype, D: Device<E>>(
    tensor: &Tensor<S, E, D>,
    name: String,
) -> Result<Option<Vec<usize>>, NetworkError> {
    let contiguous = tensor.clone().try_contiguous().map_err(NetworkError::device)?;
    let mut ids = UnusedTensors::default();
    ids.add(tensor);
    ids.add(&contiguous);
    // `try_contiguous` makes a new tensor unless it already is contiguous.
    if ids.ids[0] == ids.ids[1] {
        return Ok(None);
    }
    let expected = tensor.shape().num_elements();
    let mut storage = Gradients::leaky();
    let storage = storage.get_or_alloc_mut(tensor).map_err(NetworkError::device)?;
    let stored = Storage::<E>::len(tensor.device(), storage);
    if stored != expected {
        return Err(NetworkError::SharedStorage { tensor: name, stored, expected });
    }
    // One digit at a time: every dtype can hold the numbers up to `BASE`.
    const BASE: usize = 64;
    let digits: Vec<E> = std::iter::successors(Some(E::default()), |&digit| Some(digit + E::ONE))
        .take(BASE)
        .collect();
    let mut order = vec![0; expected];
    let mut scratch = tensor.clone();
    let mut unit = 1;
    while unit < expected {
        let written: Vec<E> = (0..expected).map(|i| digits[i / unit % BASE]).collect();
        scratch.copy_from(&written);
        for (position, digit) in order.iter_mut().zip(scratch.as_vec()) {
            *position += unit * digit.to_usize().unwrap_or_default();
        }
        unit *= BASE;
    }
    Ok(Some(order))
}
