//! A model's parameters as one flat vector.

use dfdx::nn::{
    RecursiveWalker, TensorCollection, TensorOptions, TensorVisitor, ViewTensorMut, ViewTensorName,
    ViewTensorRef,
};
use dfdx::optim::UnusedTensors;
use dfdx::shapes::{Dtype, HasShape, Shape};
use dfdx::tensor::{Gradients, Storage, Tensor};
use dfdx::tensor_ops::{Device, ReshapeTo};

use super::{fields, NetworkError};
use crate::layout::LayoutError;

/// Trainable parameters of a model as one vector: tensors in definition order,
/// each in the logical order of its values.
///
/// Bits are kept, also those of NaNs and subnormal numbers. Tensors that dfdx's
/// optimizers leave alone, such as running statistics and frozen layers, are
/// left out, and so are [skipped layers](super#frozen-and-skipped-layers).
///
/// # Errors
/// None with dfdx's own devices.
///
/// # Panics
/// dfdx panics where its `Cuda` device fails to copy; here and in [`unflatten`].
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
    let mut reader = Reader { gradients: None, values: Vec::new() };
    M::iter_tensors(&mut RecursiveWalker { m: model, f: &mut reader })?;
    Ok(reader.values)
}

/// Gradients of a model's parameters in the order of [`flatten`]; zeros for a
/// parameter that has none.
///
/// # Errors
/// If memory does not suffice.
pub fn flatten_gradients<M, E, D>(
    model: &M,
    gradients: &Gradients<E, D>,
) -> Result<Vec<E>, NetworkError>
where
    M: TensorCollection<E, D>,
    E: Dtype,
    D: Device<E>,
{
    let mut reader = Reader { gradients: Some(gradients.clone()), values: Vec::new() };
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

/// Whether a tensor that is visited is in the flat vector.
pub(super) fn is_flat<S: Shape, E: Dtype, D: Device<E>>(options: &TensorOptions<S, E, D>) -> bool {
    options.do_gradient_update && !fields::is_skipping()
}

/// Reads parameters, or their gradients if there are any.
struct Reader<E: Dtype, D: Device<E>> {
    gradients: Option<Gradients<E, D>>,
    values: Vec<E>,
}

impl<E: Dtype, D: Device<E>> TensorVisitor<E, D> for Reader<E, D> {
    type Viewer = ViewTensorRef;
    type Err = NetworkError;
    type E2 = E;
    type D2 = D;

    fn visit<S: Shape>(
        &mut self,
        options: TensorOptions<S, E, D>,
        tensor: &Tensor<S, E, D>,
    ) -> Result<Option<Tensor<S, E, D>>, NetworkError> {
        if is_flat(&options) {
            self.values.extend(match &mut self.gradients {
                None => tensor.as_vec(),
                Some(gradients) => {
                    gradients.get_or_alloc_mut(tensor).map_err(NetworkError::device)?;
                    gradients.get(tensor).as_vec()
                }
            });
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
        if is_flat(&options) {
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
        if is_flat(&options) {
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
