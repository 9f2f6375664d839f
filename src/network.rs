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
//! Layers may be dfdx's, those of [`nn`](crate::nn), tuples of them, type
//! parameters, and other annotated structs, which must be as visible as the
//! struct that holds them. There may be any number. The built struct of `Mlp` is called `BuiltMlp`, and
//! [`Built`] names it completely. It implements dfdx's `Module` for the inputs
//! that its layers take in turn, `ModuleMut` likewise (layers such as
//! [`Dropout`](dfdx::nn::modules::Dropout) train through `forward_mut` only),
//! and with `TensorCollection` everything that dfdx does with modules:
//! optimizers, gradients, safetensors, `to_device`, `to_dtype`.
//!
//! # Residual blocks
//! `#[lopt(residual)]` on a field adds its input to its output, as dfdx's
//! [`Residual`](dfdx::nn::modules::Residual) does without another name in
//! between. Units on both sides of the skip are one group.
//!
//! ```
//! use dfdx::prelude::*;
//! use lopt::Network;
//!
//! #[lopt::network]
//! struct Block<const W: usize> {
//!     norm: LayerNorm1D<W>,
//!     map: Linear<W, W>,
//!     activation: ReLU,
//! }
//!
//! #[lopt::network]
//! struct Deep {
//!     stem: Linear<4, 16>,
//!     #[lopt(residual)]
//!     first: Block<16>,
//!     #[lopt(residual)]
//!     second: Block<16>,
//!     output: Linear<16, 2>,
//! }
//!
//! let layout = Deep::layout()?;
//! assert_eq!(layout.groups().len(), 1);
//! assert_eq!(layout.tensors()[2].name, "first.norm.gamma");
//! # Ok::<(), lopt::Error>(())
//! ```
//!
//! # Frozen and skipped layers
//! | attribute of a field | forward pass | dfdx's optimizers | lopt |
//! |---|---|---|---|
//! | none | takes part | train it | reads and writes it |
//! | `#[lopt(frozen)]` | takes part | leave it alone | leaves it alone |
//! | `#[lopt(skip)]` | takes part | train it | does not see it |
//!
//! Neither a frozen nor a skipped layer is in the flat vector, and units that it
//! produces, scales or reads are in no group. Both are built, saved, loaded and
//! moved between devices with the rest. Running statistics of a frozen batch
//! norm go on following the data in `forward_mut`: apply it with `forward` if
//! they are not to.
//!
//! ```
//! use dfdx::prelude::*;
//! use lopt::Network;
//!
//! #[lopt::network]
//! struct Transfer {
//!     /// Loaded from a file.
//!     #[lopt(frozen)]
//!     features: (Linear<64, 32>, ReLU),
//!     hidden: Linear<32, 8>,
//!     activation: Tanh,
//!     output: Linear<8, 10>,
//! }
//!
//! assert_eq!(Transfer::NUM_PARAMETERS, 32 * 8 + 8 + 8 * 10 + 10);
//! ```
//!
//! # A forward pass of one's own
//! With `#[lopt(forward)]` on the struct the macro writes no `Module` and
//! `ModuleMut`: you implement them for the built struct. For a struct `Net`
//! without parameters, `NetOn<E, D>` names it in the header of an `impl` (where
//! [`Built`] cannot stand); else spell out the fields' types, as in
//! `BuiltNet<modules::Linear<4, H, E, D>>`. lopt then knows nothing of how the
//! fields are wired, and there are no unit groups.
//!
//! `#[lopt(forward(..))]` states the wiring, and unit groups are found as in any
//! network. Steps are separated by commas, and each acts on what the one before
//! has made, and on nothing else:
//!
//! | step | meaning |
//! |---|---|
//! | `hidden` | the field is applied, as a whole |
//! | `ReLU` | a layer without parameters that is no field: a function, such as `x.relu()` |
//! | `a + b` | both are applied to the same input, and their outputs added |
//! | <code>a &#124; b</code> | both are applied to the same input, and give a value each |
//! | `_` | what arrives, unchanged: `_ + block` is a skip |
//! | `..` | anything else: lopt does not look into it |
//! | `(a, b)` | steps in parentheses, to stand in a sum or next to a <code>&#124;</code> |
//!
//! Fields are named once, in the order of the struct, and all are named, unless
//! there is a `..` for the others to be used in. A layer that is applied more
//! than once is not named. **The wiring is a promise**: nothing compares it with
//! your code, and a false one gives wrong symmetries, with which no G.pt learns
//! well. [`check_symmetry`] tests it on a model.
//!
//! A bare tensor is a field of type [`Parameter`](crate::nn::Parameter), which
//! holds zeros at first, or the number in `#[lopt(init = 1.0)]`. It may be frozen
//! or skipped as layers may, and is not named in the wiring: what it does to the
//! units is part of a `..`.
//!
//! ```
//! use dfdx::prelude::*;
//! use lopt::network::check_symmetry;
//! use lopt::nn::Parameter;
//! use lopt::Network;
//! use rand::SeedableRng;
//!
//! /// `output(relu(hidden(x)) + block(..))`, its logits divided by temperatures.
//! #[lopt::network]
//! #[lopt(forward(hidden, ReLU, _ + block, output, ..))]
//! struct Net {
//!     hidden: Linear<4, 8>,
//!     block: Linear<8, 8>,
//!     output: Linear<8, 3>,
//!     #[lopt(init = 1.0)]
//!     temperature: Parameter<Rank1<3>>,
//! }
//!
//! impl<B: Dim, D: Device<f32>, T: Tape<f32, D>> Module<Tensor<(B, Const<4>), f32, D, T>>
//!     for NetOn<f32, D>
//! {
//!     type Output = Tensor<(B, Const<3>), f32, D, T>;
//!     type Error = D::Err;
//!
//!     fn try_forward(&self, x: Tensor<(B, Const<4>), f32, D, T>) -> Result<Self::Output, D::Err> {
//!         let x = self.hidden.try_forward(x)?.try_relu()?;
//!         let x = self.block.try_forward(x.with_empty_tape())?.try_add(x)?;
//!         let x = self.output.try_forward(x)?;
//!         let temperature = self.temperature.retaped::<T>().try_broadcast_like(&x)?;
//!         x.try_div(temperature)
//!     }
//! }
//!
//! // Nothing behaves otherwise in training: `ModuleMut` is `Module`.
//! impl<F0, F1, F2, F3> NonMutableModule for BuiltNet<F0, F1, F2, F3> {}
//!
//! let dev = Cpu::seed_from_u64(0);
//! let model = dev.build_module::<Net, f32>();
//! let inputs: Tensor<Rank2<16, 4>, f32, _> = dev.sample_normal();
//! let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
//! check_symmetry(&model, &mut rng, |model| model.forward(inputs.clone()).as_vec())?;
//! assert_eq!(Net::layout()?.groups()[0].name, "hidden");
//! # Ok::<(), lopt::Error>(())
//! ```

mod check;
#[doc(hidden)]
pub mod fields;
mod flat;
mod layers;

pub use check::check_symmetry;
pub use flat::{flatten, flatten_gradients, unflatten};

use dfdx::nn::{
    BuildOnDevice, RecursiveWalker, TensorCollection, TensorOptions, TensorVisitor, ViewTensorName,
    ViewTensorRef,
};
use dfdx::shapes::{Dtype, HasShape, Shape};
use dfdx::tensor::Tensor;
use dfdx::tensor_ops::Device;

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
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
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
    /// Outputs depend on what should not matter: the layout, or the wiring that
    /// was stated, is not that of the forward pass.
    #[error(
        "units of group `{group}` are not free to move: outputs of at most {largest} change by \
         {change}, expected no change"
    )]
    Symmetry {
        /// Name of the group: the layer that produces its units.
        group: String,
        /// Largest change of an output.
        change: f64,
        /// Largest output.
        largest: f64,
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
        if flat::is_flat(&options) {
            let shape = tensor.shape().concrete();
            self.builder.tensor(&name, shape.as_ref(), Role::Other);
        }
        Ok(None)
    }
}
